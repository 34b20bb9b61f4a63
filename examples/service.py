"""A web service that keeps serving while its workers are being killed.

`python examples/service.py 5` serves for 5 seconds. Needs aiohttp. Ten clients send one request after another, while
a worker is SIGKILLed twice a second. What it was computing is computed again by another, and no client notices.
"""

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from polyloop import Pool

SECONDS = 5.0
WORKERS = 4
CLIENTS = 10
KILL_EVERY_S = 0.5
POOL = web.AppKey("pool", Pool)


def count_primes(limit: int) -> int:
    """A few milliseconds of a core, which would keep the server's event loop from serving."""
    return sum(all(n % divisor for divisor in range(2, int(n**0.5) + 1)) for n in range(2, limit))


async def own_pool(app: web.Application) -> AsyncIterator[None]:
    """The pool lives as long as the service. A request that has lost its worker three times is given up."""
    async with Pool(WORKERS, retries=3) as pool:
        await pool.ready()
        app[POOL] = pool
        yield
        await pool.aclose(timeout=10)


async def primes(request: web.Request) -> web.Response:
    limit = int(request.match_info["limit"])
    return web.json_response({"primes": await request.app[POOL].submit(count_primes, limit)})


async def send_requests(url: str, until_s: float, answers: Counter[int]) -> None:
    async with aiohttp.ClientSession() as session:
        while time.perf_counter() < until_s:
            async with session.get(f"{url}/primes/2000") as response:
                answers[response.status] += 1


async def kill_workers(pool: Pool, until_s: float) -> None:
    while time.perf_counter() < until_s:
        await asyncio.sleep(KILL_EVERY_S)
        ready = [worker.pid for worker in pool.stats().workers if worker.pid and worker.state == "ready"]
        if ready:
            os.kill(random.choice(ready), signal.SIGKILL)


async def main(seconds: float) -> None:
    app = web.Application()
    app.cleanup_ctx.append(own_pool)
    app.router.add_get("/primes/{limit}", primes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://127.0.0.1:{1}".format(*runner.addresses[0])
        answers: Counter[int] = Counter()
        until_s = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(kill_workers(app[POOL], until_s))
            for _ in range(CLIENTS):
                group.create_task(send_requests(url, until_s, answers))
        stats = app[POOL].stats()
    finally:
        await runner.cleanup()
    print("requests answered:", answers[200])
    print("requests failed:", answers.total() - answers[200])
    print("worker deaths:", stats.restarts["died"])
    print("requests run again:", stats.retried)


if __name__ == "__main__":
    logging.getLogger("polyloop").setLevel(logging.ERROR)  # one WARNING for each death, else
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
