"""Whole programs with a pool: how they end, what they are refused, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rendezvous import wait_and_close

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
PROGRAM = """
import asyncio, os, signal, sys, time
from polyloop import Pool, set_start_method
set_start_method({method!r})
async def work(x=0):
    return x + 1
async def say(*_):
    os.write(1, b"%d\\n" % os.getpid())
    await asyncio.Event().wait()
async def end(error, steps):
    for _ in range(steps):
        await asyncio.sleep(0)
    raise error
def fail(error):
    raise RuntimeError("the handler itself")
def ring_and_block(bell):
    open(bell, "w").close()
    time.sleep(1000)
def block(*_):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(1000)
"""


def write_program(tmp_path: Path, method: str, rest: str) -> Path:
    script = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(rest), "    ")
    script.write_text(PROGRAM.format(method=method) + 'if __name__ == "__main__":\n' + body)
    return script


@contextmanager
def started_program(tmp_path: Path, method: str, rest: str) -> Iterator[subprocess.Popen[str]]:
    """A program under way, in a process group of its own; whatever is left of it in the end is killed."""
    script = write_program(tmp_path, method, rest)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            yield program
        finally:
            try:
                os.killpg(program.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def read_pids(program: subprocess.Popen[str], count: int) -> list[int]:
    assert program.stdout is not None
    return [int(program.stdout.readline()) for _ in range(count)]


def run_program(tmp_path: Path, method: str, rest: str) -> subprocess.CompletedProcess[str]:
    script = write_program(tmp_path, method, rest)
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)


@METHODS
def test_a_program_ends_with_an_open_pool_and_a_large_backlog(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        global pool, result, calls
        pool = Pool(2)
        result = pool.map(work, range(100_000))
        calls = [asyncio.ensure_future(pool.apply(work, (x,))) for x in range(3000)]
        print(await calls[0])
    asyncio.run(main())
    """
    done = run_program(tmp_path, method, rest)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


@METHODS
def test_a_program_ends_with_running_tasks(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        global pool, calls
        pool = Pool(2)
        calls = [asyncio.ensure_future(pool.apply(f)) for f in (say, block)]
        await pool.apply(work)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    """
    done = run_program(tmp_path, method, rest)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_sigterm_while_a_worker_closes_its_loop_is_not_complained_about(tmp_path: Path) -> None:
    rest = """
    class Loop(asyncio.SelectorEventLoop):
        def _close_self_pipe(self):
            super()._close_self_pipe()
            os.write(1, b"closing\\n")
            os.kill(os.getpid(), signal.SIGTERM)
    async def main():
        pool = Pool(1, loop_initializer=Loop)
        await pool.apply(work)
        pool.close()
        await pool.join()
    asyncio.run(main())
    """
    done = run_program(tmp_path, "fork", rest)
    assert (done.stdout, done.stderr, done.returncode) == ("closing\n", "", 0)


@METHODS
def test_ctrl_c_leaves_one_traceback_the_parents(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        async with Pool(2, childconcurrency=1) as pool:
            calls = [pool.apply(f) for f in (say, block)]
            await asyncio.gather(*calls, pool.map(work, range(20_000)).results())
    asyncio.run(main())
    """
    with started_program(tmp_path, method, rest) as parent:
        workers = [os.pidfd_open(pid) for pid in read_pids(parent, 2)]
        os.killpg(parent.pid, signal.SIGINT)
        wait_and_close(workers)
        _, errors = parent.communicate()
    assert parent.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.splitlines().count("KeyboardInterrupt") == 1
    assert "in say" not in errors
    assert "in block" not in errors


@METHODS
def test_ctrl_c_while_workers_start_leaves_one_traceback(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        async with Pool(2) as pool:
            print("started", flush=True)
            await asyncio.Event().wait()
    asyncio.run(main())
    """
    with started_program(tmp_path, method, rest) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate()
    assert errors.count("Traceback") == 1 + errors.count("During handling of") + errors.count("direct cause")
    assert errors.rstrip().endswith("KeyboardInterrupt")


@METHODS
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_client_is_killed_its_workers_are_gone(tmp_path: Path, method: str, signum: int) -> None:
    """Whatever they are doing: waiting, blocked, stopped."""
    rest = """
    async def main():
        async with Pool(4, childconcurrency=1) as pool:
            await asyncio.gather(*(pool.apply(f) for f in (say, block, say, block)))
    asyncio.run(main())
    """
    with started_program(tmp_path, method, rest) as client:
        pids = read_pids(client, 4)
        others = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
        fds = [os.pidfd_open(pid) for pid in {*pids, *others} - {client.pid}]
        assert len(fds) == 4 + (method == "forkserver")
        for pid in pids[2:]:
            os.kill(pid, signal.SIGSTOP)
        client.send_signal(signum)
        wait_and_close(fds)


@METHODS
def test_workers_that_are_starting_when_the_client_is_killed_are_gone(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        pool = Pool(2, block)
        await asyncio.Event().wait()
    asyncio.run(main())
    """
    with started_program(tmp_path, method, rest) as client:
        fds = [os.pidfd_open(pid) for pid in read_pids(client, 2)]
        client.kill()
        wait_and_close(fds)


def test_a_forked_client_may_not_use_the_pool_and_does_not_end_it(tmp_path: Path) -> None:
    rest = """
    import warnings
    import gc
    async def main():
        pool = Pool(1)
        first = await pool.apply(os.getpid)
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads
        child = os.fork()
        if child == 0:
            for use in (lambda: pool.apply(work), lambda: pool.map(work, [1]).results()):
                try:
                    await use()
                except RuntimeError as error:
                    print(error, flush=True)
            pool.terminate()
            await pool.join()
            del pool
            gc.collect()
            sys.stdout.flush()
            os._exit(0)  # not through the loop, whose selector is the parent's
        print(os.waitpid(child, 0)[1])
        assert await pool.apply(os.getpid) == first
        print(await pool.apply(work, (1,)))
        pool.close()
        await pool.join()
    asyncio.run(main())
    """
    done = run_program(tmp_path, "forkserver", rest)
    sentence = "this pool belongs to the process that forked this one: make a pool of its own here\n"
    assert (done.stdout, done.stderr, done.returncode) == (2 * sentence + "0\n2\n", "", 0)


@METHODS
def test_a_failing_exception_handler_is_shown_once_on_the_workers_stderr(tmp_path: Path, method: str) -> None:
    rest = """
    async def main():
        async with Pool(1, exception_handler=fail) as pool:
            try:
                await pool.apply(divmod, (1, 0))
            except ZeroDivisionError:
                print("its own")
            pool.close()
            await pool.join()
    asyncio.run(main())
    """
    done = run_program(tmp_path, method, rest)
    assert (done.stdout, done.returncode) == ("its own\n", 0)
    assert done.stderr.count("RuntimeError: the handler itself") == 1


@METHODS
@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_tasks_that_end_their_program_say_nothing_on_the_workers_stderr(tmp_path: Path, method: str, loop: str) -> None:
    """In their first step, in a later one, and interrupted by the SIGTERM that ends the pool."""
    rest = f"""
    async def main():
        import {loop.partition(".")[0]}
        async with Pool(1, loop_initializer={loop}) as pool:
            for error in (SystemExit, KeyboardInterrupt):
                for steps in (0, 1):
                    try:
                        await pool.apply(end, (error, steps))
                    except error:
                        print("its own")
            os.mkfifo({str(tmp_path / "bell")!r})
            call = asyncio.ensure_future(pool.apply(ring_and_block, ({str(tmp_path / "bell")!r},)))
            with await asyncio.to_thread(open, {str(tmp_path / "bell")!r}) as bell:
                bell.read()
        print(type(call.exception()).__name__)
    asyncio.run(main())
    """
    done = run_program(tmp_path, method, rest)
    assert (done.stdout, done.returncode) == (4 * "its own\n" + "PoolTerminated\n", 0)
    assert [line for line in done.stderr.splitlines() if "terminated with" not in line] == []


@METHODS
def test_nothing_is_kept_in_dev_shm(tmp_path: Path, method: str) -> None:
    """Neither open nor mapped, so nothing can be left there however the program ends."""
    rest = """
    def files():
        found = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink("/proc/self/fd/" + fd))
            except FileNotFoundError:  # of the listing itself
                pass
        with open("/proc/self/maps") as maps:
            found.extend(maps)
        return [name for name in found if "/dev/shm" in name]
    async def main():
        async with Pool(2) as pool:
            await pool.map(work, range(1000))
            print(files(), await pool.apply(files))
    asyncio.run(main())
    """
    done = run_program(tmp_path, method, rest)
    assert (done.stdout, done.stderr, done.returncode) == ("[] []\n", "", 0)


@METHODS
def test_a_pool_that_is_dropped_while_its_workers_start_leaves_none_behind(tmp_path: Path, method: str) -> None:
    rest = """
    async def start_and_drop(rounds):
        pool = Pool(2)
        for _ in range(rounds):
            await asyncio.sleep(0.001)
    import gc, warnings
    warnings.simplefilter("ignore", ResourceWarning)
    for rounds in range(12):
        asyncio.run(start_and_drop(rounds))
        gc.collect()
    print("left")
    """
    done = run_program(tmp_path, method, rest)
    assert (done.stdout, done.stderr, done.returncode) == ("left\n", "", 0)


# --------------------------------------------------------------------------------------------------------- start faults


@METHODS
def test_more_processes_than_there_are_descriptors_for_are_refused_before_any_starts(
    tmp_path: Path, method: str
) -> None:
    """And as many as there are descriptors for do start."""
    rest = """
    import resource
    from polyloop import _limits
    async def main():
        async with Pool(1) as pool:  # opens what stays open
            await pool.apply(work)
        needed = _limits.FDS_PER_WORKER * 6 + _limits.FDS_PER_POOL
        allowed = len(os.listdir("/proc/self/fd")) - 1 + needed
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        try:
            Pool(7)
        except ValueError as error:
            print(error)
        async with Pool(6) as pool:
            while [worker.state for worker in pool.stats().workers] != ["ready"] * 6:
                await asyncio.sleep(0.01)
            print(len(await pool.map(work, range(100))))
    asyncio.run(main())
    """
    done = run_program(tmp_path, method, rest)
    first, second = done.stdout.splitlines()
    assert first.startswith("a pool of 7 processes needs about 58 file descriptors, and of the ")
    assert first.endswith("are open: use fewer processes, or raise the limit (ulimit -n)")
    assert (second, done.stderr, done.returncode) == ("100", "", 0)


def test_a_pool_that_may_not_make_its_memory_says_which_limit_is_too_low(tmp_path: Path) -> None:
    rest = """
    import resource
    async def main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            Pool(1)
        except OSError as error:
            print(error.strerror)
    asyncio.run(main())
    """
    done = run_program(tmp_path, "forkserver", rest)
    sentence = "a pool's shared memory is larger than the 1048576 bytes that this process may write to a file"
    assert (done.stdout, done.stderr) == (f"{sentence}: raise the limit (ulimit -f)\n", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_main_module_that_workers_cannot_import_is_given_up_after_a_few(tmp_path: Path, method: str) -> None:
    script = write_program(
        tmp_path,
        method,
        """
    async def main():
        async with Pool(2) as pool:
            try:
                await pool.apply(work)
            except Exception as error:
                print(type(error).__name__, error)
    asyncio.run(main())
    """,
    )
    starts = tmp_path / "starts"
    broken = f"""
if __name__ != "__main__":
    with open({str(starts)!r}, "a") as file:
        file.write("start ")
    raise ImportError("only once")
"""
    script.write_text(broken + script.read_text())
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert done.stdout == "WorkerStartError the workers ended before they were ready: exit code 1\n"
    assert len(starts.read_text().split()) <= 2 + 3
    assert done.stderr.count("ImportError: only once") <= 2 + 3
