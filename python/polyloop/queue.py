"""`Queue`: items from any process to any process, for threads and for event loops.

What is shared and how processes wait for one another is the engine's; here items become bytes, and waiting becomes
awaiting. Nothing here is a process or a pool: their arguments are how a queue gets to other processes.
"""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections import deque
from multiprocessing.context import get_spawning_popen
from queue import Empty, Full
from typing import Any, Generic, TypeVar

from . import _codec, _core
from .context import PassedFd

__all__ = ["Queue"]

T = TypeVar("T")


class Queue(Generic[T]):
    """A queue between processes, as `multiprocessing.Queue`, that event loops can await and deaths do not harm.

    Any process may put and get, in any number of threads and event loops. Items come out in the order in which they
    were put. An item is in the queue when `put` returns: it no longer depends on the process that put it, nor, until it
    is returned, on one that is about to get it. A process that is killed or stopped, wherever, keeps no other from its
    items.

    A queue reaches another process among the arguments of a `Process` or `Worker`, or the `initargs` of a `Pool`.

    Parameters:
        maxsize: how many items it holds at most; 0 or less: as many as there is memory for.

    >>> queue: Queue[str] = Queue(maxsize=2)
    >>> queue.put("a")
    >>> queue.put_nowait("b")
    >>> queue.full(), queue.get(), queue.qsize()
    (True, 'a', 1)
    >>> asyncio.run(queue.aget())
    'b'
    >>> queue.get(timeout=0.01)
    Traceback (most recent call last):
        ...
    _queue.Empty
    >>> queue.close()
    """

    _closed = False

    def __init__(self, maxsize: int = 0) -> None:
        self._open(_core.Queue(maxsize if maxsize > 0 else None))

    @property
    def maxsize(self) -> int:
        """How many items it holds at most; 0: as many as there is memory for."""
        return self._core.limit or 0

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item into the queue. It is pickled at once, so what it becomes afterwards does not matter.

        Parameters:
            block: whether to wait for room.
            timeout: how many seconds to wait for it; None: as long as it takes.

        Raises:
            queue.Full: there was no room.
            TypeError: the item cannot be pickled.
            ValueError: the queue is closed.
        """
        core = self._check()
        data = _codec.dumps(item)
        if not (core.put_within(data, timeout) if block else core.put(data)):
            raise Full

    def put_nowait(self, item: T) -> None:
        """Put an item into the queue if there is room.

        Raises: as `put`.
        """
        self.put(item, False)

    async def aput(self, item: T) -> None:
        """Put an item into the queue, waiting for room. A call that is cancelled has put nothing.

        Raises:
            TypeError: the item cannot be pickled.
            ValueError: the queue is closed.

        >>> async def main(queue: Queue[int]) -> int:
        ...     await queue.aput(1)
        ...     waiting = asyncio.create_task(queue.aput(2))
        ...     return await queue.aget() + await queue.aget()
        >>> asyncio.run(main(Queue(maxsize=1)))
        3
        """
        self._check()
        data = _codec.dumps(item)
        while not self._check().put(data):
            await self._wait(for_room=True)
        self._wake_next(for_room=True)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the item that comes next.

        Parameters:
            block: whether to wait for one.
            timeout: how many seconds to wait for it; None: as long as it takes.

        Raises:
            queue.Empty: there was none.
            ValueError: the queue is closed.
        """
        core = self._check()
        data = core.take_within(timeout) if block else core.take()
        if data is None:
            raise Empty
        return self._load(data)

    def get_nowait(self) -> T:
        """Remove and return the item that comes next, if there is one.

        Raises: as `get`.
        """
        return self.get(False)

    async def aget(self) -> T:
        """Remove and return the item that comes next, waiting for one. A call that is cancelled has removed nothing.

        Raises:
            ValueError: the queue is closed.
        """
        while (data := self._check().take()) is None:
            await self._wait(for_room=False)
        self._wake_next(for_room=False)
        return self._load(data)

    def qsize(self) -> int:
        """How many items there are. By the time you know, there may be more or fewer."""
        return len(self._check())

    def empty(self) -> bool:
        """Whether there is no item, by the moment of asking."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether there is no room, by the moment of asking."""
        return 0 < self.maxsize <= self.qsize()

    def close(self) -> None:
        """End the queue for this process: whoever waits for it here, or uses it from now on, gets a ValueError.

        Other processes go on with it, and what was put stays for them.
        """
        if self._closed:
            return
        self._closed = True
        self._core.close()
        for waiting in list(self._waiting.values()):
            waiting.close()

    def join_thread(self) -> None:
        """Wait until what was put is sent. It is when `put` returns, so this only checks that the queue is closed.

        Raises:
            AssertionError: it is not.
        """
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Let the process exit before what was put is on its way. There never is anything to wait for."""

    def __getstate__(self) -> Any:
        """Hand the queue to the process that is being started.

        Raises:
            RuntimeError: no process is being started.
            ValueError: the queue is closed.
        """
        if get_spawning_popen() is None:
            raise RuntimeError(
                "a Queue can be passed only to a process that is being started: among the arguments of a Process or "
                "Worker, or the initargs of a Pool"
            )
        memory, items, room = self._check().fds()
        return PassedFd(memory), PassedFd(items), None if room is None else PassedFd(room)

    def __setstate__(self, state: tuple[PassedFd, PassedFd, PassedFd | None]) -> None:
        """In the process that was started."""
        memory, items, room = state
        self._open(_core.Queue.attach(memory.take(), items.take(), None if room is None else room.take()))

    def _open(self, core: _core.Queue) -> None:
        self._core = core
        self._waiting: dict[tuple[asyncio.AbstractEventLoop, bool], _Waiting] = {}
        _open_again_after_fork()
        _queues.add(self)

    def _after_fork(self) -> None:
        self._waiting = {}
        if not self._closed:
            self._core = self._core.reborn()

    def _check(self) -> _core.Queue:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        return self._core

    def _load(self, data: bytes) -> T:
        item: T = _codec.loads(data)
        return item

    async def _wait(self, *, for_room: bool) -> None:
        """Wait until there may be an item, or room."""
        key = asyncio.get_running_loop(), for_room
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(key[0], self._core.watch(for_room))
        try:
            await waiting.wait()
        finally:
            if not waiting.waiters and self._waiting.get(key) is waiting:
                del self._waiting[key]
                waiting.end()

    def _wake_next(self, *, for_room: bool) -> None:
        """What woke us may have been meant for several."""
        if self._waiting:
            waiting = self._waiting.get((asyncio.get_running_loop(), for_room))
            if waiting is not None:
                waiting.wake_next()


class _Waiting:
    """Who waits on one event loop for one queue's items, or for its room. Lives while somebody does.

    A waiter is only told to try again, and takes for itself: so an item is never on its way to one that was cancelled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, watch: _core.QueueWatch) -> None:
        self.waiters: deque[asyncio.Future[None]] = deque()
        self._loop = loop
        self._watch = watch
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(watch.fileno(), self._rung)

    async def wait(self) -> None:
        waiter = self._loop.create_future()
        self.waiters.append(waiter)
        try:
            self._nap()
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.wake_next()  # it was woken, and will not try
            raise
        finally:
            if waiter in self.waiters:
                self.waiters.remove(waiter)

    def wake_next(self) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def close(self) -> None:
        """From any thread: all of them are to try again."""
        try:
            self._loop.call_soon_threadsafe(self._wake_all)
        except RuntimeError:  # the loop is closed, and nobody waits
            pass

    def end(self) -> None:
        self._loop.remove_reader(self._watch.fileno())
        self._stop_timer()

    def _nap(self) -> None:
        try_again, look_again_s = self._watch.nap()
        self._stop_timer()
        if try_again:
            self.wake_next()
        elif look_again_s is not None:
            self._timer = self._loop.call_later(look_again_s, self.wake_next)

    def _rung(self) -> None:
        self._watch.silence()
        self.wake_next()

    def _wake_all(self) -> None:
        while self.waiters:
            self.wake_next()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_queues: weakref.WeakSet[Queue[Any]] = weakref.WeakSet()


@functools.cache
def _open_again_after_fork() -> None:
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for queue in list(_queues):
        queue._after_fork()
