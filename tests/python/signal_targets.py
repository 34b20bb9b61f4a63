"""What workers run in tests of signals and forks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

from rendezvous import block_at, ring


async def fork() -> tuple[int, int]:
    """Fork. The child goes on as if it were the worker: it returns from here as well."""
    child = os.fork()
    return os.getpid(), child


async def fork_later(bell: str) -> tuple[int, int]:
    """The same, in a later step, beside tasks that are about to go on."""
    neighbours = [asyncio.ensure_future(ring_later(bell)) for _ in range(8)]
    await asyncio.sleep(0)
    child = os.fork()
    await asyncio.gather(*neighbours)
    return os.getpid(), child


async def ring_later(bell: str) -> None:
    await asyncio.sleep(0)
    ring(bell, "a neighbour")


def fork_plainly() -> tuple[int, int]:
    """The same, within the worker's turn."""
    child = os.fork()
    return os.getpid(), child


async def collect(child: int) -> int:
    """Wait for a child's end."""
    _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status)


async def sigterm_itself(bell: str, *, suspend: bool, swallow: bool) -> None:
    if suspend:
        await asyncio.sleep(0)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        ring(bell, "interrupted")
        if not swallow:
            raise


def sigterm_itself_plainly(bell: str, *, swallow: bool) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        ring(bell, "interrupted")
        if not swallow:
            raise


async def leave_sigterm_to_a_thread(bell: str) -> None:
    """Wait for ever on a loop that SIGTERM does not interrupt, as another thread takes it."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    asyncio.get_running_loop().call_later(0.05, ring, bell, "started")
    await asyncio.Event().wait()


async def block_sigterm_and_wait(bell: str, gate: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ring(bell, "started")
    block_at(gate)
