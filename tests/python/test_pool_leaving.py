"""What a `map` leaves behind when it is left early, cancelled, or given up because its input or its pool ends."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from map_inputs import KINDS, Kind, Source, complete, nothing_is_left
from polyloop import Pool, PoolResult, PoolTerminated
from rendezvous import Bell, Gate

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
Run = Callable[..., Any]
pytestmark = pytest.mark.timeout(60)


# -------------------------------------------------------------------------------------------------- an input that waits


def test_a_failure_interrupts_an_input_that_is_waiting(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        async def unordered(result: PoolResult[int]) -> None:
            async for _ in result.unordered():
                pass

        for take in (PoolResult.results, lambda result: anext(aiter(result)), unordered):
            source = Source(3)
            with pytest.raises(LookupError):
                await take(pool.map(functools.partial(targets.fail_at, 0), source.stalled()))
            assert source.closed.is_set()

    on_pool(main)


# -------------------------------------------------------------------------------------------------------- leaving early

TAKES: dict[str, Callable[[PoolResult[Any]], Any]] = {
    "result": lambda result: result,
    "in-order": PoolResult.results_generator,
    "unordered": PoolResult.unordered,
    "outcomes": PoolResult.outcomes,
}


@KINDS
@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize("how", ["normally", "by an exception", "by cancellation"])
def test_leaving_async_with_ends_everything(on_pool: OnPool, bell: Bell, kind: Kind, take: str, how: str) -> None:
    async def leave(source: Source, pool: Pool) -> None:
        async with TAKES[take](pool.map(functools.partial(targets.value_or_wait, bell.path), kind(source))) as results:
            iterator = aiter(results)
            await anext(iterator)
            for _ in range(32):
                await bell.hear()
            if how == "by an exception":
                raise KeyError("within")
            if how == "by cancellation":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await anext(iterator)

    async def main(pool: Pool) -> None:
        source = Source()
        kinds = {"normally": (), "by an exception": (KeyError,), "by cancellation": (asyncio.CancelledError,)}
        with suppress(*kinds[how]) if not kinds[how] else pytest.raises(kinds[how]):
            await asyncio.create_task(leave(source, pool))
        assert source.closed.is_set()
        assert pool._manager.unfinished == 0
        assert bell.heard() == ["cancelled"] * 32
        await nothing_is_left(pool)

    on_pool(main)


@KINDS
@pytest.mark.parametrize("take", ["in-order", "unordered", "outcomes"])
@pytest.mark.parametrize("how", ["break", "raise", "drop"])
def test_leaving_async_for_ends_everything(on_pool: OnPool, kind: Kind, take: str, how: str) -> None:
    async def main(pool: Pool) -> None:
        source = Source()

        async def loop() -> AsyncIterator[Any]:
            async for x in TAKES[take](pool.map(targets.later, kind(source))):
                if how == "break":
                    break
                if how == "raise":
                    raise KeyError("within")
                yield x

        values = loop()
        with suppress(KeyError, StopAsyncIteration):
            await anext(values)
        await values.aclose()
        await source.closed.wait()
        await nothing_is_left(pool)

    on_pool(main)


@KINDS
def test_a_cancelled_map_cancels_whoever_waits_for_it(on_pool: OnPool, bell: Bell, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        for take in (PoolResult.results, lambda result: anext(aiter(result)), lambda result: anext(result.outcomes())):
            source = Source(2)
            result = pool.map(functools.partial(targets.wait_for_ever, bell.path), kind(source))
            waiting = asyncio.ensure_future(take(result))
            assert sorted([await bell.hear() for _ in range(2)]) == ["0", "1"]
            assert result.cancel()
            assert not result.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(asyncio.CancelledError):
                await result
            assert [await bell.hear() for _ in range(2)] == ["cancelled"] * 2
            await source.closed.wait()
            await nothing_is_left(pool)

    on_pool(main)


@KINDS
def test_a_map_may_be_cancelled_at_once_and_after_its_end(on_pool: OnPool, kind: Kind) -> None:
    async def main(pool: Pool) -> None:
        result = pool.map(targets.later, kind(Source()))
        assert result.cancel()
        with pytest.raises(asyncio.CancelledError):
            await result
        done = pool.map(targets.later, kind(Source(3)))
        await done
        assert not done.cancel()
        assert await done == [0, 1, 2]
        async with pool.map(targets.later, kind(Source(3))) as result:
            values = await result
        assert await result == values
        unasked = pool.map(targets.later, kind(Source(3)))
        await complete(unasked)
        assert unasked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unasked
        await nothing_is_left(pool)

    on_pool(main)


def test_an_asynchronous_input_that_never_ran_is_closed_too(on_pool: OnPool) -> None:
    class Items:
        def __init__(self) -> None:
            self.closed = asyncio.Event()

        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> int:
            raise AssertionError

        async def aclose(self) -> None:
            self.closed.set()

    async def main(pool: Pool) -> None:
        items = Items()
        async with pool.map(targets.later, items):
            pass
        assert items.closed.is_set()

    on_pool(main)


def test_a_map_that_is_done_is_forgotten(on_pool: OnPool) -> None:
    """Also one whose results nobody has asked for."""

    async def main(pool: Pool) -> None:
        result = pool.map(targets.later, range(10))
        await complete(result)
        await asyncio.sleep(0)
        assert pool._maps == set()
        assert await result == list(range(10))

    on_pool(main)


# -------------------------------------------------------------------------------------------------------------- input


def test_an_input_may_cancel_the_map_it_feeds(on_pool: OnPool) -> None:
    """And use the pool while it does, and be closed though it runs at that moment."""

    async def main(pool: Pool) -> None:
        results: list[PoolResult[Any]] = []
        closed: list[PoolResult[Any]] = []

        def items() -> Iterator[int]:
            try:
                for x in itertools.count():
                    if x == 10:
                        closed.append(pool.map(targets.double, range(3)))
                        results[0].cancel()
                    yield x
            finally:
                closed.append(pool.map(targets.double, range(3)))

        async def asynchronous() -> AsyncIterator[int]:
            try:
                for x in itertools.count():
                    if x == 10:
                        closed.append(pool.map(targets.double, range(3)))
                        results[0].cancel()
                    yield x
            finally:
                closed.append(await pool.map(targets.double, range(3)))

        for source in (items(), asynchronous()):
            results[:] = [pool.map(targets.later, source, buffersize=5)]
            with pytest.raises(asyncio.CancelledError):
                async for _ in results[0]:
                    pass
            assert len(closed) == 2
            assert await closed[0] == [0, 2, 4]
            assert closed[1] == [0, 2, 4] or await closed[1] == [0, 2, 4]
            closed.clear()
        await nothing_is_left(pool)

    on_pool(main)


def test_a_map_is_cancelled_while_its_input_waits_for_the_pool(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        async def items() -> AsyncIterator[Any]:
            yield 1
            yield await pool.apply(targets.wait_for_ever, (bell.path,))

        async with pool.map(targets.later, items()):
            assert await bell.hear() == "started"
        assert bell.heard() == ["cancelled"]
        await nothing_is_left(pool)

    on_pool(main)


def test_an_input_that_raises_as_it_is_closed_is_heard_of_and_everything_is_cancelled(
    on_pool: OnPool, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(pool: Pool) -> None:
        heard: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(unraisable.exc_value))
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))

        def items() -> Iterator[int]:
            try:
                yield from itertools.count()
            finally:
                raise KeyError("closing")

        async def asynchronous() -> AsyncIterator[int]:
            try:
                for x in itertools.count():
                    yield x
            finally:
                raise KeyError("closing")

        for source in (items(), asynchronous()):
            async with pool.map(functools.partial(targets.wait_for_ever, bell.path), source):
                for _ in range(32):
                    await bell.hear()
            assert bell.heard() == ["cancelled"] * 32
            assert [repr(error) for error in heard] == ["KeyError('closing')"]
            heard.clear()
            await nothing_is_left(pool)
        for source in (items(), asynchronous()):
            with pytest.raises(LookupError, match=r"^3$"):
                await pool.map(functools.partial(targets.fail_at, 3), source)
            assert [repr(error) for error in heard] == ["KeyError('closing')"]
            heard.clear()
        loop.set_exception_handler(None)

    on_pool(main)


def test_an_input_that_swallows_its_cancellation_is_closed_all_the_same(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        closed = []

        async def items() -> AsyncIterator[int]:
            try:
                yield 0
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    yield 1
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        async with pool.map(targets.later, items()).results_generator() as results:
            assert await anext(results) == 0
        assert closed

    on_pool(main)


def test_a_file_is_left_open(on_pool: OnPool, tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        path = tmp_path / "lines"
        path.write_text("".join(f"{n}\n" for n in range(5000)))
        with path.open() as file:
            async with pool.map(targets.echo, file, buffersize=1) as result:
                assert await anext(aiter(result)) == "0\n"
            assert not file.closed

    on_pool(main)


@KINDS
@pytest.mark.parametrize("buffersize", [1, 7])
def test_input_is_drawn_buffersize_items_ahead(on_pool: OnPool, gate: Gate, kind: Kind, buffersize: int) -> None:
    async def main(pool: Pool) -> None:
        source = Source(100)
        results = aiter(pool.map(targets.double, kind(source), buffersize=buffersize))
        for taken in range(20):
            # What an asynchronous input gives is asked for by the half of what may be ahead.
            ahead = buffersize if kind is Source.sync else (buffersize + 1) // 2
            while source.drawn < taken + ahead:
                await asyncio.sleep(0)
            await pool.apply(targets.double, (1,))
            assert source.drawn <= taken + buffersize
            assert await anext(results) == 2 * taken
        await results.aclose()
        waiting = Source(100)
        function = functools.partial(targets.wait_then_value, gate.path)
        awaiting = asyncio.ensure_future(pool.map(function, kind(waiting), buffersize=buffersize).results())
        while waiting.drawn < buffersize:
            await asyncio.sleep(0)
        await pool.apply(targets.double, (1,))
        assert waiting.drawn == buffersize
        gate.open(100)
        assert await awaiting == list(range(100))

    on_pool(main)


def test_an_impossible_buffersize_is_refused(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(ValueError, match="buffersize must be 1 or more"):
            pool.map(targets.later, [1], buffersize=0)
        with pytest.raises(TypeError):
            pool.starmap(targets.later, [1], buffersize=1.5)  # type: ignore[arg-type, list-item]
        await nothing_is_left(pool)

    on_pool(main)


def test_an_asynchronous_iterable_that_raises_at_once_leaves_nothing_behind(run: Run) -> None:
    class Broken:
        def __aiter__(self) -> AsyncIterator[int]:
            raise KeyError("aiter")

    async def main() -> None:
        pool = Pool(1)
        with pytest.raises(KeyError, match="aiter"):
            pool.map(targets.later, Broken())
        pool.close()
        await pool.join()

    run(main())


# --------------------------------------------------------------------------------------------------- the pool's end


@KINDS
def test_close_and_join_collect_a_map_that_fails_or_keeps_its_errors(start_method: str, run: Run, kind: Kind) -> None:
    async def main() -> None:
        pool = Pool(2)
        fails = pool.map(functools.partial(targets.fail_at, 100), kind(Source()))
        keeps = pool.map(targets.fail_if_odd, kind(Source(5000)), return_exceptions=True)
        endless = pool.map(targets.later, kind(Source()))
        pool.close()
        endless.cancel()
        await pool.join()
        with pytest.raises(LookupError):
            await fails
        assert len(await keeps) == 5000

    run(main())


def test_a_map_is_taken_in_any_way_after_close(run: Run) -> None:
    async def main() -> None:
        pool = Pool(2)
        in_order, outcomes = pool.map(targets.later, range(5000)), pool.map(targets.later, range(5000))
        source = Source()
        endless = pool.map(targets.later, source.sync(), buffersize=10)
        pool.close()
        async for x in endless:
            assert source.drawn <= x + 1000
            if x == 2000:
                break
        assert [x async for x in in_order] == list(range(5000))
        assert sorted([outcome.index async for outcome in outcomes.outcomes()]) == list(range(5000))
        await pool.join()

    run(main())


@KINDS
@pytest.mark.parametrize("keep", [False, True])
def test_terminate_ends_maps_and_closes_their_input(
    start_method: str, run: Run, bell: Bell, kind: Kind, keep: bool
) -> None:
    async def main() -> None:
        sources = [Source() for _ in range(4)]
        async with Pool(2) as pool:
            unasked = pool.map(targets.later, kind(sources[0]), return_exceptions=keep)
            stalled = pool.map(targets.later, sources[1].stalled(), return_exceptions=keep)
            waiting = pool.map(
                functools.partial(targets.wait_for_ever, bell.path), kind(sources[2]), return_exceptions=keep
            )
            awaiting = asyncio.ensure_future(waiting.results())
            outcomes = pool.map(targets.later, kind(sources[3])).outcomes()
            await anext(outcomes)
            await bell.hear()
        for result in (unasked, stalled, awaiting):
            with pytest.raises(PoolTerminated):
                await result
        with pytest.raises(PoolTerminated):
            async for _ in outcomes:
                pass
        for source in sources:
            await source.closed.wait()
        assert pool._maps == set()

    run(main())


def test_a_map_keeps_its_pool(run: Run) -> None:
    async def main() -> list[int]:
        result = Pool(1).map(targets.double, range(10))
        values = await result
        with pytest.warns(ResourceWarning, match="neither closed nor terminated"):
            await asyncio.sleep(0)
        return list(values)

    assert run(main()) == list(range(0, 20, 2))
