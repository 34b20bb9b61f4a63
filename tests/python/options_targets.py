"""What workers run in test_pool_options.py."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time
from collections.abc import Awaitable
from typing import NoReturn

from rendezvous import block_at, ring

request = contextvars.ContextVar("request", default="none")


async def name_of_my_task(*, suspend: bool) -> str:
    if suspend:
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


async def name_of_task(name: str) -> bool:
    return any(task.get_name() == name for task in asyncio.all_tasks())


def thread_and_pid(_: object = None) -> tuple[bool, int]:
    return threading.current_thread() is threading.main_thread(), os.getpid()


def add(x: int, y: int = 0) -> int:
    return x + y


def meet(barrier_size: int, bell: str, gate: str) -> str:
    ring(bell, barrier_size)
    block_at(gate)
    return threading.current_thread().name


def ring_and_block(bell: str, gate: str) -> None:
    ring(bell, os.getpid())
    block_at(gate)


def compute_for_ever(bell: str) -> None:
    ring(bell, "started")
    while True:
        time.sleep(0.001)


def answer_when_interrupted(bell: str) -> str:
    try:
        compute_for_ever(bell)
    except asyncio.CancelledError:
        return "anyway"


def sleep_in_spite_of_all(bell: str | None = None) -> None:
    while True:
        try:
            if bell is not None:
                ring(bell, "started")
            bell = None
            time.sleep(3600)
        except asyncio.CancelledError:  # it came before it slept
            bell = None


def fail() -> NoReturn:
    raise LookupError("in a thread")


def leave(code: int) -> NoReturn:
    sys.exit(code)


def stop_iteration() -> NoReturn:
    raise StopIteration(3)


def set_request(value: str) -> str:
    before = request.get()
    request.set(value)
    return before


async def _later(x: int) -> int:
    await asyncio.sleep(0)
    return x


def returns_awaitable(x: int) -> Awaitable[int]:
    return _later(x)


def fork_and_return() -> int:
    """What comes back from the child must not be taken for the task's end."""
    pid = os.fork()
    if pid == 0:
        return -1
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


async def pid() -> int:
    return os.getpid()


async def die() -> NoReturn:
    os._exit(9)
