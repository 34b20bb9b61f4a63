"""Scenarios about time limits: asyncio.timeout and wait_for, which cancel the current task and take it back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from task_scenarios import (
    MS,
    all_here,
    describe,
    done_future,
    end_of,
    end_when_awaited,
    kept,
    me,
    normal,
    scenario,
    settle,
    soon,
    wait_for_ever,
)


def now() -> float:
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------------------------------------------------- timeout


@scenario()
async def timeout_expires() -> Any:
    async with asyncio.timeout(MS):
        await wait_for_ever()


@scenario()
async def timeout_expires_and_is_seen() -> Any:
    seen: list[Any] = []
    limit = asyncio.timeout(MS)
    try:
        async with limit:
            try:
                await wait_for_ever()
            except asyncio.CancelledError as error:
                seen += [describe(error), me().cancelling(), limit.expired(), normal(repr(limit)).partition(" when")[0]]
                raise
    except TimeoutError as error:
        seen += [describe(error), me().cancelling(), limit.expired(), normal(repr(limit)).partition(" when")[0]]
    await asyncio.sleep(0)
    return seen


@scenario()
async def timeout_does_not_expire() -> Any:
    async with asyncio.timeout(60) as limit:
        await asyncio.sleep(0)
    return limit.expired(), me().cancelling()


@scenario()
async def timeout_around_nothing_that_suspends() -> Any:
    async with asyncio.timeout(60) as limit:
        seen = await done_future("at hand")
    return seen, limit.expired(), me().cancelling()


@scenario()
async def timeout_as_the_last_thing_of_an_item() -> Any:
    async with asyncio.timeout(60):  # noqa: ASYNC100
        return "from within"


@scenario()
async def timeout_of_none() -> Any:
    async with asyncio.timeout(None) as limit:
        await asyncio.sleep(0)
        return limit.when(), limit.expired()


@scenario()
async def timeout_rescheduled_to_expire() -> Any:
    async def work() -> None:
        async with asyncio.timeout(60) as limit:
            limit.reschedule(now() + MS)
            await wait_for_ever()

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def timeout_rescheduled_not_to_expire() -> Any:
    async with asyncio.timeout(0.005) as limit:
        limit.reschedule(None)
        await asyncio.sleep(0.010)
        seen = limit.when()
    return seen, limit.expired()


@scenario()
async def timeout_rescheduled_when_it_is_over() -> Any:
    limit, seen = asyncio.timeout(MS), []
    try:
        async with limit:
            await wait_for_ever()
    except TimeoutError:
        try:
            limit.reschedule(None)
        except RuntimeError as error:
            seen.append(str(error))
    return seen


@scenario()
async def timeout_inner_expires() -> Any:
    seen = []
    async with asyncio.timeout(60) as outer:
        try:
            async with asyncio.timeout(MS):
                await wait_for_ever()
        except TimeoutError as error:
            seen.append(describe(error))
        await asyncio.sleep(0)
    return seen, outer.expired(), me().cancelling()


@scenario()
async def timeout_outer_expires() -> Any:
    inner = asyncio.timeout(60)

    async def work() -> None:
        async with asyncio.timeout(MS), inner:
            await wait_for_ever()

    return await end_when_awaited(work()), inner.expired(), me().cancelling()


@scenario()
async def timeout_both_expire() -> Any:
    outer, inner = asyncio.timeout(MS), asyncio.timeout(MS)

    async def work() -> None:
        async with outer, inner:
            time.sleep(0.003)
            await wait_for_ever()

    return await end_when_awaited(work()), outer.expired(), inner.expired(), me().cancelling()


@scenario()
async def timeout_of_zero() -> Any:
    async with asyncio.timeout(0):
        await wait_for_ever()


@scenario()
async def timeout_of_zero_without_suspension() -> Any:
    async with asyncio.timeout(0) as limit:
        seen = await done_future("at hand")
    await settle()
    return seen, limit.expired(), me().cancelling()


@scenario()
async def timeout_at_a_time_that_is_past() -> Any:
    async def work() -> None:
        async with asyncio.timeout_at(now() - 1):
            await wait_for_ever()

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def timeout_at_a_time_to_come() -> Any:
    when = now() + 60
    async with asyncio.timeout_at(when) as limit:
        await asyncio.sleep(0)
    return limit.when() == when, limit.expired()


@scenario()
async def timeout_around_a_busy_stretch_then_a_wait() -> Any:
    async def work() -> None:
        async with asyncio.timeout(MS):
            time.sleep(0.002)
            await wait_for_ever()

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def timeout_around_a_busy_stretch_only() -> Any:
    async with asyncio.timeout(MS) as limit:  # noqa: ASYNC100
        time.sleep(0.002)
    await settle()
    return limit.expired(), me().cancelling()


@scenario()
async def timeout_after_a_suspension() -> Any:
    await asyncio.sleep(0)
    async with asyncio.timeout(MS):
        await wait_for_ever()


@scenario()
async def timeout_in_a_function_called_deeply() -> Any:
    async def limited(depth: int) -> None:
        if depth:
            await limited(depth - 1)
            return
        async with asyncio.timeout(MS):
            await wait_for_ever()

    return await end_when_awaited(limited(20)), me().cancelling()


@scenario()
async def timeout_and_a_cancellation_from_outside() -> Any:
    async def work() -> None:
        async with asyncio.timeout(60):
            soon(me().cancel, "outside")
            await wait_for_ever()

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def timeout_and_a_cancellation_at_the_same_time() -> Any:
    task = me()

    async def work() -> None:
        async with asyncio.timeout(0):
            soon(soon, task.cancel, "outside")
            soon(task.cancel, "outside")
            await wait_for_ever()

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def timeout_around_code_that_swallows_it() -> Any:
    async with asyncio.timeout(MS) as limit:
        seen = await end_when_awaited(wait_for_ever())
    return seen, limit.expired(), me().cancelling()


@scenario()
async def timeout_used_twice_or_never() -> Any:
    limit, seen = asyncio.timeout(60), []
    async with limit:
        await asyncio.sleep(0)
    for use in (limit.__aenter__, asyncio.timeout(60).__aexit__):
        try:
            await use(*[None] * (3 if use.__name__ == "__aexit__" else 0))
        except (RuntimeError, AssertionError) as error:
            seen.append(describe(error))
    return seen


@scenario()
async def timeout_outside_of_any_task() -> Any:
    seen = []

    def enter() -> None:
        try:
            asyncio.timeout(60).__aenter__().send(None)
        except BaseException as error:
            seen.append(describe(error))

    soon(enter)
    await asyncio.sleep(0)
    return seen


@scenario()
async def timeout_in_a_child() -> Any:
    async def child() -> None:
        async with asyncio.timeout(MS):
            await wait_for_ever()

    async with asyncio.timeout(60):
        return await end_when_awaited(asyncio.create_task(child())), me().cancelling()


async def see_no_late_expiry() -> Any:
    await asyncio.sleep(0.010)
    return me().cancelling(), end_of(kept["task"])


@scenario(then=see_no_late_expiry)
async def timeout_never_left_hits_no_later_item() -> Any:
    kept["task"] = me()
    await asyncio.timeout(0.005).__aenter__()
    return "left open"


@scenario(neighbours=3)
async def timeout_of_a_neighbour_hits_only_itself(number: int) -> Any:
    await all_here(3)

    async def work() -> None:
        async with asyncio.timeout(MS if number == 1 else 60):
            await (wait_for_ever() if number == 1 else asyncio.sleep(0.003))

    return await end_when_awaited(work()), me().cancelling()


# ------------------------------------------------------------------------------------------------------------ wait_for


@scenario()
async def wait_for_a_result() -> Any:
    async def child() -> Any:
        await asyncio.sleep(0)
        return "result"

    return await asyncio.wait_for(child(), 60), me().cancelling()


@scenario()
async def wait_for_a_result_at_once() -> Any:
    async def child() -> Any:
        return me().get_coro().__name__  # type: ignore[union-attr] # which task it is differs from 3.11 to 3.12

    return await asyncio.wait_for(child(), 60), await asyncio.wait_for(child(), None)


@scenario()
async def wait_for_too_long() -> Any:
    await asyncio.wait_for(wait_for_ever(), MS)


@scenario()
async def wait_for_too_long_after_a_suspension() -> Any:
    await asyncio.sleep(0)
    await asyncio.wait_for(wait_for_ever(), MS)


@scenario()
async def wait_for_no_time() -> Any:
    future = asyncio.get_running_loop().create_future()
    return (
        [await end_when_awaited(asyncio.wait_for(future, 0)), end_of(future)],
        await end_when_awaited(asyncio.wait_for(done_future("at hand"), 0)),
        await end_when_awaited(asyncio.wait_for(wait_for_ever(), 0)),
        me().cancelling(),
    )


@scenario()
async def wait_for_within_wait_for() -> Any:
    inner = asyncio.wait_for(asyncio.wait_for(wait_for_ever(), MS), 60)
    outer = asyncio.wait_for(asyncio.wait_for(wait_for_ever(), 60), MS)
    return await end_when_awaited(inner), await end_when_awaited(outer), me().cancelling()


@scenario()
async def wait_for_something_that_fails() -> Any:
    async def child() -> None:
        raise LookupError("at once")

    return await end_when_awaited(asyncio.wait_for(child(), 60))


@scenario()
async def wait_for_cancelled_from_outside() -> Any:
    task = asyncio.create_task(wait_for_ever())
    asyncio.get_running_loop().call_later(MS, me().cancel, "outside")
    return await end_when_awaited(asyncio.wait_for(task, 60)), end_of(task), me().cancelling()


@scenario()
async def wait_for_something_that_refuses_to_be_cancelled() -> Any:
    async def refuse() -> Any:
        return await end_when_awaited(wait_for_ever())

    return await end_when_awaited(asyncio.wait_for(refuse(), MS)), me().cancelling()


@scenario()
async def wait_for_after_a_cancel_in_the_first_step() -> Any:
    me().cancel("first")
    return await end_when_awaited(asyncio.wait_for(asyncio.sleep(0, "slept"), 60)), me().cancelling()
