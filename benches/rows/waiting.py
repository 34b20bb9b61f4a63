"""Items that wait, and items that compute: whether the workers are all kept busy, and each with its share."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, compute, compute_in_coroutine, fetch_then_compute, no_op, plain_no_op, sleep

SLEEPS = 4000
SLEEP_S = 0.05
AT_ONCE = 128  # per worker
# Whoever runs so many at once needs so many waves: nobody can be faster.
IDEAL_S = -(-SLEEPS // (AT_ONCE * WORKERS)) * SLEEP_S

TASKS = 16
CPU_S = 0.03
FETCHES_S = tuple(0.01 + 0.002 * n for n in range(TASKS))
WARM_UP_TASKS = 200

SLEEPING = "4,000 sleeps of 50 ms at 128 per worker"
CPU, FETCH = "16 CPU tasks", "16 fetch-then-CPU tasks"
OFF_EVEN = ": tasks off an even share"
OVER_IDEAL = ": time"
IDEAL, AIOMULTIPROCESS, EXECUTOR = "ideal", "aiomultiprocess", "ProcessPoolExecutor"


def on_polyloop() -> Mapping[str, float]:
    """Sleeps on a pool of high concurrency, CPU tasks on one as it is by default."""
    import polyloop

    return asyncio.run(_on_coroutine_pool(polyloop.Pool))


def on_aiomultiprocess() -> Mapping[str, float]:
    """The same calls on the library that they come from."""
    import aiomultiprocess

    return asyncio.run(_on_coroutine_pool(aiomultiprocess.Pool))


async def _on_coroutine_pool(pool_class: Callable[..., Any]) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    async with pool_class(WORKERS, childconcurrency=AT_ONCE) as pool:
        await pool.map(no_op, range(WARM_UP_TASKS))
        started_s = time.perf_counter()
        await pool.map(sleep, [SLEEP_S] * SLEEPS)
        figures[SLEEPING] = time.perf_counter() - started_s
    async with pool_class(WORKERS) as pool:
        await pool.map(no_op, range(WARM_UP_TASKS))
        started_s = time.perf_counter()
        where = await pool.map(compute_in_coroutine, [CPU_S] * TASKS)
        figures |= shares(CPU, where, time.perf_counter() - started_s)
        started_s = time.perf_counter()
        where = await pool.starmap(fetch_then_compute, [(fetch_s, CPU_S) for fetch_s in FETCHES_S])
        figures |= shares(FETCH, where, time.perf_counter() - started_s)
    return figures


def on_executor() -> Mapping[str, float]:
    """CPU tasks only: waiting would occupy its workers."""
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(plain_no_op, range(WARM_UP_TASKS)))
        started_s = time.perf_counter()
        where = list(pool.map(compute, [CPU_S] * TASKS))
        return shares(CPU, where, time.perf_counter() - started_s)


def ideal() -> Mapping[str, float]:
    """What no pool can undercut, by arithmetic."""
    computing_s = TASKS * CPU_S / WORKERS
    return {
        SLEEPING: IDEAL_S,
        CPU + OVER_IDEAL: computing_s * 1000,
        FETCH + OVER_IDEAL: (min(FETCHES_S) + computing_s) * 1000,
    }


def shares(work: str, where: list[int], took_s: float) -> Mapping[str, float]:
    """How many tasks the worker with the most or the fewest is off an even share."""
    counts = sorted(Counter(where).values())
    fewest = counts[0] if len(counts) == WORKERS else 0
    even = len(where) / WORKERS
    return {work + OFF_EVEN: max(counts[-1] - even, even - fewest), work + OVER_IDEAL: took_s * 1000}


FAMILY = Family(
    "waiting",
    "Waiting and balance",
    (
        Figure(SLEEPING, "s", Better.LESS, (Goal(1.05, IDEAL),)),
        Figure(CPU + OFF_EVEN, "tasks", Better.LESS, (Goal(1),)),
        Figure(FETCH + OFF_EVEN, "tasks", Better.LESS, (Goal(1),)),
        Figure(CPU + OVER_IDEAL, "ms", Better.LESS),
        Figure(FETCH + OVER_IDEAL, "ms", Better.LESS),
    ),
    {OURS: on_polyloop, AIOMULTIPROCESS: on_aiomultiprocess, EXECUTOR: on_executor, IDEAL: ideal},
)
