"""How an `apply` wakes its caller: in the caller's context, once, and whatever the others' code does."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import pool_targets as targets
from conftest import LOOPS
from polyloop import Pool

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)

CALLS = 20
OUTCOMES_COME_S = 0.3

mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark")


def test_each_caller_goes_on_in_its_own_task_and_context(on_pool: OnPool) -> None:
    async def call(pool: Pool, number: int) -> bool:
        mark.set(number)
        task = asyncio.current_task()
        results = [await pool.apply(targets.later, (number,)) for _ in range(5)]
        return results == [number] * 5 and mark.get() == number and asyncio.current_task() is task

    async def main(pool: Pool) -> None:
        assert all(await asyncio.gather(*(call(pool, number) for number in range(CALLS))))
        assert mark.get(None) is None

    on_pool(main)


def test_callers_that_call_again_at_once_keep_all_others_going(on_pool: OnPool) -> None:
    async def call(pool: Pool) -> int:
        return sum([await pool.apply(targets.double, (1,)) for _ in range(50)])

    async def main(pool: Pool) -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        turning = asyncio.ensure_future(turn())
        assert await asyncio.gather(*(call(pool) for _ in range(CALLS))) == [100] * CALLS
        turning.cancel()
        assert turns > 50

    on_pool(main)


def test_the_message_of_a_cancellation_reaches_the_caller(on_pool: OnPool) -> None:
    async def call(pool: Pool, entered: asyncio.Event) -> tuple[Any, ...]:
        try:
            entered.set()
            await pool.apply(targets.wait_for_ever, ("",))
        except asyncio.CancelledError as error:
            return error.args
        return ()

    async def main(pool: Pool) -> None:
        entered = asyncio.Event()
        calling = asyncio.ensure_future(call(pool, entered))
        await entered.wait()
        calling.cancel("why")
        assert await calling == ("why",)

    on_pool(main)


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_caller_that_ends_the_run_of_the_loop_takes_no_other_with_it(loop: str, error: type[BaseException]) -> None:
    async def leave(pool: Pool) -> None:
        await pool.apply(targets.double, (1,))
        raise error

    pools: list[Pool] = []
    calls: list[asyncio.Task[Any]] = []

    async def first() -> None:
        pool = Pool(1)
        pools.append(pool)
        await pool.apply(targets.double, (1,))
        leaving = asyncio.ensure_future(leave(pool))
        calls.extend(asyncio.ensure_future(pool.apply(targets.double, (x,))) for x in range(CALLS))
        await asyncio.sleep(0)
        pool._manager.flush()
        time.sleep(OUTCOMES_COME_S)  # so that one drain finds them all
        await asyncio.wait([leaving, *calls])

    async def last(pool: Pool) -> None:
        assert await asyncio.gather(*calls) == [2 * x for x in range(CALLS)]
        pool.close()
        await pool.join()

    event_loop = LOOPS[loop]()
    asyncio.set_event_loop(event_loop)
    try:
        with pytest.raises(error):
            event_loop.run_until_complete(first())
        event_loop.run_until_complete(last(pools[0]))
    finally:
        asyncio.set_event_loop(None)
        event_loop.close()
