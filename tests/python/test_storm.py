"""Workers that are killed all the time: every task of a storm gets its result, and nothing of it stays behind.

A short form by default; `make storm` runs the long one and prints its figures. What one death does is in
test_pool_deaths.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fault_targets import linger, ring_pid
from polyloop import Pool
from rendezvous import Bell, Journal

TASKS = int(os.environ.get("POLYLOOP_STORM_TASKS", "4000"))
IDLE_KILLS = int(os.environ.get("POLYLOOP_STORM_IDLE_KILLS", "20"))
SEED = int(os.environ.get("POLYLOOP_STORM_SEED", "1"))
KILL_INTERVAL_S = 0.05
WORKERS = 3
APPLIES_PER_MAP = 1000
LONGEST_TASK_S = 0.003  # short, so that hardly any is killed three times while it runs alone
CONCURRENCY = 4
RETRIES = 100
FDS_SLACK = 4  # of a start that was given up, and closes a moment later; a leak is two or more for each death
LEAK_KIB = 8 << 10  # noise of allocators is a tenth of it; in the long form it is 400 bytes a task

pytestmark = pytest.mark.timeout(1800 if TASKS > 4000 else 120)


@dataclass
class Footprint:
    """What the client holds."""

    fds: int
    children: int
    rss_anon_kib: int

    @classmethod
    def now(cls) -> Footprint:
        gc.collect()
        with open("/proc/self/status") as status:
            rss = next(line for line in status if line.startswith("RssAnon"))
        children = [Path(f"/proc/self/task/{task}/children").read_text() for task in os.listdir("/proc/self/task")]
        return cls(len(os.listdir("/proc/self/fd")), len(" ".join(children).split()), int(rss.split()[1]))


def report(figures: str) -> None:
    print(figures)  # noqa: T201 - shown by `make storm`


async def kill_at_random(pool: Pool, dice: random.Random, bell: Bell) -> None:
    """SIGKILL one worker after another, whatever it is doing.

    Not those that are still starting: a pool gives up, or backs off, where all starts fail.
    """
    up: set[int | None] = set()
    while True:
        await asyncio.sleep(KILL_INTERVAL_S)
        up.update(map(int, bell.heard()))
        alive = [process for process in pool.processes if process.pid in up and process.is_alive()]
        # Not the only one that is up: whatever ran there would run alone each time, and be taken for poison.
        if len(alive) > 1:
            dice.choice(alive).kill()


async def storm(tasks: int, dice: random.Random, bell: Bell) -> None:
    """Half of the tasks by a map, half by single calls, under kills."""
    async with Pool(WORKERS, ring_pid, (bell.path,), childconcurrency=CONCURRENCY, retries=RETRIES) as pool:
        killing = asyncio.create_task(kill_at_random(pool, dice, bell))
        half = tasks // 2
        delays = [dice.random() * LONGEST_TASK_S for _ in range(tasks)]
        mapped = asyncio.ensure_future(pool.starmap(linger, zip(range(half), delays, strict=False)).results())
        single = await asyncio.gather(*(pool.apply(linger, (n, delays[n])) for n in range(half, tasks)))
        assert list(await mapped) == list(range(half))
        assert single == list(range(half, tasks))
        assert not killing.done()
        killing.cancel()


def test_every_task_of_a_storm_ends_with_its_value(start_method: str, bell: Bell, journal: Journal) -> None:
    dice = random.Random(SEED)
    asyncio.run(storm(TASKS, dice, bell))  # starts what stays: the tracker, the forkserver, the starter
    before = Footprint.now()
    journal.lines.clear()
    started = time.monotonic()
    asyncio.run(storm(TASKS, dice, bell))
    duration_s = time.monotonic() - started
    after = Footprint.now()
    deaths = [line for line in journal.lines if "died (SIGKILL)" in line]
    retries = [int(line.partition(" tasks ")[2].split()[0]) for line in deaths if "run again" in line]
    report(f"\n{start_method}: {TASKS} tasks, {len(deaths)} deaths, {sum(retries)} retries, {duration_s:.1f} s")
    report(f"  before {before}\n  after  {after}")
    assert retries
    assert not [line for line in journal.lines if "lost" in line]
    assert after.children == before.children
    assert after.fds <= before.fds + FDS_SLACK
    assert after.rss_anon_kib < before.rss_anon_kib + LEAK_KIB


def test_a_call_is_answered_whenever_an_idle_worker_is_killed(start_method: str) -> None:
    async def main() -> None:
        async with Pool(2, retries=RETRIES) as pool:
            for n in range(IDLE_KILLS):
                pid = await pool.apply(os.getpid)
                next(process for process in pool.processes if process.pid == pid).kill()
                assert await pool.apply(linger, (n, 0)) == n

    started = time.monotonic()
    asyncio.run(main())
    report(f"\n{start_method}: {IDLE_KILLS} idle workers killed, {time.monotonic() - started:.1f} s")
