"""How a test and the workers of its pool wait for each other: by named pipes, never by time."""

from __future__ import annotations

import asyncio
import logging
import os
import select
from pathlib import Path


async def readable(fd: int) -> None:
    """Wait until `fd` can be read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def wait_and_close(fds: list[int]) -> None:
    """Wait until the processes of these descriptors are gone."""
    for fd in fds:
        select.select([fd], [], [])
        os.close(fd)


class Bell:
    """Workers ring it with a line of text; the test hears them one by one."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._unread = b""

    async def hear(self) -> str:
        """Wait for the next line."""
        while b"\n" not in self._unread:
            await readable(self.fd)
            self._unread += os.read(self.fd, 4096)
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def heard(self) -> list[str]:
        """All lines that nobody has heard, without waiting."""
        try:
            while True:
                self._unread += os.read(self.fd, 4096)
        except BlockingIOError:
            lines, self._unread = self._unread.decode().splitlines(), b""
            return lines

    def close(self) -> None:
        os.close(self.fd)


class Gate:
    """Workers stop at it; the test, or another worker, lets them through."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR)

    def open(self, passes: int = 1) -> None:
        os.write(self.fd, b"." * passes)

    def close(self) -> None:
        os.close(self.fd)


def ring(bell: str, text: object = "") -> None:
    """In a worker: ring a bell."""
    with open(bell, "wb", buffering=0) as file:
        file.write(f"{text}\n".encode())


def open_gate(gate: str, passes: int = 1) -> None:
    """In a worker: let others through a gate."""
    with open(gate, "wb", buffering=0) as file:
        file.write(b"." * passes)


def block_at(gate: str) -> None:
    """In a worker: stop at a gate, and the worker's loop with it."""
    with open(gate, "rb", buffering=0) as file:
        file.read(1)


async def wait_at(gate: str) -> None:
    """In a worker: stop at a gate while the worker's loop goes on."""
    fd = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            await readable(fd)
            try:
                os.read(fd, 1)
                return
            except BlockingIOError:  # another was faster
                pass
    finally:
        os.close(fd)


class Journal(logging.Handler):
    """What polyloop has logged; the test can wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._unread: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname} {record.getMessage()}"
        self.lines.append(line)
        self._unread.put_nowait(line)

    def clear(self) -> None:
        """Forget what was logged so far."""
        self.lines.clear()
        while not self._unread.empty():
            self._unread.get_nowait()

    async def next(self) -> str:
        """Wait for the next line."""
        return await self._unread.get()
