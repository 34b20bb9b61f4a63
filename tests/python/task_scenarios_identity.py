"""Scenarios about the task itself: who it is, its name, its callbacks, and what debuggers see of it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
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
