"""`ProcessPoolExecutor`: the standard one's interface and meaning, on a pool whose event loop has a thread of its own.

The one door for programs without an event loop. How calls cross to that loop is `_bridge`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, ClassVar

from ._bridge import AFTER_SHUTDOWN, OF_ANOTHER_PROCESS, Bridge, BridgedExecutor, as_standard
from ._roster import usable_cpus
from .errors import WorkerStartError
from .pool import Pool

__all__ = ["ProcessPoolExecutor"]

# A worker has one call to run and one to go on with; what waits here can be cancelled.
CALLS_PER_WORKER = 2

AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


class ProcessPoolExecutor(BridgedExecutor):
    """`concurrent.futures.ProcessPoolExecutor` on polyloop's workers.

    A worker that dies fails the calls it was running, with an error that is both `WorkerDied` and `BrokenProcessPool`,
    and is replaced; all others go on. Lambdas, closures and coroutine functions work. Workers start at the first call.

    Parameters:
        max_workers: worker processes; None for the CPUs that this process may use.
        mp_context: a multiprocessing context; None for the one that `polyloop.set_start_method` chose.
        initializer, initargs: a plain function that each worker calls first.
        max_tasks_per_child: calls that a worker runs before another takes its place; None for no limit.
        strict: break as the standard executor does: after the first death, what is unfinished and whatever is submitted
            later raise `BrokenProcessPool`.

    Raises:
        ValueError: max_workers or max_tasks_per_child is less than 1.
        TypeError: initializer can't be called, or max_tasks_per_child is no integer.

    >>> import math
    >>> with ProcessPoolExecutor(2) as executor:
    ...     root = executor.submit(math.sqrt, 9.0)
    ...     list(executor.map(math.factorial, range(5))), root.result()
    ([1, 1, 2, 6, 24], 3.0)
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        strict: bool = False,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._max_workers = max_workers or usable_cpus()
        self._pool_arguments = {
            "processes": self._max_workers,
            "initializer": initializer,
            "initargs": initargs,
            "maxtasksperchild": max_tasks_per_child or 0,
            "childconcurrency": 1,
            "mp_context": mp_context,
        }
        self._strict = strict
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._stage: _Stage | None = None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and free the workers when those that were taken have ended.

        Parameters:
            wait: until then.
            cancel_futures: cancel those that no worker is about to run.
        """
        with self._lock:
            self._shut = True
            stage = self._stage
        if stage is None or os.getpid() != self._pid:
            return
        stage.close(cancel_futures=cancel_futures)
        if wait:
            stage.join()

    def _bridge_for_submit(self) -> Bridge:
        if os.getpid() != self._pid:
            raise RuntimeError(OF_ANOTHER_PROCESS)
        with self._lock:
            if self._shut:
                raise RuntimeError(AFTER_SHUTDOWN)
            if _Stage.all_finish:
                raise RuntimeError(AFTER_EXIT)
            if self._stage is None:
                self._stage = _Stage(self._pool_arguments, strict=self._strict)
                # An executor that nobody has any more is shut down: what it was given is finished first.
                weakref.finalize(self, self._stage.close).atexit = False
            return self._stage.bridge


class _Stage:
    """A pool, and the thread whose event loop it belongs to. Knows nothing of the executor, which may be collected."""

    _all: ClassVar[weakref.WeakSet[_Stage]] = weakref.WeakSet()
    _ends_at_exit: ClassVar[bool] = False
    all_finish: ClassVar[bool] = False

    bridge: Bridge

    def __init__(self, pool_arguments: dict[str, Any], *, strict: bool) -> None:
        self._pid = os.getpid()
        self._strict = strict
        self._finish_at_exit()
        self._begun: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(pool_arguments)), name="polyloop-executor"
        )
        self._thread.start()
        self._begun.result()
        _Stage._all.add(self)

    def close(self, *, cancel_futures: bool = False) -> None:
        """From any thread: end when the calls that were taken have ended."""
        if os.getpid() != self._pid:
            return
        try:
            if (
                cancel_futures
            ):  # on the loop, after what it was told of before: workers have as many calls as they can run
                self._loop.call_soon_threadsafe(self.bridge.drop_waiting)
            self._loop.call_soon_threadsafe(self._closing.set)
        except RuntimeError:  # it has ended
            pass

    def join(self) -> None:
        """Wait for the end, unless this is the thread that would end: a future's callback runs there."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _serve(self, pool_arguments: dict[str, Any]) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        try:
            pool = Pool(**pool_arguments)
        except BaseException as error:
            self._begun.set_exception(error)
            return
        async with pool:
            pool._on_death = self._worker_died
            self.bridge = Bridge(self._loop, pool, CALLS_PER_WORKER * pool.process_count, self._call_broke)
            self._begun.set_result(None)
            await self._closing.wait()
            await self.bridge.settled()
            if self.bridge.over is None:
                self.bridge.end(RuntimeError(AFTER_SHUTDOWN))  # whatever a thread puts from now on
                await pool.aclose()

    def _worker_died(self, error: BaseException | None) -> None:
        """Of what it was running, or idle; or, by this error, before it was ready."""
        if self._strict:
            broken = BrokenProcessPool("a worker died, and the executor is strict: it is not usable anymore")
            self._break(broken if error is None else as_standard(error))

    def _call_broke(self, error: BaseException) -> None:
        if isinstance(error, WorkerStartError):
            self._break(error)

    def _break(self, error: BaseException) -> None:
        self.bridge.end(error)
        self._closing.set()

    @classmethod
    def _finish_at_exit(cls) -> None:
        """As the standard executor: what was taken is finished before the program ends."""
        if not cls._ends_at_exit:
            try:
                threading._register_atexit(cls._finish_all)  # type: ignore[attr-defined]
            except RuntimeError:
                raise RuntimeError(AFTER_EXIT) from None
            cls._ends_at_exit = True

    @classmethod
    def _finish_all(cls) -> None:
        cls.all_finish = True
        stages = list(cls._all)
        for stage in stages:
            stage.close()
        for stage in stages:
            stage.join()
