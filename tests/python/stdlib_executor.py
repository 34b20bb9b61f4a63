"""Runs CPython's own tests of ProcessPoolExecutor on polyloop's. A program: `stdlib_executor.py METHOD [strict]`.

The class is put in the standard one's place before `test.test_concurrent_futures` is imported; what these tests look at
inside it is shown to them here. Those that can't apply are in NOT_OURS, each with the reason.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import unittest
from collections.abc import Iterator
from concurrent import futures
from typing import Any

from polyloop import ProcessPoolExecutor

# The waits are of `concurrent.futures`, and sleep for seconds: once is enough. A spawned worker is slow to start.
PARTS = {
    "fork": ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait"),
    "forkserver": ("deadlock", "init", "process_pool", "shutdown"),
    "spawn": ("init", "process_pool", "shutdown"),
    "healing": ("deadlock", "process_pool", "shutdown"),
}
SLEEP_LONG = {"test_map_timeout": "sleeps for 6 seconds", "test_first_exception": "sleeps for 3 seconds"}

ALL_START_TOGETHER = "all workers start at the first call"
NO_WORKER_IS_LOST = "the call gets that error, and no worker is lost"
NOT_OURS = {
    "test_hang_gh83386": "the standard one hangs, so the test skips itself (test_executor.py has it)",
    "test_max_workers_too_large": "of Windows",
    "test_interpreter_shutdown": "a program that imports the standard one (test_executor.py has it)",
    "test_submit_after_interpreter_shutdown": "a program that imports the standard one (test_executor.py has it)",
    # its inside, taken apart
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces the standard one's thread and pipe",
    "test_python_finalization_error": "counts the threads that the standard one starts",
    "test_traceback": "the cause is a class of ours (test_errors.py has its text)",
    "test_max_tasks_per_child_defaults_to_spawn_context": "max_tasks_per_child works with fork",
    "ProcessPoolForkProcessPoolExecutorTest.test_max_tasks_per_child": "as above: it expects a refusal",
    # when workers start
    "test_idle_process_reuse_one": ALL_START_TOGETHER,
    "test_idle_process_reuse_multiple": ALL_START_TOGETHER,
    "ProcessPoolForkserverProcessPoolShutdownTest.test_processes_terminate": ALL_START_TOGETHER,
    "ProcessPoolSpawnProcessPoolShutdownTest.test_processes_terminate": ALL_START_TOGETHER,
    # what can't be read or written
    "test_error_at_task_unpickle": NO_WORKER_IS_LOST,
    "test_exit_at_task_unpickle": NO_WORKER_IS_LOST,
    "test_error_during_result_unpickle_in_result_handler": NO_WORKER_IS_LOST,
    "test_exit_during_result_unpickle_in_result_handler": NO_WORKER_IS_LOST,
    "test_error_during_result_pickle_on_worker": "a RemoteError says it",
    "test_exit_during_result_pickle_on_worker": "a RemoteError says it",
    "FailingInitializerTest.test_initializer": "the error's cause says it; the standard one logs it in the worker",
}
NOT_UNLESS_STRICT = {
    "test_killed_child": "the dead worker is replaced",
}


class Shown:
    """A worker process as these tests take it in hand."""

    def __init__(self, worker: Any) -> None:
        self.pid, self.terminate, self._worker = worker.pid, worker.terminate, worker

    def join(self) -> None:
        while self._worker.is_alive():
            time.sleep(0.01)


class CallQueue:
    def join_thread(self) -> None:
        """There is none."""


class Substitute(ProcessPoolExecutor):
    """Ours, with those of the standard one's attributes that its tests look at."""

    strict = False
    _call_queue = CallQueue()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options, strict=self.strict)

    @property
    def _processes(self) -> dict[int, Shown]:
        """All of them, when all were started."""
        pool: Any = self._bridge_for_submit()._verbs
        while len(workers := list(pool.processes)) < pool.process_count or any(w.pid is None for w in workers):
            time.sleep(0.01)
        return {worker.pid: Shown(worker) for worker in workers}

    @property
    def _executor_manager_thread(self) -> Any:
        return self._stage and self._stage._thread

    @property
    def _broken(self) -> Any:
        return self._stage and self._stage.bridge.over


Substitute.__name__ = "ProcessPoolExecutor"


def left_out(method: str, strict: bool) -> tuple[str, ...]:
    thorough = strict and method == "fork"
    return (*NOT_OURS, *({} if strict else NOT_UNLESS_STRICT), *({} if thorough else SLEEP_LONG))


def chosen(method: str, parts: tuple[str, ...], left_out: tuple[str, ...]) -> Iterator[unittest.TestCase]:
    for part in parts:
        module = importlib.import_module(f"test.test_concurrent_futures.test_{part}")
        for case in vars(module).values():
            if isinstance(case, type) and issubclass(case, unittest.TestCase) and getattr(case, "ctx", None) == method:
                for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
                    if not test.id().endswith(left_out):
                        yield test  # type: ignore[misc]


def main(method: str, strict: str = "") -> int:
    futures.ProcessPoolExecutor = futures.process.ProcessPoolExecutor = Substitute  # type: ignore[misc]
    Substitute.strict = bool(strict)
    suite = unittest.TestSuite(chosen(method, PARTS[method if strict else "healing"], left_out(method, bool(strict))))
    result = unittest.TextTestRunner(verbosity=2, durations=5).run(suite)
    sys.stdout.write(f"\n{result.testsRun - len(result.skipped)} run\n")
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    if code:
        os._exit(code)  # what a failed test has left behind may not end by itself
