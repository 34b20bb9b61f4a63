"""`submit` and its handles: futures of the client's loop that cancel what runs elsewhere."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, PoolClosed, PoolTerminated, TaskHandle, TaskTimeout, WorkerDied
from rendezvous import Bell, Gate

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)


def test_a_handle_is_a_future_of_what_the_task_returns_or_raises(run: Run) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            handle = pool.submit(targets.add_async, 1, y=2)
            assert isinstance(handle, TaskHandle)
            assert isinstance(handle, asyncio.Future)
            assert asyncio.isfuture(handle)
            assert handle.get_loop() is asyncio.get_running_loop()
            assert not handle.done()
            assert await handle == 3
            assert handle.result() == 3
            assert await pool.submit(targets.add, 1, y=2) == 3
            assert await pool.submit(dict, self=1, func=2) == {"self": 1, "func": 2}
            failed = pool.submit(targets.fail_with_two_arguments)
            with pytest.raises(targets.TwoArguments):
                await failed
            assert isinstance(failed.exception(), targets.TwoArguments)

    run(main())


def test_whatever_takes_futures_takes_handles(run: Run) -> None:
    async def main() -> None:
        async with Pool(2) as pool:
            handles = [pool.submit(targets.later, n) for n in range(300)]
            assert await asyncio.gather(*handles) == list(range(300))
            done, pending = await asyncio.wait([pool.submit(targets.later, n) for n in range(20)])
            assert (sorted(handle.result() for handle in done), pending) == (list(range(20)), set())
            finished = [await each for each in asyncio.as_completed([pool.submit(targets.later, n) for n in range(20)])]
            assert sorted(finished) == list(range(20))
            assert await asyncio.wait_for(pool.submit(targets.later, 1), 30) == 1
            assert await asyncio.shield(pool.submit(targets.later, 2)) == 2
            told: asyncio.Queue[Any] = asyncio.Queue()
            handle = pool.submit(targets.later, 3)
            handle.add_done_callback(told.put_nowait)
            assert await told.get() is handle

    run(main())


# --------------------------------------------------------------------------------------------------------- cancellation


def test_cancelling_a_handle_cancels_its_task_before_the_handle_is_done(run: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            handle = pool.submit(targets.wait_for_ever, bell.path)
            assert await bell.hear() == "started"
            assert handle.cancel("why")
            assert not handle.done()
            with pytest.raises(asyncio.CancelledError, match="why"):
                await handle
            assert bell.heard() == ["cancelled"]
            assert handle.cancelled()
            assert not handle.cancel()

    run(main())


def test_a_queued_task_whose_handle_is_cancelled_never_starts(bell: Bell, gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, childconcurrency=1) as pool:
            first = pool.submit(targets.ring_pid_and_wait, bell.path, gate.path)
            await bell.hear()
            queued = pool.submit(targets.ring_and_return, bell.path, 1)
            queued.cancel()
            await asyncio.wait([queued])
            assert queued.cancelled()
            gate.open()
            await first
            assert await pool.submit(targets.later, 1) == 1
            assert bell.heard() == []

    asyncio.run(main())


def test_a_task_that_returns_in_spite_of_its_cancellation_has_returned(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            handle = pool.submit(targets.answer_cancel, bell.path)
            await bell.hear()
            assert handle.cancel()
            assert await handle == "finished all the same"

    asyncio.run(main())


def test_waiting_for_a_handle_cancels_it_as_a_task_would_be(run: Run, bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            handle = pool.submit(targets.wait_for_ever, bell.path)
            assert await bell.hear() == "started"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle, 0.01)
            assert bell.heard() == ["cancelled"]

            handle = pool.submit(targets.wait_for_ever, bell.path)
            assert await bell.hear() == "started"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.shield(handle)
            assert not handle.done()

            waiting = asyncio.ensure_future(asyncio.gather(handle, pool.submit(targets.wait_for_ever, bell.path)))
            assert await bell.hear() == "started"
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert bell.heard() == ["cancelled", "cancelled"]

    run(main())


def test_a_handle_whose_task_does_not_let_go_is_done_after_the_grace(gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1, grace=0.1) as pool:
            handle = pool.submit(targets.block_at, gate.path)
            await asyncio.sleep(0.05)
            handle.cancel()
            await asyncio.wait([handle])
            assert handle.cancelled()
            assert await pool.submit(targets.later, 1) == 1  # by another worker

    asyncio.run(main())


def test_a_task_that_is_cancelled_in_its_worker_cancels_its_handle() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            handle = pool.submit(targets.cancel_itself)
            await asyncio.wait([handle])
            assert handle.cancelled()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------- its pool


def test_options_hold_for_handles() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(TaskTimeout):
                await pool.options(timeout=0.05).submit(asyncio.sleep, 30)

    asyncio.run(main())


def test_what_can_not_be_sent_is_refused_at_once() -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(TypeError, match="cannot pickle"):
                pool.submit(targets.echo, (each for each in ()))
            with pytest.raises(TypeError, match="expected a function"):
                pool.submit(3)  # type: ignore[call-overload]
        with pytest.raises(PoolClosed):
            pool.submit(targets.later, 1)

    asyncio.run(main())


def test_handles_end_with_their_worker_and_with_their_pool(bell: Bell) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            with pytest.raises(WorkerDied):
                await pool.submit(targets.kill_itself)
            handle = pool.submit(targets.wait_for_ever, bell.path)
            await bell.hear()
        with pytest.raises(PoolTerminated):
            await handle

    asyncio.run(main())


def test_an_exception_that_nobody_asks_for_is_logged_as_a_tasks_is() -> None:
    async def main() -> list[dict[str, Any]]:
        contexts: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
        async with Pool(1) as pool:
            handle = pool.submit(targets.fail_later, 1)
            await asyncio.wait([handle])
            del handle
            gc.collect()
        return contexts

    (context,) = asyncio.run(main())
    assert "never retrieved" in context["message"]
    assert repr(context["exception"]) == "LookupError(1)"


def test_a_handle_keeps_its_pool_until_it_is_done_and_no_longer() -> None:
    async def main() -> None:
        pool = Pool(1)
        await pool.apply(targets.later, (1,))
        gone = asyncio.Event()
        weakref.finalize(pool, gone.set)
        handle = pool.submit(targets.later, 2)
        del pool
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # raised or recorded, it would keep the pool
            assert await handle == 2
            while not gone.is_set():
                await asyncio.sleep(0)
                gc.collect()

    asyncio.run(main())
