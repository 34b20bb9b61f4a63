"""Scenarios about the loop that items share: callbacks, timers, threads, streams, and nested runs."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from typing import Any

from task_scenarios import (
    MS,
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
)

factory_made: list[str] = []


def set_task_factory() -> None:
    """Have the loop note each task that it makes."""

    def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
        factory_made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **kwargs)

    asyncio.get_event_loop_policy().get_event_loop().set_task_factory(factory)


@scenario()
async def task_factory_makes_the_task() -> Any:
    made = factory_made[-1:]
    await asyncio.create_task(settle())
    return made, factory_made[-1:], normal(repr(me()).partition(" created")[0]).partition(" coro")[0]


@scenario()
async def first_step_is_on_the_stack_of_the_loop() -> Any:
    """In debug mode and with a task factory also at level lazy; else it may run in the worker's own turn."""
    if not (asyncio.get_running_loop().get_debug() or factory_made):
        return None
    names, frame = [], sys._getframe()
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names[: names.index("run_forever")]


# ----------------------------------------------------------------------------------------------------------- callbacks


@scenario()
async def callbacks_run_in_order() -> Any:
    loop, seen = asyncio.get_running_loop(), []
    future = loop.create_future()
    loop.call_soon(seen.append, "soon")

    def at() -> None:
        seen.append("at")
        loop.call_later(MS, lambda: future.set_result(seen.append("later")))

    def soon_too() -> None:
        # Not earlier: uvloop's time may be behind by more than that, and then what is due comes first.
        seen.append("soon too")
        loop.call_at(loop.time() + MS, at)

    loop.call_later(MS, seen.append, "cancelled").cancel()
    loop.call_soon(soon_too)
    await future
    return seen


@scenario()
async def callback_that_fails_goes_to_the_exception_handler() -> Any:
    def fail() -> None:
        raise LookupError("in a callback")

    loop, seen = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: seen.append(describe(context["exception"])))
    soon(fail)
    await settle()
    return seen, loop.get_exception_handler() is not None


async def see_the_late_callback() -> Any:
    return await kept["future"]


@scenario(then=see_the_late_callback)
async def timer_outlives_its_item() -> Any:
    loop = asyncio.get_running_loop()
    kept["future"] = future = loop.create_future()
    color.set("red")
    loop.call_later(MS, lambda: future.set_result((color.get(), asyncio.current_task())))
    return color.get()


@scenario()
async def ensure_future_and_create_task_within() -> Any:
    async def child(value: Any) -> Any:
        return value, me().get_coro().__name__  # type: ignore[union-attr]

    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(child(1), name="named"), asyncio.ensure_future(child(2)), loop.create_task(child(3))]
    return [await task for task in tasks], tasks[0].get_name(), names_of(asyncio.all_tasks())


@scenario()
async def child_starts_only_when_its_parent_waits() -> Any:
    seen = []

    async def child() -> None:
        seen.append("child")

    task = asyncio.create_task(child())
    seen.append("parent")
    await asyncio.sleep(0)
    seen.append("parent again")
    await task
    return seen


@scenario(since=(3, 12))
async def eager_child_starts_within_its_parent() -> Any:
    parent, seen = me(), []

    async def child(suspends: bool) -> Any:
        seen.append(("child", me() is parent, me().get_coro().__name__))  # type: ignore[union-attr]
        if suspends:
            await asyncio.sleep(0)
        return me() is parent

    loop = asyncio.get_running_loop()
    tasks: Any = [asyncio.Task(child(each), loop=loop, eager_start=True) for each in (False, True)]  # type: ignore[call-arg]
    seen.append(("parent", me() is parent, parent.get_coro().__name__))  # type: ignore[union-attr]
    return seen, [end_of(task) for task in tasks], [await task for task in tasks], me() is parent


@scenario(since=(3, 12))
async def eager_child_of_an_item_that_did_not_look() -> Any:
    async def child() -> Any:
        return me().get_coro().__name__  # type: ignore[union-attr]

    task: Any = asyncio.Task(child(), loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]
    return end_of(task), me().get_coro().__name__  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------- threads


@scenario()
async def to_thread_at_once() -> Any:
    color.set("red")

    def work(x: int, *, y: int) -> Any:
        color.set(color.get() + "dish")
        return x + y, color.get(), threading.current_thread() is threading.main_thread()

    return await asyncio.to_thread(work, 1, y=2), color.get()


@scenario()
async def run_in_executor_that_fails() -> Any:
    def fail() -> None:
        raise LookupError("in a thread")

    loop = asyncio.get_running_loop()
    return await end_when_awaited(loop.run_in_executor(None, fail)), color.get()


@scenario()
async def coroutine_handed_over_by_a_thread() -> Any:
    loop, parent = asyncio.get_running_loop(), me()

    async def child() -> Any:
        await asyncio.sleep(0)
        return me() is parent, me().get_coro().__name__  # type: ignore[union-attr]

    return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(child(), loop).result(30))


@scenario()
async def loop_of_its_own_in_a_thread() -> Any:
    async def main() -> Any:
        task = me()
        await asyncio.sleep(0)
        return task is me(), task.get_coro().__name__  # type: ignore[union-attr]

    return await asyncio.to_thread(lambda: asyncio.run(main())), me().get_coro().__name__  # type: ignore[union-attr]


@scenario()
async def loop_of_its_own_in_a_thread_while_the_first_step_blocks() -> Any:
    async def main() -> Any:
        return me().get_coro().__name__  # type: ignore[union-attr]

    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(asyncio.run(main())))
    thread.start()
    thread.join()
    return [*seen, me().get_coro().__name__]  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------------- nested loops


async def nothing() -> None:
    pass


@scenario()
async def asyncio_run_is_refused() -> Any:
    coroutine = nothing()
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


@scenario()
async def asyncio_runner_is_refused() -> Any:
    await asyncio.sleep(0)
    coroutine, seen = nothing(), []
    try:
        asyncio.Runner().run(coroutine)
    except RuntimeError as error:
        seen.append(describe(error))
    coroutine.close()
    return [*seen, me().get_coro().__name__]  # type: ignore[union-attr]


@scenario()
async def running_the_loop_again_is_refused() -> Any:
    loop, other, seen = asyncio.get_running_loop(), asyncio.new_event_loop(), []
    for each in (loop, other):
        future = each.create_future()
        try:
            each.run_until_complete(future)
        except RuntimeError as error:
            seen.append(describe(error))
    other.close()
    return seen, asyncio.get_event_loop() is loop


# ------------------------------------------------------------------------------------------------------------- streams


@scenario()
async def streams_on_loopback() -> Any:
    parents: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parents.append((me().get_coro().__name__, color.get()))  # type: ignore[union-attr]
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    color.set("red")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n")
    seen = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    return seen, parents


@scenario()
async def sockets_and_readers() -> Any:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        future = loop.create_future()
        loop.add_reader(ours, lambda: future.done() or future.set_result(asyncio.current_task()))
        theirs.send(b"hello")
        seen = await future
        loop.remove_reader(ours)
        return seen, await loop.sock_recv(ours, 100)


@scenario()
async def subprocess_that_echoes() -> Any:
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate(b"hello")
    return out, process.returncode
