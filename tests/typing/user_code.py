"""A program as a user would write it, for type checkers: what they must infer, and what they must refuse. Never run.

`make lint` gives it to mypy and to pyright, both strict: an error that is expected here and not found is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import assert_type

from polyloop import ParentPool, Pool, PoolResult, Stream, TaskHandle, current_worker, parent_pool


async def fetch(url: str, *, retries: int = 0) -> int:
    return len(url) + retries


def parse(text: str, limit: int) -> list[str]:
    return text.split()[:limit]


class Model:
    def predict(self, x: float) -> float:
        return x

    async def train(self, rounds: int) -> Model:
        return self


async def submitting(pool: Pool) -> None:
    assert_type(pool.submit(fetch, "a"), TaskHandle[int])
    assert_type(pool.submit(fetch, "a", retries=3), TaskHandle[int])
    assert_type(pool.submit(parse, "a b", 1), TaskHandle[list[str]])
    assert_type(pool.submit(parse, text="a b", limit=1), TaskHandle[list[str]])
    assert_type(pool.submit(Model().predict, 1.0), TaskHandle[float])
    assert_type(pool.submit(Model().train, 2), TaskHandle[Model])
    assert_type(pool.submit(lambda: 1), TaskHandle[int])
    assert_type(await pool.submit(fetch, "a"), int)

    pool.submit(fetch, 1)  # type: ignore[call-overload]
    pool.submit(fetch)  # type: ignore[call-overload]
    pool.submit(fetch, "a", 3)  # type: ignore[call-overload]
    pool.submit(fetch, "a", retires=3)  # type: ignore[call-arg]
    pool.submit(parse, "a b", limit="1")  # type: ignore[arg-type]
    pool.submit(fetch("a"))  # type: ignore[call-overload]


async def waiting(pool: Pool) -> None:
    handles = [pool.submit(fetch, url) for url in ("a", "b")]
    assert_type(await asyncio.gather(*handles), list[int])
    done, _ = await asyncio.wait(handles)
    assert_type(done.pop().result(), int)
    first: asyncio.Future[int] = handles[0]
    assert_type(await asyncio.wait_for(first, 1), int)
    assert_type(first.cancel(), bool)
    both = await asyncio.gather(pool.submit(fetch, "a"), pool.submit(parse, "b", 1))
    assert_type(both, tuple[int, list[str]])


async def applying(pool: Pool) -> None:
    assert_type(await pool.apply(fetch, ("a",)), int)
    assert_type(await pool.apply(parse, ("a b", 1)), list[str])
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(pool.apply(fetch, ("a",))), asyncio.Task[int])


async def mapping(pool: Pool) -> None:
    assert_type(pool.map(fetch, ["a"]), PoolResult[int])
    assert_type(pool.map(fetch, ["a"], return_exceptions=True), PoolResult[int | BaseException])
    async for size in pool.map(fetch, ["a"]):
        assert_type(size, int)
    pool.map(fetch, [1])  # type: ignore[arg-type]


async def lines(path: str) -> AsyncIterator[str]:
    yield path


def words(text: str) -> Iterator[str]:
    yield from text.split()


async def streaming(pool: Pool) -> None:
    assert_type(pool.stream(lines, "a"), Stream[str])
    assert_type(pool.stream(words, text="a"), Stream[str])
    assert_type(pool.options(timeout=2).stream(lines, "a"), Stream[str])
    async for line in pool.stream(lines, "a"):
        assert_type(line, str)
    async with pool.stream(words, "a") as stream:
        assert_type(await anext(stream), str)
    pool.stream(lines, 1)  # type: ignore[call-overload]
    pool.stream(fetch, "a")  # type: ignore[call-overload]


async def viewing(pool: Pool) -> None:
    view = pool.options(timeout=2, retries=1)
    assert_type(view.submit(fetch, "a"), TaskHandle[int])
    assert_type(
        pool.options(in_thread=True, name="x").options(retry_on=(OSError,)).submit(parse, "a", 1), TaskHandle[list[str]]
    )
    assert_type(await view.apply(fetch, ("a",)), int)
    assert_type(view.map(fetch, ["a"]), PoolResult[int])
    pool.options(timeout="2")  # type: ignore[arg-type]
    pool.options(retires=2)  # type: ignore[call-arg]
    view.submit(fetch, 1)  # type: ignore[call-overload]


def returns_awaitable() -> Awaitable[str]:
    return asyncio.sleep(0, "done")


async def awaitables(pool: Pool) -> None:
    assert_type(pool.submit(returns_awaitable), TaskHandle[str])


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Model, None]:
    yield Model()


async def living() -> None:
    async with Pool(lifespan=lifespan) as pool:
        await pool.submit(parse, "a", 1)
        assert_type(await pool.ready(), None)
        await pool.resize(3)
        await pool.restart()
        await pool.resize("3")  # type: ignore[arg-type]
    Pool(lifespan=fetch)  # type: ignore[arg-type]


def within() -> None:
    worker = current_worker()
    assert_type(worker.index, int)
    if worker.task is not None:
        assert_type(worker.task.name, str)


async def calling() -> None:
    pool = parent_pool()
    assert_type(pool, ParentPool)
    assert_type(current_worker().pool, ParentPool)
    assert_type(await pool.apply(fetch, ("a",)), int)
    assert_type(pool.submit(parse, "a", 1), TaskHandle[list[str]])
    assert_type(await pool.map(fetch, ["a"]), Sequence[int])
    assert_type(pool.options(timeout=2).map(fetch, ["a"]), PoolResult[int])
    pool.submit(fetch, 1)  # type: ignore[call-overload]
