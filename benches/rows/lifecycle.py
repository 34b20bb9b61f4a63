"""Start and stop: from making a pool to its first result, and from leaving it to its end, in a new client each time."""

from __future__ import annotations

import asyncio
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from harness.figures import OURS, Better, Family, Figure, Goal

from .work import WORKERS, no_op, plain_no_op

INTERPRETERS = 7

START, STOP = "start to first result", "stop"
BARE, BARE_ASYNCIO = "bare interpreter", "interpreter that imports asyncio"


def on_polyloop() -> Mapping[str, float]:
    """Two workers asked for, one result awaited, then left; by the default start method, forkserver."""
    return started_by("forkserver")


def started_by(method: str) -> Mapping[str, float]:
    """The same by any start method: a forkserver imports asyncio and polyloop once, a spawned worker each time, and a
    forked one has both from its client."""
    import polyloop

    return asyncio.run(_on_coroutine_pool(functools.partial(polyloop.Pool, mp_context=method)))


def on_aiomultiprocess() -> Mapping[str, float]:
    """The same calls on the library that they come from."""
    import aiomultiprocess

    return asyncio.run(_on_coroutine_pool(aiomultiprocess.Pool))


async def _on_coroutine_pool(pool_class: Callable[..., Any]) -> Mapping[str, float]:
    started_s = time.perf_counter()
    async with pool_class(WORKERS) as pool:
        await pool.apply(no_op, (0,))
        first_s = time.perf_counter()
    return {START: (first_s - started_s) * 1000, STOP: (time.perf_counter() - first_s) * 1000}


def on_executor() -> Mapping[str, float]:
    """It forks, and one worker at first: there is no new interpreter in its start."""
    started_s = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as pool:
        pool.submit(plain_no_op, 0).result()
        first_s = time.perf_counter()
    return {START: (first_s - started_s) * 1000, STOP: (time.perf_counter() - first_s) * 1000}


def bare_interpreter() -> Mapping[str, float]:
    """What a process that runs Python costs before it does anything."""
    return {START: _interpreter_ms("pass")}


def asyncio_interpreter() -> Mapping[str, float]:
    """What every worker with an event loop has to import, unless it is forked from one that has."""
    return {START: _interpreter_ms("import asyncio")}


def _interpreter_ms(code: str) -> float:
    starts_ms = []
    for _ in range(INTERPRETERS):
        started_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        starts_ms.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(starts_ms)


FAMILY = Family(
    "lifecycle",
    "Start and stop",
    (
        Figure(START, "ms", Better.LESS, (Goal(1.5, BARE),)),
        Figure(STOP, "ms", Better.LESS, (Goal(20),)),
    ),
    {
        OURS: on_polyloop,
        f"{OURS}, fork": functools.partial(started_by, "fork"),
        f"{OURS}, spawn": functools.partial(started_by, "spawn"),
        "aiomultiprocess": on_aiomultiprocess,
        "ProcessPoolExecutor": on_executor,
        BARE: bare_interpreter,
        BARE_ASYNCIO: asyncio_interpreter,
    },
)
