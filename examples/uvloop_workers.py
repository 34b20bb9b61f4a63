"""Each worker runs the event loop you give it, after the initializer you give it."""

import asyncio
import os

import uvloop

from polyloop import Pool

greeting = "never set"


def prepare(text: str) -> None:
    """Runs once in each worker before its first task."""
    global greeting
    greeting = f"{text} from a worker"


async def report() -> tuple[str, str, int]:
    return greeting, type(asyncio.get_running_loop()).__module__, os.getpid()


async def main() -> None:
    async with Pool(2, initializer=prepare, initargs=("hello",), loop_initializer=uvloop.new_event_loop) as pool:
        text, loop, pid = await pool.apply(report)
    print(f"{text}, on {loop}, in another process: {pid != os.getpid()}")


if __name__ == "__main__":
    asyncio.run(main())
