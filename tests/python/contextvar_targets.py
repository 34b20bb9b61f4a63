"""Context variables, and what workers see of them, in test_pool_contextvars.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

request_id: ContextVar[Any] = ContextVar("request_id")
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
stays: ContextVar[str] = ContextVar("stays", default="at home")
not_a_variable = 7

NAMES = ("contextvar_targets:request_id", "contextvar_targets:tenant")

Seen = tuple[Any, str, str]


def _look() -> Seen:
    return request_id.get("unset"), tenant.get(), stays.get()


def look(_: object = None) -> Seen:
    seen = _look()
    request_id.set("a task's own")
    tenant.set("a task's own")
    return seen


async def look_at_once(_: object = None) -> Seen:
    return look()


async def look_later(_: object = None) -> list[Seen]:
    seen = [_look()]
    await asyncio.sleep(0)
    seen += [_look(), await asyncio.create_task(look_at_once()), await asyncio.to_thread(look)]
    return seen


async def look_while_streaming(times: int) -> AsyncIterator[Seen]:
    for _ in range(times):
        yield _look()
        await asyncio.sleep(0)


def look_plainly_while_streaming(times: int) -> Iterator[Seen]:
    for _ in range(times):
        yield _look()


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    request_id.set("of the lifespan")
    tenant.set("of the lifespan")
    yield


class Unsendable:
    def __reduce__(self) -> NoReturn:
        raise LookupError("stays here")


def _unreadable() -> NoReturn:
    raise LookupError("can't be read")


class Unreadable:
    def __reduce__(self) -> Any:
        return _unreadable, ()
