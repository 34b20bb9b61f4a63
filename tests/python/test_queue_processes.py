"""`Queue` between processes: each start method and loop, forks, deaths and stops."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

import queue_targets as targets
from polyloop import Pool, Process, Queue, Worker

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(90)


def test_items_go_there_and_back(start_method: str, run: Run) -> None:
    async def main() -> None:
        inbox: Queue[Any] = Queue(2)
        outbox: Queue[Any] = Queue()
        process = Process(target=targets.echo, args=(inbox,), kwargs={"outbox": outbox})
        process.start()
        for item in (1, "two", b"3" * 500_000):
            await inbox.aput(item)
            assert await outbox.aget() == item
        inbox.put(None)
        await process.join()
        assert process.exitcode == 0

    run(main())


def test_items_of_many_processes_are_in_order_for_each(start_method: str, run: Run) -> None:
    async def main() -> None:
        queue: Queue[tuple[int, int]] = Queue(8)
        workers = [Worker(target=targets.put_range, args=(queue, name, 100)) for name in range(3)]
        for worker in workers:
            worker.start()
        got = [await queue.aget() for _ in range(300)]
        for name in range(3):
            assert [number for other, number in got if other == name] == list(range(100))
        await asyncio.gather(*workers)

    run(main())


def test_a_queue_goes_to_a_pool_with_its_initargs(start_method: str, run: Run) -> None:
    async def main() -> None:
        queue: Queue[int] = Queue()
        async with Pool(2, initializer=targets.keep, initargs=(queue,)) as pool:
            await pool.map(targets.put_kept, range(20))
            assert sorted([queue.get() for _ in range(20)]) == list(range(20))
            with pytest.raises(TypeError, match="among the arguments of a Process"):
                await pool.apply(targets.sleep, (queue,))

    run(main())


def test_what_a_process_put_outlives_it(start_method: str, run: Run) -> None:
    async def main() -> None:
        queue: Queue[Any] = Queue()
        items = ["small", b"large" * 100_000]
        await Process(target=targets.put_and_leave, args=(queue, items))
        await Process(target=targets.kill_itself, args=(queue,))
        assert [queue.get_nowait() for _ in range(3)] == [*items, "last words"]

    run(main())


def test_a_queue_travels_beside_what_only_cloudpickle_can_send(start_method: str, run: Run) -> None:
    async def main() -> None:
        queue: Queue[Any] = Queue(1)

        async def put(queue: Queue[Any], value: Callable[[], int]) -> None:
            await queue.aput(value())

        await Process(target=put, args=(queue, lambda: 7))
        assert queue.get_nowait() == 7

    run(main())


def test_a_forked_child_uses_the_queue_as_its_own() -> None:
    queue: Queue[Any] = Queue()
    queue.put("parent's")  # so that the parent has a seat, which the child must not use
    assert os.waitpid(targets.fork_and_put(queue, "child's"), 0)[1] == 0
    queue.put("parent's again")
    assert [queue.get() for _ in range(3)] == ["parent's", "child's", "parent's again"]


def test_a_stopped_process_keeps_nobody_from_the_items(run: Run) -> None:
    async def main() -> None:
        queue: Queue[Any] = Queue(2)
        told: Queue[Any] = Queue()
        stopped = [
            Process(target=target, args=(queue, told)) for target in (targets.get_and_tell, targets.get_blocking)
        ]
        for process in stopped:
            process.start()
        queue.put("a")
        queue.put("b")
        assert {await told.aget(), await told.aget()} == {"a", "b"}
        await asyncio.sleep(0.05)  # they sleep in aget and get
        for process in stopped:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(queue.aget())
        await asyncio.sleep(0.01)
        for number in range(20):
            await queue.aput(number)
            assert await waiting == number
            waiting = asyncio.create_task(queue.aget())
            await asyncio.sleep(0)
        waiting.cancel()
        for process in stopped:
            os.kill(process.pid or 0, signal.SIGCONT)
            queue.put(None)
        for process in stopped:
            await process.join()

    run(main())


STORM_KILLS = 30


def test_a_storm_of_deaths_loses_and_doubles_nothing(run: Run) -> None:
    """Getters are killed at random while this process puts. What they told counts; the rest is still there.

    One that dies between getting and telling takes its item along: at most one each.
    """

    async def main() -> None:
        queue: Queue[Any] = Queue(8)
        told: Queue[Any] = Queue()
        chance = random.Random(5)
        heard: list[int] = []

        async def hear() -> None:
            while (item := await told.aget()) is not None:
                heard.append(item)

        hearing = asyncio.create_task(hear())

        def start() -> Process:
            target = chance.choice([targets.get_and_tell, targets.get_blocking])
            process = Process(target=target, args=(queue, told))
            process.start()
            return process

        getters, count = [start() for _ in range(3)], 0
        for _ in range(STORM_KILLS):
            for _ in range(chance.randrange(40)):
                await queue.aput(count)
                count += 1
            victim = getters.pop(0)
            victim.kill()
            getters.append(start())
            await victim.join()
        for _ in getters:
            await queue.aput(None)
        for getter in getters:
            await getter.join()
            assert getter.exitcode == 0
        await told.aput(None)
        await hearing
        assert len(set(heard)) == len(heard), "doubled"
        assert set(heard) <= set(range(count))
        assert count - len(heard) <= STORM_KILLS, "more lost than were on their way"
        assert queue.empty()

    run(main())


def test_the_interpreter_exits_at_once_and_what_was_put_is_there() -> None:
    async def main() -> None:
        queue: Queue[Any] = Queue()
        process = Process(target=targets.put_range, args=(queue, 0, 20_000))
        await process
        assert process.exitcode == 0
        assert queue.qsize() == 20_000

    asyncio.run(main())


if sys.version_info >= (3, 12):
    pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
