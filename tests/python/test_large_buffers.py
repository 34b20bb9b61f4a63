"""Large buffers: they arrive in place and whole, stay as long as anybody looks at them, and are given back."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import buffer_targets as targets
from buffer_targets import Array
from polyloop import Pool, RemoteError, WorkerDied
from polyloop._core import LARGE_BYTES
from rendezvous import Bell, Gate

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)

SIZE = 300_000


def array(value: int = 1, size: int = SIZE) -> Array:
    return np.full(size, value, dtype=np.uint8)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what comes of itself; the watchdog ends what does not."""
    while not condition():
        await asyncio.sleep(0.02)


async def pid_of_only(pool: Pool) -> int:
    return await pool.apply(os.getpid)


@dataclass
class Record:
    name: str
    data: Array


def large_values() -> list[Any]:
    numbers = np.arange(90_000, dtype=np.float64)
    shared = array(5)
    return [
        numbers,
        numbers.reshape(300, 300),
        np.asfortranarray(numbers.reshape(300, 300)),
        numbers[::2],
        np.array([(1, 2.5)] * 20_000, dtype=[("a", "i4"), ("b", "f8")]),
        bytes(range(256)) * 1000,
        bytearray(range(256)) * 1000,
        {"nested": [array(2), (b"x" * SIZE, bytearray(b"y" * SIZE))]},
        [b"a" * LARGE_BYTES, b"b" * (LARGE_BYTES - 1), "c"],
        Record("both", array(3)),
        (shared, shared),
        list(range(100_000)),
        "text" * 100_000,
    ]


def assert_equal(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert right.flags.f_contiguous or not left.flags.f_contiguous
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert_equal(list(left.items()), list(right.items()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    elif isinstance(left, Record):
        assert_equal((left.name, left.data), (right.name, right.data))
    else:
        assert left == right


# ------------------------------------------------------------------------------------------------------------- arriving


def test_what_is_large_arrives_whole_in_both_directions(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            values = large_values()
            for value, back in zip(values, await pool.map(targets.echo, values), strict=True):
                assert_equal(value, back)
            shared = await pool.apply(targets.echo, (values[10],))
            assert shared[0] is shared[1]
            product = await pool.apply(targets.keywords, kwds={"data": array(2), "scale": 3})
            np.testing.assert_array_equal(product, array(6))

    run(main())


@pytest.mark.parametrize("size", [9, SIZE])
def test_memoryviews_arrive_as_memoryviews_of_the_same_format_and_shape(size: int) -> None:
    async def main() -> None:
        numbers = np.arange(2 * size, dtype=np.int32)
        views = [
            memoryview(bytes(2 * size)),
            memoryview(bytearray(2 * size)),
            memoryview(numbers),
            memoryview(numbers.reshape(2, size)),
            memoryview(numbers)[::2],
        ]
        async with Pool(1) as pool:
            for view, back in zip(views, await pool.map(targets.echo, views), strict=True):
                assert type(back) is memoryview
                assert (back.format, back.shape, back.tolist()) == (view.format, view.shape, view.tolist())
            nested = await pool.apply(targets.echo, ({"view": views[1]},))
            assert (type(nested["view"]), nested["view"].readonly) == (memoryview, False)
            buffer = await pool.apply(targets.echo, ([pickle.PickleBuffer(bytearray(b"z" * size))],))
            assert bytes(buffer[0]) == b"z" * size

    asyncio.run(main())


def test_arrays_are_used_where_they_arrive_and_may_be_changed_there() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            ours = array(1)
            assert await pool.apply(targets.describe, (ours,)) == (True, True, SIZE)
            back = await pool.apply(targets.add_one, (ours,))
            assert targets.describe(back) == (True, True, 2 * SIZE)
            back += 1
            assert (int(back.sum()), int(ours.sum())) == (3 * SIZE, SIZE)

    asyncio.run(main())


def test_what_is_read_only_stays_read_only() -> None:
    async def main() -> None:
        async with Pool(1, retries=1) as pool:
            ours = array(1)
            ours.flags.writeable = False
            assert await pool.apply(targets.describe, (ours,)) == (True, False, SIZE)
            back = await pool.apply(targets.make_read_only, (SIZE,))
            assert targets.describe(back) == (True, False, 0)

    asyncio.run(main())


def test_large_text_and_large_pickles_travel_apart() -> None:
    async def main() -> None:
        for value in ("ü" * SIZE, list(range(SIZE)), {"key": b"x" * SIZE}):
            async with Pool(1) as pool:
                assert await pool.apply(targets.echo, (value,)) == value
                assert targets.blocks() == 2

    asyncio.run(main())


def test_small_buffers_do_not_travel_apart() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            size = LARGE_BYTES // 2
            assert await pool.apply(targets.describe, (array(1, size),)) == (False, True, size)
            assert targets.blocks() == 0

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize("spoil", [targets.spoil_and_die_once, targets.spoil_and_raise_once])
def test_a_task_that_runs_again_gets_its_arguments_as_they_were(spoil: Callable[..., float], tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(1, retries=1, retry_on=(WorkerDied, ConnectionResetError)) as pool:
            assert await pool.apply(spoil, (array(1), str(tmp_path / "marker"))) == SIZE

    asyncio.run(main())


def test_a_task_that_may_run_again_changes_a_copy_and_its_last_run_changes_the_original() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert await pool.options(retries=1).apply(targets.describe, (array(1),)) == (False, True, SIZE)
            assert await pool.options(retries=0).apply(targets.describe, (array(1),)) == (True, True, SIZE)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------- lifetime


def test_a_result_outlives_its_worker_and_its_pool(start_method: str) -> None:
    async def main() -> list[Array]:
        async with Pool(1, maxtasksperchild=1) as pool:
            results = [await pool.apply(targets.make, (SIZE, n)) for n in range(3)]
        async with Pool(1) as pool:
            results.append(await pool.apply(targets.make, (SIZE, 3)))
            pid = await pid_of_only(pool)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: pid not in [process.pid for process in pool.processes])
            results.append(await pool.apply(targets.make, (SIZE, 4)))
        return results

    results = asyncio.run(main())
    gc.collect()
    assert [set(result.tolist()) for result in results] == [{n} for n in range(5)]
    for result in results:
        result += 1
    del results, result
    gc.collect()
    assert targets.state()[:2] == (0, 0)


def test_a_view_of_a_part_keeps_the_whole() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            part = (await pool.apply(targets.make, (SIZE, 9)))[5:8]
            for n in range(5):
                await pool.apply(targets.make, (SIZE, n))
            assert part.tolist() == [9, 9, 9]

    asyncio.run(main())


def test_what_a_task_keeps_in_its_worker_stays_as_it_was() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            for n in range(1, 4):
                await pool.apply(targets.keep, (array(n),))
                await pool.apply(targets.echo, (array(77),))
            assert await pool.apply(targets.sums_of_kept) == [SIZE, 2 * SIZE, 3 * SIZE]
            await pool.apply(targets.forget)
            assert await pool.apply(targets.describe, (array(1),)) == (True, True, SIZE)

    asyncio.run(main())


def test_a_fork_of_the_client_keeps_the_results_it_has() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            result = await pool.apply(targets.make, (SIZE, 9))
            go_reader, go_writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(go_reader, 1)
                os._exit(0 if int(result.sum()) == 9 * SIZE else 1)
            del result
            for n in range(5):  # none of these is written where the child looks
                await pool.apply(targets.make, (SIZE, n))
            os.write(go_writer, b".")
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert status == 0
            os.close(go_reader)
            os.close(go_writer)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_fork_of_a_task_has_its_arguments_and_is_no_second_user_of_them() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            for n in range(3):
                assert await pool.apply(targets.sum_in_fork, (array(n),)) == n * SIZE

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- giving back


def test_thousands_of_rounds_use_the_same_few_blocks() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            for _ in range(20):
                await pool.apply(targets.echo, (array(1, LARGE_BYTES),))
            client, private = targets.state(), targets.private_bytes()
            worker = await pool.apply(targets.state)
            for n in range(2000):
                back = await pool.apply(targets.echo, (array(n % 200, LARGE_BYTES),))
                assert back[0] == back[-1] == n % 200
            del back
            assert targets.private_bytes() - private < 8 << 20
            now = targets.state()
            assert (now[0], now[2]) <= (client[0] + 2, client[2] + 2)
            now = await pool.apply(targets.state)
            assert (now[0], now[1], now[2]) <= (worker[0] + 2, 0, worker[2])

    asyncio.run(main())


def test_memory_is_given_back_in_both_processes_when_nobody_needs_it(start_method: str) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            pid = await pid_of_only(pool)
            kept = await pool.map(targets.echo, [array(n) for n in range(8)])
            assert targets.blocks() > 8
            assert targets.blocks(pid) > 8
            del kept
            await until(lambda: targets.blocks() == targets.blocks(pid) == 0)
            assert targets.block_fds() == targets.block_fds(pid) == 0
            assert int((await pool.apply(targets.echo, (array(1),))).sum()) == SIZE

    asyncio.run(main())


def test_many_results_can_be_held_and_are_given_back_at_once() -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            held = await pool.starmap(targets.make, [(LARGE_BYTES, n % 200) for n in range(300)])
            assert [int(result[0]) for result in held] == [n % 200 for n in range(300)]
            assert targets.block_fds() == 0
            del held
            await until(lambda: targets.blocks() == 0)

    asyncio.run(main())


def test_a_killed_worker_gives_back_what_it_held_and_nobody_elses(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            calls = [
                asyncio.ensure_future(pool.apply(targets.ring_and_wait, (array(n), bell.path, gate.path)))
                for n in (1, 2)
            ]
            first = int(await bell.hear())
            await bell.hear()
            os.kill(first, signal.SIGKILL)
            done, [left] = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert isinstance(done.pop().exception(), WorkerDied)
            for n in range(4):
                await pool.apply(targets.echo, (array(50 + n),)) if n % 2 else None
            gate.open()
            assert await left in (SIZE, 2 * SIZE)
            del done
            await until(lambda: targets.state()[:2] == (0, 0))

    asyncio.run(main())


def test_deaths_with_large_arguments_and_results_leave_nothing_behind() -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            await asyncio.gather(*(pool.apply(targets.echo, (array(n),)) for n in range(8)))
            for n in range(6):
                calls = [pool.apply(targets.echo, (array(n),)) for n in range(6)]
                calls.append(pool.apply(targets.make_and_die, (SIZE,)))
                ends = await asyncio.gather(*calls, return_exceptions=True)
                assert isinstance(ends[-1], WorkerDied)
                for end in ends[:-1]:
                    assert isinstance(end, np.ndarray | WorkerDied)
            del ends, end
            gc.collect()
            await until(lambda: targets.state()[:2] == (0, 0))

    asyncio.run(main())


def test_cancelled_tasks_give_back_their_arguments(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            calls = [
                asyncio.ensure_future(pool.apply(targets.ring_and_wait, (array(n), bell.path, gate.path)))
                for n in range(4)
            ]
            await bell.hear()
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert all(call.cancelled() for call in calls)
            await until(lambda: targets.state()[:2] == (0, 0))

    asyncio.run(main())


def test_a_result_that_can_not_be_sent_keeps_no_memory() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(RemoteError, match="cannot send a value of type"):
                await pool.apply(targets.unsendable)
            with pytest.raises(TypeError):
                await pool.apply(targets.echo, ((array(1), (n for n in ())),))
            assert (await pool.apply(targets.state))[:2] == targets.state()[:2] == (0, 0)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------------- limits


@contextmanager
def small_files() -> Iterator[None]:
    """Let this process write no large files. Over before the test is: what pytest writes then may go to one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    targets.limit_files(64 << 10)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_no_block_can_be_made_large_values_travel_with_the_rest() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.limit_files, (64 << 10,))
            with small_files():
                for value in large_values()[:8]:
                    assert_equal(value, await pool.apply(targets.echo, (value,)))
            assert targets.state()[:2] == (await pool.apply(targets.state))[:2] == (0, 0)

    asyncio.run(main())


def test_without_descriptors_the_client_sends_large_arguments_with_the_rest() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.state)
            limits = targets.limit_descriptors()
            try:
                assert await pool.apply(targets.later, (array(1),)) == SIZE
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(main())


def test_a_worker_without_descriptors_says_so_and_goes_on() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.limit_descriptors)
            for _ in range(3):
                with pytest.raises(OSError, match=r"could not be received.*file descriptors"):
                    await pool.apply(targets.later, (array(1),))
            assert await pool.apply(abs, (-1,)) == 1
            await until(lambda: targets.state()[:2] == (0, 0))

    asyncio.run(main())


def test_more_large_arguments_than_there_are_blocks_arrive_all_the_same() -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            sizes = [LARGE_BYTES + n for n in range(150)]
            calls = [pool.apply(targets.later, (array(1, size),)) for size in sizes]
            assert await asyncio.gather(*calls) == sizes
            assert targets.block_fds() <= 64

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_map_draws_no_more_large_items_than_there_are_blocks(is_async: bool, bell: Bell, gate: Gate) -> None:
    drawn: list[int] = []

    def items() -> Iterator[tuple[Array, str, str]]:
        for n in range(200):
            drawn.append(n)
            yield array(n % 100), bell.path, gate.path

    async def async_items() -> AsyncIterator[tuple[Array, str, str]]:
        for item in items():
            yield item

    async def main() -> None:
        async with Pool(1, childconcurrency=2) as pool:
            result = pool.starmap(targets.ring_and_wait, async_items() if is_async else items())
            await bell.hear()
            await bell.hear()
            await asyncio.sleep(0.05)
            assert 2 <= len(drawn) <= 64
            gate.open(200)
            assert await result == [n % 100 * SIZE for n in range(200)]
            assert len(drawn) == 200

    asyncio.run(main())


def test_a_small_call_is_not_held_up_by_memory_that_is_scarce() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            for n in range(1, 61):  # held in the worker: scarce from here on
                await pool.apply(targets.keep, (array(n, LARGE_BYTES),))
            sums = await pool.map(targets.later, [array(1, LARGE_BYTES) for _ in range(30)])
            assert sums == [LARGE_BYTES] * 30
            assert await pool.map(abs, range(100)) == list(range(100))
            await pool.apply(targets.forget)
            await until(lambda: targets.blocks() == 0)

    asyncio.run(main())
