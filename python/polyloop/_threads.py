"""Plain functions of tasks on threads of their worker: the loop goes on beside them.

A thread can't be ended from outside. Whoever runs in one is told by an exception, and waited for; what if that does not
help is the business of those who watch over cancelled tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from . import _core
from .current import current_worker, task_of_thread

__all__ = ["Threads"]


class Threads:
    """Runs functions on threads, which are made when needed and kept.

    Parameters:
        limit: how many may run at once: as many tasks as the worker runs.
        after_call: called on the thread when a function has ended.
    """

    def __init__(self, limit: int, after_call: Callable[[], object]) -> None:
        self._limit = limit
        self._after_call = after_call

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Call the function with these arguments in a copy of this context, and wait for its end.

        Cancelled, it has the function raise `CancelledError`, and goes on waiting.
        """
        context = contextvars.copy_context()
        context.run(task_of_thread.set, current_worker().task)
        call = _core.ThreadCall(context.run, (function, *args), kwargs)
        ended = asyncio.get_running_loop().run_in_executor(self._executor, self._work, call)
        while not ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError:
                call.interrupt(asyncio.CancelledError)
        ended.result()
        result = call.result()
        return await result if inspect.isawaitable(result) else result

    def _work(self, call: _core.ThreadCall) -> None:
        call.run()
        self._after_call()

    @functools.cached_property
    def _executor(self) -> Executor:
        from concurrent.futures import ThreadPoolExecutor

        return ThreadPoolExecutor(self._limit, thread_name_prefix="polyloop-task")
