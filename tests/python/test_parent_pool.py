"""`current_worker().pool`: tasks that call the pool that runs them, to any depth, and what ends such calls."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import parent_targets as targets
from polyloop import Pool, PoolTerminated, TaskTimeout, WorkerDied, parent_pool
from rendezvous import Bell, Gate

Run = Callable[[Coroutine[Any, Any, Any]], Any]
OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)

FIB_12 = 144


# ------------------------------------------------------------------------------------------------------------ the verbs


def test_a_task_has_the_verbs_of_the_pool(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        got = await pool.apply(targets.every_verb, (3,))
        assert got == [6, 6, 6, 6, [0, 2, 4], [9, 27], "twice", 6, True]

    on_pool(main)


def test_results_of_a_map_come_in_each_way(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        seen, unordered, in_order, kept, error = await pool.apply(targets.results_of_a_map)
        assert seen == {0: 0.5, 1: ZeroDivisionError, 2: 0.25}
        assert unordered == set(range(0, 40, 2))
        assert in_order == list(range(0, 600, 2))
        assert (kept, error) == (1.0, ZeroDivisionError)
        assert await pool.apply(targets.first_failure_of_a_map) == "division by zero"

    on_pool(main)


def test_maps_over_many_items_by_several_tasks_at_once(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.map(targets.sum_of_map, [10_000, 0, 1, 3_000]) == [99_990_000, 0, 0, 8_997_000]

    on_pool(main)


def test_a_map_that_is_left_cancels_what_has_not_finished(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=4) as pool:
            assert await pool.apply(targets.leave_a_map_early, (bell.path, 20)) == 7
            heard = bell.heard()
            assert heard.count("waits") == heard.count("cancelled") < 19
            assert pool.stats().queued == pool.stats().running == 0

    asyncio.run(main())


def test_names_timeouts_and_retries_of_the_pool_hold_for_calls_of_its_tasks_too() -> None:
    async def main() -> None:
        async with Pool(1, timeout=0.2) as pool:
            text = await pool.options(timeout=30).apply(targets.takes_too_long)
            assert text == "asyncio.tasks:sleep ran longer than 0.2 s"

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------ recursion


def test_every_worker_may_wait(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            for function in (targets.fib_by_others, targets.fib):
                assert await pool.apply(function, (12,)) == FIB_12
                assert await pool.map(function, range(8)) == [0, 1, 1, 2, 3, 5, 8, 13]
            await pool.aclose()

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"maxtasksperchild": 1},
        {"maxtasksperchild": 3, "lifespan": targets.lifespan},
        {"queuecount": 2},
        {"childconcurrency": 16},
    ],
    ids=["recycled", "recycled-without-overlap", "queues", "concurrent"],
)
def test_every_worker_may_wait_whatever_the_pool(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with Pool(2, **{"childconcurrency": 1, **options}) as pool:
            assert await asyncio.gather(*(pool.apply(targets.fib, (7,)) for _ in range(4))) == [13] * 4
            await pool.aclose()

    asyncio.run(main())


def test_a_depth_that_is_too_much_ends_in_a_clear_error() -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            assert await pool.apply(targets.deeper, (1,)) == 4097

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------------- errors


def test_exceptions_arrive_as_themselves(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.apply(targets.catches) == [("odd", 5), 5, "KeyError('inner')"]
        with pytest.raises(targets.Odd) as caught:
            await pool.apply(targets.passes_on)
        assert caught.value.code == 5

    on_pool(main)


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("unsendable result", "RemoteError", "generator"),
        ("unsendable argument", "TypeError", "cannot send a value of type tuple"),
        ("coroutine", "TypeError", "write pool.apply(double, (number,))"),
        ("text", "TypeError", "write (value,)"),
        ("time", "TaskTimeout", "asyncio.tasks:sleep ran longer than 0.05 s"),
        ("stream", "NotImplementedError", "can't take a stream from the pool that runs it"),
        ("exit", "SystemExit", "3"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_as_in_the_client(what: str, error: str, text: str) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            kind, message = await pool.apply(targets.error_of, (what,))
            assert kind == error
            assert text in message

    asyncio.run(main())


@pytest.mark.parametrize("retries", [0, 1])
def test_a_call_whose_worker_dies_says_so_or_runs_again(start_method: str, tmp_path: Path, retries: int) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            got = await pool.apply(targets.calls_one_that_dies, (retries, str(tmp_path / "mark")))
            died = ["parent_targets:dies_once", 9]
            assert got.count(died) == 1 - retries
            assert {"again"}.issuperset(other for other in got if other != died)

    asyncio.run(main())


def test_a_task_whose_calls_kill_its_worker_is_not_run_again_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            runs = tmp_path / "runs"
            with pytest.raises(WorkerDied):
                await pool.options(retries=2).apply(targets.kills_its_worker_by_a_call, (str(runs),))
            assert len(runs.read_text()) == 3
            assert await pool.apply(targets.double, (1,)) == 2

    asyncio.run(main())


@pytest.mark.parametrize(("times", "attempt"), [(0, 1), (2, 3)])
def test_a_call_is_run_again_for_what_it_raises(tmp_path: Path, times: int, attempt: int) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert await pool.apply(targets.retries_a_call, (str(tmp_path / "runs"), times)) == attempt
            with pytest.raises(targets.Odd) as caught:
                await pool.apply(targets.retries_a_call, (str(tmp_path / "more"), 9))
            assert caught.value.code == 4

    asyncio.run(main())


def test_a_task_that_is_run_again_makes_new_calls_and_the_old_ones_are_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with Pool(2, retries=1, retry_on=(targets.Odd,)) as pool:
            assert await pool.apply(targets.is_retried, (str(tmp_path / "runs"),)) == 2

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------- cancels and ends


@pytest.mark.parametrize("how", ["apply", "gather", "map", "nothing"])
@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_a_task_that_is_cancelled_or_runs_out_of_time_takes_its_calls_with_it(bell: Bell, how: str, end: str) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            names = {"call0", "call1"} | ({"call2"} if how in ("apply", "map") else set())
            timed = pool.options(timeout=0.5 if end == "timeout" else None)
            handle = timed.submit(targets.calls_and_waits, bell.path, how)
            if end == "cancel":
                assert {(await bell.hear()).split()[0] for _ in names} == names
                handle.cancel()
            await asyncio.wait([handle])
            assert handle.cancelled() if end == "cancel" else isinstance(handle.exception(), TaskTimeout)
            await _until_idle(pool)
            heard = [line.split() for line in bell.heard()]
            cancelled = {name for name, what in heard if what == "cancelled"}
            # On a busy machine the time may be up before a call has begun.
            assert cancelled == (names if end == "cancel" else {name for name, what in heard if what != "cancelled"})

    asyncio.run(main())


def test_calls_that_wait_in_the_queue_are_cancelled_there(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            handle = pool.submit(targets.calls_and_waits, bell.path, "nothing")
            assert (await bell.hear()).startswith("call")
            handle.cancel()
            await asyncio.wait([handle])
            await _until_idle(pool)
            assert len(bell.heard()) == 1, "one had begun"

    asyncio.run(main())


def test_a_timeout_within_a_task_cancels_what_it_awaits(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert await pool.apply(targets.catches_a_timeout, (bell.path,)) == "timeout"
            assert [line.split()[-1] for line in bell.heard()][-1] == "cancelled"

    asyncio.run(main())


def test_a_cancelled_task_may_call_the_pool_to_clean_up(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            handle = pool.submit(targets.cleans_up, bell.path)
            assert await bell.hear() == "waits"
            handle.cancel()
            assert await bell.hear() == "42"
            await asyncio.wait([handle])
            assert handle.cancelled()

    asyncio.run(main())


def test_a_worker_that_dies_takes_the_calls_of_its_tasks_with_it(start_method: str, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            handle = pool.submit(targets.calls_and_waits, bell.path, "nothing")
            # Of two calls at least one runs in the other worker.
            calls = dict([(await bell.hear()).split(), (await bell.hear()).split()])
            own = next(worker.pid for worker in pool.stats().workers if worker.in_flight > 1)
            assert own is not None
            os.kill(own, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                await handle
            elsewhere = [name for name, pid in calls.items() if int(pid) != own]
            for name in elsewhere:
                assert await bell.hear() == f"{name} cancelled"
            assert elsewhere
            await _until_idle(pool)

    asyncio.run(main())


def test_a_pool_that_closes_takes_the_calls_of_its_tasks(start_method: str, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            handles = [pool.submit(targets.calls_at_gate, gate.path, bell.path, 500) for _ in range(3)]
            await bell.hear()
            pool.close()
            gate.open(len(handles))
            assert await asyncio.gather(*handles) == [249_500] * 3
            await pool.join()

    asyncio.run(main())


def test_a_terminated_pool_ends_tasks_and_their_calls(run: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            handle = pool.submit(targets.calls_and_waits, bell.path, "gather")
            await bell.hear()
            await bell.hear()
        with pytest.raises(PoolTerminated):
            await handle
        assert sorted(line.split()[-1] for line in bell.heard()) == ["cancelled"] * 2

    run(main())


def test_calls_that_a_task_leaves_behind_go_on(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1, maxtasksperchild=1) as pool:
            assert await pool.apply(targets.leaves_calls_behind, (bell.path, gate.path)) == "left"
            gate.open(3)
            await pool.aclose()
            assert bell.heard() == ["done"] * 3

    asyncio.run(main())


@pytest.mark.parametrize("how", ["resize", "restart", "recycle"])
def test_a_worker_leaves_when_its_tasks_have_what_they_wait_for(bell: Bell, gate: Gate, how: str) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1, maxtasksperchild=1 if how == "recycle" else 0) as pool:
            await pool.ready()
            handles = [pool.submit(targets.has_one_wait_at_gate, gate.path, bell.path) for _ in range(2)]
            for _ in handles:
                await bell.hear()
            change = {"resize": lambda: pool.resize(1), "restart": pool.restart, "recycle": pool.ready}[how]
            changing = asyncio.ensure_future(change())
            await asyncio.sleep(0)
            gate.open(2)
            assert len(await asyncio.gather(*handles)) == 2
            await changing
            assert await pool.apply(targets.fib, (5,)) == 5

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------- where it can be used


def test_a_function_on_a_thread_has_an_executor(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        in_thread = pool.options(in_thread=True).apply(targets.from_a_thread, (4,))
        for call in (in_thread, pool.apply(targets.from_a_thread_of_its_own, (4,))):
            doubled, mapped, refused = await call
            assert (doubled, mapped) == (8, [0, 2, 4])
            assert "current_worker().pool.executor()" in refused

    on_pool(main)


def test_functions_on_threads_may_all_wait() -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=16) as pool:
            assert await pool.options(in_thread=True).apply(targets.recursion_on_threads, (5,)) == 5

    asyncio.run(main())


def test_a_plain_function_submits_and_does_not_wait(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        refused = await pool.apply(targets.plainly, (bell.path,))
        assert "would wait for itself" in refused
        assert await bell.hear() == "from a plain function"
        assert await pool.apply(targets.returns_a_handle, (4,)) == 8

    on_pool(main)


def test_an_initializer_and_a_lifespan_have_no_pool() -> None:
    async def main() -> None:
        async with Pool(1, initializer=targets.initialise, lifespan=targets.lifespan) as pool:
            await pool.apply(targets.double, (1,))
            said = await pool.apply(targets.what_was_said)
            assert len(said) == 3
            assert all("only a task can call the pool that runs it" in text for text in said)

    asyncio.run(main())


def test_the_client_has_no_parent_pool() -> None:
    with pytest.raises(RuntimeError, match="this process is no worker of a pool"):
        parent_pool()


def test_what_a_task_leaves_behind_can_not_call_in_its_name() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.leaves_itself_behind)
            assert "the task that this pool was taken in has ended" in await pool.apply(targets.what_was_left)

    asyncio.run(main())


def test_what_a_task_starts_may_call_too(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await asyncio.gather(*(pool.apply(targets.in_a_group, (10,)) for _ in range(20))) == [90] * 20

    on_pool(main)


# --------------------------------------------------------------------------------------------------------- what travels


def test_functions_travel_by_value_where_they_must(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.apply(targets.by_value, (5,)) == [6, 5, [5, 6, 7]]

    on_pool(main)


def test_a_function_that_other_workers_can_not_import_is_sent_again_by_value(start_method: str) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            while True:
                numbers, workers = await pool.apply(targets.of_a_module_of_its_own)
                assert numbers == list(range(1, 42))
                if workers == 2:
                    break

    asyncio.run(main())


def test_context_variables_travel_with_calls_of_tasks() -> None:
    async def main() -> None:
        async with Pool(1, contextvars=("parent_targets:color",)) as pool:
            assert await pool.apply(targets.colors) == ["red", "blue", "blue"]

    asyncio.run(main())


def test_large_arrays_travel_both_ways(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        size = 3 << 20
        same, lengths, total, own = await pool.apply(targets.arrays, (size,))
        assert (same, lengths, total, own) == (True, [size, size + 1], size, 5)

    on_pool(main)


async def _until_idle(pool: Pool) -> None:
    while any(worker.in_flight for worker in pool.stats().workers) or pool.stats().queued or pool.stats().running:
        await asyncio.sleep(0.005)
