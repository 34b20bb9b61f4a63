"""`map` gives results in the order of its input, each as soon as it and all before it are there."""

import asyncio
import random

from polyloop import Pool


async def square(n: int) -> int:
    await asyncio.sleep(random.random() / 100)
    return n * n


async def power(base: int, exponent: int) -> int:
    return int(base**exponent)


async def main() -> None:
    async with Pool(2) as pool:
        print("awaited:", await pool.map(square, range(8)))

        async for result in pool.map(square, range(100, 104)):
            print("next:", result)

        print("starmap:", await pool.starmap(power, [(2, 10), (3, 4)]))


if __name__ == "__main__":
    asyncio.run(main())
