"""An idle pool makes no wake-ups, in the client nor in its workers: counted by the kernel, seen from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

WATCHED_S = 2.0
SETTLED_S = 0.25

PROGRAM = """
import asyncio, os, sys
import uvloop
from polyloop import Pool, parent_pool, set_start_method
async def wait():
    await asyncio.Event().wait()
async def wait_for_a_call():
    await parent_pool().apply(wait)
async def work(x=0):
    await asyncio.sleep(0)
    return x
async def main():
    uses_uvloop = sys.argv[2] == "uvloop"
    watch = None if sys.argv[3] == "waiting" else 1.0  # a blocked loop is looked for as long as anything runs
    async with Pool(2, loop_initializer=uvloop.new_event_loop if uses_uvloop else None, block_warning=watch) as pool:
        if sys.argv[3] == "used":
            await pool.map(work, range(5000))
            await asyncio.gather(*(pool.apply(work, (x,)) for x in range(50)))
        else:
            await pool.apply(work)
        if sys.argv[3] == "waiting":
            calls = [pool.submit(wait_for_a_call) for _ in range(3)]
            while sum(worker.in_flight for worker in pool.stats().workers) < 6:
                await asyncio.sleep(0.01)
        while any(process.pid is None for process in pool.processes):
            await asyncio.sleep(0.01)
        print(os.getpid(), *(process.pid for process in pool.processes), flush=True)
        await asyncio.Event().wait()
if __name__ == "__main__":
    set_start_method(sys.argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None) as runner:
        runner.run(main())
"""


def wake_ups(pids: list[int]) -> dict[str, int]:
    """How often each thread of these processes has been scheduled after waiting."""
    counts = {}
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            counts[str(status)] = sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)
    return counts


@pytest.mark.parametrize(
    ("method", "loop", "history"),
    [
        ("spawn", "asyncio", "used"),
        ("fork", "asyncio", "used"),
        ("fork", "uvloop", "used"),
        ("forkserver", "asyncio", "new"),
        ("forkserver", "asyncio", "used"),
        ("forkserver", "uvloop", "new"),
        ("forkserver", "uvloop", "used"),
        ("forkserver", "asyncio", "waiting"),
    ],
)
def test_an_idle_pool_makes_no_wake_ups(tmp_path: Path, method: str, loop: str, history: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, script, method, loop, history], stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            pids = [int(pid) for pid in program.stdout.readline().split()]
            assert len(pids) == 3
            before = None
            while before != (before := wake_ups(pids)):  # until it has settled
                time.sleep(SETTLED_S)
            time.sleep(WATCHED_S)
            assert wake_ups(pids) == before
        finally:
            program.kill()
