"""`stream`: values of a worker's generator as they come, its pauses, and its end from either side."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

import stream_targets as targets
from polyloop import Pool, PoolClosed, PoolTerminated, RemoteError, TaskTimeout, WorkerDied
from polyloop._core import STREAM_BYTES, STREAM_VALUES
from rendezvous import Bell

Run = Callable[[Coroutine[Any, Any, Any]], Any]
OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)

FEW = (0, 1, STREAM_VALUES - 1, STREAM_VALUES, STREAM_VALUES + 1, 5 * STREAM_VALUES)
ENDLESS = pytest.mark.parametrize(
    ("endless", "in_thread"),
    [(targets.endless, False), (targets.endless_plainly, False), (targets.endless_plainly, True)],
    ids=["async", "plain", "in-thread"],
)


# ------------------------------------------------------------------------------------------------------- what is given


@pytest.mark.parametrize(
    "function",
    [
        targets.numbers,
        targets.slow_numbers,
        targets.plain_numbers,
        targets.numbers_later,
        targets.listed_numbers,
        targets.Numbers,
        lambda count: (number for number in range(count)),
    ],
    ids=["async", "waiting", "plain", "coroutine", "list", "iterable", "by-value"],
)
def test_values_come_in_order_and_all_of_them(on_pool: OnPool, function: Any) -> None:
    async def main(pool: Pool) -> None:
        for count in FEW:
            assert [number async for number in pool.stream(function, count)] == list(range(count))

    on_pool(main)


def test_a_plain_generator_may_run_on_threads(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        stream = pool.options(in_thread=True).stream(targets.plain_numbers, 100)
        assert [number async for number in stream] == list(range(100))

    on_pool(main)


def test_large_values_come_whole(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        size = 3 * STREAM_BYTES + 5
        got = [blob async for blob in pool.stream(targets.blobs, 5, size)]
        assert [(len(blob), blob[0], blob[-1]) for blob in got] == [(size, number, number) for number in range(5)]

    on_pool(main)


def test_several_streams_and_tasks_go_on_at_once(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        async def collect(first: int) -> list[int]:
            return [number async for number in pool.stream(targets.numbers, 300, first=first)]

        collected = asyncio.gather(*(collect(first) for first in range(10)))
        assert await pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
        assert await collected == [list(range(first, first + 300)) for first in range(10)]

    on_pool(main)


def test_two_streams_of_one_worker_are_taken_in_turns() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            evens, odds = (pool.stream(targets.counted, 1) for _ in range(2))
            for _ in range(3 * STREAM_VALUES):
                assert await anext(evens) == await anext(odds) == b"\0"

    asyncio.run(main())


def test_a_stream_is_run_as_its_view_says() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert [name async for name in pool.options(name="x").stream(targets.names)] == ["x", "x"]
            assert [name async for name in pool.stream(targets.names)] == ["stream_targets:names"] * 2

    asyncio.run(main())


def test_a_stream_is_one_task_in_its_workers_life() -> None:
    async def main() -> None:
        async with Pool(1, maxtasksperchild=1) as pool:
            first = {pid async for pid in pool.stream(targets.pids, 3 * STREAM_VALUES)}
            second = {pid async for pid in pool.stream(targets.pids, 3)}
            assert len(first) == len(second) == 1
            assert first != second

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- its pauses


@pytest.mark.parametrize("loop_initializer", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("counted", [targets.counted, targets.counted_plainly], ids=["async", "plain"])
@pytest.mark.parametrize(
    ("size", "ahead", "batch"),
    [(1, STREAM_VALUES, STREAM_VALUES // 2), (STREAM_BYTES // 3, 3, 2), (2 * STREAM_BYTES, 1, 1)],
    ids=["small", "large", "huge"],
)
def test_the_generator_is_paused_while_nobody_takes_and_its_loop_goes_on(
    run: Run, counted: Any, size: int, ahead: int, batch: int, loop_initializer: Any
) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer) as pool, pool.stream(counted, size) as stream:

            async def settled(count: int) -> None:
                while await pool.apply(targets.progress) < count:
                    await asyncio.sleep(0.001)
                for _ in range(5):
                    await asyncio.sleep(0.001)
                    assert await pool.apply(targets.progress) == count

            await settled(ahead)
            for _ in range(batch - 1):
                await anext(stream)
            await settled(ahead)
            await anext(stream)
            await settled(ahead + batch)

    run(main())


# ------------------------------------------------------------------------------------------------- left by its consumer


@ENDLESS
@pytest.mark.parametrize("waits", [False, True], ids=["paused", "waiting"])
@pytest.mark.parametrize("way", ["async with", "aclose", "cancel", "break"])
def test_leaving_closes_the_generator_in_its_worker(
    run: Run, bell: Bell, endless: Any, in_thread: bool, waits: bool, way: str
) -> None:
    async def leave(pool: Pool, heard: list[str]) -> None:
        stream = pool.options(in_thread=in_thread).stream(endless, bell.path, waits)
        assert await anext(stream) == 0
        if waits:
            heard.append(await bell.hear())
        if way == "async with":
            async with stream:
                pass
        elif way == "aclose":
            await stream.aclose()
            await stream.aclose()
        elif way == "cancel":
            task = asyncio.ensure_future(_take_all(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async for _ in stream:
                break
            return
        heard.append("left")
        heard.extend(bell.heard())
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def main() -> None:
        async with Pool(1) as pool:
            heard: list[str] = []
            if way == "break":
                if waits:
                    return
                await leave(pool, heard)
                gc.collect()
                assert await bell.hear() == "closed"
            else:
                await leave(pool, heard)
                assert heard == [*(["waits"] if waits else []), "left", "closed"]
            assert await pool.apply(targets.returns_a_number) == 1

    run(main())


async def _take_all(stream: Any) -> None:
    async for _ in stream:
        pass


def test_a_generator_that_ignores_its_end_is_given_up_with_its_worker(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.3) as pool:
            first = await pool.apply(targets.pid)
            async with pool.stream(targets.ignores_its_end, bell.path) as stream:
                assert await anext(stream) == 1
                assert await bell.hear() == "waits"
            while await pool.apply(targets.pid) == first:
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_streams_that_are_dropped_do_not_keep_a_pool_from_closing(bell: Bell) -> None:
    async def main() -> None:
        pool = Pool(1)
        for _ in range(3):
            pool.stream(targets.endless, bell.path, False)
        await pool.aclose()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------ ended by its producer


@pytest.mark.parametrize("count", [0, 1, STREAM_VALUES, 2 * STREAM_VALUES])
def test_what_the_generator_raises_comes_after_its_values(on_pool: OnPool, count: int) -> None:
    async def main(pool: Pool) -> None:
        stream, got = pool.stream(targets.raises_after, count), []
        with pytest.raises(LookupError) as caught:
            async for number in stream:
                got.append(number)
        assert caught.value.args == ("no more", count)
        assert got == list(range(count))
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    on_pool(main)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (targets.raises_at_once, LookupError, "not even one"),
        (targets.returns_a_number, TypeError, "got int: use apply"),
        (targets.returns_text, TypeError, "got str: use apply"),
    ],
)
def test_a_function_that_gives_nothing_to_iterate_over_fails(function: Any, error: Any, text: str) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(error, match=text):
                await anext(pool.stream(function))

    asyncio.run(main())


def test_an_async_generator_is_for_stream_alone() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            for _ in range(2):
                assert [number async for number in pool.stream(targets.numbers, 1)] == [0]
                with pytest.raises(TypeError, match=r"use pool\.stream"):
                    await pool.apply(targets.numbers, (1,))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["unsendable", "unreadable"])
def test_a_value_that_can_not_travel_ends_the_stream(bell: Bell, kind: str) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            stream = pool.stream(targets.gives, bell.path, kind)
            assert await anext(stream) == 1
            with pytest.raises(RemoteError, match="stays here" if kind == "unsendable" else "can't be read"):
                await anext(stream)
            assert bell.heard() == ["closed"]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(main())


def test_a_dead_worker_ends_the_stream_after_what_it_gave(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            got = []
            with pytest.raises(WorkerDied) as caught:
                async for number in pool.stream(targets.dies_after, 40):
                    got.append(number)
            assert (got, caught.value.exitcode, caught.value.task) == (list(range(40)), 9, "stream_targets:dies_after")

    run(main())


def test_a_stream_that_gave_values_is_not_run_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            again = pool.options(retries=2, retry_on=(WorkerDied, LookupError))
            assert [number async for number in again.stream(targets.dies_once_after, 0, f"{tmp_path}/a")] == [-1]
            with pytest.raises(WorkerDied):
                await _take_all(again.stream(targets.dies_once_after, 1, f"{tmp_path}/b"))
            for count, runs in ((0, 3), (1, 1)):
                mark = tmp_path / f"runs-{count}"
                with pytest.raises(LookupError):
                    await _take_all(again.stream(targets.raises_after, count, str(mark)))
                assert len(mark.read_text().splitlines()) == runs

    asyncio.run(main())


@pytest.mark.parametrize("endless", [targets.endless, targets.endless_plainly], ids=["waits", "blocks"])
def test_a_timeout_is_for_the_running_time_of_the_stream(bell: Bell, endless: Any) -> None:
    async def main() -> None:
        async with Pool(1, timeout=0.2) as pool:
            with pytest.raises(TaskTimeout, match=rf"stream_targets:{endless.__name__} ran longer than 0\.2 s"):
                await _take_all(pool.stream(endless, bell.path, True))
            assert bell.heard() == ["waits", "closed"]

    asyncio.run(main())


def test_a_stream_that_is_not_taken_runs_out_of_time_too(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, timeout=0.2) as pool:
            stream = pool.stream(targets.endless, bell.path, False)
            assert await bell.hear() == "closed"
            with pytest.raises(TaskTimeout):
                await _take_all(stream)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------- and its pool


def test_a_closing_pool_finishes_the_streams_it_has() -> None:
    async def main() -> None:
        pool = Pool(1)
        stream = pool.stream(targets.numbers, 3 * STREAM_VALUES)
        assert await anext(stream) == 0
        pool.close()
        with pytest.raises(PoolClosed):
            pool.stream(targets.numbers, 1)
        ended = asyncio.ensure_future(pool.join())
        assert [number async for number in stream] == list(range(1, 3 * STREAM_VALUES))
        await ended

    asyncio.run(main())


def test_a_terminated_pool_ends_its_streams(run: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            stream = pool.stream(targets.endless, bell.path, True)
            assert (await anext(stream), await bell.hear()) == (0, "waits")
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
        with pytest.raises(PoolTerminated):
            await waiting
        assert bell.heard() == ["closed"]
        await stream.aclose()

    run(main())


def test_a_stream_keeps_its_pool_alive() -> None:
    async def main() -> None:
        stream = Pool(1).stream(targets.numbers, 3 * STREAM_VALUES)
        gc.collect()
        assert [number async for number in stream] == list(range(3 * STREAM_VALUES))

    with pytest.warns(ResourceWarning, match="neither closed nor terminated"):
        asyncio.run(main())
        gc.collect()
