"""Scenarios about what is awaited: custom awaitables, generators of both kinds, and what a task refuses to await."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import types
from collections.abc import AsyncIterator, Generator
from typing import Any

from task_scenarios import (
    color,
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

# ---------------------------------------------------------------------------------------------------------- awaitables


class Yields:
    """Hands values to whoever drives the task, and remembers what it got for each."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.got: list[Any] = []

    def __await__(self) -> Generator[Any, Any, Any]:
        for value in self.values:
            try:
                self.got.append((yield value))
            except BaseException as error:
                self.got.append(describe(error))
        return self.got


class Waits:
    """Awaits a future by hand."""

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.future)


class AtOnce:
    """Awaits nothing."""

    def __await__(self) -> Any:
        return iter(())


@types.coroutine
def old_style(value: Any) -> Generator[Any, Any, Any]:
    yield
    return (yield from asyncio.sleep(0, value).__await__())


@scenario()
async def awaits_an_awaitable_around_a_future() -> Any:
    future = asyncio.get_running_loop().create_future()
    soon(future.set_result, "result")
    return await Waits(future), await Waits(done_future("at hand")), await AtOnce()  # type: ignore[func-returns-value]


@scenario()
async def awaits_bare_yields() -> Any:
    return await Yields(None), await Yields(None, None)


@scenario()
async def awaits_garbage_at_once() -> Any:
    return await Yields(42, None, "text")


@scenario()
async def awaits_garbage_that_is_not_caught() -> Any:
    await Raw([])


class Raw:
    """Hands a value to whoever drives the task."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        yield self.value


@scenario()
async def awaits_garbage_later() -> Any:
    await asyncio.sleep(0)
    return await Yields(42), await Yields(b"bytes")


@scenario()
async def awaits_a_generator_by_yield() -> Any:
    return [normal(str(each)) for each in await Yields(x for x in ())]


@scenario()
async def awaits_a_future_by_yield() -> Any:
    future = done_future()
    return await Yields(future)


@scenario()
async def awaits_itself() -> Any:
    return await end_when_awaited(me()), me().cancelling()


@scenario()
async def awaits_itself_and_fails() -> Any:
    await me()


@scenario()
async def awaits_a_future_of_another_loop() -> Any:
    other = asyncio.new_event_loop()
    try:
        return await end_when_awaited(other.create_future())
    finally:
        other.close()


@scenario()
async def awaits_a_generator_based_coroutine() -> Any:
    return await old_style("result"), inspect.isawaitable(coroutine := old_style(1)), coroutine.close()


@scenario()
async def awaits_a_coroutine_twice() -> Any:
    coroutine = settle()
    await coroutine
    return await end_when_awaited(coroutine)


@scenario()
async def awaits_a_coroutine_that_another_task_runs() -> Any:
    coroutine = settle()
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    seen = await end_when_awaited(coroutine)
    return seen, await end_when_awaited(task)


@scenario()
async def awaits_what_is_no_awaitable() -> Any:
    await 42  # type: ignore[misc]


@scenario()
async def awaits_a_task_that_is_done() -> Any:
    task = asyncio.create_task(settle())
    await task
    return await task, await asyncio.ensure_future(done_future(1)), task.done()


@scenario()
async def awaits_deeply() -> Any:
    async def descend(depth: int) -> Any:
        if depth:
            return await descend(depth - 1)
        seen = [me().get_coro().__name__]  # type: ignore[union-attr]
        await asyncio.sleep(0)
        return [*seen, me().get_coro().__name__]  # type: ignore[union-attr]

    return await descend(100)


@scenario()
async def awaits_nothing_many_times() -> Any:
    task = me()
    for _ in range(1000):
        await asyncio.sleep(0)
    return me() is task


@scenario()
async def drives_a_coroutine_by_hand() -> Any:
    """As trampolines do; the coroutine sees the task that drives it."""

    async def inner() -> Any:
        return me().get_coro().__name__  # type: ignore[union-attr]

    coroutine = inner()
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value, me().get_coro().__name__  # type: ignore[union-attr]


@scenario()
async def returns_at_once() -> Any:
    return None


@scenario()
async def returns_an_exception() -> Any:
    return describe(LookupError("returned, not raised"))


@scenario()
async def returns_much() -> Any:
    return b"x" * 3_000_000


@scenario()
async def returns_much_after_a_suspension() -> Any:
    await asyncio.sleep(0)
    return list(range(100_000))


def plain_function_that_returns_a_coroutine() -> Any:
    return asyncio.sleep(0, "result")


@scenario()
async def looks_like_a_coroutine_to_inspect() -> Any:
    coroutine = settle()
    seen = [inspect.iscoroutine(coroutine), asyncio.iscoroutine(coroutine), inspect.isawaitable(coroutine)]
    await coroutine
    return [*seen, inspect.iscoroutinefunction(settle), inspect.getcoroutinestate(coroutine)]


# ---------------------------------------------------------------------------------------------------------- generators


async def count(to: int) -> AsyncIterator[int]:
    try:
        for i in range(to):
            yield i
            await asyncio.sleep(0)
    finally:
        kept.setdefault("closed", []).append(asyncio.current_task() is kept.get("task"))


@scenario()
async def generator_runs_to_its_end() -> Any:
    kept["task"] = me()
    return [i async for i in count(3)], kept["closed"]


@scenario()
async def generator_that_never_suspends() -> Any:
    async def generate() -> AsyncIterator[Any]:
        yield color.get()
        color.set("red")
        yield color.get()

    return [each async for each in generate()], color.get()


@scenario()
async def generator_left_early_and_closed() -> Any:
    kept["task"] = me()
    generator: Any = count(3)
    async for _ in generator:
        break
    seen = list(kept.get("closed", []))
    await generator.aclose()
    return seen, kept["closed"]


@scenario()
async def generator_collected_by_gc_is_finalised_on_the_loop() -> Any:
    kept["task"] = me()
    async for _ in count(3):
        break
    gc.collect()
    seen = list(kept.get("closed", []))
    await settle()
    return seen, kept["closed"]


async def see_that_it_was_closed() -> Any:
    gc.collect()
    await settle()
    return kept["closed"]


@scenario(then=see_that_it_was_closed)
async def generator_left_by_an_item_is_finalised_after_it() -> Any:
    kept["task"] = me()
    async for _ in count(3):
        break


@scenario(then=see_that_it_was_closed)
async def generator_left_by_an_item_that_did_not_look() -> Any:
    async for _ in count(3):
        break


@scenario()
async def generator_that_is_sent_to_and_thrown_into() -> Any:
    async def echo() -> Any:
        got: Any = None
        while True:
            try:
                got = yield got
            except LookupError as error:
                got = describe(error)
            await asyncio.sleep(0)

    generator: Any = echo()
    seen = [await generator.asend(None), await generator.asend(1), await generator.athrow(LookupError("thrown"))]
    await generator.aclose()
    return seen, await end_when_awaited(anext(generator))


@scenario()
async def generator_in_use_by_another_task() -> Any:
    async def generate() -> Any:
        await settle()
        yield 1

    generator: Any = generate()
    task = asyncio.create_task(anext(generator))
    await asyncio.sleep(0)
    seen = await end_when_awaited(anext(generator))
    return seen, await task, await generator.aclose()


@scenario()
async def generator_hooks_are_the_loops() -> Any:
    hooks = sys.get_asyncgen_hooks()
    loop: Any = asyncio.get_running_loop()
    return hooks.firstiter is not None, hooks.finalizer is not None, loop.get_debug()


@scenario()
async def generator_around_a_timeout() -> Any:
    async def generate() -> Any:
        async with asyncio.timeout(60) as limit:
            yield limit.expired()

    return [each async for each in generate()], me().cancelling()


@scenario()
async def comprehensions_and_iterators() -> Any:
    class Iterator:
        left = 3

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            await asyncio.sleep(0)
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return self.left

    seen = [x async for x in Iterator() if x != 1]
    pairs = {x: await asyncio.sleep(0, x) async for x in Iterator()}
    return seen, pairs, [await asyncio.sleep(0, x) for x in range(2)], await anext(Iterator(), None)


@scenario()
async def generator_cancelled_while_it_is_iterated() -> Any:
    kept["task"] = me()

    async def iterate() -> None:
        async for _ in count(3):
            soon(me().cancel, "iterating")
            await wait_for_ever()

    seen = await end_when_awaited(iterate())
    gc.collect()
    await settle()
    return seen, kept["closed"], end_of(me())
