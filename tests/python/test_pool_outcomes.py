"""What a `map` does when items fail, when it is left early, and when results are taken as they finish."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from map_inputs import KINDS, Kind, Source, complete, nothing_is_left
from polyloop import Outcome, Pool
from rendezvous import Bell, Gate

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)


# ----------------------------------------------------------------------------------------------------- the first fails


@KINDS
def test_a_failure_cancels_the_rest_though_whoever_iterates_is_elsewhere(
    on_pool: OnPool, bell: Bell, gate: Gate, kind: Kind
) -> None:
    async def main(pool: Pool) -> None:
        source = Source()
        function = functools.partial(targets.first_then_fail_or_wait, bell.path, gate.path)
        results = aiter(pool.map(function, kind(source)))
        assert await anext(results) == 0
        started, cancelled = [await bell.hear() for _ in range(31)], 0
        assert "cancelled" not in started
        gate.open()
        while cancelled < len(started):
            if await bell.hear() == "cancelled":
                cancelled += 1
            else:  # took the place of the one that failed, before that was known here
                started.append("one more")
        assert len(started) <= 33
        await source.closed.wait()
        with pytest.raises(LookupError, match=r"^1$"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        await nothing_is_left(pool)
        assert bell.heard() == []  # what was queued never started

    on_pool(main)


def test_items_before_the_one_that_failed_finish_and_are_given_first(on_pool: OnPool, bell: Bell, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        waits, fails = (gate.path, 0), (gate.path + ".second", 1)
        second = Gate(Path(fails[0]))
        calls = [(targets.wait_then_value, waits), (targets.fail_after, fails), (targets.wait_for_ever, (bell.path,))]
        results = aiter(pool.starmap(targets.call, calls))
        assert await bell.hear() == "started"
        second.open()
        assert await bell.hear() == "cancelled"
        gate.open()
        assert await anext(results) == 0
        with pytest.raises(LookupError, match=r"^1$"):
            await anext(results)
        second.close()

    on_pool(main)


@pytest.mark.parametrize("takes", ["awaited", "unordered"])
def test_a_failure_is_raised_while_items_before_it_still_run(
    on_pool: OnPool, bell: Bell, gate: Gate, takes: str
) -> None:
    async def main(pool: Pool) -> None:
        calls = [(targets.wait_for_ever, (bell.path,)), (targets.fail_after, (gate.path, 1))]
        result = pool.starmap(targets.call, calls)
        awaiting = asyncio.ensure_future(result.results() if takes == "awaited" else anext(result.unordered()))
        assert await bell.hear() == "started"
        gate.open()
        with pytest.raises(LookupError, match=r"^1$"):
            await awaiting
        assert bell.heard() == ["cancelled"]

    on_pool(main)


def test_a_failure_ends_an_input_that_waits_for_room(on_pool: OnPool, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        source = Source()
        results = aiter(
            pool.map(functools.partial(targets.fail_at_gate, gate.path), source.asynchronous(), buffersize=3)
        )
        while source.drawn < 3:
            await asyncio.sleep(0)
        gate.open()
        with pytest.raises(LookupError):
            await anext(results)
        assert source.closed.is_set()
        assert source.drawn == 3

    on_pool(main)


def test_whoever_awaits_a_failed_map_gets_the_failure(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(functools.partial(targets.fail_at, 1), range(3))
        both = await asyncio.gather(result, result, return_exceptions=True)
        assert [type(error) for error in both] == [LookupError] * 2
        for _ in range(2):
            with pytest.raises(LookupError):
                async for _ in result:
                    pass

    on_pool(main)


def test_cancelling_one_of_two_who_await_cancels_the_map(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(functools.partial(targets.wait_for_ever, bell.path), range(2))
        first, second = (asyncio.ensure_future(result.results()) for _ in "ab")
        assert {await bell.hear() for _ in "ab"} == {"0", "1"}
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert first.cancelled()
        assert bell.heard() == ["cancelled"] * 2

    on_pool(main)


def test_the_iteration_may_be_asked_again_after_a_caught_failure(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(functools.partial(targets.fail_at, 2), range(5))
        results, seen = aiter(result), []
        with pytest.raises(LookupError):
            async for x in results:
                seen.append(x)
        assert seen == [0, 1]
        assert [x async for x in results] == []
        with pytest.raises(LookupError):
            await result
        with pytest.raises(LookupError):
            await anext(aiter(result))

    on_pool(main)


def test_iterating_over_a_map_that_is_awaited_gives_its_results(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(targets.later, range(100))
        awaiting = asyncio.ensure_future(result.results())
        await asyncio.sleep(0)
        assert [x async for x in result] == await awaiting == list(range(100))
        assert [x async for x in result.unordered()] == list(range(100))
        with pytest.raises(RuntimeError, match="are awaited"):
            result.outcomes()

    on_pool(main)


# ---------------------------------------------------------------------------------------------------- errors are kept


@KINDS
def test_exceptions_stand_in_place_of_values(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        awaited = await pool.map(targets.misbehave, kind(Source(10)), return_exceptions=True)
        iterated = [x async for x in pool.map(targets.misbehave, kind(Source(10)), return_exceptions=True)]
        kinds = [int, LookupError, int, asyncio.CancelledError, int, asyncio.CancelledError, int, SystemExit, int, int]
        for results in (awaited, iterated):
            assert [type(x) for x in results] == kinds
            assert [x for x in results if isinstance(x, int)] == [0, 2, 4, 6, 8, 9]
        unordered = [x async for x in pool.map(targets.misbehave, kind(Source(10)), return_exceptions=True).unordered()]
        assert sorted(map(str, map(type, unordered))) == sorted(map(str, kinds))

    on_pool(main)


def test_a_kept_exception_cancels_nothing(on_pool: OnPool, bell: Bell, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        calls = [(targets.fail_later, (0,)), (targets.ring_and_wait, (bell.path, gate.path))]
        result = pool.starmap(targets.call, calls, return_exceptions=True)
        results = aiter(result)
        assert isinstance(await anext(results), LookupError)
        gate.open()
        assert await anext(results) == "waited"

    on_pool(main)


@KINDS
def test_what_the_input_raises_is_raised_all_the_same(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(KeyError, match="input"):
            await pool.map(targets.fail_if_odd, kind(Source(fails_at=5)), return_exceptions=True)
        seen: list[Any] = []
        with pytest.raises(KeyError, match="input"):
            async for x in pool.map(targets.fail_if_odd, kind(Source(fails_at=5)), return_exceptions=True):
                seen.append(x)
        assert [x if isinstance(x, int) else type(x) for x in seen] == [0, LookupError, 2, LookupError, 4]
        indices = []
        with pytest.raises(KeyError, match="input"):
            async for outcome in pool.map(targets.fail_if_odd, kind(Source(fails_at=5))).outcomes():
                indices.append(outcome.index)
        assert sorted(indices) == [0, 1, 2, 3, 4]
        await nothing_is_left(pool)

    on_pool(main)


@KINDS
def test_an_item_that_cannot_be_sent_is_one_that_failed(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        items = [1, (x for x in ()), 2, *((x for x in ()) for _ in range(20)), 3]

        async def asynchronous() -> AsyncIterator[Any]:
            for item in items:
                yield item

        source: Any = iter(items) if kind is Source.sync else asynchronous()
        results = await pool.map(targets.echo, source, return_exceptions=True)
        assert [x for x in results if isinstance(x, int)] == [1, 2, 3]
        assert [type(x) for x in results].count(TypeError) == 21
        mixed = await pool.starmap(targets.add, [(1, 2), 3, (4, 5)], return_exceptions=True)  # type: ignore[list-item]
        assert [mixed[0], type(mixed[1]), mixed[2]] == [3, TypeError, 9]

    on_pool(main)


# ------------------------------------------------------------------------------------------------------ as they finish


def test_outcomes_come_in_the_order_in_which_items_finish(on_pool: OnPool, tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        gates = [Gate(tmp_path / f"gate-{pool.context.get_start_method()}-{n}") for n in range(5)]
        items = [(gate.path, n) for n, gate in enumerate(gates)]
        async with pool.starmap(targets.wait_then_value, items).outcomes() as outcomes:
            for n in (3, 0, 4, 2, 1):
                gates[n].open()
                assert await anext(outcomes) == Outcome(n, n, None)
            assert [outcome async for outcome in outcomes] == []
        values = pool.starmap(targets.wait_then_value, items).unordered()
        for n in (1, 4, 0, 2, 3):
            gates[n].open()
            assert await anext(values) == n
        for gate in gates:
            gate.close()

    on_pool(main)


def test_outcomes_that_nobody_has_taken_yet_keep_their_order(on_pool: OnPool, tmp_path: Path) -> None:
    """Also those that came before they were asked for."""

    async def main(pool: Pool) -> None:
        gates = [Gate(tmp_path / f"gate-{n}") for n in range(5)]
        result = pool.starmap(targets.wait_then_value, [(gate.path, n) for n, gate in enumerate(gates)])
        order = (3, 0, 4, 2, 1)
        for left, n in reversed(list(enumerate(reversed(order)))):
            gates[n].open()
            while pool._manager.unfinished > left:
                await asyncio.sleep(0)
        assert [outcome.index async for outcome in result.outcomes()] == list(order)
        for gate in gates:
            gate.close()

    on_pool(main)


@KINDS
def test_an_outcome_has_a_value_or_an_error_and_a_failure_ends_nothing(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        outcomes = [outcome async for outcome in pool.map(targets.fail_if_odd, kind(Source(3000))).outcomes()]
        assert sorted(outcome.index for outcome in outcomes) == list(range(3000))
        for outcome in outcomes:
            if outcome.index % 2:
                assert outcome.value is None
                with pytest.raises(LookupError, match=f"^{outcome.index}$"):
                    outcome.result()
            else:
                assert (outcome.error, outcome.result()) == (None, outcome.index)

    on_pool(main)


def test_outcomes_may_be_asked_for_after_an_item_has_failed(on_pool: OnPool, gate: Gate) -> None:
    async def main(pool: Pool) -> None:
        source = Source(10)
        result = pool.map(functools.partial(targets.fail_at_gate, gate.path), source.sync(), buffersize=5)
        gate.open()
        while pool._manager.unfinished:
            await asyncio.sleep(0)
        assert sorted([outcome.index async for outcome in result.outcomes()]) == list(range(10))

    on_pool(main)


@KINDS
def test_outcomes_of_endless_input_are_drawn_as_they_are_taken(
    on_pool: OnPool, bell: Bell, gate: Gate, kind: Kind
) -> None:
    """A first item that never finishes holds up nothing, and nothing piles up behind it."""

    async def main(pool: Pool) -> None:
        source, taken = Source(), 0
        result = pool.map(functools.partial(targets.wait_if, gate.path, 0), kind(source), buffersize=50)
        async with result.outcomes() as outcomes:
            async for outcome in outcomes:
                taken += 1
                assert outcome.index != 0
                assert source.drawn <= taken + 50
                if taken == 3000:
                    break
        assert source.closed.is_set()
        await nothing_is_left(pool)

    on_pool(main)


@KINDS
def test_a_map_that_was_taken_to_its_end_leaves_nothing(on_pool: OnPool, kind: Kind) -> None:
    """Also where it is the last taking that draws the end of the input."""

    async def main(pool: Pool) -> None:
        for buffersize in (1, 2, 3, 10):
            result = pool.map(targets.double, kind(Source(3)), buffersize=buffersize)
            assert [x async for x in result] == [0, 2, 4]
            await complete(result)
            async with pool.map(targets.double, kind(Source(3)), buffersize=buffersize).outcomes() as outcomes:
                assert sorted([outcome.index async for outcome in outcomes]) == [0, 1, 2]
        await nothing_is_left(pool)

    on_pool(main)


def test_unordered_values_end_with_the_first_failure(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        source = Source()
        with pytest.raises(LookupError, match=r"^100$"):
            async for x in pool.map(functools.partial(targets.fail_at, 100), source.sync()).unordered():
                assert x != 100
        assert source.closed.is_set()
        await nothing_is_left(pool)

    on_pool(main)


def test_an_outcome_is_a_plain_value() -> None:
    outcome = Outcome(1, value="x")
    assert outcome == copy.copy(outcome) == pickle.loads(pickle.dumps(outcome))
    assert repr(outcome) == "Outcome(index=1, value='x', error=None)"
    with pytest.raises(AttributeError):
        outcome.index = 2  # type: ignore[misc]
    assert not hasattr(outcome, "__dict__")
