"""One call at a time: a coroutine, a plain function, and an exception that arrives as itself."""

import asyncio
import os

from polyloop import Pool


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0.01)
    return a + b


def factorial(n: int) -> int:
    return n * factorial(n - 1) if n else 1


async def fail(name: str) -> None:
    raise LookupError(f"no such user: {name}")


async def main() -> None:
    async with Pool(2) as pool:
        print("2 + 3 =", await pool.apply(add, (2, 3)))
        print("10! =", await pool.apply(factorial, (10,)))
        print("elsewhere:", await pool.apply(os.getpid) != os.getpid())
        try:
            await pool.apply(fail, ("ada",))
        except LookupError as error:
            print("raised:", error)


if __name__ == "__main__":
    asyncio.run(main())
