"""Memory: what a map over a million lazy items adds to the client, and what a worker has to itself."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, no_op, plain_no_op

ITEMS = 1_000_000
WARM_UP_ITEMS = 20_000
CHUNK = 1000
KB_PER_MB = 1000 / 1.024

GROWTH, PRIVATE = "1,000,000 lazy items: client growth", "memory of a worker's own"
BARE = "bare interpreter"


def on_polyloop() -> Mapping[str, float]:
    """Iterated as results come."""
    return asyncio.run(_on_polyloop())


async def _on_polyloop() -> Mapping[str, float]:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        await pool.map(no_op, range(WARM_UP_ITEMS))
        before_kb, taken = start_high_water(), 0
        async for _ in pool.map(no_op, (n for n in range(ITEMS))):
            taken += 1
        assert taken == ITEMS
        pids = [process.pid for process in pool.processes if process.pid is not None]
        return {GROWTH: (high_water_kb() - before_kb) / KB_PER_MB, PRIVATE: private_mb(pids)}


def on_aiomultiprocess() -> Mapping[str, float]:
    """Its workers only: its client takes the whole input at once."""
    return asyncio.run(_on_aiomultiprocess())


async def _on_aiomultiprocess() -> Mapping[str, float]:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        await pool.map(no_op, range(WARM_UP_ITEMS))
        return {PRIVATE: private_mb([process.pid for process in pool.processes])}


def on_multiprocessing() -> Mapping[str, float]:
    """`Pool.imap` of a plain function, in chunks of 1,000."""
    with multiprocessing.Pool(WORKERS) as pool:
        pool.map(plain_no_op, range(WARM_UP_ITEMS))
        before_kb, taken = start_high_water(), 0
        for _ in pool.imap(plain_no_op, (n for n in range(ITEMS)), CHUNK):
            taken += 1
        assert taken == ITEMS
        pids = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        return {GROWTH: (high_water_kb() - before_kb) / KB_PER_MB, PRIVATE: private_mb(pids)}


def bare_interpreter() -> Mapping[str, float]:
    """A process that runs Python and has imported nothing."""
    code = "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as interpreter:
        assert interpreter.stdout is not None
        interpreter.stdout.readline()
        figures = {PRIVATE: private_mb([interpreter.pid])}
        interpreter.communicate(b"\n")
    return figures


def start_high_water() -> int:
    """Set this process's high-water mark to what it holds now, and say that, in KB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kb("VmRSS")


def high_water_kb() -> int:
    """The most memory this process has held since, shared pages included."""
    return _status_kb("VmHWM")


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def private_mb(pids: list[int]) -> float:
    """Memory that would be free if one of these processes ended: the median."""
    return statistics.median(_private_kb(pid) for pid in pids) / KB_PER_MB


def _private_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


FAMILY = Family(
    "memory",
    "Memory",
    (
        Figure(GROWTH, "MB", Better.LESS, (Goal(20),)),
        Figure(PRIVATE, "MB", Better.LESS),
    ),
    {
        OURS: on_polyloop,
        "aiomultiprocess": on_aiomultiprocess,
        "multiprocessing.Pool": on_multiprocessing,
        BARE: bare_interpreter,
    },
)
