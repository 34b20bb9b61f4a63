"""What a pool says of itself: its numbers, and the warning about a loop that is blocked."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, PoolStats, PoolTerminated, WorkerDied
from rendezvous import Bell, Gate, Journal

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(30)

# On a busy machine, importing a module may take longer than a shorter limit.
BLOCK_S = 0.4
NO_RESTARTS = {"died": 0, "recycled": 0, "memory": 0, "age": 0, "overdue": 0, "garbage": 0, "restarted": 0}


# ---------------------------------------------------------------------------------------------------------------- stats


def test_stats_say_what_waits_what_runs_and_what_has_ended(start_method: str, run: Run, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=2) as pool:
            assert pool.stats().state == "starting"
            waiting = [
                asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path))) for _ in "ab"
            ]
            pid = int(await bell.hear())
            await bell.hear()
            queued = [asyncio.ensure_future(pool.apply(targets.later, (x,))) for x in range(10)]
            failing = asyncio.ensure_future(pool.apply(targets.fail_later))
            await asyncio.sleep(0)
            stats = pool.stats()
            assert (stats.state, stats.queued, stats.running, stats.done, stats.failed) == ("running", 11, 2, 0, 0)
            [worker] = stats.workers
            assert (worker.pid, worker.index, worker.state, worker.in_flight, worker.done) == (pid, 0, "ready", 2, 0)
            assert worker.queue == next(iter(pool.queues))
            assert worker.private_memory is not None
            assert worker.private_memory > 1 << 20
            assert worker.age_s > 0
            gate.open(2)
            await asyncio.gather(*waiting, *queued)
            await asyncio.wait([failing])
            stats = pool.stats()
            assert (stats.queued, stats.running, stats.done, stats.failed, stats.retried) == (0, 0, 12, 1, 0)
            assert stats.workers[0].done == 13
            assert stats.restarts == NO_RESTARTS
        assert (pool.stats().state, pool.stats().workers) == ("closed", ())

    run(main())


def test_stats_count_the_time_that_workers_compute() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.burn, (0.1,))
            [worker] = pool.stats().workers
            assert worker.cpu_s is not None
            assert worker.cpu_s >= 0.08

    asyncio.run(main())


def test_stats_are_a_frozen_dataclass() -> None:
    assert dataclasses.is_dataclass(PoolStats)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PoolStats("running", 0, 0, 0, 0, 0, (), {}).state = "closed"  # type: ignore[misc]


def test_stats_count_deaths_and_tasks_that_run_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(1, retries=1) as pool:
            await pool.apply(targets.die_once, (str(tmp_path / "mark"),))
            with pytest.raises(WorkerDied):
                await pool.apply(targets.kill_itself)
            stats = pool.stats()
            assert (stats.done, stats.failed, stats.retried) == (1, 1, 2)
            assert stats.restarts == {**NO_RESTARTS, "died": 3}

    asyncio.run(main())


def test_stats_count_a_function_that_no_worker_can_load_as_failed() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(ModuleNotFoundError):
                await pool.apply(targets.Unloadable())
            assert pool.stats().failed == 1

    asyncio.run(main())


def test_stats_count_a_worker_that_was_killed_for_not_letting_go_of_a_task(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.05) as pool:
            call = asyncio.ensure_future(pool.apply(targets.ignore_cancel, (bell.path, gate.path)))
            await bell.hear()
            call.cancel()
            await asyncio.wait([call])
            await pool.apply(targets.later, (1,))
            while not pool.stats().restarts["overdue"]:
                await asyncio.sleep(0.01)
            assert pool.stats().restarts == {**NO_RESTARTS, "overdue": 1}

    asyncio.run(main())


def test_a_pool_whose_workers_fail_to_start_is_degraded_until_one_does(tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        mark, starts = tmp_path / "broken", tmp_path / "starts"
        async with Pool(2, initializer=targets.count_start_and_fail_if, initargs=(str(starts), str(mark))) as pool:
            while [worker.state for worker in pool.stats().workers] != ["ready"] * 2:
                await asyncio.sleep(0.01)
            before = len(starts.read_text())
            assert pool.stats().state == "running"
            mark.touch()
            for process in list(pool.processes):
                process.kill()
            while pool.stats().state == "running":
                await asyncio.sleep(0.01)
            assert pool.stats().state == "degraded"
            call = asyncio.ensure_future(pool.apply(targets.pid))
            while len(starts.read_text()) < before + 4:
                await asyncio.sleep(0.01)
            assert pool.stats().state == "degraded"
            mark.unlink()
            await call
            assert pool.stats().state == "running"
            changes = [line for line in journal.lines if "died" not in line]
            assert changes[0].startswith("WARNING workers fail to start, trying again")
            assert changes[1:] == ["WARNING workers start again"]

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- recycle


def test_a_worker_that_holds_too_much_memory_is_replaced_and_loses_nothing(
    start_method: str, run: Run, bell: Bell, gate: Gate, journal: Journal
) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=2, max_memory_per_child=300 << 20, block_warning=None) as pool:
            first = await pool.apply(targets.pid)
            waiting = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
            assert int(await bell.hear()) == first
            await pool.apply(targets.hold_memory, (400 << 20,))
            while [worker.state for worker in pool.stats().workers] != ["retiring", "ready"]:
                await asyncio.sleep(0.01)
            assert await pool.apply(targets.pid) != first
            assert not waiting.done()
            gate.open()
            assert await waiting == first
            while not pool.stats().restarts["memory"]:
                await asyncio.sleep(0.01)
            assert pool.stats().restarts == {**NO_RESTARTS, "memory": 1}
            assert journal.lines == []

    run(main())


def test_a_leak_never_grows_beyond_its_limit_by_much() -> None:
    async def main() -> None:
        held: Counter[int] = Counter()
        async with Pool(2, max_memory_per_child=150 << 20, childconcurrency=1) as pool:
            while pool.stats().restarts["memory"] < 2:
                held.update(await pool.map(targets.leak, [10 << 20] * 10))
            # A worker is looked at every 100 ms, and each task takes 50.
            assert max(held.values()) <= 20
            assert pool.stats().done == held.total()

    asyncio.run(main())


def test_a_worker_that_is_too_old_is_replaced_though_it_is_idle(start_method: str, run: Run, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1, max_age_per_child=0.3) as pool:
            first = await pool.apply(targets.pid)
            while not pool.stats().restarts["age"]:
                await asyncio.sleep(0.01)
            assert await pool.apply(targets.pid) != first
            assert pool.stats().restarts["died"] == 0
            assert journal.lines == []

    run(main())


def test_an_old_worker_finishes_what_it_runs_while_another_takes_its_place(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, max_age_per_child=0.3) as pool:
            waiting = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
            first = int(await bell.hear())
            while await pool.apply(targets.pid) == first:
                await asyncio.sleep(0.01)
            assert not waiting.done()
            gate.open()
            assert await waiting == first

    asyncio.run(main())


def test_a_stream_of_tasks_survives_workers_that_age_all_the_time() -> None:
    async def main() -> None:
        async with Pool(2, max_age_per_child=0.2) as pool:
            total = 0
            while pool.stats().restarts["age"] < 4:
                assert await pool.map(targets.later, range(500)) == list(range(500))
                total += 500
            stats = pool.stats()
            assert (stats.done, stats.failed, stats.retried) == (total, 0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["max_memory_per_child", "max_age_per_child"])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_limits_are_refused(name: str, value: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=f"{name} must be more than 0"):
            Pool(1, **{name: value})  # type: ignore[arg-type]

    asyncio.run(main())


def test_an_impossible_block_warning_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="block_warning must be a number of seconds, 0 or more"):
            Pool(1, block_warning=-1)

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- blocked


@pytest.mark.parametrize("target", ["ring_pid_and_block", "ring_pid_then_block_later"])
def test_a_blocked_loop_is_reported_once_with_its_stack(
    start_method: str, run: Run, bell: Bell, gate: Gate, journal: Journal, target: str
) -> None:
    """In the first step, while the worker takes a turn, and in a later one, when it had gone to sleep."""

    async def main() -> None:
        async with Pool(2, block_warning=BLOCK_S) as pool:
            for _ in "ab":
                call = asyncio.ensure_future(pool.apply(getattr(targets, target), (bell.path, gate.path)))
                pid = await bell.hear()
                line = await journal.next()
                assert line.startswith(f"WARNING worker {pid} has been blocked for ")
                assert "pool_targets.py" in line
                assert "in block_at" in line
                assert "_worker.py" not in line
                gate.open()
                assert await call == int(pid)
            assert journal.lines == journal.lines[:2]
            assert await pool.map(targets.later, range(100)) == list(range(100))

    run(main())


def test_native_code_that_holds_the_lock_is_reported(journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1, block_warning=BLOCK_S, grace=0.05) as pool:
            call = asyncio.ensure_future(pool.apply(targets.compute_for_ever))
            assert "in compute_for_ever" in await journal.next()
            pool.terminate()
            await asyncio.wait([call])
            assert isinstance(call.exception(), PoolTerminated)

    asyncio.run(main())


def test_coroutines_that_merely_wait_are_not_reported(run: Run, bell: Bell, gate: Gate, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(2, block_warning=BLOCK_S) as pool, Pool(1, block_warning=2 * BLOCK_S) as clock:
            waiting = [asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,))) for _ in "abc"]
            assert [await bell.hear() for _ in waiting] == ["started"] * 3
            journal.clear()
            call = asyncio.ensure_future(clock.apply(targets.ring_pid_and_block, (bell.path, gate.path)))
            pid = await bell.hear()
            await journal.next()  # of the clock, so time enough has passed for the others
            gate.open()
            await call
            assert [line.split()[2] for line in journal.lines] == [pid]
            pool.terminate()
            await asyncio.wait(waiting)
            assert all(isinstance(call.exception(), PoolTerminated) for call in waiting)

    run(main())


def test_no_block_is_reported_where_that_is_turned_off(bell: Bell, gate: Gate, journal: Journal) -> None:
    async def main() -> None:
        for off in (None, 0):
            async with Pool(1, block_warning=off) as quiet, Pool(1, block_warning=BLOCK_S) as other:
                calls = [pool.apply(targets.ring_pid_and_block, (bell.path, gate.path)) for pool in (quiet, other)]
                running = [asyncio.ensure_future(call) for call in calls]
                pids = {await bell.hear(), await bell.hear()}
                line = await journal.next()  # the other's, so time enough has passed for both
                gate.open(2)
                ours, others = await asyncio.gather(*running)
                assert pids == {str(ours), str(others)}
                assert f"worker {others} " in line
        assert len(journal.lines) == 2

    asyncio.run(main())


def test_a_worker_that_cannot_answer_is_reported_without_a_stack(bell: Bell, gate: Gate, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1, block_warning=BLOCK_S) as pool:
            call = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
            pid = int(await bell.hear())
            os.kill(pid, signal.SIGSTOP)
            assert (await journal.next()).endswith("it does not say where")
            os.kill(pid, signal.SIGCONT)
            gate.open()
            assert await call == pid  # the signal that came late has not hurt it

    asyncio.run(main())
