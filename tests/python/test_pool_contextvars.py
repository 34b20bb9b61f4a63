"""`contextvars`: what is set at the call is set in the task, and nowhere else."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import contextvar_targets as targets
from polyloop import Pool

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)

UNSET = ("unset", "nobody", "at home")


def test_values_at_the_call_are_set_in_the_task_whatever_the_verb(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(1, contextvars=targets.NAMES) as pool:
            assert await pool.apply(targets.look) == UNSET
            targets.request_id.set(["any", {"value": 1.5}])
            targets.stays.set("here")
            seen = (["any", {"value": 1.5}], "nobody", "at home")
            assert await pool.apply(targets.look) == seen
            assert await pool.submit(targets.look_at_once) == seen
            assert await pool.submit(targets.look_later) == [seen] * 4
            assert await pool.submit(lambda: targets.look()) == seen
            assert await pool.options(in_thread=True, name="x").submit(targets.look) == seen
            assert await pool.map(targets.look, range(3)) == [seen] * 3
            assert await pool.starmap(targets.look_later, [(1,), (2,)]) == [[seen] * 4] * 2
            for stream in (targets.look_while_streaming, targets.look_plainly_while_streaming):
                assert [seen async for seen in pool.stream(stream, 3)] == [seen] * 3
            large = bytes(100_000)
            assert await pool.apply(targets.look_at_once, (large,)) == seen

    run(main())


def test_a_call_takes_them_when_it_is_made(run: Run) -> None:
    async def main() -> None:
        async with Pool(1, contextvars=targets.NAMES) as pool:
            handles = []
            for tenant in ("a", "b"):
                targets.tenant.set(tenant)
                handles.append(pool.submit(targets.look_at_once))
            result = pool.map(targets.look, iter(range(5000)), buffersize=10)
            stream = pool.stream(targets.look_while_streaming, 200)
            targets.tenant.set("later")
            assert [(await handle)[1] for handle in handles] == ["a", "b"]
            assert {tenant for _, tenant, _ in await result} == {"b"}
            assert {tenant async for _, tenant, _ in stream} == {"b"}

            async def as_tenant(tenant: str) -> str:
                targets.tenant.set(tenant)
                await asyncio.sleep(0)
                return (await pool.apply(targets.look_at_once))[1]

            tenants = [f"tenant {number}" for number in range(50)]
            assert await asyncio.gather(*map(as_tenant, tenants)) == tenants

    run(main())


def test_what_is_not_set_is_as_the_lifespan_left_it() -> None:
    async def main() -> None:
        async with Pool(1, contextvars=targets.NAMES, lifespan=targets.lifespan) as pool:
            targets.tenant.set("of the caller")
            assert await pool.apply(targets.look) == ("of the lifespan", "of the caller", "at home")
            contextvars.copy_context().run(targets.request_id.set, "elsewhere")
            assert await pool.apply(targets.look) == ("of the lifespan", "of the caller", "at home")

    asyncio.run(main())


def test_only_those_that_are_named_travel() -> None:
    async def main() -> None:
        targets.request_id.set("mine")
        async with Pool(1) as pool:
            assert await pool.apply(targets.look) == UNSET

    asyncio.run(main())


def test_a_value_that_can_not_be_sent_is_refused_at_the_call_by_its_name() -> None:
    async def main() -> None:
        async with Pool(1, contextvars=targets.NAMES) as pool:
            targets.tenant.set("fine")
            targets.request_id.set(targets.Unsendable())
            text = r"contextvar_targets:request_id can't travel: cannot send a value of type .*Unsendable: .*stays here"
            with pytest.raises(TypeError, match=text):
                await pool.apply(targets.look)
            for call in (pool.submit, pool.stream):
                with pytest.raises(TypeError, match=text):
                    call(targets.look)
            with pytest.raises(TypeError, match=text):
                pool.map(targets.look, [1])
            targets.request_id.set("fine")
            assert await pool.apply(targets.look) == ("fine", "fine", "at home")

    asyncio.run(main())


def test_a_value_that_can_not_be_read_is_an_error_of_the_task() -> None:
    async def main() -> None:
        async with Pool(1, contextvars=targets.NAMES) as pool:
            targets.request_id.set(targets.Unreadable())
            with pytest.raises(LookupError, match="can't be read"):
                await pool.apply(targets.look)
            targets.request_id.set("fine")
            assert await pool.apply(targets.look) == ("fine", "nobody", "at home")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        ("contextvar_targets:request_id", TypeError, r'contextvars=\("contextvar_targets:request_id",\)'),
        ((targets.request_id,), TypeError, 'write "module:name" for <ContextVar'),
        ((7,), TypeError, "not 7"),
        (("request_id",), ValueError, "named as \"module:name\", not 'request_id'"),
        (("no_such_module:x",), ValueError, "no context variable no_such_module:x: No module"),
        (("contextvar_targets:no_such",), ValueError, "no context variable contextvar_targets:no_such"),
        (("contextvar_targets:not_a_variable",), TypeError, "is no context variable, but a int"),
    ],
)
def test_names_that_lead_nowhere_are_refused_by_the_pool(names: Any, error: type[Exception], text: str) -> None:
    async def main() -> None:
        with pytest.raises(error, match=text):
            Pool(1, contextvars=names)

    asyncio.run(main())
