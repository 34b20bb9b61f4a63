"""An item's task is a plain `asyncio.Task`: each scenario in one at home and on a worker, every level, both loops."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import task_scenarios_awaits
import task_scenarios_cancel
import task_scenarios_errors
import task_scenarios_groups
import task_scenarios_identity
import task_scenarios_introspection
import task_scenarios_libraries
import task_scenarios_loop
import task_scenarios_time
from conftest import LOOPS
from polyloop import Pool, context
from task_scenarios import SCENARIOS, Scenario, describe, forget, level, settle

pytestmark = pytest.mark.timeout(60)

NewLoop = Callable[[], asyncio.AbstractEventLoop]
Initializer = Callable[[], None]
Run = Callable[[Scenario], Any]

LEVELS = ("plain", "eager", "lazy")
MODULES = (
    task_scenarios_awaits,
    task_scenarios_cancel,
    task_scenarios_errors,
    task_scenarios_groups,
    task_scenarios_identity,
    task_scenarios_introspection,
    task_scenarios_libraries,
    task_scenarios_loop,
    task_scenarios_time,
)

# What runs also where the loop wants to see each task made: in debug mode, and with a task factory.
ON_WATCHFUL_LOOPS = (
    "current_task_stays_the_same",
    "current_task_without_suspension",
    "neighbours_have_tasks_of_their_own",
    "name_set_in_the_first_step",
    "done_callback_is_called_without_suspension",
    "get_coro_is_the_coroutine_that_runs",
    "get_coro_of_a_task_that_ended_at_once",
    "all_tasks_has_the_own_in_the_first_step",
    "stored_task_that_never_suspended_is_awaited_by_a_later_item",
    "exception_raised_at_once",
    "exception_raised_later",
    "self_cancel_in_the_first_step_then_await",
    "context_is_not_shared_with_later_items",
    "timeout_expires",
    "task_group_with_a_child_that_fails",
    "first_step_is_on_the_stack_of_the_loop",
    "task_factory_makes_the_task",
)


# ------------------------------------------------------------------------------------------------------------- at home


def start_plainly(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
    """What a worker has to equal."""
    return loop.create_task(coroutine)


class Home:
    """Runs scenarios in plain tasks on a loop of its own. No task drives it, as none drives a worker."""

    def __init__(self, new_loop: NewLoop, initializer: Initializer | None = None) -> None:
        self.loop = new_loop()
        asyncio.set_event_loop(self.loop)
        if initializer is not None:
            initializer()

    def run(self, scenario: Scenario) -> Any:
        record = self.at_once(scenario.run, scenario.calls())
        self.at_once(settle)
        then = self.at_once(scenario.then) if scenario.then is not None else None
        return record, then, self.at_once(forget)

    def at_once(self, step: Any, calls: Any = ((),)) -> list[Any]:
        tasks = [start_plainly(self.loop, step(*call)) for call in calls]
        for task in tasks:
            task.add_done_callback(lambda _: all(task.done() for task in tasks) and self.loop.stop())
        while not all(task.done() for task in tasks):
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # also the task's
        return [outcome(task) for task in tasks]

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        self.loop.close()


def outcome(task: asyncio.Future[Any]) -> Any:
    """How a task ended."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return ("raised", describe(error)) if error is not None else ("returned", task.result())


# --------------------------------------------------------------------------------------------------------- on a worker


async def outcome_of_item(pool: Pool, step: Any, *call: Any) -> Any:
    try:
        # By value, so that the worker sees a function of which it does not know yet whether it suspends.
        return "returned", await pool.apply(functools.partial(step, *call))
    except asyncio.CancelledError:
        return "cancelled"
    except BaseException as error:
        return "raised", describe(error)


async def run_on(pool: Pool, scenario: Scenario) -> Any:
    record = await asyncio.gather(*(outcome_of_item(pool, scenario.run, *call) for call in scenario.calls()))
    await pool.apply(settle)
    then = [await outcome_of_item(pool, scenario.then)] if scenario.then is not None else None
    return record, then, [("returned", await pool.apply(forget))]


class Worker:
    """Runs scenarios on the one worker of a pool, at one level."""

    def __init__(self, wanted: str, loop: str, initializer: Initializer | None = None) -> None:
        self.level, self.loop = wanted, loop
        self.runner = asyncio.Runner(loop_factory=LOOPS[loop])
        self.pool = self.runner.run(self.start(initializer))

    async def start(self, initializer: Initializer | None) -> Pool:
        pool = Pool(1, initializer, loop_initializer=LOOPS[self.loop] if self.loop == "uvloop" else None)
        assert await pool.apply(os.environ.get, ("POLYLOOP_TASKS",)) == self.level
        return pool

    def run(self, scenario: Scenario) -> Any:
        return self.runner.run(run_on(self.pool, scenario))

    def close(self) -> None:
        async def end() -> None:
            self.pool.close()
            await self.pool.join()

        with self.runner:
            self.runner.run(end())


@pytest.fixture(scope="module", autouse=True)
def _forkserver() -> Iterator[None]:
    before = context.get_context().get_start_method()
    context.set_start_method("forkserver")
    yield
    context.set_start_method(before)


def home_and_its_worker(
    wanted: str, loop: str, initializer: Initializer | None = None
) -> Iterator[tuple[Home, Worker]]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("POLYLOOP_TASKS", wanted)
        worker = Worker(wanted, loop, initializer)
        home = Home(LOOPS[loop], initializer)
        yield home, worker
        home.close()
        worker.close()


@pytest.fixture(
    scope="module",
    params=[(level, loop) for loop in LOOPS for level in LEVELS],
    ids=[f"{level}-{loop}" for loop in LOOPS for level in LEVELS],
)
def home_and_worker(request: pytest.FixtureRequest) -> Iterator[tuple[Home, Worker]]:
    yield from home_and_its_worker(*request.param)


def set_debug() -> None:
    asyncio.get_event_loop_policy().get_event_loop().set_debug(True)


@pytest.fixture(
    scope="module",
    params=[set_debug, task_scenarios_loop.set_task_factory],
    ids=["debug", "factory"],
)
def watchful_home_and_worker(request: pytest.FixtureRequest) -> Iterator[tuple[Home, Worker]]:
    yield from home_and_its_worker("lazy", "asyncio", request.param)


# --------------------------------------------------------------------------------------------------------------- tests


def test_items_are_started_at_the_level_asked_for(home_and_worker: tuple[Home, Worker]) -> None:
    _, worker = home_and_worker
    assert worker.runner.run(outcome_of_item(worker.pool, level)) == ("returned", worker.level)


def test_watchful_loops_make_every_task_themselves(watchful_home_and_worker: tuple[Home, Worker]) -> None:
    _, worker = watchful_home_and_worker
    assert worker.runner.run(outcome_of_item(worker.pool, level)) == ("returned", "plain")


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_item_sees_what_a_plain_task_sees(home_and_worker: tuple[Home, Worker], name: str) -> None:
    home, worker = home_and_worker
    scenario = SCENARIOS[name]
    if scenario.eager_differs and worker.level == "eager" and sys.version_info >= (3, 12):
        pytest.skip(scenario.eager_differs)
    truth = home.run(scenario)
    assert truth[-1] == [("returned", [])], "the scenario leaves tasks behind"
    if scenario.lazy_differs and worker.level == "lazy":
        assert worker.run(scenario) != truth, "it differs no more: take the mark away"
        pytest.xfail(scenario.lazy_differs)
    assert worker.run(scenario) == truth


@pytest.mark.parametrize("name", ON_WATCHFUL_LOOPS)
def test_so_does_it_on_a_loop_that_watches_its_tasks(watchful_home_and_worker: tuple[Home, Worker], name: str) -> None:
    home, worker = watchful_home_and_worker
    assert worker.run(SCENARIOS[name]) == home.run(SCENARIOS[name])
