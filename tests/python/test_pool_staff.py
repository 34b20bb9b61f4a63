"""`ready`, `resize`, `restart` and `max_pending`: the staff of a pool, and how much it takes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import lifespan_targets
import pool_targets as targets
import stream_targets
from polyloop import Pool, PoolClosed, PoolFull, WorkerStartError
from rendezvous import Bell, Gate

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)


def pids(pool: Pool) -> set[int]:
    return {worker.pid for worker in pool.stats().workers if worker.pid is not None}


# ---------------------------------------------------------------------------------------------------------------- ready


def test_a_pool_is_ready_when_all_workers_are(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(3, queuecount=2) as pool:
            await pool.ready()
            assert [worker.state for worker in pool.stats().workers] == ["ready"] * 3
            await asyncio.gather(pool.ready(), pool.ready())
            killed = await pool.apply(targets.pid)
            os.kill(killed, signal.SIGKILL)
            while killed in pids(pool):
                await asyncio.sleep(0.001)
            await pool.ready()
            assert [worker.state for worker in pool.stats().workers] == ["ready"] * 3

    run(main())


def test_ready_raises_why_workers_can_not_start() -> None:
    async def main() -> None:
        async with Pool(2, initializer=targets.fail_plainly) as pool:
            with pytest.raises(WorkerStartError) as caught:
                await pool.ready()
            assert isinstance(caught.value.__cause__, LookupError)

    asyncio.run(main())


def test_ready_does_not_outlast_its_pool(tmp_path: Path) -> None:
    async def main() -> None:
        bell = Bell(tmp_path / "a bell")
        async with Pool(1, lifespan=lifespan_targets.hangs(bell.path, "start"), grace=0.1) as pool:
            waiting = asyncio.ensure_future(pool.ready())
            await bell.hear()
            assert not waiting.done()
        with pytest.raises(PoolClosed):
            await waiting
        with pytest.raises(PoolClosed):
            await pool.ready()
        bell.close()

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------------- resize


def test_a_pool_grows_and_shrinks_under_load_and_loses_nothing(start_method: str) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            everything = asyncio.ensure_future(_all(pool, 20_000))
            for processes in (4, 2, 3, 1):
                await pool.resize(processes)
                assert len(pids(pool)) == processes
            assert await everything == list(range(20_000))
            assert pool.stats().restarts == dict.fromkeys(pool.stats().restarts, 0)
            assert len(pool.processes) == 1

    asyncio.run(main())


async def _all(pool: Pool, count: int) -> list[int]:
    return list(await pool.map(targets.later, range(count)))


def test_new_workers_take_what_waits_and_old_ones_finish_what_they_run(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            calls = [pool.submit(targets.ring_pid_and_wait, bell.path, gate.path) for _ in range(3)]
            first = await bell.hear()
            await pool.resize(3)
            others = {await bell.hear(), await bell.hear()}
            assert len({first, *others}) == 3
            shrinking = asyncio.ensure_future(pool.resize(1))
            await asyncio.sleep(0.05)
            assert not shrinking.done()  # they are busy
            gate.open(3)
            assert {str(pid) for pid in await asyncio.gather(*calls)} == {first, *others}
            await shrinking
            assert len(pids(pool)) == 1
            assert await pool.submit(targets.later, 1) == 1

    asyncio.run(main())


def test_many_workers_balance_although_there_were_few(bell: Bell, gate: Gate) -> None:
    """Newcomers are seen by those who were there before, who leave them their share."""

    async def main() -> None:
        async with Pool(1) as pool:
            await pool.resize(3)
            calls = [pool.submit(targets.ring_pid_and_wait, bell.path, gate.path) for _ in range(12)]
            at = [await bell.hear() for _ in calls]
            assert len(set(at)) == 3
            gate.open(len(calls))
            await asyncio.gather(*calls)

    asyncio.run(main())


@pytest.mark.parametrize("processes", [0, -1, 1, 129, 100_000])
def test_impossible_sizes_are_refused(processes: int) -> None:
    async def main() -> None:
        async with Pool(2, queuecount=2) as pool:
            with pytest.raises(ValueError, match="can't have"):
                await pool.resize(processes)
            with pytest.raises(TypeError):
                await pool.resize(1.5)  # type: ignore[arg-type]
            await pool.ready()
        with pytest.raises(PoolClosed):
            await pool.resize(3)

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- restart


@pytest.mark.parametrize("lifespan", [None, lifespan_targets.nothing], ids=["plain", "lifespan"])
def test_all_workers_are_replaced_under_load_and_nothing_is_lost(lifespan: Any, monkeypatch: Any) -> None:
    async def main() -> None:
        async with Pool(2, lifespan=lifespan) as pool:
            await pool.ready()
            before = pids(pool)
            everything = asyncio.ensure_future(_all(pool, 20_000))
            monkeypatch.setenv("A_NEW_SETTING", "1")
            await pool.restart()
            assert not before & pids(pool)
            assert await everything == list(range(20_000))
            assert await pool.submit(os.getenv, "A_NEW_SETTING") == "1"
            assert pool.stats().restarts["restarted"] == 2
            assert pool.stats().restarts["died"] == 0

    asyncio.run(main())


def test_a_restart_leaves_running_tasks_their_time(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            call = pool.submit(targets.ring_pid_and_wait, bell.path, gate.path)
            old = await bell.hear()
            restarting = asyncio.ensure_future(pool.restart())
            while await pool.submit(targets.pid) == int(old):
                pass
            assert not restarting.done()
            gate.open()
            assert await call == int(old)
            await restarting

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------- max_pending


def test_a_full_pool_refuses_submit_and_lets_apply_wait_its_turn(run: Run, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, max_pending=2) as pool:
            held = [pool.submit(targets.ring_pid_and_wait, bell.path, gate.path) for _ in range(2)]
            await bell.hear()
            with pytest.raises(PoolFull, match="2 unfinished calls"):
                pool.submit(targets.later, 1)
            order: list[int] = []

            async def apply(n: int) -> None:
                await pool.apply(targets.later, (n,))
                order.append(n)

            waiting = [asyncio.ensure_future(apply(n)) for n in range(5)]
            await asyncio.sleep(0)
            waiting[1].cancel()
            await asyncio.wait([waiting[1]])
            assert pool.stats().queued + pool.stats().running == 2
            with pytest.raises(PoolFull):
                pool.options(timeout=30).submit(targets.later, 1)
            gate.open(2)
            await asyncio.gather(*held, *waiting, return_exceptions=True)
            assert sorted(order) == [0, 2, 3, 4]
            assert await pool.map(targets.later, range(10)) == list(range(10))
            assert await pool.submit(targets.later, 1) == 1

    run(main())


def test_whatever_becomes_of_a_call_it_gives_its_place_back() -> None:
    async def main() -> None:
        async with Pool(1, max_pending=1) as pool:
            for _ in range(3):
                with pytest.raises(LookupError):
                    await pool.submit(targets.fail_later)
                with pytest.raises(LookupError):
                    await pool.apply(targets.fail_later)
                with pytest.raises(TypeError):
                    pool.submit(targets.echo, (each for each in ()))
                with pytest.raises(TypeError):
                    await pool.apply(targets.echo, "x")
                handle = pool.submit(asyncio.sleep, 30)
                handle.cancel()
                await asyncio.wait([handle])
            assert await pool.submit(targets.later, 1) == 1

    asyncio.run(main())


def test_a_stream_has_a_place_until_its_generator_has_ended() -> None:
    async def main() -> None:
        async with Pool(1, max_pending=1) as pool:
            async with pool.stream(stream_targets.numbers, 10**9) as numbers:
                assert await anext(numbers) == 0
                for refused in (pool.stream, pool.submit):
                    with pytest.raises(PoolFull, match="1 unfinished calls"):
                        refused(stream_targets.numbers, 1)
                waiting = asyncio.ensure_future(pool.apply(targets.later, (1,)))
            assert await waiting == 1
            assert [n async for n in pool.stream(stream_targets.numbers, 100)] == list(range(100))
            with pytest.raises(TypeError):
                pool.stream(stream_targets.numbers, (each for each in ()))
            pool.stream(stream_targets.numbers, 10**9)  # dropped at once, and left by that
            assert await pool.apply(targets.later, (2,)) == 2
            # All its values have come, and none was taken: it has ended all the same.
            stream = pool.stream(stream_targets.numbers, 3)
            assert await pool.apply(targets.later, (3,)) == 3
            assert [n async for n in stream] == [0, 1, 2]

    asyncio.run(main())


def test_whoever_waits_for_room_in_a_pool_that_closes_is_told(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        pool = Pool(1, max_pending=1)
        held = pool.submit(targets.ring_pid_and_wait, bell.path, gate.path)
        waiting = asyncio.ensure_future(pool.apply(targets.later, (1,)))
        await bell.hear()
        pool.close()
        with pytest.raises(PoolClosed, match="waited for room"):
            await waiting
        gate.open()
        await held
        await pool.join()

    asyncio.run(main())


def test_a_limit_that_is_none_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="max_pending"):
            Pool(1, max_pending=0)

    asyncio.run(main())
