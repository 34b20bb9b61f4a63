"""Workers over raw queues of multiprocessing, for subclasses that have workers of their own in mind.

Of the engine's promises only these hold here: nothing polls, a worker that dies is replaced, and what it had started
fails. What it died while taking out of a queue, or putting into one, is lost with it, and so may be the queue's lock:
those are multiprocessing's queues, as aiomultiprocess has them.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import queue
import struct
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import polyloop

from .core import Process
from .types import LoopInitializer, PoolTask, Queue, QueueID, TaskID, TracebackStr

if TYPE_CHECKING:
    from .pool import Pool

MAX_TASKS_PER_CHILD = 0  # no limit
CHILD_CONCURRENCY = 16
# Somebody else has what made the queue readable, or is about to.
TRY_AGAIN_S = 0.005
_MARK = struct.Struct("<q")


class PoolWorker(Process):
    """Takes tasks from one queue, and puts what becomes of them into another.

    Parameters:
        tx: where tasks come from, as `(task_id, func, args, kwargs)`; None ends the worker.
        rx: where `(task_id, value, traceback)` goes; the traceback is text, or None.
        ttl: tasks that it runs before it ends; 0 for no limit.
        concurrency: tasks that it runs at the same time.
    """

    def __init__(
        self,
        tx: Queue[PoolTask],
        rx: Queue[tuple[TaskID, Any, TracebackStr | None]],
        ttl: int = MAX_TASKS_PER_CHILD,
        concurrency: int = CHILD_CONCURRENCY,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        loop_initializer: LoopInitializer | None = None,
        exception_handler: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(target=self.run, initializer=initializer, initargs=initargs, loop_initializer=loop_initializer)
        self.concurrency = max(1, concurrency)
        self.exception_handler = exception_handler
        self.ttl = max(0, ttl)
        self.tx = tx
        self.rx = rx
        self.marks = Marks()

    async def run(self) -> None:
        """Take tasks, run them, give back what becomes of them; until there is no more to do."""
        pending: dict[asyncio.Future[Any], TaskID] = {}
        begun, running = 0, True
        while running or pending:
            is_empty = False
            while running and len(pending) < self.concurrency and not is_empty:
                try:
                    task = self.tx.get_nowait()
                except queue.Empty:
                    is_empty = True
                    continue
                if task is None:
                    running = False
                    break
                tid, func, args, kwargs = task
                self.marks.begin(tid)
                pending[asyncio.ensure_future(_call(func, args, kwargs))] = tid
                begun += 1
                running = begun != self.ttl
            await _first(pending, self.tx if is_empty else None)
            for future in [future for future in pending if future.done()]:
                self._give_back(pending.pop(future), future)

    def _give_back(self, tid: TaskID, future: asyncio.Future[Any]) -> None:
        result = tb = None
        try:
            result = future.result()
            ForkingPickler.dumps(result)  # the queue does it in a thread, where a failure reaches nobody
        except BaseException as error:
            result, tb = None, traceback.format_exc()
            self._tell_handler(error)
        self.rx.put_nowait((tid, result, tb))
        self.marks.end(tid)

    def _tell_handler(self, error: BaseException) -> None:
        if self.exception_handler is not None:
            try:
                self.exception_handler(error)
            except Exception:  # the task's own exception is what its caller must get
                traceback.print_exc()


class Marks:
    """A pipe by which a worker says what it has begun and ended: what it had in hand when it died."""

    def __init__(self) -> None:
        self.reader, self.writer = polyloop.get_context().Pipe(duplex=False)
        os.set_blocking(self.reader.fileno(), False)
        self._begun: dict[int, None] = {}

    def begin(self, tid: TaskID) -> None:
        self._write(tid)

    def end(self, tid: TaskID) -> None:
        self._write(-tid)

    def in_hand(self) -> list[TaskID]:
        """Tasks begun and not ended; asked for from time to time, so that the pipe does not fill."""
        while True:
            try:
                marks = os.read(self.reader.fileno(), 1024 * _MARK.size)
            except BlockingIOError:
                break
            if not marks:
                break
            for (tid,) in _MARK.iter_unpack(marks):
                if tid > 0:
                    self._begun[tid] = None
                else:
                    self._begun.pop(-tid, None)
        return [TaskID(tid) for tid in self._begun]

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def _write(self, mark: int) -> None:
        os.set_blocking(self.writer.fileno(), False)
        try:
            os.write(self.writer.fileno(), _MARK.pack(mark))
        except OSError as error:  # full: nobody reads them
            if error.errno != errno.EAGAIN:
                raise


class RawWorkers:
    """A pool's workers over raw queues."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed = asyncio.Event()

    def init(self) -> None:
        """Make queues and workers, as the scheduler is told of them."""
        pool = self._pool
        for _ in range(pool.queue_count):
            tx, rx = pool.context.Queue(), pool.context.Queue()
            pool.queues[pool.scheduler.register_queue(tx)] = (tx, rx)
        qids = list(pool.queues)
        for index in range(pool.process_count):
            qid = qids[index % pool.queue_count]
            pool.processes[pool.create_worker(qid)] = qid
            pool.scheduler.register_process(qid)

    async def loop(self) -> None:
        """Take in what comes back and replace workers that end, until the pool has ended."""
        pool = self._pool
        while pool.processes or pool.running:
            self._changed.clear()
            for process in [process for process in pool.processes if not process.is_alive()]:
                self._bury(process, pool.processes.pop(process))
            for _, rx in pool.queues.values():
                self._drain(rx)
            if not any(not process.is_alive() for process in pool.processes) and (pool.processes or pool.running):
                await self._news()
        self._fail(list(pool._waits), polyloop.PoolTerminated("the pool ended before the task did"))

    def close(self) -> None:
        """Tell each worker that there is no more to do."""
        for qid in self._pool.processes.values():
            self._pool.queues[qid][0].put_nowait(None)
        self._changed.set()

    def terminate(self) -> None:
        """End the workers."""
        for process in self._pool.processes:
            process.terminate()

    def _drain(self, rx: Any) -> None:
        while True:
            try:
                task_id, value, tb = rx.get_nowait()
            except queue.Empty:
                return
            self._pool.finish_work(task_id, value, tb)

    def _bury(self, process: Any, qid: QueueID) -> None:
        self._drain(self._pool.queues[qid][1])
        if self._pool.running:
            self._pool.processes[self._pool.create_worker(qid)] = qid
        marks = getattr(process, "marks", None)
        if marks is not None:
            lost = [tid for tid in marks.in_hand() if tid not in self._pool._results]
            self._fail(lost, polyloop.WorkerDied(pid=process.pid, exitcode=process.exitcode))
            marks.close()

    def _fail(self, tids: Iterable[TaskID], error: BaseException) -> None:
        for tid in tids:
            self._pool.finish_work(tid, None, error)

    async def _news(self) -> None:
        """Wait until something comes back, a worker ends, or the pool closes."""
        for process in self._pool.processes:
            if (marks := getattr(process, "marks", None)) is not None:
                marks.in_hand()
        readers = [rx._reader.fileno() for _, rx in self._pool.queues.values()]
        await _readable([*readers, *(process.sentinel for process in self._pool.processes)], self._changed)


async def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    result = func(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def _first(pending: Iterable[asyncio.Future[Any]], tx: Queue[Any] | None) -> None:
    """Wait until a task has ended, or there may be something in the queue."""
    waits = set(pending)
    arrival = None if tx is None else asyncio.ensure_future(_arrival(tx))
    try:
        if arrival is not None:
            waits.add(arrival)
        if waits:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if arrival is not None:
            arrival.cancel()


async def _arrival(tx: Any) -> None:
    reader = getattr(tx, "_reader", None)
    if reader is not None and not reader.poll():
        await _readable([reader.fileno()])
    else:
        await asyncio.sleep(TRY_AGAIN_S)


async def _readable(fds: Iterable[int], changed: asyncio.Event | None = None) -> None:
    """Wait until one of these descriptors is readable, or something has changed."""
    loop = asyncio.get_running_loop()
    changed = changed or asyncio.Event()
    copies = [os.dup(fd) for fd in fds]  # a loop watches a descriptor once, and others may watch them too
    try:
        for fd in copies:
            loop.add_reader(fd, changed.set)
        await changed.wait()
    finally:
        for fd in copies:
            loop.remove_reader(fd)
            os.close(fd)
