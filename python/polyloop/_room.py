"""How many calls of a pool may be unfinished: one more is refused, or waits for its turn."""

from __future__ import annotations

import asyncio
from collections import deque

from .errors import PoolClosed, PoolFull

__all__ = ["Room"]


class Room:
    """Room for so many calls, given to those who wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def enter(self) -> None:
        """Take one place.

        Raises:
            PoolFull: there is none.
        """
        if self._inside >= self._limit:
            raise PoolFull(f"the pool has {self._limit} unfinished calls, which is its max_pending: await some of them")
        self._inside += 1

    async def wait(self) -> None:
        """Take one place as soon as there is one.

        Raises:
            PoolClosed: the pool was closed first.
        """
        if self._inside < self._limit:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the place came together with the cancellation
            raise

    def leave(self, _call: object = None) -> None:
        """Give a place back: to who has waited longest, if anybody does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._inside -= 1

    def close(self) -> None:
        """Nobody else gets in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(PoolClosed("the pool was closed while this call waited for room"))
