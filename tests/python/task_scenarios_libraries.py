"""Scenarios about libraries that keep state by task or by context: anyio, aiohttp, httpx, asgiref and others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import httpx
import opentelemetry.context
import sniffio
import structlog.contextvars
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async

from task_scenarios import (
    all_here,
    describe,
    end_of,
    end_when_awaited,
    kept,
    me,
    scenario,
    settle,
    soon,
    wait_for_ever,
)

# --------------------------------------------------------------------------------------------------------------- anyio


@scenario()
async def sniffio_knows_the_library() -> Any:
    seen = sniffio.current_async_library()
    await asyncio.sleep(0)
    return seen, sniffio.current_async_library()


@scenario()
async def anyio_current_task() -> Any:
    info = anyio.get_current_task()
    me().set_name("mine")
    later = anyio.get_current_task()
    await anyio.lowlevel.checkpoint()
    return (
        info == anyio.get_current_task(),
        info.id == id(me()),
        later.name,
        info.parent_id,
        later.has_pending_cancellation(),
    )


@scenario()
async def anyio_running_tasks() -> Any:
    return sorted(info.name for info in anyio.get_running_tasks() if info.id == id(me())) == [me().get_name()]


@scenario()
async def anyio_checkpoint_in_the_first_step() -> Any:
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.cancel_shielded_checkpoint()
    await anyio.lowlevel.checkpoint()
    return anyio.current_effective_deadline()


@scenario()
async def anyio_scope_cancelled_in_the_first_step() -> Any:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(60)
    await asyncio.sleep(0)
    return scope.cancelled_caught, scope.cancel_called, me().cancelling()


@scenario()
async def anyio_scope_cancelled_without_suspension() -> Any:
    with anyio.CancelScope() as scope:  # noqa: ASYNC100
        scope.cancel()
    return scope.cancelled_caught, scope.cancel_called, me().cancelling()


@scenario()
async def anyio_scope_cancelled_by_a_callback() -> Any:
    with anyio.CancelScope() as scope:
        soon(scope.cancel)
        await wait_for_ever()
    await settle()
    return scope.cancelled_caught, me().cancelling()


@scenario()
async def anyio_scope_shielded() -> Any:
    seen = []
    with anyio.CancelScope() as outer:
        outer.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            seen.append("shielded")
        await anyio.lowlevel.checkpoint()
        seen.append("not reached")
    return seen, outer.cancelled_caught, me().cancelling()


@scenario()
async def anyio_fail_after() -> Any:
    with anyio.fail_after(0.010):
        await anyio.sleep(60)


@scenario()
async def anyio_fail_after_no_time() -> Any:
    with anyio.fail_after(0):
        await anyio.sleep(60)


@scenario()
async def anyio_move_on_after() -> Any:
    with anyio.move_on_after(0.010) as scope:
        await anyio.sleep(60)
    with anyio.move_on_after(60) as other:
        await anyio.lowlevel.checkpoint()
    return scope.cancelled_caught, other.cancelled_caught, me().cancelling()


@scenario()
async def anyio_move_on_after_around_nothing() -> Any:
    with anyio.move_on_after(60) as scope:  # noqa: ASYNC100
        pass
    return scope.cancelled_caught, me().cancelling()


@scenario()
async def anyio_scope_and_a_cancellation_from_outside() -> Any:
    async def work() -> None:
        with anyio.CancelScope():
            soon(me().cancel, "outside")
            await anyio.sleep(60)

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def anyio_task_group() -> Any:
    seen: list[Any] = []

    async def child(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append((number, anyio.get_current_task().parent_id == id(parent)))

    parent = me()
    async with anyio.create_task_group() as group:
        for i in range(3):
            group.start_soon(child, i)
    return seen


@scenario()
async def anyio_task_group_with_a_child_that_fails() -> Any:
    async def fail() -> None:
        raise LookupError("child")

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await anyio.sleep(60)

    return await end_when_awaited(work()), me().cancelling()


@scenario()
async def anyio_task_group_cancelled_by_its_scope() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        group.cancel_scope.cancel()
    return group.cancel_scope.cancelled_caught, me().cancelling()


@scenario()
async def anyio_task_group_that_starts_a_child() -> Any:
    async def child(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        task_status.started("started")
        await anyio.sleep(60)

    async with anyio.create_task_group() as group:
        seen = await group.start(child)
        group.cancel_scope.cancel()
    return seen, me().cancelling()


async def see_no_scope() -> Any:
    await asyncio.sleep(0.010)
    return anyio.current_effective_deadline(), me().cancelling(), end_of(kept["task"]), kept["scope"].cancelled_caught


@scenario(then=see_no_scope)
async def anyio_scope_never_left_hits_no_later_item() -> Any:
    kept["task"], kept["scope"] = me(), anyio.CancelScope(deadline=anyio.current_time() + 0.005)
    kept["scope"].__enter__()
    return "left open"


@scenario(then=see_no_scope)
async def anyio_scope_never_left_after_a_suspension_hits_no_later_item() -> Any:
    await anyio.lowlevel.checkpoint()
    kept["task"], kept["scope"] = me(), anyio.CancelScope(deadline=anyio.current_time() + 0.005)
    kept["scope"].__enter__()
    return "left open"


async def leave_the_scope_of_another() -> Any:
    try:
        kept["scope"].__exit__(None, None, None)
    except RuntimeError as error:
        return describe(error)


@scenario(then=leave_the_scope_of_another)
async def anyio_scope_is_not_left_by_a_later_item() -> Any:
    kept["scope"] = anyio.CancelScope()
    kept["scope"].__enter__()


@scenario(neighbours=3)
async def anyio_lock_among_neighbours(number: int) -> Any:
    lock = kept.setdefault("lock", anyio.Lock())
    await all_here(3)
    async with lock:
        owner = lock.statistics().owner
        await settle()
        return owner is not None and owner.id == id(me())


@scenario()
async def anyio_lock_taken_twice() -> Any:
    lock = anyio.Lock()
    async with lock:
        return await end_when_awaited(lock.acquire())


@scenario(neighbours=3)
async def anyio_limiter_among_neighbours(number: int) -> Any:
    limiter = kept.setdefault("limiter", anyio.CapacityLimiter(2))
    await all_here(3)
    async with limiter:
        await settle()
        return me() in limiter.statistics().borrowers, limiter.borrowed_tokens <= 2


@scenario()
async def anyio_threads_and_back() -> Any:
    def work() -> Any:
        return anyio.from_thread.run(settle), anyio.from_thread.run_sync(asyncio.current_task)

    return await anyio.to_thread.run_sync(work)


@scenario()
async def anyio_memory_streams() -> Any:
    send, receive = anyio.create_memory_object_stream[int](1)
    async with anyio.create_task_group() as group, send, receive:
        group.start_soon(send.send, 1)
        group.start_soon(send.send, 2)
        return [await receive.receive(), await receive.receive()]


# ------------------------------------------------------------------------------------------------------------ over http


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[str]:
    """A server that answers all but /never."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/never" in head:
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        writer.close()
        answered.set()

    answered = asyncio.Event()
    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await answered.wait()
    finally:
        listening.close()
        await listening.wait_closed()
        await settle()


@scenario()
async def aiohttp_gets_an_answer() -> Any:
    async with server() as url, aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text(), me().cancelling()


@scenario()
async def aiohttp_times_out() -> Any:
    timeout = aiohttp.ClientTimeout(total=0.020)
    async with server() as url, aiohttp.ClientSession(timeout=timeout) as session:
        try:
            await session.get(f"{url}/never")
        except TimeoutError as error:
            seen = type(error).__name__
    return seen, me().cancelling()


@scenario()
async def aiohttp_cancelled_from_outside() -> Any:
    async with server() as url, aiohttp.ClientSession() as session:
        asyncio.get_running_loop().call_later(0.010, me().cancel, "outside")
        seen = await end_when_awaited(session.get(f"{url}/never"))
    return seen[0], seen[1][0], me().cancelling()


@scenario(neighbours=3)
async def aiohttp_among_neighbours(number: int) -> Any:
    async with server() as url, aiohttp.ClientSession() as session:
        await all_here(3)
        async with session.get(url, params={"n": number}) as response:
            return number, await response.text()


@scenario()
async def httpx_gets_an_answer() -> Any:
    async with server() as url, httpx.AsyncClient(trust_env=False, verify=False) as client:
        response = await client.get(url)
    return response.status_code, response.text, me().cancelling()


@scenario()
async def httpx_times_out() -> Any:
    async with server() as url, httpx.AsyncClient(trust_env=False, verify=False, timeout=0.020) as client:
        seen = await end_when_awaited(client.get(f"{url}/never"))
    return seen[0], seen[1][0], me().cancelling()


# ------------------------------------------------------------------------------------------- asgiref, structlog, more


async def see_the_local() -> Any:
    return getattr(kept["local"], "value", None)


@scenario(then=see_the_local)
async def asgiref_local_is_the_items() -> Any:
    kept["local"] = Local()
    kept["local"].value = "mine"
    await asyncio.sleep(0)
    return kept["local"].value, await sync_to_async(lambda: kept["local"].value)()


@scenario(then=see_the_local)
async def asgiref_local_without_suspension() -> Any:
    kept["local"] = Local()
    kept["local"].value = "mine"
    return kept["local"].value


@scenario()
async def asgiref_to_sync_and_back() -> Any:
    parent = me()

    async def inner() -> Any:
        return me() is parent, threading.current_thread() is threading.main_thread()

    def work() -> Any:
        return threading.current_thread() is threading.main_thread(), async_to_sync(inner)()

    return await sync_to_async(work)()


@scenario()
async def asgiref_to_sync_is_refused() -> Any:
    try:
        async_to_sync(settle)()
    except RuntimeError as error:
        return str(error)


async def see_the_log_context() -> Any:
    return structlog.contextvars.get_contextvars()


@scenario(then=see_the_log_context)
async def structlog_context_is_the_items() -> Any:
    structlog.contextvars.bind_contextvars(request=1)
    with structlog.contextvars.bound_contextvars(user="me"):
        await asyncio.sleep(0)
        seen = structlog.contextvars.merge_contextvars(None, "info", {"event": "text"})
    return seen, structlog.contextvars.get_contextvars()


@scenario(neighbours=2)
async def structlog_context_among_neighbours(number: int) -> Any:
    structlog.contextvars.bind_contextvars(request=number)
    await all_here(2)
    return structlog.contextvars.get_contextvars()


async def see_the_span() -> Any:
    return opentelemetry.context.get_value("span")


@scenario(then=see_the_span)
async def opentelemetry_context_is_the_items() -> Any:
    token = opentelemetry.context.attach(opentelemetry.context.set_value("span", "outer"))
    inner = opentelemetry.context.attach(opentelemetry.context.set_value("span", "inner"))
    await asyncio.sleep(0)
    seen = [await see_the_span(), await asyncio.create_task(see_the_span())]
    opentelemetry.context.detach(inner)
    seen.append(await see_the_span())
    opentelemetry.context.detach(token)
    return [*seen, await see_the_span()]


@scenario(then=see_the_span)
async def opentelemetry_context_never_detached() -> Any:
    opentelemetry.context.attach(opentelemetry.context.set_value("span", "left"))
    return await see_the_span()
