"""Fixtures every Python test file may use. Not a place for helpers of one file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from polyloop import Pool, context
from rendezvous import Bell, Gate, Journal

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

METHODS = ("spawn", "fork", "forkserver")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=METHODS)
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each start method in turn, set for the test and then put back."""
    before = context.get_context().get_start_method()
    context.set_start_method(request.param)
    yield request.param
    context.set_start_method(before)


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, T]], T]:
    """Runs a coroutine to its end: under asyncio, then under uvloop."""

    def run_on_loop(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main)

    return run_on_loop


@pytest.fixture(
    scope="module",
    params=[(method, loop) for method in METHODS for loop in LOOPS],
    ids=[f"{method}-{loop}" for method in METHODS for loop in LOOPS],
)
def on_pool(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[Pool], Coroutine[Any, Any, T]]], T]]:
    """Runs a coroutine function on a pool of two workers that the tests of a file share: each start method and loop.

    Where the client has uvloop, so have the workers.
    """
    method, loop = request.param
    before = context.get_context().get_start_method()
    context.set_start_method(method)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:

        async def make() -> Pool:
            return Pool(2, loop_initializer=LOOPS[loop] if loop == "uvloop" else None)

        async def end(pool: Pool) -> None:
            await pool.aclose(timeout=20)  # a test that failed may have left what does not end by itself

        pool = runner.run(make())
        yield lambda main: runner.run(main(pool))
        runner.run(end(pool))
    context.set_start_method(before)


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    """What workers ring and the test hears."""
    bell = Bell(tmp_path / "bell")
    yield bell
    bell.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where workers wait for the test."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def journal() -> Iterator[Journal]:
    """What polyloop logs in the client meanwhile."""
    journal, logger = Journal(), logging.getLogger("polyloop")
    logger.addHandler(journal)
    yield journal
    logger.removeHandler(journal)
