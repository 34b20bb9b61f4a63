"""The lifespan of a worker: what its user opens before it takes work, and closes after.

It is one task of the worker's loop from its first line to its last, so that what belongs to a task - a timeout, a task
group - can be used in it. Tasks of the pool run in copies of its context.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = ["Lifespan", "run_until_done"]

_log = logging.getLogger("polyloop")


class Lifespan:
    """The lifespan of this process, on its loop.

    Parameters:
        factory: makes the asynchronous context manager.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, factory: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._entered: asyncio.Future[Any] = loop.create_future()
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self.terminated = False
        self.tasks: set[asyncio.Task[Any]] = set()
        """Itself, and what it has started before there was work."""

    @property
    def state(self) -> Any:
        """What it has yielded."""
        return self._entered.result()

    def enter(self, expect_end: Callable[[], object]) -> None:
        """Run the loop until there is a state to be used. SIGTERM cancels that.

        The handler of SIGTERM stays, for whoever comes next to replace.

        Parameters:
            expect_end: called when it is cancelled; whoever does not end soon is to be killed.

        Raises:
            BaseException: what the lifespan raises.
        """

        def end(_signum: int, _frame: object) -> None:
            self.terminated = True
            expect_end()
            self._loop.call_soon_threadsafe(task.cancel)

        task = self._task = self._loop.create_task(self._live(), context=self._context)
        signal.signal(signal.SIGTERM, end)
        _, pending = run_until_done(self._loop, self._loop.create_task(_first_of(task, self._entered)))
        if task not in pending:
            task.result()
            raise RuntimeError("the lifespan ended before it yielded")
        self.tasks = asyncio.all_tasks(self._loop)

    def context(self) -> contextvars.Context:
        """A context with all that the lifespan has set in its own."""
        return self._context.copy()

    def on_early_end(self, tell: Callable[[], object]) -> None:
        """Call `tell` if the lifespan ends before it is left."""

        def ended(task: asyncio.Task[None]) -> None:
            if not self._leaving.is_set():
                error = None if task.cancelled() else task.exception()
                _log.error("the lifespan of worker %d ended before its time", os.getpid(), exc_info=error)
                tell()

        assert self._task is not None
        self._task.add_done_callback(ended)

    def leave(self) -> None:
        """Run the loop until the lifespan has ended. What it raises is logged."""
        assert self._task is not None
        if self._task.done():
            return
        self._leaving.set()
        run_until_done(self._loop, self._loop.create_task(asyncio.wait([self._task])))
        if self._task.cancelled() or self._task.exception() is not None:
            error = None if self._task.cancelled() else self._task.exception()
            _log.error("the lifespan of worker %d failed as it ended", os.getpid(), exc_info=error)

    async def _live(self) -> None:
        async with self._factory() as state:
            self._entered.set_result(state)
            await self._leaving.wait()


async def _first_of(task: asyncio.Task[None], entered: asyncio.Future[Any]) -> Any:
    return await asyncio.wait([task, entered], return_when=asyncio.FIRST_COMPLETED)


def run_until_done(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> Any:
    """Run the loop until the future is done, whoever stops the loop before, and return what it returned."""
    while not future.done():
        try:
            loop.run_until_complete(future)
        except RuntimeError:
            if future.done():
                raise
    return future.result()
