"""What the scenarios of task_scenarios_*.py are, and what they share: things that code does with tasks.

Each returns a record of all that it could observe, or raises. Run in a plain Task and as an item on a worker, the two
must be the same. Not tests: test_task_equality.py runs them.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

MS = 0.001

Step = Callable[..., Coroutine[Any, Any, Any]]
AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass(frozen=True)
class Scenario:
    """A coroutine function, how often it runs at the same time, and what looks at its traces afterwards."""

    run: Step
    neighbours: int
    then: Step | None
    eager_differs: str | None
    lazy_differs: str | None

    def calls(self) -> list[tuple[Any, ...]]:
        """The arguments of each of its items."""
        return [(i,) for i in range(self.neighbours)] if self.neighbours else [()]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *,
    neighbours: int = 0,
    then: Step | None = None,
    since: tuple[int, int] = (3, 11),
    eager_differs: str | None = None,
    lazy_differs: str | None = None,
) -> Callable[[AnyStep], AnyStep]:
    """Make a coroutine function a scenario.

    Parameters:
        neighbours: run that many of it at once; each gets its number.
        then: a second item, that runs when the first have ended.
        since: the Python that this is about.
        eager_differs: why CPython's eager tasks, from 3.12 on, differ from its plain ones here.
        lazy_differs: why an item that may have no Task differs here.
    """

    def add(step: AnyStep) -> AnyStep:
        assert step.__name__ not in SCENARIOS
        if sys.version_info >= since:
            SCENARIOS[step.__name__] = Scenario(step, neighbours, then, eager_differs, lazy_differs)
        return step

    return add


# ------------------------------------------------------------------------------------------------- between the items

kept: dict[str, Any] = {}  # by an item, for its neighbours and for what runs after it
color: ContextVar[str] = ContextVar("color", default="none")


async def settle() -> None:
    """Let all callbacks run that are ready, and those that they make ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def forget() -> list[str]:
    """Clean up after a scenario. Returns what it left running, which should be nothing."""
    await settle()
    kept.clear()
    asyncio.get_running_loop().set_exception_handler(None)
    return sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks() - {asyncio.current_task()})


async def level() -> str:
    """How the worker started this very item."""
    has_task = bool(asyncio.tasks._current_tasks)  # type: ignore[attr-defined] # not asked by loop, which makes one
    names, frame = [], sys._getframe()
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    if "take" not in names:  # the worker's turn
        return "plain"
    return "eager" if has_task else "lazy"


async def all_here(number: int) -> None:
    """Wait until that many items have come here."""
    here = kept["here"] = kept.get("here", 0) + 1
    everybody = kept.setdefault("everybody", asyncio.Event())
    if here == number:
        everybody.set()
    await everybody.wait()


async def wait_for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()


# -------------------------------------------------------------------------------------------------------- observations


def me() -> asyncio.Task[Any]:
    """The current task."""
    task = asyncio.current_task()
    assert task is not None
    return task


def soon(callback: Callable[..., Any], *args: Any) -> None:
    """Call it once the current task waits."""
    asyncio.get_running_loop().call_soon(callback, *args)


def done_future(value: object = None) -> asyncio.Future[Any]:
    """A future that need not be waited for."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def normal(text: str) -> str:
    """Text without what differs from run to run, and without the callbacks of whoever waits for an item."""
    text = re.sub(r" cb=\[.*?\](?=[ >])", "", text)
    text = re.sub(r"\b(0x[0-9a-f]+|[0-9a-f]{9,})\b", "0x", text)
    return re.sub(r"Task-\d+", "Task-N", text)


def describe(error: BaseException | None) -> Any:
    """An exception with its chain, without the traceback that polyloop hangs at its end."""
    if error is None or type(error).__name__ == "RemoteTraceback":
        return None
    cause, context = describe(error.__cause__), describe(error.__context__)
    return (
        type(error).__qualname__,
        [normal(arg) if isinstance(arg, str) else arg for arg in map(_plain, error.args)],
        list(getattr(error, "__notes__", [])),
        ("cause", cause),
        ("context", context),
        error.__suppress_context__ if cause or context else None,
        [describe(member) for member in error.exceptions] if isinstance(error, BaseExceptionGroup) else None,
    )


def _plain(arg: Any) -> Any:
    """Exceptions within args would never be equal to their copies."""
    if isinstance(arg, BaseException):
        return describe(arg)
    return [_plain(each) for each in arg] if isinstance(arg, list | tuple) else arg


def frames(traceback: TracebackType | None) -> list[str]:
    """The names of the scenario's functions in a traceback, without those of whoever runs it."""
    names = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "task_scenarios" in code.co_filename:
            names.append(code.co_name)
        traceback = traceback.tb_next
    return names


def end_of(task: asyncio.Future[Any]) -> Any:
    """How a future ended, if it did."""
    if not task.done():
        return "pending"
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return ("raised", describe(error)) if error is not None else ("returned", task.result())


async def end_when_awaited(awaitable: Any) -> Any:
    """How an awaitable ends, its cancellation included."""
    try:
        return "returned", await awaitable
    except BaseException as error:
        return "raised", describe(error)


def names_of(tasks: Iterable[asyncio.Task[Any]]) -> list[str]:
    """The names of the coroutines of these tasks."""
    return sorted(task.get_coro().__name__ for task in tasks)  # type: ignore[union-attr]
