"""`PoolResult.progress`: what it tells a bar, and that a bar is optional. The bar is a stand-in for tqdm's."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool
from rendezvous import Gate

pytestmark = pytest.mark.timeout(30)


class Bar:
    """What polyloop uses of tqdm."""

    bars: list[Bar]

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.closed = options, 0, False
        self.moved = asyncio.Event()
        Bar.bars.append(self)

    def update(self, n: int) -> None:
        assert not self.closed
        self.n += n
        if n:
            self.moved.set()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    module = ModuleType("tqdm.auto")
    module.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    monkeypatch.setattr(Bar, "bars", [], raising=False)
    return Bar.bars


def test_the_bar_knows_the_end_and_reaches_it(bars: list[Bar]) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            assert await pool.map(targets.later, range(1000)).progress(desc="x") == list(range(1000))
            assert [n async for n in pool.map(targets.later, iter(range(5))).progress()] == list(range(5))
            async for outcome in pool.map(targets.fail_later, [1, 2]).progress().outcomes():
                assert outcome.error is not None
            await asyncio.sleep(0)

    asyncio.run(main())
    assert [bar.options for bar in bars] == [{"total": 1000, "desc": "x"}, {"total": None}, {"total": 2}]
    assert [(bar.n, bar.closed) for bar in bars] == [(1000, True), (5, True), (2, True)]


def test_the_bar_moves_while_items_run(bars: list[Bar], gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            result = pool.starmap(targets.wait_at, [(gate.path,)] * 3).progress()
            gate.open(2)
            while bars[0].n < 2:
                bars[0].moved.clear()
                await bars[0].moved.wait()
            assert not bars[0].closed
            gate.open()
            await result

    asyncio.run(main())


def test_the_bar_of_a_map_that_is_left_is_closed(bars: list[Bar], gate: Gate) -> None:
    async def main() -> None:
        async with Pool(1) as pool:
            async with pool.starmap(targets.wait_at, [(gate.path,)] * 3).progress():
                pass
            with pytest.raises(LookupError):
                await pool.map(targets.fail_later, range(3)).progress()
            pool.starmap(targets.wait_at, [(gate.path,)]).progress()

    asyncio.run(main())
    assert [bar.closed for bar in bars] == [True] * 3


def test_without_tqdm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setitem(sys.modules, "tqdm", None)
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        async with Pool(1) as pool:
            with pytest.raises(ModuleNotFoundError, match=r"pip install 'polyloop\[progress\]'"):
                pool.map(targets.later, range(3)).progress()

    asyncio.run(main())
