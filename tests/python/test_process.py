"""`Process` and `Worker` over every start method and both loops; and whole programs, seen from outside."""

from __future__ import annotations

import asyncio
import functools
import gc
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import process_targets as targets
from polyloop.context import get_context
from polyloop.errors import RemoteError, WorkerDied
from polyloop.process import Process, Worker

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)


def open_fds() -> int:
    multiprocessing.active_children()  # collects what earlier tests left
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------------------------------------- under all start methods


def test_a_worker_returns_what_its_coroutine_returned(start_method: str, run: Run) -> None:
    async def main() -> None:
        worker = Worker(target=targets.add, args=(1,), kwargs={"y": 2}, name="adder")
        assert await worker == 3
        assert worker.name == "adder"
        assert (worker.result, worker.exitcode, worker.is_alive()) == (3, 0, False)
        assert await worker == 3
        other = Worker(target=targets.pid)
        other.start()
        assert await other.join() == other.pid != os.getpid()

    run(main())


def test_a_worker_raises_what_its_coroutine_raised(start_method: str, run: Run) -> None:
    async def main() -> None:
        worker = Worker(target=targets.fail)
        with pytest.raises(targets.Failure, match=r"^ab$") as caught:
            await worker
        assert caught.value.b == "b"
        assert repr(caught.value.__cause__) == "KeyError('cause')"
        remote = str(caught.value.__cause__.__cause__)  # type: ignore[union-attr]
        assert "process_targets.py" in remote
        assert "polyloop/process.py" not in remote
        assert "polyloop/_launch.py" not in remote
        assert worker.exitcode == 1
        with pytest.raises(targets.Failure):
            _ = worker.result

    run(main())


@pytest.mark.parametrize(
    ("target", "args", "exitcode", "signame"),
    [(targets.leave, (3,), 3, None), (targets.leave, (0,), 0, None), (targets.kill_itself, (), -9, "SIGKILL")],
)
def test_a_worker_that_ends_without_an_outcome_raises_worker_died(
    start_method: str, target: Any, args: Any, exitcode: int, signame: str | None
) -> None:
    async def main() -> None:
        worker = Worker(target=target, args=args)
        with pytest.raises(WorkerDied) as caught:
            await worker
        error = caught.value
        assert (error.pid, error.exitcode, error.signal) == (worker.pid, exitcode, signame)
        assert error.task == target.__qualname__

    asyncio.run(main())


def test_a_killed_worker_raises_worker_died_in_every_joiner(start_method: str, run: Run) -> None:
    async def main() -> None:
        worker = Worker(target=targets.for_ever)
        worker.start()
        joiners = [asyncio.ensure_future(worker.join()) for _ in range(3)]
        await asyncio.sleep(0)
        assert worker.is_alive()
        worker.kill()
        ends = await asyncio.gather(*joiners, return_exceptions=True)
        assert [type(end) for end in ends] == [WorkerDied] * 3

    run(main())


def test_sys_exit_in_a_worker_is_its_own_exception_and_exit_code(start_method: str) -> None:
    async def main() -> None:
        worker = Worker(target=targets.system_exit, args=(4,))
        worker.start()
        await Process.join(worker)
        assert worker.exitcode == 4
        with pytest.raises(SystemExit) as caught:
            _ = worker.result
        assert caught.value.code == 4

    asyncio.run(main())


def test_a_result_of_100_mb_comes_back(start_method: str, run: Run) -> None:
    size = 100_000_000
    assert len(run(_await(Worker(target=targets.big, args=(size,))))) == size


def test_a_large_argument_gets_there(start_method: str) -> None:
    data = b"x" * 5_000_000
    assert asyncio.run(_await(Worker(target=targets.length, args=(data,)))) == len(data)


def test_a_result_that_cannot_be_pickled_is_a_remote_error(start_method: str) -> None:
    with pytest.raises(RemoteError, match=r"cannot pickle '_thread\.lock' object") as caught:
        asyncio.run(_await(Worker(target=targets.unpicklable)))
    assert caught.value.type_name == "_thread.lock"


def test_closures_partials_methods_and_instances_are_targets(start_method: str) -> None:
    n = 3

    async def closure(x: int) -> int:
        return x + n

    async def main() -> None:
        callables = [closure, functools.partial(targets.add, y=3), targets.Target(3).add, targets.Target(3)]
        workers = [Worker(target=target, args=(1,)) for target in callables]
        assert await asyncio.gather(*workers) == [4] * 4  # type: ignore[call-overload]

    asyncio.run(main())


def test_initializers_run_first_on_the_loop_asked_for(start_method: str) -> None:
    async def main() -> None:
        assert await Worker(target=targets.seen, initializer=targets.remember, initargs=(1, 2)) == [1, 2]
        worker = Worker(target=targets.loop_type, loop_initializer=uvloop.new_event_loop)
        assert (await worker).startswith("uvloop")

    asyncio.run(main())


def test_queues_of_multiprocessing_may_be_arguments(start_method: str) -> None:
    queue = get_context().Queue()
    process = Process(target=targets.put, args=(queue, "item"))
    asyncio.run(_await(process))
    assert process.exitcode == 0
    assert queue.get() == "item"
    queue.close()
    queue.join_thread()


def test_join_times_out_and_leaves_the_process_alone(start_method: str, run: Run) -> None:
    async def main() -> None:
        process = Process(target=targets.for_ever)
        process.start()
        with pytest.raises(TimeoutError):
            await process.join(timeout=0.01)
        assert process.is_alive()
        process.terminate()
        await process.join(timeout=50)
        assert process.exitcode == -signal.SIGTERM

    run(main())


def test_a_cancelled_join_leaves_others_waiting(start_method: str, run: Run) -> None:
    async def main() -> None:
        process = Process(target=targets.for_ever)
        process.start()
        first, second = asyncio.ensure_future(process.join()), asyncio.ensure_future(process.join())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        process.kill()
        await second
        assert process.exitcode == -signal.SIGKILL

    run(main())


def test_a_stopped_worker_does_not_hold_up_the_loop(start_method: str, run: Run) -> None:
    async def main() -> None:
        worker = Worker(target=targets.big, args=(50_000_000,))
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await worker.join(timeout=0.05)
        os.kill(worker.pid, signal.SIGCONT)
        assert len(await worker) == 50_000_000

    run(main())


def test_a_child_of_the_worker_that_lives_on_does_not_hold_up_join(start_method: str) -> None:
    async def main() -> None:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        worker = Worker(target=targets.fork_and_leave, args=(sender,))
        await worker
        os.kill(receiver.recv(), signal.SIGKILL)
        receiver.close()
        sender.close()

    asyncio.run(main())


def test_sigint_does_not_hurt_a_child_that_is_still_starting(start_method: str) -> None:
    async def main() -> None:
        worker = Worker(target=targets.add, args=(1,))
        worker.start()
        assert worker.pid is not None
        while worker.is_alive():  # from its first moment to its last
            os.kill(worker.pid, signal.SIGINT)
            await asyncio.sleep(0.001)
        assert await worker == 1

    asyncio.run(main())


def test_no_descriptor_is_left_behind(start_method: str) -> None:
    async def main() -> None:
        await Worker(target=targets.add, args=(1,))

    asyncio.run(main())  # starts what stays: the tracker, the forkserver, the starter
    before = open_fds()
    for _ in range(3):
        asyncio.run(main())
    assert open_fds() == before


def test_the_process_outlives_its_object(start_method: str) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    Process(target=targets.say_pid_and_wait, args=(sender,), daemon=True).start()
    gc.collect()
    child = os.pidfd_open(receiver.recv())
    assert select.select([child], [], [], 0)[0] == []
    signal.pidfd_send_signal(child, signal.SIGKILL)
    select.select([child], [], [])
    os.close(child)
    receiver.close()
    sender.close()
    multiprocessing.active_children()  # collects it


# ----------------------------------------------------------------------------------------------------- one start method


@pytest.fixture
def forkserver() -> None:
    assert get_context().get_start_method() == "forkserver"


@pytest.mark.usefixtures("forkserver")
class TestProcess:
    def test_the_end_is_asked_for_in_order(self) -> None:
        async def main() -> None:
            worker = Worker(target=targets.add, args=(1,))
            assert (worker.pid, worker.exitcode, worker.is_alive()) == (None, None, False)
            with pytest.raises(ValueError, match="must start process before joining it"):
                await worker.join()
            with pytest.raises(ValueError, match="coroutine not completed"):
                _ = worker.result
            worker.start()
            with pytest.raises(AssertionError, match="cannot start a process twice"):
                worker.start()
            await worker.join()
            worker.close()
            with pytest.raises(ValueError, match="closed"):
                _ = worker.exitcode

        asyncio.run(main())

    def test_closing_a_running_process_is_refused(self) -> None:
        async def main() -> None:
            process = Process(target=targets.for_ever)
            process.start()
            with pytest.raises(ValueError, match="still running"):
                process.close()
            process.kill()
            await process.join()

        asyncio.run(main())

    def test_only_coroutine_functions_are_targets_and_only_plain_ones_initializers(self) -> None:
        with pytest.raises(ValueError, match="target must be coroutine function"):
            Process(target=targets.remember)
        with pytest.raises(ValueError, match="initializer must be synchronous function"):
            Process(target=targets.pid, initializer=targets.pid)
        with pytest.raises(ValueError, match="loop_initializer must be synchronous function"):
            Process(target=targets.pid, loop_initializer=targets.pid)  # type: ignore[arg-type]

    def test_without_a_target_the_worker_raises_not_implemented(self) -> None:
        with pytest.raises(NotImplementedError):
            asyncio.run(_await(Worker()))

    def test_what_cannot_be_sent_raises_at_the_start_and_leaks_nothing(self) -> None:
        before = open_fds()
        worker = Worker(target=targets.length, args=(threading.Lock(),))
        with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
            worker.start()
        del worker
        assert open_fds() == before

    def test_daemon_can_be_chosen_until_the_start(self) -> None:
        assert Process().daemon is False
        process = Process(daemon=True)
        assert process.daemon is True
        process.daemon = False
        assert process.daemon is False

    def test_a_failing_initializer_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(_await(Worker(target=targets.pid, initializer=divmod, initargs=(1, 0))))

    def test_a_subclass_may_run_a_method_of_its_own(self) -> None:
        worker = SelfRunning(5)
        assert asyncio.run(_await(worker)) == (5, "own", worker.pid)

    def test_process_target_replaces_what_the_child_runs(self) -> None:
        assert asyncio.run(_await(Worker(target=targets.pid, args=(1, 2), process_target=unit_args))) == (1, 2)


class SelfRunning(Worker):
    def __init__(self, n: int) -> None:
        super().__init__(target=self.run, name="own")
        self.n = n

    async def run(self) -> Any:
        return self.n, self.name, self.pid


def unit_args(unit: Any) -> Any:
    return unit.args


def test_a_forked_child_does_not_act_on_its_parents_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyloop.context._context", multiprocessing.get_context("fork"))
    heard: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, heard.append, 1)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = Process(target=targets.say_pid_and_wait, args=(sender,))
        process.start()
        receiver.recv()
        process.terminate()
        await process.join()
        assert process.exitcode == -signal.SIGTERM
        assert heard == []
        receiver.close()
        sender.close()
        loop.remove_signal_handler(signal.SIGTERM)

    run(main())


# ------------------------------------------------------------------------------------------------------- whole programs

METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
PROGRAM = """
import asyncio, os, sys, time
from polyloop.context import set_start_method
from polyloop.process import Process, Worker
set_start_method({method!r})
async def work(x=0):
    return x + 1
async def for_ever(say=True):
    if say:
        print(os.getpid(), flush=True)
    time.sleep(1000)
async def big():
    return b"x" * 20_000_000
async def main(target=work, *args):
    return await Worker(target=target, args=args)
"""


def program(method: str, rest: str) -> str:
    return PROGRAM.format(method=method) + textwrap.dedent(rest)


def run_program(tmp_path: Path, method: str, rest: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(program(method, rest))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)


@METHODS
def test_when_the_parent_is_killed_the_child_dies(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(program(method, 'if __name__ == "__main__": asyncio.run(main(for_ever))'))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        select.select([child], [], [])
        os.close(child)


@METHODS
def test_ctrl_c_leaves_one_traceback_the_parents(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    rest = """
    async def main():
        await asyncio.gather(*[Worker(target=for_ever, daemon=True) for _ in range(2)])
    if __name__ == "__main__":
        asyncio.run(main())
    """
    script.write_text(program(method, rest))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        for _ in range(2):
            parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "polyloop-starter" not in errors
    assert errors.splitlines().count("KeyboardInterrupt") == 1
    assert "in for_ever" not in errors


@METHODS
def test_a_worker_nobody_waits_for_does_not_keep_the_program_from_ending(tmp_path: Path, method: str) -> None:
    done = run_program(tmp_path, method, 'if __name__ == "__main__": Worker(target=big).start()')
    assert (done.returncode, done.stderr) == (0, "")


@METHODS
@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_functions_of_main_run_however_the_program_was_started(tmp_path: Path, method: str, how: str) -> None:
    code = program(method, 'if __name__ == "__main__": print(asyncio.run(main(work, 1)))')
    script = tmp_path / "script.py"
    script.write_text(code)
    command = {"script": [str(script)], "-c": ["-c", code], "stdin": []}[how]
    done = subprocess.run(
        [sys.executable, *command], input=code if how == "stdin" else "", capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_main_guard_is_named(tmp_path: Path, method: str) -> None:
    """By the parent alone: the child says nothing, whatever its name."""
    rest = """
    from polyloop import WorkerStartError
    async def start():
        for kind in (Worker, Process):
            try:
                await kind(target=work, args=(1,), name="own")
            except WorkerStartError as error:
                print(error)
    asyncio.run(start())
    """
    done = run_program(tmp_path, method, rest)
    sentence = 'put the code that starts pools and processes under `if __name__ == "__main__":`'
    assert (done.stdout.count(sentence), done.stdout.count("\n"), done.stderr) == (2, 2, "")


async def _await(process: Process) -> Any:
    return await process
