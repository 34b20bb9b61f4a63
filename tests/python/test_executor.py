"""`ProcessPoolExecutor`, and the executor of a running pool: the standard interface, and what is ours about it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import executor_targets as targets
from polyloop import PoisonTask, Pool, ProcessPoolExecutor, WorkerDied, WorkerStartError
from rendezvous import Bell, Gate

pytestmark = pytest.mark.timeout(60)


def hear(bell: Bell) -> str:
    return asyncio.run(bell.hear())


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as executor:
        yield executor


def test_submitted_calls_give_their_results(start_method: str) -> None:
    with ProcessPoolExecutor(2) as executor:
        assert executor.submit(targets.add, 1, 2, c=4).result() == 7
        assert executor.submit(targets.increment, 1).result() == 2
        assert executor.submit(lambda: "lambda").result() == "lambda"
        with pytest.raises(LookupError, match="no luck") as caught:
            executor.submit(targets.fail, "no luck").result()
        assert "targets.py" in str(caught.value.__cause__)
        with pytest.raises(SystemExit, match="3"):
            executor.submit(targets.leave).result()
        with pytest.raises(TypeError, match="lock"):
            executor.submit(targets.add, threading.Lock(), 1).result()
        assert executor.submit(targets.add, 1, 1).result() == 2


def test_arguments_may_be_called_as_the_parameters_of_submit(executor: ProcessPoolExecutor) -> None:
    def echo(**kwargs: int) -> dict[str, int]:
        return kwargs

    assert executor.submit(echo, fn=1, self=2).result() == {"fn": 1, "self": 2}


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_gives_results_in_order(executor: ProcessPoolExecutor, chunksize: int) -> None:
    assert list(executor.map(targets.add, range(10), range(20), chunksize=chunksize)) == list(range(0, 20, 2))
    assert list(executor.map(targets.increment, range(10), chunksize=chunksize)) == list(range(1, 11))
    results = executor.map(lambda n: 1 // n, [1, 0, 1], chunksize=chunksize)
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_map_refuses_a_chunk_of_nothing(executor: ProcessPoolExecutor) -> None:
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(targets.add, [1], [1], chunksize=0)


def test_map_ends_at_its_timeout(bell: Bell, gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        results = executor.map(targets.stop_at, [bell.path], [gate.path], timeout=0.05)
        hear(bell)
        with pytest.raises(TimeoutError):
            next(results)
        gate.open()


def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_can_not(bell: Bell, gate: Gate) -> None:
    with ProcessPoolExecutor(1) as executor:
        running = executor.submit(targets.stop_at, bell.path, gate.path)
        hear(bell)
        waiting = [executor.submit(targets.stop_at, bell.path, gate.path) for _ in range(5)]
        assert running.running()
        assert not running.cancel()
        assert waiting[-1].cancel()
        assert waiting[-1].cancelled()
        gate.open(10)
        assert [type(call.result()) for call in waiting[:-1]] == [int] * 4
    assert bell.heard() == [str(running.result())] * 4


def test_calls_from_many_threads_meet_in_one_pool(executor: ProcessPoolExecutor) -> None:
    results: list[int] = []

    def call(n: int) -> None:
        results.extend(executor.submit(targets.add, n, k).result() for k in range(50))

    threads = [threading.Thread(target=call, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(1000 * n + k for n in range(8) for k in range(50))


def test_it_serves_asyncio_and_the_standard_waits(executor: ProcessPoolExecutor) -> None:
    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(executor, targets.add, 1, 2)

    assert asyncio.run(main()) == 3
    futures = [executor.submit(targets.add, n, 0) for n in range(10)]
    assert sorted(future.result() for future in concurrent.futures.as_completed(futures)) == list(range(10))
    done, not_done = concurrent.futures.wait([executor.submit(targets.add, 1, 1)])
    assert (len(done), len(not_done)) == (1, 0)


# --------------------------------------------------------------------------------------------------------------- deaths


def test_a_death_fails_its_call_and_no_other(start_method: str, bell: Bell, gate: Gate) -> None:
    with ProcessPoolExecutor(2) as executor:
        neighbour = executor.submit(targets.stop_at, bell.path, gate.path)
        hear(bell)
        dead = executor.submit(targets.kill_self)
        with pytest.raises(BrokenProcessPool, match="SIGKILL") as caught:
            dead.result()
        assert isinstance(caught.value, WorkerDied)
        assert caught.value.signal == "SIGKILL"
        gate.open()
        assert neighbour.result() > 0
        assert executor.submit(targets.add, 1, 2).result() == 3


def test_what_says_that_a_worker_was_lost_can_be_pickled() -> None:
    with ProcessPoolExecutor(1) as executor:
        error = executor.submit(targets.kill_self).exception()
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert isinstance(copy, WorkerDied)
    assert not isinstance(copy, PoisonTask)
    assert (copy.pid, str(copy)) == (error.pid, str(error))  # type: ignore[union-attr]


def test_a_strict_executor_breaks_at_the_first_death(bell: Bell, gate: Gate) -> None:
    with ProcessPoolExecutor(2, strict=True) as executor:
        neighbour = executor.submit(targets.stop_at, bell.path, gate.path)
        hear(bell)
        calls = [executor.submit(targets.add, 1, n) for n in range(20)]
        calls.append(executor.submit(targets.kill_self))
        assert isinstance(neighbour.exception(), BrokenProcessPool)
        assert [call.result() for call in calls[:-1]] == list(range(1, 21))
        assert isinstance(calls[-1].exception(), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool):
            executor.submit(targets.add, 1, 2)


def test_a_strict_executor_breaks_also_when_an_idle_worker_dies() -> None:
    with ProcessPoolExecutor(1, strict=True) as executor:
        os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            while True:
                executor.submit(targets.add, 1, 2).result()


def test_a_strict_executor_breaks_also_when_a_worker_dies_before_it_is_ready(gate: Gate) -> None:
    with ProcessPoolExecutor(
        2, initializer=targets.die_but_for_the_first, initargs=(gate.path,), strict=True
    ) as executor:
        gate.open()
        with pytest.raises(BrokenProcessPool) as caught:
            while True:
                executor.submit(targets.add, 1, 2).result()
        assert "SIGKILL" in str(caught.value) or "signal 9" in str(caught.value)


def test_what_pickle_refuses_is_a_pickling_error_too(executor: ProcessPoolExecutor) -> None:
    with pytest.raises(pickle.PicklingError, match="cannot send") as caught:
        executor.submit(targets.add, targets.Unpicklable(), 1).result()
    assert isinstance(caught.value, TypeError)
    assert executor.submit(targets.add, 1, 2).result() == 3


def test_workers_that_cannot_start_break_it(start_method: str) -> None:
    with ProcessPoolExecutor(2, initializer=targets.fail_to_start) as executor:
        call = executor.submit(targets.add, 1, 2)
        with pytest.raises(BrokenProcessPool, match="no luck") as caught:
            call.result()
        assert isinstance(caught.value, WorkerStartError)
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(BrokenProcessPool, match="no luck"):
            executor.submit(targets.add, 1, 2)


# ----------------------------------------------------------------------------------------------------------------- ends


def test_shutdown_finishes_what_was_taken() -> None:
    executor = ProcessPoolExecutor(2)
    calls = [executor.submit(targets.add, n, 0) for n in range(100)]
    executor.shutdown()
    assert [call.result(0) for call in calls] == list(range(100))
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(targets.add, 1, 2)
    assert executor_threads() == []


def test_shutdown_need_not_wait() -> None:
    executor = ProcessPoolExecutor(1)
    call = executor.submit(targets.add, 1, 2)
    executor.shutdown(wait=False)
    assert call.result() == 3


def test_shutdown_cancels_what_waits_where_that_is_asked_for(bell: Bell, gate: Gate) -> None:
    executor = ProcessPoolExecutor(1)
    calls = [executor.submit(targets.stop_at, bell.path, gate.path) for _ in range(6)]
    hear(bell)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open(6)
    executor.shutdown()
    assert [call.cancelled() for call in calls] == [False] * 2 + [True] * 4
    with pytest.raises(CancelledError):
        calls[-1].result()


def test_one_that_was_never_used_ends_at_once() -> None:
    with ProcessPoolExecutor(2):
        assert executor_threads() == []


def test_one_that_nobody_has_any_more_finishes_what_it_was_given_and_ends() -> None:
    executor = ProcessPoolExecutor(1)
    call, gone = executor.submit(targets.add, 1, 2), weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert call.result() == 3
    for thread in executor_threads():
        thread.join()


def test_it_keeps_no_reference_to_what_has_ended(executor: ProcessPoolExecutor) -> None:
    big = targets.Big()
    gone = weakref.ref(big)
    call: Future[Any] | None = executor.submit(big.same)
    assert call is not None
    result = weakref.ref(call.result())
    del big, call
    executor.submit(targets.add, 1, 2).result()
    deadline = time.monotonic() + 20
    while (gone() is not None or result() is not None) and time.monotonic() < deadline:
        gc.collect()
    assert (gone(), result()) == (None, None)


def executor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "polyloop-executor"]


PROGRAM = """
import time
from polyloop import ProcessPoolExecutor

def say(text):
    time.sleep(0.05)
    print(text, flush=True)

if __name__ == "__main__":
    executor = ProcessPoolExecutor(1)
    calls = [executor.submit(say, n) for n in range(5)]
    {end}
"""


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("raise SystemExit(3)", 3), ("calls[0].result()", 0)])
def test_a_program_that_ends_finishes_what_it_has_submitted(tmp_path: Path, end: str, code: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(end=end))
    ran = subprocess.run([sys.executable, str(program)], check=False, capture_output=True, text=True, timeout=50)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("".join(f"{n}\n" for n in range(5)), "", code)


LATE_PROGRAM = """
import atexit

def submit_late():
    for executor in executors:
        try:
            executor.submit(int)
        except RuntimeError as error:
            print(error)

if __name__ == "__main__":  # before polyloop registers its own
    atexit.register(submit_late)

from polyloop import ProcessPoolExecutor

if __name__ == "__main__":
    executors = [ProcessPoolExecutor(1) for _ in range(2)]
    print(*(executor.submit(int, "42").result() for executor in executors[:{used}]))
"""


@pytest.mark.parametrize("used", [0, 1])
def test_a_call_after_the_end_of_the_program_is_refused(tmp_path: Path, used: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(LATE_PROGRAM.format(used=used))
    ran = subprocess.run([sys.executable, str(program)], check=False, capture_output=True, text=True, timeout=50)
    refused = "cannot schedule new futures after interpreter shutdown\n"
    assert (ran.stdout, ran.stderr) == ("42\n" * used + "\n" * (1 - used) + 2 * refused, "")


def test_a_forked_child_is_told_to_make_one_of_its_own(executor: ProcessPoolExecutor) -> None:
    executor.submit(targets.add, 1, 2).result()
    told, tell = os.pipe()
    if not (pid := os.fork()):
        try:
            executor.submit(targets.add, 1, 2)
        except RuntimeError as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert b"make another here" in os.read(told, 1000)
    os.close(told)
    os.close(tell)
    assert executor.submit(targets.add, 1, 2).result() == 3


# ----------------------------------------------------------------------------------------------------------- arguments


def test_impossible_arguments_are_refused() -> None:
    for arguments, error in [
        ({"max_workers": 0}, ValueError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"initializer": 1}, TypeError),
    ]:
        with pytest.raises(error):
            ProcessPoolExecutor(**arguments)


def test_a_worker_is_replaced_after_its_last_call() -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
    assert len(set(pids)) == 3


# ------------------------------------------------------------------------------------------------------ pool.executor()


def on_pool(test: Callable[[Pool, Executor], Any]) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            result = test(pool, pool.executor())
            if asyncio.iscoroutine(result):
                await result

    asyncio.run(main())


def test_the_executor_of_a_pool_serves_its_loop_and_threads() -> None:
    async def use(pool: Pool, executor: Executor) -> None:
        assert await asyncio.get_running_loop().run_in_executor(executor, targets.add, 1, 2) == 3
        assert await asyncio.to_thread(lambda: list(executor.map(targets.add, [1, 2], [3, 4]))) == [4, 6]
        assert await asyncio.wrap_future(executor.submit(targets.increment, 1)) == 2
        await asyncio.to_thread(executor.shutdown)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(targets.add, 1, 2)
        assert await pool.apply(targets.add, (1, 2)) == 3

    on_pool(use)


def test_waiting_for_its_futures_on_the_loops_thread_is_refused() -> None:
    async def use(_pool: Pool, executor: Executor) -> None:
        future = executor.submit(targets.add, 1, 2)
        for wait in (future.result, future.exception):
            with pytest.raises(RuntimeError, match="wrap_future"):
                wait()
        with pytest.raises(RuntimeError, match="wait=False"):
            executor.shutdown()
        assert await asyncio.wrap_future(future) == 3
        assert future.result() == 3
        executor.shutdown()

    on_pool(use)


def test_calls_of_a_pool_that_is_closed_fail() -> None:
    async def use(pool: Pool, executor: Executor) -> None:
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wrap_future(executor.submit(targets.add, 1, 2))

    on_pool(use)
