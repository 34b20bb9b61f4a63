"""A coroutine on a process of its own: `Process` for its effects, `Worker` for its result."""

import asyncio
import os

from polyloop import Process, Worker


async def leave(code: int) -> None:
    os._exit(code)


async def count_words(text: str) -> int:
    return len(text.split())


async def fail() -> None:
    raise ValueError("raised in the worker, caught at home")


async def main() -> None:
    process = Process(target=leave, args=(3,))
    process.start()
    await process.join()
    print("exit code:", process.exitcode)

    print("words:", await Worker(target=count_words, args=("to be or not to be",)))

    try:
        await Worker(target=fail)
    except ValueError as error:
        print("caught:", error)


if __name__ == "__main__":
    asyncio.run(main())
