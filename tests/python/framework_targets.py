"""What workers run in test_frameworks.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import anyio
import anyio.lowlevel
from pydantic import BaseModel

from polyloop import current_worker
from rendezvous import ring


async def square(n: int) -> int:
    await asyncio.sleep(0)
    return n * n


def fail(name: str) -> None:
    raise LookupError(f"no such user: {name}")


def die() -> str:
    os._exit(1)


class Order(BaseModel):
    customer: str
    prices: list[int]


class Bill(BaseModel):
    customer: str
    total: int


async def add_up(order: Order) -> Bill:
    return Bill(customer=order.customer, total=sum(order.prices))


async def wait_for_cancel(bell: str) -> None:
    ring(bell, "started")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        ring(bell, "cancelled")
        raise


async def squares_in_a_group(numbers: list[int]) -> list[int]:
    """anyio in a worker: a task group, and a scope that ends."""
    found: list[int] = []

    async def add(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        found.append(n * n)

    async with anyio.create_task_group() as group:
        for n in numbers:
            group.start_soon(add, n)
    with anyio.move_on_after(0):
        await anyio.sleep_forever()
    return sorted(found)


@asynccontextmanager
async def one_connection() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        yield session


async def fetch(url: str) -> tuple[int, str]:
    async with current_worker().state.get(url) as response:
        return os.getpid(), await response.text()
