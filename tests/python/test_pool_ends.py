"""How pools end: close, terminate, leaving `async with`, and being forgotten."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
import signal_targets
from polyloop import Pool, PoolClosed, PoolTerminated
from rendezvous import Bell, Gate, Journal, wait_and_close

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(20)


def pidfds(pool: Pool) -> list[int]:
    """Descriptors that say when the pool's processes are gone."""
    return [os.pidfd_open(process.pid) for process in pool.processes if process.pid is not None]


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
            blocked = asyncio.ensure_future(pool.apply(signal_targets.block_sigterm_and_wait, (bell.path, gate.path)))
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
            blocked = asyncio.ensure_future(pool.apply(signal_targets.block_sigterm_and_wait, (bell.path, gate.path)))
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


def test_workers_that_have_ended_hold_no_descriptors_until_others_are_started(start_method: str, run: Run) -> None:
    async def main(processes: int) -> None:
        async with Pool(processes) as pool:
            await pool.ready()

    run(main(1))
    before = open_fds()
    run(main(3))
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
