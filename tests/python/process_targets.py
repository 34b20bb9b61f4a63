"""What the processes of test_process and test_context run. Light to import, since every spawned child imports it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from polyloop.context import PassedFd, Starter

SEEN: list[Any] = []


async def add(x: int, y: int = 0) -> int:
    await asyncio.sleep(0)
    return x + y


async def pid() -> int:
    return os.getpid()


class Failure(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a}{b}")
        self.b = b


async def fail() -> None:
    try:
        raise KeyError("cause")
    except KeyError as error:
        raise Failure("a", "b") from error


async def leave(code: int) -> None:
    os._exit(code)


async def system_exit(code: int) -> None:
    sys.exit(code)


async def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def say_pid_and_wait(connection: Connection) -> None:
    connection.send(os.getpid())
    await asyncio.Event().wait()


async def big(size: int) -> bytes:
    return b"x" * size


async def length(data: bytes) -> int:
    return len(data)


async def unpicklable() -> Any:
    return threading.Lock()


async def loop_type() -> str:
    return type(asyncio.get_running_loop()).__module__


def remember(*values: Any) -> None:
    asyncio.get_event_loop()  # the loop is set before the initializer runs
    SEEN.extend(values)


async def seen() -> list[Any]:
    return SEEN


async def put(queue: Any, value: Any) -> None:
    queue.put(value)
    queue.close()
    queue.join_thread()


async def fork_and_leave(connection: Connection) -> None:
    """Ends while a child of its own, which has all its descriptors, goes on."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    connection.send(child)


class Target:
    def __init__(self, n: int) -> None:
        self.n = n

    async def add(self, x: int) -> int:
        return self.n + x

    async def __call__(self, x: int) -> int:
        return self.n + x


async def environment() -> tuple[dict[str, str], str]:
    return dict(os.environ), os.getcwd()


async def sigint() -> tuple[bool, bool]:
    """Whether SIGINT has a handler of ours, and whether it is blocked."""
    handler = signal.getsignal(signal.SIGINT)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return callable(handler) and handler is not signal.default_int_handler, signal.SIGINT in blocked


async def write_to(passed: PassedFd, text: bytes) -> bool:
    fd = passed.take()
    os.write(fd, text)
    return os.get_inheritable(fd)


async def starter_pid() -> tuple[int, int]:
    return Starter.submit(os.getpid).result(), os.getpid()


async def is_open(fd: int, inode: int) -> bool:
    """Whether `fd` is open here, and still the same file."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False
