"""Inputs for the tests of `map` that know what was drawn of them, and how to wait for a map's end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, PoolResult


class Source:
    """Counts from 0; knows how far it was drawn, and whether and how it ended."""

    def __init__(self, end: int | None = None, *, fails_at: int | None = None) -> None:
        self.numbers = itertools.count() if end is None else iter(range(end))
        self.fails_at = fails_at
        self.drawn = 0
        self.closed = asyncio.Event()

    def sync(self) -> Iterator[int]:
        try:
            for x in self.numbers:
                if x == self.fails_at:
                    raise KeyError("input")
                self.drawn += 1
                yield x
        finally:
            self.closed.set()

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            for x in self.sync():
                if x % 100 == 0:
                    await asyncio.sleep(0)
                yield x
        finally:
            self.closed.set()

    async def stalled(self) -> AsyncIterator[int]:
        """Gives what it has, and then waits for ever."""
        try:
            for x in self.sync():
                yield x
            self.closed.clear()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.closed.set()


KINDS = pytest.mark.parametrize("kind", [Source.sync, Source.asynchronous], ids=["sync", "async"])
Kind = Callable[[Source], Any]


async def nothing_is_left(pool: Pool) -> None:
    """Wait until the pool has no tasks and no maps."""
    while pool._manager.unfinished or pool._maps:
        await pool.apply(targets.double, (1,))


async def complete(result: PoolResult[Any]) -> None:
    """Wait until all has come back, without asking for it."""
    await asyncio.wait([result._ended])
