"""The curves of `scaling`: each contestant gives all its points in one turn."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from harness.figures import OURS, Family

from .bulk import AIOMULTIPROCESS, CHUNKED_MAP, GATHER, rate, warm_up
from .work import WORKERS, meet, meet_in_coroutine, no_op, plain_no_op, same, same_in_coroutine, suspend_once

ITEMS = (1000, 10_000, 100_000, 1_000_000)
ITEMS_OF_SLOW = ITEMS[:-1]  # for who takes half a minute for a million, or gigabytes
WARM_UP_ITEMS = 1000
PROCESSES = (1, 2, 4, 8, 16)
ITEMS_BY_WORKERS = 50_000
SUSPENDING_BY_WORKERS = 10_000
SIZES = (8, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
SIZES_OF_SLOW = SIZES[:-1]
CALLS_MAX = 200
BYTES_PER_TURN = 100_000_000  # small values are sent often, the largest once

EXECUTOR, MEMCPY = "ProcessPoolExecutor", "memcpy, twice"
Points = Mapping[str, float]
Map = Callable[[Callable[[int], Any], range], Awaitable[Any]]


@dataclass(frozen=True)
class Curve:
    """A family whose figures are points: their names are their places on the x axis."""

    family: Family
    x: str
    unit: str
    base: int = 10


# ---------------------------------------------------------------------------------------------------- number of items


def items_on_polyloop() -> Points:
    return asyncio.run(_items_on_polyloop())


async def _items_on_polyloop() -> Points:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        return await _rates(pool.map, no_op, ITEMS)


def items_on_aiomultiprocess() -> Points:
    return asyncio.run(_items_on_aiomultiprocess())


async def _items_on_aiomultiprocess() -> Points:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        return await _rates(pool.map, no_op, ITEMS_OF_SLOW)


def items_at_home() -> Points:
    return asyncio.run(_rates(_gathered, no_op, ITEMS_OF_SLOW))


def items_on_chunked_map() -> Points:
    with multiprocessing.Pool(WORKERS) as pool:
        return asyncio.run(_rates(functools.partial(_chunked, pool), plain_no_op, ITEMS))


async def _rates(map_: Map, func: Callable[[int], Any], numbers: tuple[int, ...]) -> Points:
    await warm_up(lambda: map_(func, range(WARM_UP_ITEMS)))
    return {str(items): await rate(items, functools.partial(map_, func, range(items)), repeats=1) for items in numbers}


async def _gathered(func: Callable[[int], Any], items: range) -> list[int]:
    results: list[int] = await asyncio.gather(*map(func, items))
    return results


async def _chunked(pool: Any, func: Callable[[int], Any], items: range) -> list[int]:
    results: list[int] = pool.map(func, items)
    return results


# -------------------------------------------------------------------------------------------------- number of workers


def no_ops_by_workers() -> Points:
    return asyncio.run(_rates_by_workers(no_op, ITEMS_BY_WORKERS))


def suspending_by_workers() -> Points:
    return asyncio.run(_rates_by_workers(suspend_once, SUSPENDING_BY_WORKERS))


async def _rates_by_workers(func: Callable[[int], Any], items: int) -> Points:
    import polyloop

    points = {}
    for processes in PROCESSES:
        async with polyloop.Pool(processes) as pool:
            points[str(processes)] = await _warm_rate(pool.map, func, items)
    return points


def chunked_map_by_workers() -> Points:
    points = {}
    for processes in PROCESSES:
        with multiprocessing.Pool(processes) as pool:
            map_ = functools.partial(_chunked, pool)
            points[str(processes)] = asyncio.run(_warm_rate(map_, plain_no_op, ITEMS_BY_WORKERS))
    return points


async def _warm_rate(map_: Map, func: Callable[[int], Any], items: int) -> float:
    await warm_up(lambda: map_(func, range(WARM_UP_ITEMS)))
    return await rate(items, lambda: map_(func, range(items)))


# ------------------------------------------------------------------------- from making a pool until all of it is there


def start_of_polyloop() -> Points:
    import polyloop

    return asyncio.run(_start_of(polyloop.Pool))


def start_of_aiomultiprocess() -> Points:
    import aiomultiprocess

    return asyncio.run(_start_of(aiomultiprocess.Pool))


async def _start_of(pool_class: Callable[..., Any]) -> Points:
    async with pool_class(1) as pool:
        await pool.apply(no_op, (0,))  # a forkserver, where there is one, is not started again for each pool
    points = {}
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as place:
            started_s = time.perf_counter()
            async with pool_class(processes, childconcurrency=1) as pool:
                met = await asyncio.gather(
                    *(pool.apply(meet_in_coroutine, (place, processes)) for _ in range(processes))
                )
                points[str(processes)] = (time.perf_counter() - started_s) * 1000
                assert len(set(met)) == processes
    return points


def start_of_executor() -> Points:
    points = {}
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as place:
            started_s = time.perf_counter()
            with ProcessPoolExecutor(processes) as pool:
                met = list(pool.map(meet, [place] * processes, [processes] * processes))
                points[str(processes)] = (time.perf_counter() - started_s) * 1000
                assert len(set(met)) == processes
    return points


# --------------------------------------------------------------------------------------------------- size of a payload


def payload_on_polyloop() -> Points:
    return asyncio.run(_payload_on_polyloop())


async def _payload_on_polyloop() -> Points:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        return await _round_trips(lambda value: pool.apply(same_in_coroutine, (value,)), SIZES)


def payload_on_aiomultiprocess() -> Points:
    return asyncio.run(_payload_on_aiomultiprocess())


async def _payload_on_aiomultiprocess() -> Points:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        return await _round_trips(lambda value: pool.apply(same_in_coroutine, (value,)), SIZES_OF_SLOW, calls_max=20)


def payload_on_executor() -> Points:
    with ProcessPoolExecutor(WORKERS) as pool:
        return asyncio.run(_round_trips(lambda value: asyncio.wrap_future(pool.submit(same, value)), SIZES))


def payload_copied_twice() -> Points:
    return asyncio.run(_round_trips(_copy_twice, SIZES))


async def _copy_twice(value: bytes) -> bytes:
    return bytes(bytearray(value))


async def _round_trips(
    call: Callable[[bytes], Awaitable[bytes]], sizes: tuple[int, ...], calls_max: int = CALLS_MAX
) -> Points:
    """Microseconds that bytes of each size take there and back: the median."""
    points = {}
    for size in sizes:
        value, calls_us = bytes(size), []
        assert await call(value) == value
        for _ in range(max(1, min(calls_max, BYTES_PER_TURN // size))):
            started_ns = time.perf_counter_ns()
            result = await call(value)
            calls_us.append((time.perf_counter_ns() - started_ns) / 1000)
            assert len(result) == size
            del result  # its memory is the pool's to use again
        points[str(size)] = statistics.median(calls_us)
    return points


CURVES = (
    Curve(
        Family(
            "items",
            "Map of so many no-ops, 2 workers",
            (),
            {
                OURS: items_on_polyloop,
                AIOMULTIPROCESS: items_on_aiomultiprocess,
                GATHER: items_at_home,
                CHUNKED_MAP: items_on_chunked_map,
            },
        ),
        "items",
        "items/s",
    ),
    Curve(
        Family(
            "workers",
            "Map on so many workers",
            (),
            {
                OURS: no_ops_by_workers,
                "polyloop, suspending once": suspending_by_workers,
                CHUNKED_MAP: chunked_map_by_workers,
            },
        ),
        "workers",
        "items/s",
        base=2,
    ),
    Curve(
        Family(
            "start",
            "From no pool until each worker has answered",
            (),
            {OURS: start_of_polyloop, AIOMULTIPROCESS: start_of_aiomultiprocess, EXECUTOR: start_of_executor},
        ),
        "workers",
        "ms",
        base=2,
    ),
    Curve(
        Family(
            "payload",
            "One call with bytes, there and back",
            (),
            {
                OURS: payload_on_polyloop,
                AIOMULTIPROCESS: payload_on_aiomultiprocess,
                EXECUTOR: payload_on_executor,
                MEMCPY: payload_copied_twice,
            },
        ),
        "bytes",
        "us",
    ),
)
