"""The names of aiomultiprocess's `types` module."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.queues
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from polyloop import QueueID, TaskID

__all__ = [
    "Context",
    "LoopInitializer",
    "PoolResult",
    "PoolTask",
    "ProxyException",
    "Queue",
    "QueueID",
    "R",
    "T",
    "TaskID",
    "TracebackStr",
    "Unit",
]

T = TypeVar("T")
R = TypeVar("R")

Context = multiprocessing.context.BaseContext
Queue = multiprocessing.queues.Queue

TracebackStr = str

LoopInitializer = Callable[..., AbstractEventLoop]
PoolTask = tuple[TaskID, Callable[..., Any], Sequence[Any], Mapping[str, Any]] | None
PoolResult = tuple[TaskID, Any, TracebackStr | None]


class Unit(NamedTuple):
    """What a child process is to run. `namespace` was a manager's, and is None: there is no manager."""

    target: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    namespace: Any = None
    initializer: Callable[..., Any] | None = None
    initargs: Sequence[Any] = ()
    loop_initializer: LoopInitializer | None = None
    runner: Callable[..., Any] | None = None


class ProxyException(Exception):
    """A task failed; the traceback in its worker, as text."""
