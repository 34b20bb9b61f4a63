"""Every fault of a worker at every moment of its life: what becomes of its calls, and of the pool.

What a single fault does in depth is in test_pool_deaths.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fault_targets as targets
from polyloop import Pool, WorkerDied, context
from rendezvous import Bell, Gate, Journal

pytestmark = pytest.mark.timeout(20)

# In full on one interpreter: the moments differ by start method, hardly by version.
METHODS = ("spawn", "fork", "forkserver") if sys.version_info[:2] == (3, 11) else ("forkserver",)

# What the fault does to the process, as an exit code; None: nothing.
FAULTS: dict[str, int | None] = {
    "SIGKILL": -signal.SIGKILL,
    "SIGSEGV": -signal.SIGSEGV,
    "abort": -signal.SIGABRT,
    "_exit": 3,
    "exit in a thread": None,
    "SIGTERM": -signal.SIGTERM,
    "SIGSTOP, SIGKILL": -signal.SIGKILL,
}
SENT_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGSTOP, SIGKILL")
QUEUED = 5


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = context.get_context().get_start_method()
    context.set_start_method(request.param)
    yield request.param
    context.set_start_method(before)


@dataclass
class Scene:
    """A pool of one worker, and how to bring its fault about."""

    fault: str
    retries: int
    directory: Path
    bell: Bell
    gate: Gate

    @property
    def exitcode(self) -> int | None:
        return FAULTS[self.fault]

    def pool(self, **options: Any) -> Pool:
        initargs = (self.fault, str(self.directory), self.bell.path)
        return Pool(1, targets.arm, initargs, retries=self.retries, **options)

    def call(self, pool: Pool, function: Any, name: str) -> asyncio.Future[Any]:
        mark = str(self.directory / f"{name}-{self.retries}")
        return asyncio.ensure_future(pool.apply(function, (mark, self.bell.path, self.gate.path)))

    def queue(self, pool: Pool) -> list[asyncio.Future[int]]:
        return [asyncio.ensure_future(pool.apply(targets.same, (x,))) for x in range(QUEUED)]

    def strike(self, pid: int) -> None:
        """Bring the fault about in the worker, and wait, the loop with it, until it has happened."""
        if self.exitcode is None:
            self._pull_trigger(pid)
            return
        pidfd = os.pidfd_open(pid)
        if self.fault not in SENT_FROM_OUTSIDE:
            self._pull_trigger(pid)
        else:
            for name in self.fault.split(", "):
                os.kill(pid, signal.Signals[name])
        select.select([pidfd], [], [])
        os.close(pidfd)

    def _pull_trigger(self, pid: int) -> None:
        with open(targets.trigger_of(str(self.directory), pid), "wb", buffering=0) as trigger:
            trigger.write(b".")

    async def end_of_strike(self, passes: int = 1) -> None:
        """Where the worker lives on, see that it does, and let its calls go on."""
        if self.exitcode is None:
            assert await self.bell.hear() == "survived"
            self.gate.open(passes)

    async def check(self, call: asyncio.Future[Any], pid: int, name: str) -> None:
        """The call ends as promised: with its value where it could, else with what happened to its worker."""
        expected = str(self.directory / f"{name}-{self.retries}")
        if self.exitcode is None or self.retries:
            assert await call == (b"x" * targets.SENT_BYTES if name == "sending" else expected)
            return
        with pytest.raises(WorkerDied) as caught:
            await call
        signame = signal.Signals(-self.exitcode).name if self.exitcode < 0 else None
        assert (caught.value.pid, caught.value.exitcode, caught.value.signal) == (pid, self.exitcode, signame)

    async def check_goes_on(self, pool: Pool) -> None:
        assert await pool.map(targets.same, range(100)) == list(range(100))
        pool.close()
        await pool.join()


@pytest.fixture(params=[0, 1], ids=["once", "retried"])
def retries(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=list(FAULTS))
def scene(request: pytest.FixtureRequest, method: str, retries: int, tmp_path: Path, bell: Bell, gate: Gate) -> Scene:
    return Scene(request.param, retries, tmp_path, bell, gate)


@pytest.mark.parametrize("function", [targets.block_in_first_step, targets.suspend, targets.block_plainly])
def test_a_fault_while_a_task_runs(scene: Scene, function: Any) -> None:
    async def main() -> None:
        pool = scene.pool(childconcurrency=1)
        call = scene.call(pool, function, "running")
        pid = int(await scene.bell.hear())
        queued = scene.queue(pool)
        await asyncio.sleep(0)
        scene.strike(pid)
        await scene.end_of_strike()
        await scene.check(call, pid, "running")
        assert await asyncio.gather(*queued) == list(range(QUEUED))
        await scene.check_goes_on(pool)

    asyncio.run(main())


def test_a_fault_while_two_tasks_run_in_the_worker(scene: Scene) -> None:
    async def main() -> None:
        pool = scene.pool()
        calls = {name: scene.call(pool, targets.suspend, name) for name in ("first", "second")}
        pid, same_pid = [int(await scene.bell.hear()) for _ in calls]
        assert pid == same_pid
        scene.strike(pid)
        await scene.end_of_strike(2)
        for name, call in calls.items():
            await scene.check(call, pid, name)
        await scene.check_goes_on(pool)

    asyncio.run(main())


def test_a_fault_while_a_result_is_being_sent(scene: Scene) -> None:
    async def main() -> None:
        pool = scene.pool()
        pid = await pool.apply(os.getpid)
        call = scene.call(pool, targets.send_much, "sending")
        for _ in range(2):  # to submit it, and to put it on the board
            await asyncio.sleep(0)
        select.select([scene.bell.fd], [], [])  # the loop stands still, so nobody drains the ring: it is full
        assert scene.bell.heard() == [str(pid)]
        scene.strike(pid)
        await scene.end_of_strike()
        await scene.check(call, pid, "sending")
        await scene.check_goes_on(pool)

    asyncio.run(main())


def test_a_fault_while_the_pool_closes(scene: Scene) -> None:
    async def main() -> None:
        pool = scene.pool(childconcurrency=1)
        call = scene.call(pool, targets.suspend, "closing")
        pid = int(await scene.bell.hear())
        queued = scene.queue(pool)
        await asyncio.sleep(0)
        pool.close()
        scene.strike(pid)
        await scene.end_of_strike()
        await scene.check(call, pid, "closing")
        assert await asyncio.gather(*queued) == list(range(QUEUED))
        await pool.join()

    asyncio.run(main())


def test_a_fault_while_the_worker_is_being_recycled(scene: Scene) -> None:
    async def main() -> None:
        pool = scene.pool(maxtasksperchild=2, childconcurrency=2)
        calls = {name: scene.call(pool, targets.suspend, name) for name in ("first", "second")}
        pid, same_pid = [int(await scene.bell.hear()) for _ in calls]
        assert pid == same_pid
        assert await pool.apply(targets.same, (1,)) == 1  # its successor is there already
        scene.strike(pid)
        await scene.end_of_strike(2)
        for name, call in calls.items():
            await scene.check(call, pid, name)
        await scene.check_goes_on(pool)

    asyncio.run(main())


def test_a_fault_while_another_call_is_being_cancelled(scene: Scene) -> None:
    async def main() -> None:
        pool = scene.pool()
        call = scene.call(pool, targets.suspend, "neighbour")
        pid = int(await scene.bell.hear())
        cancelled = scene.call(pool, targets.ignore_a_cancel, "cancelled")
        assert int(await scene.bell.hear()) == pid
        cancelled.cancel()
        assert await scene.bell.hear() == "ignored"
        assert not cancelled.done()
        scene.strike(pid)
        await scene.end_of_strike(2)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await scene.check(call, pid, "neighbour")
        await scene.check_goes_on(pool)

    asyncio.run(main())


# Where no task runs, retries change nothing.
CALM = pytest.mark.parametrize("retries", [0], ids=["calm"])


@CALM
def test_a_fault_while_the_worker_is_idle(scene: Scene, journal: Journal) -> None:
    async def main() -> None:
        pool = scene.pool()
        pid = await pool.apply(os.getpid)
        scene.strike(pid)
        await scene.end_of_strike(0)
        assert (await pool.apply(os.getpid) == pid) == (scene.exitcode is None)
        assert len(journal.lines) == (scene.exitcode is not None)
        await scene.check_goes_on(pool)

    asyncio.run(main())


@CALM
def test_a_fault_while_the_worker_starts(scene: Scene) -> None:
    async def main() -> None:
        initargs = (scene.fault, str(scene.directory), scene.bell.path, scene.gate.path)
        pool = Pool(1, targets.commit_at_first_start, initargs, retries=scene.retries)
        queued = scene.queue(pool)
        if scene.fault == "SIGSTOP, SIGKILL":
            scene.strike(int(await scene.bell.hear()))
        assert await asyncio.gather(*queued) == list(range(QUEUED))
        await scene.check_goes_on(pool)

    asyncio.run(main())


def test_a_worker_whose_task_does_not_heed_sigterm_is_killed(
    method: str, bell: Bell, gate: Gate, tmp_path: Path
) -> None:
    async def main() -> None:
        scene = Scene("SIGTERM", 0, tmp_path, bell, gate)
        pool = scene.pool(grace=0.1)
        call = scene.call(pool, targets.ignore_cancels, "deaf")
        pid = int(await bell.hear())
        assert await pool.apply(targets.same, (1,)) == 1  # the deaf one is suspended
        scene.strike(pid)
        assert await bell.hear() == "ignored"
        with pytest.raises(WorkerDied) as caught:
            await call
        assert caught.value.signal == "SIGKILL"
        await scene.check_goes_on(pool)

    asyncio.run(main())
