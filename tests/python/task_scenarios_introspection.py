"""Scenarios of what can be looked at: coroutines, stacks, all tasks, and those whose parents are gone."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
from typing import Any

from task_scenarios import (
    all_here,
    color,
    describe,
    end_of,
    end_when_awaited,
    frames,
    kept,
    me,
    names_of,
    normal,
    scenario,
    settle,
    soon,
    wait_for_ever,
)

# ------------------------------------------------------------------------------------------------------- introspection


@scenario()
async def get_coro_is_the_coroutine_that_runs() -> Any:
    coro: Any = me().get_coro()
    seen = [coro.cr_code.co_name, coro.cr_running, coro.cr_frame is inspect.currentframe(), inspect.iscoroutine(coro)]
    await asyncio.sleep(0)
    return [*seen, me().get_coro() is coro, coro.cr_running, coro.cr_await]


@scenario()
async def get_coro_of_a_task_that_waits() -> Any:
    task, seen = me(), []

    def look() -> None:
        coro: Any = task.get_coro()
        seen.extend([coro.cr_running, coro.cr_suspended, coro.cr_await.__name__, coro.cr_await.cr_code.co_name])
        seen.append(inspect.getcoroutinestate(coro))

    soon(look)
    await settle()
    return seen


async def see_its_coroutine() -> Any:
    coro = kept["task"].get_coro()
    return coro and (coro.__name__, inspect.getcoroutinestate(coro), coro.cr_frame)


@scenario(then=see_its_coroutine)
async def get_coro_of_a_task_that_suspended_and_ended() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)


@scenario(
    then=see_its_coroutine, eager_differs="a task that ends so forgets its coroutine, and crashes 3.12.1 when asked"
)
async def get_coro_of_a_task_that_ended_at_once() -> Any:
    kept["task"] = me()


@scenario()
async def newest_frame_of_the_running_task() -> Any:
    (frame,) = me().get_stack(limit=1)
    seen = [frame is inspect.currentframe()]
    await asyncio.sleep(0)
    (frame,) = me().get_stack(limit=1)
    return [*seen, frame is inspect.currentframe(), frame.f_code.co_name]


@scenario()
async def stack_of_a_task_that_waits() -> Any:
    task, seen = me(), []

    async def inner() -> None:
        await asyncio.sleep(0)

    def look() -> None:
        seen.extend(frame.f_code.co_name for frame in task.get_stack())
        file = io.StringIO()
        task.print_stack(file=file)
        seen.append(normal(file.getvalue()))

    soon(look)
    await inner()
    return seen


async def see_its_stack() -> Any:
    file = io.StringIO()
    kept["task"].print_stack(file=file)
    names = [frame.f_code.co_name for frame in kept["task"].get_stack()]
    return names, frames(kept["task"].exception().__traceback__), "not here" in file.getvalue()


@scenario(then=see_its_stack)
async def stack_of_a_task_that_failed() -> Any:
    kept["task"] = me()

    def look_up() -> None:
        raise LookupError("not here")

    await asyncio.sleep(0)
    look_up()


@scenario(then=see_its_stack)
async def stack_of_a_task_that_failed_at_once() -> Any:
    kept["task"] = me()

    async def look_up() -> None:
        raise LookupError("not here")

    await look_up()


@scenario(since=(3, 12))
async def get_context_is_the_context_that_runs() -> Any:
    color.set("red")
    context = me().get_context()  # type: ignore[attr-defined]
    seen = [context[color]]
    await asyncio.sleep(0)
    color.set("green")
    seen.append(context[color])
    try:
        context.run(print)
    except RuntimeError as error:
        seen.append(normal(str(error)))
    return [*seen, me().get_context() is context]  # type: ignore[attr-defined]


@scenario()
async def repr_while_it_runs() -> Any:
    seen = [normal(repr(me()))]
    await asyncio.sleep(0)
    seen.append(normal(repr(me())))
    me().cancel()
    return [*seen, normal(repr(me())), me().uncancel()]


@scenario()
async def repr_while_it_waits() -> Any:
    task, seen = me(), []
    soon(lambda: seen.append(normal(repr(task))))
    soon(asyncio.get_running_loop().call_later, 0.001, task.cancel)
    try:
        await wait_for_ever()
    except asyncio.CancelledError:
        return seen


async def see_its_repr() -> Any:
    return normal(repr(kept["task"]))


@scenario(then=see_its_repr)
async def repr_when_it_has_ended() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    return 1


@scenario(then=see_its_repr)
async def repr_when_it_has_failed() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    raise LookupError("not here")


@scenario()
async def private_state_that_libraries_read() -> Any:
    task: Any = me()
    seen = [task._fut_waiter, task._must_cancel, task._state, task._exception, task._log_destroy_pending]

    def look() -> None:
        seen.extend([type(task._fut_waiter).__name__, task._must_cancel, task._state, task._loop is loop])

    loop = asyncio.get_running_loop()
    soon(look)
    soon(loop.call_soon, loop.call_soon, task.cancel)
    try:
        await wait_for_ever()
    except asyncio.CancelledError:
        seen.append(task._fut_waiter)
    task.cancel()
    seen.append(task._must_cancel)
    return [*seen, task.uncancel(), task.uncancel()]


@scenario()
async def what_a_task_refuses_while_it_runs() -> Any:
    seen = []
    for call in (me().result, me().exception, lambda: me().set_result(1), lambda: me().set_exception(LookupError())):
        try:
            call()
        except Exception as error:
            seen.append(describe(error))
    return seen


@scenario()
async def what_a_task_is_to_inspect() -> Any:
    task = me()
    return (
        [asyncio.isfuture(task), inspect.isawaitable(task), asyncio.iscoroutine(task), task.get_loop().is_running()],
        [asyncio.iscoroutine(task.get_coro()), inspect.isawaitable(task.get_coro()), hash(task) == hash(me())],
        asyncio.ensure_future(task) is task,
    )


# ----------------------------------------------------------------------------------------------------------- all tasks


@scenario()
async def all_tasks_has_the_own_in_the_first_step() -> Any:
    tasks = asyncio.all_tasks()
    return names_of(tasks), me() in tasks


@scenario()
async def all_tasks_has_the_own_and_its_children() -> Any:
    child = asyncio.create_task(settle())
    seen = [names_of(asyncio.all_tasks())]
    await asyncio.sleep(0)
    seen.append(names_of(asyncio.all_tasks(asyncio.get_running_loop())))
    await child
    return [*seen, me() in asyncio.all_tasks()]


@scenario()
async def all_tasks_seen_from_a_callback_and_a_thread() -> Any:
    loop, seen = asyncio.get_running_loop(), []
    soon(lambda: seen.append(names_of(asyncio.all_tasks())))
    await asyncio.sleep(0)
    seen.append(names_of(await asyncio.to_thread(asyncio.all_tasks, loop)))
    return seen


@scenario(neighbours=3)
async def all_tasks_has_all_neighbours(number: int) -> Any:
    await all_here(3)
    seen = names_of(asyncio.all_tasks()) if number == 1 else []
    await settle()
    return seen


async def see_all_tasks() -> Any:
    return names_of(asyncio.all_tasks()), kept["task"] in asyncio.all_tasks()


@scenario(then=see_all_tasks)
async def all_tasks_forgets_an_item_that_has_ended() -> Any:
    kept["task"] = me()


# -------------------------------------------------------------------------------------------------------------- orphans


async def see_the_orphan() -> Any:
    orphan = kept["orphan"]
    seen = [end_of(orphan), orphan in asyncio.all_tasks(), orphan is me()]
    kept["go on"].set()
    return [*seen, await end_when_awaited(orphan)]


@scenario(then=see_the_orphan)
async def orphaned_task_goes_on_after_its_item() -> Any:
    async def orphan() -> Any:
        color.set(color.get() + "dish")
        await kept["go on"].wait()
        return color.get(), kept["parent"].done(), me() is kept["parent"]

    color.set("red")
    kept["go on"], kept["parent"] = asyncio.Event(), me()
    kept["orphan"] = asyncio.create_task(orphan(), name="orphan")
    return color.get(), kept["orphan"].get_name()


@scenario(then=see_the_orphan)
async def orphaned_task_made_without_looking_at_the_own() -> Any:
    async def orphan() -> Any:
        await kept["go on"].wait()
        raise LookupError(color.get())

    color.set("red")
    kept["go on"] = asyncio.Event()
    kept["orphan"] = asyncio.ensure_future(orphan())


async def await_the_parent_from_an_orphan() -> Any:
    return await kept["orphan"]


@scenario(then=await_the_parent_from_an_orphan)
async def orphaned_task_awaits_its_item() -> Any:
    async def orphan(parent: Any) -> Any:
        return await parent, parent.cancel()

    kept["orphan"] = asyncio.create_task(orphan(me()))
    return "from the parent"


async def see_that_nothing_was_reported() -> Any:
    gc.collect()
    await settle()
    return kept["reported"]


@scenario(then=see_that_nothing_was_reported)
async def exception_of_an_item_is_not_reported_as_never_retrieved() -> Any:
    kept["reported"] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: kept["reported"].append(context["message"]))
    await asyncio.sleep(0)
    raise LookupError("known to its caller")


@scenario(then=see_that_nothing_was_reported)
async def exception_of_a_first_step_is_not_reported_as_never_retrieved() -> Any:
    kept["reported"] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: kept["reported"].append(context["message"]))
    me().set_name("looked up")
    raise LookupError("known to its caller")


@scenario(then=see_that_nothing_was_reported)
async def exception_of_an_orphan_is_reported() -> Any:
    async def orphan() -> None:
        raise LookupError("nobody listens")

    kept["reported"] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: kept["reported"].append(context["message"]))
    asyncio.create_task(orphan())  # noqa: RUF006 - an orphan
