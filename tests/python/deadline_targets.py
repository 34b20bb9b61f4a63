"""What workers run in test_pool_deadlines.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from rendezvous import ring

_running = 0


async def pid() -> int:
    return os.getpid()


async def echo(x: int) -> int:
    return x


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


async def wait_later(seconds: float) -> str:
    await asyncio.sleep(0)
    return await wait(seconds)


def block(seconds: float) -> str:
    time.sleep(seconds)
    return "blocked"


async def block_in_coroutine(seconds: float) -> None:
    time.sleep(seconds)


async def block_in_coroutine_later(seconds: float) -> None:
    await asyncio.sleep(0)
    time.sleep(seconds)


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def compute_in_coroutine(seconds: float) -> None:
    compute(seconds)


def block_all_signals(seconds: float) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(seconds)


async def ring_and_wait(bell: str, seconds: float) -> str:
    ring(bell, "started")
    return await wait(seconds)


async def wait_and_note_the_end(path: str) -> None:
    try:
        await asyncio.Event().wait()
    except BaseException as error:
        Path(path + ".new").write_text(type(error).__name__)
        os.rename(path + ".new", path)
        raise


async def answer_when_cancelled() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return "anyway"


async def fail_when_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise LookupError("its own") from None


async def fail_when_cancelled_and_note(bell: str, journal: str) -> None:
    note(journal)
    ring(bell, "started")
    await fail_when_cancelled()


async def ignore_cancellation() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def fail() -> None:
    raise LookupError("its own")


async def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(journal: str) -> int:
    with open(journal, "a+") as file:
        file.write("ran\n")
        file.seek(0)
        return len(file.readlines())


async def succeed_at(journal: str, run: int, otherwise: str) -> str:
    """Fail in this way until the given run."""
    this = note(journal)
    if this == run:
        return f"run {this}"
    if otherwise == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if otherwise == "TaskTimeout":
        await asyncio.Event().wait()
    raise {"LookupError": LookupError, "KeyError": KeyError}[otherwise](f"run {this}")


async def count_company(once: str, dies: bool) -> int:
    """Run for a while, and tell how many of these have run at the same time at most. The one that dies does so once."""
    global _running
    _running += 1
    most = _running
    for _ in range(10):
        await asyncio.sleep(0.01)
        most = max(most, _running)
    if dies and not Path(once).exists():
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if not dies and not Path(once).exists():
        await asyncio.Event().wait()  # until the worker dies
    _running -= 1
    return most
