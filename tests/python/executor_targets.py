"""What the workers of an executor run in tests."""

from __future__ import annotations

import asyncio
import os
import signal
from pickle import PicklingError
from typing import NoReturn

from rendezvous import block_at, ring


async def increment(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


def kill_self() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def stop_at(bell: str, gate: str) -> int:
    ring(bell, os.getpid())
    block_at(gate)
    return os.getpid()


def fail_to_start() -> NoReturn:
    raise LookupError("no luck")


def die_but_for_the_first(gate: str) -> None:
    fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(fd, 1)
    except BlockingIOError:
        kill_self()
    finally:
        os.close(fd)


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise PicklingError("not me")


def add(a: int, b: int, *, c: int = 0) -> int:
    return a + b + c


def fail(text: str) -> NoReturn:
    raise LookupError(text)


def leave() -> NoReturn:
    raise SystemExit(3)


class Big:
    """Something that a weak reference can point at."""

    def same(self) -> Big:
        return self
