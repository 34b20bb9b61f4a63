"""Scenarios about cancellation: by the item itself, from outside, at each moment, counted and refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
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

# ----------------------------------------------------------------------------------------------------------- by itself


async def see_its_end() -> Any:
    task = kept["task"]
    return end_of(task), task.cancelled(), task.cancelling(), describe(await error_of(task)), kept.get("seen")


async def error_of(task: Any) -> BaseException | None:
    try:
        await task
    except BaseException as error:
        return error
    return None


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_then_return() -> Any:
    kept["task"] = me()
    me().cancel()
    return "unheard"


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_then_await() -> Any:
    kept["task"] = me()
    me().cancel()
    await asyncio.sleep(0)
    return "not reached"


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_then_await_a_future() -> Any:
    kept["task"] = me()
    kept["future"] = future = asyncio.get_running_loop().create_future()
    me().cancel("enough")
    try:
        await future
    finally:
        kept["seen"] = end_of(future), me().cancelling()


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_then_raise() -> Any:
    kept["task"] = me()
    me().cancel()
    raise LookupError("of more weight")


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_then_swallow() -> Any:
    kept["task"] = me()
    me().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        kept["seen"] = me().cancelling()
    await asyncio.sleep(0)
    return "swallowed"


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_with_a_message() -> Any:
    kept["task"] = me()
    kept["seen"] = me().cancel(msg="enough"), me().cancelling()
    await asyncio.sleep(0)


@scenario(then=see_its_end)
async def self_cancel_with_a_message_then_return() -> Any:
    kept["task"] = me()
    me().cancel("enough")
    return "unheard"


@scenario(then=see_its_end)
async def self_cancel_twice_in_the_first_step() -> Any:
    kept["task"] = me()
    kept["seen"] = me().cancel("first"), me().cancel("second"), me().cancelling()
    await asyncio.sleep(0)


@scenario(then=see_its_end)
async def self_cancel_in_a_later_step_then_return() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    me().cancel("late")
    return "unheard"


@scenario(then=see_its_end)
async def self_cancel_in_a_later_step_then_await() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    me().cancel("late")
    await wait_for_ever()


@scenario()
async def self_cancel_in_a_later_step_then_swallow() -> Any:
    await asyncio.sleep(0)
    me().cancel()
    seen = await end_when_awaited(asyncio.sleep(0))
    await asyncio.sleep(0)
    return seen, me().cancelling()


@scenario(then=see_its_end)
async def self_cancel_in_the_first_step_before_a_done_future() -> Any:
    kept["task"] = me()
    me().cancel()
    kept["seen"] = [await done_future("at hand")]
    await asyncio.sleep(0)
    kept["seen"].append("not reached")


@scenario(then=see_its_end)
async def self_cancel_taken_back_in_the_first_step() -> Any:
    kept["task"] = me()
    seen = [me().cancelling(), me().cancel(), me().cancelling(), me().uncancel(), me().cancelling()]
    kept["seen"] = [*seen, me().uncancel()]
    await asyncio.sleep(0)
    kept["seen"].append("whether this is reached depends on the Python")


@scenario()
async def self_cancel_and_uncancel_after_it_was_delivered() -> Any:
    me().cancel()
    me().cancel()
    seen: list[Any] = [await end_when_awaited(asyncio.sleep(0)), me().cancelling()]
    seen += [me().uncancel(), me().uncancel(), me().uncancel()]
    await asyncio.sleep(0)
    return seen


@scenario()
async def self_cancel_of_a_child_cancels_not_the_parent() -> Any:
    async def child() -> None:
        me().cancel("a child's")
        await asyncio.sleep(0)

    task = asyncio.create_task(child())
    return await end_when_awaited(task), task.cancelled(), me().cancelling()


# -------------------------------------------------------------------------------------------------------- from outside


@scenario(then=see_its_end)
async def cancelled_before_its_first_suspension_is_over() -> Any:
    kept["task"] = me()
    soon(me().cancel, "soon")
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@scenario(then=see_its_end)
async def cancelled_by_a_callback_that_comes_too_late() -> Any:
    kept["task"] = me()
    soon(me().cancel)
    return "already over"


@scenario()
async def cancelled_during_a_sleep() -> Any:
    asyncio.get_running_loop().call_later(MS, me().cancel, "asleep")
    return await end_when_awaited(asyncio.sleep(60)), me().cancelling()


@scenario()
async def cancelled_while_it_awaits_a_future() -> Any:
    future = asyncio.get_running_loop().create_future()
    soon(me().cancel, "waiting")
    return await end_when_awaited(future), end_of(future), me().cancelling()


@scenario()
async def cancelled_while_it_awaits_another_task() -> Any:
    other = asyncio.create_task(wait_for_ever())
    soon(soon, me().cancel, "waiting")
    return await end_when_awaited(other), other.cancelled(), other.cancelling(), me().cancelling()


@scenario()
async def cancelled_while_it_awaits_a_task_that_refuses() -> Any:
    async def refuse() -> str:
        try:
            await wait_for_ever()
        except asyncio.CancelledError:
            return "refused"
        return "not reached"

    other = asyncio.create_task(refuse())
    soon(soon, me().cancel)
    return await end_when_awaited(other), end_of(other), me().cancelling()


@scenario()
async def cancelled_twice_while_it_waits() -> Any:
    task, seen = me(), []
    soon(lambda: seen.extend([task.cancel("first"), task.cancel("second"), task.cancelling()]))
    seen.append(await end_when_awaited(wait_for_ever()))
    seen.append(await end_when_awaited(asyncio.sleep(0)))
    return seen, me().cancelling()


@scenario()
async def cancelled_in_a_finally() -> Any:
    seen: list[Any] = []

    async def work() -> None:
        try:
            soon(me().cancel, "first")
            await wait_for_ever()
        finally:
            soon(me().cancel, "second")
            seen.append(await end_when_awaited(wait_for_ever()))

    return await end_when_awaited(work()), seen, me().cancelling()


@scenario(then=see_its_end)
async def cancelled_while_it_handles_its_cancellation() -> Any:
    kept["task"] = me()
    soon(me().cancel, "first")
    try:
        await wait_for_ever()
    except asyncio.CancelledError:
        soon(me().cancel, "second")
        await wait_for_ever()


@scenario()
async def cancelled_while_it_leaves_an_async_with() -> Any:
    seen = []

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        try:
            yield "resource"
        finally:
            soon(task.cancel, "leaving")
            seen.append(await end_when_awaited(wait_for_ever()))
            seen.append("left")

    task = me()
    async with resource() as name:
        seen.append(name)
    return seen, me().cancelling()


@scenario()
async def cancelled_while_it_enters_an_async_with() -> Any:
    class Resource:
        async def __aenter__(self) -> None:
            soon(me().cancel, "entering")
            await wait_for_ever()

        async def __aexit__(self, *error: object) -> None:
            kept["left"] = True

    async def use() -> None:
        async with Resource():
            kept["entered"] = True

    return await end_when_awaited(use()), "entered" in kept, "left" in kept


@scenario()
async def cancelled_within_the_aclose_of_a_generator() -> Any:
    seen: list[Any] = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append(await end_when_awaited(wait_for_ever()))

    generator: Any = generate()
    seen.append(await anext(generator))
    soon(me().cancel, "closing")
    seen.append(await end_when_awaited(generator.aclose()))
    return seen, me().cancelling()


@scenario()
async def cancelled_when_the_future_it_awaits_is_done() -> Any:
    future = asyncio.get_running_loop().create_future()
    task = me()

    def set_and_cancel() -> None:
        future.set_result("result")
        task.cancel("too late?")

    soon(set_and_cancel)
    return await end_when_awaited(future), end_of(future), me().cancelling()


@scenario()
async def cancelled_and_then_its_future_is_done() -> Any:
    future = asyncio.get_running_loop().create_future()
    task, seen = me(), []

    def cancel_and_set() -> None:
        task.cancel()
        try:
            future.set_result("result")
        except asyncio.InvalidStateError as error:
            seen.append(describe(error))

    soon(cancel_and_set)
    return await end_when_awaited(future), seen


class Stubborn(asyncio.Future):  # type: ignore[type-arg]
    """A future that can't be cancelled."""

    def cancel(self, msg: object = None) -> bool:
        kept.setdefault("asked", []).append(msg)
        return False


@scenario(then=see_its_end)
async def future_that_refuses_to_be_cancelled() -> Any:
    kept["task"] = me()
    future = Stubborn()
    soon(me().cancel, "please")
    soon(soon, future.set_result, "result")
    kept["seen"] = await end_when_awaited(future), kept["asked"]
    return me().cancelling()


@scenario()
async def self_cancel_before_a_future_that_refuses() -> Any:
    future = Stubborn()
    me().cancel("please")
    soon(future.set_result, "result")
    return await end_when_awaited(future), kept["asked"], me().cancelling()


@scenario()
async def cancelled_by_a_thread() -> Any:
    loop, task = asyncio.get_running_loop(), me()
    future = loop.create_future()
    waiting = loop.run_in_executor(None, lambda: loop.call_soon_threadsafe(task.cancel, "from a thread") and None)
    seen = await end_when_awaited(future)
    return seen, await waiting


@scenario(then=see_its_end)
async def cancelled_future_that_it_awaits_cancels_it() -> Any:
    kept["task"] = me()
    future = asyncio.get_running_loop().create_future()
    soon(future.cancel, "the future's")
    kept["seen"] = me().cancelling()
    await future


@scenario(then=see_its_end)
async def done_future_that_was_cancelled_cancels_it_at_once() -> Any:
    kept["task"] = me()
    future = asyncio.get_running_loop().create_future()
    future.cancel("long ago")
    await future


@scenario(then=see_its_end)
async def cancelled_error_raised_by_hand_at_once() -> Any:
    kept["task"] = me()
    raise asyncio.CancelledError


@scenario(then=see_its_end)
async def cancelled_error_with_a_message_raised_by_hand_at_once() -> Any:
    kept["task"] = me()
    raise asyncio.CancelledError("by hand", 2)


@scenario(then=see_its_end)
async def cancelled_error_with_a_message_raised_by_hand_later() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    raise asyncio.CancelledError("by hand")


@scenario()
async def cancelled_error_raised_by_hand_without_looking() -> Any:
    raise asyncio.CancelledError("by hand")


class OwnCancelled(asyncio.CancelledError):
    pass


@scenario(then=see_its_end)
async def subclass_of_cancelled_error_raised_by_hand() -> Any:
    kept["task"] = me()
    raise OwnCancelled("own")


@scenario()
async def cancelled_error_turned_into_another() -> Any:
    soon(me().cancel, "root")
    try:
        await wait_for_ever()
    except asyncio.CancelledError as error:
        raise LookupError("instead") from error


@scenario(then=see_its_end)
async def cancelled_error_within_an_exception_group() -> Any:
    kept["task"] = me()
    raise BaseExceptionGroup("several", [asyncio.CancelledError("one"), LookupError("two")])


@scenario(neighbours=3)
async def cancelled_neighbour_among_others(number: int) -> Any:
    kept[f"task {number}"] = me()
    await all_here(3)
    if number == 0:
        kept["task 1"].cancel()
        await settle()
    elif number == 1:
        await wait_for_ever()
    else:
        await settle()
    return number, me().cancelling(), end_of(kept["task 1"]), normal(repr(kept["task 1"]))
