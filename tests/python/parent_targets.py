"""What workers run in test_parent_pool.py."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import sys
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import numpy as np

from polyloop import ParentPool, PoolFull, TaskHandle, TaskTimeout, WorkerDied, current_worker, parent_pool
from rendezvous import ring, wait_at

color = contextvars.ContextVar("color", default="none")


async def double(number: int) -> int:
    return 2 * number


async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def plain_double(number: int) -> int:
    return 2 * number


async def pid() -> int:
    return os.getpid()


# ------------------------------------------------------------------------------------------------------------ the verbs


async def every_verb(number: int) -> list[Any]:
    pool = current_worker().pool
    handle = pool.submit(double, number)
    named = pool.options(name="twice", timeout=30, retries=1)
    return [
        await pool.apply(double, (number,)),
        await pool.apply(double_later, kwds={"number": number}),
        await pool.apply(plain_double, [number]),
        await handle,
        await pool.map(double, range(number)),
        await pool.starmap(pow, [(number, 2), (number, 3)]),
        await named.submit(task_name),
        await pool.options(in_thread=True).apply(plain_double, (number,)),
        type(handle) is TaskHandle,
    ]


async def task_name() -> str:
    task = current_worker().task
    return "" if task is None else task.name


async def results_of_a_map() -> list[Any]:
    pool = parent_pool()
    async with pool.map(reciprocal, [2, 0, 4]).outcomes() as outcomes:
        seen = {outcome.index: outcome.value or type(outcome.error) async for outcome in outcomes}
    unordered = {number async for number in pool.map(double, range(20)).unordered()}
    in_order = [number async for number in pool.map(double, numbers(300))]
    kept = await pool.map(reciprocal, [1, 0], return_exceptions=True)
    return [seen, unordered, in_order, kept[0], type(kept[1])]


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def reciprocal(number: int) -> float:
    return 1 / number


async def first_failure_of_a_map() -> str:
    try:
        await parent_pool().map(reciprocal, [1, 0, *range(1, 500)])
    except ZeroDivisionError as error:
        return str(error)
    return "none"


async def sum_of_map(count: int) -> int:
    return sum(await parent_pool().map(double, range(count)))


async def leave_a_map_early(bell: str, count: int) -> int:
    async with parent_pool().map(return_or_wait, [(bell, at) for at in range(count)]) as results:
        async for number in results:
            return number
    return -1


async def return_or_wait(what: tuple[str, int]) -> int:
    bell, at = what
    if at == 0:
        return 7
    try:
        ring(bell, "waits")
        await asyncio.Event().wait()
    finally:
        ring(bell, "cancelled")
    return 0


# ------------------------------------------------------------------------------------------------------------ recursion


async def fib(n: int) -> int:
    if n < 2:
        return n
    pool = current_worker().pool
    first, second = pool.submit(fib, n - 1), pool.submit(fib, n - 2)
    return await first + await second


async def fib_by_others(n: int) -> int:
    """The pool is asked for by what the task has started, and only there."""
    return n if n < 2 else sum(await asyncio.gather(_fib(n - 1), _fib(n - 2)))


async def _fib(n: int) -> int:
    return await parent_pool().apply(fib_by_others, (n,))


async def deeper(n: int) -> int:
    try:
        return await parent_pool().apply(deeper, (n + 1,))
    except PoolFull:
        return n


# --------------------------------------------------------------------------------------------------------------- errors


class Odd(LookupError):
    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.code = code


async def raises() -> NoReturn:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise Odd("odd", 5) from error


async def catches() -> list[Any]:
    try:
        await parent_pool().apply(raises)
    except Odd as error:
        return [error.args, error.code, repr(error.__cause__)]
    return []


async def passes_on() -> NoReturn:
    await parent_pool().apply(raises)
    raise AssertionError


async def error_of(what: str) -> list[Any]:
    pool = parent_pool()
    calls: dict[str, Any] = {
        "unsendable result": lambda: pool.apply(make_unsendable),
        "unsendable argument": lambda: pool.apply(double, (_generator(),)),
        "coroutine": lambda: pool.apply(double(1)),  # type: ignore[call-overload]
        "text": lambda: pool.apply(double, "1"),
        "time": lambda: pool.options(timeout=0.05).apply(asyncio.sleep, (60,)),
        "stream": lambda: _stream(pool),
        "exit": lambda: pool.apply(sys.exit, (3,)),
    }
    try:
        await calls[what]()
    except (Exception, SystemExit) as error:
        return [type(error).__name__, str(error)]
    return []


async def _stream(pool: ParentPool) -> None:
    async for _ in pool.stream(numbers, 1):
        pass


def _generator() -> Iterator[int]:
    yield 1


def make_unsendable() -> Iterator[int]:
    return _generator()


async def calls_one_that_dies(retries: int, mark: str) -> list[Any]:
    """What came of the calls that another worker ran: one of them has ended it."""
    pool, own = parent_pool().options(retries=retries), os.getpid()
    while True:
        calls = await pool.starmap(dies_once, [(own, mark)] * 8, return_exceptions=True)
        results: list[Any] = [call for call in calls if call != "own"]
        if results:
            return [[error.task, error.exitcode] if isinstance(error, WorkerDied) else error for error in results]


async def dies_once(own: int, mark: str) -> str:
    if os.getpid() == own:
        await asyncio.sleep(0.02)
        return "own"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "again"
    os._exit(9)


async def kills_its_worker_by_a_call(runs: str) -> None:
    _note(runs)
    await parent_pool().options(retries=5).apply(kill, (os.getpid(),))


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def _note(path: str) -> int:
    fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR)
    os.write(fd, b".")
    size = os.fstat(fd).st_size
    os.close(fd)
    return size


async def raises_often(path: str, times: int) -> int:
    runs = _note(path)
    if runs <= times:
        raise Odd("again", runs)
    task = current_worker().task
    return -1 if task is None else task.attempt


async def retries_a_call(path: str, times: int) -> int:
    return await parent_pool().options(retries=3, retry_on=(Odd,)).apply(raises_often, (path, times))


async def is_retried(path: str) -> int:
    """Raises once, with a call under way; then returns how many of them were cancelled."""
    pool = parent_pool()
    if _note(path) == 1:
        started = f"{path}.started"
        pool.submit(notes_its_end, started, f"{path}.cancelled")
        while not os.path.exists(started):
            await asyncio.sleep(0.001)
        raise Odd("once", 1)
    while not os.path.exists(f"{path}.cancelled"):
        await asyncio.sleep(0.001)
    return await pool.apply(double, (1,))


async def notes_its_end(started: str, cancelled: str) -> None:
    _note(started)
    try:
        await asyncio.Event().wait()
    finally:
        _note(cancelled)


# ----------------------------------------------------------------------------------------------------- cancels and ends


async def waits(bell: str, name: str) -> None:
    loop = asyncio.get_running_loop()
    try:
        # Once it waits: a SIGTERM that came in the midst of this would end it here.
        loop.call_soon(ring, bell, f"{name} {os.getpid()}")
        await asyncio.Event().wait()
    finally:
        ring(bell, f"{name} cancelled")


async def calls_and_waits(bell: str, how: str) -> None:
    pool = parent_pool()
    calls = [pool.submit(waits, bell, f"call{at}") for at in range(2)]
    if how == "apply":
        await pool.apply(waits, (bell, "call2"))
    elif how == "gather":
        await asyncio.gather(*calls)
    elif how == "map":
        await pool.starmap(waits, [(bell, "call2")])
    else:
        await asyncio.Event().wait()


async def catches_a_timeout(bell: str) -> str:
    try:
        async with asyncio.timeout(0.1):
            await parent_pool().apply(waits, (bell, "call"))
    except TimeoutError:
        return "timeout"
    return "none"


async def cleans_up(bell: str) -> None:
    try:
        ring(bell, "waits")
        await asyncio.Event().wait()
    finally:
        ring(bell, await parent_pool().apply(double, (21,)))


async def calls_at_gate(gate: str, bell: str, count: int) -> int:
    ring(bell, os.getpid())
    await wait_at(gate)
    return sum(await parent_pool().map(double, range(count)))


async def has_one_wait_at_gate(gate: str, bell: str) -> int:
    await parent_pool().apply(rings_and_waits, (gate, bell))
    return os.getpid()


async def rings_and_waits(gate: str, bell: str) -> None:
    ring(bell, os.getpid())
    await wait_at(gate)


async def leaves_calls_behind(bell: str, gate: str) -> str:
    for _ in range(3):
        parent_pool().submit(rings_when_let, bell, gate)
    return "left"


async def rings_when_let(bell: str, gate: str) -> None:
    await wait_at(gate)
    ring(bell, "done")


# ------------------------------------------------------------------------------------------------- where it can be used


def from_a_thread(number: int) -> list[Any]:
    pool = current_worker().pool
    try:
        pool.submit(double, number)
    except RuntimeError as error:
        refused = str(error)
    executor = pool.executor()
    return [executor.submit(double, number).result(), list(executor.map(double, range(3))), refused]


async def from_a_thread_of_its_own(number: int) -> Any:
    return await asyncio.to_thread(from_a_thread, number)


def recursion_on_threads(n: int) -> int:
    if n < 2:
        return n
    submit = current_worker().pool.executor().submit
    first, second = submit(_on_thread, n - 1), submit(_on_thread, n - 2)
    return first.result() + second.result()


async def _on_thread(n: int) -> int:
    return await parent_pool().options(in_thread=True).apply(recursion_on_threads, (n,))


def plainly(bell: str) -> str:
    pool = current_worker().pool
    pool.submit(ring, bell, "from a plain function")
    try:
        pool.executor().submit(double, 1).result()
    except RuntimeError as error:
        return str(error)
    return ""


def returns_a_handle(number: int) -> Any:
    return parent_pool().submit(double, number)


def _refusal() -> str:
    try:
        parent_pool()
    except RuntimeError as error:
        return str(error)
    return ""


said = ""


def initialise() -> None:
    global said
    said = _refusal()


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, str]]:
    state = {"entering": _refusal()}

    async def beside() -> None:
        await asyncio.sleep(0)
        state["beside"] = _refusal()

    beside_it = asyncio.create_task(beside())
    yield state
    await beside_it


async def what_was_said() -> list[str]:
    return [said, *current_worker().state.values()]


_left: list[Any] = []


async def leaves_itself_behind() -> None:
    pool = parent_pool()

    async def later() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        try:
            await pool.apply(double, (1,))
        except RuntimeError as error:
            return str(error)
        return ""

    _left.append(asyncio.create_task(later()))


async def what_was_left() -> str:
    return str(await _left.pop())


async def in_a_group(count: int) -> int:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(_double(number)) for number in range(count)]
    return sum(call.result() for call in calls)


async def _double(number: int) -> int:
    return await current_worker().pool.apply(double, (number,))


# --------------------------------------------------------------------------------------------------------- what travels


async def by_value(number: int) -> list[Any]:
    async def local(other: int) -> int:
        await asyncio.sleep(0)
        return number + other

    pool = parent_pool()
    return [await pool.apply(local, (1,)), await pool.apply(lambda: number), await pool.map(local, range(3))]


async def of_a_module_of_its_own() -> list[Any]:
    """Its functions have names that no other worker can follow."""
    module = types.ModuleType("only_here")
    exec("import os\ndef there(number):\n    return number + 1, os.getpid()", module.__dict__)
    sys.modules["only_here"] = module
    try:
        pool = parent_pool()
        results = await pool.map(module.there, range(40))
        results.append(await pool.apply(module.there, (40,)))
    finally:
        del sys.modules["only_here"]
    return [[number for number, _ in results], len({process for _, process in results})]


async def colors() -> list[str]:
    color.set("red")
    pool = parent_pool()
    handle = pool.submit(my_color)
    color.set("blue")
    return [await handle, await pool.apply(my_color), *await pool.map(my_color_too, [0])]


async def my_color() -> str:
    return color.get()


def my_color_too(_: int) -> str:
    return color.get()


async def arrays(size: int) -> list[Any]:
    pool = parent_pool()
    array = np.arange(size, dtype=np.uint8)
    twice = await pool.apply(_twice, (array,))
    blobs = await pool.map(bytes, [size, size + 1])
    back = await pool.options(retries=1).apply(_fill, (array,))
    return [bool((twice == array * 2).all()), [len(blob) for blob in blobs], int(back.sum()), int(array[5])]


def _twice(array: Any) -> Any:
    return array * 2


def _fill(array: Any) -> Any:
    array[:] = 1
    return array


async def takes_too_long() -> str:
    try:
        await parent_pool().apply(asyncio.sleep, (60,))
    except TaskTimeout as error:
        return str(error)
    return ""
