"""Coroutines and functions on a pool of worker processes, each with an event loop of its own.

The public names only. They are imported when first used, so that a worker process pays for none it does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._stats import PoolStats, WorkerStats
    from .context import get_context, set_context, set_start_method
    from .current import CurrentTask, CurrentWorker, current_worker, parent_pool
    from .errors import (
        PoisonTask,
        PolyloopError,
        PoolClosed,
        PoolFull,
        PoolTerminated,
        RemoteError,
        TaskTimeout,
        WorkerDied,
        WorkerStartError,
    )
    from .executor import ProcessPoolExecutor
    from .handle import TaskHandle
    from .parent import ParentPool
    from .pool import Pool, WorkerProcess
    from .process import Process, Worker
    from .queue import Queue
    from .results import Outcome, PoolResult
    from .scheduler import QueueID, RoundRobin, Scheduler, TaskID
    from .stream import Stream

__version__ = "0.1.0"

__all__ = [
    "CurrentTask",
    "CurrentWorker",
    "Outcome",
    "ParentPool",
    "PoisonTask",
    "PolyloopError",
    "Pool",
    "PoolClosed",
    "PoolFull",
    "PoolResult",
    "PoolStats",
    "PoolTerminated",
    "Process",
    "ProcessPoolExecutor",
    "Queue",
    "QueueID",
    "RemoteError",
    "RoundRobin",
    "Scheduler",
    "Stream",
    "TaskHandle",
    "TaskID",
    "TaskTimeout",
    "Worker",
    "WorkerDied",
    "WorkerProcess",
    "WorkerStartError",
    "WorkerStats",
    "current_worker",
    "get_context",
    "parent_pool",
    "set_context",
    "set_start_method",
]

_HOMES = {
    "_stats": ("PoolStats", "WorkerStats"),
    "context": ("get_context", "set_context", "set_start_method"),
    "current": ("CurrentTask", "CurrentWorker", "current_worker", "parent_pool"),
    "errors": (
        "PoisonTask",
        "PolyloopError",
        "PoolClosed",
        "PoolFull",
        "PoolTerminated",
        "RemoteError",
        "TaskTimeout",
        "WorkerDied",
        "WorkerStartError",
    ),
    "executor": ("ProcessPoolExecutor",),
    "handle": ("TaskHandle",),
    "parent": ("ParentPool",),
    "pool": ("Pool", "WorkerProcess"),
    "process": ("Process", "Worker"),
    "queue": ("Queue",),
    "results": ("Outcome", "PoolResult"),
    "scheduler": ("QueueID", "RoundRobin", "Scheduler", "TaskID"),
    "stream": ("Stream",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
