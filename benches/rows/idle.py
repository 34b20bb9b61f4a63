"""A pool that has worked and now has nothing to do: how often the kernel wakes any of its processes."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, no_op, plain_no_op

BENCHES = Path(__file__).resolve().parent.parent
ITEMS = 2000
SETTLES_S = 1.0
WATCHED_S = 2.0
FOREVER_S = 3600.0

WAKE_UPS = "idle: wake-ups"
READY = "ready"


async def hold_polyloop() -> None:
    """A client that has used its pool and keeps it."""
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        await pool.map(no_op, range(ITEMS))
        await asyncio.gather(*(pool.apply(no_op, (n,)) for n in range(WORKERS * 8)))
        await _idle()


async def hold_aiomultiprocess() -> None:
    """The same."""
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        await pool.map(no_op, range(ITEMS))
        await _idle()


async def hold_executor() -> None:
    """The same, in a program with an event loop."""
    with ProcessPoolExecutor(WORKERS) as pool:
        await asyncio.gather(*(asyncio.wrap_future(pool.submit(plain_no_op, n)) for n in range(WORKERS * 8)))
        await _idle()


async def hold_multiprocessing() -> None:
    """The same, in a program with an event loop."""
    with multiprocessing.Pool(WORKERS) as pool:
        pool.map(plain_no_op, range(ITEMS))
        await _idle()


async def _idle() -> None:
    print(READY, flush=True)
    await asyncio.sleep(FOREVER_S)


HOLDERS = {
    OURS: hold_polyloop,
    "aiomultiprocess": hold_aiomultiprocess,
    "ProcessPoolExecutor": hold_executor,
    "multiprocessing.Pool": hold_multiprocessing,
}


def watch(name: str) -> Mapping[str, float]:
    """Watch, from outside, the client and all processes it has started."""
    code = f"import asyncio; from rows.idle import HOLDERS; asyncio.run(HOLDERS[{name!r}]())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=BENCHES) as client:
        try:
            assert client.stdout is not None
            if client.stdout.readline().strip() != READY:
                raise RuntimeError(f"{name} does not get ready")
            time.sleep(SETTLES_S)
            pids = family_of(client.pid)
            before, started_s = switches(pids), time.perf_counter()
            time.sleep(WATCHED_S)
            return {WAKE_UPS: (switches(pids) - before) / (time.perf_counter() - started_s)}
        finally:
            client.kill()


def family_of(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def switches(pids: list[int]) -> int:
    """How often threads of these processes have been scheduled after waiting, or gave way."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)
    return total


FAMILY = Family(
    "idle",
    "Idle",
    (Figure(WAKE_UPS, "a second", Better.LESS, (Goal(0),)),),
    {name: functools.partial(watch, name) for name in HOLDERS},
)
