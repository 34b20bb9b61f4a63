"""A worker process from its first act to its last: joins its pool, runs what the pool gives it, and leaves in order.

What an item is and when it starts is the extension's business; who is started and replaced, the engine's. Imports are
light, as every worker pays for them.
"""

from __future__ import annotations

import _thread
import _weakrefset
import asyncio
import functools
import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from polyloop import _core

from . import _codec, current
from ._contextvars import Travelling, find_contextvars
from ._launch import Launch
from ._lifespan import Lifespan, run_until_done
from ._logs import Forwarder, dump_record
from ._produce import produce
from ._select import WorkerSelector, new_event_loop
from ._stacks import answer_by_stack
from ._threads import Threads
from .context import PassedFd, Setup

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .parent import ParentPool

__all__ = ["Plan", "Recruit", "join", "serve", "work"]

_log = logging.getLogger("polyloop")

ASLEEP, AGAIN, DEFER, LEAVE = range(4)
START_FAILED_EXITCODE = 1
NO_POOL_EXITCODE = 69  # it ended while this process was being started: what sysexits.h calls unavailable
BROKEN_EXITCODE = 70  # the pool's shared memory made no sense: what sysexits.h calls a software error


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user of a pool wants of its workers."""

    initializer: Callable[..., Any] | None = None
    initargs: Sequence[Any] = ()
    loop_initializer: Callable[[], asyncio.AbstractEventLoop] | None = None
    exception_handler: Callable[[BaseException], Any] | None = None
    grace_s: float = 0.0
    concurrency: int = 1
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None
    contextvars: Sequence[str] = ()
    log_levels: Mapping[str, int] | None = None
    """Of the client's loggers; None if it does not want the worker's records."""
    options: tuple[Any, ...] = ()
    """The pool's own, for tasks that call it."""


class Recruit(Launch):
    """A worker to be. Pickled while its process is being started, except under fork; called in the child."""

    def __init__(self, plan: Plan, setup: Setup, socket: int, lifeline: int, stacks: int) -> None:
        super().__init__(work, plan)
        self.setup = setup
        self.socket = PassedFd(socket)
        self.stacks = PassedFd(stacks)
        # Under fork a worker's siblings hold the other end too; there the kernel's word on the parent must do.
        self.lifeline = None if setup.start_method == "fork" else PassedFd(lifeline)

    def __getstate__(self) -> tuple[Any, ...]:
        return *super().__getstate__(), self.socket, self.stacks

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *state_of_launch, self.socket, self.stacks = state
        super().__setstate__(tuple(state_of_launch))

    def __call__(self) -> None:
        """Run in the child."""
        assert self.setup is not None
        self.setup.apply()
        lifeline = None if self.lifeline is None else self.lifeline.take()
        worker = join(self.socket.take(), lifeline, self.setup.parent_pid, is_direct_child=self.setup.is_direct_child)
        serve(worker, self.load, _codec.dump_exception, dump_record, self.stacks.take)


def join(
    socket: int, lifeline: int | None, parent_pid: int, *, is_direct_child: bool, dialect: str = "pickle"
) -> _core.Worker:
    """Tie this process to its parent, and connect it to its pool; if that is gone, leave."""
    try:
        _core.die_with_parent(lifeline, parent_pid, is_direct_child)
        return _core.Worker(socket, dialect=dialect)
    except ConnectionError:
        leave(NO_POOL_EXITCODE)


def serve(
    worker: _core.Worker,
    load: Callable[[], tuple[Callable[..., Any], Plan]],
    describe: Callable[[BaseException], bytes],
    dump: Callable[[logging.LogRecord], bytes],
    take_stacks: Callable[[], int],
) -> None:
    """Be a worker, from its user's first code to the last.

    Parameters:
        load: gives what takes the turns, and the plan.
        describe: how the pool is told why this worker can't be one.
        dump: how it is told what this worker logs.
        take_stacks: gives the file in which it looks for the stack of one that is blocked.
    """
    here = current.enter(worker)
    forwarder = None
    try:
        run, plan = load()
        if plan.log_levels is not None:
            forwarder = Forwarder(worker, plan.log_levels, dump)
            forwarder.stand_in()
        loop = prepare(plan)
        lifespan = None if plan.lifespan is None else open_lifespan(loop, plan)
    except BaseException as error:
        worker.failed(describe(error))
        leave(START_FAILED_EXITCODE)
    if forwarder is not None:
        forwarder.settle()
    answer_by_stack(take_stacks())
    if lifespan is None:
        run(worker, loop, plan, None)
    else:
        here.state = lifespan.state
        lifespan.context().run(run, worker, loop, plan, lifespan)


def _tasks() -> str:
    """How items get their Tasks. For those who suspect polyloop of a fault in theirs."""
    tasks = os.environ.get("POLYLOOP_TASKS", "lazy")
    if tasks not in ("lazy", "eager", "plain"):
        raise ValueError(f"POLYLOOP_TASKS can be lazy, eager or plain, not {tasks!r}")
    return tasks


def prepare(plan: Plan) -> asyncio.AbstractEventLoop:
    """Make the event loop, and run the user's initializer with it in place."""
    _tasks()
    loop = new_event_loop() if plan.loop_initializer is None else plan.loop_initializer()
    asyncio.set_event_loop(loop)
    if plan.initializer is not None:
        plan.initializer(*plan.initargs)
    find_contextvars(plan.contextvars)
    return loop


def open_lifespan(loop: asyncio.AbstractEventLoop, plan: Plan) -> Lifespan:
    """Enter the user's lifespan. On SIGTERM, this process ends with it."""
    assert plan.lifespan is not None
    lifespan = Lifespan(loop, plan.lifespan)
    try:
        lifespan.enter(functools.partial(_expect_end, plan.grace_s))
        if lifespan.terminated:
            lifespan.leave()
    finally:
        if lifespan.terminated:
            _die_of_sigterm()
    return lifespan


def work(worker: _core.Worker, loop: asyncio.AbstractEventLoop, plan: Plan, lifespan: Lifespan | None) -> None:
    """Take turns on the loop until the pool needs this worker no more, or SIGTERM."""
    selector = getattr(loop, "_selector", None)
    polls = isinstance(selector, WorkerSelector)
    turns = Turns(worker, loop, plan.grace_s, polls=polls)
    try:
        # A signal that another thread takes, or that comes just before the loop waits, interrupts nothing, and the
        # handler below would wait with the loop. In a process forked by a thread, CPython 3.13.0 runs it no earlier.
        loop.add_signal_handler(signal.SIGTERM, turns.end_at_once, signal.SIGTERM, None)
    except NotImplementedError:
        pass
    signal.signal(signal.SIGTERM, turns.end_at_once)
    signal.signal(worker.interrupt_signal, turns.interrupt)
    os.register_at_fork(after_in_child=turns.forked)
    loop.add_reader(worker.fileno(), turns.take)
    threads = Threads(plan.concurrency, turns.check_not_forked)
    producer = functools.partial(produce, threads)
    variables = find_contextvars(plan.contextvars)
    take_turn = None if polls else turns.take
    worker.start(
        loop, take_turn, _wait_for, threads.run, producer, variables, current.caller, plan.exception_handler, _tasks()
    )
    current.current_worker()._open_pool = functools.partial(_open_pool, worker, loop, turns.thread, plan)
    loop.call_soon(turns.take)
    if lifespan is not None:
        lifespan.on_early_end(turns.give_up)
    if isinstance(selector, WorkerSelector):
        selector.attach(worker, loop)
    turns.run()
    if isinstance(selector, WorkerSelector):
        selector.detach()
    loop.remove_reader(worker.fileno())
    if lifespan is not None and not turns.terminated:
        _expect_end(plan.grace_s)
    worker.end_calls()
    _close(loop, lifespan)
    # The pool may interrupt this process until it knows that all has ended, and an interpreter on its way out takes its
    # handlers away.
    signal.signal(worker.interrupt_signal, signal.SIG_IGN)
    if turns.terminated:
        _die_of_sigterm()
    if turns.broken:
        leave(BROKEN_EXITCODE)


def _open_pool(
    worker: _core.Worker, loop: asyncio.AbstractEventLoop, thread: int, plan: Plan, caller: int | None
) -> ParentPool:
    from .options import Options  # only who calls its pool pays for these
    from .parent import ParentPool

    capture = Travelling(plan.contextvars).capture if plan.contextvars else None
    return ParentPool(worker.call_port(caller, capture), loop, thread, Options(*plan.options))


class Turns:
    """Takes turns when the pool rings, when an item has ended, and as often as the last turn asked for."""

    def __init__(
        self, worker: _core.Worker, loop: asyncio.AbstractEventLoop, grace_s: float, *, polls: bool = False
    ) -> None:
        self.polls = polls  # the loop's selector sees by itself that another turn is due
        self.worker = worker
        self.loop = loop
        self.grace_s = grace_s
        self.thread = threading.get_ident()
        self.over = self.stopped = self.terminated = self.broken = self.deferring = False

    def run(self) -> None:
        """Run the loop until it is time to leave."""
        while not self.over:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # of a task, and reported as the task's; or our own, of end_at_once
        self.stopped = True

    def take(self) -> None:
        """Take one turn."""
        if self.over:
            self.stop()
            return
        try:
            next_turn = self.worker.turn()
        except Exception:
            if not self.worker.is_ours:
                leave_fork()
            _log.exception("worker %d lost its pool", os.getpid())
            self.broken = True
            next_turn = LEAVE
        if next_turn == AGAIN and not self.polls:
            self.loop.call_soon(self.take)
        elif next_turn == DEFER and not self.deferring:
            self.deferring = True
            self.loop.call_later(self.worker.defer_s, self.take_deferred)
        elif next_turn == LEAVE:
            self.over = True
            self.stop()

    def stop(self) -> None:
        """Have the loop return, once: a second time, some loops would keep for their next run."""
        if not self.stopped:
            self.stopped = True
            self.loop.stop()

    def take_deferred(self) -> None:
        """Take the turn that was put off."""
        self.deferring = False
        self.take()

    def forked(self) -> None:
        """In a process that a task forked: it may go on with the task, and with nothing else of this loop."""
        if threading.get_ident() != self.thread:
            return
        self.worker.part_from_parent(leave_fork)
        ready = getattr(self.loop, "_ready", None)
        if isinstance(ready, deque):
            ready.appendleft(asyncio.Handle(leave_fork, (), self.loop))
        else:
            self.loop.call_soon(leave_fork)

    def give_up(self) -> None:
        """What this worker runs is lost: what it needs is gone."""
        self.worker.abandon()
        self.over = self.broken = True
        self.stop()

    def check_not_forked(self) -> None:
        """After a function on another thread: what it forked and did not end must not take part."""
        if not self.worker.is_ours:
            leave_fork()

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """On the signal of the watchdog or the pool: end the item that runs, if its time is up or it is cancelled."""
        is_items = self.worker.is_in_native or _is_interruptible(frame)
        if is_items and not self.over and self.worker.interrupts():
            raise asyncio.CancelledError

    def end_at_once(self, _signum: int, frame: FrameType | None) -> None:
        """On SIGTERM: give up what runs, also where user code blocks the loop."""
        if self.over or self.worker.is_stopping:
            return  # it is leaving, or its tasks are: they may clean up within the pool's grace
        self.worker.abandon()
        self.over = self.terminated = True
        # The sender need not be the pool, and then nobody else would kill this process.
        _expect_end(self.grace_s)
        self.loop.call_soon_threadsafe(self.take)
        if self.worker.is_in_native or _is_in_user_code(frame):
            raise SystemExit(128 + signal.SIGTERM)


def _is_interruptible(frame: FrameType | None) -> bool:
    """Whether an exception raised here is raised in user code, not in what it may share with other items.

    Nor while a module is imported: half of one, or of what it imports, would stay for all items to come.
    """
    if frame is None or frame.f_code.co_filename.startswith(_MACHINERY) or not _is_in_user_code(frame):
        return False
    while frame is not None and frame.f_code is not _RUN:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return False
        frame = frame.f_back
    return True


def _expect_end(grace_s: float) -> None:
    """Have this process killed if it does not end within the grace."""
    # Not a `Thread`: starting one takes a lock, which the code that a signal interrupts may hold.
    _thread.start_new_thread(_kill_after, (grace_s,))


def _die_of_sigterm() -> None:
    """End in such a way that whoever sent the signal finds that it did its work."""
    _flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Blocked here, it would be another thread's to take, some time after this one has ended the process.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def _kill_after(grace_s: float) -> None:
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_in_user_code(frame: FrameType | None) -> bool:
    """Whether an exception raised here is an item's. Raised in the loop itself, it could lose a step of a task."""
    while frame is not None and frame.f_code is not _RUN:
        if not frame.f_code.co_filename.startswith(_MACHINERY):
            return True
        frame = frame.f_back
    return False


_RUN = Turns.run.__code__
_IMPORTS = "<frozen importlib."
# The sets of weak references in which asyncio keeps its tasks are cleared where an exception would only be printed.
_MACHINERY = (os.path.dirname(asyncio.__file__), os.path.dirname(__file__), selectors.__file__, _weakrefset.__file__)


def leave(exitcode: int) -> NoReturn:
    """End this process quietly, its streams flushed."""
    _flush()
    os._exit(exitcode)


def leave_fork() -> NoReturn:
    """End a process that a task forked and that came back to the worker's loop."""
    _log.error("process %d, which a task forked, came back from the task: it is no worker", os.getpid())
    leave(BROKEN_EXITCODE)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or never there
            pass


def _close(loop: asyncio.AbstractEventLoop, lifespan: Lifespan | None) -> None:
    """Cancel what user code left running on the loop, leave the lifespan, and let async generators and threads end."""
    if lifespan is not None:
        _cancel(loop, asyncio.all_tasks(loop) - lifespan.tasks)
        lifespan.leave()
    _cancel(loop, asyncio.all_tasks(loop))
    run_until_done(loop, loop.create_task(loop.shutdown_asyncgens()))
    run_until_done(loop, loop.create_task(loop.shutdown_default_executor()))
    asyncio.set_event_loop(None)
    signal.set_wakeup_fd(-1)  # the loop closes that descriptor first, and a SIGTERM just then would be complained about
    loop.close()


def _cancel(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        run_until_done(loop, asyncio.gather(*tasks, return_exceptions=True))


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    """What a plain function returned can be awaited."""
    return await awaitable
