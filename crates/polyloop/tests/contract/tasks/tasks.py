"""What the tests of the contract have Python workers do: to the letter what `tasks.rs` does in Rust."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeAlias

from polyloop import current_worker

# An enum of Rust's: a variant's name, or that with what it holds.
Task: TypeAlias = str | dict[str, Any]

LOOK_S = 0.002

held: list[bytes] = []


def perform(task: Task) -> int:
    match task:
        case "Pid":
            return os.getpid()
        case {"Give": int(number)}:
            return number
        case {"Mark": str(path)}:
            mark(path)
        case {"Fail": str(text)}:
            raise RuntimeError(text)
        case {"FailFirst": {"times": int(times), "starts": str(starts)}}:
            mark(starts)
            start = count(starts)
            if start <= times:
                raise RuntimeError("too early")
            return start
        case {"Exit": int(code)}:
            os._exit(code)
        case {"DieFirst": {"times": int(times), "starts": str(starts)}}:
            mark(starts)
            start = count(starts)
            if start <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            return start
        case {"Hold": int(size)}:
            held.append(b"\1" * size)
        case "AllowNoFiles":
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        case {"Block": {"begun": str(begun), "until": str(until)}}:
            mark(begun)
            while not count(until):
                time.sleep(LOOK_S)
        case {"MarkAtExit": str(path)}:
            current_worker().state.append(path)
        case _:
            raise AssertionError(f"{task} is for an async function")
    return 0


async def perform_async(task: Task) -> int:
    match task:
        case {"Later": inner}:
            await asyncio.sleep(0)
            return await perform_async(inner)
        case {"Await": {"begun": str(begun), "until": str(until), "times": int(times)}}:
            mark(begun)
            while count(until) < times:
                await asyncio.sleep(LOOK_S)
        case {"WaitForEver": {"begun": str(begun), "ended": str(ended)}}:
            try:
                mark(begun)
                await asyncio.Event().wait()
            finally:
                mark(ended)
        case {"WaitFirst": {"starts": str(starts)}}:
            mark(starts)
            start = count(starts)
            if start == 1:
                await asyncio.Event().wait()
            return start
        case {"Cling": {"begun": str(begun)}}:
            mark(begun)
            await cling()
        case _:
            return perform(task)
    return 0


async def cling() -> NoReturn:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def subtract(a: int, b: int) -> int:
    return a - b


def echo(value: Any) -> Any:
    return value


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[list[str]]:
    fault = read(os.environ.get("POLYLOOP_TEST_FAULT"))
    if fault == "exit":
        os._exit(3)
    if fault is not None:
        raise RuntimeError(fault)
    marks: list[str] = []
    yield marks
    for path in marks:
        mark(path)


def read(path: str | None) -> str | None:
    if path is None or not os.path.exists(path):
        return None
    with open(path) as file:
        return file.read()


def mark(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b".")


def count(path: str) -> int:
    """Return how many times a mark has been left."""
    return os.path.getsize(path) if os.path.exists(path) else 0
