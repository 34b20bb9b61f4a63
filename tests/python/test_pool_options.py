"""`options`: views of a pool; names of tasks; plain functions on threads."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

import options_targets as targets
from polyloop import Pool, TaskTimeout, WorkerDied
from rendezvous import Bell, Gate

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)

LOOPS = pytest.mark.parametrize("loop_initializer", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
TASKS = pytest.mark.parametrize("tasks", ["lazy", "eager", "plain"])


# ---------------------------------------------------------------------------------------------------------------- views


def test_a_view_keeps_what_it_is_not_told_and_has_every_verb() -> None:
    async def main() -> None:
        async with Pool(1, timeout=30) as pool:
            view = pool.options(name="x").options(in_thread=True)
            assert "timeout=30" in repr(view)
            assert "name='x'" in repr(view)
            assert await view.apply(targets.add, (1,)) == 1
            assert await view.submit(targets.add, 1) == 1
            assert await view.map(targets.add, [1, 2]) == [1, 2]
            assert await view.starmap(targets.add, [(1, 2)]) == [3]
            assert "name=None" in repr(view.options(name=None))

    asyncio.run(main())


def test_options_that_make_no_sense_are_refused() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(TypeError, match="name must be a str"):
                pool.options(name=3)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="timeout must be a number of seconds"):
                pool.options(timeout=-1)
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                pool.options(retires=1)  # type: ignore[call-arg]
            assert "timeout: 'float | None' = ..." in str(inspect.signature(pool.options))

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------- names


@LOOPS
@TASKS
@pytest.mark.parametrize("suspend", [False, True])
def test_a_name_is_the_tasks(loop_initializer: Any, tasks: str, suspend: bool, monkeypatch: Any) -> None:
    monkeypatch.setenv("POLYLOOP_TASKS", tasks)

    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            call = functools.partial(pool.options(name="größe").submit, targets.name_of_my_task)
            assert await call(suspend=suspend) == "größe"
            assert (await pool.submit(targets.name_of_my_task, suspend=suspend)).startswith("Task-")
            assert await call(suspend=suspend) == "größe"
            lambdas = pool.options(name="by value").submit(lambda: targets.name_of_my_task(suspend=suspend))
            assert await lambdas == "by value"

    asyncio.run(main())


def test_a_name_stands_in_errors() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(WorkerDied, match="exited with code 9 while it ran the last one"):
                await pool.options(name="the last one").submit(targets.die)
            with pytest.raises(TaskTimeout, match="a long one ran longer than"):
                await pool.options(name="a long one", timeout=0.05).submit(asyncio.sleep, 30)
            with pytest.raises(WorkerDied, match="options_targets:die"):
                await pool.submit(targets.die)

    asyncio.run(main())


def test_a_function_that_has_to_be_sent_again_by_value_keeps_its_name() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            function = _hidden_in_a_module_that_workers_lack()
            assert await pool.options(name="x", in_thread=True).submit(function) == "polyloop-task"
            assert await pool.options(name="x", in_thread=True).map(function, []) == []

    asyncio.run(main())


def _hidden_in_a_module_that_workers_lack() -> Any:
    import types

    module = types.ModuleType("only_here")
    exec(
        "def name():\n    import threading\n    return threading.current_thread().name.rpartition('_')[0]", vars(module)
    )
    module.name.__module__ = "only_here"
    sys.modules["only_here"] = module
    return module.name


# -------------------------------------------------------------------------------------------------------------- threads


@LOOPS
def test_a_function_runs_on_a_thread_of_its_worker(start_method: str, loop_initializer: Any) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            worker = await pool.submit(targets.pid)
            view = pool.options(in_thread=True)
            assert await view.submit(targets.thread_and_pid) == (False, worker)
            assert await view.map(targets.thread_and_pid, range(3)) == [(False, worker)] * 3
            assert await pool.submit(targets.thread_and_pid) == (True, worker)
            assert await view.submit(targets.add, 1, y=2) == 3
            assert await view.submit(targets.pid) == worker  # a coroutine, on the loop
            assert await view.submit(targets.returns_awaitable, 3) == 3

    asyncio.run(main())


def test_the_loop_goes_on_beside_threads_and_there_are_as_many_as_tasks(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=5) as pool:
            calls = [pool.options(in_thread=True).submit(targets.meet, n, bell.path, gate.path) for n in range(4)]
            assert {await bell.hear() for _ in calls} == {"0", "1", "2", "3"}
            assert await pool.submit(targets.add, 1) == 1
            gate.open(len(calls))
            assert len(set(await asyncio.gather(*calls))) == 4

    asyncio.run(main())


def test_a_function_on_a_thread_fails_as_any_other() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            view = pool.options(in_thread=True)
            worker = await pool.submit(targets.pid)
            with pytest.raises(LookupError, match="in a thread") as caught:
                await view.submit(targets.fail)
            remote = str(caught.value.__cause__)
            assert "in fail" in remote
            assert "polyloop/" not in remote
            with pytest.raises(SystemExit) as left:
                await view.submit(targets.leave, 3)
            assert left.value.code == 3
            with pytest.raises(RuntimeError, match="raised StopIteration"):
                await view.submit(targets.stop_iteration)
            assert await pool.submit(targets.pid) == worker

    asyncio.run(main())


def test_what_a_function_sets_in_its_context_stays_its_own() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            view = pool.options(in_thread=True)
            assert [await view.submit(targets.set_request, "mine") for _ in range(3)] == ["none"] * 3

    asyncio.run(main())


@LOOPS
def test_a_function_that_computes_on_a_thread_ends_in_time_and_its_worker_lives(
    loop_initializer: Any, bell: Bell
) -> None:
    async def main() -> None:
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            worker = await pool.submit(targets.pid)
            with pytest.raises(TaskTimeout, match="compute_for_ever ran longer than"):
                await pool.options(in_thread=True, timeout=0.1).submit(targets.compute_for_ever, bell.path)
            handle = pool.options(in_thread=True).submit(targets.compute_for_ever, bell.path)
            assert [await bell.hear(), await bell.hear()] == ["started", "started"]
            handle.cancel()
            await asyncio.wait([handle])
            assert handle.cancelled()
            anyway = pool.options(in_thread=True).submit(targets.answer_when_interrupted, bell.path)
            await bell.hear()
            anyway.cancel()
            assert await anyway == "anyway"
            # Nobody who has the thread next is hit by what was meant for those.
            assert await pool.options(in_thread=True).map(targets.add, range(100)) == list(range(100))
            assert await pool.submit(targets.pid) == worker

    asyncio.run(main())


def test_a_thread_that_can_not_be_interrupted_is_given_up_with_its_worker(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.2) as pool:
            first = await pool.submit(targets.pid)
            with pytest.raises(TaskTimeout):
                await pool.options(in_thread=True, timeout=0.1).submit(targets.sleep_in_spite_of_all)
            second = await pool.submit(targets.pid)
            handle = pool.options(in_thread=True).submit(targets.sleep_in_spite_of_all, bell.path)
            assert await bell.hear() == "started"
            handle.cancel()
            await asyncio.wait([handle])
            assert handle.cancelled()
            third = second
            while third == second:  # it has the grace once more
                try:
                    third = await pool.submit(targets.pid)
                except WorkerDied:  # it was among its last
                    pass
            assert len({first, second, third}) == 3

    asyncio.run(main())


def test_a_pool_ends_while_threads_block(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.2) as pool:
            handle = pool.options(in_thread=True).submit(targets.sleep_in_spite_of_all, bell.path)
            await bell.hear()
        assert handle.exception() is not None

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_a_function_forks_on_its_thread_does_not_take_part() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            view = pool.options(in_thread=True)
            assert await view.submit(targets.fork_and_return) > 0
            assert await view.submit(targets.add, 1) == 1

    asyncio.run(main())
