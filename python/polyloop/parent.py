"""`ParentPool`: the pool that runs a task, for that task to call. What place it has meanwhile, the engine decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from . import _core
from ._verbs import MAP_WINDOW, CallingPool
from .handle import TaskHandle
from .options import Options
from .results import PoolResult

if TYPE_CHECKING:
    from ._bridge import PoolExecutor

__all__ = ["ParentPool"]

_OTHER_THREAD = (
    "the pool's verbs are for the worker's event loop: on a thread use current_worker().pool.executor(), whose futures "
    "can be waited for there"
)


class ParentPool(CallingPool):
    """The pool that runs a task, with the verbs of `Pool`. Made by `current_worker().pool` and `parent_pool`.

    Its calls are tasks like those of the client: they wait in the same queues, and any worker runs them, also the one
    that runs their caller. From its first call until all are answered a task does not take a place among those that
    its worker runs at the same time, so tasks may call each other to any depth with any number of workers, also with
    one. It goes on as soon as what it awaits is there, beside whatever has its place then.

    A task that is cancelled, runs out of time or loses its worker takes its unanswered calls with it. Those of one that
    returns or raises go on, as they do in the client when a handle is dropped. A pool that closes takes the calls of
    the tasks that it has accepted. Calls run with the options of the pool, as `Pool` was given them, or with those of
    `options`; `max_pending` does not count them, and where there are several queues they go to that of their caller.

    A worker's tasks may have 65,536 calls unanswered, and 4,096 of its tasks may wait for some: whatever would be one
    more raises `PoolFull`.

    It is for the event loop of the worker, in coroutines and in plain functions that do not wait for what they submit.
    Plain functions that run `in_thread` use `executor`. There is no `stream`.

    >>> from polyloop import Pool, parent_pool
    >>> async def total(low, high):
    ...     if high - low == 1:
    ...         return low
    ...     middle = (low + high) // 2
    ...     return sum(await parent_pool().starmap(total, [(low, middle), (middle, high)]))
    >>> async def main():
    ...     async with Pool(1, childconcurrency=1) as pool:
    ...         return await pool.apply(total, (0, 10))
    >>> asyncio.run(main())
    45
    """

    def __init__(self, port: _core.CallPort, loop: asyncio.AbstractEventLoop, thread: int, options: Options) -> None:
        self._manager = port
        self._loop = loop
        self._thread = thread
        self._options = options
        self._maps: set[PoolResult[Any]] = set()
        self._room = None

    @property
    def _pool(self) -> ParentPool:
        return self

    def executor(self) -> PoolExecutor:
        """The standard library's `Executor` interface to the pool: for plain functions of tasks that run `in_thread`.

        Its futures must not be waited for on the thread of the worker's loop.

        >>> from polyloop import Pool, current_worker
        >>> def area(width, height):
        ...     return current_worker().pool.executor().submit(int.__mul__, width, height).result()
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.options(in_thread=True).apply(area, (6, 7))
        >>> asyncio.run(main())
        42
        """
        from ._bridge import PoolExecutor  # brings much with it that few need

        return PoolExecutor(self._loop, self, MAP_WINDOW, thread=self._thread)

    def _submit(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> TaskHandle[Any]:
        self._check_usable()
        handle: TaskHandle[Any] = TaskHandle(loop=self._loop)
        handle._manager = self._manager
        handle._token = self._manager.submit(func, args, kwargs or None, options.core, handle, self)
        return handle

    def _stream(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> NoReturn:
        raise NotImplementedError(
            "a task can't take a stream from the pool that runs it: submit a function that returns a list, or map one "
            "over the parts and take the results as they come"
        )

    def _check_usable(self) -> None:
        if not self._manager.is_ours:
            raise RuntimeError("this pool belongs to the worker that forked this process, which is no worker")
        if asyncio._get_running_loop() is not self._loop:
            raise RuntimeError(_OTHER_THREAD)

    def __repr__(self) -> str:
        return "<ParentPool>"
