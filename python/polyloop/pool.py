"""`Pool`: coroutines and functions on a pool of worker processes. The face of the engine, and no policy of its own.

The client's event loop watches one descriptor of the manager and drains it; what Python must then do - start a process,
collect an exit status, write a line to the log - comes back as orders.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing.util
import operator
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import _core
from ._checks import check_lifespan, check_positive, check_synchronous
from ._contextvars import Travelling
from ._limits import check_descriptors, explain_file_size
from ._logs import levels
from ._news import log_of_worker, warn_blocked, warn_died
from ._room import Room
from ._roster import Roster, WorkerProcess, forget_ends, usable_cpus
from ._staff import Staff
from ._stats import PoolStats, pool_stats
from ._verbs import CallingPool
from ._worker import Plan
from .context import check_main_guard, check_preload, get_context
from .errors import PoolClosed, WorkerDied
from .handle import TaskHandle
from .options import Options
from .results import PoolResult
from .scheduler import QueueID, RoundRobin, Scheduler, TaskQueue
from .stream import Stream

if TYPE_CHECKING:
    from ._bridge import PoolExecutor

__all__ = ["Pool", "WorkerProcess"]

MAX_TASKS_PER_CHILD = 0
CHILD_CONCURRENCY = 16
GRACE_S = 5.0
PROCESSES_MAX = 32_766
BLOCK_WARNING_S = 1.0
_OTHER_LOOP = "this pool belongs to another event loop: make one on the loop that uses it"
EXIT_PRIORITY = 100  # before multiprocessing waits for processes that nobody ended

R = TypeVar("R")
T = TypeVar("T")

_log = logging.getLogger("polyloop")


class Pool(CallingPool):
    """Runs coroutines and functions on worker processes, each with an event loop of its own.

    Make it while an event loop runs; it belongs to that loop. Workers start in the background.

    Parameters:
        processes: worker processes; None for the CPUs that this process may use.
        initializer, initargs: a plain function that each worker calls first, its loop being set.
        maxtasksperchild: tasks that a worker runs before another takes its place; 0 for no limit.
        childconcurrency: tasks that a worker runs at the same time; those that wait for tasks of their own (see
            `parent_pool`) do not count.
        queuecount: task queues, each with workers of its own; at most `processes`.
        scheduler: chooses the queue of each task; None for `RoundRobin`.
        loop_initializer: makes each worker's event loop ("uvloop.new_event_loop"); None for asyncio's.
        exception_handler: called in the worker with each exception that a task raises.
        timeout: how long one run of a task may take, in seconds; None for any time. Then it raises `TaskTimeout`: a
            coroutine is cancelled, a function that blocks is interrupted. What can't be interrupted within `grace` is
            given up with its worker, after the tasks beside it had as long to end.
        retries: how many times a task is run again.
        retry_on: the exceptions for which it is, one or a tuple. When a worker dies, the tasks it was running are run
            again alone, and only the deaths of workers that ran nothing else count; the third is a `PoisonTask`.
        grace: how long, in seconds, whoever is asked to end may take before it is ended.
        max_memory_per_child: bytes of memory of its own (not shared pages) that a worker may hold. One found to hold
            more, after a task, at most every 100 ms, finishes what it runs, and another takes its place.
        max_age_per_child: seconds after which another worker takes its place likewise, or up to a tenth sooner.
        lifespan: makes an asynchronous context manager that each worker enters before it takes work, and leaves when it
            has run its last task, also on SIGTERM; killed if that takes longer than `grace`. What it yields is
            `current_worker().state`, and the context variables it sets are seen by every task. A worker with a lifespan
            is gone before its successor starts, so that what they hold never exists twice.
        contextvars: the names of context variables, each "module:name", that travel with tasks: what they are set to at
            the call of `apply`, `submit`, `map` or `stream`, they are set to in the task. Those that are not set there
            are left as they are in the worker. Their values are pickled.
        forward_logs: whether what workers log, and their warnings, go to the loggers of the same names here: message
            and exception as text, `process` and `processName` being the worker's. They come in order, and before the
            outcome of the task that logged; what finds no room is counted in a warning. Not from workers whose root
            logger has a handler once they are initialised, as under fork it may. Loggers that have no level there get
            the one that they have here when the pool is made.
        max_pending: how many calls by `submit`, `stream` and `apply` may be unfinished; a stream is until its generator
            has ended. One more by `submit` or `stream` raises `PoolFull` at once; one more by `apply` waits for its
            turn. What a `map` draws ahead is limited by its `buffersize`. None for any number.
        mp_context: how worker processes are started, whatever `set_start_method` says: "spawn", "fork", "forkserver",
            or a multiprocessing context.
        preload: names of modules that the forkserver imports once, so that workers have them from their start and
            share their memory. They must bear to be forked: no threads, no open connections. The program has one
            forkserver: it takes what the first pool says. Without effect under other start methods.
        block_warning: seconds that a worker's event loop may be blocked by one call before that is logged in the
            client, once, with the stack of the call; None or 0 to log nothing. Workers are asked for the stack by the
            signal `SIGRTMIN+3`.

    Raises:
        TypeError: `retry_on`, `lifespan`, `contextvars`, `mp_context` or `preload` is not what it should be.
        ModuleNotFoundError: there is no such module to preload.
        ValueError: impossible numbers, names that lead nowhere, a coroutine function as initializer, or more processes
            than this one may have file descriptors for.
        OSError: no memory; or RLIMIT_FSIZE is lower than a pool's shared memory is large.
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
        timeout: float | None = None,
        retries: int = 0,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = WorkerDied,
        grace: float = GRACE_S,
        max_memory_per_child: int | None = None,
        max_age_per_child: float | None = None,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        contextvars: Sequence[str] = (),
        forward_logs: bool = True,
        max_pending: int | None = None,
        mp_context: str | BaseContext | None = None,
        preload: Sequence[str] = (),
        block_warning: float | None = BLOCK_WARNING_S,
        _oom_file: str | None = None,
    ) -> None:
        check_synchronous("initializer", initializer)
        check_synchronous("loop_initializer", loop_initializer)
        check_lifespan(lifespan)
        check_positive("max_memory_per_child", max_memory_per_child)
        check_positive("max_pending", max_pending)
        check_positive("max_age_per_child", max_age_per_child)
        travelling = Travelling(contextvars)
        check_main_guard()
        self.context = get_context(mp_context)
        preload = check_preload(preload, self.context)
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
        self._options = Options(timeout, retries, retry_on)
        self.processes: dict[WorkerProcess, QueueID] = {}
        self.queues: dict[QueueID, TaskQueue] = {}
        self.running = True
        self._loop = _running_loop()
        self._ended = self._loop.create_future()
        self._maps: set[PoolResult[Any]] = set()
        self._room = None if max_pending is None else Room(max_pending)
        self._on_death: Callable[[BaseException | None], None] | None = None
        check_descriptors(self.process_count)
        try:
            self._manager = _core.Manager(
                processes=self.process_count,
                queues=self.queue_count,
                concurrency=self.childconcurrency,
                max_tasks=self.maxtasksperchild,
                max_memory=max_memory_per_child or 0,
                max_age_s=max_age_per_child,
                overlap=lifespan is None,
                block_warning_s=block_warning,
                grace_s=grace,
                event_loop=self._loop,
                call_flush_soon=_flusher(self),
                capture_context=travelling.capture if contextvars else None,
            )
        except OSError as error:
            raise explain_file_size(error) from None
        plan = Plan(
            initializer,
            tuple(initargs),
            loop_initializer,
            exception_handler,
            grace,
            self.childconcurrency,
            lifespan,
            tuple(contextvars),
            levels() if forward_logs else None,
            (timeout, retries, retry_on),
        )
        self._roster = Roster(self._manager, self._loop, plan, self.context, preload, _oom_file)
        self._staff = Staff(self._manager, self._roster, self._loop)
        self._register_queues(custom_scheduler=scheduler is not None)
        self._loop.add_reader(self._manager.fileno(), _on_readable, weakref.ref(self))
        # Called when the pool is collected, and at the program's exit: never waits, needs no loop.
        self._finalizer = multiprocessing.util.Finalize(
            self,
            _abandon,
            (self._manager, self._loop, self._manager.fileno(), self._roster.our_ends),
            exitpriority=EXIT_PRIORITY,
        )
        self._drain()  # its first orders are to start workers

    @property
    def _pool(self) -> Pool:
        return self

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

    def close(self) -> None:
        """Take no new work. Whatever was accepted is finished; then the workers leave.

        A map that nobody has asked for results is collected as if awaited: one over endless input ends only with
        `terminate`, or its own `cancel`. A map that is iterated goes on as its results are taken.
        """
        if self.running:
            self._take_no_more()
            if self._manager.is_ours:
                for result in list(self._maps):
                    result._pool_closes()
                self._manager.close()

    def terminate(self) -> None:
        """End all tasks and workers now. What was pending raises `PoolTerminated`."""
        self._take_no_more()
        if self._manager.is_ours and not self._ended.done():
            self._manager.terminate()
            self._end_maps()

    async def ready(self) -> None:
        """Wait until all workers are up.

        Tasks need not wait for that: those given to the pool before are run by the first worker that is.

        Raises:
            WorkerStartError: no worker can be started. That is the case if the first of them fails; a pool of which one
                was healthy tries again for ever.
            PoolClosed: the pool was closed or terminated.

        >>> async def main():
        ...     async with Pool(2) as pool:
        ...         await pool.ready()
        ...         return [worker.state for worker in pool.stats().workers]
        >>> import asyncio
        >>> asyncio.run(main())
        ['ready', 'ready']
        """
        self._check_usable()
        await self._staff.complete()

    async def resize(self, processes: int) -> None:
        """Have another number of workers, while tasks go on.

        New ones take work as soon as each is up; those that are too many take none from now on, finish what they run,
        and leave. Waits until the new ones are up and the old ones gone; cancelled, only the waiting ends.

        Parameters:
            processes: how many; at least `queuecount`, at most the larger of 128 and the number the pool was made with.

        Raises:
            ValueError: an impossible number, or more than this process may have file descriptors for.
            WorkerStartError, PoolClosed: as `ready`.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         await pool.resize(2)
        ...         more = len(pool.stats().workers)
        ...         await pool.resize(1)
        ...         return more, len(pool.stats().workers)
        >>> import asyncio
        >>> asyncio.run(main())
        (2, 1)
        """
        self._check_usable()
        if not self.queue_count <= operator.index(processes) <= PROCESSES_MAX:
            raise ValueError(f"a pool of {self.queue_count} queues can't have {processes} processes")
        if processes > self.process_count:
            check_descriptors(processes - self.process_count)
        leaving = self._manager.resize(processes)
        self.process_count = processes
        await self._staff.complete(leaving)

    async def restart(self) -> None:
        """Replace all workers by new ones, one after the other, while tasks go on.

        The new ones see the environment and the code as they are now. Each old one takes no more work once its
        successor is up (with a `lifespan`: before that starts), finishes what it runs, and leaves. Waits until all have
        done so; cancelled, only the waiting ends.

        Raises:
            WorkerStartError, PoolClosed: as `ready`.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         before = await pool.submit(os.getpid)
        ...         await pool.restart()
        ...         return before != await pool.submit(os.getpid)
        >>> import asyncio, os
        >>> asyncio.run(main())
        True
        """
        self._check_usable()
        await self._staff.complete(self._manager.restart())

    async def join(self) -> None:
        """Wait until all workers are gone.

        Raises:
            RuntimeError: the pool is still open.
        """
        if self.running:
            raise RuntimeError("pool is still open: close() or terminate() it first")
        if self._manager.is_ours:  # in a forked child it is not for us to end, nor to wait for
            await asyncio.shield(self._ended)

    async def aclose(self, timeout: float | None = None) -> None:
        """Take no new work, and wait until whatever was accepted is finished and all workers are gone.

        May be called again, also from several tasks, and after `terminate`. Cancelled, it stops waiting and leaves the
        pool closing: `terminate` ends it, as leaving `async with` does.

        Parameters:
            timeout: seconds after which the pool is terminated; None for as long as it takes.

        >>> async def main():
        ...     pool = Pool(1)
        ...     call = asyncio.ensure_future(pool.apply(abs, (-1,)))
        ...     await asyncio.sleep(0)
        ...     await pool.aclose(timeout=30)
        ...     return await call
        >>> import asyncio
        >>> asyncio.run(main())
        1
        """
        if self._manager.is_ours:
            self._check_loop()
        self.close()
        try:
            async with asyncio.timeout(timeout):
                await self.join()
        except TimeoutError:
            self.terminate()
            await self.join()

    def executor(self) -> PoolExecutor:
        """The standard library's `Executor` interface to this pool: for `run_in_executor`, for libraries, for threads.

        Its calls are tasks like any other. Its futures must not be waited for on the thread of the pool's loop.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await asyncio.get_running_loop().run_in_executor(pool.executor(), abs, -1)
        >>> import asyncio
        >>> asyncio.run(main())
        1
        """
        from ._bridge import PoolExecutor  # brings much with it that few need

        ahead = self.process_count * (self.childconcurrency + 1)
        return PoolExecutor(self._loop, self, ahead)

    def stats(self) -> PoolStats:
        """The pool in numbers, as they are now.

        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         await pool.map(abs, range(3))
        ...         return pool.stats()
        >>> import asyncio
        >>> stats = asyncio.run(main())
        >>> stats.state, stats.done, stats.failed
        ('running', 3, 0)
        """
        return pool_stats(self._manager, list(self.queues))

    def _submit(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> TaskHandle[Any]:
        self._check_usable()
        if self._room is not None:
            self._room.enter()
        handle: TaskHandle[Any] = TaskHandle(loop=self._loop)
        handle._manager = self._manager
        try:
            handle._token = self._manager.submit(func, args, kwargs or None, options.core, handle, self)
        except BaseException:
            if self._room is not None:
                self._room.leave()
            raise
        if self._room is not None:
            handle.add_done_callback(self._room.leave)
        return handle

    def _stream(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Stream[Any]:
        self._check_usable()
        if self._room is not None:
            self._room.enter()
        try:
            call = self._manager.open_stream(func, args, kwargs or None, options.core)
        except BaseException:
            if self._room is not None:
                self._room.leave()
            raise
        if self._room is not None:
            ended: Future[None] = Future()  # whose callbacks run at once: whoever saw the end finds its place free
            ended.add_done_callback(self._room.leave)
            call.wait_for_end(ended)
        return Stream(call, self)

    def _take_no_more(self) -> None:
        self.running = False
        if self._manager.is_ours:
            self._staff.close()
            if self._room is not None:
                self._room.close()

    def _end_maps(self) -> None:
        for result in list(self._maps):
            result._pool_ended()

    def _check_usable(self) -> None:
        if not self.running:
            raise PoolClosed("pool is closed")
        if not self._manager.is_ours:
            raise RuntimeError("this pool belongs to the process that forked this one: make a pool of its own here")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(_OTHER_LOOP)

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(_OTHER_LOOP)

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
        try:
            for kind, *details in self._manager.drain():
                _ORDERS[kind](self, *details)
        finally:
            self._manager.wake()

    def _on_start(self, key: int, queue: int, socket: int, lifeline: int, our_ends: list[int]) -> None:
        worker = self._roster.start(key, socket, lifeline, our_ends)
        self.processes[worker] = list(self.queues)[queue]

    def _on_reap(self, key: int) -> None:
        self._roster.reap(key, self._on_gone)

    def _on_gone(self, worker: WorkerProcess) -> None:
        del self.processes[worker]
        self._loop.call_soon(self._staff.changed)

    def _on_died(self, key: int, pid: int | None, exitcode: int | None, retried: int, lost: int) -> None:
        if self._on_death is not None:
            self._on_death(None)
        warn_died(pid, exitcode, retried, lost)

    def _on_degraded(self, error: BaseException) -> None:
        if self._on_death is not None:
            self._on_death(error)
        _log.warning("workers fail to start, trying again: %s", error)

    def _on_recovered(self) -> None:
        _log.warning("workers start again")

    def _on_up(self) -> None:
        self._staff.changed()

    def _on_gave_up(self, error: BaseException) -> None:
        self._staff.gave_up(error)

    def _on_terminated(self, unfinished: int) -> None:
        _log.warning("pool terminated with %d unfinished task%s", unfinished, "" if unfinished == 1 else "s")

    def _on_garbage(self, _key: int, problem: str) -> None:
        _log.warning("a worker sent garbage and is replaced: %s", problem)

    def _on_blocked(self, _key: int, pid: int | None, blocked_s: float) -> None:
        if pid is not None:
            self._roster.stacks.ask(pid, functools.partial(warn_blocked, pid, blocked_s))

    def _on_log(self, pid: int | None, dropped: int, data: bytes) -> None:
        log_of_worker(self._loop, pid, dropped, data)

    def _on_closed(self) -> None:
        self._end_maps()
        self._finalizer.cancel()
        self._roster.stacks.forget_questions()
        self._loop.remove_reader(self._manager.fileno())
        if not self._ended.done():
            self._ended.set_result(None)


_ORDERS: dict[str, Callable[..., None]] = {
    "start": Pool._on_start,
    "reap": Pool._on_reap,
    "died": Pool._on_died,
    "degraded": Pool._on_degraded,
    "recovered": Pool._on_recovered,
    "terminated": Pool._on_terminated,
    "garbage": Pool._on_garbage,
    "blocked": Pool._on_blocked,
    "log": Pool._on_log,
    "up": Pool._on_up,
    "gave_up": Pool._on_gave_up,
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
