"""What workers run in test_pool_streams.py."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, NoReturn

from polyloop import current_worker
from rendezvous import ring


async def numbers(count: int, first: int = 0) -> AsyncIterator[int]:
    for number in range(first, first + count):
        yield number


async def slow_numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def plain_numbers(count: int) -> Iterator[int]:
    yield from range(count)


async def numbers_later(count: int) -> AsyncIterator[int]:
    await asyncio.sleep(0)
    return numbers(count)


def listed_numbers(count: int) -> Iterable[int]:
    return list(range(count))


class Numbers:
    """An asynchronous iterable that is no generator, and can't be closed."""

    def __init__(self, count: int) -> None:
        self.left = iter(range(count))

    def __aiter__(self) -> Numbers:
        return self

    async def __anext__(self) -> int:
        for number in self.left:
            return number
        raise StopAsyncIteration


async def blobs(count: int, size: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size


_progress = 0


async def counted(size: int) -> AsyncIterator[bytes]:
    global _progress
    _progress = 0
    while True:
        _progress += 1
        yield bytes(size)


def counted_plainly(size: int) -> Iterator[bytes]:
    global _progress
    _progress = 0
    while True:
        _progress += 1
        yield bytes(size)


async def progress() -> int:
    return _progress


async def endless(bell: str, waits: bool) -> AsyncIterator[int]:
    """Gives values for ever, or one and then waits for ever."""
    try:
        number = 0
        while True:
            yield number
            number += 1
            if waits:
                asyncio.get_running_loop().call_soon(ring, bell, "waits")  # once this does
                await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ring(bell, "closed")


def endless_plainly(bell: str, waits: bool) -> Iterator[int]:
    try:
        number = 0
        while True:
            yield number
            number += 1
            if waits:
                ring(bell, "waits")
                while True:
                    time.sleep(0.001)
    finally:
        ring(bell, "closed")


async def ignores_its_end(bell: str) -> AsyncIterator[int]:
    try:
        yield 1
        ring(bell, "waits")
        await asyncio.Event().wait()
    finally:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass


async def dies_after(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    os._exit(9)


async def dies_once_after(count: int, mark: str) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield -1
        return
    os._exit(9)


async def raises_after(count: int, mark: str | None = None) -> AsyncIterator[int]:
    if mark is not None:
        fd = os.open(mark, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(fd, b"run\n")
        os.close(fd)
    for number in range(count):
        yield number
    raise LookupError("no more", count)


def raises_at_once(_: object = None) -> Iterator[int]:
    raise LookupError("not even one")


class Unsendable:
    def __reduce__(self) -> NoReturn:
        raise LookupError("stays here")


def _unreadable() -> NoReturn:
    raise LookupError("can't be read")


class Unreadable:
    def __reduce__(self) -> Any:
        return _unreadable, ()


async def gives(bell: str, value: object) -> AsyncIterator[object]:
    try:
        yield 1
        yield Unsendable() if value == "unsendable" else Unreadable()
        await asyncio.Event().wait()
    finally:
        ring(bell, "closed")


async def returns_a_number() -> int:
    return 1


def returns_text() -> str:
    return "text"


async def names() -> AsyncIterator[str]:
    for _ in range(2):
        task = current_worker().task
        yield "" if task is None else task.name
        await asyncio.sleep(0)


async def pid() -> int:
    return os.getpid()


async def pids(count: int) -> AsyncIterator[int]:
    for _ in range(count):
        yield os.getpid()
