"""How processes come to be: the start method, the one thread that starts them, and what a child does first.

Built on the standard multiprocessing contexts. What a process then runs is not here (`process`, `_worker`), nor is the
supervision of workers (the engine).
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import queue
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_ready
from multiprocessing.context import BaseContext, get_spawning_popen
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, ClassVar, TypeVar

from . import _core
from .errors import NO_MAIN_GUARD

__all__ = [
    "CHILD_NAME",
    "DEFAULT_START_METHOD",
    "PassedFd",
    "Setup",
    "Starter",
    "check_main_guard",
    "check_preload",
    "forget_parent_fd",
    "get_context",
    "holding_forks",
    "register_parent_fd",
    "set_context",
    "set_start_method",
    "start_process",
]

DEFAULT_START_METHOD = "forkserver"
# Of a child's main module, multiprocessing says nothing before it is imported but its process's name.
CHILD_NAME = "polyloop-"
PRELOADED = ("polyloop._frozen",)
PATH_FINDER = "polyloop._preload"
EXIT_WAIT_S = 5.0
"""How long the interpreter's exit waits for processes that are being started."""

T = TypeVar("T")

_context: BaseContext | None = None


# ----------------------------------------------------------------------------------------------------------- contexts


def set_start_method(method: str | None = DEFAULT_START_METHOD) -> None:
    """Choose how processes and pools made from now on start their processes.

    Parameters:
        method: "forkserver" (the default: quick, and clean of this process's threads and locks), "spawn" (a new
            interpreter each time) or "fork" (a copy of this process); None for the platform's default.

    Raises:
        ValueError: there is no such method.

    >>> set_start_method("spawn")
    >>> get_context().get_start_method()
    'spawn'
    >>> set_start_method()
    >>> get_context().get_start_method()
    'forkserver'
    """
    global _context
    _context = multiprocessing.get_context(method)


def get_context(method: str | BaseContext | None = None) -> BaseContext:
    """Return the multiprocessing context that new processes and pools use.

    Parameters:
        method: the context of this start method instead, or this very context.

    Raises:
        ValueError: there is no such method.
        TypeError: neither a method nor a context.
    """
    global _context
    if isinstance(method, BaseContext):
        return method
    if method is not None:
        if not isinstance(method, str):
            raise TypeError(f"expected a start method or a multiprocessing context, not {method!r}")
        return multiprocessing.get_context(method)
    if _context is None:
        _context = multiprocessing.get_context(DEFAULT_START_METHOD)
    return _context


def set_context(method: str | None = None) -> None:
    """As `set_start_method`, but the platform's default when called without a method. Kept for older programs."""
    set_start_method(method)


def check_main_guard() -> None:
    """Refuse to start processes from a child that is still importing the program's main module.

    A child of ours leaves at once, without a word: its parent says what is wrong, once for all children.

    Raises:
        RuntimeError: that is where we are, in a child that others started: the program lacks its main guard.
    """
    process = multiprocessing.process.current_process()
    if getattr(process, "_inheriting", False):
        if process.name.startswith(CHILD_NAME):
            os._exit(_core.NO_MAIN_GUARD_EXITCODE)
        raise RuntimeError(NO_MAIN_GUARD)


# -------------------------------------------------------------------------------------------- what only a parent holds

# The write end of a child's lifeline must not live on in a forked sibling, or the parent's death would go unnoticed.
_parent_fds: set[int] = set()
_fork_lock = threading.RLock()


def register_parent_fd(fd: int) -> None:
    """Say that `fd` belongs to this process alone: every forked child closes it at once.

    To leave no gap between creating a descriptor and registering it, do both within `holding_forks()`.
    """
    _close_after_fork()
    _parent_fds.add(fd)


def forget_parent_fd(fd: int) -> bool:
    """Undo `register_parent_fd`, just before closing `fd`.

    Returns:
        Whether `fd` was registered in this process. If not, it is no longer ours (we are a forked child, where it was
        closed): the caller must not close it.
    """
    try:
        _parent_fds.remove(fd)
    except KeyError:
        return False
    return True


@contextmanager
def holding_forks() -> Iterator[None]:
    """No process is started by the `Starter` while this is held."""
    with _fork_lock:
        yield


@functools.cache
def _close_after_fork() -> None:
    os.register_at_fork(after_in_child=_close_parent_fds)


def _close_parent_fds() -> None:
    global _fork_lock
    _fork_lock = threading.RLock()
    while _parent_fds:
        try:
            os.close(_parent_fds.pop())
        except OSError:  # closed behind our back: nothing left to do
            pass


class PassedFd:
    """A file descriptor on its way to a child process, whatever the start method.

    Put it among a process's arguments; the child calls `take()` once. The parent keeps its own descriptor, which must
    stay open until the process has started.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._passed: Any = None

    def __getstate__(self) -> Any:
        """Hand the descriptor to the process that is being started.

        Raises:
            RuntimeError: no process is being started.
        """
        if get_spawning_popen() is None:
            raise RuntimeError("a file descriptor can be passed only to a process that is being started")
        return DupFd(self._fd)

    def __setstate__(self, passed: Any) -> None:
        """In the child: the descriptor is there, under a number that `take` finds out."""
        self._fd, self._passed = -1, passed

    def take(self) -> int:
        """Return the descriptor in the child, close-on-exec. It is the caller's from then on."""
        fd = self._fd if self._passed is None else self._passed.detach()
        assert isinstance(fd, int)
        os.set_inheritable(fd, False)
        return fd


# ------------------------------------------------------------------------------------------------ the child's first act


@dataclass(slots=True, frozen=True)
class Setup:
    """What a child needs to know of its parent as it is now; `apply()` is the first thing a child calls.

    A forkserver's children would otherwise see the environment and directory of the moment the server started.
    """

    environment: dict[str, str]
    directory: str | None
    parent_pid: int
    start_method: str

    @classmethod
    def capture(cls, start_method: str | None = None) -> Setup:
        """Take a snapshot of this process for a child that `start_method` (default: the context's) starts."""
        try:
            directory = os.getcwd()
        except OSError:
            directory = None
        method = start_method or get_context().get_start_method()
        assert method is not None
        return cls(dict(os.environ), directory, os.getpid(), method)

    @property
    def is_direct_child(self) -> bool:
        """Whether the new process is a child of the parent itself, not of its forkserver."""
        return self.start_method != "forkserver"

    def apply(self) -> None:
        """Make this process like its parent: environment and directory; then let SIGINT in."""
        if os.getpid() != self.parent_pid:
            _close_parent_fds()
            _leave_parents_loop()
        self._apply_environment()
        self._apply_directory()
        leave_ctrl_c_to_parent()

    def _apply_environment(self) -> None:
        for vanished in os.environ.keys() - self.environment.keys():
            del os.environ[vanished]
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value

    def _apply_directory(self) -> None:
        if self.directory is None:
            return
        try:
            os.chdir(self.directory)
        except OSError as error:
            warnings.warn(
                f"the parent's working directory {self.directory!r} cannot be entered ({error.strerror}): "
                f"process {os.getpid()} starts in another",
                RuntimeWarning,
                stacklevel=2,
            )


def leave_ctrl_c_to_parent() -> None:
    """Let SIGINT in, with a handler that does nothing.

    Not SIG_IGN, which programs that this process starts would inherit.
    """
    signal.signal(signal.SIGINT, _do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _leave_parents_loop() -> None:
    """In a forked child: signals must neither wake the parent's event loop nor be swallowed in its name."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        module = getattr(signal.getsignal(signum), "__module__", None) or ""
        if module.partition(".")[0] in ("asyncio", "uvloop"):
            signal.signal(signum, signal.SIG_DFL)


def _do_nothing(_signum: int, _frame: object) -> None:
    """The SIGINT handler of children."""


# ------------------------------------------------------------------------------------------------------------- starter


class Starter:
    """The one thread that starts this process's children.

    It outlives every child, since a child that asked to die with its parent dies with the *thread* that started it. It
    blocks SIGINT, so that Ctrl-C cannot hit a child before the child has said what to do about it. Made when first
    used, and again in a forked child. The interpreter's exit waits for what it has begun: a start that is cut off
    half-way leaves a forkserver that waits for descriptors, and fails loudly.
    """

    _by_pid: ClassVar[dict[int, Starter]] = {}

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @classmethod
    def submit(cls, job: Callable[[], T]) -> Future[T]:
        """Run `job` on the starter thread; jobs run one at a time, in order.

        Processes are started by `start`, or by `start_process` within a job of one's own: these make sure that SIGINT
        is blocked while a child is born.
        """
        starter = cls._by_pid.setdefault(os.getpid(), cls())
        future: Future[T] = Future()
        starter._jobs.put((job, future))
        starter._ensure_thread()
        return future

    @classmethod
    def start(cls, process: BaseProcess, *, preload: Sequence[str] = ()) -> Future[None]:
        """Start a multiprocessing process of any context.

        Parameters:
            preload: names of modules a new forkserver imports besides polyloop's own.

        Raises:
            RuntimeError: the program lacks its main guard.

        What else fails (a target that cannot be pickled, no memory) is the future's exception.
        """
        check_main_guard()
        return cls.submit(functools.partial(start_process, process, preload=preload))

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                atexit.register(self._finish)
                self._thread = threading.Thread(target=self._run, name="polyloop-starter", daemon=True)
                self._thread.start()

    def _finish(self) -> None:
        """At exit: wait until the jobs of this process are done."""
        if self._by_pid.get(os.getpid()) is self:
            wait([self.submit(lambda: None)], EXIT_WAIT_S)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while True:
            job, future = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del job, future  # hold nothing while waiting for the next


def start_process(process: BaseProcess, *, preload: Sequence[str] = ()) -> None:
    """Start a multiprocessing process. For jobs of the `Starter` only: it must run on that thread."""
    method = _method_of(process)
    if method != "fork":
        # Started on its own, it would unblock SIGINT in this thread in the middle of starting our child.
        multiprocessing.resource_tracker.ensure_running()
    if method == "forkserver":
        _choose_preload(preload)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with holding_forks() if method == "fork" else nullcontext(), _main_as_children_see_it():
        process.start()
    _make_poll_safe(process)


def _method_of(process: BaseProcess) -> str:
    method = getattr(process, "_start_method", None) or multiprocessing.get_start_method()
    return str(method)


def _choose_preload(preload: Sequence[str]) -> None:
    """Never `__main__`, which multiprocessing would take: forked random states and sockets. A user's choice stays."""
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_pid is None:
        modules = list(PRELOADED) if server._preload_modules == ["__main__"] else server._preload_modules
        if preload:
            modules = list(dict.fromkeys([PATH_FINDER, *PRELOADED, *modules, *preload]))
        multiprocessing.forkserver.set_forkserver_preload(modules)


def check_preload(preload: Sequence[str], context: BaseContext) -> tuple[str, ...]:
    """The modules that a forkserver is to import, if that can still be had.

    Raises:
        TypeError: not a sequence of names.
        ModuleNotFoundError: there is no such module.
    """
    if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
        raise TypeError(f"preload must be a sequence of module names, as in preload=('numpy',), not {preload!r}")
    for name in preload:
        # Not the module itself: to import it here is what its user wants to be spared.
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise ModuleNotFoundError(f"there is no module {name!r} to preload", name=name)
    server: Any = multiprocessing.forkserver._forkserver
    late = [] if server._forkserver_pid is None else [name for name in preload if name not in server._preload_modules]
    if late and context.get_start_method() == "forkserver":
        warnings.warn(
            f"{', '.join(late)} will not be preloaded: this program's forkserver runs already. "
            "Make the pool that preloads before all others",
            RuntimeWarning,
            stacklevel=3,
        )
    return tuple(preload)


@contextmanager
def _main_as_children_see_it() -> Iterator[None]:
    """Hide a `__main__.__file__` that names no file ("<stdin>"): multiprocessing's children would fail to run it."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if main is None or path is None or getattr(main, "__spec__", None) is not None or os.path.isfile(path):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


def _wait_for_end(popen: Any) -> None:
    """Block until the process has ended, leaving its exit status to be collected."""
    if popen.method == "forkserver":
        wait_ready([popen.sentinel])
        return
    try:
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # collected meanwhile
        pass


def _make_poll_safe(process: BaseProcess) -> None:
    """Let one thread at a time collect the exit code.

    Starting any process polls all others, on the starter thread. Of two polls at once the second finds nothing left:
    it would report "still running", or under forkserver replace the exit code by 255.
    """
    popen: Any = vars(process)["_popen"]
    lock = threading.Lock()
    collect: Callable[..., int | None] = type(popen).poll
    owner = weakref.ref(popen)

    def poll(flag: int = os.WNOHANG) -> int | None:
        popen = owner()
        if popen is None:
            return None
        if flag != os.WNOHANG and popen.returncode is None:  # wait first, without keeping others from looking
            _wait_for_end(popen)
        with lock:
            return collect(popen, flag)

    popen.poll = poll
