"""The exceptions polyloop raises: one tree under `PolyloopError`.

Every class pickles with its attributes and has a message that says what happened and, where one is known, what to do.
What a task itself raises is not here: it reaches the caller as itself.
"""

from __future__ import annotations

import signal as _signal

__all__ = [
    "PoisonTask",
    "PolyloopError",
    "PoolClosed",
    "PoolFull",
    "PoolTerminated",
    "RemoteError",
    "TaskTimeout",
    "WorkerDied",
    "WorkerStartError",
]

NO_MAIN_GUARD = (
    "the program starts its processes again while they import its main module: "
    'put the code that starts pools and processes under `if __name__ == "__main__":`'
)

OUT_OF_MEMORY = "the kernel killed it: its memory limit was reached"


class PolyloopError(Exception):
    """The root of every error polyloop raises about its own work."""


class PoolClosed(PolyloopError, RuntimeError):
    """Work was given to a pool that accepts no more: it was closed, joined or terminated."""


class TaskTimeout(PolyloopError, TimeoutError):
    """A task ran longer than its `timeout`, counted in seconds over one attempt.

    It is a `TimeoutError`, so `except TimeoutError` catches it.

    >>> try:
    ...     raise TaskTimeout("fetch ran longer than 2 s")
    ... except TimeoutError as error:
    ...     print(error)
    fetch ran longer than 2 s
    """


class PoolTerminated(PolyloopError):
    """The pool was terminated while the task was queued or running."""


class PoolFull(PolyloopError):
    """The pool already holds `max_pending` unfinished tasks."""


class WorkerDied(PolyloopError):
    """The worker process that ran a task ended before the task did.

    Parameters:
        message: replaces the message made from the attributes.
        pid: the process that died.
        exitcode: its exit code, `-N` when signal N killed it, `None` when unknown.
        signal: the name of that signal ("SIGKILL"); taken from `exitcode` when left out.
        hint: what probably happened, in a few words; taken from the signal when left out.
        task: the name of the task it ran.
        attempt: which attempt at the task this was, from 1.

    >>> print(WorkerDied(pid=71, exitcode=-11, task="app:resize", attempt=2))
    worker 71 was killed by SIGSEGV while it ran app:resize (attempt 2): native code crashed
    >>> WorkerDied(pid=71, exitcode=3)
    WorkerDied(pid=71, exitcode=3)
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        signal: str | None = None,
        hint: str | None = None,
        task: str | None = None,
        attempt: int | None = None,
    ) -> None:
        super().__init__(*() if message is None else (message,))
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal if signal is not None else _signal_name(exitcode)
        self.hint = hint if hint is not None else _HINTS.get(self.signal or "")
        self.task = task
        self.attempt = attempt

    def __str__(self) -> str:
        """The message given, or one sentence made from the attributes."""
        if self.args:
            return str(self.args[0])
        worker = "a worker" if self.pid is None else f"worker {self.pid}"
        parts = [f"{worker} {self._end()}"]
        if self.task is not None:
            parts.append(f" while it ran {self.task}")
        if self.attempt is not None:
            parts.append(f" (attempt {self.attempt})")
        if self.hint:
            parts.append(f": {self.hint}")
        return "".join(parts)

    def __repr__(self) -> str:
        """The class, the message where one was given, and the attributes that are known."""
        given = [repr(arg) for arg in self.args]
        known = [f"{name}={getattr(self, name)!r}" for name in _ATTRIBUTES if getattr(self, name, None) is not None]
        return f"{type(self).__name__}({', '.join(given + known)})"

    def _end(self) -> str:
        if self.signal is not None:
            return f"was killed by {self.signal}"
        if self.exitcode is not None:
            return f"exited with code {self.exitcode}"
        return "died, how is unknown"


class PoisonTask(WorkerDied):
    """A task killed its worker each time it ran alone, and is not tried again."""


class WorkerStartError(PolyloopError):
    """Workers could not start: the interpreter, `initializer`, `loop_initializer` or `lifespan` failed.

    The failure itself is the `__cause__`.
    """


class RemoteError(PolyloopError):
    """Stands for a result or an exception that could not travel between processes.

    Parameters:
        type_name: the full name of its type ("app.models.Row").
        repr: its `repr`, shortened when long.
        traceback: the traceback in the worker as text, "" when there was none.
        reason: why it could not travel.

    >>> print(RemoteError("app.Oops", "Oops(1)", "", "cannot pickle '_thread.lock' object"))
    Oops(1) could not be passed between processes: cannot pickle '_thread.lock' object
    """

    def __init__(self, type_name: str = "", repr: str = "", traceback: str = "", reason: str = "") -> None:
        super().__init__(type_name, repr, traceback, reason)
        self.type_name = type_name
        self.repr = repr
        self.traceback = traceback
        self.reason = reason

    def __repr__(self) -> str:
        """The class and the attributes that are set; of the traceback, its last line."""
        parts = {name: getattr(self, name, "") for name in ("type_name", "repr", "traceback", "reason")}
        parts["traceback"] = parts["traceback"].rstrip().rpartition("\n")[2]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in parts.items() if value)})"

    def __str__(self) -> str:
        """The `repr` of what was lost, and why."""
        lost = self.repr or self.type_name or "a value"
        return f"{lost} could not be passed between processes" + (f": {self.reason}" if self.reason else "")


_ATTRIBUTES = ("pid", "exitcode", "signal", "hint", "task", "attempt")

_HINTS = {
    "SIGKILL": "another process killed it, or the kernel did",
    "SIGSEGV": "native code crashed",
    "SIGBUS": "native code crashed or a file it had mapped was cut short",
    "SIGILL": "native code was built for another CPU",
    "SIGFPE": "native code crashed",
    "SIGABRT": "native code gave up",
    "SIGXCPU": "it used up its CPU time limit",
    "SIGXFSZ": "it hit the file size limit",
}


def _signal_name(exitcode: int | None) -> str | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return _signal.Signals(-exitcode).name
    except ValueError:  # real-time signals have no member of their own
        return f"signal {-exitcode}"
