"""`Queue` in one process, beside `multiprocessing.Queue` where both promise the same."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import queue as standard
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyloop import Queue

Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)
LARGE = 3 << 20


@pytest.fixture(params=["polyloop", "multiprocessing"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a queue: ours, then the one that it stands in for."""
    return Queue if request.param == "polyloop" else multiprocessing.get_context("spawn").Queue


def eventually(queue: Any, size: int) -> None:
    """What multiprocessing has accepted takes a while to arrive."""
    while queue.empty() == (size > 0) or queue.qsize() != size:
        time.sleep(0.001)


# ------------------------------------------------------------------------------------------------------- the contract


def test_items_come_out_as_they_went_in(make: Run) -> None:
    queue = make()
    items = [None, 0, "a" * 50, b"b" * 111, b"c" * 200, {"k": [1, (2,)]}, b"d" * LARGE, ""]
    for item in items:
        queue.put(item)
    assert [queue.get() for _ in items] == items
    assert queue.empty()


def test_an_empty_queue_says_so(make: Run) -> None:
    queue = make()
    assert (queue.empty(), queue.full(), queue.qsize()) == (True, False, 0)
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with pytest.raises(standard.Empty):
        queue.get(False)
    with pytest.raises(standard.Empty):
        queue.get(block=True, timeout=0.01)
    with pytest.raises(standard.Empty):
        queue.get(True, -1)


def test_a_full_queue_says_so(make: Run) -> None:
    queue = make(2)
    queue.put(1)
    queue.put_nowait(2)
    eventually(queue, 2)
    assert queue.full()
    with pytest.raises(standard.Full):
        queue.put_nowait(3)
    with pytest.raises(standard.Full):
        queue.put(3, False)
    with pytest.raises(standard.Full):
        queue.put(3, block=True, timeout=0.01)
    with pytest.raises(standard.Full):
        queue.put(3, True, -1)
    assert queue.get() == 1
    queue.put(3, timeout=60)
    assert [queue.get(), queue.get()] == [2, 3]


@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_queue_without_a_bound_is_never_full(make: Run, maxsize: int) -> None:
    queue = make(maxsize)
    for number in range(300):
        queue.put(number)
    assert not queue.full()
    assert [queue.get() for _ in range(300)] == list(range(300))


def test_a_blocked_get_returns_what_is_put(make: Run) -> None:
    queue = make()
    timer = threading.Timer(0.05, queue.put, ["late"])
    timer.start()
    assert queue.get() == "late"
    timer.join()


def test_a_blocked_put_goes_on_when_there_is_room(make: Run) -> None:
    queue = make(1)
    queue.put(1)
    timer = threading.Timer(0.05, queue.get)
    timer.start()
    queue.put(2)
    timer.join()
    assert queue.get() == 2


def test_a_closed_queue_refuses(make: Run) -> None:
    queue = make()
    with pytest.raises(AssertionError, match="not closed"):
        queue.join_thread()
    queue.put(1)
    queue.close()
    queue.close()
    queue.join_thread()
    for call in (lambda: queue.put(1), queue.get, lambda: queue.put_nowait(1), queue.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_a_queue_can_be_left_without_waiting(make: Run) -> None:
    queue = make()
    queue.put(1)
    queue.cancel_join_thread()
    queue.close()


def test_a_queue_does_not_travel_by_pickle(make: Run) -> None:
    with pytest.raises(RuntimeError, match="process"):
        pickle.dumps(make())


def test_threads_put_and_get_at_once(make: Run) -> None:
    queue, got, each = make(4), [], 200

    def get() -> None:
        while (item := queue.get()) is not None:
            got.append(item)

    putters = [threading.Thread(target=lambda n=n: [queue.put((n, i)) for i in range(each)]) for n in range(3)]
    getters = [threading.Thread(target=get) for _ in range(3)]
    for thread in putters + getters:
        thread.start()
    for thread in putters:
        thread.join()
    for _ in getters:
        queue.put(None)
    for thread in getters:
        thread.join()
    assert sorted(got) == [(n, i) for n in range(3) for i in range(each)]


# ------------------------------------------------------------------------------------------------------ what is ours


def test_an_item_is_there_and_pickled_when_put_returns() -> None:
    queue: Queue[list[int]] = Queue()
    item = [1]
    queue.put(item)
    item.append(2)
    assert (queue.qsize(), queue.get_nowait()) == (1, [1])


def test_what_can_not_be_pickled_is_refused_at_once() -> None:
    queue: Queue[Any] = Queue(1)
    with pytest.raises(TypeError, match="lock"):
        queue.put(threading.Lock())
    assert queue.empty()
    queue.put(lambda: 7)
    assert queue.get()() == 7


def test_what_can_not_be_unpickled_is_taken_and_raised() -> None:
    queue: Queue[Any] = Queue()
    queue.put(_Sour())
    queue.put(1)
    with pytest.raises(RuntimeError, match="sour"):
        queue.get()
    assert queue.get() == 1


class _Sour:
    def __reduce__(self) -> Any:
        return _turn, ()


def _turn() -> None:
    raise RuntimeError("sour")


@settings(max_examples=60, deadline=None)
@given(
    maxsize=st.integers(0, 4),
    steps=st.lists(
        st.one_of(
            st.just("get"), st.just("size"), st.integers(0, 300), st.sampled_from([111, 112, 113, 70_000, LARGE])
        ),
        max_size=60,
    ),
)
def test_it_is_a_queue(maxsize: int, steps: list[Any]) -> None:
    queue: Queue[bytes] = Queue(maxsize)
    model: deque[bytes] = deque()
    for number, step in enumerate(steps):
        if step == "size":
            assert (queue.qsize(), queue.empty()) == (len(model), not model)
            assert queue.full() == (0 < maxsize <= len(model))
        elif step == "get":
            if model:
                assert queue.get_nowait() == model.popleft()
            else:
                with pytest.raises(standard.Empty):
                    queue.get_nowait()
        elif 0 < maxsize <= len(model):
            with pytest.raises(standard.Full):
                queue.put_nowait(b"")
        else:
            model.append(bytes([number]) * step)
            queue.put_nowait(model[-1])
    assert [queue.get_nowait() for _ in model] == list(model)


def test_more_items_than_a_seat_has_nodes_and_then_none() -> None:
    queue: Queue[int] = Queue()
    for _ in range(2):
        for number in range(150_000):
            queue.put(number)
        assert queue.qsize() == 150_000
        assert all(queue.get() == number for number in range(150_000))
    queue.put(1)
    assert queue.get() == 1
    assert queue._core.memory < 64 << 20


def test_memory_of_large_items_is_used_again() -> None:
    queue: Queue[bytes] = Queue()
    item = bytes(LARGE)
    for _ in range(40):
        queue.put(item)
        queue.put(item)
        assert len(queue.get()) == len(queue.get()) == LARGE
    queue.put(b"")
    assert queue._core.memory < 8 * LARGE


def test_a_queue_that_is_dropped_holds_no_descriptor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        queue: Queue[int] = Queue(1)
        queue.put(1)
        with pytest.raises(standard.Full):
            queue.put(2, timeout=0)
        asyncio.run(queue.aget())
        del queue
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_signal_handler_runs_while_a_get_waits() -> None:
    queue: Queue[int] = Queue()

    def interrupt(*_: Any) -> None:
        raise InterruptedError("rung")

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1])
    timer.start()
    try:
        with pytest.raises(InterruptedError, match="rung"):
            queue.get()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_closing_ends_those_who_wait_here(run: Run) -> None:
    queue: Queue[int] = Queue()
    raised: list[BaseException] = []

    def get() -> None:
        try:
            queue.get()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=get)
    thread.start()

    async def main() -> None:
        waiting = [asyncio.create_task(queue.aget()) for _ in range(2)]
        await asyncio.sleep(0.02)
        queue.close()
        for task in waiting:
            with pytest.raises(ValueError, match="closed"):
                await task

    run(main())
    thread.join()
    assert "closed" in str(raised[0])


# ----------------------------------------------------------------------------------------------------------- awaiting


def test_waiting_tasks_get_what_is_put(run: Run) -> None:
    async def main() -> None:
        queue: Queue[int] = Queue()
        waiting = [asyncio.create_task(queue.aget()) for _ in range(5)]
        await asyncio.sleep(0.01)
        for number in range(3):
            queue.put(number)
        threading.Timer(0.01, lambda: [queue.put(number) for number in (3, 4)]).start()
        assert sorted(await asyncio.gather(*waiting)) == [0, 1, 2, 3, 4]
        assert not queue._waiting

    run(main())


def test_waiting_putters_go_on_when_there_is_room(run: Run) -> None:
    async def main() -> None:
        queue: Queue[int] = Queue(1)
        waiting = [asyncio.create_task(queue.aput(number)) for number in range(4)]
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in waiting) == 1
        assert sorted([await queue.aget() for _ in waiting]) == [0, 1, 2, 3]
        await asyncio.gather(*waiting)

    run(main())


def test_a_cancelled_aget_loses_no_item_and_no_wake_up(run: Run) -> None:
    async def main() -> None:
        for cancel_first in (True, False):
            for spins in range(4):
                queue: Queue[int] = Queue()
                doomed, other = asyncio.create_task(queue.aget()), asyncio.create_task(queue.aget())
                await asyncio.sleep(0.005)
                if cancel_first:
                    doomed.cancel()
                queue.put(7)
                for _ in range(spins):
                    await asyncio.sleep(0)
                doomed.cancel()
                got = await asyncio.gather(doomed, return_exceptions=True)
                queue.put(8)
                expected = 8 if got == [7] else 7
                assert await other == expected
                assert queue.qsize() == (0 if got == [7] else 1)

    run(main())


def test_a_cancelled_aput_puts_nothing(run: Run) -> None:
    async def main() -> None:
        queue: Queue[int] = Queue(1)
        queue.put(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await queue.aput(2)
        assert queue.get() == 1
        assert queue.empty()

    run(main())


def test_loops_in_several_threads_wait_for_one_queue(run: Run) -> None:
    queue: Queue[int] = Queue()
    got: list[int] = []

    async def get() -> None:
        for _ in range(20):
            got.append(await queue.aget())

    threads = [threading.Thread(target=asyncio.run, args=(get(),)) for _ in range(2)]
    for thread in threads:
        thread.start()

    async def main() -> None:
        for number in range(40):
            await queue.aput(number)
            await asyncio.sleep(0)

    run(main())
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(40))


def test_nobody_wakes_up_while_nothing_happens() -> None:
    async def main() -> None:
        queue: Queue[int] = Queue()
        queue.put(0)
        await queue.aget()
        waiting = asyncio.create_task(queue.aget())
        await asyncio.sleep(0.02)
        calls = 0
        wake_next = next(iter(queue._waiting.values()))
        original = wake_next.wake_next

        def count() -> None:
            nonlocal calls
            calls += 1
            original()

        wake_next.wake_next = count  # type: ignore[method-assign]
        await asyncio.sleep(0.1)
        assert calls == 0
        queue.put(1)
        assert await waiting == 1

    asyncio.run(main())
