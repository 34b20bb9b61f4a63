"""Many short items: maps of no-ops and of coroutines that suspend once, and a gather of single calls."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, no_op, plain_no_op, suspend_once

ITEMS = 100_000
ITEMS_OF_SLOW = 20_000  # of who would take seconds for the others' number
ITEMS_AT_HOME = 10_000  # gather is at its best: at ten times as many, it manages half the rate
SUSPENDING = 20_000
CALLS = 10_000
WARM_UP_S = 0.3
REPEATS = 3  # within a turn, the median counts

AIOMULTIPROCESS, GATHER, CHUNKED_MAP = "aiomultiprocess", "asyncio.gather", "chunked Pool.map"
NO_OP, PLAIN, SUSPEND, APPLY, SUBMIT = (
    "map of a no-op coroutine",
    "map of a plain no-op function",
    "map of coroutines that suspend once",
    "gather of 10,000 apply",
    "gather of 10,000 submit",
)


def on_polyloop() -> Mapping[str, float]:
    """Every figure, on one pool."""
    return asyncio.run(_on_polyloop())


async def _on_polyloop() -> Mapping[str, float]:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        await warm_up(lambda: pool.map(no_op, range(1000)))
        return {
            NO_OP: await rate(ITEMS, lambda: pool.map(no_op, range(ITEMS))),
            PLAIN: await rate(ITEMS, lambda: pool.map(plain_no_op, range(ITEMS))),
            SUSPEND: await rate(SUSPENDING, lambda: pool.map(suspend_once, range(SUSPENDING))),
            APPLY: await rate(CALLS, lambda: asyncio.gather(*(pool.apply(no_op, (n,)) for n in range(CALLS)))),
            SUBMIT: await rate(CALLS, lambda: asyncio.gather(*(pool.submit(no_op, n) for n in range(CALLS)))),
        }


def on_aiomultiprocess() -> Mapping[str, float]:
    """What it can: it knows no plain functions."""
    return asyncio.run(_on_aiomultiprocess())


async def _on_aiomultiprocess() -> Mapping[str, float]:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        await warm_up(lambda: pool.map(no_op, range(100)))
        return {
            NO_OP: await rate(ITEMS_OF_SLOW, lambda: pool.map(no_op, range(ITEMS_OF_SLOW)), repeats=1),
            APPLY: await rate(
                CALLS, lambda: asyncio.gather(*(pool.apply(no_op, (n,)) for n in range(CALLS))), repeats=1
            ),
        }


def at_home() -> Mapping[str, float]:
    """The same coroutines on the client's own loop."""
    return asyncio.run(_at_home())


async def _at_home() -> Mapping[str, float]:
    await warm_up(lambda: asyncio.gather(*(no_op(n) for n in range(1000))))
    return {
        NO_OP: await rate(ITEMS_AT_HOME, lambda: asyncio.gather(*(no_op(n) for n in range(ITEMS_AT_HOME)))),
        SUSPEND: await rate(SUSPENDING, lambda: asyncio.gather(*(suspend_once(n) for n in range(SUSPENDING)))),
        APPLY: (gathered := await rate(CALLS, lambda: asyncio.gather(*(no_op(n) for n in range(CALLS))))),
        SUBMIT: gathered,
    }


def on_chunked_map() -> Mapping[str, float]:
    """`multiprocessing.Pool.map` of a plain function, in the chunks that it chooses: what the no-op coroutine is held
    against, too."""
    with multiprocessing.Pool(WORKERS) as pool:
        return asyncio.run(_on_chunked_map(pool.map))


async def _on_chunked_map(map_: Callable[..., list[int]]) -> Mapping[str, float]:
    async def run(items: int) -> list[int]:
        return map_(plain_no_op, range(items))

    await warm_up(lambda: run(1000))
    figure = await rate(ITEMS, lambda: run(ITEMS))
    return {NO_OP: figure, PLAIN: figure}


async def warm_up(run: Callable[[], Awaitable[Any]]) -> None:
    """Until every worker has started and run some: what is measured is the pool at work, not its start."""
    until_s = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < until_s:
        await run()


async def rate(items: int, run: Callable[[], Awaitable[Any]], repeats: int = REPEATS) -> float:
    """Items a second, each of them accounted for."""
    rates = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        results = await run()
        rates.append(items / (time.perf_counter() - started_s))
        assert list(results) == list(range(items))
    return statistics.median(rates)


FAMILY = Family(
    "bulk",
    "Bulk",
    (
        Figure(NO_OP, "items/s", Better.MORE, (Goal(100, AIOMULTIPROCESS), Goal(30, GATHER), Goal(1, CHUNKED_MAP))),
        Figure(PLAIN, "items/s", Better.MORE, (Goal(1.2, CHUNKED_MAP),)),
        Figure(SUSPEND, "items/s", Better.MORE, (Goal(2, GATHER),)),
        Figure(APPLY, "calls/s", Better.MORE, (Goal(1.5, GATHER),)),
        Figure(SUBMIT, "calls/s", Better.MORE, (Goal(1.5, GATHER),)),
    ),
    {OURS: on_polyloop, AIOMULTIPROCESS: on_aiomultiprocess, GATHER: at_home, CHUNKED_MAP: on_chunked_map},
)
