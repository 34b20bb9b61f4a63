"""A large array as an argument, and both ways, against one copy of it within a process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, same, same_in_coroutine, touch, touch_in_coroutine

BYTES = 100_000_000
COPIES = 9
WARM_UP_CALLS = 6  # until the blocks that take turns are written and mapped
CALLS = 3
CALLS_OF_SLOW = 1

ARGUMENT, BOTH_WAYS = "100 MB array as argument", "100 MB array both ways"
MEMCPY, AIOMULTIPROCESS, EXECUTOR = "memcpy", "aiomultiprocess", "ProcessPoolExecutor"

Call = Callable[[Any], Awaitable[Any]]


def on_polyloop() -> Mapping[str, float]:
    """A warm pool, the same array again and again."""
    return asyncio.run(_on_polyloop())


async def _on_polyloop() -> Mapping[str, float]:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        return await _timed(
            lambda array: pool.apply(touch_in_coroutine, (array,)),
            lambda array: pool.apply(same_in_coroutine, (array,)),
            CALLS,
        )


def on_aiomultiprocess() -> Mapping[str, float]:
    """The same calls on the library that they come from."""
    return asyncio.run(_on_aiomultiprocess())


async def _on_aiomultiprocess() -> Mapping[str, float]:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        return await _timed(
            lambda array: pool.apply(touch_in_coroutine, (array,)),
            lambda array: pool.apply(same_in_coroutine, (array,)),
            CALLS_OF_SLOW,
        )


def on_executor() -> Mapping[str, float]:
    """Plain functions."""
    with ProcessPoolExecutor(WORKERS) as pool:
        return asyncio.run(
            _timed(
                lambda array: asyncio.wrap_future(pool.submit(touch, array)),
                lambda array: asyncio.wrap_future(pool.submit(same, array)),
                CALLS_OF_SLOW,
            )
        )


def memcpy() -> Mapping[str, float]:
    """From one array into another that has been written before: no page is new."""
    import numpy

    source: Any = numpy.ones(BYTES, numpy.uint8)
    target: Any = numpy.zeros(BYTES, numpy.uint8)
    copies_ms = []
    for _ in range(COPIES):
        started_s = time.perf_counter()
        numpy.copyto(target, source)
        copies_ms.append((time.perf_counter() - started_s) * 1000)
    took_ms = statistics.median(copies_ms)
    return {ARGUMENT: took_ms, BOTH_WAYS: took_ms}


async def _timed(touched: Call, returned: Call, calls: int) -> Mapping[str, float]:
    import numpy

    array: Any = numpy.ones(BYTES, numpy.uint8)
    return {ARGUMENT: await _median_ms(touched, array, calls), BOTH_WAYS: await _median_ms(returned, array, calls)}


async def _median_ms(call: Call, array: Any, calls: int) -> float:
    warm_up = WARM_UP_CALLS if calls > 1 else 0
    calls_ms = []
    for _ in range(warm_up + calls):
        started_s = time.perf_counter()
        result = await call(array)
        calls_ms.append((time.perf_counter() - started_s) * 1000)
        assert result == 2 if isinstance(result, int) else len(result) == BYTES
        del result  # its memory is the pool's to use again
    return statistics.median(calls_ms[warm_up:])


FAMILY = Family(
    "buffers",
    "Large buffers",
    (
        Figure(ARGUMENT, "ms", Better.LESS, (Goal(1.3, MEMCPY),)),
        Figure(BOTH_WAYS, "ms", Better.LESS, (Goal(2.6, MEMCPY),)),
    ),
    {OURS: on_polyloop, AIOMULTIPROCESS: on_aiomultiprocess, EXECUTOR: on_executor, MEMCPY: memcpy},
)
