"""A worker's asyncio loop, whose selector takes the worker's turns: which loops have it, and that it is a selector."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

import select_targets as targets
from polyloop import Pool
from polyloop.errors import WorkerStartError
from rendezvous import Bell

pytestmark = pytest.mark.timeout(60)

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture(params=["turns", "plain"])
def on_pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OnPool:
    """Runs a coroutine function on a pool of one worker, with the selector and without."""
    monkeypatch.setenv("POLYLOOP_SELECT", request.param)

    async def run(main: Callable[[Pool], Coroutine[Any, Any, Any]]) -> Any:
        async with Pool(1) as pool:
            kind = await pool.apply(targets.selector)
            assert kind == (("WorkerSelector", True) if request.param == "turns" else ("EpollSelector", False))
            return await main(pool)

    return lambda main: asyncio.run(run(main))


def test_a_strange_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYLOOP_SELECT", "magic")

    async def main() -> None:
        async with Pool(1) as pool:
            await pool.apply(targets.echo, (1,))

    with pytest.raises(WorkerStartError, match="POLYLOOP_SELECT can be turns or plain, not 'magic'"):
        asyncio.run(main())


def test_a_loop_of_the_users_own_keeps_its_selector() -> None:
    async def kind(loop_initializer: Callable[[], asyncio.AbstractEventLoop]) -> Any:
        async with Pool(1, loop_initializer=loop_initializer) as pool:
            return await pool.apply(targets.selector)

    assert asyncio.run(kind(asyncio.new_event_loop)) == ("EpollSelector", False)
    assert asyncio.run(kind(uvloop.new_event_loop)) == ("NoneType", False)


POLICY_PROGRAM = """
import asyncio
from polyloop import Pool
class Policy(asyncio.DefaultEventLoopPolicy):
    pass
asyncio.set_event_loop_policy(Policy())
def seen():
    return type(asyncio.get_event_loop()._selector).__name__
async def main():
    async with Pool(1) as pool:
        print(await pool.apply(seen))
if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_policy_of_the_users_own_makes_the_loop(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(POLICY_PROGRAM)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "EpollSelector\n"


def test_timers_end_while_calls_stream_through_the_worker(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        sleeping = [asyncio.ensure_future(pool.apply(targets.sleep, (0.05,))) for _ in range(4)]
        calls = 0
        while not all(call.done() for call in sleeping):
            assert await pool.apply(targets.echo, (calls,)) == calls
            calls += 1
        assert calls > 0
        assert min([await call for call in sleeping]) >= 0.05

    on_pool(main)


def test_threads_pipes_and_processes_wake_the_loop(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.apply(targets.hear_thread) == "heard"
        text = "some text " * 20_000
        assert await pool.apply(targets.pipe, (text,)) == text
        assert await pool.apply(targets.subprocess_output) == "hello"
        calls = [pool.apply(targets.pipe, (text,)), pool.apply(targets.hear_thread), pool.map(targets.echo, range(500))]
        assert await asyncio.gather(*calls) == [text, "heard", list(range(500))]

    on_pool(main)


def test_what_a_function_leaves_to_the_loop_happens_without_another_call(on_pool: OnPool, bell: Bell) -> None:
    async def main(pool: Pool) -> None:
        await pool.apply(targets.leave_to_the_loop, (bell.path,))
        assert {await bell.hear() for _ in range(3)} == {"later", "soon", "thread"}

    on_pool(main)


def test_a_failing_callback_and_a_stopped_loop_stop_nothing(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert "ValueError" in await pool.apply(targets.raise_in_callback)
        assert await pool.apply(targets.stop_the_loop) == "went on"
        assert await pool.map(targets.echo, range(100)) == list(range(100))

    on_pool(main)
