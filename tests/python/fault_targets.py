"""What the workers of test_fault_matrix and test_storm run, and the faults that end them from within."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import resource
import signal
import sys
import threading
from typing import Any

from polyloop._core import LARGE_BYTES
from rendezvous import block_at, ring, wait_at

SENT_BYTES = 2 << 20


def commit(fault: str) -> None:
    """In a worker, on any thread: have this happen to its process."""
    if fault == "SIGSEGV":
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    elif fault == "abort":
        os.abort()
    elif fault == "_exit":
        os._exit(3)
    elif fault == "exit in a thread":
        thread = threading.Thread(target=sys.exit, args=(3,))
        thread.start()
        thread.join()
    else:
        os.kill(os.getpid(), signal.Signals[fault])


def trigger_of(directory: str, pid: int) -> str:
    """The named pipe by which a worker can be made to commit its fault."""
    return os.path.join(directory, f"trigger-{pid}")


def arm(fault: str, directory: str, bell: str) -> None:
    """As initializer: make the worker wait, on a thread, for the word to commit its fault, whatever else it does."""
    trigger = trigger_of(directory, os.getpid())
    os.mkfifo(trigger)
    no_core_dumps()

    def wait_and_commit() -> None:
        block_at(trigger)
        commit(fault)
        ring(bell, "survived")

    threading.Thread(target=wait_and_commit, daemon=True).start()


def no_core_dumps() -> None:
    """Crash in silence."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def commit_at_first_start(fault: str, directory: str, bell: str, gate: str) -> None:
    """As initializer: the fault happens in the first worker, while it starts; its successor is healthy."""
    no_core_dumps()
    if not is_first(os.path.join(directory, "started")):
        return
    if fault == "SIGSTOP, SIGKILL":  # sent by the test
        ring(bell, os.getpid())
        block_at(gate)
    else:
        commit(fault)


def is_first(mark: str) -> bool:
    """Whether nobody has asked this before."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


# Each rings with its process id, and is at the moment in question only when run for the first time.


async def block_in_first_step(mark: str, bell: str, gate: str) -> str:
    block_once(mark, bell, gate)
    return mark


async def suspend(mark: str, bell: str, gate: str) -> str:
    if is_first(mark):
        asyncio.get_running_loop().call_soon(ring, bell, os.getpid())
        await wait_at(gate)
    return mark


def block_plainly(mark: str, bell: str, gate: str) -> str:
    block_once(mark, bell, gate)
    return mark


async def send_much(mark: str, bell: str, gate: str) -> bytes:
    if is_first(mark):
        ringing.append(asyncio.create_task(ring_after_turns(bell)))
    # No block can be made, so it goes through the ring.
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE_BYTES // 2, most))
    return b"x" * SENT_BYTES


ringing: list[asyncio.Task[None]] = []


async def ring_after_turns(bell: str) -> None:
    """Ring once the result that is being returned has filled the ring."""
    for _ in range(10):
        await asyncio.sleep(0)
    ring(bell, os.getpid())


async def ignore_a_cancel(mark: str, bell: str, gate: str) -> str:
    ring(bell, os.getpid())
    try:
        await wait_at(gate)
    except asyncio.CancelledError:
        ring(bell, "ignored")
        await wait_at(gate)
    return mark


async def ignore_cancels(mark: str, bell: str, gate: str) -> str:
    ring(bell, os.getpid())
    while True:
        try:
            await wait_at(gate)
            return mark
        except asyncio.CancelledError:
            ring(bell, "ignored")


def block_once(mark: str, bell: str, gate: str) -> None:
    if is_first(mark):
        ring(bell, os.getpid())
        block_at(gate)


async def same(x: Any) -> Any:
    await asyncio.sleep(0)
    return x


async def linger(x: int, delay_s: float) -> int:
    await asyncio.sleep(delay_s)
    return x


def ring_pid(bell: str) -> None:
    ring(bell, os.getpid())
