"""Scenarios about exceptions that leave an item, and about context variables."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import sys
from typing import Any

from task_scenarios import all_here, color, describe, end_of, end_when_awaited, frames, kept, me, scenario, settle, soon

# ---------------------------------------------------------------------------------------------------------- exceptions


class Own(BaseException):
    """Not an Exception."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


async def see_its_exception() -> Any:
    task = kept["task"]
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return describe(error), error is kept.get("error"), frames(error.__traceback__)


@scenario()
async def exception_raised_at_once() -> Any:
    raise LookupError("at once", 1)


@scenario()
async def exception_raised_later() -> Any:
    await asyncio.sleep(0)
    raise LookupError("later", 1)


@scenario(then=see_its_exception)
async def exception_is_the_same_object_afterwards() -> Any:
    kept["task"], kept["error"] = me(), LookupError("kept")
    raise kept["error"]


@scenario(then=see_its_exception)
async def exception_raised_deep_below_at_once() -> Any:
    kept["task"] = me()

    async def fall(depth: int) -> None:
        if not depth:
            raise LookupError("ground")
        await fall(depth - 1)

    await fall(5)


@scenario(then=see_its_exception)
async def exception_raised_deep_below_later() -> Any:
    kept["task"] = me()

    async def fall(depth: int) -> None:
        if not depth:
            await asyncio.sleep(0)
            raise LookupError("ground")
        await fall(depth - 1)

    await fall(5)


@scenario(then=see_its_exception)
async def exception_of_an_awaited_future() -> Any:
    kept["task"] = me()
    future = asyncio.get_running_loop().create_future()
    soon(future.set_exception, LookupError("the future's"))
    await future


@scenario()
async def exception_with_a_cause_and_notes() -> Any:
    try:
        raise KeyError("root")
    except KeyError as root:
        error = ValueError("outer")
        error.add_note("first")
        error.add_note("second")
        raise error from root


@scenario()
async def exception_with_a_context() -> Any:
    try:
        raise KeyError("root")
    except KeyError:
        await asyncio.sleep(0)
        raise ValueError("while handling")  # noqa: B904 - it is about the context


@scenario()
async def exception_without_its_context() -> Any:
    try:
        raise KeyError("root")
    except KeyError:
        raise ValueError("instead") from None


@scenario()
async def exception_has_no_context_of_its_surroundings() -> Any:
    seen = [sys.exc_info()]
    try:
        raise LookupError("alone")
    except LookupError as error:
        seen.append(error.__context__)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    return [*seen, sys.exc_info()]


@scenario()
async def exception_being_handled_across_a_suspension() -> Any:
    try:
        raise LookupError("handled")
    except LookupError:
        seen = [describe(sys.exception()) if sys.version_info >= (3, 11) else None]
        await asyncio.sleep(0)
        seen.append(describe(sys.exception()))
        seen.append(await end_when_awaited(asyncio.create_task(handles_nothing())))
    return [*seen, sys.exc_info()]


async def handles_nothing() -> Any:
    return sys.exc_info()


@scenario(neighbours=2)
async def exception_being_handled_is_not_the_neighbours(number: int) -> Any:
    try:
        raise LookupError(number)
    except LookupError:
        await all_here(2)
        return describe(sys.exception())


@scenario()
async def exception_in_a_finally() -> Any:
    try:
        raise KeyError("first")
    finally:
        await asyncio.sleep(0)
        raise ValueError("second")


@scenario()
async def exception_group_at_once() -> Any:
    raise ExceptionGroup("several", [LookupError("one"), ExceptionGroup("inner", [ValueError("two")])])


@scenario()
async def exception_group_later() -> Any:
    await asyncio.sleep(0)
    raise BaseExceptionGroup("several", [LookupError("one"), Own(2, "two")])


@scenario(then=see_its_exception)
async def stop_iteration_at_once() -> Any:
    kept["task"] = me()
    raise StopIteration(1)


@scenario()
async def stop_iteration_later() -> Any:
    await asyncio.sleep(0)
    raise StopIteration(1)


@scenario()
async def stop_iteration_of_an_awaited_future() -> Any:
    """Refused by the future on 3.11, turned into a RuntimeError from 3.12 on."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(StopIteration(1))
    await future


@scenario()
async def stop_async_iteration_at_once() -> Any:
    raise StopAsyncIteration(1)


@scenario()
async def stop_async_iteration_later() -> Any:
    await asyncio.sleep(0)
    raise StopAsyncIteration(1)


@scenario(then=see_its_exception)
async def generator_exit_at_once() -> Any:
    kept["task"] = me()
    raise GeneratorExit("at once")


@scenario()
async def generator_exit_later() -> Any:
    await asyncio.sleep(0)
    raise GeneratorExit("later")


@scenario()
async def own_base_exception_at_once() -> Any:
    raise Own(1, "at once")


@scenario()
async def own_base_exception_later() -> Any:
    await asyncio.sleep(0)
    raise Own(1, "later")


@scenario()
async def system_exit_at_once() -> Any:
    raise SystemExit(3)


@scenario(then=see_its_exception)
async def system_exit_at_once_by_an_item_that_looked() -> Any:
    kept["task"] = me()
    sys.exit("a reason")


@scenario(then=see_its_exception)
async def system_exit_later() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    raise SystemExit(3)


@scenario()
async def keyboard_interrupt_at_once() -> Any:
    raise KeyboardInterrupt


@scenario(then=see_its_exception)
async def keyboard_interrupt_at_once_by_an_item_that_looked() -> Any:
    kept["task"] = me()
    raise KeyboardInterrupt("looked")


@scenario(then=see_its_exception)
async def keyboard_interrupt_later() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    raise KeyboardInterrupt


@scenario(neighbours=2)
async def system_exit_beside_a_neighbour(number: int) -> Any:
    await all_here(2)
    if number == 0:
        raise SystemExit(3)
    await settle()
    return "goes on"


@scenario()
async def system_exit_caught() -> Any:
    return await end_when_awaited(leave()), me().cancelling()


async def leave() -> None:
    raise SystemExit(3)


@scenario()
async def recursion_error_at_once() -> Any:
    async def recurse() -> None:
        await recurse()

    await recurse()


@scenario()
async def recursion_error_caught_and_gone() -> Any:
    def recurse() -> None:
        recurse()

    try:
        recurse()
    except RecursionError as error:
        seen = describe(error)[0]
    await asyncio.sleep(0)
    return seen, me().get_coro().__name__  # type: ignore[union-attr]


@scenario(then=see_its_exception)
async def failed_item_whose_name_was_set() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    me().set_name("failing")
    raise Own(7, "named")


# ----------------------------------------------------------------------------------------------------------- contexts


@scenario()
async def context_survives_a_suspension() -> Any:
    before = color.get()
    color.set("red")
    await asyncio.sleep(0)
    seen = color.get()
    color.set("green")
    await asyncio.sleep(0)
    return before, seen, color.get()


async def see_the_color() -> Any:
    return color.get(), color in contextvars.copy_context()


@scenario(then=see_the_color)
async def context_is_not_shared_with_later_items() -> Any:
    color.set("red")
    return color.get()


@scenario(then=see_the_color)
async def context_is_not_shared_with_later_items_after_a_suspension() -> Any:
    await asyncio.sleep(0)
    color.set("red")
    await asyncio.sleep(0)
    return color.get()


@scenario(then=see_the_color)
async def context_of_an_item_that_looked_is_not_shared() -> Any:
    me()
    color.set("red")
    return color.get()


@scenario(then=see_the_color)
async def context_of_an_item_that_failed_is_not_shared() -> Any:
    color.set("red")
    raise LookupError(color.get())


@scenario()
async def context_has_nothing_of_earlier_items() -> Any:
    return color in contextvars.copy_context(), color.get()


@scenario()
async def context_token_reset_in_the_same_step() -> Any:
    token = color.set("red")
    before = color.get()
    color.reset(token)
    return before, color.get(), token.var is color, token.old_value is contextvars.Token.MISSING


@scenario()
async def context_token_reset_after_a_suspension() -> Any:
    token = color.set("red")
    await asyncio.sleep(0)
    color.reset(token)
    seen = [color.get()]
    try:
        color.reset(token)
    except RuntimeError as error:
        seen.append(str(error).partition("<")[0])
    return seen


@scenario()
async def context_token_set_in_the_first_step_reset_after_looking() -> Any:
    token = color.set("red")
    me()
    color.reset(token)
    return color.get()


async def reset_the_token_of_another() -> Any:
    try:
        color.reset(kept["token"])
    except ValueError as error:
        return str(error).rpartition("was")[2]


@scenario(then=reset_the_token_of_another)
async def context_token_is_of_no_use_to_a_later_item() -> Any:
    kept["token"] = color.set("red")
    await asyncio.sleep(0)
    return color.get()


@scenario(neighbours=3)
async def context_is_not_shared_with_neighbours(number: int) -> Any:
    before = color.get()
    color.set(f"color {number}")
    await all_here(3)
    seen = color.get()
    await settle()
    return before, seen, color.get()


@scenario()
async def context_is_inherited_by_children_and_not_given_back() -> Any:
    async def child() -> str:
        before = color.get()
        color.set("blue")
        await asyncio.sleep(0)
        return f"{before} {color.get()}"

    color.set("red")
    task = asyncio.create_task(child())
    color.set("green")
    return await task, color.get(), await child(), color.get()


@scenario()
async def context_of_child_given_by_hand() -> Any:
    async def child() -> str:
        color.set(color.get() + "dish")
        return color.get()

    context = contextvars.copy_context()
    context.run(color.set, "red")
    return await asyncio.create_task(child(), context=context), color.get(), context[color]


@scenario()
async def context_run_within_an_item() -> Any:
    context = contextvars.copy_context()
    color.set("red")
    seen = [context.run(color.get), context.run(color.set, "blue").var is color, color.get(), context[color]]
    await asyncio.sleep(0)
    return [*seen, context.run(color.get), color.get(), contextvars.copy_context()[color]]


@scenario()
async def context_run_that_looks_up_the_task() -> Any:
    context = contextvars.copy_context()
    color.set("red")
    task = context.run(asyncio.current_task)
    await asyncio.sleep(0)
    return task is me(), color.get()


@scenario()
async def context_of_callbacks_and_threads() -> Any:
    seen: list[Any] = []
    color.set("red")
    soon(lambda: seen.append(color.get()))
    soon(lambda: color.set("lost"))
    await asyncio.sleep(0)
    return [*seen, color.get(), await asyncio.to_thread(color.get)]


async def see_the_precision() -> Any:
    return decimal.getcontext().prec


@scenario(then=see_the_precision)
async def decimal_context_is_the_items() -> Any:
    decimal.setcontext(decimal.Context(prec=5))
    await asyncio.sleep(0)
    return str(decimal.Decimal(1) / 3)


@scenario(neighbours=2)
async def decimal_context_among_neighbours(number: int) -> Any:
    with decimal.localcontext() as context:
        context.prec = 3 + number
        await all_here(2)
        return str(decimal.Decimal(1) / 3)


async def see_the_context_of_the_stored_task() -> Any:
    seen: list[Any] = []
    kept["task"].add_done_callback(lambda task: seen.append((end_of(task), color.get())))
    await settle()
    return seen


@scenario(then=see_the_context_of_the_stored_task)
async def context_of_a_late_callback_is_of_whoever_adds_it() -> Any:
    kept["task"] = me()
    color.set("red")
