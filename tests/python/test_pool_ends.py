"""How pools end: close, terminate, leaving `async with`, being forgotten, and the end of the program in every way."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, PoolClosed, PoolTerminated
from rendezvous import Bell, Gate, Journal

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


def pidfds(pool: Pool) -> list[int]:
    """Descriptors that say when the pool's processes are gone."""
    return [os.pidfd_open(process.pid) for process in pool.processes if process.pid is not None]


def wait_and_close(fds: list[int]) -> None:
    """Wait until these processes are gone."""
    for fd in fds:
        select.select([fd], [], [])
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------- close


def test_close_and_join_finish_what_was_accepted(start_method: str, run: Run, tmp_path: Path, journal: Journal) -> None:
    async def main() -> None:
        path = tmp_path / "done"
        pool = Pool(2)
        calls = [asyncio.ensure_future(pool.apply(targets.append_async, (str(path), n))) for n in range(100)]
        awaited = asyncio.ensure_future(
            pool.map(functools.partial(targets.append_async, str(path)), range(100, 4000)).results()
        )
        nobodys = pool.map(functools.partial(targets.append, str(path)), iter(range(4000, 9000)))
        await asyncio.sleep(0)  # the calls are submitted in the loop's first round
        pool.close()
        assert not pool.running
        await pool.join()
        assert sorted(map(int, path.read_text().split())) == list(range(9000))
        assert await asyncio.gather(*calls) == [None] * 100
        assert await awaited == [None] * 3900
        assert await nobodys == [None] * 5000
        assert pool.processes == {}
        assert journal.lines == []

    run(main())


def test_close_finishes_a_map_whose_asynchronous_input_goes_on(run: Run, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async def items() -> Any:
            for x in range(5):
                await go_on.wait()
                yield x

        go_on = asyncio.Event()
        pool = Pool(1)
        result = pool.map(targets.later, items())
        pool.close()
        joining = asyncio.ensure_future(pool.join())
        await asyncio.sleep(0)
        assert not joining.done()
        go_on.set()
        await joining
        assert await result == list(range(5))

    run(main())


def test_close_lets_a_map_that_is_being_iterated_go_on(run: Run) -> None:
    async def main() -> None:
        pool = Pool(1)
        results = aiter(pool.map(targets.later, range(10_000)))
        first = await anext(results)
        pool.close()
        assert [first, *[x async for x in results]] == list(range(10_000))
        await pool.join()

    run(main())


def test_a_closed_pool_takes_no_new_work(start_method: str, run: Run) -> None:
    async def main() -> None:
        pool = Pool(1)
        assert await pool.apply(targets.double, (1,)) == 2
        pool.close()
        for _ in range(2):
            with pytest.raises(PoolClosed, match="pool is closed"):
                await pool.apply(targets.double, (1,))
            with pytest.raises(PoolClosed, match="pool is closed"):
                pool.map(targets.double, [1])
            with pytest.raises(RuntimeError):
                pool.starmap(targets.double, [(1,)])
            await pool.join()

    run(main())


def test_ending_twice_is_the_same_as_once(start_method: str, run: Run, journal: Journal) -> None:
    async def main() -> None:
        pool = Pool(1)
        pool.close()
        pool.close()
        await asyncio.gather(pool.join(), pool.join())
        pool.terminate()
        pool.close()
        await pool.join()
        async with Pool(1) as pool:
            pool.close()
            await pool.join()
        async with Pool(1) as pool:
            pool.terminate()
            pool.terminate()
        assert journal.lines == []

    run(main())


def test_a_pool_may_end_before_its_workers_have_started(start_method: str, run: Run, journal: Journal) -> None:
    async def main() -> None:
        async with Pool(2):
            pass
        pool = Pool(2)
        pool.close()
        await pool.join()
        pool = Pool(2)
        call = asyncio.ensure_future(pool.apply(targets.later, (3,)))
        await asyncio.sleep(0)
        pool.close()
        await pool.join()
        assert await call == 3
        assert journal.lines == []

    run(main())


def test_cancelling_join_ends_only_the_waiting(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        pool = Pool(1)
        call = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
        await bell.hear()
        pool.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.join(), 0.01)
        gate.open()
        await pool.join()
        assert call.done()

    asyncio.run(main())


def test_join_of_a_closing_pool_waits_for_retries(tmp_path: Path) -> None:
    async def main() -> None:
        pool = Pool(1, retries=1)
        call = asyncio.ensure_future(pool.apply(targets.die_once, (str(tmp_path / "mark"),)))
        await asyncio.sleep(0)
        pool.close()
        await pool.join()
        assert isinstance(await call, int)

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------------------- aclose


def test_aclose_finishes_what_was_accepted(start_method: str, run: Run, journal: Journal) -> None:
    async def main() -> None:
        pool = Pool(2)
        try:
            calls = [asyncio.ensure_future(pool.apply(targets.later, (x,))) for x in range(100)]
            await asyncio.sleep(0)
        finally:
            await pool.aclose()
        assert await asyncio.gather(*calls) == list(range(100))
        assert pool.stats().state == "closed"
        assert journal.lines == []
        with pytest.raises(PoolClosed):
            await pool.apply(targets.later, (1,))

    run(main())


def test_aclose_may_be_called_again_and_by_several_tasks(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        pool = Pool(1)
        call = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
        await bell.hear()
        closing = [asyncio.ensure_future(pool.aclose()) for _ in range(3)]
        await asyncio.sleep(0)
        pool.close()
        assert not any(each.done() for each in closing)
        gate.open()
        await asyncio.gather(*closing, pool.join())
        await call
        await pool.aclose()
        pool.terminate()
        await pool.aclose(timeout=0)

    asyncio.run(main())


def test_aclose_terminates_after_its_timeout(run: Run, bell: Bell, journal: Journal) -> None:
    async def main() -> None:
        pool = Pool(1)
        call = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,)))
        await bell.hear()
        await asyncio.gather(pool.aclose(timeout=0.05), pool.aclose())
        with pytest.raises(PoolTerminated):
            await call
        assert journal.lines == ["WARNING pool terminated with 1 unfinished task"]

    run(main())


def test_a_cancelled_aclose_leaves_the_pool_closing(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        pool = Pool(1)
        call = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
        await bell.hear()
        closing = asyncio.ensure_future(pool.aclose(timeout=1000))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert pool.stats().state == "closing"
        gate.open()
        await pool.aclose()
        assert call.done()

    asyncio.run(main())


def test_aclose_in_another_loop_is_refused_and_closes_nothing() -> None:
    async def make() -> Pool:
        return Pool(1)

    async def close(pool: Pool) -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await pool.aclose()

    with asyncio.Runner() as runner:
        pool = runner.run(make())
        asyncio.run(close(pool))
        assert pool.running
        runner.run(pool.aclose())


def test_join_of_an_open_pool_is_refused() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(RuntimeError, match=r"pool is still open: close\(\) or terminate\(\) it first"):
                await pool.join()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------ terminate


@pytest.mark.parametrize("how", ["terminate", "leave"])
def test_terminate_ends_everything_that_is_pending(
    start_method: str, run: Run, bell: Bell, journal: Journal, how: str
) -> None:
    async def main() -> None:
        async with Pool(2, childconcurrency=1) as pool:
            running = [asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,))) for _ in range(2)]
            assert [await bell.hear() for _ in running] == ["started"] * 2
            queued = [asyncio.ensure_future(pool.apply(targets.later, (x,))) for x in range(50)]
            mapped = asyncio.ensure_future(pool.map(targets.later, range(48)).results())
            iterated = asyncio.ensure_future(anext(aiter(pool.map(targets.later, []))))  # has an end already
            await asyncio.wait([iterated])
            await asyncio.sleep(0)
            fds = pidfds(pool)
            if how == "terminate":
                pool.terminate()
        for call in [*running, *queued, mapped]:
            with pytest.raises(PoolTerminated):
                await call
        assert isinstance(iterated.exception(), StopAsyncIteration)
        assert sorted(bell.heard()) == ["cancelled"] * 2
        assert journal.lines == ["WARNING pool terminated with 100 unfinished tasks"]
        wait_and_close(fds)
        with pytest.raises(PoolClosed):
            await pool.apply(targets.later, (1,))

    run(main())


def test_terminate_kills_what_does_not_end_within_the_grace(start_method: str, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2, grace=0.05) as pool:
            deaf = asyncio.ensure_future(pool.apply(targets.ignore_cancel, (bell.path, gate.path)))
            blocked = asyncio.ensure_future(pool.apply(targets.block_sigterm_and_wait, (bell.path, gate.path)))
            assert [await bell.hear() for _ in "ab"] == ["started"] * 2
            fds = pidfds(pool)
        for call in (deaf, blocked):
            with pytest.raises(PoolTerminated):
                await call
        wait_and_close(fds)

    asyncio.run(main())


def test_without_any_grace_terminate_kills_at_once(start_method: str, bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(2, grace=0) as pool:
            deaf = asyncio.ensure_future(pool.apply(targets.ignore_cancel, (bell.path, gate.path)))
            blocked = asyncio.ensure_future(pool.apply(targets.block_sigterm_and_wait, (bell.path, gate.path)))
            assert [await bell.hear() for _ in "ab"] == ["started"] * 2
            fds = pidfds(pool)
        for call in (deaf, blocked):
            with pytest.raises(PoolTerminated):
                await call
        wait_and_close(fds)

    asyncio.run(main())


def test_terminate_ends_stopped_workers_too(start_method: str) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.05) as pool:
            os.kill(await pool.apply(targets.pid), signal.SIGSTOP)

    asyncio.run(main())


def test_leaving_with_an_exception_raises_that_exception(run: Run, bell: Bell) -> None:
    async def main() -> None:
        with pytest.raises(KeyError, match="own"):
            async with Pool(1) as pool:
                call = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,)))
                await bell.hear()
                raise KeyError("own")
        with pytest.raises(PoolTerminated):
            await call

    run(main())


def test_terminating_closes_the_input_of_maps(run: Run) -> None:
    async def main() -> None:
        closed = []

        def items() -> Any:
            try:
                while True:
                    yield 1
            finally:
                closed.append("sync")

        async def items_async() -> Any:
            try:
                while True:
                    yield 1
            finally:
                closed.append("async")

        async with Pool(1) as pool:
            maps = [
                asyncio.ensure_future(pool.map(targets.later, items).results()) for items in (items(), items_async())
            ]
            await pool.apply(targets.later, (1,))
        for awaiting in maps:
            with pytest.raises(PoolTerminated):
                await awaiting
        assert sorted(closed) == ["async", "sync"]

    run(main())


def test_closing_after_terminate_and_terminating_after_close(bell: Bell, journal: Journal) -> None:
    async def main() -> None:
        pool = Pool(1)
        call = asyncio.ensure_future(pool.apply(targets.wait_for_ever, (bell.path,)))
        await bell.hear()
        pool.close()
        pool.terminate()
        await pool.join()
        with pytest.raises(PoolTerminated):
            await call
        assert journal.lines == ["WARNING pool terminated with 1 unfinished task"]

    asyncio.run(main())


def test_what_tasks_left_behind_is_cancelled_when_their_worker_leaves(start_method: str, run: Run, bell: Bell) -> None:
    async def main() -> None:
        pool = Pool(1)
        await pool.apply(targets.leave_a_task_behind, (bell.path,))
        pool.close()
        await pool.join()
        assert bell.heard() == ["background task cancelled"]

    run(main())


# -------------------------------------------------------------------------------------------------- loops and ownership


def test_a_pool_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="a Pool needs a running event loop"):
        Pool(1)


def test_a_pool_is_used_from_its_own_loop_only() -> None:
    async def main() -> Pool:
        return Pool(1)

    async def other(pool: Pool) -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await pool.apply(targets.double, (1,))
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            pool.map(targets.double, [1])

    async def end(pool: Pool) -> None:
        pool.terminate()
        await pool.join()

    with asyncio.Runner() as runner:
        pool = runner.run(main())
        asyncio.run(other(pool))
        runner.run(end(pool))


def test_several_pools_live_side_by_side(start_method: str, run: Run) -> None:
    async def main() -> None:
        async with Pool(1) as one, Pool(1) as two:
            first, second = await asyncio.gather(one.apply(targets.pid), two.apply(targets.pid))
            assert first != second
            one.terminate()
            await one.join()
            assert await two.apply(targets.pid) == second

    run(main())


def test_impossible_shapes_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="queue count must be <= process count"):
            Pool(1, queuecount=2)
        with pytest.raises(ValueError, match="initializer must be synchronous"):
            Pool(1, initializer=targets.pid)
        with pytest.raises(ValueError, match="loop_initializer must be synchronous"):
            Pool(1, loop_initializer=targets.pid)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="grace must be a number of seconds, 0 or more"):
            Pool(1, grace=-1)

    asyncio.run(main())


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("how", ["terminate", "close", "kill"])
def test_a_pool_leaves_no_descriptor_and_no_process_behind(start_method: str, run: Run, how: str) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            await pool.map(targets.later, range(100))
            for process in pool.processes:
                if how == "kill":
                    process.kill()
            await pool.apply(targets.later, (1,))
            fds = pidfds(pool)
            if how == "close":
                pool.close()
                await pool.join()
        wait_and_close(fds)

    run(main())  # starts what stays: the tracker, the forkserver, the starter
    before = open_fds()
    for _ in range(3):
        run(main())
    assert open_fds() == before


# ------------------------------------------------------------------------------------------------------------ forgotten


def test_a_forgotten_pool_warns_and_its_workers_go(start_method: str, run: Run) -> None:
    async def main() -> list[int]:
        pool = Pool(2)
        await pool.map(targets.later, range(10))
        fds = pidfds(pool)
        with pytest.warns(ResourceWarning, match="a pool of 2 processes was neither closed nor terminated"):
            del pool
            gc.collect()
        return fds

    wait_and_close(run(main()))


def test_a_forgotten_pool_with_tasks_warns_and_its_workers_go(run: Run, bell: Bell) -> None:
    async def main() -> list[int]:
        pool = Pool(1)
        result = pool.map(functools.partial(targets.wait_for_ever, bell.path), range(3))
        await bell.hear()
        fds = pidfds(pool)
        with pytest.warns(ResourceWarning, match="neither closed nor terminated"):
            del pool, result
            gc.collect()
        return fds

    wait_and_close(run(main()))


def test_a_pool_whose_loop_is_closed_warns_and_its_workers_go(start_method: str, run: Run) -> None:
    async def main() -> list[int]:
        pool = Pool(1)
        await pool.apply(targets.later, (1,))
        pools.append(pool)
        return pidfds(pool)

    pools: list[Pool] = []
    fds = run(main())
    with pytest.warns(ResourceWarning, match="neither closed nor terminated"):
        pools.clear()
        gc.collect()
    wait_and_close(fds)


# ------------------------------------------------------------------------------------------------------- whole programs

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


def test_an_exception_of_a_task_does_not_keep_its_pool() -> None:
    async def main() -> weakref.ref[Pool]:
        async with Pool(1) as pool:
            for call in (
                pool.apply(targets.fail_later),
                pool.submit(targets.fail_later),
                pool.map(abs, ["x"]).results(),
            ):
                with pytest.raises((LookupError, TypeError, ValueError)):
                    await call
            return weakref.ref(pool)

    pool = asyncio.run(main())
    gc.collect()
    assert pool() is None
