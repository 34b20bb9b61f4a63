"""The main job without its payload: what a pool costs. polyloop, aiomultiprocess and asyncio.gather side by side.

Two figures: no-op coroutines through one bulk call, and one call at a time. Rivals take turns within each round, so
that a slow minute of the machine hits all of them. `make bench` writes benches/results/<date>-main-job-<python>.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiomultiprocess

import polyloop

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP_S = 0.5
WARM_UP_CALLS = 20


async def no_op(n: int) -> int:
    return n


@dataclass(frozen=True)
class Verbs:
    """One way to run coroutines, ready to use."""

    bulk: Callable[[int], Awaitable[Any]]
    one: Callable[[], Awaitable[Any]]


@dataclass
class Samples:
    """One figure per round."""

    bulk_per_s: list[float] = field(default_factory=list)
    one_p50_us: list[float] = field(default_factory=list)
    one_p99_us: list[float] = field(default_factory=list)


@asynccontextmanager
async def on_polyloop(processes: int) -> AsyncIterator[Verbs]:
    async with polyloop.Pool(processes) as pool:
        yield Verbs(lambda items: pool.map(no_op, range(items)), lambda: pool.apply(no_op, (0,)))


@asynccontextmanager
async def on_aiomultiprocess(processes: int) -> AsyncIterator[Verbs]:
    async with aiomultiprocess.Pool(processes) as pool:
        yield Verbs(lambda items: pool.map(no_op, range(items)), lambda: pool.apply(no_op, (0,)))


@asynccontextmanager
async def on_gather(processes: int) -> AsyncIterator[Verbs]:
    async def one() -> int:
        return await asyncio.create_task(no_op(0))

    yield Verbs(lambda items: asyncio.gather(*(no_op(n) for n in range(items))), one)


Runner = Callable[[int], AbstractAsyncContextManager[Verbs]]
RUNNERS: dict[str, Runner] = {
    "polyloop": on_polyloop,
    "aiomultiprocess": on_aiomultiprocess,
    "asyncio.gather": on_gather,
}


async def measure(runner: Runner, options: argparse.Namespace, samples: Samples) -> None:
    """One round of one rival, on a pool of its own, so that idle rivals take no CPU from it."""
    async with runner(options.processes) as verbs:
        # Until every worker has started and run some: what is measured is the pool at work, not its start.
        warm_s = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < warm_s:
            await verbs.bulk(options.processes * 50)
        started_s = time.perf_counter()
        results = await verbs.bulk(options.items)
        samples.bulk_per_s.append(options.items / (time.perf_counter() - started_s))
        assert list(results) == list(range(options.items))

        for _ in range(WARM_UP_CALLS):
            await verbs.one()
        calls_us = []
        for _ in range(options.calls):
            started_s = time.perf_counter()
            await verbs.one()
            calls_us.append((time.perf_counter() - started_s) * 1e6)
        percentiles = statistics.quantiles(calls_us, n=100)
        samples.one_p50_us.append(percentiles[49])
        samples.one_p99_us.append(percentiles[98])


def spread(values: list[float]) -> str:
    """The median, and the lowest and highest round."""
    return f"{rounded(statistics.median(values))} ({rounded(min(values))} to {rounded(max(values))})"


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{rounded(statistics.median(ours) / statistics.median(theirs))} x"


def report(taken: dict[str, Samples], options: argparse.Namespace) -> str:
    base = taken["polyloop"]
    lines = [
        f"# Main job, {datetime.date.today():%Y-%m-%d}",
        "",
        (
            f"{options.items:,} no-op coroutines through one bulk call, then {options.calls} calls one after the "
            f"other; {options.processes} workers. Median of {options.rounds} rounds, in brackets the lowest and the "
            "highest. Rivals took turns within each round."
        ),
        "",
        "| | bulk, tasks/s | one call, p50 in us | one call, p99 in us |",
        "|---|---|---|---|",
        *(
            f"| {name} | {spread(samples.bulk_per_s)} | {spread(samples.one_p50_us)} | {spread(samples.one_p99_us)} |"
            for name, samples in taken.items()
        ),
        "",
        "| polyloop against | rate in bulk | latency of one call, p50 | p99 |",
        "|---|---|---|---|",
        *(
            f"| {name} | {ratio(base.bulk_per_s, samples.bulk_per_s)} | {ratio(base.one_p50_us, samples.one_p50_us)} "
            f"| {ratio(base.one_p99_us, samples.one_p99_us)} |"
            for name, samples in taken.items()
            if samples is not base
        ),
        "",
        machine(options, "aiomultiprocess"),
        "",
    ]
    return "\n".join(lines)


def machine(options: argparse.Namespace, *rivals: str) -> str:
    """What the figures were taken on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("polyloop", *rivals))
    return (
        f"Machine: {len(os.sched_getaffinity(0))} cores ({cpu_model()}), Linux {platform.release()}, "
        f"CPython {platform.python_version()}, {versions}. Load before the run: {options.load:.2f}."
    )


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000, help="coroutines in the bulk call")
    parser.add_argument("--calls", type=int, default=300, help="calls one after the other")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=RUNNERS, action="append", help="leave the others out, and write no file")
    options = parser.parse_args()
    options.load = os.getloadavg()[0]
    return options


def main() -> None:
    options = parse_arguments()
    taken = {name: Samples() for name in options.only or RUNNERS}
    for number in range(options.rounds):
        for name, samples in taken.items():
            asyncio.run(measure(RUNNERS[name], options, samples))
            print(f"round {number + 1}: {name} {samples.bulk_per_s[-1]:,.0f}/s, p50 {samples.one_p50_us[-1]:,.0f} us")
    if "polyloop" not in taken:
        return
    text = report(taken, options)
    print("\n" + text)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        python = "{}.{}".format(*sys.version_info)
        (RESULTS / f"{datetime.date.today():%Y-%m-%d}-main-job-{python}.md").write_text(text)


if __name__ == "__main__":
    main()
