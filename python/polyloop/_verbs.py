"""What tasks are given to: the verbs of a pool, and views of it that run tasks with other options."""

from __future__ import annotations

import asyncio
import dataclasses
import operator
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from .handle import TaskHandle
from .options import Options
from .results import PoolResult
from .stream import Stream

if TYPE_CHECKING:
    from .parent import ParentPool
    from .pool import Pool

__all__ = ["MAP_WINDOW", "CallingPool", "PoolView", "Verbs", "as_arguments"]

MAP_WINDOW = 2048  # items drawn ahead
CHUNK_MAX = 256  # items that go to the workers together

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _AsItIs:
    """Stands for an option that is left out, in signatures too."""

    def __repr__(self) -> str:
        return "..."


_AS_IT_IS: Any = _AsItIs()


class Verbs:
    """The ways to give tasks to a pool."""

    _options: Options

    @property
    def _pool(self) -> Pool | ParentPool:
        """The pool that tasks go to."""
        raise NotImplementedError

    @overload
    async def apply(
        self,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
    ) -> R: ...
    @overload
    async def apply(
        self, func: Callable[..., R], args: Sequence[Any] | None = None, kwds: Mapping[str, Any] | None = None
    ) -> R: ...
    async def apply(
        self, func: Callable[..., Any], args: Sequence[Any] | None = None, kwds: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func(*args, **kwds)` on a worker and return what it returns.

        Cancelled, it cancels the task in its worker and goes on when that has ended, or after the pool's grace. What
        blocks the worker's event loop is interrupted: `CancelledError` then comes in the midst of it.

        Large buffers, of numpy or Arrow arrays and memoryviews, are copied once, into shared memory, and used there in
        place, also by who gets them as a result; their memory is kept as long as anything looks at it. The task may
        change those of its arguments: the caller's own stay as they are, and where the task may be run again it gets a
        copy. `bytes` are copied once more on arrival.

        Parameters:
            func: a coroutine function or a plain one; lambdas, closures, methods and partials too.

        Raises:
            BaseException: what the task raised.
            WorkerDied: its worker died, and no retry was left.
            PoolTerminated: the pool was terminated first.
            PoolClosed: the pool takes no new work.
            TypeError: the function or an argument can't be sent.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.apply(int, ("ff",), {"base": 16})
        >>> import asyncio
        >>> asyncio.run(main())
        255
        """
        pool = self._pool
        pool._check_usable()
        room = pool._room
        if room is not None:
            await room.wait()
        try:
            if type(args) is not tuple:
                args = () if args is None else as_arguments(args)
            call = pool._manager.apply(func, args, dict(kwds) if kwds else None, self._options.core)
            try:
                return await call
            except asyncio.CancelledError:
                await pool._cancel(call)
                raise
        finally:
            if room is not None:
                room.leave()

    @overload
    def submit(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    @overload
    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Start `func(*args, **kwargs)` on a worker, and return a future of what it returns.

        What `apply` raises, the handle raises; what can't be sent is refused here. How the task is run is said by
        `options`, so that all arguments here are the function's own.

        Parameters:
            func: a coroutine function or a plain one; lambdas, closures, methods and partials too.

        Raises:
            PoolClosed: the pool takes no new work.
            PoolFull: it has `max_pending` unfinished calls.
            TypeError: the function or an argument can't be sent.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         number = pool.submit(int, "ff", base=16)
        ...         return await number
        >>> import asyncio
        >>> asyncio.run(main())
        255
        """
        return self._pool._submit(func, args, kwargs, self._options)

    @overload
    def stream(self, func: Callable[P, AsyncIterable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]: ...
    @overload
    def stream(self, func: Callable[P, Iterable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]: ...
    def stream(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Stream[Any]:
        """Start `func(*args, **kwargs)` on a worker, and iterate over what it yields, with `async for`.

        The generator runs ahead of what is taken by a bounded number of values, and is closed when the stream is left:
        see `Stream`. It starts at this call. It is run again, where `retries` say so, only if nothing has come of it:
        no value is given twice. The `timeout` is for the whole stream, the pauses included.

        Parameters:
            func: an async generator function; or a generator function, which blocks its worker from value to value, or
                a thread of it with `options(in_thread=True)`; or any that returns an iterable.

        Raises:
            PoolClosed: the pool takes no new work.
            PoolFull: it has `max_pending` unfinished calls.
            TypeError: the function or an argument can't be sent.

        Raises, when iterated over:
            BaseException: what the generator raised.
            WorkerDied: its worker died.
            TaskTimeout: it ran longer than its timeout.
            RemoteError: a value could not be pickled, or unpickled; the stream has ended.
            PoolTerminated: the pool was terminated first.

        >>> import asyncio
        >>> from polyloop import Pool
        >>> async def read(lines):
        ...     for number in range(lines):
        ...         await asyncio.sleep(0)
        ...         yield f"line {number}"
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return [line async for line in pool.stream(read, lines=3)]
        >>> asyncio.run(main())
        ['line 0', 'line 1', 'line 2']
        """
        return self._pool._stream(func, args, kwargs, self._options)

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: Literal[False] = False,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[R]: ...
    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: Literal[False] = False,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[R]: ...
    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[R | BaseException]: ...
    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[R | BaseException]: ...
    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        *,
        return_exceptions: bool = False,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[Any]:
        """Run `func(item)` for each item of `iterable`.

        Parameters:
            iterable: any iterable or asynchronous iterable, also an endless one: it is drawn from as room appears.
            return_exceptions: exceptions of items stand in place of values, and cancel nothing. What `iterable` itself
                raises is raised.
            buffersize: how many items are drawn ahead of the results that have come back, or have been taken where
                they are taken one by one; None for 2048.
            chunksize: how many items are handed to the workers together, up to 256; None for as many as suit what they
                cost, from one that takes long to hundreds that do next to nothing. Whatever it is, a worker takes one
                item at a time, and each result comes back as its item ends.

        Raises:
            PoolClosed: the pool takes no new work.
            TypeError: the function can't be sent, or `iterable` is not one.
            ValueError: `buffersize` or `chunksize` is less than 1.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         lengths = await pool.map(len, ["a", "bcd"])
        ...         return lengths, await pool.map(int, ["7", "x"], return_exceptions=True)
        >>> import asyncio
        >>> asyncio.run(main())
        ([1, 3], [7, ValueError("invalid literal for int() with base 10: 'x'")])
        """
        return self._pool._map(func, iterable, self._options, False, return_exceptions, buffersize, chunksize)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        return_exceptions: bool = False,
        buffersize: int | None = None,
        chunksize: int | None = None,
    ) -> PoolResult[Any]:
        """Run `func(*arguments)` for each sequence of arguments in `iterable`; as `map` otherwise.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.starmap(pow, [(2, 3), (3, 2)])
        >>> import asyncio
        >>> asyncio.run(main())
        [8, 9]
        """
        return self._pool._map(func, iterable, self._options, True, return_exceptions, buffersize, chunksize)

    def options(
        self,
        *,
        timeout: float | None = _AS_IT_IS,
        retries: int = _AS_IT_IS,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = _AS_IT_IS,
        in_thread: bool = _AS_IT_IS,
        name: str | None = _AS_IT_IS,
    ) -> PoolView:
        """A view of the pool with the same verbs, which runs tasks with other options.

        What is left out stays as it is here.

        Parameters:
            timeout, retries, retry_on: as for `Pool`.
            in_thread: run plain functions on threads of their worker, as many at once as it runs tasks, while its loop
                goes on. They see a copy of the task's context. Out of time, or cancelled, they get `CancelledError` at
                their next step in Python; one that blocks for the pool's grace after that is given up with its worker.
                Coroutines run on the loop as ever.
            name: what the tasks are called, in errors and as `asyncio.Task`; None for the name of the function.

        Raises:
            ValueError: numbers that make no sense.
            TypeError: `retry_on` is not made of exceptions, or the name is no text.

        >>> import asyncio, time
        >>> from polyloop import Pool, TaskTimeout
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         try:
        ...             await pool.options(timeout=0.1).apply(time.sleep, (30,))
        ...         except TaskTimeout as error:
        ...             print(error)
        >>> asyncio.run(main())
        time:sleep ran longer than 0.1 s
        """
        given: dict[str, Any] = {
            "timeout": timeout,
            "retries": retries,
            "retry_on": retry_on,
            "in_thread": in_thread,
            "name": name,
        }
        changed = {option: value for option, value in given.items() if value is not _AS_IT_IS}
        return PoolView(self._pool, dataclasses.replace(self._options, **changed))


class CallingPool(Verbs):
    """A pool that tasks go to by a manager of its own: what `Pool` and `ParentPool` have in common."""

    _manager: Any
    _loop: asyncio.AbstractEventLoop
    _maps: set[PoolResult[Any]]

    def _check_usable(self) -> None:
        """Raise what keeps this pool from taking a call here and now."""
        raise NotImplementedError

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Any,
        options: Options,
        star: bool,
        return_exceptions: bool,
        buffersize: int | None,
        chunksize: int | None,
    ) -> PoolResult[Any]:
        self._check_usable()
        window, chunk = _check_window(buffersize), _check_chunksize(chunksize)
        asynchronous = aiter(iterable) if isinstance(iterable, AsyncIterable) else None
        source = iter(iterable) if asynchronous is None else None
        call = self._manager.open_map(func, source, star, options.core, window, chunk, bool(return_exceptions))
        total = len(iterable) if isinstance(iterable, Sized) else None
        return PoolResult(call, asynchronous, self._maps, self._pool, total)

    async def _cancel(self, call: Any) -> None:
        """Cancel a task, and wait until it has ended. Being cancelled again ends only the waiting."""
        ended: asyncio.Future[None] = self._loop.create_future()
        if self._manager.cancel(call, ended):
            await ended


class PoolView(Verbs):
    """A pool whose tasks run with other options. Made by `Pool.options`."""

    def __init__(self, pool: Pool | ParentPool, options: Options) -> None:
        self._viewed = pool
        self._options = options

    @property
    def _pool(self) -> Pool | ParentPool:
        return self._viewed

    def __repr__(self) -> str:
        return f"<PoolView of {self._viewed!r} with {self._options}>"


def _check_window(buffersize: int | None) -> int:
    """How many items a map draws ahead."""
    return MAP_WINDOW if buffersize is None else _at_least_one("buffersize", buffersize)


def _check_chunksize(chunksize: int | None) -> int | None:
    """How many items of a map go to the workers together."""
    return None if chunksize is None else min(_at_least_one("chunksize", chunksize), CHUNK_MAX)


def _at_least_one(name: str, value: int) -> int:
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be 1 or more, or None")
    return number


def as_arguments(args: Any) -> tuple[Any, ...]:
    """The positional arguments of a call, refusing what is surely a slip.

    Raises:
        TypeError: not a sequence of arguments.
    """
    if isinstance(args, (str, bytes)):
        raise TypeError(f"args must be a sequence of arguments, not a {type(args).__name__}: write (value,)")
    return tuple(args)
