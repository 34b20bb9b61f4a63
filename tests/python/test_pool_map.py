"""`map` and `starmap`: order, lazily drawn input, failures, and leaving early."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool, PoolResult
from rendezvous import Bell, Gate

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)

WINDOW = 2048  # how far input may be drawn ahead of results


class Source:
    """Counts from 0, and knows how far it was drawn and whether it was closed."""

    def __init__(self, end: int | None = None, *, fails_at: int | None = None) -> None:
        self.end = end
        self.fails_at = fails_at
        self.drawn = 0
        self.closed = False

    def items(self) -> Iterator[int]:
        try:
            for x in itertools.count() if self.end is None else range(self.end):
                if x == self.fails_at:
                    raise KeyError("input")
                self.drawn += 1
                yield x
        finally:
            self.closed = True

    async def items_async(self) -> AsyncIterator[int]:
        try:
            for x in self.items():
                if x % 100 == 0:
                    await asyncio.sleep(0)
                yield x
        finally:
            self.closed = True

    def as_sync(self) -> Iterator[int]:
        return self.items()

    def as_async(self) -> AsyncIterator[int]:
        return self.items_async()


KINDS = pytest.mark.parametrize("kind", [Source.as_sync, Source.as_async], ids=["sync", "async"])
Kind = Callable[[Source], Any]

# -------------------------------------------------------------------------------------------------------------- results


@KINDS
@pytest.mark.parametrize("function", [targets.double, targets.later, targets.pid_of])
def test_awaiting_a_map_gives_all_results_in_order(on_pool: OnPool, function: Any, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        results = await pool.map(function, kind(Source(500)))
        assert len(results) == 500
        if function is targets.pid_of:
            assert set(results) <= {process.pid for process in pool.processes}
        else:
            factor = 2 if function is targets.double else 1
            assert results == [factor * x for x in range(500)]

    on_pool(main)


@KINDS
def test_iterating_over_a_map_gives_results_in_order(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        assert [x async for x in pool.map(targets.later, kind(Source(500)))] == list(range(500))

    on_pool(main)


def test_a_plain_function_is_mapped(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.map(len, ["", "a", "ab"]) == [0, 1, 2]

    on_pool(main)


def test_starmap_spreads_each_item_over_the_arguments(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.starmap(targets.add_async, [(1, 2), [3], iter((4, 5))]) == [3, 3, 9]
        assert [x async for x in pool.starmap(pow, zip(range(3), range(3), strict=True))] == [1, 1, 4]

    on_pool(main)


@KINDS
def test_a_map_over_nothing_is_empty(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.map(targets.later, kind(Source(0))) == []
        assert [x async for x in pool.map(targets.later, kind(Source(0)))] == []
        assert await pool.starmap(targets.add, []) == []

    on_pool(main)


def test_a_map_over_100_000_items_gives_them_all(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.map(targets.double, range(100_000)) == list(range(0, 200_000, 2))

    on_pool(main)


def test_results_come_as_soon_as_they_and_all_before_them_are_ready(on_pool: OnPool, gate: Gate) -> None:
    """The last item ends only after the first result was seen, so nobody waited for it."""

    async def main(pool: Pool) -> None:
        results = aiter(pool.map(functools.partial(targets.wait_if, gate.path, 5), range(6)))
        assert [await anext(results) for _ in range(5)] == list(range(5))
        gate.open()
        assert await anext(results) == 5
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    on_pool(main)


def test_a_slow_first_item_does_not_keep_later_ones_from_running(on_pool: OnPool, bell: Bell, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        slow = asyncio.ensure_future(pool.apply(targets.ring_pid_and_wait, (bell.path, gate.path)))
        results = await pool.map(targets.later, range(1000))
        assert results == list(range(1000))
        gate.open()
        await slow

    on_pool(main)


def test_a_map_may_be_awaited_again_and_iterated_afterwards(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(targets.later, range(10))
        assert isinstance(result, PoolResult)
        first, second = await asyncio.gather(result, result)
        assert first == second == await result == [x async for x in result] == list(range(10))

    on_pool(main)


def test_maps_and_applies_run_side_by_side(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        maps = [pool.map(targets.later, range(n, n + 300)) for n in range(5)]
        applies = [pool.apply(targets.double, (n,)) for n in range(100)]
        *results, doubles = await asyncio.gather(*maps, asyncio.gather(*applies))
        assert results == [list(range(n, n + 300)) for n in range(5)]
        assert doubles == [2 * n for n in range(100)]

    on_pool(main)


@pytest.mark.parametrize("chunksize", [None, 1, 256])
def test_an_apply_does_not_wait_behind_an_endless_map(on_pool: OnPool, chunksize: int | None) -> None:
    async def main(pool: Pool) -> None:
        async def consume() -> None:
            async for _ in pool.map(targets.double, itertools.count(), chunksize=chunksize):
                pass

        consumer = asyncio.ensure_future(consume())
        assert [await pool.apply(targets.double, (n,)) for n in range(20)] == list(range(0, 40, 2))
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer

    on_pool(main)


@KINDS
@pytest.mark.parametrize("chunksize", [1, 7, 256, 100_000])
def test_results_are_the_same_with_chunks_of_every_size(on_pool: OnPool, kind: Kind, chunksize: int) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.map(targets.double, kind(Source(600)), chunksize=chunksize) == list(range(0, 1200, 2))
        pairs = [(n, 1) for n in range(300)]
        assert await pool.starmap(targets.add_async, pairs, chunksize=chunksize) == list(range(1, 301))

    on_pool(main)


def test_an_item_that_fails_or_blocks_among_others_of_its_chunk_is_alone_in_that(on_pool: OnPool, gate: Gate) -> None:
    """The last item of the chunk opens the gate at which the first one blocks its worker."""

    async def main(pool: Pool) -> None:
        task = functools.partial(targets.block_or_open, gate.path, 99)
        assert await pool.map(task, range(100), chunksize=100) == list(range(100))
        outcomes = await pool.map(
            functools.partial(targets.fail_at, 3), range(100), chunksize=100, return_exceptions=True
        )
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [3]

    on_pool(main)


def test_an_impossible_chunksize_is_refused(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(ValueError, match="chunksize must be 1 or more"):
            pool.map(targets.later, [1], chunksize=0)
        with pytest.raises(TypeError):
            pool.starmap(targets.add, [(1, 2)], chunksize=1.5)  # type: ignore[arg-type]
        assert await pool.map(targets.later, [1]) == [1]

    on_pool(main)


# ------------------------------------------------------------------------------------------------------- lazy input


@KINDS
def test_endless_input_is_drawn_only_so_far_ahead_of_what_is_taken(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        source, taken = Source(), 0
        results = aiter(pool.map(targets.double, kind(source)))
        async for value in results:
            assert value == 2 * taken
            taken += 1
            assert source.drawn <= taken + WINDOW + 1
            if taken == 5000:
                break
        await results.aclose()  # type: ignore[attr-defined]
        assert source.closed
        drawn = source.drawn
        await pool.map(targets.later, range(100))
        assert source.drawn == drawn

    on_pool(main)


def test_input_that_takes_its_time_keeps_neither_the_loop_nor_idle_workers_waiting(
    on_pool: OnPool, bell: Bell, gate: Gate
) -> None:
    """All tasks must run before the first may end, and the loop turns while their arguments are being drawn."""

    def slowly() -> Iterator[tuple[str, str]]:
        for _ in range(20):
            time.sleep(0.003)
            turns_at.append(turns)
            yield bell.path, gate.path

    turns, turns_at = 0, []

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main(pool: Pool) -> None:
        turning = asyncio.create_task(turn())
        result = pool.starmap(targets.ring_and_wait, slowly())
        for _ in range(20):
            await bell.hear()
        turning.cancel()
        gate.open(20)
        assert await result == ["waited"] * 20
        assert len(set(turns_at)) >= 10, "a turn of the loop between most items"

    on_pool(main)


@KINDS
def test_input_is_not_drawn_while_nobody_takes_results(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        source = Source()
        result = pool.map(targets.double, kind(source))
        await pool.map(targets.later, range(5000))
        assert source.drawn <= WINDOW + 1
        results = aiter(result)
        assert await anext(results) == 0
        await results.aclose()  # type: ignore[attr-defined]
        assert source.closed

    on_pool(main)


def test_awaited_input_is_drawn_only_so_far_ahead_of_results(on_pool: OnPool, tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        source, path = Source(6000), tmp_path / "done"
        ahead: list[int] = []

        def watched() -> Iterator[int]:
            for x in source.items():
                if x % 100 == 0 and path.exists():
                    ahead.append(x - path.stat().st_size)
                yield x

        await pool.map(functools.partial(targets.append, str(path)), ("" for _ in watched()))
        assert path.stat().st_size == 6000
        assert max(ahead) <= WINDOW

    on_pool(main)


@KINDS
def test_input_that_raises_is_raised_after_the_results_before_it(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        source, seen = Source(fails_at=50), []
        with pytest.raises(KeyError, match="input"):
            async for x in pool.map(targets.later, kind(source)):
                seen.append(x)
        assert seen == list(range(50))
        with pytest.raises(KeyError, match="input"):
            await pool.map(targets.later, kind(Source(fails_at=50)))
        with pytest.raises(KeyError, match="input"):
            await pool.map(targets.later, kind(Source(fails_at=0)))

    on_pool(main)


def test_what_is_not_iterable_raises_at_the_call(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TypeError, match="'int' object is not iterable"):
            pool.map(targets.later, 3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
            pool.starmap(targets.later, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="'int' object is not iterable"):
            await pool.starmap(targets.later, [1])  # type: ignore[list-item]
        for characters in ("ab", b"ab"):
            with pytest.raises(TypeError, match=r"args must be a sequence of arguments, not a \w+: write \(value,\)"):
                await pool.starmap(targets.add_async, [characters])

    on_pool(main)


def test_an_item_that_cannot_be_sent_fails_the_map(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
            await pool.map(targets.echo, [1, (x for x in ()), 2])
        assert await pool.map(targets.echo, [1, 2]) == [1, 2]

    on_pool(main)


def test_input_may_use_the_pool_itself(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        async def items() -> AsyncIterator[int]:
            for x in range(50):
                yield await pool.apply(targets.double, (x,))

        def nested() -> Iterator[PoolResult[int]]:
            for _ in range(3):
                maps.append(pool.map(targets.double, range(3)))
                yield 1

        maps: list[PoolResult[int]] = []
        assert await pool.map(targets.later, items()) == list(range(0, 100, 2))
        assert await pool.map(targets.later, nested()) == [1, 1, 1]
        assert await asyncio.gather(*maps) == [[0, 2, 4]] * 3

    on_pool(main)


def test_input_may_change_the_list_it_came_from(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        items = list(range(100))
        result = pool.map(targets.later, items)
        items.clear()
        assert await result == list(range(100))

    on_pool(main)


# ----------------------------------------------------------------------------------------- failing, leaving, cancelling


def test_the_first_item_that_fails_is_raised_and_cancels_the_rest(on_pool: OnPool, bell: Bell, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(functools.partial(targets.fail_or_wait, bell.path, gate.path), range(6)).results()
        awaiting = asyncio.ensure_future(result)
        assert sorted([await bell.hear() for _ in range(5)]) == ["1", "2", "3", "4", "5"]
        gate.open()  # item 0 fails
        with pytest.raises(LookupError, match=r"^0$") as caught:
            await awaiting
        assert "fail_or_wait" in str(caught.value.__cause__)
        assert [await bell.hear() for _ in range(5)] == ["cancelled"] * 5

    on_pool(main)


@KINDS
def test_a_failing_item_closes_the_input(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        for awaited in (True, False):
            source = Source()
            result = pool.map(functools.partial(targets.fail_at, 10), kind(source))
            with pytest.raises(LookupError):
                if awaited:
                    await result
                else:
                    async for _ in result:
                        pass
            await asyncio.sleep(0)
            while not source.closed:  # an asynchronous one is closed by a task of its own
                await asyncio.sleep(0)

    on_pool(main)


def test_results_before_the_failing_item_are_given_first(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        seen = []
        with pytest.raises(LookupError):
            async for x in pool.map(functools.partial(targets.fail_at, 10), range(100)):
                seen.append(x)
        assert seen == list(range(10))

    on_pool(main)


def test_a_map_that_failed_raises_the_same_when_awaited_again(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(functools.partial(targets.fail_at, 1), range(3))
        for _ in range(2):
            with pytest.raises(LookupError):
                await result

    on_pool(main)


def test_leaving_the_iteration_early_cancels_what_has_not_finished(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        results = aiter(pool.map(functools.partial(targets.value_or_wait, bell.path), range(6)))
        assert await anext(results) == 0
        started = [await bell.hear() for _ in range(5)]
        assert sorted(started) == ["1", "2", "3", "4", "5"]
        await results.aclose()  # type: ignore[attr-defined]
        assert [await bell.hear() for _ in range(5)] == ["cancelled"] * 5

    on_pool(main)


def test_cancelling_whoever_awaits_a_map_cancels_its_items_and_closes_its_input(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        source = Source(4)
        awaiting = asyncio.ensure_future(
            pool.map(functools.partial(targets.wait_for_ever, bell.path), source.items()).results()
        )
        assert sorted([await bell.hear() for _ in range(4)]) == ["0", "1", "2", "3"]
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        assert [await bell.hear() for _ in range(4)] == ["cancelled"] * 4
        assert source.closed

    on_pool(main)


def test_queued_items_of_a_cancelled_map_never_start(on_pool: OnPool, bell: Bell, gate: Gate, tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        blocked = [asyncio.ensure_future(pool.apply(targets.ring_pid_and_block, (bell.path, gate.path))) for _ in "ab"]
        assert len({await bell.hear() for _ in blocked}) == 2  # both workers
        path = str(tmp_path / "started")
        awaiting = asyncio.ensure_future(pool.map(functools.partial(targets.append, path), range(100)).results())
        await asyncio.sleep(0.01)  # lets it be posted; whether it was does not matter
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        gate.open(2)
        await asyncio.gather(*blocked)
        await pool.map(targets.later, range(100))
        assert not os.path.exists(path)

    on_pool(main)


@KINDS
def test_a_map_is_iterated_once(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(targets.later, kind(Source(5)))
        assert [x async for x in result] == list(range(5))
        with pytest.raises(RuntimeError, match=r"were taken by `async for`"):
            await result
        with pytest.raises(RuntimeError, match=r"were taken by `async for`"):
            async for _ in result:
                pass

    on_pool(main)


def test_breaking_out_of_the_iteration_cancels_what_has_not_finished(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        async for value in pool.map(functools.partial(targets.value_or_wait, bell.path), range(6)):
            assert value == 0
            assert sorted([await bell.hear() for _ in range(5)]) == ["1", "2", "3", "4", "5"]
            break
        assert [await bell.hear() for _ in range(5)] == ["cancelled"] * 5

    on_pool(main)


def test_an_asynchronous_input_that_fails_to_close_is_an_input_that_raised(on_pool: OnPool) -> None:
    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            raise KeyError("closing")

    async def main(pool: Pool) -> None:
        with pytest.raises(KeyError, match="closing"):
            await pool.map(targets.later, Items())

    on_pool(main)


def test_an_asynchronous_item_that_cannot_be_sent_closes_the_input(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        closed = []

        async def items() -> AsyncIterator[Any]:
            try:
                yield (x for x in ())
            finally:
                closed.append(True)

        with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
            await pool.map(targets.echo, items())
        assert closed

    on_pool(main)


def test_an_input_that_is_cancelled_from_outside_cancels_whoever_waits(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        feeding: list[asyncio.Task[Any]] = []

        async def items() -> AsyncIterator[int]:
            task = asyncio.current_task()
            assert task is not None
            feeding.append(task)
            yield 1
            await asyncio.Event().wait()

        awaiting = asyncio.ensure_future(pool.map(targets.later, items()).results())
        while not feeding:
            await asyncio.sleep(0)
        feeding[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting

    on_pool(main)
