"""The demo's flow: one event loop, then a pool that loses a worker half-way, then what was found and how fast."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import aiohttp
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ModuleNotFoundError as missing:
    sys.exit(f"The demo needs {missing.name}, which is not installed. Write: pip install 'polyloop[demo]'")

from polyloop import Pool
from polyloop.demo.analyse import Visit, visit
from polyloop.demo.server import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TASKS_PER_PROCESS = 16
REPORT_WAIT_S = 5.0


@dataclass
class Run:
    """One pass over all files."""

    total: int
    on_visit: Callable[[], None]
    visits: list[Visit] = field(default_factory=list)
    started_s: float = field(default_factory=time.perf_counter)
    first_s: float = 0.0
    elapsed_s: float = 0.0
    killed: int | None = None

    def add(self, found: Visit) -> None:
        self.elapsed_s = time.perf_counter() - self.started_s
        self.first_s = self.first_s or self.elapsed_s
        self.visits.append(found)
        self.on_visit()


class WarningLine(logging.Handler):
    """Shows what the pool logs above the progress bar, and knows when it has."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.shown = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        self.shown.set()

    async def shown_within(self, wait_s: float) -> bool:
        try:
            await asyncio.wait_for(self.shown.wait(), wait_s)
        except TimeoutError:
            return False
        return True


async def list_files(base: str, limit: int | None) -> list[str]:
    """The addresses of all files, or of `limit` of them, spread evenly."""
    async with aiohttp.ClientSession() as session, session.get(base) as response:
        paths = (await response.text()).splitlines()
    step = max(1, len(paths) // limit) if limit else 1
    return [base + path for path in paths[::step][:limit]]


async def on_one_loop(urls: Sequence[str], concurrency: int, run: Run) -> None:
    """The usual way: as many consumers as the pool has room for, one process, one core."""
    found: dict[str, Visit] = {}

    async def consume(remaining: Iterator[str]) -> None:
        for url in remaining:
            found[url] = await visit(url)
            run.add(found[url])

    remaining = iter(urls)
    await asyncio.gather(*(consume(remaining) for _ in range(concurrency)))
    run.visits = [found[url] for url in urls]


async def on_a_pool(urls: Sequence[str], processes: int, kill: bool, warnings: WarningLine, run: Run) -> None:
    """The same coroutine through a pool. Half-way, the worker that sent the latest result is killed."""
    # On a busy machine a worker is blocked for a second by importing its HTTP client.
    async with Pool(processes, childconcurrency=TASKS_PER_PROCESS, retries=1, block_warning=None) as pool:
        async for found in pool.map(visit, urls):
            run.add(found)
            if kill and len(run.visits) == (run.total + 1) // 2:
                run.killed = found.pid
                os.kill(found.pid, signal.SIGKILL)
        if kill and not await warnings.shown_within(REPORT_WAIT_S):
            raise RuntimeError("a worker was killed and the pool did not say so")


def new_table(first: str, *numbers: str) -> Table:
    """A light table; every column but the first is right-aligned."""
    table = Table(first, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in numbers:
        table.add_column(header, justify="right")
    return table


def show_findings(console: Console, visits: Sequence[Visit]) -> None:
    facts = [found.facts for found in visits]
    longest = max(facts, key=lambda file: file.longest_function)
    imports = Counter(name for file in facts for name in file.imports)
    table = Table("What was found", "", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows = {
        "files": f"{len(facts):,}",
        "lines": f"{sum(file.lines for file in facts):,}",
        "classes": f"{sum(file.classes for file in facts):,}",
        "functions": f"{sum(file.functions for file in facts):,}",
        "of which coroutines": f"{sum(file.coroutines for file in facts):,}",
        "longest function": "{1}, {0} lines".format(*longest.longest_function) + f" ({longest.path[1:]})",
        "most imported": ", ".join(f"{name} {count}" for name, count in imports.most_common(5)),
    }
    if broken := sum(not file.is_python for file in facts):
        rows["not valid Python"] = str(broken)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, "")


def show_times(console: Console, alone: Run, pooled: Run, processes: int) -> None:
    table = new_table("Run", "first result", "all", "files/s", "speed-up")
    for name, run in (("one event loop", alone), (f"pool of {processes}", pooled)):
        rate = run.total / run.elapsed_s
        speed_up = alone.elapsed_s / run.elapsed_s
        table.add_row(name, f"{run.first_s:.2f} s", f"{run.elapsed_s:.2f} s", f"{rate:,.0f}", f"{speed_up:.2f} x")
    console.print(table, "")


def show_workers(console: Console, pooled: Run) -> None:
    files = Counter(found.pid for found in pooled.visits)
    cpu_s = dict.fromkeys(files, 0.0)
    for found in pooled.visits:
        cpu_s[found.pid] = max(cpu_s[found.pid], found.cpu_s)
    table = new_table("Worker", "files", "CPU", "share of CPU", "fate")
    for pid, count in files.items():
        share = cpu_s[pid] / sum(cpu_s.values())
        fate = "killed half-way" if pid == pooled.killed else "lived"
        table.add_row(f"pid {pid}", str(count), f"{cpu_s[pid]:.2f} s", f"{share:.0%}", fate)
    console.print(table, "")


def show_verdict(console: Console, alone: Run, pooled: Run) -> bool:
    """Whether the pool found what one loop found, in the same order, whatever happened to its workers."""
    expected = [found.facts for found in alone.visits]
    same = [found.facts for found in pooled.visits] == expected
    lost = "no worker was killed" if pooled.killed is None else f"worker {pooled.killed} was killed on the way"
    word = "complete" if same else "INCOMPLETE"
    agree = "both runs agree" if same else "the runs differ"
    console.print(f"{word}: {len(pooled.visits)} of {pooled.total} files, {agree}; {lost}", soft_wrap=True)
    return same


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m polyloop.demo", description=__doc__)
    parser.add_argument("--processes", type=int, default=max(2, len(os.sched_getaffinity(0))), help="workers")
    parser.add_argument("--limit", type=int, help="take only so many files")
    parser.add_argument("--no-kill", action="store_true", help="spare the worker")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    console = Console()
    progress = Progress(
        TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    warnings = WarningLine(console)
    logging.getLogger("polyloop").addHandler(warnings)

    with serve(Path(sysconfig.get_path("stdlib"))) as base:
        urls = asyncio.run(list_files(base, options.limit))

        def begin(name: str) -> Run:
            bar = progress.add_task(name, total=len(urls))
            return Run(len(urls), on_visit=lambda: progress.advance(bar))

        with progress:
            alone = begin("one event loop")
            asyncio.run(on_one_loop(urls, options.processes * TASKS_PER_PROCESS, alone))
            pooled = begin(f"pool of {options.processes}")
            asyncio.run(on_a_pool(urls, options.processes, not options.no_kill, warnings, pooled))

    console.print()
    show_findings(console, pooled.visits)
    show_times(console, alone, pooled, options.processes)
    show_workers(console, pooled)
    return 0 if show_verdict(console, alone, pooled) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
