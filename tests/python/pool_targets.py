"""What the workers of test_pool* run. Light to import, since every spawned worker imports it."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from rendezvous import block_at, open_gate, ring, wait_at

# ------------------------------------------------------------------------------------------------------------ functions


async def double(x: int) -> int:
    return 2 * x


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x


def add(x: int, y: int = 0) -> int:
    return x + y


async def add_async(x: int, y: int = 0) -> int:
    await asyncio.sleep(0)
    return x + y


async def pid() -> int:
    return os.getpid()


async def pid_of(_: object) -> int:
    await asyncio.sleep(0)
    return os.getpid()


def returns_awaitable(x: int) -> Any:
    return later(x)


class Custom:
    """An awaitable that is no coroutine."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.x


class Counter:
    def __init__(self, n: int) -> None:
        self.n = n

    def add(self, x: int) -> int:
        return self.n + x

    async def add_async(self, x: int) -> int:
        await asyncio.sleep(0)
        return self.n + x

    @staticmethod
    async def twice(x: int) -> int:
        return 2 * x

    @classmethod
    async def make(cls, n: int) -> Counter:
        return cls(n)


class AsyncCallable(Counter):
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        return self.n + x


class PlainCallable(Counter):
    def __call__(self, x: int) -> int:
        return self.n + x


async def generate() -> Any:
    yield 1


async def size(data: bytes) -> int:
    return len(data)


async def blob(length: int) -> bytes:
    return b"x" * length


async def raise_large(length: int) -> NoReturn:
    raise LookupError(b"x" * length)


async def echo(value: Any) -> Any:
    return value


# ----------------------------------------------------------------------------------------------------------- exceptions


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


async def fail_with_two_arguments() -> NoReturn:
    try:
        raise KeyError("root")
    except KeyError as root:
        error = TwoArguments(7, "seven")
        error.add_note("a note")
        raise error from root


def fail_plainly() -> NoReturn:
    raise LookupError("plain")


async def fail_later(x: int = 0) -> NoReturn:
    await asyncio.sleep(0)
    raise LookupError(x)


async def stop_iteration() -> NoReturn:
    raise StopIteration(3)


def stop_iteration_plainly() -> NoReturn:
    raise StopIteration(3)


async def exit_with(code: int, *, suspend: bool) -> NoReturn:
    if suspend:
        await asyncio.sleep(0)
    sys.exit(code)


def exit_plainly(code: int) -> NoReturn:
    sys.exit(code)


async def interrupt(*, suspend: bool) -> NoReturn:
    if suspend:
        await asyncio.sleep(0)
    raise KeyboardInterrupt


async def cancel_itself() -> NoReturn:
    raise asyncio.CancelledError


async def cancel_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


class RefusesToLoad(Exception):
    def __reduce__(self) -> Any:
        return _refuse, ("exception",)


class RefusesToBeLoaded:
    """Pickles, but is refused where it arrives."""

    def __reduce__(self) -> Any:
        return _refuse, ("value",)


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"this {what} refuses to be loaded")


async def raise_refusing() -> NoReturn:
    raise RefusesToLoad


async def return_refusing() -> RefusesToBeLoaded:
    return RefusesToBeLoaded()


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


async def raise_with_lock() -> NoReturn:
    raise HoldsALock


async def return_lock() -> Any:
    return threading.Lock()


async def group() -> NoReturn:
    raise ExceptionGroup("both", [TwoArguments(1, "one"), ValueError("two")])


# ---------------------------------------------------------------------------------------------------------------- tasks

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")
made: list[str] = []


async def task_of_its_own() -> tuple[bool, str, int]:
    """Whether the current task runs this very coroutine, its name, and how many tasks there are."""
    task = asyncio.current_task()
    assert task is not None
    return task.get_coro().cr_code is task_of_its_own.__code__, task.get_name(), id(task)  # type: ignore[union-attr]


async def meet_task(bell: str, gate: str) -> str:
    task = asyncio.current_task()
    assert task is not None
    ring(bell, "here")
    await wait_at(gate)
    assert asyncio.current_task() is task
    return task.get_name()


async def paint(value: str, *, suspend: bool) -> str:
    """Set a context variable, and return what it was."""
    before = color.get()
    color.set(value)
    if suspend:
        await asyncio.sleep(0)
    assert color.get() == value
    return before


def paint_plainly(value: str) -> str:
    before = color.get()
    color.set(value)
    return before


async def order(x: int, seen: list[int] = []) -> list[int]:  # noqa: B006 - remembered on purpose
    """The order in which first steps are run."""
    seen.append(x)
    result = list(seen)
    await asyncio.sleep(0)
    return result


def set_debug() -> None:
    asyncio.get_event_loop_policy().get_event_loop().set_debug(True)


def set_task_factory() -> None:
    def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
        task = asyncio.Task(coro, loop=loop, **kwargs)
        made.append(task.get_coro().__qualname__)  # type: ignore[union-attr]
        return task

    asyncio.get_event_loop_policy().get_event_loop().set_task_factory(factory)


async def tasks_made() -> list[str]:
    return made


async def leave_a_task_behind(bell: str) -> None:
    """A task that its own loop runs on after the item has ended."""

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ring(bell, "background task cancelled")
            raise

    made.append(asyncio.create_task(background()))  # type: ignore[arg-type]
    await asyncio.sleep(0)


async def debug_mode() -> bool:
    return asyncio.get_running_loop().get_debug()


async def loop_type() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


# ---------------------------------------------------------------------------------------------------- waiting and dying


async def wait_for_ever(bell: str, text: object = "started") -> None:
    asyncio.get_running_loop().call_soon(ring, bell, text)  # once this waits
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        ring(bell, "cancelled")
        raise


async def ignore_cancel(bell: str, gate: str) -> None:
    ring(bell, "started")
    while True:
        try:
            return await wait_at(gate)
        except asyncio.CancelledError:
            ring(bell, "ignored")


async def answer_cancel(bell: str) -> str:
    ring(bell, "started")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "finished all the same"
    return "never"


async def ring_pid_and_wait(bell: str, gate: str) -> int:
    ring(bell, os.getpid())
    await wait_at(gate)
    return os.getpid()


def ring_pid_and_block(bell: str, gate: str) -> int:
    ring(bell, os.getpid())
    block_at(gate)
    return os.getpid()


async def ring_and_return(bell: str, x: int) -> int:
    ring(bell, x)
    return x


async def kill_itself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


async def leave(code: int) -> NoReturn:
    os._exit(code)


async def die_once(mark: str) -> int:
    """Kills its worker, unless the file is there already."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


async def die_at(victim: int, x: int) -> int:
    if x == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0)
    return x


async def fail_at(victim: int, x: int) -> int:
    await asyncio.sleep(0)
    if x == victim:
        raise LookupError(x)
    return x


async def fail_or_wait(bell: str, gate: str, x: int) -> None:
    if x == 0:
        await wait_at(gate)
        raise LookupError(x)
    await wait_for_ever(bell, x)


async def value_or_wait(bell: str, x: int) -> int:
    if x:
        await wait_for_ever(bell, x)
    return x


async def wait_if(gate: str, victim: int, x: int) -> int:
    if x == victim:
        await wait_at(gate)
    return x


def meet(fifo: str, side: str) -> int:
    """Block until the other side has come; of use only where the two run at the same time."""
    with open(fifo, side + "b", buffering=0) as file:
        if side == "w":
            file.write(b".")
        else:
            assert file.read(1) == b"."
    return os.getpid()


async def meet_async(fifo: str, side: str) -> int:
    return meet(fifo, side)


async def block_or_open(gate: str, last: int, x: int) -> int:
    if x == 0:
        block_at(gate)
    elif x == last:
        open_gate(gate)
    return x


def append(path: str, x: object = "") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x}\n".encode())
    os.close(fd)


async def append_async(path: str, x: object = "") -> None:
    await asyncio.sleep(0)
    append(path, x)


# ------------------------------------------------------------------------------------------------ what workers are like

remembered: list[Any] = []


def remember(*values: Any) -> None:
    asyncio.get_event_loop_policy().get_event_loop()  # it is set before the initializer runs
    remembered.extend(values)


async def recall() -> list[Any]:
    return remembered


def append_pid(path: str) -> None:
    append(path, os.getpid())


def fail_to_start(path: str) -> NoReturn:
    append_pid(path)
    raise TwoArguments(1, "no database")


def leave_at_start(path: str) -> NoReturn:
    append_pid(path)
    os._exit(9)


def fail_to_start_if(mark: str) -> None:
    if os.path.exists(mark):
        raise TwoArguments(1, "no database")


def exit_at_start() -> NoReturn:
    sys.exit(3)


class Noter:
    """An exception handler that rings a bell."""

    def __init__(self, bell: str, *, fails: bool = False) -> None:
        self.bell = bell
        self.fails = fails

    def __call__(self, error: BaseException) -> None:
        ring(self.bell, f"{os.getpid()} {error!r}")
        if self.fails:
            raise RuntimeError("the handler itself")


async def environment(name: str) -> tuple[str | None, str]:
    return os.environ.get(name), os.getcwd()


_held: list[bytearray] = []


def hold_memory(size: int) -> int:
    _held.append(bytearray(b"x") * size)
    return os.getpid()


async def leak(size: int) -> int:
    await asyncio.sleep(0.05)
    return hold_memory(size)


def count_start_and_fail_if(path: str, mark: str) -> None:
    append(path, "")
    fail_to_start_if(mark)


def burn(cpu_s: float) -> None:
    while time.process_time() < cpu_s:
        pass


class Unloadable:
    """Can be sent, and not be loaded anywhere."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("no_such_module",)

    def __call__(self) -> None:
        raise NotImplementedError


async def ring_pid_then_block_later(bell: str, gate: str) -> int:
    await asyncio.sleep(0.05)
    return ring_pid_and_block(bell, gate)


def compute_for_ever() -> None:
    """Native code that keeps the interpreter's lock for very long."""
    sum(range(10**15))


async def first_then_fail_or_wait(bell: str, gate: str, x: int) -> int:
    """0 returns, 1 fails once it is let through, the rest wait for ever."""
    if x == 1:
        await wait_at(gate)
        raise LookupError(x)
    return await value_or_wait(bell, x)


async def wait_then_value(gate: str, x: int) -> int:
    await wait_at(gate)
    return x


async def fail_if_odd(x: int) -> int:
    await asyncio.sleep(0)
    if x % 2:
        raise LookupError(x)
    return x


async def misbehave(x: int) -> int:
    """Even ones return, the others fail in one way or another."""
    if x == 1:
        raise LookupError(x)
    if x == 3:
        await cancel_itself()
    if x == 5:
        await cancel_its_task()
    if x == 7:
        sys.exit(x)
    return x


async def call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return await function(*arguments)


async def fail_after(gate: str, x: int) -> NoReturn:
    await wait_at(gate)
    raise LookupError(x)


async def fail_at_gate(gate: str, x: int) -> int:
    if x == 0:
        await fail_after(gate, x)
    return x


async def ring_and_wait(bell: str, gate: str) -> str:
    ring(bell, "started")
    await wait_at(gate)
    return "waited"
