"""Waiting for a pool's workers: until all are up, and until those that were sent away are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from . import _core
from ._roster import Roster
from .errors import PoolClosed

__all__ = ["Staff"]


class Staff:
    """The workers of one pool, for whoever waits for them. Told by the pool when something has changed."""

    def __init__(self, manager: _core.Manager, roster: Roster, loop: asyncio.AbstractEventLoop) -> None:
        self._manager = manager
        self._roster = roster
        self._loop = loop
        self._waiters: list[asyncio.Future[None]] = []
        self._failure: BaseException | None = None

    async def complete(self, leaving: Collection[int] = ()) -> None:
        """Wait until all workers are up, and these are gone.

        Raises:
            WorkerStartError: no worker can be started.
            PoolClosed: the pool was closed or terminated.
        """
        while self._failure is None and (not self._manager.is_up or self._roster.has_any(leaving)):
            change: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(change)
            await change
        if self._failure is not None:
            raise self._failure

    def changed(self) -> None:
        """A worker is up, or gone."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def gave_up(self, error: BaseException) -> None:
        """No worker will come."""
        if self._failure is None:
            self._failure = error
        self.changed()

    def close(self) -> None:
        """The pool takes no more work."""
        self.gave_up(PoolClosed("pool is closed"))
