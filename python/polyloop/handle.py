"""`TaskHandle`: what `submit` gives back, a future of the client's loop. Waits for nothing itself: asyncio does."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from . import _core

__all__ = ["TaskHandle"]

R = TypeVar("R")


class TaskHandle(asyncio.Future[R]):
    """A task given to a pool by `submit`: an `asyncio.Future` of what the task returns or raises.

    Await it, or give it to whatever takes futures: `asyncio.wait`, `as_completed`, `gather`, `wait_for`, `shield`. To
    drop it does not cancel the task. As with an `asyncio.Task`, an exception that nobody asks for is logged.

    >>> from polyloop import Pool
    >>> async def main():
    ...     async with Pool(1) as pool:
    ...         handles = [pool.submit(pow, 2, n) for n in range(4)]
    ...         return await asyncio.gather(*handles)
    >>> asyncio.run(main())
    [1, 2, 4, 8]
    """

    __slots__ = ("_manager", "_message", "_token")

    _manager: _core.Manager | _core.CallPort
    _token: int
    _message: Any

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task: queued, it never starts; running, it gets `CancelledError`.

        As with an `asyncio.Task` that is a request: the handle is done when the task has ended, or after the pool's
        grace; and a task that returns in spite of it has returned.

        Returns:
            False if the handle is done.

        >>> from polyloop import Pool
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         handle = pool.submit(asyncio.sleep, 30)
        ...         handle.cancel()
        ...         await asyncio.wait([handle])
        ...         return handle.cancelled()
        >>> asyncio.run(main())
        True
        """
        if self.done():
            return False
        if self._manager.request_cancel(self._token, self):
            self._message = msg
            return True
        # The pool says so itself: the task has ended.
        return super().cancel(getattr(self, "_message", msg))
