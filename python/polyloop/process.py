"""`Process` and `Worker`: one coroutine on one process of its own.

Not a pool: nothing is queued, retried or restarted here. A child dies with its parent, and nothing polls: `join` waits
on a descriptor that becomes readable when the process ends.

A Worker's outcome comes back through a memory file (memfd) made for it. Unlike a pipe it never fills up: a child with a
large result ends without waiting for a reader, even one that is gone; and the parent reads only what is complete.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import multiprocessing
import os
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple, NoReturn

from . import _codec, _core
from ._launch import Handles, Launch, read_memory_file
from .context import CHILD_NAME, PassedFd, Setup, Starter, check_main_guard, get_context, start_process
from .errors import NO_MAIN_GUARD, WorkerDied, WorkerStartError

__all__ = ["Process", "Unit", "Worker", "not_implemented"]

LOST_EXITCODE = 255  # what multiprocessing says, too, when someone else collected the exit status


class Unit(NamedTuple):
    """What a child process is to run."""

    target: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    initializer: Callable[..., Any] | None = None
    initargs: Sequence[Any] = ()
    loop_initializer: Callable[[], asyncio.AbstractEventLoop] | None = None


async def not_implemented(*args: Any, **kwargs: Any) -> NoReturn:
    """What a `Process` without a target runs."""
    raise NotImplementedError("this process was given no target")


class Process:
    """Runs a coroutine function on a process of its own, with an event loop of its own.

    Parameters:
        group: None; there for the sake of `threading.Thread`'s signature.
        target: the coroutine function. Under spawn and forkserver it travels by name where it can be imported, else
            by value, together with what it captures.
        name: the name of the process.
        args, kwargs: what `target` is called with. Queues, locks and pipes of multiprocessing may be among them.
        daemon: whether the process is killed at exit instead of waited for; None: as this process is.
        initializer, initargs: a plain function that runs first, its loop being set.
        loop_initializer: makes the event loop ("uvloop.new_event_loop").
        process_target: called in the child with the `Unit` instead of `Process.run_async`.
        mp_context: a multiprocessing context or the name of a start method; None for the one of `set_start_method`.

    Raises:
        ValueError: `target` is no coroutine function, or an initializer is one.

    >>> async def main():
    ...     process = Process(target=asyncio.sleep, args=(0,))
    ...     process.start()
    ...     await process.join()
    ...     return process.exitcode
    >>> asyncio.run(main())
    0
    """

    _has_outcome = False

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
        loop_initializer: Callable[[], asyncio.AbstractEventLoop] | None = None,
        process_target: Callable[[Unit], Any] | None = None,
        mp_context: BaseContext | str | None = None,
    ) -> None:
        if target is not None and not _is_coroutine_function(target):
            raise ValueError("target must be coroutine function")
        if initializer is not None and _is_coroutine_function(initializer):
            raise ValueError("initializer must be synchronous function")
        if loop_initializer is not None and _is_coroutine_function(loop_initializer):
            raise ValueError("loop_initializer must be synchronous function")
        self.unit = Unit(target or not_implemented, args or (), kwargs or {}, initializer, initargs, loop_initializer)
        self._launch = Launch(process_target or Process.run_async, self.unit)
        self._handles: Handles | None = None
        self._exit_fd = -1
        context = get_context(mp_context)
        self.aio_process = context.Process(  # type: ignore[attr-defined]
            group=group, target=self._launch, name=name, daemon=daemon
        )
        self.aio_process.name = CHILD_NAME + self.aio_process.name  # taken off again in the child
        self._start_method = context.get_start_method()

    def __await__(self) -> Generator[Any, None, Any]:
        """Start the process if it was not, and wait for its end."""
        return self._start_and_join().__await__()

    @staticmethod
    def run_async(unit: Unit) -> Any:
        """Run the unit's coroutine on a new event loop; called in the child."""
        with asyncio.Runner(loop_factory=unit.loop_initializer) as runner:
            asyncio.set_event_loop(runner.get_loop())
            try:
                if unit.initializer is not None:
                    unit.initializer(*unit.initargs)
                return runner.run(_call(unit))
            finally:
                asyncio.set_event_loop(None)

    def start(self) -> None:
        """Start the process, and return when it exists. Blocks the calling thread; `await process` does not.

        Raises:
            TypeError: the target or an argument cannot be sent to a new process.
            RuntimeError: the program lacks its main guard.
            AssertionError: it was started before.
        """
        self._begin().result()

    async def join(self, timeout: float | None = None) -> Any:
        """Wait until the process has ended.

        Parameters:
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            ValueError: it was not started.
            TimeoutError: it still runs; it is left alone.
            WorkerStartError: the program lacks its main guard.
        """
        if self.pid is None:
            raise ValueError("must start process before joining it")
        async with asyncio.timeout(timeout):
            await self._ended()
        if self.exitcode == _core.NO_MAIN_GUARD_EXITCODE:
            raise WorkerStartError(NO_MAIN_GUARD)

    @property
    def name(self) -> str:
        """The name of the process."""
        return str(self.aio_process.name).removeprefix(CHILD_NAME)

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return bool(self.aio_process.is_alive())

    @property
    def daemon(self) -> bool:
        """Whether the process is killed at exit instead of waited for. Can be set until it is started."""
        return bool(self.aio_process.daemon)

    @daemon.setter
    def daemon(self, value: bool) -> None:
        self.aio_process.daemon = value

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        pid: int | None = self.aio_process.pid
        return pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, `-N` when signal N ended the process; None before its end."""
        code: int | None = self.aio_process.exitcode
        return code

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends, for `multiprocessing.connection.wait`."""
        return int(self.aio_process.sentinel)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.aio_process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.aio_process.kill()

    def close(self) -> None:
        """Release what the ended process holds here; nothing but `name` and `daemon` can be asked of it afterwards.

        Raises:
            ValueError: it still runs.
        """
        self.aio_process.close()
        if self._handles is not None:
            self._handles.release()

    def __getstate__(self) -> dict[str, Any]:
        """A subclass's bound method may be the target: the child gets the attributes, not the handles."""
        return {k: v for k, v in vars(self).items() if k not in _STAYS_IN_PARENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the child, this object speaks of the process it runs in."""
        vars(self).update(state)
        self.aio_process = multiprocessing.current_process()

    async def _start_and_join(self) -> Any:
        if self.pid is None:
            await asyncio.shield(asyncio.wrap_future(self._begin()))
        return await self.join()

    def _begin(self) -> Future[None]:
        check_main_guard()
        assert self.pid is None, "cannot start a process twice"
        launch, handles = self._launch, Handles(has_outcome=self._has_outcome)
        launch.setup = Setup.capture(self._start_method)
        launch.lifeline = PassedFd(handles.childs_end)
        launch.outcome = PassedFd(handles.outcome) if self._has_outcome else None
        self._handles = handles
        return Starter.submit(functools.partial(self._start_here, handles))

    def _start_here(self, handles: Handles) -> None:
        """On the starter thread."""
        try:
            start_process(self.aio_process)
        except BaseException:
            handles.release()
            raise
        finally:
            handles.close_childs_end()
            self._launch.close_payload()
        self._exit_fd = self._open_exit_fd(handles)
        # Tied to multiprocessing's object, which lives on while the process does, even if this one is dropped.
        weakref.finalize(self.aio_process, handles.release).atexit = False

    def _open_exit_fd(self, handles: Handles) -> int:
        """The sentinel of a direct child is a pipe that its own forked children hold open as well; a pidfd is not."""
        if self._start_method != "forkserver":
            try:
                handles.pidfd = os.pidfd_open(int(self.aio_process.pid))
                return handles.pidfd
            except OSError:  # gone and collected already: the sentinel says so too
                pass
        return self.sentinel

    async def _ended(self) -> None:
        if self.exitcode is not None:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        fd = os.dup(self._exit_fd)  # a loop watches a descriptor once, and there may be other joiners
        loop.add_reader(fd, _set_done, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if self.exitcode is None:
            self.aio_process._popen.returncode = LOST_EXITCODE


_STAYS_IN_PARENT = {"aio_process", "_launch", "_handles", "_exit_fd"}


class Worker(Process):
    """A `Process` that brings back what its coroutine returned, or raises what it raised.

    Parameters: as `Process`.

    Raises, when awaited or joined:
        WorkerDied: the process ended without an outcome: killed, or by `os._exit`.
        RemoteError: the outcome could not be pickled.

    >>> async def main():
    ...     return await Worker(target=asyncio.sleep, args=(0, "slept"))
    >>> asyncio.run(main())
    'slept'
    """

    _has_outcome = True
    _outcome: tuple[Any, BaseException | None] | None = None

    async def join(self, timeout: float | None = None) -> Any:
        """Wait until the process has ended, and return or raise as its coroutine did.

        Parameters:
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            ValueError: it was not started.
            TimeoutError: it still runs; it is left alone.
            WorkerDied: it ended without an outcome.
            WorkerStartError: the program lacks its main guard.
        """
        await super().join(timeout)
        return self.result

    @property
    def result(self) -> Any:
        """What the coroutine returned.

        Raises:
            ValueError: the process has not ended.
            BaseException: what the coroutine raised, or WorkerDied.
        """
        if self._outcome is None:
            if self.exitcode is None:
                raise ValueError("coroutine not completed")
            self._outcome = self._read_outcome()
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def _read_outcome(self) -> tuple[Any, BaseException | None]:
        assert self._handles is not None
        found = read_memory_file(self._handles.outcome)
        self._handles.release()
        if found is None:
            hint = None if (self.exitcode or 0) < 0 else "it left without an outcome, as by os._exit"
            task = getattr(self.unit.target, "__qualname__", None) or repr(self.unit.target)
            return None, WorkerDied(pid=self.pid, exitcode=self.exitcode, hint=hint, task=task)
        raised, data = found
        if raised:
            return None, _codec.load_exception(data)
        try:
            return _codec.loads(data), None
        except Exception as error:
            return None, _codec.load_exception(_codec.dump_unsendable(self.unit.target, error))


async def _call(unit: Unit) -> Any:
    return await unit.target(*unit.args, **unit.kwargs)


def _is_coroutine_function(func: Any) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def _set_done(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
