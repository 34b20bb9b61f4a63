"""Two queues, each with a worker of its own, and a scheduler that sends every tenant to its own queue."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from polyloop import Pool, RoundRobin
from polyloop.scheduler import QueueID, TaskID


class ByTenant(RoundRobin):
    """Picks the queue by the first argument, so that what a worker caches for a tenant stays warm."""

    def schedule_task(
        self, task_id: TaskID, func: Callable[..., Awaitable[Any]], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> QueueID:
        tenant: int = args[0]
        return self.qids[tenant % len(self.qids)]


async def serve(tenant: int) -> tuple[int, int]:
    return tenant, os.getpid()


async def main() -> None:
    async with Pool(2, queuecount=2, scheduler=ByTenant()) as pool:
        served = await pool.map(serve, [0, 1] * 50)
    workers: dict[int, set[int]] = {0: set(), 1: set()}
    for tenant, pid in served:
        workers[tenant].add(pid)
    print("workers per tenant:", [len(pids) for pids in workers.values()])
    print("shared by tenants:", len(workers[0] & workers[1]))


if __name__ == "__main__":
    asyncio.run(main())
