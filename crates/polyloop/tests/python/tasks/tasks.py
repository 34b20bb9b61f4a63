"""What the tests of `PythonPool` call."""

from __future__ import annotations

import array
import asyncio
import contextlib
import enum
import os
import resource
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from polyloop import current_worker, parent_pool

initialized = ""


def initialize() -> None:
    global initialized
    initialized = os.environ["INITIALIZED"]


def initialize_badly() -> None:
    raise RuntimeError("no luck")


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[str]:
    left = Path(os.environ["LEFT"])
    yield "state"
    mark(left)


def was_prepared() -> tuple[str, Any, str]:
    return initialized, current_worker().state, os.getcwd()


def mark(path: str | Path) -> int:
    """Leave a mark, once more. Returns how many there are."""
    with open(path, "ab") as file:
        file.write(b".")
    return os.path.getsize(path)


def plain(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


async def coroutine(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    await asyncio.sleep(0)
    return args, kwargs


def same(value: Any) -> Any:
    return value


def shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


class Custom(Exception):
    pass


async def raise_custom(message: str) -> None:
    try:
        int(message)
    except ValueError as error:
        raise Custom(message) from error


class Outer:
    class Derived(ConnectionResetError, Custom):
        pass


def raise_derived() -> None:
    raise Outer.Derived


def raise_first(times: int, begun: str) -> int:
    """Raise, if the mark is left for no more than the so-many-th time."""
    starts = mark(begun)
    if starts <= times:
        raise Outer.Derived("too early")
    return starts


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raise_speechless() -> None:
    raise Speechless("surrogate: \ud800")


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


def derived() -> dict[str, Any]:
    return {
        "color": Color.RED,
        "level": Level.HIGH,
        "point": Point(1, 2),
        "ordered": OrderedDict(a=1),
        "set": {7},
        "frozen": frozenset([8]),
        "array": bytearray(b"ab"),
        "view": memoryview(b"xaybzc")[1::2],
    }


def strange(kind: str) -> Any:
    endless: list[Any] = []
    endless.append(endless)
    return {
        "object": object(),
        "complex": 1j,
        "long": 1 << 128,
        "negative": -(1 << 127) - 1,
        "surrogate": "\ud800",
        "endless": endless,
        "nested": {"a": [None, {1: same}]},
    }[kind]


def looked_at(view: memoryview) -> tuple[str, bool, int, int]:
    return type(view).__name__, view.readonly, len(view), sum(view[::4099])


def zeros(size: int, kind: str) -> Any:
    made = {
        "bytes": bytes,
        "bytearray": bytearray,
        "view": lambda size: memoryview(bytes(size)),
        "array": lambda size: array.array("d", bytes(size)),
        "text": lambda size: "0" * size,
    }
    return made[kind](size)


def allow_no_files() -> None:
    """Have blocks refused: they are files in memory."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def parcels(size: int) -> dict[str, Any]:
    return {
        "first": b"1" * size,
        "small": [b"2"],
        "second": array.array("B", b"3" * size),
        "list": list(range(size // 2)),
    }


def block(begun: str) -> None:
    mark(begun)
    while True:
        time.sleep(0.001)


def die_first(times: int, begun: str) -> int:
    """End the worker, if the mark is left for no more than the so-many-th time."""
    starts = mark(begun)
    if starts <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return starts


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def call_own_pool() -> None:
    await parent_pool().apply(same, (1,))


def input_is_empty() -> bool:
    return os.read(0, 1) == b""


async def async_generator() -> AsyncIterator[int]:
    yield 1


not_callable = 7
