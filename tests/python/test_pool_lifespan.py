"""`lifespan` and `current_worker`: what a worker opens once, what tasks see of it, and that it is closed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

import lifespan_targets as targets
from polyloop import Pool, PoolTerminated, WorkerDied, WorkerStartError, current_worker
from rendezvous import Bell, Journal

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)

LOOPS = pytest.mark.parametrize("loop_initializer", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
SPAWN = pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
"""A forkserver, and what it forks, writes to what stderr was when it started."""


# ---------------------------------------------------------------------------------------------------- while it is open


@LOOPS
def test_it_is_opened_once_for_each_worker_and_closed_in_the_same_task(
    start_method: str, loop_initializer: Any, bell: Bell
) -> None:
    async def main() -> None:
        pool = Pool(1, lifespan=targets.noted(bell.path), loop_initializer=loop_initializer)
        assert await pool.submit(targets.uses) == (1, True, "open")
        assert await pool.map(lambda _: targets.uses(), "ab") == [(2, True, "open"), (3, True, "open")]
        worker = await pool.submit(targets.pid)
        await pool.aclose()
        assert bell.heard() == [f"open {worker}", f"close {worker}"]

    asyncio.run(main())


def test_tasks_run_in_copies_of_its_context(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.noted(bell.path)) as pool:
            for view in (pool, pool.options(in_thread=True)):
                assert await view.map(targets.uses_plainly, range(3)) == [("Session", "open")] * 3

    asyncio.run(main())


def test_what_it_has_started_lives_until_it_ends(bell: Bell) -> None:
    async def main() -> None:
        pool = Pool(1, lifespan=targets.with_group(bell.path))
        assert await pool.submit(targets.beats) > 0
        await pool.aclose()
        assert bell.heard() == ["beats True", "no more beats"]

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------- how it ends


@LOOPS
def test_it_is_closed_after_the_tasks_when_the_pool_is_terminated(loop_initializer: Any, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.noted(bell.path), loop_initializer=loop_initializer) as pool:
            opened = await bell.hear()
            handle = pool.submit(targets.wait_and_clean_up, bell.path)
            worker = await bell.hear()
        with pytest.raises(PoolTerminated):
            await handle
        assert (opened, bell.heard()) == (f"open {worker}", ["cleaned up", f"close {worker}"])

    asyncio.run(main())


@LOOPS
@pytest.mark.parametrize("busy", ["idle", "waiting", "blocked"])
def test_it_is_closed_on_sigterm(loop_initializer: Any, busy: str, bell: Bell, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.noted(bell.path), loop_initializer=loop_initializer) as pool:
            worker = await pool.submit(targets.pid)
            assert await bell.hear() == f"open {worker}"
            expected = [f"close {worker}"]
            if busy == "waiting":
                lost = pool.submit(targets.wait_and_clean_up, bell.path)
                expected.insert(0, "cleaned up")
            elif busy == "blocked":
                lost = pool.submit(targets.block, bell.path)
            if busy != "idle":
                await bell.hear()
            os.kill(worker, signal.SIGTERM)
            assert [await bell.hear() for _ in expected] == expected
            if busy != "idle":
                with pytest.raises(WorkerDied, match="SIGTERM"):
                    await lost
            successor = await pool.submit(targets.pid)
            assert await bell.hear() == f"open {successor}"

    asyncio.run(main())


def test_a_recycled_worker_is_gone_before_its_successor_starts(start_method: str, bell: Bell) -> None:
    async def main() -> None:
        pool = Pool(1, lifespan=targets.noted(bell.path), maxtasksperchild=2)
        pids = await pool.map(lambda _: targets.pid(), range(6))
        await pool.aclose()
        first, second, third = dict.fromkeys(pids)
        heard = [f"{what} {worker}" for worker in (first, second, third) for what in ("open", "close")]
        assert bell.heard()[: len(heard)] == heard
        assert pool.stats().restarts["recycled"] >= 2

    asyncio.run(main())


def test_old_workers_too_are_gone_before_their_successors_start(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.noted(bell.path), max_age_per_child=0.2):
            events = [(await bell.hear()).split() for _ in range(6)]
        assert [what for what, _ in events] == ["open", "close"] * 3
        assert all(opened[1] == closed[1] for opened, closed in zip(events[::2], events[1::2], strict=True))

    asyncio.run(main())


def test_one_that_does_not_end_is_killed_after_the_grace(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.hangs(bell.path, "end"), maxtasksperchild=1, grace=0.2) as pool:
            first, second = await pool.submit(targets.pid), await pool.submit(targets.pid)
            assert first != second
            assert [await bell.hear() for _ in range(3)] == [str(first), "closing", str(second)]

    asyncio.run(main())


@SPAWN
def test_one_that_fails_as_it_ends_does_no_harm(start_method: str, capfd: Any) -> None:
    async def main() -> None:
        pool = Pool(1, lifespan=targets.fails_at_end)
        assert await pool.submit(targets.index) == 0
        await pool.aclose()
        assert pool.stats().restarts["died"] == 0

    asyncio.run(main())
    assert "LookupError: can't close" in capfd.readouterr().err


@SPAWN
def test_one_that_ends_before_its_time_takes_its_worker_with_it(start_method: str, bell: Bell, capfd: Any) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.ends_early(bell.path)) as pool:
            with pytest.raises(WorkerDied):
                await pool.submit(targets.break_the_lifespan)
            assert await pool.submit(targets.pid) != int(await bell.hear())

    asyncio.run(main())
    assert "the connection is lost" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ how it does not start


def test_one_that_fails_at_first_ends_the_pool_with_that_error(start_method: str) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.fails_at_start) as pool:
            with pytest.raises(WorkerStartError, match="no database") as caught:
                await pool.submit(targets.pid)
            assert repr(caught.value.__cause__) == "LookupError('no database')"

    asyncio.run(main())


def test_one_that_fails_later_degrades_the_pool(tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        mark = tmp_path / "mark"
        async with Pool(1, lifespan=targets.fails_after(str(mark))) as pool:
            os.kill(await pool.submit(targets.pid), signal.SIGKILL)
            assert "died" in await journal.next()
            assert "no database" in await journal.next()
            assert pool.stats().state == "degraded"
            mark.unlink()
            assert await pool.submit(targets.index) >= 0
            assert pool.stats().state == "running"

    asyncio.run(main())


@LOOPS
def test_one_that_is_still_opening_is_closed_on_sigterm(loop_initializer: Any, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, lifespan=targets.hangs(bell.path, "start"), loop_initializer=loop_initializer):
            await bell.hear()
        assert bell.heard() == ["closing"]

    asyncio.run(main())


def test_what_is_no_lifespan_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"write lifespan=f, not lifespan=f\(\)"):
            Pool(1, lifespan=targets.fails_at_end())  # type: ignore[arg-type]

        async def undecorated() -> Any:
            yield

        with pytest.raises(TypeError, match="put @asynccontextmanager on"):
            Pool(1, lifespan=undecorated)  # type: ignore[arg-type]
        async with Pool(1, lifespan=dict) as pool:  # type: ignore[arg-type]
            with pytest.raises(WorkerStartError, match="asynchronous context manager"):
                await pool.submit(targets.pid)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------- current_worker


def test_outside_of_a_worker_there_is_no_current_one() -> None:
    with pytest.raises(RuntimeError, match="this process is no worker of a pool"):
        current_worker()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_a_task_forks_is_no_worker() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert await pool.submit(targets.state_of_another_process) == "exit code 7"

    asyncio.run(main())


def test_each_worker_has_an_index_of_its_own() -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            indexes = await asyncio.gather(*(pool.submit(targets.index) for _ in range(20)))
            assert set(indexes) <= {0, 1}
            assert {worker.index for worker in pool.stats().workers} == {0, 1}

    asyncio.run(main())


@pytest.mark.parametrize("tasks", ["lazy", "eager", "plain"])
def test_a_task_knows_itself_at_each_step(tasks: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("POLYLOOP_TASKS", tasks)

    async def main() -> None:
        async with Pool(1) as pool:
            seen = await asyncio.gather(*(pool.submit(targets.task_at_each_step) for _ in range(5)))
            for steps in seen:
                assert len(set(steps)) == 1
                assert steps[0][1:] == ("lifespan_targets:task_at_each_step", 1)
            assert len({steps[0][0] for steps in seen}) == 5
            named = await pool.options(name="x").submit(targets.task_at_each_step)
            assert [step[1] for step in named] == ["x"] * 3
            assert (await pool.options(name="y").submit(targets.task_plainly))[1] == "y"
            assert (await pool.submit(targets.task_plainly))[1] == "lifespan_targets:task_plainly"
            assert (await pool.submit(lambda: targets.task_plainly()))[1].endswith("<lambda>")
            assert (await pool.options(in_thread=True).submit(targets.task_plainly))[1].endswith(":task_plainly")
            assert await pool.submit(targets.task_elsewhere) == [None] * 3

    asyncio.run(main())


def test_a_task_that_is_run_again_knows_which_run_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(1, retries=1) as pool:
            seen = await pool.submit(targets.attempt_after_death, str(tmp_path / "mark"))
            assert seen[1:] == ("lifespan_targets:attempt_after_death", 2)
            again = await pool.submit(targets.task_plainly)
            assert again[2] == 1

    asyncio.run(main())
