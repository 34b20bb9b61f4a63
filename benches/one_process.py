"""A pool whose only worker is the client's own process: what both sides execute for an item, with no other process.

`instructions` runs it under callgrind: `one_process.py <path> <items>`. It measures nothing itself.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from polyloop import Pool, _core
from polyloop._produce import produce
from polyloop._threads import Threads
from polyloop._worker import Plan, Turns, _wait_for
from polyloop.current import caller
from rows.work import no_op, plain_no_op, suspend_once

WARM_UP_ITEMS = 500


class NoStacks:
    """In place of what asks blocked workers where they are."""

    def ask(self, pid: int, answered: Callable[[str], object]) -> None: ...

    def forget_questions(self) -> None: ...


class OneProcess:
    """In place of the roster: has a worker join from this process, on the client's own loop."""

    def __init__(self, manager: _core.Manager, loop: asyncio.AbstractEventLoop, plan: Plan, *_how: object) -> None:
        self.manager, self.loop, self.plan = manager, loop, plan
        self.stacks = NoStacks()
        self.our_ends: dict[int, list[int]] = {}

    def start(self, key: int, socket: int, lifeline: int, our_ends: list[int]) -> object:
        """Have the worker join."""
        os.close(lifeline)
        handle = myself()
        self.loop.call_soon(self.manager.started, key, os.getpid(), False, handle)
        # Joining waits for the manager's answer, which comes on this loop.
        threading.Thread(target=self._join, args=(socket, os.dup(handle))).start()
        return object()

    def _join(self, socket: int, handle: int) -> None:
        worker = _core.Worker(socket, handle)
        self.loop.call_soon_threadsafe(self._work, worker)

    def _work(self, worker: _core.Worker) -> None:
        turns = Turns(worker, self.loop, self.plan.grace_s)
        self.loop.add_reader(worker.fileno(), turns.take)
        threads = Threads(self.plan.concurrency, turns.check_not_forked)
        producer = functools.partial(produce, threads)
        tasks = os.environ.get("POLYLOOP_TASKS", "lazy")
        worker.start(self.loop, turns.take, _wait_for, threads.run, producer, (), caller, None, tasks)
        self.loop.call_soon(turns.take)


def myself() -> int:
    """A handle of this process. Valgrind may know of none: there, `harness.callgrind` has left one as its input."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return os.dup(0)


async def one_by_one(pool: Pool, items: int) -> None:
    for n in range(items):
        await pool.apply(no_op, (n,))


async def gathered(pool: Pool, items: int) -> None:
    await asyncio.gather(*(pool.apply(no_op, (n,)) for n in range(items)))


def mapped(func: Callable[[int], Any]) -> Callable[[Pool, int], Awaitable[Any]]:
    async def run(pool: Pool, items: int) -> None:
        await pool.map(func, range(items))

    return run


PATHS: dict[str, Callable[[Pool, int], Awaitable[Any]]] = {
    "map of a no-op coroutine": mapped(no_op),
    "map of a plain no-op function": mapped(plain_no_op),
    "map of coroutines that suspend once": mapped(suspend_once),
    "gather of apply": gathered,
    "one apply at a time": one_by_one,
}


async def main(path: str, items: int) -> None:
    """Warm up, then run so many items."""
    with mock.patch("polyloop.pool.Roster", OneProcess):
        pool = Pool(1)
    await PATHS[path](pool, WARM_UP_ITEMS)
    await PATHS[path](pool, items)
    print(f"{items} items", flush=True)
    # Not the pool's own end, which would kill its worker: this process.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
