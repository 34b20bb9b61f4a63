"""aiomultiprocess's `core` module: `Process` and `Worker`, and a context of their own, by default spawn."""

from __future__ import annotations

import multiprocessing
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import polyloop

__all__ = [
    "DEFAULT_START_METHOD",
    "Process",
    "Worker",
    "context",
    "get_context",
    "get_manager",
    "not_implemented",
    "set_context",
    "set_start_method",
]

DEFAULT_START_METHOD = "spawn"

context: BaseContext = multiprocessing.get_context(DEFAULT_START_METHOD)
_manager: SyncManager | None = None


def get_manager() -> SyncManager:
    """Return the one manager process of this program; it is started at the first call, and only by this function."""
    global _manager
    if _manager is None:
        _manager = context.Manager()
    return _manager


def set_start_method(method: str | None = DEFAULT_START_METHOD) -> None:
    """Choose how processes and pools made from now on start their processes; None for the platform's default."""
    global context
    context = multiprocessing.get_context(method)


def get_context() -> BaseContext:
    """Return the context that new processes and pools use."""
    return context


def set_context(method: str | None = None) -> None:
    """As `set_start_method`, but the platform's default when called without a method."""
    return set_start_method(method)


async def not_implemented(*args: Any, **kwargs: Any) -> None:
    """What a `Process` without a target runs."""
    raise NotImplementedError


class Process(polyloop.Process):
    """Runs a coroutine function on a process of its own. Parameters: as `polyloop.Process`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] = (),
        loop_initializer: Callable[..., Any] | None = None,
        process_target: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            group,
            target or not_implemented,
            name,
            args,
            kwargs,
            daemon=daemon,
            initializer=initializer,
            initargs=initargs,
            loop_initializer=loop_initializer,
            process_target=process_target,
            mp_context=context,
        )
        self._forks = context.get_start_method() == "fork"

    def __await__(self) -> Generator[Any, None, Any]:
        """Start the process if it was not, and wait for its end."""
        if self.pid is None:
            self.start()
        return self.join().__await__()

    def start(self) -> None:
        """Start the process, and return when it exists.

        Raises:
            AttributeError: the target cannot be imported by its name, and the child is not a fork.
        """
        if not self._forks and isinstance(self.unit.target, types.FunctionType):
            ForkingPickler.dumps(self.unit.target)
        super().start()


class Worker(Process, polyloop.Worker):
    """A `Process` that brings back what its coroutine returned, or the exception that it raised: not raised here."""

    @property
    def result(self) -> Any:
        """What the coroutine returned, or the exception that it raised.

        Raises:
            ValueError: the process has not ended.
        """
        if self.exitcode is None:
            raise ValueError("coroutine not completed")
        try:
            return super().result
        except BaseException as error:
            return error
