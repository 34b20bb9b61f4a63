"""One call at a time: from the call to its result, against the least that two processes need to wake each other."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, no_op, plain_no_op

CALLS = 2000
CALLS_OF_SLOW = 60  # at 10 ms each
WARM_UP_CALLS = 50
ROUND_TRIPS = 10_000

P50, P99 = "one apply at a time, p50", "one apply at a time, p99"
PING_PONG, EXECUTOR = "eventfd ping-pong", "ProcessPoolExecutor"
# The goals are 45 us and 200 us on a machine whose ping-pong takes 8 us.
GOAL_P50_US, GOAL_P99_US, GOAL_PING_PONG_US = 45, 200, 8
EXECUTOR_SHARE = 1 / 8


def on_polyloop() -> Mapping[str, float]:
    """`await pool.apply(...)`, one after the other."""
    return asyncio.run(_on_polyloop())


async def _on_polyloop() -> Mapping[str, float]:
    import polyloop

    async with polyloop.Pool(WORKERS) as pool:
        return await _timed(pool, CALLS)


def on_aiomultiprocess() -> Mapping[str, float]:
    """The same calls on the library that they come from."""
    return asyncio.run(_on_aiomultiprocess())


async def _on_aiomultiprocess() -> Mapping[str, float]:
    import aiomultiprocess

    async with aiomultiprocess.Pool(WORKERS) as pool:
        return await _timed(pool, CALLS_OF_SLOW)


async def _timed(pool: Any, calls: int) -> Mapping[str, float]:
    for _ in range(min(WARM_UP_CALLS, calls)):
        await pool.apply(no_op, (0,))
    calls_us = []
    for _ in range(calls):
        started_ns = time.perf_counter_ns()
        await pool.apply(no_op, (0,))
        calls_us.append((time.perf_counter_ns() - started_ns) / 1000)
    return percentiles(calls_us)


def on_executor() -> Mapping[str, float]:
    """`submit(...).result()` of a plain function: the fastest way it has."""
    with ProcessPoolExecutor(WORKERS) as pool:
        for _ in range(WARM_UP_CALLS):
            pool.submit(plain_no_op, 0).result()
        calls_us = []
        for _ in range(CALLS):
            started_ns = time.perf_counter_ns()
            pool.submit(plain_no_op, 0).result()
            calls_us.append((time.perf_counter_ns() - started_ns) / 1000)
        return percentiles(calls_us)


def ping_pong() -> Mapping[str, float]:
    """Two processes that wait for each other on two eventfds: nothing that crosses processes is faster than this."""
    ping, pong = os.eventfd(0), os.eventfd(0)
    if os.fork() == 0:
        while os.eventfd_read(ping) == 1:
            os.eventfd_write(pong, 1)
        os._exit(0)
    trips_us = []
    for _ in range(ROUND_TRIPS):
        started_ns = time.perf_counter_ns()
        os.eventfd_write(ping, 1)
        os.eventfd_read(pong)
        trips_us.append((time.perf_counter_ns() - started_ns) / 1000)
    os.eventfd_write(ping, 2)  # leave
    os.wait()
    return percentiles(trips_us)


def percentiles(values: list[float]) -> Mapping[str, float]:
    """The 50th and the 99th."""
    cuts = statistics.quantiles(values, n=100)
    return {P50: cuts[49], P99: cuts[98]}


FAMILY = Family(
    "latency",
    "Latency",
    (
        Figure(
            P50,
            "us",
            Better.LESS,
            (
                Goal(
                    GOAL_P50_US / GOAL_PING_PONG_US,
                    PING_PONG,
                    note=f"{GOAL_P50_US} us where it takes {GOAL_PING_PONG_US} us",
                ),
                Goal(EXECUTOR_SHARE, EXECUTOR),
            ),
        ),
        Figure(
            P99,
            "us",
            Better.LESS,
            (
                Goal(
                    GOAL_P99_US / GOAL_PING_PONG_US,
                    PING_PONG,
                    of=P50,
                    note=f"its p50: {GOAL_P99_US} us where it takes {GOAL_PING_PONG_US} us",
                ),
                Goal(EXECUTOR_SHARE, EXECUTOR),
            ),
        ),
    ),
    {OURS: on_polyloop, "aiomultiprocess": on_aiomultiprocess, EXECUTOR: on_executor, PING_PONG: ping_pong},
)
