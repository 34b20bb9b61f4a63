"""Queues, schedulers, and how work is spread over the workers."""

from __future__ import annotations

import asyncio
import collections
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, RoundRobin, WorkerDied
from rendezvous import Bell, Gate

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(30)


class Recorder(RoundRobin):
    """Sends even first arguments to the first queue, all others to the second, and remembers all it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: list[Any] = []
        self.processes: list[int] = []
        self.scheduled: list[tuple[Any, ...]] = []
        self.completed: list[int] = []

    def register_queue(self, tx: Any) -> Any:
        self.queues.append(tx)
        return 100 + super().register_queue(tx)

    def register_process(self, qid: Any) -> None:
        self.processes.append(qid)
        super().register_process(qid)

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        self.scheduled.append((task_id, func, args, kwargs))
        return 100 + (args[0] % 2 if args else 0)

    def complete_task(self, task_id: Any) -> None:
        self.completed.append(task_id)


class Failing(RoundRobin):
    def __init__(self, *, schedule: Any = None, complete: Any = None) -> None:
        super().__init__()
        self.schedule, self.complete = schedule, complete

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.schedule, Exception):
            raise self.schedule
        return super().schedule_task(task_id, func, args, kwargs) if self.schedule is None else self.schedule

    def complete_task(self, task_id: Any) -> None:
        if self.complete:
            raise self.complete


# --------------------------------------------------------------------------------------------------------------- queues


def test_each_queue_has_workers_of_its_own(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(3, queuecount=2) as pool:
            assert (pool.process_count, pool.queue_count) == (3, 2)
            # Turns go by workers: two for the first queue, one for the second.
            results = await pool.map(targets.pid_of, range(300))
            while any(process.pid is None for process in pool.processes):
                await asyncio.sleep(0)
            serves = {process.pid: qid for process, qid in pool.processes.items()}
            assert collections.Counter(serves.values()) == {0: 2, 1: 1}
            assert set(pool.queues) == {0, 1}
            assert collections.Counter(serves[pid] for pid in results) == {0: 200, 1: 100}
            assert [serves[pid] for pid in results[:6]] == [0, 1, 0] * 2

    run(main())


def test_a_scheduler_is_told_of_queues_processes_and_each_task(start_method: str, run: Run) -> None:
    async def main() -> None:
        scheduler = Recorder()
        async with Pool(3, queuecount=2, scheduler=scheduler) as pool:
            assert pool.scheduler is scheduler
            assert len(scheduler.queues) == 2
            assert scheduler.processes == [100, 101, 100]
            even, odd = await pool.apply(targets.pid_of, (0,)), await pool.apply(targets.pid_of, [1])
            serves = {process.pid: qid for process, qid in pool.processes.items()}
            assert (serves[even], serves[odd]) == (100, 101)
            assert await pool.apply(targets.add, (2,), {"y": 3}) == 5
            ids = [task_id for task_id, *_ in scheduler.scheduled]
            assert [call for _, *call in scheduler.scheduled] == [
                [targets.pid_of, (0,), {}],
                [targets.pid_of, (1,), {}],
                [targets.add, (2,), {"y": 3}],
            ]
            assert len(set(ids)) == 3
            assert scheduler.completed == ids
            results = await pool.map(targets.pid_of, range(100))
            assert [serves[pid] for pid in results] == [100, 101] * 50
            assert sorted(scheduler.completed) == [task_id for task_id, *_ in scheduler.scheduled]

    run(main())


def test_a_scheduler_hears_of_every_end(run: Run, bell: Bell) -> None:
    """Of failed, cancelled, lost and terminated tasks too."""

    async def main() -> None:
        scheduler = Recorder()
        async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
            with pytest.raises(LookupError):
                await pool.apply(targets.fail_later)
            with pytest.raises(WorkerDied):
                await pool.apply(targets.kill_itself)
            cancelled = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (), {"bell": bell.path}))
            assert await bell.hear() == "started"
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert await bell.hear() == "cancelled"
            assert len(scheduler.completed) == 3
            left = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (), {"bell": bell.path}))
            assert await bell.hear() == "started"
        await asyncio.wait([left])
        assert left.exception() is not None
        assert sorted(scheduler.completed) == [task_id for task_id, *_ in scheduler.scheduled]

    run(main())


def test_a_single_queue_asks_a_custom_scheduler_too() -> None:
    async def main() -> None:
        scheduler = Recorder()
        async with Pool(1, scheduler=scheduler) as pool:
            assert await pool.apply(targets.double, (2,)) == 4
            with pytest.raises(ValueError, match="chose the queue 101, which it has not registered"):
                await pool.apply(targets.double, (1,))
            assert await pool.apply(targets.double, (2,)) == 4

    asyncio.run(main())


@pytest.mark.parametrize("scheduler", [Failing(schedule=KeyError("schedule")), Failing(schedule="nowhere")])
def test_a_scheduler_that_fails_fails_the_call(scheduler: Any) -> None:
    async def main() -> None:
        async with Pool(1, scheduler=scheduler) as pool:
            with pytest.raises((KeyError, ValueError)):
                await pool.apply(targets.double, (1,))
            with pytest.raises((KeyError, ValueError)):
                await pool.map(targets.double, [1])

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_scheduler_that_fails_on_completion_harms_no_task() -> None:
    async def main() -> None:
        async with Pool(1, scheduler=Failing(complete=KeyError("complete"))) as pool:
            assert await pool.map(targets.double, range(10)) == list(range(0, 20, 2))

    asyncio.run(main())


def test_a_replaced_worker_serves_the_queue_of_its_predecessor(start_method: str) -> None:
    async def main() -> None:
        async with Pool(2, queuecount=2, scheduler=Recorder()) as pool:
            even = await pool.apply(targets.pid_of, (0,))
            with pytest.raises(WorkerDied):
                await pool.starmap(targets.die_at, [(1, 1)])  # on the second queue
            pids = await pool.map(targets.pid_of, range(10))
            assert set(pids[::2]) == {even}
            serves = {process.pid: qid for process, qid in pool.processes.items()}
            assert (serves[pids[0]], serves[pids[1]]) == (100, 101)

    asyncio.run(main())


def test_a_blocked_queue_does_not_hold_up_another(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2, queuecount=2, scheduler=Recorder()) as pool:
            # Keywords only: the first queue.
            call = {"bell": bell.path, "gate": gate.path}
            blocked = [asyncio.ensure_future(pool.apply(targets.ring_pid_and_block, (), call)) for _ in range(40)]
            await bell.hear()
            assert await pool.map(targets.double, range(1, 3000, 2)) == list(range(2, 6000, 4))
            gate.open(40)
            assert len(set(await asyncio.gather(*blocked))) == 1

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- balance


@pytest.mark.parametrize("function", [targets.meet, targets.meet_async])
@pytest.mark.parametrize("how", ["apply", "starmap"])
def test_two_blocking_tasks_run_on_two_workers(
    start_method: str, run: Run, tmp_path: Path, function: Any, how: str
) -> None:
    """Each waits for the other, so that on one worker they would wait for ever."""

    async def main() -> None:
        async with Pool(2) as pool:
            for n in range(10):
                fifo = str(tmp_path / f"fifo{n}")
                os.mkfifo(fifo)
                if how == "apply":
                    pids = await asyncio.gather(*(pool.apply(function, (fifo, side)) for side in "rw"))
                else:
                    pids = await pool.starmap(function, [(fifo, "r"), (fifo, "w")])
                assert len(set(pids)) == 2

    run(main())


@pytest.mark.parametrize("how", ["apply", "starmap"])
def test_eight_blocking_tasks_use_both_workers(start_method: str, tmp_path: Path, how: str) -> None:
    async def main() -> None:
        pairs = [(str(tmp_path / f"fifo{n}"), side) for n in range(4) for side in "rw"]
        for fifo, _ in pairs[::2]:
            os.mkfifo(fifo)
        async with Pool(2) as pool:
            if how == "apply":
                pids = await asyncio.gather(*(pool.apply(targets.meet, pair) for pair in pairs))
            else:
                pids = await pool.starmap(targets.meet, pairs)
            assert sorted(collections.Counter(pids).values()) == [4, 4]

    asyncio.run(main())


@pytest.mark.parametrize("how", ["apply", "map"])
@pytest.mark.parametrize("count", [2, 40, 1000])
def test_a_blocking_task_never_holds_others_behind_it(start_method: str, gate: Gate, how: str, count: int) -> None:
    """The first task waits for what the last one does."""

    async def main() -> None:
        task = functools.partial(targets.block_or_open, gate.path, count - 1)
        async with Pool(2) as pool:
            for _ in range(3):
                if how == "apply":
                    results = await asyncio.gather(*(pool.apply(task, (x,)) for x in range(count)))
                else:
                    results = await pool.map(task, range(count))
                assert list(results) == list(range(count))

    asyncio.run(main())


def test_a_worker_runs_no_more_tasks_at_once_than_it_may(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=3) as pool:
            call = functools.partial(pool.apply, targets.ring_pid_and_wait, (bell.path, gate.path))
            calls = [asyncio.ensure_future(call()) for _ in range(10)]
            started = ended = 0
            while ended < 10:
                while started < min(10, ended + 3):
                    await bell.hear()
                    started += 1
                assert bell.heard() == []
                gate.open()
                ended += 1
            await asyncio.gather(*calls)

    asyncio.run(main())


def test_tasks_of_one_worker_at_concurrency_1_run_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "order"
        async with Pool(1, childconcurrency=1) as pool:
            await pool.map(functools.partial(targets.append_async, str(path)), range(500))
        assert path.read_text().split() == list(map(str, range(500)))

    asyncio.run(main())
