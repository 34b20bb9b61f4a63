"""Workers that die, fail to start, or are replaced: what becomes of their tasks and of everyone else's."""

from __future__ import annotations

import asyncio
import collections
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import pool_targets as targets
import signal_targets
from polyloop import Pool, WorkerDied, WorkerStartError
from rendezvous import Bell, Gate, Journal

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(30)


async def pids_of_all(pool: Pool, bell: Bell, gate: Gate) -> list[int]:
    """The workers' process ids, once all of them run."""
    call = functools.partial(pool.apply, targets.ring_pid_and_block, (bell.path, gate.path))
    calls = [asyncio.ensure_future(call()) for _ in range(pool.process_count)]
    pids = [int(await bell.hear()) for _ in calls]
    assert len(set(pids)) == pool.process_count
    gate.open(len(calls))
    await asyncio.gather(*calls)
    return pids


# --------------------------------------------------------------------------------------------------------------- deaths


def test_a_killed_worker_fails_only_what_it_was_running(
    start_method: str, run: Run, bell: Bell, gate: Gate, journal: Journal
) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            call = [asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path))) for _ in "ab"]
            first, second = int(await bell.hear()), int(await bell.hear())
            queued = [asyncio.ensure_future(pool.apply(targets.later, (x,))) for x in range(100)]
            os.kill(first, signal.SIGKILL)
            done, pending = await asyncio.wait(call, return_when=asyncio.FIRST_COMPLETED)
            error = done.pop().exception()
            assert isinstance(error, WorkerDied)
            assert (error.pid, error.exitcode, error.signal, error.attempt) == (first, -9, "SIGKILL", 1)
            assert str(error).endswith("another process killed it, or the kernel did")
            assert await asyncio.gather(*queued) == list(range(100))  # the second worker is still busy
            gate.open()
            assert await pending.pop() == second
            assert journal.lines == [f"WARNING worker {first} died (SIGKILL); of its tasks 1 lost"]

    run(main())


@pytest.mark.parametrize(
    ("function", "args", "exitcode", "signame"),
    [(targets.kill_itself, (), -9, "SIGKILL"), (targets.leave, (3,), 3, None), (targets.leave, (0,), 0, None)],
)
def test_worker_died_says_how(
    start_method: str, function: Any, args: Any, exitcode: int, signame: str | None, journal: Journal
) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(WorkerDied) as caught:
                await pool.apply(function, args)
            error = caught.value
            assert (error.exitcode, error.signal, error.attempt) == (exitcode, signame, 1)
            assert await pool.apply(targets.pid) != error.pid
            assert len(journal.lines) == 1

    asyncio.run(main())


def test_worker_died_says_out_of_memory_only_where_the_kernel_says_so(start_method: str, tmp_path: Path) -> None:
    async def main() -> None:
        events = tmp_path / "memory.events"
        events.write_text("low 0\noom 1\noom_kill 3\n")
        async with Pool(1, _oom_file=str(events)) as pool:
            with pytest.raises(WorkerDied, match=r"SIGKILL .*: another process killed it, or the kernel did"):
                await pool.apply(targets.kill_itself)
            await pool.apply(targets.later, (1,))
            events.write_text("low 0\noom 2\noom_kill 4\n")
            with pytest.raises(WorkerDied, match=r"SIGKILL .*: the kernel killed it: its memory limit was reached"):
                await pool.apply(targets.kill_itself)
            await pool.apply(targets.later, (1,))
            with pytest.raises(WorkerDied, match=r"SIGKILL .*: another process killed it, or the kernel did"):
                await pool.apply(targets.kill_itself)
            events.write_text("low 0\noom 2\noom_kill 5\n")
            with pytest.raises(WorkerDied, match="code 3"):
                await pool.apply(targets.leave, (3,))

    asyncio.run(main())


def test_worker_died_names_the_task() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(WorkerDied) as caught:
                await pool.apply(targets.kill_itself)
            assert caught.value.task == "pool_targets:kill_itself"
            with pytest.raises(WorkerDied) as caught:
                await pool.map(functools.partial(targets.die_at, 0), [0])
            assert caught.value.task is not None
            assert "die_at" in caught.value.task

    asyncio.run(main())


def test_a_worker_killed_while_idle_is_replaced(start_method: str, run: Run, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            first = await pool.apply(targets.pid)
            (process,) = pool.processes
            process.kill()
            assert await journal.next() == f"WARNING worker {first} died (SIGKILL)"
            second = await pool.apply(targets.pid)
            assert second != first
            assert (process.is_alive(), process.exitcode) == (False, -9)
            assert [worker.pid for worker in pool.processes] == [second]

    run(main())


def test_a_worker_killed_with_sigterm_is_replaced(start_method: str, bell: Bell, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            call = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,)))
            assert await bell.hear() == "started"
            (process,) = pool.processes
            process.terminate()
            with pytest.raises(WorkerDied) as caught:
                await call
            assert caught.value.signal == "SIGTERM"
            assert await pool.apply(targets.pid) != process.pid
            assert len(journal.lines) == 1

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sigterm_ends_a_worker_whose_loop_it_does_not_interrupt(start_method: str, bell: Bell, loop: str) -> None:
    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            call = asyncio.ensure_future(pool.apply(signal_targets.leave_sigterm_to_a_thread, (bell.path,)))
            assert await bell.hear() == "started"
            (process,) = pool.processes
            process.terminate()
            with pytest.raises(WorkerDied, match="SIGTERM"):
                await call

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("suspend", [False, True, None])
def test_sigterm_ends_a_worker_wherever_it_interrupts_a_task(
    bell: Bell, loop: str, suspend: bool | None, swallow: bool
) -> None:
    """Also where the exception by which it does becomes the task's own, or the task swallows it."""

    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            if suspend is None:
                call = pool.apply(signal_targets.sigterm_itself_plainly, (bell.path,), {"swallow": swallow})
            else:
                call = pool.apply(signal_targets.sigterm_itself, (bell.path,), {"suspend": suspend, "swallow": swallow})
            with pytest.raises(WorkerDied) as caught:
                await call
            assert caught.value.signal == "SIGTERM"
            assert await bell.hear() == "interrupted"

    asyncio.run(main())


def test_a_retried_task_runs_again_on_another_worker(start_method: str, tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(2, retries=1) as pool:
            assert await pool.apply(targets.die_once, (str(tmp_path / "mark"),)) in [
                process.pid for process in pool.processes
            ]
            assert len(journal.lines) == 1
            assert journal.lines[0].endswith("died (SIGKILL); of its tasks 1 to be run again")

    asyncio.run(main())


def test_retries_end_with_the_last_attempt(journal: Journal) -> None:
    async def main() -> None:
        async with Pool(1, retries=2) as pool:
            with pytest.raises(WorkerDied) as caught:
                await pool.apply(targets.kill_itself)
            assert caught.value.attempt == 3
            assert len(journal.lines) == 3
            assert await pool.apply(targets.double, (1,)) == 2

    asyncio.run(main())


def test_a_map_item_that_kills_its_worker_is_raised(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            with pytest.raises(WorkerDied):
                await pool.map(functools.partial(targets.die_at, 300), range(1000))
            assert await pool.map(targets.later, range(1000)) == list(range(1000))

    run(main())


def test_a_retried_map_ends_complete_though_its_workers_are_killed(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(2, retries=10) as pool:
            results, kills = [], 0
            async for x in pool.map(targets.later, range(20_000)):
                results.append(x)
                if x in (3000, 9000, 15_000):
                    next(process for process in pool.processes if process.pid is not None).kill()
                    kills += 1
            assert results == list(range(20_000))
            assert kills == 3

    run(main())


def test_all_workers_killed_at_once_are_replaced(start_method: str, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            before = await pids_of_all(pool, bell, gate)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            after = await pids_of_all(pool, bell, gate)
            assert not set(before) & set(after)

    asyncio.run(main())


def test_killing_a_worker_ends_a_cancel_that_waits_for_it(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, grace=1000) as pool:
            call = asyncio.ensure_future(pool.apply(targets.ignore_cancel, (bell.path, bell.path + "-none")))
            os.mkfifo(bell.path + "-none")
            assert await bell.hear() == "started"
            call.cancel()
            assert await bell.hear() == "ignored"
            assert not call.done()
            next(iter(pool.processes)).kill()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(main())


def test_a_cancel_that_is_ignored_frees_the_caller_after_the_grace(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.05) as pool:
            call = asyncio.ensure_future(pool.apply(targets.ignore_cancel, (bell.path, gate.path)))
            assert await bell.hear() == "started"
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert bell.heard() == ["ignored"]

    asyncio.run(main())


def test_a_stopped_worker_holds_up_its_own_tasks_only(start_method: str, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=4) as pool:
            first, second = await pids_of_all(pool, bell, gate)
            os.kill(first, signal.SIGSTOP)
            assert set(await pool.map(targets.pid_of, range(1000))) == {second}
            os.kill(first, signal.SIGKILL)

    asyncio.run(main())


def test_a_killed_forkserver_is_a_fault_like_another() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            first, server = await pool.apply(targets.pid), await pool.apply(os.getppid)
            assert server != os.getpid()
            os.kill(server, signal.SIGKILL)
            os.kill(first, signal.SIGKILL)
            assert await pool.apply(targets.pid) != first
            assert await pool.apply(os.getppid) != server

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------- start


def test_an_initializer_that_raises_fails_all_calls_and_respawns_nothing(
    start_method: str, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        path = tmp_path / "starts"
        pool = Pool(2, initializer=targets.fail_to_start, initargs=(str(path),))
        calls = [asyncio.ensure_future(pool.apply(targets.later, (x,))) for x in range(5)]
        mapped = asyncio.ensure_future(pool.map(targets.later, range(5)).results())
        for call in [*calls, mapped]:
            with pytest.raises(WorkerStartError, match="TwoArguments: 1: no database") as caught:
                await call
            cause = caught.value.__cause__
            assert isinstance(cause, targets.TwoArguments)
            assert cause.text == "no database"
            assert "fail_to_start" in str(cause.__cause__)
        with pytest.raises(WorkerStartError) as caught:
            await pool.apply(targets.later, (1,))
        assert isinstance(caught.value.__cause__, targets.TwoArguments)
        with pytest.raises(WorkerStartError):
            await pool.map(targets.later, [1])
        pool.close()
        await pool.join()
        assert 1 <= len(path.read_text().splitlines()) <= 2

    run(main())


@pytest.mark.parametrize("how", ["terminate", "aexit"])
def test_a_pool_whose_workers_cannot_start_ends_all_the_same(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with Pool(1, initializer=targets.fail_to_start, initargs=(str(tmp_path / "starts"),)) as pool:
            if how == "terminate":
                pool.terminate()
                await pool.join()

    asyncio.run(main())


def test_workers_that_leave_in_their_initializer_are_given_up_after_a_few(tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        path = tmp_path / "starts"
        async with Pool(2, initializer=targets.leave_at_start, initargs=(str(path),)) as pool:
            with pytest.raises(WorkerStartError, match="exit code 9"):
                await pool.apply(targets.later, (1,))
        assert len(path.read_text().splitlines()) <= 5
        assert len(journal.lines) <= 1

    asyncio.run(main())


def test_system_exit_in_an_initializer_is_a_failed_start() -> None:
    async def main() -> None:
        async with Pool(1, initializer=targets.exit_at_start) as pool:
            with pytest.raises(WorkerStartError, match="SystemExit: 3") as caught:
                await pool.apply(targets.later, (1,))
            assert isinstance(caught.value.__cause__, SystemExit)

    asyncio.run(main())


def test_an_initializer_that_cannot_be_sent_is_a_failed_start() -> None:
    async def main() -> None:
        async with Pool(1, initializer=targets.remember, initargs=((x for x in ()),)) as pool:
            with pytest.raises(WorkerStartError, match="cannot pickle 'generator' object"):
                await pool.apply(targets.later, (1,))

    asyncio.run(main())


def test_a_loop_initializer_that_raises_is_a_failed_start() -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=functools.partial(divmod, 1, 0)) as pool:  # type: ignore[arg-type]
            with pytest.raises(WorkerStartError, match="ZeroDivisionError"):
                await pool.apply(targets.later, (1,))

    asyncio.run(main())


def test_starts_that_fail_later_are_tried_again_until_they_succeed(tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        mark = tmp_path / "broken"
        async with Pool(1, initializer=targets.fail_to_start_if, initargs=(str(mark),)) as pool:
            first = await pool.apply(targets.pid)
            mark.touch()
            os.kill(first, signal.SIGKILL)
            assert (await journal.next()).startswith(f"WARNING worker {first} died")
            call = asyncio.ensure_future(pool.apply(targets.pid))
            assert (await journal.next()).startswith("WARNING workers fail to start, trying again")
            assert not call.done()
            mark.unlink()
            assert await call != first
            assert journal.lines[2:] == ["WARNING workers start again"]

    asyncio.run(main())


def test_the_initializer_runs_once_in_every_worker(start_method: str, bell: Bell, gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "starts"
        async with Pool(2, initializer=targets.append_pid, initargs=(str(path),)) as pool:
            pids = await pids_of_all(pool, bell, gate)
            os.kill(pids[0], signal.SIGKILL)
            pids = [pids[0], *await pids_of_all(pool, bell, gate)]
            assert sorted(map(int, path.read_text().split())) == sorted(pids)

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_initializer_sees_the_workers_loop_and_its_arguments(start_method: str, loop: str) -> None:
    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, targets.remember, (1, "two"), loop_initializer=loop_initializer) as pool:
            assert await pool.apply(targets.recall) == [1, "two"]
            assert await pool.apply(targets.loop_type) == loop

    asyncio.run(main())


def test_closures_may_initialise_workers() -> None:
    async def main() -> None:
        n = 5
        async with Pool(1, lambda *values: targets.remember(n, *values), (6,)) as pool:
            assert await pool.apply(targets.recall) == [5, 6]

    asyncio.run(main())


def test_environment_and_directory_are_sent_at_each_start(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setenv("POLYLOOP_TEST", "one")
        async with Pool(1) as pool:
            assert await pool.apply(targets.environment, ("POLYLOOP_TEST",)) == ("one", os.getcwd())
            monkeypatch.setenv("POLYLOOP_TEST", "two")
            monkeypatch.chdir(tmp_path)
            with pytest.raises(WorkerDied):
                await pool.apply(targets.kill_itself)
            assert await pool.apply(targets.environment, ("POLYLOOP_TEST",)) == ("two", str(tmp_path))
            monkeypatch.delenv("POLYLOOP_TEST")
            with pytest.raises(WorkerDied):
                await pool.apply(targets.kill_itself)
            assert await pool.apply(targets.environment, ("POLYLOOP_TEST",)) == (None, str(tmp_path))

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------- in the worker's loop


@pytest.mark.parametrize("fails", [False, True])
def test_the_exception_handler_sees_each_exception_in_the_worker(
    start_method: str, run: Run, bell: Bell, fails: bool
) -> None:
    async def main() -> None:
        async with Pool(1, exception_handler=targets.Noter(bell.path, fails=fails)) as pool:
            pid = await pool.apply(targets.pid)
            for function, args in [(targets.fail_later, (1,)), (targets.fail_plainly, ())]:
                with pytest.raises(LookupError) as caught:
                    await pool.apply(function, args)
                assert await bell.hear() == f"{pid} {caught.value!r}"
            with pytest.raises(LookupError):
                await pool.map(targets.fail_later, [2])
            assert await bell.hear() == f"{pid} LookupError(2)"
            assert await pool.apply(targets.pid) == pid

    run(main())


@pytest.mark.parametrize("initializer", [targets.set_debug, targets.set_task_factory])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_debug_mode_and_task_factories_of_the_worker_are_honoured(initializer: Any, loop: str) -> None:
    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, initializer, loop_initializer=loop_initializer) as pool:
            assert await pool.map(targets.later, range(100)) == list(range(100))
            assert await pool.apply(targets.add, (1, 2)) == 3
            with pytest.raises(LookupError):
                await pool.apply(targets.fail_later)
            with pytest.raises(SystemExit):
                await pool.apply(targets.exit_with, (3,), {"suspend": False})
            assert await pool.apply(targets.debug_mode) == (initializer is targets.set_debug)
            made = await pool.apply(targets.tasks_made)
            assert made.count("later") == (100 if initializer is targets.set_task_factory else 0)

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tasks_start_at_once_in_order(loop: str) -> None:
    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            results = await pool.map(targets.order, range(16))
            assert results == [list(range(n + 1)) for n in range(16)]

    asyncio.run(main())


def test_sigint_does_not_hurt_a_worker(start_method: str, bell: Bell, gate: Gate, capfd: Any) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            call = asyncio.ensure_future(pool.apply(targets.ring_pid_and_block, (bell.path, gate.path)))
            pid = int(await bell.hear())
            os.kill(pid, signal.SIGINT)
            gate.open()
            assert await call == pid == await pool.apply(targets.pid)

    asyncio.run(main())
    assert capfd.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------- recycling


@pytest.mark.parametrize(("limit", "tasks"), [(1, 5), (5, 23)])
def test_a_worker_runs_exactly_as_many_tasks_as_it_may(
    start_method: str, run: Run, limit: int, tasks: int, journal: Journal
) -> None:
    async def main() -> None:
        async with Pool(1, maxtasksperchild=limit, childconcurrency=4) as pool:
            pids = collections.Counter(await pool.map(targets.pid_of, range(tasks)))
            assert sorted(pids.values(), reverse=True) == [limit] * (tasks // limit) + [tasks % limit] * (
                tasks % limit > 0
            )
            assert journal.lines == []

    run(main())


def test_two_workers_with_a_backlog_run_no_more_tasks_than_they_may() -> None:
    async def main() -> None:
        async with Pool(2, maxtasksperchild=10, childconcurrency=16) as pool:
            calls = [pool.apply(targets.pid_of, (n,)) for n in range(200)]
            pids = collections.Counter(await asyncio.gather(*calls))
            assert max(pids.values()) == 10
            assert sum(pids.values()) == 200

    asyncio.run(main())


@pytest.mark.parametrize("limit", [1, 7])
def test_close_finishes_a_backlog_with_workers_that_are_replaced(start_method: str, tmp_path: Path, limit: int) -> None:
    async def main() -> None:
        path, count = tmp_path / "done", 12 * limit
        pool = Pool(2, maxtasksperchild=limit, childconcurrency=8)
        result = pool.map(functools.partial(targets.append_async, str(path)), range(count))
        pool.close()
        await pool.join()
        assert sorted(map(int, path.read_text().split())) == list(range(count))
        assert await result == [None] * count

    asyncio.run(main())


def test_a_retiring_worker_finishes_what_it_runs(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, maxtasksperchild=2, childconcurrency=2) as pool:
            slow = [
                asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path))) for _ in range(2)
            ]
            first = {int(await bell.hear()), int(await bell.hear())}
            assert len(first) == 1
            assert await pool.apply(targets.pid) not in first  # its successor is there already
            gate.open(2)
            assert set(await asyncio.gather(*slow)) == first

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------- grandchildren


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("fork", [signal_targets.fork, signal_targets.fork_plainly, signal_targets.fork_later])
def test_a_task_that_forks_does_not_make_a_second_worker(start_method: str, loop: str, fork: Any, bell: Bell) -> None:
    async def main() -> None:
        loop_initializer = uvloop.new_event_loop if loop == "uvloop" else None
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            worker = await pool.apply(targets.pid)
            pid, child = await pool.apply(fork, (bell.path,) if fork is signal_targets.fork_later else ())
            assert pid == worker
            assert child > 0
            assert set(await pool.map(targets.pid_of, range(500))) == {worker}
            assert await pool.apply(signal_targets.collect, (child,)) == 70  # it noticed that it is no worker
            assert len(bell.heard()) == (8 if fork is signal_targets.fork_later else 0)
            assert await pool.apply(targets.pid) == worker

    asyncio.run(main())
