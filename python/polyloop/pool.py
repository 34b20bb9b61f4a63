"""`Pool`: coroutines and functions on a pool of worker processes. The face of the engine, and no policy of its own.

The client's event loop watches one descriptor of the manager and drains it; what Python must then do - start a process,
collect an exit status, write a line to the log - comes back as orders.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing.util
import operator
import warnings
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from . import _core
from ._roster import Roster, WorkerProcess, as_arguments, forget_ends, usable_cpus
from ._worker import Plan
from .context import check_main_guard, get_context
from .errors import PoolClosed
from .results import PoolResult
from .scheduler import QueueID, RoundRobin, Scheduler

__all__ = ["Pool", "WorkerProcess"]

MAX_TASKS_PER_CHILD = 0
CHILD_CONCURRENCY = 16
GRACE_S = 5.0
MAP_WINDOW = 2048  # items drawn ahead
EXIT_PRIORITY = 100  # before multiprocessing waits for processes that nobody ended

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger("polyloop")


class Pool:
    """Runs coroutines and functions on worker processes, each with an event loop of its own.

    Make it while an event loop runs; it belongs to that loop. Workers start in the background.

    Parameters:
        processes: worker processes; None for the CPUs that this process may use.
        initializer, initargs: a plain function that each worker calls first, its loop being set.
        maxtasksperchild: tasks that a worker runs before another takes its place; 0 for no limit.
        childconcurrency: tasks that a worker runs at the same time.
        queuecount: task queues, each with workers of its own; at most `processes`.
        scheduler: chooses the queue of each task; None for `RoundRobin`.
        loop_initializer: makes each worker's event loop ("uvloop.new_event_loop"); None for asyncio's.
        exception_handler: called in the worker with each exception that a task raises.
        retries: how many times a task is run again when its worker dies.
        grace: how long, in seconds, whoever is asked to end may take before it is ended.

    Raises:
        ValueError: impossible numbers, or a coroutine function as initializer.
        RuntimeError: no event loop runs, or the program lacks its main guard.

    >>> async def main():
    ...     async with Pool(2) as pool:
    ...         return await pool.apply(math.hypot, (3.0, 4.0))
    >>> import asyncio, math
    >>> asyncio.run(main())
    5.0
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int = MAX_TASKS_PER_CHILD,
        childconcurrency: int = CHILD_CONCURRENCY,
        queuecount: int | None = None,
        scheduler: Scheduler | None = None,
        loop_initializer: Callable[[], asyncio.AbstractEventLoop] | None = None,
        exception_handler: Callable[[BaseException], Any] | None = None,
        *,
        retries: int = 0,
        grace: float = GRACE_S,
    ) -> None:
        _check_synchronous("initializer", initializer)
        _check_synchronous("loop_initializer", loop_initializer)
        check_main_guard()
        self.context = get_context()
        self.scheduler = scheduler or RoundRobin()
        self.process_count = max(1, processes or usable_cpus())
        self.queue_count = max(1, queuecount or 1)
        if self.queue_count > self.process_count:
            raise ValueError("queue count must be <= process count")
        self.initializer = initializer
        self.initargs = initargs
        self.loop_initializer = loop_initializer
        self.exception_handler = exception_handler
        self.maxtasksperchild = max(0, maxtasksperchild)
        self.childconcurrency = max(1, childconcurrency)
        self.retries = max(0, retries)
        self.processes: dict[WorkerProcess, QueueID] = {}
        self.queues: dict[QueueID, TaskQueue] = {}
        self.running = True
        self._loop = _running_loop()
        self._ended = self._loop.create_future()
        self._maps: set[PoolResult[Any]] = set()
        self._manager = _core.Manager(
            processes=self.process_count,
            queues=self.queue_count,
            concurrency=self.childconcurrency,
            max_tasks=self.maxtasksperchild,
            grace_s=grace,
            call_flush_soon=_flusher(self),
        )
        plan = Plan(initializer, tuple(initargs), loop_initializer, exception_handler)
        self._roster = Roster(self._manager, self._loop, plan)
        self._register_queues(custom_scheduler=scheduler is not None)
        self._loop.add_reader(self._manager.fileno(), _on_readable, weakref.ref(self))
        # Called when the pool is collected, and at the program's exit: never waits, needs no loop.
        self._finalizer = multiprocessing.util.Finalize(
            self,
            _abandon,
            (self._manager, self._loop, self._manager.fileno(), self._roster.our_ends),
            exitpriority=EXIT_PRIORITY,
        )

    async def __aenter__(self) -> Pool:
        """Use the pool in `async with`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Terminate the pool and wait for its end."""
        self.terminate()
        await self.join()

    def __del__(self) -> None:
        """A pool that nobody ended is terminated."""
        manager = getattr(self, "_manager", None)
        if manager is not None and manager.is_ours and not self._ended.done():
            warnings.warn(
                f"a pool of {self.process_count} processes was neither closed nor terminated",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

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

        Cancelled, it cancels the task in its worker and goes on when that has ended, or after the pool's grace.

        Parameters:
            func: a coroutine function or a plain one; lambdas, closures, methods and partials too.

        Raises:
            BaseException: what the task raised.
            WorkerDied: its worker died, and no retry was left.
            PoolTerminated: the pool was terminated first.
            PoolClosed: the pool takes no new work.
            TypeError: the function or an argument can't be sent.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.apply(int, ("ff",), {"base": 16})
        >>> import asyncio
        >>> asyncio.run(main())
        255
        """
        self._check_usable()
        future: asyncio.Future[Any] = self._loop.create_future()
        positional = as_arguments(args) if args is not None else ()
        token = self._manager.submit(func, positional, dict(kwds) if kwds else None, self.retries, future)
        try:
            return await future
        except asyncio.CancelledError:
            await self._cancel(token, future)
            raise

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: Literal[False] = False,
        buffersize: int | None = None,
    ) -> PoolResult[R]: ...
    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: Literal[False] = False,
        buffersize: int | None = None,
    ) -> PoolResult[R]: ...
    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool,
        buffersize: int | None = None,
    ) -> PoolResult[R | BaseException]: ...
    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool,
        buffersize: int | None = None,
    ) -> PoolResult[R | BaseException]: ...
    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        *,
        return_exceptions: bool = False,
        buffersize: int | None = None,
    ) -> PoolResult[Any]:
        """Run `func(item)` for each item of `iterable`.

        Parameters:
            iterable: any iterable or asynchronous iterable, also an endless one: it is drawn from as room appears.
            return_exceptions: exceptions of items stand in place of values, and cancel nothing. What `iterable` itself
                raises is raised.
            buffersize: how many items are drawn ahead of the results that have come back, or have been taken where
                they are taken one by one; None for 2048.

        Raises:
            PoolClosed: the pool takes no new work.
            TypeError: the function can't be sent, or `iterable` is not one.
            ValueError: `buffersize` is less than 1.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         lengths = await pool.map(len, ["a", "bcd"])
        ...         return lengths, await pool.map(int, ["7", "x"], return_exceptions=True)
        >>> import asyncio
        >>> asyncio.run(main())
        ([1, 3], [7, ValueError("invalid literal for int() with base 10: 'x'")])
        """
        return self._map(func, iterable, False, return_exceptions, buffersize)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        return_exceptions: bool = False,
        buffersize: int | None = None,
    ) -> PoolResult[Any]:
        """Run `func(*arguments)` for each sequence of arguments in `iterable`; as `map` otherwise.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.starmap(pow, [(2, 3), (3, 2)])
        >>> import asyncio
        >>> asyncio.run(main())
        [8, 9]
        """
        return self._map(func, iterable, True, return_exceptions, buffersize)

    def close(self) -> None:
        """Take no new work. Whatever was accepted is finished; then the workers leave.

        A map that nobody has asked for results is collected as if awaited: one over endless input ends only with
        `terminate`, or its own `cancel`. A map that is iterated goes on as its results are taken.
        """
        if self.running:
            self.running = False
            if self._manager.is_ours:
                for result in list(self._maps):
                    result._pool_closes()
                self._manager.close()

    def terminate(self) -> None:
        """End all tasks and workers now. What was pending raises `PoolTerminated`."""
        self.running = False
        if self._manager.is_ours and not self._ended.done():
            self._manager.terminate()
            self._end_maps()

    async def join(self) -> None:
        """Wait until all workers are gone.

        Raises:
            RuntimeError: the pool is still open.
        """
        if self.running:
            raise RuntimeError("pool is still open: close() or terminate() it first")
        if self._manager.is_ours:  # in a forked child it is not for us to end, nor to wait for
            await asyncio.shield(self._ended)

    def _map(
        self, func: Callable[..., Any], iterable: Any, star: bool, return_exceptions: bool, buffersize: int | None
    ) -> PoolResult[Any]:
        self._check_usable()
        window = MAP_WINDOW if buffersize is None else operator.index(buffersize)
        if window < 1:
            raise ValueError("buffersize must be 1 or more, or None")
        asynchronous = aiter(iterable) if isinstance(iterable, AsyncIterable) else None
        source = iter(iterable) if asynchronous is None else None
        call = self._manager.open_map(func, source, star, self.retries, window, bool(return_exceptions))
        return PoolResult(call, asynchronous, self._maps, self)

    def _end_maps(self) -> None:
        for result in list(self._maps):
            result._pool_ended()

    async def _cancel(self, token: int, future: asyncio.Future[Any]) -> None:
        """Cancel a task, and wait until it has ended. Being cancelled again ends only the waiting."""
        ended: asyncio.Future[None] = self._loop.create_future()
        if self._manager.cancel(token, future, ended):
            await ended

    def _check_usable(self) -> None:
        if not self.running:
            raise PoolClosed("pool is closed")
        if not self._manager.is_ours:
            raise RuntimeError("this pool belongs to the process that forked this one: make a pool of its own here")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this pool belongs to another event loop: make one on the loop that uses it")

    def _register_queues(self, *, custom_scheduler: bool) -> None:
        for index in range(self.queue_count):
            queue = TaskQueue(index)
            self.queues[self.scheduler.register_queue(queue)] = queue
        qids = list(self.queues)
        for index in range(self.process_count):
            self.scheduler.register_process(qids[index % self.queue_count])
        if custom_scheduler or self.queue_count > 1:
            self._manager.set_scheduler(self.scheduler.schedule_task, self.scheduler.complete_task, qids)

    def _drain(self) -> None:
        for kind, *details in self._manager.drain():
            _ORDERS[kind](self, *details)

    def _on_start(self, key: int, queue: int, socket: int, lifeline: int, our_ends: list[int]) -> None:
        worker = self._roster.start(key, socket, lifeline, our_ends)
        self.processes[worker] = list(self.queues)[queue]

    def _on_reap(self, key: int) -> None:
        self._roster.reap(key, self.processes.pop)

    def _on_died(self, key: int, pid: int | None, exitcode: int | None, retried: int, lost: int) -> None:
        fates = [f"{retried} to be run again"] if retried else []
        fates += [f"{lost} lost"] if lost else []
        running = f"; of its tasks {' and '.join(fates)}" if fates else ""
        _log.warning("worker %s died (%s)%s", pid, _describe_exit(exitcode), running)

    def _on_degraded(self, error: BaseException) -> None:
        _log.warning("workers fail to start, trying again: %s", error)

    def _on_recovered(self) -> None:
        _log.warning("workers start again")

    def _on_terminated(self, unfinished: int) -> None:
        _log.warning("pool terminated with %d unfinished task%s", unfinished, "" if unfinished == 1 else "s")

    def _on_garbage(self, _key: int, problem: str) -> None:
        _log.warning("a worker sent garbage and is replaced: %s", problem)

    def _on_closed(self) -> None:
        self._end_maps()
        self._finalizer.cancel()
        self._loop.remove_reader(self._manager.fileno())
        if not self._ended.done():
            self._ended.set_result(None)


class TaskQueue:
    """Stands for one inter-process task queue of a pool in the hands of a scheduler."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"<TaskQueue {self.index}>"


_ORDERS: dict[str, Callable[..., None]] = {
    "start": Pool._on_start,
    "reap": Pool._on_reap,
    "died": Pool._on_died,
    "degraded": Pool._on_degraded,
    "recovered": Pool._on_recovered,
    "terminated": Pool._on_terminated,
    "garbage": Pool._on_garbage,
    "closed": Pool._on_closed,
}


def _on_readable(reference: weakref.ref[Pool]) -> None:
    pool = reference()
    if pool is not None:
        pool._drain()


def _flusher(pool: Pool) -> Callable[[], None]:
    """Has the manager flushed in the loop's next round. Does not keep the pool alive."""
    reference, loop = weakref.ref(pool), pool._loop

    def flush() -> None:
        pool = reference()
        if pool is not None:
            pool._manager.flush()

    def flush_soon() -> None:
        loop.call_soon(flush)

    return flush_soon


def _abandon(manager: _core.Manager, loop: asyncio.AbstractEventLoop, fd: int, our_ends: dict[int, list[int]]) -> None:
    """End a pool whose owner is gone, or whose program is about to be."""
    if not manager.is_ours:
        return
    forget_ends(our_ends)
    manager.abandon()
    if not loop.is_closed():
        loop.remove_reader(fd)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("a Pool needs a running event loop: make it within a coroutine") from None


def _check_synchronous(name: str, function: Callable[..., Any] | None) -> None:
    if function is not None and inspect.iscoroutinefunction(function):
        raise ValueError(f"{name} must be synchronous function")


def _describe_exit(exitcode: int | None) -> str:
    from .errors import WorkerDied

    death = WorkerDied(exitcode=exitcode)
    if death.signal is not None:
        return death.signal
    return "exit status unknown" if exitcode is None else f"exit code {exitcode}"
