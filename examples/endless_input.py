"""Input is drawn as room appears, so that an endless generator, sync or async, is as good as a list."""

import asyncio
import itertools
from collections.abc import AsyncIterator

from polyloop import Pool


async def is_prime(n: int) -> tuple[int, bool]:
    return n, n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


async def ticks() -> AsyncIterator[int]:
    for n in range(5):
        await asyncio.sleep(0.01)
        yield n


async def main() -> None:
    async with Pool(2) as pool:
        print("from an async generator:", [n async for n, prime in pool.map(is_prime, ticks()) if prime])

        primes = []
        async for n, prime in pool.map(is_prime, itertools.count(1_000_000)):
            if prime:
                primes.append(n)
            if len(primes) == 3:
                break
        print("first primes above a million:", primes)


if __name__ == "__main__":
    asyncio.run(main())
