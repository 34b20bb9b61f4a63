"""What the workers of test_worker_select.py run."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path


async def selector() -> tuple[str, bool]:
    """The kind of this loop's selector, and whether it takes turns itself."""
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    return type(selector).__name__, "select" in getattr(selector, "__dict__", {})


async def echo(x: int) -> int:
    return x


async def sleep(seconds: float) -> float:
    before = time.monotonic()
    await asyncio.sleep(seconds)
    return time.monotonic() - before


async def hear_thread() -> str:
    """Woken by a thread, while nothing else happens on the loop."""
    loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    threading.Timer(0.05, loop.call_soon_threadsafe, (future.set_result, "heard")).start()
    return str(await future)


async def pipe(text: str) -> str:
    """Through a pipe that the loop both writes and reads, larger than the pipe."""
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb"))
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(writing, "wb"))
    transport.write(text.encode())
    transport.close()
    return (await reader.read()).decode()


async def subprocess_output() -> str:
    process = await asyncio.create_subprocess_exec("echo", "hello", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


def leave_to_the_loop(bell: str) -> None:
    """A plain function that leaves the loop a timer, a call, and a call by a thread; each rings."""

    def ring(line: str) -> None:
        Path(bell).write_text(f"{line}\n")

    loop = asyncio.get_event_loop()
    loop.call_later(0.05, ring, "later")
    loop.call_soon(ring, "soon")
    threading.Thread(target=loop.call_soon_threadsafe, args=(ring, "thread")).start()


async def raise_in_callback() -> str:
    """A callback that fails is told to the loop's handler, and the loop goes on."""
    loop, told = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    loop.set_exception_handler(lambda _, context: told.set_result(repr(context["exception"])))
    loop.call_soon(int, "x")
    try:
        return str(await told)
    finally:
        loop.set_exception_handler(None)


async def stop_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "went on"
