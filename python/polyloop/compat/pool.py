"""aiomultiprocess's `pool` module: `Pool` with its hooks, on polyloop's engine, and `PoolWorker` over raw queues.

A subclass that overrides `init`, `loop` or `create_worker` has workers of its own in mind: then the engine is not used,
and the pool runs `PoolWorker`s over multiprocessing's queues, see `_raw`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import polyloop

from ._raw import CHILD_CONCURRENCY, MAX_TASKS_PER_CHILD, PoolWorker, RawWorkers
from .core import Process, get_context
from .scheduler import RoundRobin, Scheduler
from .types import LoopInitializer, ProxyException, QueueID, TaskID

__all__ = ["CHILD_CONCURRENCY", "MAX_TASKS_PER_CHILD", "Pool", "PoolResult", "PoolWorker", "ProxyException"]

T = TypeVar("T")

TAKEN = "results of this task were taken before"

Failure = str | BaseException | None
"""Of a task: a traceback as text; what polyloop says of a task that could not end; or None."""


class PoolResult(Awaitable[Sequence[T]], AsyncIterable[T]):
    """What `map` and `starmap` give: await it for all results, or iterate over them in order."""

    def __init__(self, pool: Pool, task_ids: Sequence[TaskID]) -> None:
        self.pool = pool
        self.task_ids = task_ids

    def __await__(self) -> Generator[Any, None, Sequence[T]]:
        """Wait for all results."""
        return self.results().__await__()

    async def results(self) -> Sequence[T]:
        """Wait for all results and return them as a sequence."""
        return await self.pool.results(self.task_ids)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the results as they are ready."""
        return self.results_generator()

    async def results_generator(self) -> AsyncIterator[T]:
        """Iterate over the results as they are ready."""
        for task_id in self.task_ids:
            yield (await self.pool.results([task_id]))[0]


class Pool:
    """Runs coroutines on worker processes. Parameters: as `polyloop.Pool`'s of the same names.

    For subclasses: each task goes in by `queue_work`, comes back by `finish_work`, and is waited for by `results`.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., None] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int = MAX_TASKS_PER_CHILD,
        childconcurrency: int = CHILD_CONCURRENCY,
        queuecount: int | None = None,
        scheduler: Scheduler | None = None,
        loop_initializer: LoopInitializer | None = None,
        exception_handler: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.context = get_context()
        self.scheduler = scheduler or RoundRobin()
        self.process_count = max(1, processes or os.cpu_count() or 2)
        self.queue_count = max(1, queuecount or 1)
        if self.queue_count > self.process_count:
            raise ValueError("queue count must be <= process count")
        self.initializer = initializer
        self.initargs = initargs
        self.loop_initializer = loop_initializer
        self.maxtasksperchild = max(0, maxtasksperchild)
        self.childconcurrency = max(1, childconcurrency)
        self.exception_handler = exception_handler
        self.processes: dict[Any, QueueID] = {}
        self.queues: dict[QueueID, Any] = {}
        self.running = True
        self.last_id = 0
        self._results: dict[TaskID, tuple[Any, Failure]] = {}
        self._unfinished: set[TaskID] = set()
        self._waits: dict[TaskID, list[_Wait]] = {}
        self._closed = asyncio.Event()
        self._engine: polyloop.Pool | None = None
        self._router: _Router | None = None
        self._raw: RawWorkers | None = RawWorkers(self) if _has_own_workers(type(self)) else None
        self.init()
        self._loop = asyncio.ensure_future(self.loop())

    async def __aenter__(self) -> Pool:
        """Use the pool in `async with`."""
        return self

    async def __aexit__(self, *args: object) -> None:
        """Terminate the pool and wait for its end."""
        self.terminate()
        await self.join()

    def init(self) -> None:
        """Make queues and workers."""
        if self._raw is not None:
            self._raw.init()
            return
        self._router = _Router(self.scheduler)
        self._engine = polyloop.Pool(
            self.process_count,
            self.initializer,
            self.initargs,
            self.maxtasksperchild,
            self.childconcurrency,
            self.queue_count,
            self._router,
            self.loop_initializer,
            self.exception_handler,
            mp_context=self.context,
        )
        self.processes, self.queues = self._engine.processes, self._engine.queues

    async def loop(self) -> None:
        """Maintain the pool of workers until its end."""
        if self._raw is not None:
            await self._raw.loop()
        if self._engine is not None:
            await self._closed.wait()
            await self._engine.join()

    def create_worker(self, qid: QueueID) -> Process:
        """Start a worker of this queue. Called only where a subclass overrides `init`, `loop` or this."""
        tx, rx = self.queues[qid]
        process = PoolWorker(
            tx,
            rx,
            self.maxtasksperchild,
            self.childconcurrency,
            initializer=self.initializer,
            initargs=self.initargs,
            loop_initializer=self.loop_initializer,
            exception_handler=self.exception_handler,
        )
        process.start()
        return process

    def queue_work(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskID:
        """Give a task to the workers of the queue that the scheduler chooses."""
        self.last_id += 1
        task_id = TaskID(self.last_id)
        qid = self.scheduler.schedule_task(task_id, func, args, dict(kwargs))
        if self._engine is None or self._router is None:
            tx, _ = self.queues[qid]
            tx.put_nowait((task_id, func, args, kwargs))
        else:
            self._router.chosen = qid
            handle = self._engine.submit(func, *args, **kwargs)
            self._unfinished.add(task_id)
            handle.add_done_callback(functools.partial(self._done, task_id))
        return task_id

    def finish_work(self, task_id: TaskID, value: Any, tb: Any) -> None:
        """Take in what became of a task: its value, or the traceback of its exception as text."""
        self._unfinished.discard(task_id)
        self._results[task_id] = value, tb
        self.scheduler.complete_task(task_id)
        for wait in self._waits.pop(task_id, ()):
            wait.one_less(failed=tb is not None)

    async def results(self, tids: Sequence[TaskID]) -> Sequence[Any]:
        """Wait for tasks, and return what they returned, in order.

        Raises:
            ProxyException: a task failed; its traceback as text.
            PolyloopError: a task could not end: its worker died, or the pool was terminated.
        """
        missing = [tid for tid in tids if tid not in self._results]
        if self._engine is not None and not self._unfinished.issuperset(missing):
            raise RuntimeError(TAKEN)
        if missing and not any(self._failure(tid) is not None for tid in tids):
            await self._wait_for(missing)
        for tid in tids:
            failure = self._failure(tid)
            if failure is not None:
                del self._results[tid]
                raise failure if isinstance(failure, BaseException) else ProxyException(failure)
        if any(tid not in self._results for tid in tids):
            raise RuntimeError(TAKEN)
        return [self._results.pop(tid)[0] for tid in tids]

    async def _wait_for(self, tids: Sequence[TaskID]) -> None:
        """Until all have ended, or one has failed."""
        wait = _Wait(len(tids))
        for tid in tids:
            self._waits.setdefault(tid, []).append(wait)
        try:
            await wait.over
        finally:
            for tid in tids:
                if wait in (others := self._waits.get(tid, [])):
                    others.remove(wait)

    async def apply(
        self, func: Callable[..., Any], args: Sequence[Any] | None = None, kwds: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a coroutine on the pool and return what it returns.

        Raises:
            ProxyException: it failed; its traceback as text.
            RuntimeError: the pool is closed.
        """
        self._check_open()
        tid = self.queue_work(func, args or (), kwds or {})
        return (await self.results([tid]))[0]

    def map(self, func: Callable[..., Any], iterable: Iterable[Any]) -> PoolResult[Any]:
        """Run a coroutine once for each item."""
        self._check_open()
        return PoolResult(self, [self.queue_work(func, (item,), {}) for item in iterable])

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Sequence[Any]]) -> PoolResult[Any]:
        """Run a coroutine once for each sequence of arguments."""
        self._check_open()
        return PoolResult(self, [self.queue_work(func, args, {}) for args in iterable])

    def close(self) -> None:
        """Take no new work; what was accepted is finished."""
        self.running = False
        self._closed.set()
        if self._engine is not None:
            self._engine.close()
        elif self._raw is not None:
            self._raw.close()

    def terminate(self) -> None:
        """End all tasks and workers now. Whoever waits for a result gets `PoolTerminated`."""
        if self.running:
            self.close()
        if self._engine is not None:
            self._engine.terminate()
        elif self._raw is not None:
            self._raw.terminate()

    async def join(self) -> None:
        """Wait for the workers' end.

        Raises:
            RuntimeError: the pool is open.
        """
        if self.running:
            raise RuntimeError("pool is still open")
        await self._loop

    def _check_open(self) -> None:
        if not self.running:
            raise RuntimeError("pool is closed")

    def _failure(self, tid: TaskID) -> Failure:
        return self._results.get(tid, (None, None))[1]

    def _done(self, task_id: TaskID, handle: asyncio.Future[Any]) -> None:
        """The engine has an outcome."""
        error = asyncio.CancelledError() if handle.cancelled() else handle.exception()
        if error is None:
            self.finish_work(task_id, handle.result(), None)
        else:
            self.finish_work(task_id, None, error if _is_of_the_engine(error) else _remote_traceback(error))


class _Wait:
    """Somebody waits until so many tasks have ended, or one has failed."""

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self.over = asyncio.get_running_loop().create_future()

    def one_less(self, *, failed: bool) -> None:
        self.tasks -= 1
        if (failed or not self.tasks) and not self.over.done():
            self.over.set_result(None)


class _Router(Scheduler):
    """Tells the engine which queue the pool's own scheduler has chosen."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.chosen = QueueID(0)

    def register_queue(self, tx: Any) -> QueueID:
        return self.scheduler.register_queue(tx)

    def register_process(self, qid: QueueID) -> None:
        self.scheduler.register_process(qid)

    def schedule_task(self, *_task: Any) -> QueueID:
        return self.chosen

    def complete_task(self, _task_id: TaskID) -> None:
        pass


def _has_own_workers(kind: type[Pool]) -> bool:
    return any(getattr(kind, hook) is not getattr(Pool, hook) for hook in ("init", "loop", "create_worker"))


def _is_of_the_engine(error: BaseException) -> bool:
    return isinstance(error, polyloop.PolyloopError) and not isinstance(error, polyloop.RemoteError)


def _remote_traceback(error: BaseException) -> str:
    """The traceback in the worker, which hangs at the end of the chain; else all that is known."""
    last = error
    for _ in range(100):
        following = last.__cause__ or last.__context__
        if following is None:
            break
        last = following
    text = str(last) if last is not error else ""
    return text if "Traceback" in text else "".join(traceback.format_exception(error))
