"""A worker is killed with work in hand: its started tasks run again, or fail by name. No other task notices."""

import asyncio
import os
import signal

from polyloop import Pool, WorkerDied


async def work(n: int) -> tuple[int, int]:
    await asyncio.sleep(0.02)
    return n, os.getpid()


async def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def with_retries() -> None:
    async with Pool(2, retries=1) as pool:
        done = []
        async for n, pid in pool.map(work, range(200)):
            done.append(n)
            if len(done) == 50:
                os.kill(pid, signal.SIGKILL)
    print("complete and in order:", done == list(range(200)))


async def without_retries() -> None:
    async with Pool(2) as pool:
        try:
            await pool.apply(crash)
        except WorkerDied as error:
            print("the crash is an error:", error.signal)
        print("the pool goes on:", await pool.apply(len, ("four",)))


async def main() -> None:
    await with_retries()
    await without_retries()


if __name__ == "__main__":
    asyncio.run(main())
