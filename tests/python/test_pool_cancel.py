"""Cancelling what blocks its worker: it is interrupted, it alone, and its worker goes on."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop

import cancel_targets as targets
from polyloop import Pool, context
from polyloop._core import LARGE_BYTES
from rendezvous import Bell, Gate

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]

FOREVER_S = 30.0
LOOPS = pytest.mark.parametrize("loop_initializer", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
DEAF_TO_SIGNALS = sys.version_info[:3] == (3, 13, 0)
"""In a process forked by a thread this CPython runs no signal handler while Python computes."""

BLOCKING = [
    targets.sleep,
    targets.read,
    targets.wait_for_lock,
    targets.compute,
    targets.sleep_in_coroutine,
    targets.sleep_later_in_coroutine,
    targets.compute_later_in_coroutine,
    targets.sleep_in_what_it_returns,
]
COMPUTING = (targets.compute, targets.compute_later_in_coroutine)


async def pids(pool: Pool) -> set[int]:
    """All workers of the pool, once they have been started."""
    while None in (found := [process.pid for process in pool.processes]):
        await asyncio.sleep(0.01)
    return {pid for pid in found if pid is not None}


async def start(pool: Pool, bell: Bell, function: Any, *args: Any) -> asyncio.Future[Any]:
    """Have the pool run it, up to where it rings."""
    call = asyncio.ensure_future(pool.apply(function, (bell.path, *args)))
    await bell.hear()
    return call


async def cancel(call: asyncio.Future[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def check_pool_is_well(pool: Pool) -> None:
    assert await pool.map(targets.echo, range(50)) == list(range(50))
    assert pool.stats().running == 0


# ------------------------------------------------------------------------------------------------------ what is stopped


@pytest.mark.parametrize("function", BLOCKING)
def test_whatever_blocks_a_worker_is_interrupted_before_the_caller_goes_on(
    on_pool: OnPool, bell: Bell, function: Any
) -> None:
    if DEAF_TO_SIGNALS and context.get_context().get_start_method() == "fork" and function in COMPUTING:
        pytest.skip("CPython 3.13.0 does not let signals interrupt a process forked by a thread")

    async def main(pool: Pool) -> None:
        workers = await pids(pool)
        await cancel(await start(pool, bell, function))
        assert bell.heard() == ["CancelledError"]
        await check_pool_is_well(pool)
        assert await pids(pool) == workers

    on_pool(main)


def test_what_blocks_while_its_arguments_are_loaded_is_interrupted(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        workers = await pids(pool)
        call = asyncio.ensure_future(pool.apply(targets.echo, (targets.SlowToLoad(bell.path),)))
        assert await bell.hear() == "started"
        await cancel(call)
        assert bell.heard() == ["CancelledError"]
        await check_pool_is_well(pool)
        assert await pids(pool) == workers

    on_pool(main)


def test_leaving_a_timeout_interrupts_it(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as scope:
                call = asyncio.ensure_future(pool.apply(targets.sleep, (bell.path,)))
                assert await bell.hear() == "started"
                scope.reschedule(asyncio.get_running_loop().time())
                await call
        assert bell.heard() == ["CancelledError"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.apply(targets.sleep, (bell.path,)), 0.05)
        assert bell.heard() in (["started", "CancelledError"], [])
        await check_pool_is_well(pool)

    on_pool(main)


def test_a_map_that_is_cancelled_interrupts_its_items(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        results = asyncio.ensure_future(pool.map(targets.sleep, [bell.path] * 20).results())
        assert [await bell.hear(), await bell.hear()] == ["started"] * 2
        await cancel(results)
        assert bell.heard() == ["CancelledError"] * 2, "and the others never started"
        await check_pool_is_well(pool)

    on_pool(main)


def test_a_map_that_is_left_early_interrupts_its_items(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        items = [(bell.path, True), (bell.path, False), (bell.path, False)]
        async with pool.starmap(targets.return_or_sleep, items) as results:
            async for result in results:
                assert result == "returned"
                assert await bell.hear() == "started"
                break
        assert bell.heard().count("CancelledError") >= 1
        await check_pool_is_well(pool)

    on_pool(main)


def test_the_first_failure_of_a_map_interrupts_the_rest(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(LookupError, match="its own"):
            await pool.starmap(targets.sleep_or_fail, [(bell.path, False), (bell.path, True), (bell.path, False)])
        lines = bell.heard()
        assert lines.count("CancelledError") == lines.count("started") >= 1
        await check_pool_is_well(pool)

    on_pool(main)


@LOOPS
@pytest.mark.parametrize("function", [targets.sleep, targets.sleep_later_in_coroutine])
def test_terminate_interrupts_what_blocks_and_does_not_wait_for_the_grace(
    start_method: str, loop_initializer: Any, bell: Bell, function: Any
) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=FOREVER_S) as pool:
            call = await start(pool, bell, function)
        await asyncio.wait([call])
        assert bell.heard() == ["SystemExit"]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- and what is not


def test_a_neighbour_that_blocks_is_not_interrupted_for_one_that_is_cancelled(
    on_pool: OnPool, bell: Bell, gate: Gate
) -> None:
    """The one that is cancelled waits on a loop that does not turn; it is cancelled once that does."""

    async def main() -> None:
        async with Pool(1, grace=FOREVER_S) as pool:
            waiting = await start(pool, bell, targets.wait)
            blocking = await start(pool, bell, targets.block_at_gate, gate.path)
            waiting.cancel()
            await asyncio.sleep(0.3)  # several interruptions
            gate.open()
            assert await blocking == "passed"
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert bell.heard() == ["CancelledError"]
            await check_pool_is_well(pool)

    asyncio.run(main())


@LOOPS
def test_one_that_is_cancelled_while_another_blocks_is_interrupted_when_it_blocks_in_turn(
    loop_initializer: Any, bell: Bell, gate: Gate
) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=FOREVER_S) as pool:
            meant = await start(pool, bell, targets.sleep_once_let)
            blocking = await start(pool, bell, targets.let_and_block_at_gate, gate.path)
            meant.cancel()
            await asyncio.sleep(0.1)  # an interruption that finds the other
            gate.open()
            assert await blocking == "passed"
            with pytest.raises(asyncio.CancelledError):
                await meant
            assert bell.heard() in ([], ["started", "CancelledError"])  # the loop may have had time for a turn
            await check_pool_is_well(pool)

    asyncio.run(main())


def test_one_that_has_heard_may_block_while_it_cleans_up(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        await cancel(await start(pool, bell, targets.block_while_cleaning_up))
        assert bell.heard() == ["cleaned up"]

    on_pool(main)


def test_what_it_makes_of_its_interruption_is_its_own_business(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        await cancel(await start(pool, bell, targets.answer_when_cancelled))
        assert bell.heard() == ["CancelledError", "answers"]
        await cancel(await start(pool, bell, targets.fail_when_cancelled))
        assert bell.heard() == ["CancelledError"]
        await check_pool_is_well(pool)

    on_pool(main)


# ------------------------------------------------------------------------------------------------------ difficult cases


@LOOPS
def test_a_worker_that_was_stopped_hears_when_it_goes_on(start_method: str, loop_initializer: Any, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=FOREVER_S) as pool:
            call = await start(pool, bell, targets.sleep)
            (worker,) = await pids(pool)
            os.kill(worker, signal.SIGSTOP)
            call.cancel()
            await asyncio.sleep(0.2)
            assert bell.heard() == []
            os.kill(worker, signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await call
            assert bell.heard() == ["CancelledError"]
            assert await pool.apply(targets.pid) == worker

    asyncio.run(main())


@contextmanager
def no_blocks() -> Iterator[None]:
    """Have this process make no blocks for large arguments, so that they go through the ring.

    Over before the test is: what pytest writes then may go to a large file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE_BYTES // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@LOOPS
def test_a_cancel_overtakes_large_arguments_that_fill_the_workers_ring(loop_initializer: Any, bell: Bell) -> None:
    """The worker has taken a large item, whose bytes are on their way, and blocks on the next."""
    large = b"x" * 5_000_000

    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=FOREVER_S) as pool:
            worker = await pool.apply(targets.pid)
            with no_blocks():
                for cancels_large in (False, True):
                    echo = asyncio.ensure_future(pool.apply(targets.echo, (large,)))
                    call = await start(pool, bell, targets.sleep)
                    if cancels_large:
                        await asyncio.sleep(0.02)
                        await cancel(echo)
                        assert bell.heard() == []
                    await cancel(call)
                    assert bell.heard() == ["CancelledError"]
                    assert cancels_large or await echo == large
            assert await pool.apply(targets.pid) == worker

    asyncio.run(main())


def test_cancels_that_race_with_the_end_give_one_outcome_each(on_pool: OnPool) -> None:
    """Naps about as long as a worker has to hear of a cancel, cancelled at any moment of them."""
    dice = random.Random(7)
    delays = [(dice.uniform(0.03, 0.08), dice.uniform(0, 0.03)) for _ in range(20)]

    async def nap(pool: Pool, seconds: float, patience: float) -> float | None:
        call = asyncio.ensure_future(pool.apply(targets.nap, (seconds,)))
        await asyncio.wait([call], timeout=patience)
        call.cancel()
        try:
            return await call
        except asyncio.CancelledError:
            return None

    async def main(pool: Pool) -> None:
        workers = await pids(pool)
        for one, other in zip(delays[::2], delays[1::2], strict=True):
            slept = await asyncio.gather(nap(pool, *one), nap(pool, *other))
            assert all(nap in (None, delay[0]) for nap, delay in zip(slept, (one, other), strict=True))
        await check_pool_is_well(pool)
        assert await pids(pool) == workers

    on_pool(main)


def test_a_worker_that_is_done_leaves_in_order_though_it_was_just_interrupted(bell: Bell, caplog: Any) -> None:
    async def main() -> None:
        async with Pool(1, maxtasksperchild=1, grace=FOREVER_S) as pool:
            for _ in range(5):
                await cancel(await start(pool, bell, targets.sleep))
                assert bell.heard() == ["CancelledError"]

    asyncio.run(main())
    assert caplog.records == []


def test_nobody_wakes_up_after_a_cancel_was_heard(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await cancel(await start(pool, bell, targets.sleep))
            await asyncio.sleep(0.2)
            assert select.select([pool._manager.fileno()], [], [], 0.5)[0] == [], "no timer runs"

    asyncio.run(main())
