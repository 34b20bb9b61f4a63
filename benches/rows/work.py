"""What contestants have their workers run. Light imports only: every worker pays for them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

WORKERS = 2
POLL_S = 0.001


async def no_op(n: int) -> int:
    """Never suspends."""
    return n


def plain_no_op(n: int) -> int:
    """The same as a plain function."""
    return n


async def suspend_once(n: int) -> int:
    """One round of the loop."""
    await asyncio.sleep(0)
    return n


async def sleep(seconds: float) -> None:
    """Waits, and computes nothing."""
    await asyncio.sleep(seconds)


def compute(cpu_s: float) -> int:
    """Uses so much CPU time, however long that takes on a busy machine. Returns where."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass
    return os.getpid()


async def compute_in_coroutine(cpu_s: float) -> int:
    """The same, for pools that run coroutines only."""
    return compute(cpu_s)


async def fetch_then_compute(fetch_s: float, cpu_s: float) -> int:
    """Waits as for a server's answer, then computes."""
    await asyncio.sleep(fetch_s)
    return compute(cpu_s)


def touch(array: Any) -> int:
    """Takes an array, and reads both ends of it."""
    return int(array[0]) + int(array[-1])


async def touch_in_coroutine(array: Any) -> int:
    """The same, for pools that run coroutines only."""
    return touch(array)


def same(value: Any) -> Any:
    """Gives back what it got."""
    return value


async def same_in_coroutine(value: Any) -> Any:
    """The same, for pools that run coroutines only."""
    return value


def meet(place: str, parties: int) -> int:
    """Blocks until so many processes are here: each of them has started, and holds one of the calls."""
    (Path(place) / str(os.getpid())).touch()
    while len(os.listdir(place)) < parties:
        time.sleep(POLL_S)
    return os.getpid()


async def meet_in_coroutine(place: str, parties: int) -> int:
    """The same, for pools that run coroutines only."""
    return meet(place, parties)
