"""Timeouts, retries, and tasks that kill their workers: what is ended, what is run again, and who is left alone."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

import deadline_targets as targets
from polyloop import PoisonTask, Pool, PoolTerminated, TaskTimeout, WorkerDied
from rendezvous import Bell

Run = Callable[[Coroutine[Any, Any, Any]], Any]

TIMEOUT_S = 0.1
FOREVER_S = 30.0
LOOPS = pytest.mark.parametrize("loop_initializer", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
DEAF_TO_SIGNALS = sys.version_info[:3] == (3, 13, 0)
"""In a process forked by a thread this CPython runs no signal handler while Python computes."""


# ------------------------------------------------------------------------------------------------------------- timeouts


@LOOPS
@pytest.mark.parametrize(
    "function",
    [
        targets.wait,
        targets.wait_later,
        targets.block,
        targets.block_in_coroutine,
        targets.block_in_coroutine_later,
        targets.compute,
        targets.compute_in_coroutine,
    ],
)
def test_whatever_a_task_does_it_is_ended_in_time_and_its_worker_lives(
    start_method: str, loop_initializer: Any, function: Any
) -> None:
    if DEAF_TO_SIGNALS and start_method == "fork" and function in (targets.compute, targets.compute_in_coroutine):
        pytest.skip("CPython 3.13.0 does not let signals interrupt a process forked by a thread")

    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, timeout=TIMEOUT_S) as pool:
            worker = await pool.apply(targets.pid)
            with pytest.raises(TaskTimeout, match=rf"deadline_targets:{function.__name__} ran longer than 0.1 s"):
                await pool.apply(function, (FOREVER_S,))
            assert await pool.map(targets.echo, range(100)) == list(range(100))
            assert await pool.apply(targets.pid) == worker

    asyncio.run(main())


def test_a_task_that_ends_in_time_is_left_alone() -> None:
    async def main() -> None:
        async with Pool(1, timeout=FOREVER_S) as pool:
            assert await pool.apply(targets.wait, (0.01,)) == "waited"
            assert await pool.apply(targets.block, (0.01,)) == "blocked"
            with pytest.raises(asyncio.CancelledError):
                await pool.apply(targets.cancel_itself)
            with pytest.raises(LookupError):
                await pool.apply(targets.fail)

    asyncio.run(main())


@LOOPS
def test_only_the_one_whose_time_is_up_is_ended(loop_initializer: Any, bell: Bell) -> None:
    """Its neighbours on the same worker wait, or block while it waits."""

    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=FOREVER_S) as pool:
            waiting = asyncio.ensure_future(pool.apply(targets.ring_and_wait, (bell.path, 0.3)))
            assert await bell.hear() == "started"
            limited = asyncio.ensure_future(pool.options(timeout=TIMEOUT_S).apply(targets.wait, (FOREVER_S,)))
            blocking = asyncio.ensure_future(pool.apply(targets.block, (0.3,)))
            with pytest.raises(TaskTimeout):
                await limited
            assert await waiting == "waited"
            assert await blocking == "blocked"

    asyncio.run(main())


def test_time_is_up_while_the_clients_loop_is_blocked(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    async def main() -> None:
        async with Pool(1, timeout=TIMEOUT_S) as pool:
            await pool.apply(targets.pid)
            call = asyncio.ensure_future(pool.apply(targets.wait_and_note_the_end, (str(ended),)))
            await asyncio.sleep(0.02)
            until = time.monotonic() + 20
            while not ended.exists() and time.monotonic() < until:
                time.sleep(0.005)
            assert ended.read_text() == "CancelledError"
            with pytest.raises(TaskTimeout):
                await call

    asyncio.run(main())


def test_a_value_returned_in_spite_of_the_end_is_the_value() -> None:
    async def main() -> None:
        async with Pool(1, timeout=TIMEOUT_S) as pool:
            assert await pool.apply(targets.answer_when_cancelled) == "anyway"
            with pytest.raises(LookupError):
                await pool.apply(targets.fail_when_cancelled)

    asyncio.run(main())


def test_what_can_not_be_interrupted_is_given_up_with_its_worker(start_method: str, caplog: Any) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.2) as pool:
            before = await pool.apply(targets.pid)
            with pytest.raises(TaskTimeout):
                await pool.options(timeout=TIMEOUT_S).apply(targets.block_all_signals, (FOREVER_S,))
            assert await pool.apply(targets.pid) != before

    asyncio.run(main())
    (line,) = [record.getMessage() for record in caplog.records if "died" in record.getMessage()]
    assert "exit code 71" in line


@LOOPS
def test_neighbours_of_a_task_that_is_given_up_get_as_long_to_end(loop_initializer: Any, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer, grace=0.5) as pool:
            neighbour = asyncio.ensure_future(pool.apply(targets.ring_and_wait, (bell.path, 0.8)))
            assert await bell.hear() == "started"
            worker = await pool.apply(targets.pid)
            with pytest.raises(TaskTimeout):
                await pool.options(timeout=TIMEOUT_S).apply(targets.ignore_cancellation)
            assert await pool.apply(targets.pid) != worker, "it takes nothing more"
            assert await neighbour == "waited"

    asyncio.run(main())


def test_neighbours_of_a_task_that_blocks_for_ever_are_lost_with_it_or_run_again(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.1) as pool:
            lost = asyncio.ensure_future(pool.apply(targets.ring_and_wait, (bell.path, FOREVER_S)))
            again = asyncio.ensure_future(pool.options(retries=1).apply(targets.ring_and_wait, (bell.path, 1.0)))
            for _ in range(2):
                assert await bell.hear() == "started"
            with pytest.raises(TaskTimeout):
                await pool.options(timeout=TIMEOUT_S).apply(targets.block_all_signals, (FOREVER_S,))
            with pytest.raises(WorkerDied, match="ran past its timeout") as caught:
                await lost
            assert caught.value.exitcode == 71
            assert await again == "waited"

    asyncio.run(main())


def test_items_of_a_map_have_their_time_each() -> None:
    async def main() -> None:
        async with Pool(2, timeout=0.3) as pool:
            assert await pool.map(targets.wait, [0.1] * 40) == ["waited"] * 40
            with pytest.raises(TaskTimeout):
                await pool.map(targets.wait, [0.01, FOREVER_S, 0.01])
            assert await pool.apply(targets.wait, (0.01,)) == "waited"

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            Pool(1, timeout=timeout)

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------------- retries


def runs_of(journal: Path) -> int:
    return len(journal.read_text().splitlines())


@pytest.mark.parametrize("raised", ["LookupError", "TaskTimeout"])
def test_a_task_that_fails_for_a_named_reason_runs_again(start_method: str, tmp_path: Path, raised: str) -> None:
    journal = tmp_path / "journal"
    reason = LookupError if raised == "LookupError" else TaskTimeout

    async def main() -> None:
        async with Pool(2, timeout=TIMEOUT_S, retries=3, retry_on=(reason, ConnectionError)) as pool:
            call = (str(journal), 3, raised)
            assert await pool.apply(targets.succeed_at, call) == "run 3"
            journal.unlink()
            assert await pool.starmap(targets.succeed_at, [call]) == ["run 3"]

    asyncio.run(main())


def test_retries_are_used_up_and_the_last_error_is_raised(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def main() -> None:
        async with Pool(1, retries=2, retry_on=LookupError) as pool:
            with pytest.raises(KeyError, match="run 3"):
                await pool.apply(targets.succeed_at, (str(journal), 99, "KeyError"))

    asyncio.run(main())
    assert runs_of(journal) == 3


def test_other_reasons_are_none(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def main() -> None:
        async with Pool(1, retries=2, retry_on=ConnectionError) as pool:
            with pytest.raises(LookupError, match="run 1"):
                await pool.apply(targets.succeed_at, (str(journal), 99, "LookupError"))
            journal.unlink()
            with pytest.raises(WorkerDied):
                await pool.apply(targets.succeed_at, (str(journal), 99, "SIGKILL"))
            assert runs_of(journal) == 1
            assert await pool.options(retry_on=WorkerDied).apply(targets.succeed_at, (str(journal), 2, "SIGKILL"))

    asyncio.run(main())


def test_a_task_that_is_run_again_is_finished_by_close(tmp_path: Path) -> None:
    journal = tmp_path / "journal"

    async def main() -> None:
        pool = Pool(1, retries=3, retry_on=(LookupError, WorkerDied))
        calls = [
            asyncio.ensure_future(pool.apply(targets.succeed_at, (str(journal), 3, "LookupError"))),
            asyncio.ensure_future(pool.apply(targets.succeed_at, (str(tmp_path / "other"), 2, "SIGKILL"))),
        ]
        await asyncio.sleep(0)
        pool.close()
        await pool.join()
        assert [call.result() for call in calls] == ["run 3", "run 2"]

    asyncio.run(main())


def test_a_task_that_was_cancelled_is_not_run_again(tmp_path: Path, bell: Bell) -> None:
    journal = tmp_path / "journal"

    async def main() -> None:
        async with Pool(1, retries=3, retry_on=LookupError) as pool:
            call = asyncio.ensure_future(pool.apply(targets.fail_when_cancelled_and_note, (bell.path, str(journal))))
            assert await bell.hear() == "started"
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await pool.apply(targets.echo, (1,)) == 1

    asyncio.run(main())
    assert runs_of(journal) == 1


@pytest.mark.parametrize("retry_on", [ValueError("an instance"), "ValueError", (ValueError, 3), int])
def test_reasons_must_be_exceptions(retry_on: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="retry_on must be an exception class"):
            Pool(1, retry_on=retry_on)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------- suspects


def test_a_task_that_kills_its_workers_is_poison_and_its_neighbours_are_not_blamed(
    start_method: str, caplog: Any
) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=8, retries=5) as pool:
            neighbours = [asyncio.ensure_future(pool.apply(targets.wait, (0.2,))) for _ in range(12)]
            with pytest.raises(PoisonTask) as caught:
                await pool.apply(targets.die)
            assert caught.value.signal == "SIGKILL"
            assert caught.value.task == "deadline_targets:die"
            assert await asyncio.gather(*neighbours) == ["waited"] * 12
            assert await pool.map(targets.echo, range(100)) == list(range(100))

    asyncio.run(main())
    deaths = [record for record in caplog.records if "died" in record.getMessage()]
    assert 3 <= len(deaths) <= 4, "three alone, and perhaps one in company"


def test_suspects_run_alone(tmp_path: Path) -> None:
    """Each notes how many run beside it in its process."""

    async def main() -> None:
        async with Pool(1, childconcurrency=8, retries=1) as pool:
            once = tmp_path / "once"
            calls = [pool.apply(targets.count_company, (str(once), number == 5)) for number in range(6)]
            company = await asyncio.gather(*calls)
            assert company == [1] * 6

    asyncio.run(main())


def test_a_suspect_is_not_kept_waiting_by_busy_workers(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=4, retries=1) as pool:
            call = (targets.ring_and_wait, (bell.path, FOREVER_S))
            busy = [asyncio.ensure_future(pool.options(retries=0).apply(*call)) for _ in range(2)]
            for _ in range(2):
                assert await bell.hear() == "started"
            with pytest.raises(WorkerDied):
                await pool.apply(targets.die)
            for call in busy:
                call.cancel()
            await asyncio.wait(busy)

    asyncio.run(main())


@pytest.mark.parametrize("function", [time.sleep, functools.partial(time.sleep, 1000)], ids=["itself", "partial"])
def test_native_code_that_can_be_interrupted_is_though_no_python_calls_it(start_method: str, function: Any) -> None:
    args = () if isinstance(function, functools.partial) else (1000,)

    async def main() -> None:
        async with Pool(1, grace=1000) as pool:
            pid = await pool.apply(os.getpid)
            with pytest.raises(TaskTimeout):
                await pool.options(timeout=0.05).apply(function, args)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await pool.apply(function, args)
            assert await pool.apply(os.getpid) == pid
            blocked = asyncio.ensure_future(pool.apply(function, args))
            await asyncio.sleep(0.05)
        with pytest.raises(PoolTerminated):
            await blocked

    asyncio.run(main())
