"""Scenarios about several tasks at once: task groups, gather, shield, wait, as_completed, and locks."""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import Any

from task_scenarios import (
    MS,
    all_here,
    color,
    describe,
    done_future,
    end_of,
    end_when_awaited,
    kept,
    me,
    names_of,
    scenario,
    settle,
    soon,
    wait_for_ever,
)


async def give(value: Any, after: int = 1) -> Any:
    for _ in range(after):
        await asyncio.sleep(0)
    return value


async def fail(text: str, after: int = 1) -> None:
    for _ in range(after):
        await asyncio.sleep(0)
    raise LookupError(text)


# --------------------------------------------------------------------------------------------------------- task groups


@scenario()
async def task_group_succeeds() -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(give(i, i), name=f"child {i}") for i in range(3)]
    return [task.result() for task in tasks], [task.get_name() for task in tasks], me().cancelling()


@scenario()
async def task_group_without_children() -> Any:
    async with asyncio.TaskGroup() as group:
        pass
    return repr(group), me().cancelling()


@scenario()
async def task_group_left_by_return() -> Any:
    async with asyncio.TaskGroup() as group:
        kept["child"] = group.create_task(give("result", 3))
        return "returned"


@scenario()
async def task_group_with_a_child_that_fails() -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(fail("child"))
        await wait_for_ever()


@scenario()
async def task_group_with_children_that_fail() -> Any:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            kept["other"] = group.create_task(wait_for_ever())
            group.create_task(fail("one"))
            group.create_task(fail("two"))

    return await end_when_awaited(work()), end_of(kept["other"]), me().cancelling()


@scenario()
async def task_group_with_a_body_that_fails() -> Any:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            kept["child"] = group.create_task(wait_for_ever())
            raise LookupError("body")

    return await end_when_awaited(work()), end_of(kept["child"]), me().cancelling()


@scenario()
async def task_group_with_a_body_that_fails_at_once_and_alone() -> Any:
    async with asyncio.TaskGroup():
        raise LookupError("body")


@scenario()
async def task_group_within_a_task_group() -> Any:
    seen: list[Any] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(give("outer"))
            try:
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(fail("inner"))
                    await wait_for_ever()
            except* LookupError as errors:
                seen.append(describe(errors))
            seen.append(me().cancelling())
            await asyncio.sleep(0)

    return await end_when_awaited(work()), seen, me().cancelling()


@scenario()
async def task_group_whose_inner_group_is_cancelled_by_the_outer() -> Any:
    async def work() -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(fail("outer"))
            async with asyncio.TaskGroup() as inner:
                kept["inner"] = inner.create_task(wait_for_ever())

    return await end_when_awaited(work()), end_of(kept["inner"]), me().cancelling()


@scenario()
async def task_group_cancelled_from_outside() -> Any:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            kept["child"] = group.create_task(wait_for_ever())
            soon(soon, me().cancel, "outside")

    return await end_when_awaited(work()), end_of(kept["child"]), me().cancelling()


@scenario()
async def task_group_cancelled_from_outside_while_a_child_fails() -> Any:
    task = me()

    async def child() -> None:
        try:
            await wait_for_ever()
        finally:
            raise LookupError("while it was cancelled")

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            soon(soon, task.cancel, "outside")

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def task_group_that_cancels_itself() -> Any:
    async with asyncio.TaskGroup() as group:
        kept["child"] = group.create_task(give("child"))
        me().cancel("itself")
        await asyncio.sleep(0)


@scenario()
async def task_group_after_a_cancel_in_the_first_step() -> Any:
    async def work() -> None:
        me().cancel("first")
        async with asyncio.TaskGroup() as group:
            kept["child"] = group.create_task(give("child"))

    return await end_when_awaited(work()), end_of(kept["child"]), me().cancelling()


@scenario()
async def task_group_whose_child_has_its_name_and_context() -> Any:
    async def child() -> Any:
        before = color.get()
        color.set("blue")
        return before, me().get_name()

    color.set("red")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(child(), name="mine")
    return task.result(), color.get(), me().get_name() == "mine"


@scenario()
async def task_group_used_wrongly() -> Any:
    group, seen = asyncio.TaskGroup(), []
    coroutine = give(1)
    for use in (lambda: group.create_task(coroutine),):
        try:
            use()
        except RuntimeError as error:
            seen.append(describe(error)[0])
    coroutine.close()
    async with group:
        await asyncio.sleep(0)
    seen.append((await end_when_awaited(group.__aenter__()))[0])
    return seen


@scenario()
async def task_group_under_a_timeout() -> Any:
    async def work() -> None:
        async with asyncio.timeout(MS), asyncio.TaskGroup() as group:
            kept["child"] = group.create_task(wait_for_ever())

    return await end_when_awaited(work()), end_of(kept["child"]), me().cancelling()


@scenario(neighbours=3)
async def task_groups_of_neighbours(number: int) -> Any:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(give(number, 5))
            await all_here(3)
            if number == 1:
                raise LookupError(number)

    return await end_when_awaited(work()), me().cancelling()


# ------------------------------------------------------------------------------------------------ gather, shield, wait


@scenario()
async def gather_succeeds() -> Any:
    return await asyncio.gather(give(1, 2), give(2, 1), done_future(3)), await asyncio.gather()


@scenario()
async def gather_with_a_child_that_fails() -> Any:
    other = asyncio.create_task(give("goes on", 5))
    seen = await end_when_awaited(asyncio.gather(other, fail("child")))
    return seen, end_of(other), await other


@scenario()
async def gather_that_returns_exceptions() -> Any:
    seen = await asyncio.gather(fail("one"), give(2), give(3), return_exceptions=True)
    return [describe(each) if isinstance(each, BaseException) else each for each in seen]


@scenario()
async def gather_cancelled_from_outside() -> Any:
    children = [asyncio.create_task(wait_for_ever()) for _ in range(2)]
    soon(soon, me().cancel, "outside")
    return await end_when_awaited(asyncio.gather(*children)), [end_of(each) for each in children], me().cancelling()


@scenario()
async def gather_whose_future_is_cancelled() -> Any:
    children = [asyncio.create_task(wait_for_ever()) for _ in range(2)]
    both = asyncio.gather(*children, return_exceptions=True)
    soon(soon, both.cancel, "the future")
    return await end_when_awaited(both), [end_of(each) for each in children], me().cancelling()


@scenario()
async def gather_after_a_cancel_in_the_first_step() -> Any:
    children = [asyncio.create_task(give(i)) for i in range(2)]
    me().cancel("first")
    return await end_when_awaited(asyncio.gather(*children)), [end_of(each) for each in children]


@scenario()
async def gather_of_the_own_task() -> Any:
    async def child(parent: Any) -> Any:
        return await asyncio.wait({parent}, timeout=MS) == (set(), {parent})

    return await asyncio.gather(child(me()), give(1))


@scenario()
async def shield_keeps_a_task_from_a_cancellation() -> Any:
    inner = asyncio.create_task(give("survived", 5))
    soon(soon, me().cancel, "outside")
    return await end_when_awaited(asyncio.shield(inner)), end_of(inner), await inner, me().cancelling()


@scenario()
async def shield_in_the_first_step() -> Any:
    return await asyncio.shield(give("result")), await asyncio.shield(done_future("at hand"))


@scenario()
async def shield_around_something_that_fails() -> Any:
    await asyncio.shield(fail("inner"))


@scenario()
async def wait_until_all_are_done() -> Any:
    tasks = [asyncio.create_task(give(i, i)) for i in range(3)]
    done, pending = await asyncio.wait(tasks)
    return sorted(task.result() for task in done), len(pending)


@scenario()
async def wait_until_the_first_fails() -> Any:
    failing, other = asyncio.create_task(fail("one")), asyncio.create_task(wait_for_ever())
    done, pending = await asyncio.wait([failing, other], return_when=asyncio.FIRST_EXCEPTION)
    other.cancel()
    return [end_of(task) for task in done], names_of(pending), await end_when_awaited(other)


@scenario()
async def wait_with_a_timeout_cancels_nothing() -> Any:
    task = asyncio.create_task(wait_for_ever())
    done, pending = await asyncio.wait([task], timeout=MS)
    seen = len(done), len(pending), end_of(task)
    task.cancel()
    return seen, await end_when_awaited(task)


@scenario()
async def wait_cancelled_from_outside() -> Any:
    task = asyncio.create_task(give("goes on", 6))
    soon(soon, me().cancel, "outside")
    return await end_when_awaited(asyncio.wait([task])), end_of(task), await task


@scenario()
async def as_completed_in_order() -> Any:
    return [await each for each in asyncio.as_completed([give(3, 9), give(1, 1), give(2, 5)])]


@scenario()
async def as_completed_with_a_timeout() -> Any:
    slow = asyncio.create_task(wait_for_ever())
    seen = [await end_when_awaited(each) for each in asyncio.as_completed([slow, give(1)], timeout=0.003)]
    slow.cancel()
    return seen, await end_when_awaited(slow)


# -------------------------------------------------------------------------------------------------- between neighbours


@scenario(neighbours=4)
async def lock_among_neighbours(number: int) -> Any:
    lock = kept.setdefault("lock", asyncio.Lock())
    within = kept.setdefault("within", [])
    await all_here(4)
    async with lock:
        within.append(number)
        await settle()
        return len(set(within)) == len(within), within[-1] == number, lock.locked()


@scenario()
async def lock_taken_without_waiting() -> Any:
    lock = asyncio.Lock()
    async with lock:
        seen = lock.locked()
    return seen, lock.locked()


@scenario()
async def lock_whose_waiter_is_cancelled() -> Any:
    lock = asyncio.Lock()
    await lock.acquire()
    soon(me().cancel, "waiting")
    seen = await end_when_awaited(lock.acquire())
    lock.release()
    return seen, lock.locked(), await lock.acquire()


@scenario(neighbours=4)
async def semaphore_among_neighbours(number: int) -> Any:
    semaphore = kept.setdefault("semaphore", asyncio.BoundedSemaphore(2))
    await all_here(4)
    async with semaphore:
        inside = kept["inside"] = kept.get("inside", 0) + 1
        await settle()
        kept["inside"] -= 1
    return inside <= 2


@scenario(neighbours=3)
async def event_among_neighbours(number: int) -> Any:
    event = kept.setdefault("event", asyncio.Event())
    await all_here(3)
    if number == 2:
        await settle()
        event.set()
    return await event.wait(), event.is_set()


@scenario(neighbours=3)
async def condition_among_neighbours(number: int) -> Any:
    condition = kept.setdefault("condition", asyncio.Condition())
    await all_here(3)
    if number == 0:
        await settle()
        async with condition:
            kept["ready"] = True
            condition.notify_all()
    async with condition:
        return await condition.wait_for(lambda: "ready" in kept), condition.locked()


@scenario(neighbours=2)
async def queue_between_neighbours(number: int) -> Any:
    queue = kept.setdefault("queue", asyncio.Queue(maxsize=1))
    if number == 0:
        for i in range(5):
            await queue.put(i)
        await queue.join()
        return "all done"
    seen = []
    for _ in range(5):
        seen.append(await queue.get())
        queue.task_done()
    return seen


@scenario(neighbours=3)
async def barrier_among_neighbours(number: int) -> Any:
    barrier = kept.setdefault("barrier", asyncio.Barrier(3))
    async with barrier as position:
        kept.setdefault("positions", []).append(position)
    await settle()
    return sorted(kept["positions"]), barrier.broken


@scenario(neighbours=2)
async def barrier_broken_among_neighbours(number: int) -> Any:
    barrier = kept.setdefault("barrier", asyncio.Barrier(3))
    await all_here(2)
    if number == 0:
        await settle()
        await barrier.abort()
    return await end_when_awaited(barrier.wait()), barrier.broken


@scenario(neighbours=3)
async def future_shared_by_neighbours(number: int) -> Any:
    future = kept.setdefault("future", asyncio.get_running_loop().create_future())
    await all_here(3)
    if number == 2:
        await settle()
        future.set_exception(LookupError("for all"))
    return await end_when_awaited(future)


@scenario(neighbours=2)
async def neighbours_take_turns(number: int) -> Any:
    turns = kept.setdefault("turns", [])
    await all_here(2)
    await settle()
    for _ in range(3):
        turns.append(number)
        await asyncio.sleep(0)
    await settle()
    return sorted(turns), all(a != b for a, b in itertools.pairwise(turns))


@scenario()
async def queue_that_is_shut_down() -> Any:
    queue: Any = asyncio.Queue()
    if sys.version_info < (3, 13):
        return "not there yet"
    soon(queue.shutdown)
    return await end_when_awaited(queue.get())
