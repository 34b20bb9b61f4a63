"""What processes of the tests of `Queue` run."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from polyloop import Queue

QUEUE: Queue[Any] | None = None


def keep(queue: Queue[Any]) -> None:
    """As a pool's initializer."""
    global QUEUE
    QUEUE = queue


async def put_kept(item: Any) -> None:
    assert QUEUE is not None
    await QUEUE.aput(item)


async def echo(inbox: Queue[Any], outbox: Queue[Any]) -> None:
    while (item := await inbox.aget()) is not None:
        await outbox.aput(item)


async def put_range(queue: Queue[Any], name: int, count: int) -> None:
    for number in range(count):
        await queue.aput((name, number))


async def put_and_leave(queue: Queue[Any], items: list[Any]) -> None:
    """The last thing that this process does."""
    for item in items:
        queue.put(item)
    os._exit(0)


async def get_and_tell(queue: Queue[Any], told: Queue[Any]) -> None:
    while (item := await queue.aget()) is not None:
        await told.aput(item)


async def get_blocking(queue: Queue[Any], told: Queue[Any]) -> None:
    while (item := queue.get()) is not None:
        told.put(item)


async def kill_itself(queue: Queue[Any]) -> None:
    queue.put("last words")
    os.kill(os.getpid(), signal.SIGKILL)


async def sleep(_queue: Queue[Any]) -> None:
    await asyncio.sleep(3600)


def fork_and_put(queue: Queue[Any], item: Any) -> int:
    """From a forked child, without multiprocessing. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            queue.put(item)
        finally:
            os._exit(0)
    return pid
