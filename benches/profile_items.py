"""Where the time of a client and of its workers goes, for each item of a map: sampled by perf, by part. `make profile`.

A client maps no-op coroutines for a while, and perf looks many times a millisecond where it and its workers are. Rust
built for release is inlined, so that a part is what its functions have been inlined into. Keeps
benches/results/<date>-profile-<python>.json, from which the page is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness import machine, results
from harness.figures import OURS
from harness.report import table
from rows.work import WORKERS, no_op, suspend_once

BENCH = "profile"
WATCHED_S = 4.0
SETTLES_S = 0.5
FREQUENCY_HZ = 4000
ITEMS_AT_ONCE = 20_000
PERF_STARTS_S = 0.5
FUNCTIONS_SHOWN = 12
NAME_MAX = 70

FLOOR_ITEMS = 200_000
FLOOR_REPEATS = 5
TASKS_AT_ONCE = 2000

WORK = {"no-op": no_op, "suspend-once": suspend_once}
TITLES = {"no-op": "map of a no-op coroutine", "suspend-once": "map of coroutines that suspend once"}

# The first that matches a sample's function, or the file it is in.
PARTS: tuple[tuple[str, str, str], ...] = (
    ("the kernel", r".*", r"\[kernel|\[unknown\]|\[vdso\]"),
    ("queues in shared memory (polyloop-shm)", r"polyloop_shm::", r".*"),
    ("the manager's and the worker's decisions (polyloop-core)", r"polyloop_core::", r".*"),
    ("engine (polyloop)", r"(^|[<\s&])polyloop::", r".*"),
    ("binding and codec (polyloop-python)", r"_core::|pyo3", r".*"),
    ("Rust's standard library, and smaller crates", r".*", r"_core\..*\.so"),
    (
        "CPython: memory and garbage",
        r"alloc|free|gc_|_gc|dealloc|Dealloc|GC|New|visit_|_traverse|subtract_refs",
        r"python",
    ),
    ("CPython: the interpreter's loop, calls and coroutines", r"Eval|Frame|gen_|Gen|coro|Iter_Send|[Cc]all", r"python"),
    ("CPython: tasks, contexts and the loop's select", r".*", r"_asyncio|_contextvars|select"),
    ("CPython: context copies", r"[Cc]ontext|hamt|Hamt", r"python"),
    ("CPython: the rest", r".*", r"python"),
    ("libc: memory and copies", r".*", r"libc"),
    ("the rest", r".*", r".*"),
)
SAMPLE = re.compile(r"^\s*(\d+)\s+[0-9a-f]+\s+(.*?)(?:\+0x[0-9a-f]+)?\s+\((.*)\)$")


async def client(work: str) -> None:
    """Map until told to stop; then say how many items that were, who worked, and how much CPU time each took."""
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        await _map_for(pool, work, SETTLES_S)
        pids = [os.getpid(), *(process.pid for process in pool.processes if process.pid is not None)]
        print(*pids, flush=True)
        await _map_for(pool, work, PERF_STARTS_S)
        before_s, started_s = [cpu_s(pid) for pid in pids], time.perf_counter()
        items = await _map_for(pool, work, WATCHED_S)
        took_s = time.perf_counter() - started_s
        used_s = [cpu_s(pid) - before for pid, before in zip(pids, before_s, strict=True)]
        print(items, took_s, *used_s, flush=True)


async def _map_for(pool: Any, work: str, seconds: float) -> int:
    until_s, items = time.perf_counter() + seconds, 0
    while time.perf_counter() < until_s:
        await pool.map(WORK[work], range(ITEMS_AT_ONCE))
        items += ITEMS_AT_ONCE
    return items


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, to the nanosecond: of its main thread, which does all the work here."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def profile(work: str) -> dict[str, Any]:
    """Sample a client and its first worker."""
    with tempfile.TemporaryDirectory() as place:
        data = f"{place}/perf.data"
        program = subprocess.Popen(
            [sys.executable, __file__, "--client", work], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert program.stdout is not None
            pids = program.stdout.readline().split()
            record = [
                "perf",
                "record",
                "--quiet",
                "-F",
                str(FREQUENCY_HZ),
                "-e",
                "cpu-clock",
                "-o",
                data,
                "-p",
                ",".join(pids),
            ]
            with subprocess.Popen(record, stderr=subprocess.PIPE, text=True) as recorder:
                told = program.stdout.readline().split()
                recorder.terminate()
                _, complaints = recorder.communicate()
        finally:
            program.kill()
            program.wait()
        if len(told) < len(pids) + 2:
            raise RuntimeError(f"the client that was to be watched failed; perf says: {complaints}")
        script = ["perf", "script", "-i", data, "-F", "pid,ip,sym,symoff,dso"]
        samples = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    items, took_s, *used_s = (float(number) for number in told)
    by_process = read_samples(samples)
    client_pid, *worker_pids = (int(pid) for pid in pids)
    workers: Counter[tuple[str, str]] = sum((by_process.get(pid, Counter()) for pid in worker_pids), Counter())
    return {
        "work": TITLES[work],
        "items": items,
        "items_per_s": items / took_s,
        "floor_ns": FLOORS[work][1](),
        "floor": FLOORS[work][0],
        "sides": {
            "client": side(by_process.get(client_pid, Counter()), used_s[0], items),
            "worker": side(workers, sum(used_s[1:]), items),
        },
    }


def read_samples(text: str) -> dict[int, Counter[tuple[str, str]]]:
    """By process: how often perf met each function of each file."""
    by_process: dict[int, Counter[tuple[str, str]]] = {}
    for line in text.splitlines():
        if sample := SAMPLE.match(line):
            pid, function, file = sample.groups()
            by_process.setdefault(int(pid), Counter())[function, file] += 1
    return by_process


def side(samples: Counter[tuple[str, str]], used_s: float, items: float) -> dict[str, Any]:
    """Nanoseconds of CPU time an item, by part and by function."""
    ns, total = used_s / items * 1e9, sum(samples.values())
    parts: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for (function, file), count in samples.items():
        part = part_of(function, file)
        parts[part] += count
        functions[shortened(function)] += count
    share = ns / max(1, total)
    return {
        "ns": ns,
        "samples": total,
        "parts": {part: count * share for part, count in parts.most_common()},
        "functions": {name: count * share for name, count in functions.most_common(FUNCTIONS_SHOWN)},
    }


def part_of(function: str, file: str) -> str:
    """Which part of the system a function belongs to."""
    return next(part for part, name, place in PARTS if re.search(name, function) and re.search(place, file))


def shortened(function: str) -> str:
    """A Rust name without the paths of its type's parameters."""
    return re.sub(r"<impl |>$", "", function).replace("|", "")[:NAME_MAX]


def awaited_ns() -> float:
    """The least that CPython can do for a coroutine: call it, and await it in the coroutine that called."""

    async def run() -> None:
        for n in range(FLOOR_ITEMS):
            await no_op(n)

    return lowest_ns(run)


def task_each_ns() -> float:
    """What asyncio does at home for a coroutine that suspends: a Task, and two of its steps."""

    async def run() -> None:
        for _ in range(FLOOR_ITEMS // TASKS_AT_ONCE):
            for task in [asyncio.create_task(suspend_once(n)) for n in range(TASKS_AT_ONCE)]:
                await task

    return lowest_ns(run)


def lowest_ns(run: Callable[[], Coroutine[Any, Any, None]]) -> float:
    """CPU time an item, of the quickest run: the other ones were disturbed."""
    runs_s = []
    for _ in range(FLOOR_REPEATS):
        started_s = time.thread_time()
        asyncio.run(run())
        runs_s.append(time.thread_time() - started_s)
    return min(runs_s) / FLOOR_ITEMS * 1e9


FLOORS = {
    "no-op": ("the same coroutine awaited in a loop of this process, without any Task", awaited_ns),
    "suspend-once": ("a Task for each on a loop of this process", task_each_ns),
}


def described(found: dict[str, Any]) -> str:
    """A table of parts: nanoseconds an item in client and worker."""
    client_parts, worker_parts = (found["sides"][name]["parts"] for name in ("client", "worker"))
    names = [part for part, *_ in PARTS if part in client_parts or part in worker_parts]
    rows = [[part, f"{client_parts.get(part, 0):,.0f}", f"{worker_parts.get(part, 0):,.0f}"] for part in names]
    rows.append(["**all**", *(f"**{found['sides'][name]['ns']:,.0f}**" for name in ("client", "worker"))])
    rows.append([f"floor: {found['floor']}", "", f"{found['floor_ns']:,.0f}"])
    head = [f"{found['work']}, {found['items_per_s'] / 1e6:.2f} million items/s", "client, ns", "worker, ns"]
    return table(head, rows)


def functions_table(found: dict[str, Any]) -> str:
    """The functions that take the most, client and worker side by side."""
    lists = [list(found["sides"][name]["functions"].items()) for name in ("client", "worker")]
    rows = []
    for pair in zip_longest(*lists):
        cells = [(cell[0], f"{cell[1]:,.0f}") if cell else ("", "") for cell in pair]
        rows.append([f"`{name}`" if cell == 0 and name else name for line in cells for cell, name in enumerate(line)])
    return table([f"{found['work']}: client", "ns", "worker", "ns"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", choices=list(WORK), help="be the client that is watched")
    options = parser.parse_args()
    if options.client:
        asyncio.run(client(options.client))
        return 0
    if shutil.which("perf") is None:
        print("profiles are taken by perf: install it (apt install linux-perf, dnf install perf)", file=sys.stderr)
        return 2
    known = machine.facts()
    profiles = [profile(work) for work in WORK]
    print("\n\n".join(described(found) for found in profiles) + "\n")
    path = results.store({"machine": known, "library": OURS, "profiles": profiles}, BENCH)
    print(f"kept as {path.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
