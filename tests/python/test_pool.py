"""`apply` over every start method, both loops: values, exceptions, cancellation, and each item's own task."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import pool_targets as targets
from buffer_targets import limit_files
from polyloop import Pool, PoolClosed, RemoteError, _core
from rendezvous import Bell, Gate

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)


def apply(on_pool: OnPool, *call: Any) -> Any:
    """What one `apply` returns or raises."""

    async def main(pool: Pool) -> Any:
        return await pool.apply(*call)

    return on_pool(main)


# --------------------------------------------------------------------------------------------------------------- values


def test_apply_returns_what_the_coroutine_returned(on_pool: OnPool) -> None:
    assert apply(on_pool, targets.double, (21,)) == 42
    assert apply(on_pool, targets.add_async, (1,), {"y": 2}) == 3
    assert apply(on_pool, targets.add_async, (), {"x": 1, "y": 2}) == 3


def test_apply_returns_what_a_plain_function_returned(on_pool: OnPool) -> None:
    assert apply(on_pool, targets.add, (1, 2)) == 3
    assert apply(on_pool, targets.add, [1], {"y": 2}) == 3
    assert apply(on_pool, dict) == {}


def test_what_a_plain_function_returned_is_awaited(on_pool: OnPool) -> None:
    assert apply(on_pool, targets.returns_awaitable, (5,)) == 5
    assert apply(on_pool, targets.Custom, (5,)) == 5


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**63),
        2**70,
        1.5,
        float("inf"),
        "",
        "\0 \ud800",
        b"\0",
        (),
        ((), [1, [2, [3]]]),
        [1, 2, 3],
        tuple(range(1000)),
        {"a": {1, 2}},
        bytearray(b"x"),
        range(3),
        Ellipsis,
        2 + 3j,
    ],
    ids=repr,
)
def test_values_come_back_equal_and_of_the_same_type(on_pool: OnPool, value: Any) -> None:
    result = apply(on_pool, targets.echo, (value,))
    assert result == value
    assert type(result) is type(value)


def test_a_value_that_occurs_twice_arrives_as_one(on_pool: OnPool) -> None:
    item: list[Any] = []
    item.append(item)
    result = apply(on_pool, targets.echo, (item,))
    assert result[0] is result
    one = [1]
    first, second = apply(on_pool, targets.echo, ([one, one],))
    assert first is second


@pytest.mark.parametrize("megabytes", [10, 50])
def test_large_arguments_and_results_travel(on_pool: OnPool, megabytes: int) -> None:
    length = megabytes * 10**6
    assert apply(on_pool, targets.size, (bytes(length),)) == length
    assert apply(on_pool, targets.blob, (length,)) == b"x" * length


def test_many_applies_at_once_all_come_back(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> list[int]:
        return await asyncio.gather(*(pool.apply(targets.later, (x,)) for x in range(3000)))

    assert on_pool(main) == list(range(3000))


# ----------------------------------------------------------------------------------------------------------- exceptions


def test_an_exception_arrives_as_itself_with_the_remote_traceback_as_cause(on_pool: OnPool) -> None:
    with pytest.raises(targets.TwoArguments) as caught:
        apply(on_pool, targets.fail_with_two_arguments)
    error = caught.value
    assert (str(error), error.code, error.text, error.__notes__) == ("7: seven", 7, "seven", ["a note"])
    assert repr(error.__cause__) == "KeyError('root')"
    remote = str(error.__cause__.__cause__)  # type: ignore[union-attr]
    assert "pool_targets.py" in remote
    assert "fail_with_two_arguments" in remote
    assert "polyloop/" not in remote


@pytest.mark.parametrize("function", [targets.fail_plainly, targets.fail_later])
def test_an_exception_without_a_cause_has_the_remote_traceback_as_cause(on_pool: OnPool, function: Any) -> None:
    with pytest.raises(LookupError) as caught:
        apply(on_pool, function)
    remote = str(caught.value.__cause__)
    assert function.__name__ in remote
    assert "polyloop/" not in remote


def test_an_exception_group_arrives_as_itself(on_pool: OnPool) -> None:
    with pytest.raises(ExceptionGroup, match="both") as caught:
        apply(on_pool, targets.group)
    two, value = caught.value.exceptions
    assert isinstance(two, targets.TwoArguments)
    assert (two.code, repr(value)) == (1, "ValueError('two')")


def test_wrong_arguments_are_the_functions_own_type_error(on_pool: OnPool) -> None:
    with pytest.raises(TypeError, match=r"double\(\) takes 1 positional argument but 2 were given"):
        apply(on_pool, targets.double, (1, 2))
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'z'"):
        apply(on_pool, targets.add, (1,), {"z": 2})


@pytest.mark.parametrize("function", [targets.stop_iteration, targets.stop_iteration_plainly])
def test_stop_iteration_arrives_as_a_runtime_error(on_pool: OnPool, function: Any) -> None:
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        apply(on_pool, function)
    assert isinstance(caught.value.__cause__, StopIteration)


EXITS = [
    (targets.exit_with, (3,), {"suspend": False}),
    (targets.exit_with, (3,), {"suspend": True}),
    (targets.exit_plainly, (3,), {}),
]


@pytest.mark.parametrize("call", EXITS)
def test_system_exit_is_the_tasks_own_and_its_worker_lives(on_pool: OnPool, call: Any) -> None:
    async def main(pool: Pool) -> None:
        before = {process.pid for process in pool.processes}
        with pytest.raises(SystemExit) as caught:
            await pool.apply(*call)
        assert caught.value.code == 3
        assert {await pool.apply(targets.pid) for _ in range(10)} <= before

    apply(on_pool, targets.pid)
    on_pool(main)


@pytest.mark.parametrize("suspend", [False, True])
def test_keyboard_interrupt_is_the_tasks_own_and_its_worker_lives(on_pool: OnPool, suspend: bool) -> None:
    async def main(pool: Pool) -> None:
        before = {process.pid for process in pool.processes}
        with pytest.raises(KeyboardInterrupt):
            await pool.apply(targets.interrupt, (), {"suspend": suspend})
        assert {await pool.apply(targets.pid) for _ in range(10)} <= before

    on_pool(main)


@pytest.mark.parametrize("function", [targets.cancel_itself, targets.cancel_its_task])
def test_a_task_that_is_cancelled_in_its_worker_is_cancelled_for_its_caller(on_pool: OnPool, function: Any) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(asyncio.CancelledError):
            await pool.apply(function)
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        assert await pool.apply(targets.double, (1,)) == 2

    on_pool(main)


# ---------------------------------------------------------------------------------------------- what can't travel


def test_a_result_that_cannot_be_pickled_is_a_remote_error(on_pool: OnPool) -> None:
    with pytest.raises(RemoteError, match=r"cannot pickle '_thread\.lock' object") as caught:
        apply(on_pool, targets.return_lock)
    assert caught.value.type_name == "_thread.lock"


def test_an_exception_that_cannot_be_pickled_is_a_remote_error(on_pool: OnPool) -> None:
    with pytest.raises(RemoteError, match=r"cannot pickle '_thread\.lock' object") as caught:
        apply(on_pool, targets.raise_with_lock)
    assert caught.value.type_name == "pool_targets.HoldsALock"
    assert "raise_with_lock" in caught.value.traceback


@pytest.mark.usefixtures("start_method")
@pytest.mark.parametrize("start_method", ["forkserver"], indirect=True)
def test_a_result_larger_than_fits_is_an_error_of_its_task_and_its_worker_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_core, "Manager", functools.partial(_core.Manager, max_reply=1 << 20))

    async def main() -> None:
        async with Pool(1) as pool:
            worker = await pool.apply(targets.pid)
            await pool.apply(limit_files, (1 << 15,))  # no block can be made, so that results go through the ring
            assert len(await pool.apply(targets.blob, ((1 << 20) - 100,))) == (1 << 20) - 100
            with pytest.raises(ValueError, match=r"a result of 10485\d\d bytes is more than the 1048576 that fit"):
                await pool.apply(targets.blob, (1 << 20,))
            with pytest.raises(ValueError, match=r"an exception of \d+ bytes is more than the 1048576"):
                await pool.apply(targets.raise_large, (1 << 20,))
            assert await pool.apply(targets.pid) == worker

    asyncio.run(main())


def test_a_result_that_is_refused_on_arrival_fails_its_own_call_only(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        good = [pool.apply(targets.later, (x,)) for x in range(20)]
        bad = [pool.apply(targets.return_refusing), pool.apply(targets.raise_refusing)]
        *values, value, exception = await asyncio.gather(*good, *bad, return_exceptions=True)
        assert values == list(range(20))
        assert isinstance(value, RemoteError)
        assert "this value refuses to be loaded" in str(value)
        assert isinstance(exception, targets.RefusesToLoad)

    on_pool(main)


def test_an_argument_that_is_refused_on_arrival_fails_its_own_call_only(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        good = [pool.apply(targets.later, (x,)) for x in range(20)]
        bad = pool.apply(targets.echo, (targets.RefusesToBeLoaded(),))
        *values, refused = await asyncio.gather(*good, bad, return_exceptions=True)
        assert values == list(range(20))
        assert repr(refused) == repr(ValueError("this value refuses to be loaded"))

    on_pool(main)


def test_an_argument_that_cannot_be_pickled_raises_at_once(on_pool: OnPool) -> None:
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        apply(on_pool, targets.echo, (threading.Lock(),))
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        apply(on_pool, targets.add, (), {"x": threading.Lock()})


# --------------------------------------------------------------------------------------------------------- cancellation


def test_cancelling_an_apply_cancels_the_coroutine_before_the_caller_goes_on(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        call = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,)))
        assert await bell.hear() == "started"
        call.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await call
        assert bell.heard() == ["cancelled"]
        assert await pool.apply(targets.double, (1,)) == 2

    on_pool(main)


def test_leaving_a_timeout_cancels_the_coroutine(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.apply(targets.wait_for_ever, (bell.path,))
        assert bell.heard() in (["started", "cancelled"], [])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.apply(targets.wait_for_ever, (bell.path,)), 0.05)
        assert bell.heard() in (["started", "cancelled"], [])

    on_pool(main)


def test_cancelling_before_the_first_step_starts_nothing(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        call = asyncio.ensure_future(pool.apply(targets.ring_and_return, (bell.path, 1)))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await pool.map(targets.later, range(100))
        assert bell.heard() in ([], ["1"])  # it may have been on its way

    on_pool(main)


def test_cancelling_a_finished_apply_changes_nothing(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        call = asyncio.ensure_future(pool.apply(targets.double, (1,)))
        assert await call == 2
        assert not call.cancel()

    on_pool(main)


def test_a_task_that_swallows_its_cancellation_still_frees_the_caller(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        call = asyncio.ensure_future(pool.apply(targets.answer_cancel, (bell.path,)))
        assert await bell.hear() == "started"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    on_pool(main)


def test_a_task_group_cancels_its_other_applies(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.apply(targets.wait_for_ever, (bell.path,)))
                assert await bell.hear() == "started"
                group.create_task(pool.apply(targets.fail_later, (1,)))
        assert [repr(error) for error in caught.value.exceptions] == ["LookupError(1)"]
        assert bell.heard() == ["cancelled"]

    on_pool(main)


# ----------------------------------------------------------------------------------------------------- tasks of its own


def test_each_coroutine_runs_in_a_task_of_its_own(on_pool: OnPool, bell: Bell, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        own, name, _ = await pool.apply(targets.task_of_its_own)
        assert own
        assert name.startswith("Task-")
        calls = [asyncio.ensure_future(pool.apply(targets.meet_task, (bell.path, gate.path))) for _ in range(8)]
        for _ in calls:
            await bell.hear()
        gate.open(len(calls))
        names = await asyncio.gather(*calls)
        assert len(set(names)) >= 4  # two workers count alike

    on_pool(main)


@pytest.mark.parametrize("suspend", [False, True])
def test_a_context_variable_set_in_one_task_is_invisible_in_others(on_pool: OnPool, suspend: bool) -> None:
    async def main(pool: Pool) -> None:
        paint = [pool.apply(targets.paint, (str(n),), {"suspend": suspend}) for n in range(50)]
        plain = [pool.apply(targets.paint_plainly, (str(n),)) for n in range(50)]
        assert set(await asyncio.gather(*paint, *plain)) == {"none"}

    on_pool(main)


# ------------------------------------------------------------------------------------------------------------- the pool


def test_the_pool_shows_its_shape_and_its_workers(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert (pool.process_count, pool.queue_count, pool.running) == (2, 1, True)
        pids = {await pool.apply(targets.pid) for _ in range(5)}
        assert pids <= {process.pid for process in pool.processes}
        assert all(process.is_alive() and process.exitcode is None for process in pool.processes)
        assert set(pool.processes.values()) == set(pool.queues)

    on_pool(main)


def test_workers_run_the_loop_asked_for(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        here = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        assert await pool.apply(targets.loop_type) == here

    on_pool(main)


def test_an_open_pool_cannot_be_joined(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(RuntimeError, match="pool is still open"):
            await pool.join()
        assert not issubclass(PoolClosed, asyncio.CancelledError)

    on_pool(main)
