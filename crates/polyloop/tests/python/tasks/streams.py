"""What the tests of `PyCall::stream` iterate over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from tasks import mark


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


async def blobs(count: int, size: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size


async def counted(size: int, given: str, closed: str) -> AsyncIterator[bytes]:
    """Leave a mark for each value before it is given, and another at the end."""
    try:
        while True:
            mark(given)
            yield bytes(size)
    finally:
        mark(closed)


def counted_plainly(size: int, given: str, closed: str) -> Iterator[bytes]:
    try:
        while True:
            mark(given)
            yield bytes(size)
    finally:
        mark(closed)


async def then_waits(count: int, waits: str, closed: str) -> AsyncIterator[int]:
    """Give so many values, leave a mark, and wait for ever; leave another mark when it is closed."""
    try:
        for number in range(count):
            yield number
        mark(waits)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        mark(closed)


def then_blocks(count: int, waits: str, closed: str) -> Iterator[int]:
    try:
        yield from range(count)
        mark(waits)
        while True:
            time.sleep(0.001)
    finally:
        mark(closed)


async def then_raises(count: int, runs: str) -> AsyncIterator[int]:
    mark(runs)
    for number in range(count):
        yield number
    raise LookupError("no more", count)


async def dies_first(count: int, runs: str) -> AsyncIterator[int]:
    """End the worker after so many values, where it runs for the first time."""
    starts = mark(runs)
    for number in range(count):
        yield number
    if starts == 1:
        os.kill(os.getpid(), signal.SIGKILL)


async def unsendable(closed: str) -> AsyncIterator[Any]:
    try:
        yield 0
        yield object()
        await asyncio.Event().wait()
    finally:
        mark(closed)


async def mixed(closed: str) -> AsyncIterator[Any]:
    try:
        yield 0
        yield "no number"
        await asyncio.Event().wait()
    finally:
        mark(closed)


def a_number() -> int:
    return 1


def text() -> str:
    return "text"


class Instance:
    async def __call__(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


instance: Callable[[int], AsyncIterator[int]] = Instance()
