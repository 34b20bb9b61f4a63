"""Scenarios about the task itself: who it is, its name, its callbacks, and what debuggers see of it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import io
import re
import threading
import weakref
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

# ---------------------------------------------------------------------------------------------------------- the current


@scenario()
async def current_task_stays_the_same() -> Any:
    before = asyncio.current_task()
    await asyncio.sleep(0)
    between = asyncio.current_task()
    await asyncio.sleep(0)
    return type(before) is asyncio.Task, before is between, between is asyncio.current_task()


@scenario()
async def current_task_without_suspension() -> Any:
    task = asyncio.current_task()
    return type(task) is asyncio.Task, asyncio.current_task() is task, me().done(), me().cancelled(), me().cancelling()


@scenario()
async def current_task_looked_up_only_after_suspension() -> Any:
    await asyncio.sleep(0)
    task = me()
    await asyncio.sleep(0)
    return type(task).__name__, task is me(), task.get_coro().__name__  # type: ignore[union-attr]


@scenario()
async def current_task_of_a_given_loop() -> Any:
    other = asyncio.new_event_loop()
    try:
        seen = [asyncio.current_task(other)]
        running = asyncio.get_running_loop()
        seen += [asyncio.current_task(loop=running) is asyncio.current_task(), asyncio.current_task(other)]
    finally:
        other.close()
    await asyncio.sleep(0)
    return [*seen, asyncio.current_task(running) is asyncio.current_task(None)]


@scenario()
async def current_tasks_dictionary() -> Any:
    loop = asyncio.get_running_loop()
    first = asyncio.tasks._current_tasks.get(loop)  # type: ignore[attr-defined]
    seen = [type(first).__name__, first is me(), loop in asyncio.tasks._current_tasks]  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    return [*seen, asyncio.tasks._current_tasks[loop] is first, asyncio.tasks._current_tasks.get(0)]  # type: ignore[attr-defined]


@scenario()
async def membership_in_the_dictionary_of_current_tasks() -> Any:
    return asyncio.get_running_loop() in asyncio.tasks._current_tasks  # type: ignore[attr-defined]


@scenario()
async def entering_another_task_is_refused() -> Any:
    loop = asyncio.get_running_loop()
    other = loop.create_task(settle())
    seen = []
    for call in (asyncio.tasks._enter_task, asyncio.tasks._leave_task):  # type: ignore[attr-defined]
        try:
            call(loop, other)
        except RuntimeError as error:
            seen.append(normal(str(error)))
    await other
    return [*seen, me().get_coro().__name__]  # type: ignore[union-attr]


@scenario()
async def leaving_and_entering_the_own_task() -> Any:
    """As greenlet bridges and nested loops do."""
    loop, task = asyncio.get_running_loop(), me()
    asyncio.tasks._leave_task(loop, task)  # type: ignore[attr-defined]
    seen = [asyncio.current_task()]
    asyncio.tasks._enter_task(loop, task)  # type: ignore[attr-defined]
    seen.append(asyncio.current_task() is task)
    await asyncio.sleep(0)
    return [*seen, asyncio.current_task() is task]


@scenario()
async def no_task_is_current_in_a_callback() -> Any:
    seen: list[Any] = []
    soon(lambda: seen.append(asyncio.current_task()))
    await asyncio.sleep(0)
    return [*seen, me().get_coro().__name__]  # type: ignore[union-attr]


@scenario()
async def no_task_is_current_in_a_callback_of_an_item_that_looked() -> Any:
    seen: list[Any] = [type(asyncio.current_task()).__name__]
    soon(lambda: seen.append(asyncio.current_task()))
    await asyncio.sleep(0)
    return seen


@scenario()
async def a_thread_sees_the_task_that_is_current_while_it_blocks() -> Any:
    loop, task = asyncio.get_running_loop(), me()
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(asyncio.current_task(loop) is task))
    thread.start()
    thread.join()
    return seen


@scenario(lazy_differs="only a lookup by the item's own thread makes its Task")
async def a_thread_looks_up_the_task_before_the_item_does() -> Any:
    loop, seen = asyncio.get_running_loop(), []
    thread = threading.Thread(target=lambda: seen.append(asyncio.current_task(loop)))
    thread.start()
    thread.join()
    return seen == [me()]


@scenario()
async def no_task_is_current_in_a_thread() -> Any:
    def look() -> Any:
        try:
            return asyncio.current_task()
        except RuntimeError as error:
            return str(error)

    return await asyncio.to_thread(look)


@scenario()
async def children_are_current_while_they_run() -> Any:
    parent = me()

    async def child() -> Any:
        before = me()
        await asyncio.sleep(0)
        return before is me(), before is parent

    first, second = asyncio.create_task(child()), asyncio.create_task(child())
    return await first, await second, me() is parent


@scenario()
async def child_made_before_anyone_looked() -> Any:
    async def child() -> Any:
        return me().get_coro().__name__  # type: ignore[union-attr]

    return await asyncio.create_task(child()), me().get_coro().__name__  # type: ignore[union-attr]


async def see_the_stored_task() -> Any:
    task = kept["task"]
    return end_of(task), task is me(), task.cancel(), task.cancelling(), await end_when_awaited(task)


@scenario(then=see_the_stored_task)
async def stored_task_is_cancelled_and_awaited_by_a_later_item() -> Any:
    kept["task"] = me()
    await asyncio.sleep(0)
    return "result"


@scenario(then=see_the_stored_task)
async def stored_task_that_never_suspended_is_awaited_by_a_later_item() -> Any:
    kept["task"] = me()
    return ["result"]


@scenario(then=see_the_stored_task)
async def stored_task_that_failed_is_awaited_by_a_later_item() -> Any:
    kept["task"] = me()
    raise LookupError("not here")


@scenario(neighbours=2)
async def stored_task_is_cancelled_by_a_neighbour(number: int) -> Any:
    kept[f"task {number}"] = me()
    if number == 1:
        await all_here(2)
        return kept["task 0"].cancel("by a neighbour"), kept["task 0"] is me(), kept["task 0"].cancelling()
    try:
        await all_here(2)
        await wait_for_ever()
    except asyncio.CancelledError as error:
        return describe(error), me().cancelling(), kept["task 0"] is me()


@scenario(neighbours=2)
async def stored_task_is_awaited_by_a_neighbour(number: int) -> Any:
    kept[f"task {number}"] = me()
    await all_here(2)
    if number == 1:
        return await kept["task 0"], kept["task 0"].done(), kept["task 0"] is kept["task 1"]
    await settle()
    return "result of the first"


@scenario(neighbours=3)
async def neighbours_have_tasks_of_their_own(number: int) -> Any:
    kept[f"task {number}"] = me()
    await all_here(3)
    tasks = [kept[f"task {i}"] for i in range(3)]
    seen = tasks.index(me()), len(set(tasks)), len({task.get_name() for task in tasks}), names_of(tasks)
    await settle()
    return seen


async def see_the_weak_references() -> Any:
    gc.collect()
    return len(kept["by task"]), kept["reference"]() is None


@scenario(then=see_the_weak_references)
async def weak_dictionary_by_task_is_empty_when_the_item_has_ended() -> Any:
    kept["by task"] = weakref.WeakKeyDictionary({me(): "mine"})
    kept["reference"] = weakref.ref(me())
    await asyncio.sleep(0)
    return kept["by task"][me()], kept["reference"]() is me()


@scenario(then=see_the_weak_references)
async def weak_dictionary_by_task_is_empty_also_without_suspension() -> Any:
    kept["by task"] = weakref.WeakKeyDictionary({me(): "mine"})
    kept["reference"] = weakref.ref(me())
    return kept["by task"][me()], len(kept["by task"])


@scenario(neighbours=3)
async def dictionary_by_task_keeps_neighbours_apart(number: int) -> Any:
    """As libraries kept task-local values before contextvars."""
    values = kept.setdefault("values", {})
    values.setdefault(asyncio.current_task(), []).append(number)
    await all_here(3)
    values.setdefault(asyncio.current_task(), []).append(number + 10)
    await settle()
    return values[asyncio.current_task()], len(values)


async def set_in_a_later_item() -> Any:
    return kept["values"].get(asyncio.current_task()), len(kept["values"])


@scenario(then=set_in_a_later_item)
async def dictionary_by_task_knows_no_later_item() -> Any:
    kept["values"] = {asyncio.current_task(): "mine"}
    return kept["values"][me()]


# --------------------------------------------------------------------------------------------------------------- names


@scenario()
async def automatic_name_is_as_asyncio_makes_it() -> Any:
    name = me().get_name()
    await asyncio.sleep(0)
    return bool(re.fullmatch(r"Task-\d+", name)), me().get_name() == name


@scenario()
async def names_are_counted_up() -> Any:
    async def child() -> int:
        return int(me().get_name().removeprefix("Task-"))

    mine = await child()
    first = await asyncio.create_task(child())
    second = await asyncio.create_task(child())
    return mine < first < second


@scenario()
async def name_set_in_the_first_step() -> Any:
    me().set_name("first")
    seen = [me().get_name()]
    await asyncio.sleep(0)
    seen.append(me().get_name())
    me().set_name("second")
    await asyncio.sleep(0)
    return [*seen, me().get_name(), "name='second'" in repr(me())]


@scenario()
async def name_need_not_be_text() -> Any:
    me().set_name(42)
    return me().get_name()


async def see_its_name() -> Any:
    return kept["task"].get_name(), me().get_name() == kept["task"].get_name()


@scenario(then=see_its_name)
async def name_stays_when_the_item_has_ended() -> Any:
    kept["task"] = me()
    me().set_name("mine")


@scenario(neighbours=2)
async def name_set_by_a_neighbour(number: int) -> Any:
    kept[f"task {number}"] = me()
    await all_here(2)
    kept[f"task {1 - number}"].set_name(f"from {number}")
    await settle()
    return me().get_name()


# ------------------------------------------------------------------------------------------------------ done-callbacks


def note_end(task: asyncio.Task[Any]) -> None:
    kept.setdefault("noted", []).append((end_of(task), task is kept.get("task"), color.get(), asyncio.current_task()))


async def see_notes() -> Any:
    return kept.get("noted")


@scenario(then=see_notes)
async def done_callback_is_called_after_a_suspension() -> Any:
    kept["task"] = me()
    me().add_done_callback(note_end)
    await asyncio.sleep(0)
    return "result", kept.get("noted")


@scenario(then=see_notes)
async def done_callback_is_called_without_suspension() -> Any:
    kept["task"] = me()
    me().add_done_callback(note_end)
    return "result", kept.get("noted")


@scenario(then=see_notes)
async def done_callback_hears_of_a_failure_in_the_first_step() -> Any:
    me().add_done_callback(note_end)
    raise LookupError("at once")


@scenario(then=see_notes)
async def done_callback_hears_of_a_later_cancellation() -> Any:
    me().add_done_callback(note_end)
    soon(me().cancel)
    await wait_for_ever()


@scenario(then=see_notes)
async def done_callback_removed_again() -> Any:
    me().add_done_callback(note_end)
    me().add_done_callback(note_end)
    removed = [me().remove_done_callback(note_end), me().remove_done_callback(note_end)]
    await asyncio.sleep(0)
    me().add_done_callback(note_end)
    return [*removed, me().remove_done_callback(note_end)]


@scenario(then=see_notes)
async def done_callbacks_are_called_in_order() -> Any:
    for i in range(3):
        me().add_done_callback(lambda task, i=i: kept.setdefault("noted", []).append(i))
    await asyncio.sleep(0)
    me().add_done_callback(lambda task: kept["noted"].append("last"))


@scenario(then=see_notes)
async def done_callbacks_have_the_context_they_were_added_in() -> Any:
    color.set("red")
    me().add_done_callback(note_end)
    color.set("green")
    context = contextvars.copy_context()
    color.set("blue")
    me().add_done_callback(note_end, context=context)
    context.run(color.set, "black")


@scenario(then=see_notes)
async def done_callback_that_fails_goes_to_the_exception_handler() -> Any:
    def fail(task: Any) -> None:
        raise LookupError("in a callback")

    def note(loop: Any, context: dict[str, Any]) -> None:
        kept.setdefault("noted", []).append((sorted(context), describe(context["exception"])))

    asyncio.get_running_loop().set_exception_handler(note)
    me().add_done_callback(fail)


async def call_back_at_once() -> Any:
    kept["task"].add_done_callback(note_end)
    await settle()
    return kept["noted"]


@scenario(then=call_back_at_once)
async def done_callback_added_when_the_item_has_ended() -> Any:
    kept["task"] = me()
    return 1


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
