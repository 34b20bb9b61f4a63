"""One fault on one library: a program that `fault_table` starts, watches, and at times kills.

Says what it saw on lines of its own, "saw: ...", as early as it can: whatever comes after may hang.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiomultiprocess
import pebble

import polyloop

WORKERS = 2
HANG_S = 3.0
ENDLESS_ITEMS = 100_000
BACKLOG = 3000


def say(text: str) -> None:
    print(f"saw: {text}", flush=True)


# ------------------------------------------------------------------------------------------------------------ libraries


@dataclass(frozen=True)
class Verbs:
    """One library's pool, ready to use."""

    call: Callable[..., Awaitable[Any]]
    map: Callable[[Callable[..., Any], Iterable[Any]], AsyncIterator[Any]]
    call_within: Callable[..., Awaitable[Any]] | None = None  # a time limit for one task, in seconds, comes first


Options = dict[str, Any]


@asynccontextmanager
async def on_polyloop(options: Options) -> AsyncIterator[Verbs]:
    async with polyloop.Pool(WORKERS, **options) as pool:

        def call_within(limit_s: float, func: Any, *args: Any) -> Awaitable[Any]:
            limited = pool.options(timeout=limit_s)  # type: ignore[attr-defined, unused-ignore]
            return limited.apply(func, args)  # type: ignore[no-any-return, unused-ignore]

        yield Verbs(lambda func, *args: pool.apply(func, args), lambda f, items: aiter(pool.map(f, items)), call_within)


@asynccontextmanager
async def on_aiomultiprocess(options: Options) -> AsyncIterator[Verbs]:
    async with aiomultiprocess.Pool(WORKERS, **options) as pool:
        yield Verbs(lambda func, *args: pool.apply(func, args), lambda f, items: aiter(pool.map(f, items)))


def run_here(func: Callable[..., Any], *args: Any) -> Any:
    """In a worker of a library that knows plain functions only."""
    return asyncio.run(func(*args))


class RunHere:
    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, item: Any) -> Any:
        return asyncio.run(self.func(item))


async def over_thread(results: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    while (value := await asyncio.to_thread(next, results, end)) is not end:
        yield value


@asynccontextmanager
async def on_futures(options: Options) -> AsyncIterator[Verbs]:
    with ProcessPoolExecutor(WORKERS, **options) as pool:

        async def call(func: Any, *args: Any) -> Any:
            return await asyncio.wrap_future(pool.submit(run_here, func, *args))

        async def mapped(func: Any, items: Iterable[Any]) -> AsyncIterator[Any]:
            results = await asyncio.to_thread(pool.map, RunHere(func), items)
            async for value in over_thread(results):
                yield value

        yield Verbs(call, mapped)


@asynccontextmanager
async def on_pebble(options: Options) -> AsyncIterator[Verbs]:
    with pebble.ProcessPool(WORKERS, **options) as pool:

        async def call_within(limit_s: float | None, func: Any, *args: Any) -> Any:
            return await asyncio.wrap_future(pool.schedule(run_here, (func, *args), timeout=limit_s))

        async def call(func: Any, *args: Any) -> Any:
            return await call_within(None, func, *args)

        async def mapped(func: Any, items: Iterable[Any]) -> AsyncIterator[Any]:
            future = await asyncio.to_thread(pool.map, RunHere(func), items)
            async for value in over_thread(future.result()):
                yield value

        yield Verbs(call, mapped, call_within)


LIBRARIES: dict[str, Callable[[Options], AbstractAsyncContextManager[Verbs]]] = {
    "polyloop": on_polyloop,
    "aiomultiprocess": on_aiomultiprocess,
    "ProcessPoolExecutor": on_futures,
    "pebble": on_pebble,
}

# ---------------------------------------------------------------------------------------------------------------- tasks


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


async def same(x: Any) -> Any:
    return x


async def say_pid_and_sleep(path: str, delay_s: float) -> str:
    note(path, str(os.getpid()))
    await asyncio.sleep(delay_s)
    return "slept"


async def kill_itself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


async def leave() -> NoReturn:
    os._exit(3)


async def sys_exit() -> NoReturn:
    sys.exit(3)


async def return_lambda() -> Any:
    return lambda: None


async def raise_two_arguments() -> NoReturn:
    raise TwoArguments(7, "seven")


async def fail_at_3(x: int) -> int:
    if x == 3:
        raise LookupError(x)
    return x


async def tick(path: str) -> None:
    while True:
        note(path, "tick")
        await asyncio.sleep(0.01)


def fail_to_start(path: str) -> NoReturn:
    note(path, "start")
    raise TwoArguments(1, "no database")


def note(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


# ---------------------------------------------------------------------------------------------------------------- cases

Library = Callable[..., AbstractAsyncContextManager[Verbs]]
RIGHT = "right"


def name_of(error: BaseException) -> str:
    return type(error).__name__


async def outcome(call: Awaitable[Any]) -> Any:
    """The value, or the exception, of a call; TimeoutError where it hangs."""
    try:
        return await asyncio.wait_for(asyncio.ensure_future(call), HANG_S)
    except asyncio.CancelledError as error:
        return error
    except BaseException as error:
        return error


def described(result: Any) -> str:
    if isinstance(result, TimeoutError):
        return "the call hangs"
    return name_of(result) if isinstance(result, BaseException) else f"value {result!r}"


async def goes_on(verbs: Verbs) -> str:
    """What is wrong with the pool afterwards, or nothing."""
    results = [await outcome(verbs.call(same, n)) for n in range(2 * WORKERS)]
    if results == list(range(2 * WORKERS)):
        return ""
    wrong = next(result for n, result in enumerate(results) if result != n)
    return "later calls hang" if isinstance(wrong, TimeoutError) else f"later calls: {name_of(wrong)}"


async def lines_of(path: str, count: int) -> list[str]:
    while len(lines := read_lines(path)) < count:  # noqa: ASYNC110 - workers of all libraries can write a file
        await asyncio.sleep(0.01)
    return lines


def read_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


async def check_failure(verbs: Verbs, call: Awaitable[Any], expected: tuple[str, ...] | None = None) -> None:
    """The call must raise, of these types where given, and the pool go on."""
    result = await outcome(call)
    problems = []
    if not isinstance(result, BaseException) or isinstance(result, TimeoutError):
        problems.append(described(result))
    elif expected is not None and name_of(result) not in expected:
        problems.append(f"raises {name_of(result)}")
    problems.append(await goes_on(verbs))
    say("; ".join(filter(None, problems)) or RIGHT)


async def worker_killed(library: Library, path: str) -> None:
    async with library({}) as verbs:
        victim = asyncio.ensure_future(verbs.call(say_pid_and_sleep, path, 1000))
        (pid,) = await lines_of(path, 1)
        neighbour = await neighbour_of(pid, verbs, path)
        os.kill(int(pid), signal.SIGKILL)
        lost, kept = await outcome(victim), await outcome(neighbour)
        problems = [] if isinstance(lost, Exception) and not isinstance(lost, TimeoutError) else [described(lost)]
        problems += [] if kept == "slept" else [f"its neighbour: {described(kept)}"]
        problems.append(await goes_on(verbs))
        say("; ".join(filter(None, problems)) or RIGHT)


async def neighbour_of(pid: str, verbs: Verbs, path: str) -> asyncio.Future[Any]:
    """A call that runs in another worker for a while."""
    for n in range(20):
        call = asyncio.ensure_future(verbs.call(say_pid_and_sleep, f"{path}-{n}", 0.3))
        if await lines_of(f"{path}-{n}", 1) != [pid]:
            return call
    raise RuntimeError("all calls go to one worker")


async def os_exit(library: Library, path: str) -> None:
    async with library({}) as verbs:
        await check_failure(verbs, verbs.call(leave))


async def system_exit(library: Library, path: str) -> None:
    async with library({}) as verbs:
        await check_failure(verbs, verbs.call(sys_exit))


async def unpicklable_result(library: Library, path: str) -> None:
    async with library({}) as verbs:
        result = await outcome(verbs.call(return_lambda))
        trouble = await goes_on(verbs)
        fine = callable(result) or (isinstance(result, Exception) and not isinstance(result, TimeoutError))
        say("; ".join(filter(None, ["" if fine else described(result), trouble])) or RIGHT)


async def unpicklable_argument(library: Library, path: str) -> None:
    async with library({}) as verbs:
        await check_failure(verbs, verbs.call(same, threading.Lock()))


async def two_argument_exception(library: Library, path: str) -> None:
    async with library({}) as verbs:
        result = await outcome(verbs.call(raise_two_arguments))
        trouble = await goes_on(verbs)
        itself = isinstance(result, TwoArguments) and (result.code, result.text) == (7, "seven")
        say("; ".join(filter(None, ["" if itself else described(result), trouble])) or RIGHT)


async def initializer_raises(library: Library, path: str) -> None:
    async with library({"initializer": fail_to_start, "initargs": (path,)}) as verbs:
        result = await outcome(verbs.call(same, 1))
        chain, link = "", result if isinstance(result, BaseException) else None
        while link is not None:
            chain, link = f"{chain} {link}", link.__cause__ or link.__context__
        starts = len(await lines_of(path, 1))
        problems = [described(result)] if isinstance(result, TimeoutError) else []
        problems += [] if problems or "no database" in chain else [f"{described(result)} without the cause"]
        problems += [f"{starts} workers started meanwhile"] if starts > 2 * WORKERS else []
        say("; ".join(problems) or RIGHT)


async def cancel_running(library: Library, path: str) -> None:
    async with library({}) as verbs:
        call = asyncio.ensure_future(verbs.call(tick, path))
        await lines_of(path, 3)
        call.cancel()
        await outcome(call)
        await asyncio.sleep(0.2)
        before = len(await lines_of(path, 3))
        await asyncio.sleep(0.3)
        say(RIGHT if len(await lines_of(path, 3)) == before else "the task runs on in its worker")
        if await outcome(verbs.call(same, 1)) != 1:
            say("the pool is stuck")


async def timeout_of_one(library: Library, path: str) -> None:
    async with library({}) as verbs:
        if verbs.call_within is None:
            say("no such limit")
            return
        try:
            slow = verbs.call_within(0.5, say_pid_and_sleep, path, 1000)
        except (AttributeError, TypeError):
            say("not yet")
            return
        neighbour = asyncio.ensure_future(verbs.call(say_pid_and_sleep, path + "-2", 1))
        late = asyncio.ensure_future(slow)
        await asyncio.wait([late], timeout=HANG_S)
        problems = [] if late.done() and isinstance(late.exception(), TimeoutError) else ["no TimeoutError"]
        kept = await outcome(neighbour)
        problems += [] if kept == "slept" else [f"its neighbour: {described(kept)}"]
        problems.append(await goes_on(verbs))
        say("; ".join(filter(None, problems)) or RIGHT)


async def endless_map(library: Library, path: str) -> None:
    def items() -> Iterator[int]:
        yield from range(ENDLESS_ITEMS)
        say("draws its input without end before the first result")
        os._exit(0)

    async with library({}) as verbs:
        results = verbs.map(same, items())
        first = [await asyncio.wait_for(anext(results), 2 * HANG_S) for _ in range(10)]
        say(RIGHT if first == list(range(10)) else f"gives {first}")


async def one_item_fails(library: Library, path: str) -> None:
    async with library({}) as verbs:
        seen: list[int] = []
        error: BaseException | None = None

        async def take() -> None:
            async for value in verbs.map(fail_at_3, range(10)):
                seen.append(value)  # noqa: PERF401 - what came before the exception is kept

        try:
            await asyncio.wait_for(take(), HANG_S)
        except BaseException as raised:
            error = raised
        problems = [] if isinstance(error, LookupError) else [described(error) if error else "nothing is raised"]
        problems += [] if seen == [0, 1, 2] else [f"results before it: {seen}"]
        problems.append(await goes_on(verbs))
        say("; ".join(filter(None, problems)) or RIGHT)


async def killer_task(library: Library, path: str) -> None:
    options = {"retries": 5} if library is LIBRARIES["polyloop"] else {}
    async with library(options) as verbs:
        killers = [asyncio.ensure_future(verbs.call(kill_itself)) for _ in range(3)]
        others = [asyncio.ensure_future(verbs.call(same, n)) for n in range(20)]
        ends = await asyncio.gather(*map(outcome, killers))
        kept = await asyncio.gather(*map(outcome, others))
        lost = [result for n, result in enumerate(kept) if result != n]
        problems = [described(end) for end in ends[:1] if isinstance(end, TimeoutError)]
        problems += [f"{len(lost)} of 20 innocent calls: {described(lost[0])}"] if lost else []
        problems.append(await goes_on(verbs))
        if not any(problems) and library is LIBRARIES["polyloop"] and name_of(ends[0]) != "PoisonTask":
            problems = ["right for the others; PoisonTask not yet"]
        say("; ".join(filter(None, problems)) or RIGHT)


kept_to_the_end: list[Any] = []


async def exit_with_backlog(library: Library, path: str) -> None:
    pool = library({})
    verbs = await pool.__aenter__()
    kept_to_the_end.extend([pool, verbs])
    calls = [asyncio.ensure_future(verbs.call(say_pid_and_sleep, os.devnull, 0.1)) for _ in range(BACKLOG)]
    kept_to_the_end.append(calls)
    await asyncio.sleep(0.3)


async def sleep_until_killed(library: Library, path: str) -> None:
    async with library({}) as verbs:
        calls = [asyncio.ensure_future(verbs.call(say_pid_and_sleep, path, 1000)) for _ in range(WORKERS)]
        await lines_of(path, WORKERS)
        print("ready", flush=True)
        await asyncio.gather(*calls)


# In the order of the table, with what would be right.
CASES: dict[str, tuple[str, Callable[[Library, str], Coroutine[Any, Any, None]]]] = {
    "worker-killed": ("a worker is killed while it runs a task: that call fails, no other", worker_killed),
    "os-exit": ("a task calls `os._exit`: its call fails, the pool goes on", os_exit),
    "sys-exit": ("a task calls `sys.exit`: its call fails, the pool goes on", system_exit),
    "killer": ("tasks that kill their worker each time: the others get their results", killer_task),
    "unpicklable-result": ("a result that pickle refuses: that call fails", unpicklable_result),
    "unpicklable-argument": ("an argument that pickle refuses: that call fails", unpicklable_argument),
    "two-arguments": ("an exception whose `__init__` takes two arguments arrives as itself", two_argument_exception),
    "initializer": ("the initializer raises: calls fail and say why", initializer_raises),
    "cancel": ("a running call is cancelled: the task stops", cancel_running),
    "timeout": ("one task exceeds its time limit: the others go on", timeout_of_one),
    "endless": ("a map over an endless generator gives results", endless_map),
    "item-fails": ("one item of a map fails: results before it, then its exception", one_item_fails),
    "backlog": (f"the program ends with {BACKLOG:,} calls pending", exit_with_backlog),
    "parent-killed": ("the parent is killed: no process stays", sleep_until_killed),
    "ctrl-c": ("Ctrl-C: the program ends with one traceback", sleep_until_killed),
}


def main() -> None:
    case, library = sys.argv[1:]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(CASES[case][1](LIBRARIES[library], os.path.join(directory, "notes")))
    print(f"main ended after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
