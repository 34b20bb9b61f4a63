"""`PoolResult`: what `map` and `starmap` give back. Waits for results; drawing the input is the extension's."""

from __future__ import annotations

import asyncio
import functools
import sys
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from . import _core
from ._progress import show_progress

__all__ = ["Outcome", "PoolResult", "ResultIterator"]

R = TypeVar("R")
T = TypeVar("T")

_PENDING, _VALUE, _ERROR, _FAILED, _END = range(5)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What became of one item of a `map`.

    Parameters:
        index: its place in the input, from 0.
        value: what it returned; None if it failed.
        error: what it raised; None if it returned.

    >>> Outcome(0, value=2.0).result()
    2.0
    """

    index: int
    value: R | None = None
    error: BaseException | None = None

    def result(self) -> R:
        """What the item returned.

        Raises:
            BaseException: what the item raised.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class PoolResult(Awaitable[Sequence[R]], AsyncIterable[R], Generic[R]):
    """The results of a `map`, in the order of its input.

    Await it for all of them as a list; or take them with `async for`, each as soon as it and all before it are there.
    `unordered` gives them as they finish, `outcomes` values and errors. Input is drawn as room appears: awaited, as
    results come back; taken one by one, as they are taken.

    The first item that fails is raised, and the rest is cancelled as soon as the failure arrives: queued items never
    start, running ones get `CancelledError`, the input is closed. With `async for`, the items before the one that
    failed finish and are given first. With `return_exceptions=True`, exceptions stand in place of values and cancel
    nothing; only what the input itself raises is raised.

    Leaving `async with`, leaving `async for` early, and being cancelled while waiting cancel what has not finished.

    >>> from polyloop import Pool
    >>> async def main():
    ...     async with Pool(1) as pool:
    ...         roots = await pool.map(math.sqrt, [4.0, 9.0])
    ...         async with pool.map(math.sqrt, [16.0, 25.0]) as result:
    ...             return roots, [root async for root in result]
    >>> import asyncio, math
    >>> asyncio.run(main())
    ([2.0, 3.0], [4.0, 5.0])
    """

    def __init__(
        self,
        call: _core.MapCall,
        source: AsyncIterator[Any] | None,
        unfinished: set[PoolResult[Any]],
        pool: object,
        total: int | None = None,
    ) -> None:
        self._call = call
        self._total = total
        # As long as results are to come: a pool that nobody else holds would end, and they never came.
        self._pool: object | None = pool
        self._values: list[R] | None = None
        self._collecting = False
        self._taken = False
        self._failed = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unfinished.add(self)
        # What the extension holds must not hold the pool's results in turn: the collector does not see into it.
        self._ended.add_done_callback(functools.partial(_discard, weakref.ref(unfinished), weakref.ref(self)))
        call.wait_for_end(self._ended)
        self._feeder = None if source is None else _Feeder(call, source)
        call.draw()

    def __await__(self) -> Generator[Any, None, Sequence[R]]:
        """Wait for all results."""
        return self.results().__await__()

    def __aiter__(self) -> ResultIterator[R]:
        """Iterate over the results as they become ready."""
        return self.results_generator()

    async def __aenter__(self) -> PoolResult[R]:
        """Use the results in `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what has not finished, and wait for its end."""
        self.cancel()
        await self._settled()

    async def results(self) -> Sequence[R]:
        """Wait for all results and return them as a list.

        Raises:
            BaseException: what the first item that failed raised, or the input.
            CancelledError: the map was cancelled.
            RuntimeError: results were taken by iteration before.
        """
        if self._values is None:
            self._check_not_taken()
            try:
                if not self._collecting:
                    self._collecting = True
                    self._call.collect()
                while not self._call.complete and self._call.failure is None:
                    await self._news()
                if self._call.failure is not None:
                    raise self._call.failure
            except BaseException:
                self.cancel()
                await self._settled()
                raise
            if self._values is None:  # another task that awaits the same results may have been first
                self._values = self._call.results()
        return self._values

    def results_generator(self) -> ResultIterator[R]:
        """Iterate over the results in order, each as soon as it is ready.

        Leaving early cancels what has not finished and closes the input.

        Raises:
            RuntimeError: results were taken by another iteration.
        """
        if self._collecting:
            return ResultIterator(None, _Replay(self).next)
        return self._iterate(self._call.iterate, _value)

    def unordered(self) -> ResultIterator[R]:
        """Iterate over the results as they finish; as `results_generator` otherwise.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool, pool.map(abs, [-1, -2]).unordered() as results:
        ...         return {result async for result in results}
        >>> import asyncio
        >>> asyncio.run(main())
        {1, 2}
        """
        if self._collecting:
            return ResultIterator(None, _Replay(self).next)
        return self._iterate(functools.partial(self._call.iterate_as_finished, keep_errors=False), _value)

    def outcomes(self) -> ResultIterator[Outcome[R]]:
        """Iterate over what becomes of each item, as they finish: an item that fails ends and cancels nothing.

        Leaving early cancels what has not finished and closes the input; so does leaving `async with`, which also
        waits for that.

        Raises:
            RuntimeError: the results are awaited, or were taken by another iteration.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool, pool.map(math.sqrt, [4.0, -1.0]).outcomes() as outcomes:
        ...         async for outcome in outcomes:
        ...             seen[outcome.index] = outcome.value or outcome.error
        >>> import asyncio, math
        >>> seen = {}
        >>> asyncio.run(main())
        >>> seen[0], seen[1]
        (2.0, ValueError('math domain error'))
        """
        if self._collecting:
            raise RuntimeError("the results of this map are awaited: ask for outcomes instead")
        return self._iterate(functools.partial(self._call.iterate_as_finished, keep_errors=True), _outcome)

    def progress(self, **options: Any) -> PoolResult[R]:
        """Show a bar of what has finished, in a terminal or a notebook, until all has.

        The bar is tqdm's: install it, or `polyloop[progress]`. It knows the end where the input has a length.

        Parameters:
            options: for tqdm, as `desc` or `total`.

        Returns:
            These results, to be awaited or iterated.

        Raises:
            ModuleNotFoundError: tqdm is not installed.

        >>> from polyloop import Pool
        >>> async def main(urls):
        ...     async with Pool() as pool:
        ...         return await pool.map(len, urls).progress(desc="pages")
        >>> import asyncio
        >>> asyncio.run(main(["a", "bc"]))  # doctest: +SKIP
        pages: 100%|██████████| 2/2 [00:00<00:00, 19.90it/s]
        [1, 2]
        """
        show_progress(self._call, self._ended, self._total, options)
        return self

    def cancel(self) -> bool:
        """Cancel what has not finished, draw no more input, and close it.

        Whoever waits for results gets `CancelledError`. Does not wait for the tasks' end; leaving `async with` does.

        Returns:
            Whether there was anything to cancel: False once the results were given, or the map has failed.
        """
        if self._values is not None:
            return False
        return self._call.cancel()

    def _iterate(self, ask: Callable[[], None], of: Callable[[int, int, Any], T]) -> ResultIterator[T]:
        self._check_not_taken()
        self._taken = True
        ask()
        return ResultIterator(self, functools.partial(self._next, of))

    async def _next(self, of: Callable[[int, int, Any], T]) -> T:
        """The next result in the way that was asked for."""
        while True:
            kind, index, value = self._call.take()
            if kind in (_VALUE, _ERROR):
                return of(kind, index, value)
            if kind == _FAILED:
                self._failed = True
                raise value
            if kind == _END:
                raise StopAsyncIteration
            await self._news()

    async def _settled(self) -> None:
        """Wait until all items have ended, after the pool's grace at the latest, and the input is closed."""
        feeding = [] if self._feeder is None else [self._feeder.task]
        await asyncio.wait([self._ended, *feeding])

    def _check_not_taken(self) -> None:
        if self._taken and not self._failed:
            raise RuntimeError("the results of this map were taken by `async for`, and are not kept")

    def _pool_closes(self) -> None:
        """Results that nobody has asked for are collected as if awaited."""
        if not self._taken and not self._collecting:
            self._call.collect_rest()

    def _pool_ended(self) -> None:
        self._call.pool_ended()

    async def _news(self) -> None:
        bell = _Bell()
        self._call.wait(bell)
        await bell.rung.wait()


class ResultIterator(AsyncIterator[T]):
    """Iterates over the results of a `map`. Leaving it early cancels what has not finished.

    Not an async generator: that would be closed some time after its loop was left, and what it started ran on.
    """

    def __init__(self, result: PoolResult[Any] | None, step: Callable[[], Awaitable[T]]) -> None:
        self._result = result
        self._step: Callable[[], Awaitable[T]] | None = step

    async def __aenter__(self) -> ResultIterator[T]:
        """Use the results in `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what has not finished, and wait for its end."""
        await self.aclose()

    def __aiter__(self) -> ResultIterator[T]:
        """Iterate over what has not been taken."""
        return self

    async def __anext__(self) -> T:
        """Wait for the next one."""
        if self._step is None:
            raise StopAsyncIteration
        try:
            return await self._step()
        except StopAsyncIteration:
            self._result = self._step = None
            raise
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Leave early, and wait until what it cancels has ended and the input is closed."""
        result = self._leave()
        if result is not None:
            await result._settled()

    def __del__(self) -> None:
        """Leave early, unless the program ends: then the pool has ended too."""
        if not sys.is_finalizing():
            self._leave()

    def _leave(self) -> PoolResult[Any] | None:
        result, self._result, self._step = self._result, None, None
        if result is not None:
            result.cancel()
        return result


class _Replay(Generic[R]):
    """Gives results that are awaited, or have been."""

    def __init__(self, result: PoolResult[R]) -> None:
        self._result = result
        self._values: Iterator[R] | None = None

    async def next(self) -> R:
        if self._values is None:
            self._values = iter(await self._result.results())
        for value in self._values:
            return value
        raise StopAsyncIteration


class _Feeder:
    """Pushes what an asynchronous input gives, as room appears, in a task of its own."""

    def __init__(self, call: _core.MapCall, source: AsyncIterator[Any]) -> None:
        self._call = call
        self._source = source
        self._in_source = False
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._feed())
        call.on_stop(functools.partial(_stop, weakref.ref(self)))

    def stop(self) -> None:
        """No more input is wanted. Interrupts an input that is waiting, and not one that is being closed."""
        if self._in_source and asyncio.current_task(self._loop) is not self.task and not self._loop.is_closed():
            self.task.cancel()

    async def _feed(self) -> None:
        error: BaseException | None = None
        try:
            try:
                await self._draw()
            finally:
                close = getattr(self._source, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as raised:  # also a cancellation from outside: whoever waits must hear of it
            error = raised
        unheard = self._call.finish(error)
        if unheard is not None and not isinstance(unheard, asyncio.CancelledError):
            message = "the input of a map failed after it was given up"
            # Without the task: the handler would be run in its context, which this is in already.
            self._loop.call_exception_handler({"message": message, "exception": unheard})

    async def _draw(self) -> None:
        call, source = self._call, self._source
        while True:
            if call.room == 0 and not call.input_ended:
                bell = _Bell()
                call.wait_for_room(bell)
                await bell.rung.wait()
            if call.input_ended:
                break
            self._in_source = True
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            finally:
                self._in_source = False
            call.push(item)


class _Bell:
    """Rung by the extension, with the interface of a future: any number of tasks may wait for it."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def done(self) -> bool:
        return self.rung.is_set()

    def set_result(self, _: None) -> None:
        self.rung.set()


def _value(_kind: int, _index: int, value: Any) -> Any:
    return value


def _outcome(kind: int, index: int, value: Any) -> Outcome[Any]:
    return Outcome(index, value) if kind == _VALUE else Outcome(index, None, value)


def _discard(
    results: weakref.ref[set[PoolResult[Any]]], result: weakref.ref[PoolResult[Any]], _: asyncio.Future[None]
) -> None:
    among, ended = results(), result()
    if among is not None and ended is not None:
        among.discard(ended)
        ended._pool = None


def _stop(feeder: weakref.ref[_Feeder]) -> None:
    alive = feeder()
    if alive is not None:
        alive.stop()
