"""`Stream`: what `stream` gives back. Waits for values; how many are under way is the engine's business."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, TypeVar

from . import _core

__all__ = ["Stream"]

T = TypeVar("T")

_PENDING, _VALUE, _, _FAILED, _END = range(5)


class Stream(AsyncIterator[T]):
    """The values that a generator in a worker yields, in order, each as soon as it is there.

    The worker runs ahead by at most 64 values, or about 1 MiB of them: then its generator is paused until some are
    taken, while its loop goes on with other tasks. As long as the stream is open it takes the place of one of these.

    Values that have come are given before the error that ended the stream. Leaving it closes the generator in its
    worker, whose `finally` blocks run: leaving `async for` or `async with` early, `aclose`, or being cancelled while
    waiting. Only `async with` and `aclose` wait for that. Values can't be sent to the generator, nor exceptions.

    >>> from polyloop import Pool
    >>> async def countdown(n):
    ...     while n:
    ...         yield n
    ...         n -= 1
    >>> async def main():
    ...     async with Pool(1) as pool, pool.stream(countdown, 10**9) as numbers:
    ...         async for n in numbers:
    ...             if n % 10 == 7:
    ...                 return n
    >>> asyncio.run(main())
    999999997
    """

    def __init__(self, call: _core.StreamCall, pool: object) -> None:
        self._call = call
        # As long as values are to come: a pool that nobody else holds would end, and they never came.
        self._pool: object | None = pool

    def __aiter__(self) -> Stream[T]:
        """Iterate over what has not been taken."""
        return self

    async def __anext__(self) -> T:
        """Wait for the next value."""
        try:
            while True:
                kind, value = self._call.take()
                if kind == _VALUE:
                    return value  # type: ignore[no-any-return]
                if kind == _FAILED:
                    raise value
                if kind == _END:
                    break
                await self._when(self._call.wait)
        except BaseException:
            await self.aclose()
            raise
        self._leave()
        raise StopAsyncIteration

    async def __aenter__(self) -> Stream[T]:
        """Use the stream in `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the stream, and wait until its generator is closed."""
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream, and wait until its generator is closed, or for the pool's grace.

        What the generator raises as it is closed is nobody's. May be called again.
        """
        self._leave()
        await self._when(self._call.wait_for_end)

    def __del__(self) -> None:
        """Leave the stream, unless the program ends: then the pool has ended too."""
        if not sys.is_finalizing() and hasattr(self, "_call"):
            self._call.leave()

    def _leave(self) -> None:
        self._call.leave()
        self._pool = None

    async def _when(self, wait: Callable[[asyncio.Future[None]], None]) -> Any:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wait(future)
        await future
