"""From threads to a pool: calls come in from any thread as `concurrent.futures`, and run as tasks of the pool's loop.

Whose thread the loop runs on, and who ends the pool, is not decided here: see `executor`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._codec import as_pickling_error
from .errors import PoisonTask, PolyloopError, WorkerDied, WorkerStartError

if TYPE_CHECKING:
    from ._verbs import Verbs

__all__ = ["Bridge", "BridgedExecutor", "PoolExecutor", "as_standard"]

P = ParamSpec("P")
R = TypeVar("R")

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
OF_ANOTHER_PROCESS = "this executor belongs to the process that forked this one: make another here"


@dataclass(eq=False, slots=True)
class _Call:
    """A call that came from a thread."""

    future: Future[Any]
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Bridge:
    """Hands the calls of threads to a pool, a few ahead of what its workers run: the others can still be cancelled.

    Parameters:
        ahead: how many calls the pool has at a time.
        on_broken: called on the loop when a call ended for want of its worker; None for nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        verbs: Verbs,
        ahead: int,
        on_broken: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._loop = loop
        self._verbs = verbs
        self._ahead = ahead
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._crossing = False  # the loop has been told of what waits
        self._in_pool: set[Future[Any]] = set()
        self._settling: list[asyncio.Future[None]] = []
        self.over: BaseException | None = None

    def put(self, call: _Call) -> None:
        """From any thread: take a call.

        Raises:
            BrokenProcessPool: the bridge has ended.
        """
        with self._lock:
            if self.over is not None:
                raise BrokenProcessPool(f"no more calls are taken: {self.over}") from self.over
            self._waiting.append(call)
            tell, self._crossing = not self._crossing, True
        if tell:
            self._loop.call_soon_threadsafe(self._cross)

    def drop_waiting(self) -> None:
        """From any thread: cancel the calls that the pool does not have yet."""
        for call in self._take_waiting():
            if call.future.cancel():
                call.future.set_running_or_notify_cancel()

    def end(self, error: BaseException) -> None:
        """On the loop: take no more calls, and end all with this error."""
        with self._lock:
            self.over = error
        futures = [call.future for call in self._take_waiting()]
        in_pool, self._in_pool = self._in_pool, set()
        for future in filter(Future.set_running_or_notify_cancel, futures):
            future.set_exception(error)
        for future in in_pool:
            future.set_exception(error)
        self._rest()

    @property
    def is_idle(self) -> bool:
        """Whether all calls have ended."""
        return not self._waiting and not self._in_pool

    async def settled(self) -> None:
        """On the loop: wait until all calls have ended."""
        while not self.is_idle:
            rested = self._loop.create_future()
            self._settling.append(rested)
            self._cross()
            await rested

    def _take_waiting(self) -> deque[_Call]:
        with self._lock:
            taken, self._waiting = self._waiting, deque()
        return taken

    def _cross(self) -> None:
        """On the loop: give the pool what it has room for."""
        self._crossing = False  # before looking: what is put from now on is told of again
        while len(self._in_pool) < self._ahead:
            try:
                call = self._waiting.popleft()
            except IndexError:
                break
            if call.future.set_running_or_notify_cancel():
                self._submit(call)
        self._rest()

    def _submit(self, call: _Call) -> None:
        try:
            handle = self._verbs.submit(call.func, *call.args, **call.kwargs)
        except Exception as error:  # it can't be sent, or the pool takes no more
            self._fail(call.future, error)
            return
        self._in_pool.add(call.future)
        handle.add_done_callback(functools.partial(self._done, call.future))

    def _done(self, future: Future[Any], handle: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if handle.cancelled() else handle.exception()
        if future in self._in_pool:  # else it was ended by `end`
            self._in_pool.discard(future)
            if error is not None:
                self._fail(future, error)
            else:
                future.set_result(handle.result())
        # No reference to what came of it may stay in this frame while the next ones run.
        del future, handle, error
        self._cross()

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        broken = as_standard(error)
        future.set_exception(broken)
        if self._on_broken is not None and isinstance(broken, BrokenProcessPool):
            self._on_broken(broken)

    def _rest(self) -> None:
        if self.is_idle:
            settling, self._settling = self._settling, []
            for rested in settling:
                if not rested.done():
                    rested.set_result(None)


class BridgedExecutor(Executor):
    """The standard executor's verbs over a bridge."""

    _shut = False

    def _bridge_for_submit(self) -> Bridge:
        raise NotImplementedError

    def _new_future(self) -> Future[Any]:
        return Future()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have `fn(*args, **kwargs)` run on a worker; a coroutine function runs to its end.

        Returns:
            A future of what it returns or raises. Until the pool has the call it can be cancelled.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenProcessPool: it can't get workers, or is strict and has lost one.
        """
        bridge = self._bridge_for_submit()
        future = self._new_future()
        bridge.put(_Call(future, fn, args, kwargs))
        return future

    def map(
        self, fn: Callable[..., R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[R]:
        """As the built-in `map`, the calls being made on workers.

        Parameters:
            timeout: seconds from now after which `next` of the results raises TimeoutError; None for any time.
            chunksize: how many calls travel together.

        Raises:
            ValueError: chunksize is less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        run: Callable[..., Any] = _run_chunk_of_coroutines if inspect.iscoroutinefunction(fn) else _run_chunk
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return _flattened(super().map(functools.partial(run, fn), chunks, timeout=timeout))


class PoolExecutor(BridgedExecutor):
    """The standard executor's interface to a pool that runs. Made by `Pool.executor`.

    For `loop.run_in_executor`, for libraries that ask for an executor, and for plain threads. Its `shutdown` ends the
    executor and not the pool.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, verbs: Verbs, ahead: int, *, thread: int | None = None) -> None:
        self._loop = loop
        self._thread = threading.get_ident() if thread is None else thread
        self._pid = os.getpid()
        self._bridge = Bridge(loop, verbs, ahead)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Parameters:
            wait: until those that were taken have ended.
            cancel_futures: cancel those that no worker is about to run.

        Raises:
            RuntimeError: called with `wait` on the thread of the pool's loop, which would wait for itself.
        """
        self._shut = True
        if cancel_futures:
            self._bridge.drop_waiting()
        if wait and not self._bridge.is_idle:
            self._refuse_own_thread("shutdown(wait=True)", "shutdown(wait=False), and await the futures")
            asyncio.run_coroutine_threadsafe(self._bridge.settled(), self._loop).result()

    def _bridge_for_submit(self) -> Bridge:
        if self._shut:
            raise RuntimeError(AFTER_SHUTDOWN)
        if os.getpid() != self._pid:
            raise RuntimeError(OF_ANOTHER_PROCESS)
        if self._loop.is_closed():
            raise RuntimeError("the event loop of this executor's pool is closed")
        return self._bridge

    def _new_future(self) -> Future[Any]:
        return _LoopsFuture(self._refuse_own_thread)

    def _refuse_own_thread(self, what: str, instead: str) -> None:
        if threading.get_ident() == self._thread and self._loop.is_running():
            raise RuntimeError(f"{what} on the thread of the pool's event loop would wait for itself: use {instead}")


class _LoopsFuture(Future[R]):
    """A future that the pool's loop completes, and that must not be waited for on that loop's thread."""

    def __init__(self, refuse: Callable[[str, str], None]) -> None:
        super().__init__()
        self._refuse = refuse

    def result(self, timeout: float | None = None) -> R:
        self._check("result()")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check("exception()")
        return super().exception(timeout)

    def _check(self, what: str) -> None:
        if not self.done():
            self._refuse(what, "`await asyncio.wrap_future(future)`, or `await pool.apply(...)`")


# ------------------------------------------------------------------------------------------------ the standard's errors


class BrokenByDeath(WorkerDied, BrokenProcessPool):
    """`WorkerDied` for programs that expect what the standard executor raises."""


class BrokenByPoison(PoisonTask, BrokenProcessPool):
    """`PoisonTask` for programs that expect what the standard executor raises."""


class BrokenAtStart(WorkerStartError, BrokenProcessPool):
    """`WorkerStartError` for programs that expect what the standard executor raises."""


_BROKEN: tuple[tuple[type[PolyloopError], type[PolyloopError]], ...] = (
    (PoisonTask, BrokenByPoison),
    (WorkerDied, BrokenByDeath),
    (WorkerStartError, BrokenAtStart),
)


def as_standard(error: BaseException) -> BaseException:
    """The same error as one that the standard executor would raise too.

    That is a `BrokenProcessPool` if it says that a worker was lost or could not start.
    """
    if isinstance(error, BrokenProcessPool):
        return error
    for kind, broken_kind in _BROKEN:
        if isinstance(error, kind):
            broken = broken_kind.__new__(broken_kind, *error.args)
            broken.__dict__.update(error.__dict__)
            broken.__cause__, broken.__traceback__ = error.__cause__, error.__traceback__
            return broken
    return as_pickling_error(error)


# --------------------------------------------------------------------------------------------------------------- chunks


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _run_chunk(func: Callable[..., R], chunk: list[tuple[Any, ...]]) -> list[R]:
    return [func(*args) for args in chunk]


async def _run_chunk_of_coroutines(func: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [await func(*args) for args in chunk]


def _flattened(chunks: Iterator[list[R]]) -> Iterator[R]:
    """One by one, and none kept here after it was given."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
