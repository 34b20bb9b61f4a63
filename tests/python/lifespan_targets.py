"""What workers run in test_pool_lifespan.py, and the lifespans they have."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from polyloop import current_worker
from rendezvous import ring

session = contextvars.ContextVar("session", default="no session")


class Session:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.uses = 0


@asynccontextmanager
async def _noted(bell: str) -> AsyncIterator[Session]:
    session.set("open")
    opened = asyncio.current_task()
    ring(bell, f"open {os.getpid()}")
    try:
        yield Session()
    finally:
        await asyncio.sleep(0)
        ring(bell, f"close {os.getpid()}{'' if asyncio.current_task() is opened else ' in another task'}")


def noted(bell: str) -> Any:
    """A lifespan that rings as it opens and as it closes."""
    return functools.partial(_noted, bell)


@asynccontextmanager
async def _with_group(bell: str) -> AsyncIterator[dict[str, int]]:
    beats = {"beats": 0}

    async def beat() -> None:
        try:
            while True:
                beats["beats"] += 1
                await asyncio.sleep(0)
        finally:
            ring(bell, "no more beats")

    async with asyncio.TaskGroup() as group:
        heart = group.create_task(beat())
        yield beats
        ring(bell, f"beats {not heart.done()}")
        heart.cancel()


def with_group(bell: str) -> Any:
    return functools.partial(_with_group, bell)


@asynccontextmanager
async def fails_at_start() -> AsyncIterator[None]:
    await asyncio.sleep(0)
    raise LookupError("no database")
    yield


@asynccontextmanager
async def _fails_after(mark: str) -> AsyncIterator[None]:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise LookupError("no database") from None
    yield


def fails_after(mark: str) -> Any:
    return functools.partial(_fails_after, mark)


@asynccontextmanager
async def fails_at_end() -> AsyncIterator[None]:
    yield
    raise LookupError("can't close")


@asynccontextmanager
async def _hangs(bell: str, when: str) -> AsyncIterator[None]:
    ring(bell, os.getpid())
    try:
        if when == "start":
            await asyncio.sleep(3600)
        yield
    finally:
        ring(bell, "closing")
        if when == "end":
            time.sleep(3600)


def hangs(bell: str, when: str) -> Any:
    return functools.partial(_hangs, bell, when)


@asynccontextmanager
async def _ends_early(bell: str) -> AsyncIterator[Any]:
    async with asyncio.TaskGroup() as group:

        async def fail() -> NoReturn:
            ring(bell, os.getpid())
            await asyncio.sleep(0)
            raise LookupError("the connection is lost")

        yield lambda: group.create_task(fail())


def ends_early(bell: str) -> Any:
    return functools.partial(_ends_early, bell)


async def break_the_lifespan() -> None:
    current_worker().state()
    await asyncio.Event().wait()


async def uses() -> tuple[int, bool, str]:
    state = current_worker().state
    state.uses += 1
    return state.uses, state.loop is asyncio.get_running_loop(), session.get()


def uses_plainly(_: object = None) -> tuple[str, str]:
    found = type(current_worker().state).__name__, session.get()
    session.set("a task's own")
    return found


async def beats() -> int:
    state = current_worker().state
    before: int = state["beats"]
    await asyncio.sleep(0.01)
    return int(state["beats"] - before)


async def wait_and_clean_up(bell: str) -> None:
    asyncio.get_running_loop().call_soon(ring, bell, os.getpid())  # once this waits
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ring(bell, "cleaned up")


async def pid() -> int:
    return os.getpid()


async def index() -> int:
    return current_worker().index


def block(bell: str) -> None:
    ring(bell, os.getpid())
    time.sleep(3600)


Seen = tuple[int, str, int]


def _seen() -> Seen | None:
    task = current_worker().task
    return None if task is None else (task.id, task.name, task.attempt)


async def task_at_each_step() -> list[Seen | None]:
    seen = [_seen()]
    for _ in range(2):
        await asyncio.sleep(0.01)
        seen.append(_seen())
    return seen


def task_plainly() -> Seen | None:
    return _seen()


async def task_elsewhere() -> list[Seen | None]:
    """In a callback, in a task of its own, and in a thread."""
    loop = asyncio.get_running_loop()
    called: asyncio.Future[Seen | None] = loop.create_future()
    loop.call_soon(lambda: called.set_result(_seen()))

    async def child() -> Seen | None:
        await asyncio.sleep(0)
        return _seen()

    return [await called, await asyncio.create_task(child()), await asyncio.to_thread(_seen)]


async def attempt_after_death(mark: str) -> Seen | None:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return _seen()
    os._exit(9)


def state_of_another_process(_: object = None) -> str:
    pid = os.fork()
    if pid == 0:
        try:
            current_worker()
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    return f"exit code {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


def threads() -> int:
    return threading.active_count()


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield
