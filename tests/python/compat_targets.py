"""What the workers of compat's tests run, and subclasses as programs have them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from polyloop.compat import Pool, RoundRobin
from polyloop.compat.core import Process
from polyloop.compat.pool import PoolWorker
from polyloop.compat.types import QueueID, TaskID


async def double(n: int) -> int:
    return n * 2


async def fail(text: str) -> NoReturn:
    raise LookupError(text)


async def leave() -> NoReturn:
    os._exit(3)


async def pid() -> int:
    return os.getpid()


async def lock() -> Any:
    import threading

    return threading.Lock()


class TracingPool(Pool):
    """Looks at each task as it goes in and comes back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trace: list[tuple[str, int]] = []
        super().__init__(*args, **kwargs)

    def queue_work(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskID:
        tid = super().queue_work(func, args, kwargs)
        self.trace.append(("in", tid))
        return tid

    def finish_work(self, task_id: TaskID, value: Any, tb: Any) -> None:
        self.trace.append(("out", task_id))
        super().finish_work(task_id, value, tb)

    async def results(self, tids: Sequence[TaskID]) -> Sequence[Any]:
        return [f"{value}!" for value in await super().results(tids)]


class NamingWorker(PoolWorker):
    """Has something of its own to do in the child."""

    async def run(self) -> None:
        os.environ["WORKER_NAME"] = "mine"
        await super().run()


class OwnWorkersPool(Pool):
    """Starts workers of a class of its own."""

    def create_worker(self, qid: QueueID) -> Process:
        tx, rx = self.queues[qid]
        worker = NamingWorker(tx, rx, self.maxtasksperchild, self.childconcurrency)
        worker.start()
        return worker


class OwnLoopPool(Pool):
    """Does something beside the pool's own loop."""

    ticks = 0

    async def loop(self) -> None:
        ticking = asyncio.create_task(self.tick())
        await super().loop()
        ticking.cancel()

    async def tick(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.sleep(0.01)


async def worker_name() -> str | None:
    return os.environ.get("WORKER_NAME")


class ByFirstArgument(RoundRobin):
    def schedule_task(self, _task_id: Any, _func: Any, args: Any, _kwargs: Any) -> QueueID:
        return self.qids[args[0] % len(self.qids)]


async def pid_for(_n: int) -> int:
    return os.getpid()


class Counting(Process):
    """A process subclass with a bound method as its target."""

    def __init__(self, upto: int) -> None:
        super().__init__(target=self.count)
        self.upto = upto

    async def count(self) -> None:
        os._exit(self.upto)
