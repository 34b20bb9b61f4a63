#!/usr/bin/env python3
"""Runs a pool for minutes with all that can happen to one, and fails if the client grows or a call hangs.

Each start method in turn. A table of memory and descriptors, sampled each second, is printed; a straight line is fitted
through the client's samples after the warm-up. `make soak` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from polyloop import Pool, WorkerDied, set_start_method

WORKERS = 3
CALLERS = 8
CALL_WATCHDOG_S = 30.0
KILL_INTERVAL_S = 0.7
SAMPLE_INTERVAL_S = 1.0
WARM_UP_SHARE = 1 / 3
ROWS_PRINTED = 15
MAX_TASKS_PER_CHILD = 2000
LARGE_BYTES = 1 << 20
# Above what an allocator's noise over a minute looks like, below any leak per call: a soak does hundreds a second.
MAX_RSS_SLOPE_KIB_PER_S = 40.0
# CPython takes memory by the arena. A single one, in the middle of a short run, looks like a slope of 1.5 of them.
ARENA_KIB = 1024
# Workers come and go, with some eight descriptors each: noise of 0.1. One lost with each death would be 1.4.
MAX_FDS_SLOPE_PER_S = 0.5


# ---------------------------------------------------------------------------------------------------------------- tasks


async def no_op(n: int) -> int:
    return n


async def sleep(delay_s: float) -> float:
    await asyncio.sleep(delay_s)
    return delay_s


def block(delay_s: float) -> float:
    time.sleep(delay_s)
    return delay_s


async def fail(n: int) -> NoReturn:
    raise LookupError(n)


async def large(length: int) -> bytes:
    return bytes(length)


# -------------------------------------------------------------------------------------------------------------- callers

# Each makes one call or map and checks what came of it. A death may hit any of them.


async def call_no_op(pool: Pool, dice: random.Random) -> None:
    n = dice.randrange(1000)
    check(await pool.apply(no_op, (n,)), n)


async def map_no_ops(pool: Pool, dice: random.Random) -> None:
    count = dice.randrange(1, 2000)
    check(list(await pool.map(no_op, range(count))), list(range(count)))


async def call_sleep(pool: Pool, dice: random.Random) -> None:
    delay_s = dice.random() * 0.05
    check(await pool.apply(sleep, (delay_s,)), delay_s)


async def call_block(pool: Pool, dice: random.Random) -> None:
    delay_s = dice.random() * 0.01
    check(await pool.apply(block, (delay_s,)), delay_s)


async def call_fail(pool: Pool, dice: random.Random) -> None:
    try:
        await pool.apply(fail, (7,))
    except LookupError as error:
        check(error.args, (7,))
    else:
        raise AssertionError("a task that raises has returned")


async def call_large(pool: Pool, dice: random.Random) -> None:
    check(len(await pool.apply(large, (LARGE_BYTES,))), LARGE_BYTES)


async def cancel_call(pool: Pool, dice: random.Random) -> None:
    call = asyncio.ensure_future(pool.apply(sleep, (1000,)))
    try:
        await asyncio.sleep(dice.random() * 0.02)
    finally:
        call.cancel()
    await asyncio.wait([call])
    if not call.cancelled():
        call.result()
        raise AssertionError("a cancelled call has returned")


async def time_out_call(pool: Pool, dice: random.Random) -> None:
    try:
        await asyncio.wait_for(pool.apply(sleep, (1000,)), dice.random() * 0.02)
    except TimeoutError:
        return
    raise AssertionError("a call of 1,000 s has returned")


async def leave_map(pool: Pool, dice: random.Random) -> None:
    leave_at = dice.randrange(1, 500)
    async for n in pool.map(no_op, iter(int, 1)):
        check(n, 0)
        leave_at -= 1
        if not leave_at:
            return


CALLS: list[Callable[[Pool, random.Random], Awaitable[None]]] = [
    call_no_op,
    map_no_ops,
    call_sleep,
    call_block,
    call_fail,
    call_large,
    cancel_call,
    time_out_call,
    leave_map,
]


def check(seen: object, expected: object) -> None:
    if seen != expected:
        raise AssertionError(f"{str(seen)[:200]} is not {str(expected)[:200]}")


# ----------------------------------------------------------------------------------------------------------------- soak


@dataclass(frozen=True)
class Sample:
    """What the client and its workers hold."""

    at_s: float
    client_kib: int
    client_fds: int
    workers_kib: int
    workers_fds: int


class Soak:
    """One pool under load, and what was seen of it."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.dice = random.Random(seed)
        self.samples: list[Sample] = []
        self.ended: Counter[str] = Counter()
        self.started_s = time.monotonic()

    async def run(self, duration_s: float) -> None:
        """Call, kill and sample; the first thing that goes wrong is raised."""
        endless = [self._call_for_ever() for _ in range(CALLERS)] + [self._kill_for_ever(), self._sample_for_ever()]
        tasks = [asyncio.create_task(work) for work in endless]
        done, _ = await asyncio.wait(tasks, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _call_for_ever(self) -> None:
        while True:
            call = self.dice.choice(CALLS)
            try:
                async with asyncio.timeout(CALL_WATCHDOG_S) as watchdog:
                    await call(self.pool, self.dice)
                self.ended[call.__name__] += 1
            except WorkerDied:
                self.ended["WorkerDied"] += 1
            except TimeoutError:
                if not watchdog.expired():
                    raise
                faulthandler.dump_traceback()
                raise AssertionError(f"{call.__name__} hangs") from None

    async def _kill_for_ever(self) -> None:
        while True:
            await asyncio.sleep(KILL_INTERVAL_S)
            alive = [process for process in self.pool.processes if process.pid is not None]
            if alive:
                self.dice.choice(alive).kill()
                self.ended["kill"] += 1

    async def _sample_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            gc.collect()
            workers = [footprint(process.pid) for process in self.pool.processes if process.pid is not None]
            client_kib, client_fds = footprint(os.getpid())
            at_s = time.monotonic() - self.started_s
            sample = Sample(
                at_s, client_kib, client_fds, sum(kib for kib, _ in workers), sum(fds for _, fds in workers)
            )
            self.samples.append(sample)


def footprint(pid: int) -> tuple[int, int]:
    """KiB of private memory, and open descriptors; nothing of a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib = next((int(line.split()[1]) for line in status if line.startswith("RssAnon")), 0)
        return kib, len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0


def slope(points: list[tuple[float, float]]) -> float:
    """The rise per second of the straight line that fits best."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def report(method: str, soak: Soak) -> bool:
    """Print the figures. Whether the client grew."""
    samples = soak.samples
    print(f"\n{method}: " + ", ".join(f"{name} {count}" for name, count in sorted(soak.ended.items())))
    print(f"{'s':>6} {'client KiB':>11} {'fds':>5} {'workers KiB':>12} {'fds':>5}")
    for sample in samples[:: max(1, len(samples) // ROWS_PRINTED)]:
        print(
            f"{sample.at_s:6.0f} {sample.client_kib:11} {sample.client_fds:5} "
            f"{sample.workers_kib:12} {sample.workers_fds:5}"
        )
    settled = samples[int(len(samples) * WARM_UP_SHARE) :]
    rss = slope([(sample.at_s, sample.client_kib) for sample in settled])
    fds = slope([(sample.at_s, sample.client_fds) for sample in settled])
    limit = max(MAX_RSS_SLOPE_KIB_PER_S, 2 * ARENA_KIB / (settled[-1].at_s - settled[0].at_s))
    print(f"client after warm-up: {rss:+.1f} KiB/s (limit {limit:.1f}), {fds:+.3f} fds/s", flush=True)
    return rss > limit or fds > MAX_FDS_SLOPE_PER_S


async def soak_pool(method: str, duration_s: float, seed: int) -> bool:
    pool = Pool(WORKERS, maxtasksperchild=MAX_TASKS_PER_CHILD)
    soak = Soak(pool, seed)
    try:
        await soak.run(duration_s)
        async with asyncio.timeout(CALL_WATCHDOG_S):
            pool.close()
            await pool.join()
    finally:
        pool.terminate()
        await pool.join()
    return report(method, soak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each start method")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--method", action="append", choices=["spawn", "fork", "forkserver"])
    options = parser.parse_args()
    logging.getLogger("polyloop").setLevel(logging.ERROR)  # each kill is a WARNING
    grew = []
    for method in options.method or ["spawn", "fork", "forkserver"]:
        set_start_method(method)
        faulthandler.dump_traceback_later(options.seconds + 4 * CALL_WATCHDOG_S, exit=True)
        if asyncio.run(soak_pool(method, options.seconds, options.seed)):
            grew.append(method)
        faulthandler.cancel_dump_traceback_later()
    if grew:
        sys.exit(f"the client grew under {', '.join(grew)}")


if __name__ == "__main__":
    main()
