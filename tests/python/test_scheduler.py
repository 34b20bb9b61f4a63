"""Schedulers: which queue comes next."""

from __future__ import annotations

import pytest

from polyloop.scheduler import RoundRobin, Scheduler, TaskID


def turns(scheduler: Scheduler, count: int) -> list[int]:
    return [scheduler.schedule_task(TaskID(n), print, (), {}) for n in range(count)]


def test_queues_get_ids_from_zero() -> None:
    scheduler = RoundRobin()
    assert [scheduler.register_queue(None) for _ in range(3)] == [0, 1, 2]


def test_tasks_go_to_the_queues_in_turn() -> None:
    scheduler = RoundRobin()
    for _ in range(3):
        scheduler.register_process(scheduler.register_queue(None))
    assert turns(scheduler, 6) == [0, 1, 2, 0, 1, 2]


def test_a_queue_with_two_processes_gets_two_turns() -> None:
    scheduler = RoundRobin()
    first, second = scheduler.register_queue(None), scheduler.register_queue(None)
    for qid in (first, second, first):
        scheduler.register_process(qid)
    assert turns(scheduler, 6) == [0, 1, 0, 0, 1, 0]


def test_a_completed_task_does_not_change_the_turns() -> None:
    scheduler = RoundRobin()
    for _ in range(2):
        scheduler.register_process(scheduler.register_queue(None))
    assert turns(scheduler, 1) == [0]
    scheduler.complete_task(TaskID(0))
    assert turns(scheduler, 1) == [1]


def test_without_processes_there_is_a_clear_refusal() -> None:
    with pytest.raises(RuntimeError, match="no process was registered"):
        turns(RoundRobin(), 1)


def test_the_interface_cannot_be_used_bare() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Scheduler()  # type: ignore[abstract]
