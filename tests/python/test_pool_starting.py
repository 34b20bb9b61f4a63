"""Starting a pool's workers: what the client's loop does meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool

Run = Callable[[Coroutine[Any, Any, Any]], Any]
pytestmark = pytest.mark.timeout(60)

WATCHDOG_S = 30.0


def test_the_loop_turns_while_each_worker_is_being_started(
    start_method: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned, started, start = threading.Event(), [], BaseProcess.start

    def start_once_the_loop_has_turned(process: BaseProcess) -> None:
        # On the loop's own thread this would wait in vain.
        turned.clear()
        if not turned.wait(WATCHDOG_S):
            raise TimeoutError("the loop did not turn")
        started.append(process.name)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", start_once_the_loop_has_turned)

    async def turn() -> None:
        while True:
            turned.set()
            await asyncio.sleep(0)

    async def main() -> None:
        turning = asyncio.create_task(turn())
        async with Pool(3) as pool:
            await pool.ready()
            assert await pool.apply(targets.double, (21,)) == 42
        turning.cancel()

    run(main())
    assert len(started) >= 3
