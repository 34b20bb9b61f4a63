"""What workers run in test_pool_cancel.py."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from rendezvous import block_at, ring

FOREVER_S = 30.0

_went_on = asyncio.Event()


def noting_the_end(bell: str, act: Callable[[], Any]) -> None:
    """Ring when it starts, and say what ended it before its time."""
    try:
        ring(bell, "started")
        act()
    except BaseException as error:
        ring(bell, type(error).__name__)
        raise


def compute_for(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def read_what_never_comes() -> None:
    reading, writing = os.pipe()
    try:
        os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


def sleep(bell: str) -> None:
    noting_the_end(bell, lambda: time.sleep(FOREVER_S))


def compute(bell: str) -> None:
    noting_the_end(bell, lambda: compute_for(FOREVER_S))


def read(bell: str) -> None:
    noting_the_end(bell, read_what_never_comes)


def wait_for_lock(bell: str) -> None:
    lock = threading.Lock()
    with lock:
        noting_the_end(bell, lambda: lock.acquire(timeout=FOREVER_S))


async def sleep_in_coroutine(bell: str) -> None:
    sleep(bell)


async def sleep_later_in_coroutine(bell: str) -> None:
    await asyncio.sleep(0)
    sleep(bell)


async def compute_later_in_coroutine(bell: str) -> None:
    await asyncio.sleep(0)
    compute(bell)


def sleep_in_what_it_returns(bell: str) -> SlowToPickle:
    return SlowToPickle(bell)


class SlowToPickle:
    """Blocks whoever pickles it."""

    def __init__(self, bell: str) -> None:
        self.bell = bell

    def __reduce__(self) -> tuple[Any, ...]:
        sleep(self.bell)
        return SlowToPickle, (self.bell,)


class SlowToLoad:
    """Blocks whoever loads it."""

    def __init__(self, bell: str) -> None:
        self.bell = bell

    def __reduce__(self) -> tuple[Any, ...]:
        return sleep, (self.bell,)


def echo(x: Any) -> Any:
    return x


def pid() -> int:
    return os.getpid()


def sleep_or_fail(bell: str, fails: bool) -> None:
    if fails:
        raise LookupError("its own")
    sleep(bell)


async def return_or_sleep(bell: str, returns: bool) -> str:
    return "returned" if returns else sleep(bell)  # type: ignore[func-returns-value]


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def answer_when_cancelled(bell: str) -> str:
    try:
        sleep(bell)
    except asyncio.CancelledError:
        ring(bell, "answers")
    return "anyway"


def fail_when_cancelled(bell: str) -> None:
    try:
        sleep(bell)
    except asyncio.CancelledError:
        raise LookupError("its own") from None


async def block_while_cleaning_up(bell: str) -> None:
    try:
        ring(bell, "started")
        await asyncio.Event().wait()
    finally:
        time.sleep(0.3)
        ring(bell, "cleaned up")


async def wait(bell: str) -> None:
    try:
        ring(bell, "started")
        await asyncio.Event().wait()
    except BaseException as error:
        ring(bell, type(error).__name__)
        raise


def block_at_gate(bell: str, gate: str) -> str:
    ring(bell, "blocks")
    block_at(gate)
    return "passed"


async def sleep_once_let(bell: str) -> None:
    """Block the loop, but not before another item of this worker has."""
    ring(bell, "waits")
    await _went_on.wait()
    sleep(bell)


def let_and_block_at_gate(bell: str, gate: str) -> str:
    _went_on.set()
    return block_at_gate(bell, gate)
