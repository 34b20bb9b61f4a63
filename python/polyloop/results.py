"""`PoolResult`: what `map` and `starmap` give back. Waits for results; drawing the input is the extension's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from . import _core

__all__ = ["PoolResult"]

R = TypeVar("R")

_PENDING, _VALUE, _FAILED, _END = range(4)


class PoolResult(Awaitable[Sequence[R]], AsyncIterable[R], Generic[R]):
    """The results of a `map`, in the order of its input.

    Await it for all of them as a list; or take them with `async for`, each as soon as it and all before it are there.
    Input is drawn as room appears: awaited, as results come back; iterated, as they are taken.

    The first item that fails is raised, and what has not finished is cancelled.

    >>> from polyloop import Pool
    >>> async def main():
    ...     async with Pool(1) as pool:
    ...         roots = await pool.map(math.sqrt, [4.0, 9.0])
    ...         return roots, [root async for root in pool.map(math.sqrt, [16.0, 25.0])]
    >>> import asyncio, math
    >>> asyncio.run(main())
    ([2.0, 3.0], [4.0, 5.0])
    """

    def __init__(
        self, call: _core.MapCall, source: AsyncIterator[Any] | None, finished: Callable[[PoolResult[Any]], None]
    ) -> None:
        self._call = call
        self._finished = finished
        self._values: list[R] | None = None
        self._wanted = False
        self._taken = False
        self._feeding = None if source is None else asyncio.ensure_future(self._feed(source))
        self._call.draw()

    def __await__(self) -> Generator[Any, None, Sequence[R]]:
        """Wait for all results."""
        return self.results().__await__()

    def __aiter__(self) -> AsyncIterator[R]:
        """Iterate over the results as they become ready."""
        return self.results_generator()

    async def results(self) -> Sequence[R]:
        """Wait for all results and return them as a list.

        Raises:
            BaseException: what the first item that failed raised, or the input.
            RuntimeError: results were taken by iteration before.
        """
        if self._values is None:
            self._check_not_taken()
            self._wanted = True
            self._call.collect()
            try:
                while not self._call.complete and self._call.failure is None:
                    await self._news()
                if self._call.failure is not None:
                    raise self._call.failure
            except BaseException:
                self._cancel()
                await self._input_closed()
                raise
            if self._values is None:  # another task that awaits the same results may have been first
                self._values = self._call.results()
            self._finished(self)
        return self._values

    def results_generator(self) -> AsyncIterator[R]:
        """Iterate over the results in order, each as soon as it is ready.

        Leaving early cancels what has not finished and closes the input.

        Raises:
            RuntimeError: results were taken by another iteration.
        """
        if self._values is not None:
            return _Ready(self._values)
        self._check_not_taken()
        self._wanted = self._taken = True
        return _InOrder(self)

    async def _next(self) -> R:
        """The next result in order."""
        while True:
            kind, value = self._call.take()
            if kind == _VALUE:
                return value  # type: ignore[no-any-return]
            if kind == _FAILED:
                raise value
            if kind == _END:
                self._finished(self)
                raise StopAsyncIteration
            await self._news()

    def _cancel(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
        self._call.cancel()
        self._finished(self)

    async def _input_closed(self) -> None:
        """Wait until an asynchronous input that was given up has ended."""
        if self._feeding is not None:
            await asyncio.wait([self._feeding])

    def _check_not_taken(self) -> None:
        if self._taken and self._call.failure is None:
            raise RuntimeError("the results of this map were taken by `async for`, and are not kept")

    def _collect_if_unwanted(self) -> None:
        """The pool closes: results that nobody has asked for are collected as if awaited."""
        if not self._wanted:
            self._call.collect()

    async def _news(self) -> None:
        bell = _Bell()
        self._call.wait(bell)
        await bell.rung.wait()

    async def _feed(self, source: AsyncIterator[Any]) -> None:
        """Push what an asynchronous input gives, as room appears."""
        error: BaseException | None = None
        try:
            try:
                async for item in source:
                    while self._call.room == 0:
                        await self._room()
                    self._call.push(item)
            finally:
                close = getattr(source, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as raised:  # also a cancellation from outside: whoever waits must hear of it
            error = raised
        self._call.finish(error)

    async def _room(self) -> None:
        bell = _Bell()
        self._call.wait_for_room(bell)
        await bell.rung.wait()


class _InOrder(AsyncIterator[R]):
    """Iterates over results as they become ready.

    Not an async generator: that would be closed some time after its loop was left, and what it started ran on.
    """

    def __init__(self, result: PoolResult[R]) -> None:
        self._result: PoolResult[R] | None = result

    async def __anext__(self) -> R:
        result = self._result
        if result is None:
            raise StopAsyncIteration
        try:
            return await result._next()
        except StopAsyncIteration:
            self._result = None
            raise
        except BaseException:
            self._leave()
            await result._input_closed()
            raise

    async def aclose(self) -> None:
        """Leave early, and wait until the input is closed."""
        result = self._result
        self._leave()
        if result is not None:
            await result._input_closed()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        result, self._result = self._result, None
        if result is not None:
            result._cancel()


class _Ready(AsyncIterator[R]):
    """Iterates over results that have been awaited before."""

    def __init__(self, values: Sequence[R]) -> None:
        self._values = iter(values)

    async def __anext__(self) -> R:
        for value in self._values:
            return value
        raise StopAsyncIteration


class _Bell:
    """Rung by the extension, with the interface of a future: any number of tasks may wait for it."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def done(self) -> bool:
        return self.rung.is_set()

    def set_result(self, _: None) -> None:
        self.rung.set()
