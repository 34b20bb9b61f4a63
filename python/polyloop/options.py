"""How the tasks of a pool are run: timeouts, retries, threads, and what they are called."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from . import _core
from .errors import WorkerDied

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How tasks are run. The parameters are those of `Pool` and of its `options`.

    Raises:
        ValueError: numbers that make no sense.
        TypeError: `retry_on` is not made of exceptions, or the name is no text.
    """

    timeout: float | None = None
    retries: int = 0
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = WorkerDied
    in_thread: bool = False
    name: str | None = None
    core: _core.TaskOptions = field(init=False, repr=False, compare=False)
    """The same for the engine."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise ValueError(f"timeout must be a number of seconds above 0, or None for any time, not {self.timeout!r}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {self.retries!r}")
        if not isinstance(self.name, str | None):
            raise TypeError(f"name must be a str, or None for that of the function, not {self.name!r}")
        reasons: tuple[Any, ...] = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        for reason in reasons:
            if not (isinstance(reason, type) and issubclass(reason, BaseException)):
                raise TypeError(f"retry_on must be an exception class or a tuple of them, not {reason!r}")
        raised = tuple(reason for reason in reasons if not issubclass(reason, WorkerDied))
        deaths = any(issubclass(WorkerDied, reason) for reason in reasons)
        core = _core.TaskOptions(self.retries, deaths, raised or None, self.timeout, bool(self.in_thread), self.name)
        object.__setattr__(self, "core", core)
