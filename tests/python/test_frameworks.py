"""Pools in the hands of the frameworks that asyncio users have: each owns one as its own pages tell it to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
import uvloop
from aiohttp import web
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import framework_targets as targets
from polyloop import Pool, WorkerDied
from rendezvous import Bell

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)


# ----------------------------------------------------------------------------------------------------------- Starlette


@asynccontextmanager
async def owns_a_pool(app: Starlette) -> AsyncIterator[dict[str, Pool]]:
    async with Pool(2) as pool:
        yield {"pool": pool}
        await pool.aclose(timeout=20)


async def one_square(request: Request) -> JSONResponse:
    return JSONResponse(await request.state.pool.submit(targets.square, int(request.path_params["n"])))


async def squares(request: Request) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async for square in request.state.pool.map(targets.square, range(int(request.path_params["n"]))):
            yield f"{square}\n"

    return StreamingResponse(lines())


async def nobody(request: Request) -> JSONResponse:
    await request.state.pool.apply(targets.fail, ("ada",))
    raise AssertionError("it has not raised")


async def wait(request: Request) -> JSONResponse:
    await request.state.pool.apply(targets.wait_for_cancel, (request.query_params["bell"],))
    raise AssertionError("it has returned")


async def not_found(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(str(error), status_code=404)


def starlette_app() -> Starlette:
    routes = [Route("/square/{n}", one_square), Route("/squares/{n}", squares), Route("/nobody", nobody)]
    routes.append(Route("/wait", wait))
    return Starlette(routes=routes, lifespan=owns_a_pool, exception_handlers={LookupError: not_found})


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[tuple[httpx.AsyncClient, Pool]]:
    """The app after its startup, as its server has it, and its pool; its shutdown comes after the block."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, state["pool"]


def test_a_starlette_lifespan_owns_a_pool(run: Run) -> None:
    async def main() -> None:
        async with served(starlette_app()) as (client, pool):
            answers = await asyncio.gather(*(client.get(f"/square/{n}") for n in range(50)))
            assert [answer.json() for answer in answers] == [n * n for n in range(50)]
            assert (await client.get("/squares/5")).text == "0\n1\n4\n9\n16\n"
        assert pool.stats().state == "closed"

    run(main())


def test_what_a_worker_raises_meets_the_apps_exception_handlers(run: Run) -> None:
    async def main() -> None:
        async with served(starlette_app()) as (client, _):
            answer = await client.get("/nobody")
        assert (answer.status_code, answer.json()) == (404, "no such user: ada")

    run(main())


def test_a_request_that_is_cancelled_cancels_its_task(run: Run, bell: Bell) -> None:
    async def main() -> None:
        async with served(starlette_app()) as (client, _):
            request = asyncio.ensure_future(client.get("/wait", params={"bell": bell.path}))
            assert await bell.hear() == "started"
            request.cancel()
            assert await bell.hear() == "cancelled"
            with pytest.raises(asyncio.CancelledError):
                await request

    run(main())


# ------------------------------------------------------------------------------------------------------------- FastAPI


def pool_of_the_app(request: Request) -> Pool:
    pool: Pool = request.state.pool
    return pool


OwnPool = Annotated[Pool, Depends(pool_of_the_app)]


async def answer_square(n: int, pool: OwnPool) -> int:
    return await pool.apply(targets.square, (n,))


async def bill(order: targets.Order, pool: OwnPool) -> targets.Bill:
    return await pool.submit(targets.add_up, order)


async def answer_nobody(pool: OwnPool) -> int:
    await pool.apply(targets.fail, ("ada",))
    raise AssertionError("it has not raised")


async def answer_after_a_death(pool: OwnPool) -> str:
    try:
        return await pool.apply(targets.die)
    except WorkerDied as error:
        return f"{type(error).__name__}, then {await pool.apply(targets.square, (3,))}"


def fastapi_app() -> FastAPI:
    app = FastAPI(lifespan=owns_a_pool, exception_handlers={LookupError: not_found})
    app.get("/square/{n}")(answer_square)
    app.post("/bill")(bill)
    app.get("/nobody")(answer_nobody)
    app.get("/death")(answer_after_a_death)
    return app


def test_a_fastapi_lifespan_owns_the_pool_that_endpoints_depend_on(run: Run) -> None:
    async def main() -> None:
        async with served(fastapi_app()) as (client, pool):
            answers = await asyncio.gather(*(client.get(f"/square/{n}") for n in range(50)))
            assert [answer.json() for answer in answers] == [n * n for n in range(50)]
            assert (await client.get("/square/three")).status_code == 422
            assert (await client.get("/nobody")).json() == "no such user: ada"
            assert (await client.get("/death")).json() == "WorkerDied, then 9"
        assert pool.stats().state == "closed"

    run(main())


def test_the_models_of_a_fastapi_endpoint_travel_to_workers_and_back(run: Run) -> None:
    async def main() -> None:
        async with served(fastapi_app()) as (client, _):
            answer = await client.post("/bill", json={"customer": "ada", "prices": [3, 4]})
        assert (answer.status_code, answer.json()) == (200, {"customer": "ada", "total": 7})

    run(main())


# ------------------------------------------------------------------------------------------------------------- aiohttp


def test_the_tasks_of_a_worker_share_its_aiohttp_session(run: Run) -> None:
    async def main() -> None:
        connections = set()

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            connections.add(request.transport.get_extra_info("peername"))
            return web.Response(text=request.path)

        app = web.Application()
        app.router.add_get("/{page}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            base = "http://127.0.0.1:{1}".format(*runner.addresses[0])
            async with Pool(2, lifespan=targets.one_connection) as pool:
                found = await pool.map(targets.fetch, [f"{base}/{n}" for n in range(100)])
                await pool.aclose()
        finally:
            await runner.cleanup()
        assert [text for _, text in found] == [f"/{n}" for n in range(100)]
        assert len(connections) == len({pid for pid, _ in found})

    run(main())


# --------------------------------------------------------------------------------------------------------------- anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def run_by_anyio(request: pytest.FixtureRequest) -> Run:
    return lambda main: anyio.run(main, backend="asyncio", backend_options={"use_uvloop": request.param})


def test_an_anyio_scope_that_ends_cancels_the_task_in_its_worker(run_by_anyio: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.apply, targets.wait_for_cancel, (bell.path,))
                    assert await bell.hear() == "started"
                    scope.cancel()
            assert scope.cancelled_caught
            assert await bell.hear() == "cancelled"
            assert await pool.apply(targets.square, (3,)) == 9

    run_by_anyio(main)


def test_move_on_after_moves_on(run_by_anyio: Run, bell: Bell) -> None:
    async def main() -> None:
        async def expire(scope: anyio.CancelScope) -> None:
            assert await bell.hear() == "started"
            scope.deadline = anyio.current_time()

        async with Pool(1) as pool, anyio.create_task_group() as group:
            with anyio.move_on_after(3600) as scope:
                group.start_soon(expire, scope)
                await pool.apply(targets.wait_for_cancel, (bell.path,))
            assert scope.cancelled_caught
            assert await bell.hear() == "cancelled"
            assert await pool.apply(targets.square, (3,)) == 9

    run_by_anyio(main)


def test_an_anyio_task_group_of_calls(run_by_anyio: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            found: dict[int, int] = {}

            async def ask(n: int) -> None:
                found[n] = await pool.apply(targets.square, (n,))

            async with anyio.create_task_group() as group:
                for n in range(50):
                    group.start_soon(ask, n)
            assert found == {n: n * n for n in range(50)}

            with pytest.raises(ExceptionGroup) as raised:
                async with anyio.create_task_group() as group:
                    group.start_soon(pool.apply, targets.wait_for_cancel, (bell.path,))
                    assert await bell.hear() == "started"
                    group.start_soon(pool.apply, targets.fail, ("ada",))
            assert raised.group_contains(LookupError, match="no such user: ada")
            assert await bell.hear() == "cancelled"

    run_by_anyio(main)


def test_a_task_uses_anyio_in_its_worker(run_by_anyio: Run) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            assert await pool.map(targets.squares_in_a_group, [[1, 2], [3]]) == [[1, 4], [9]]

    run_by_anyio(main)


# -------------------------------------------------------------------------------------------------------------- uvloop


def test_a_client_on_uvloop_has_workers_on_asyncio() -> None:
    async def main() -> None:
        assert type(asyncio.get_running_loop()).__module__ == "uvloop"
        async with Pool(2) as pool:
            assert await pool.map(targets.square, range(100)) == [n * n for n in range(100)]
            await pool.aclose()

    uvloop.run(main())


# ------------------------------------------------------------------------------------------------------ pytest-asyncio


THEIR_TESTS = """
    import os
    import pytest
    import pytest_asyncio
    from polyloop import Pool, WorkerDied

    async def square(n):
        return n * n

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def pool():
        async with Pool(2) as pool:
            yield pool

    @pytest.mark.asyncio(loop_scope="module")
    @pytest.mark.parametrize("n", range(3))
    async def test_with_a_pool_that_the_module_shares(pool, n):
        assert await pool.apply(square, (n,)) == n * n

    @pytest.mark.asyncio(loop_scope="module")
    async def test_with_a_death(pool):
        with pytest.raises(WorkerDied):
            await pool.apply(os._exit, (1,))
        assert await pool.map(square, range(3)) == [0, 1, 4]

    @pytest.mark.asyncio
    async def test_with_a_pool_of_its_own():
        async with Pool(1) as pool:
            assert await pool.map(square, range(3)) == [0, 1, 4]
"""


def test_pytest_asyncio_fixtures_own_pools(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(textwrap.dedent(THEIR_TESTS))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    assert "warning" not in done.stdout
