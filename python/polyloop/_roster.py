"""A pool's worker processes as Python sees them: starting each when the engine asks, and collecting its exit status.

Who is started, replaced or killed, and when, is the engine's decision.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from . import _codec, _core
from ._limits import OomKills
from ._stacks import Stacks
from ._worker import Plan, Recruit
from .context import CHILD_NAME, Setup, Starter, forget_parent_fd, register_parent_fd, start_process

__all__ = ["Roster", "WorkerProcess"]

# A forkserver passes an exit status on only after it has collected it, a moment after the process is gone.
STATUS_LOOKS = 6
FIRST_STATUS_WAIT_S = 0.002


class WorkerProcess:
    """One worker process of a pool, as `pool.processes` shows it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._ended = False

    @property
    def name(self) -> str:
        """The name of the process."""
        return str(self._process.name)

    @property
    def pid(self) -> int | None:
        """The process id; None while it is being started."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, `-N` when signal N ended the process; None before its end."""
        return self._process.exitcode if self._process.pid is not None else None

    def is_alive(self) -> bool:
        """Whether the process runs or is being started."""
        return not self._ended and (self._process.pid is None or self._process.is_alive())

    def terminate(self) -> None:
        """Send SIGTERM. The pool will start another worker in its place."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL. The pool will start another worker in its place."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        if self._process.pid is not None and self.is_alive():
            os.kill(self._process.pid, signum)

    def __repr__(self) -> str:
        return f"<WorkerProcess name={self.name!r} pid={self.pid}>"


class Roster:
    """Starts the workers of one pool on the starter thread, and reaps them."""

    def __init__(
        self,
        manager: _core.Manager,
        loop: asyncio.AbstractEventLoop,
        plan: Plan,
        context: BaseContext,
        preload: Sequence[str],
        oom_file: str | None = None,
    ) -> None:
        self._manager = manager
        self._oom_file = oom_file
        self._oom_kills: dict[int, OomKills] = {}
        self._loop = loop
        self._plan = plan
        self._context = context
        self._preload = preload
        self._method = str(self._context.get_start_method())
        self.stacks = Stacks(loop)
        self._workers: dict[int, WorkerProcess] = {}
        # The manager's ends of each worker's socket and lifeline. In a forked child they would keep alive what is gone.
        self.our_ends: dict[int, list[int]] = {}

    def start(self, key: int, socket: int, lifeline: int, our_ends: list[int]) -> WorkerProcess:
        """Have a worker process started; the descriptors are taken over."""
        self.our_ends[key] = our_ends
        for fd in our_ends:
            register_parent_fd(fd)
        recruit = Recruit(self._plan, Setup.capture(self._method), socket, lifeline, self.stacks.fd)
        process = self._context.Process(target=recruit, name=f"{CHILD_NAME}worker-{key >> 32}", daemon=False)  # type: ignore[attr-defined]
        worker = self._workers[key] = WorkerProcess(process)
        future = Starter.submit(
            functools.partial(_start, process, self._preload, recruit, socket, lifeline, self.stacks)
        )
        future.add_done_callback(functools.partial(self._started_on_thread, key))
        return worker

    def reap(self, key: int, reaped: Callable[[WorkerProcess], object], looks: int = STATUS_LOOKS) -> None:
        """Report the exit status of a worker whose process is gone, as soon as it is known."""
        worker = self._workers[key]
        exitcode = worker.exitcode
        if exitcode is None and looks:
            wait_s = FIRST_STATUS_WAIT_S * 2 ** (STATUS_LOOKS - looks)
            self._loop.call_later(wait_s, self.reap, key, reaped, looks - 1)
            return
        del self._workers[key]
        worker._ended = True
        # multiprocessing keeps an ended process, with its descriptors, until it is joined or another one is started.
        worker._process.join(0)
        reaped(worker)
        forget_ends(self.our_ends, key)
        oom_kills = self._oom_kills.pop(key, None)
        out_of_memory = exitcode == -signal.SIGKILL and oom_kills is not None and oom_kills.any_since()
        self._manager.exited(key, exitcode, out_of_memory=out_of_memory)

    def has_any(self, keys: Iterable[int]) -> bool:
        """Whether any of these workers is not gone."""
        return not self._workers.keys().isdisjoint(keys)

    def forget(self, key: int) -> WorkerProcess | None:
        """Drop a worker whose process could not be started."""
        return self._workers.pop(key, None)

    def _started_on_thread(self, key: int, started: Future[None]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._started, key, started)
        except RuntimeError:  # the loop is closed: whatever was started goes with its lifeline
            pass

    def _started(self, key: int, started: Future[None]) -> None:
        worker = self._workers[key]
        error = started.exception()
        if error is not None:
            worker._ended = True
            del self._workers[key]
            forget_ends(self.our_ends, key)
            self._manager.not_started(key, f"{type(error).__name__}: {error}")
            return
        process = worker._process
        assert process.pid is not None
        self._oom_kills[key] = OomKills(process.pid, self._oom_file)
        self._manager.started(key, process.pid, self._method != "forkserver", process.sentinel)


def _start(
    process: BaseProcess, preload: Sequence[str], recruit: Recruit, socket: int, lifeline: int, _kept: Stacks
) -> None:
    """On the starter thread. What `_kept` holds open goes to the child, too."""
    try:
        if recruit.setup is not None and recruit.setup.start_method == "fork":
            _codec.finish_imports()
        start_process(process, preload=preload)
    finally:
        os.close(socket)
        os.close(lifeline)
        recruit.close_payload()


def forget_ends(our_ends: dict[int, list[int]], key: int | None = None) -> None:
    """Before the manager closes its ends of one worker's descriptors, or of all: their numbers will mean others."""
    for each in [key] if key is not None else list(our_ends):
        for fd in our_ends.pop(each, ()):
            forget_parent_fd(fd)


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its cgroup."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return max(1, cpus if quota is None else min(cpus, quota))


def _cgroup_cpus() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return None
