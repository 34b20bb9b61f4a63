"""The start method, the starter thread, and what a child does first."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import process_targets as targets
from polyloop import context
from polyloop.context import PassedFd, Setup, Starter
from polyloop.process import Worker


def result_of(target: Any, *args: Any) -> Any:
    async def main() -> Any:
        return await Worker(target=target, args=args)

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _context_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_context", context.get_context())


# ----------------------------------------------------------------------------------------------------------- contexts


def test_the_default_is_forkserver_and_none_is_the_platforms() -> None:
    context.set_start_method("spawn")
    context.set_start_method()
    assert context.get_context().get_start_method() == "forkserver"
    context.set_start_method(None)
    assert context.get_context() is multiprocessing.get_context(None)
    context.set_context("spawn")
    assert context.get_context().get_start_method() == "spawn"
    context.set_context()
    assert context.get_context() is multiprocessing.get_context(None)


def test_an_unknown_start_method_is_refused_and_changes_nothing() -> None:
    before = context.get_context()
    with pytest.raises(ValueError, match="cannot find context for 'teleport'"):
        context.set_start_method("teleport")
    assert context.get_context() is before


def test_the_platforms_default_starts_processes() -> None:
    context.set_start_method(None)
    assert result_of(targets.add, 1) == 1


def test_the_main_guard_is_missed_only_while_main_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    context.check_main_guard()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match='under `if __name__ == "__main__":`'):
        context.check_main_guard()


@pytest.mark.parametrize(
    ("running", "before", "preload", "expected"),
    [
        (False, ["__main__"], [], ["polyloop._frozen"]),
        (False, ["__main__"], ["json"], ["polyloop._preload", "polyloop._frozen", "json"]),
        (False, ["numpy"], [], ["numpy"]),
        (False, ["numpy"], ["json"], ["polyloop._preload", "polyloop._frozen", "numpy", "json"]),
        (True, ["__main__"], ["json"], ["__main__"]),
    ],
)
def test_the_forkserver_preloads_polyloop_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, running: bool, before: list[str], preload: list[str], expected: list[str]
) -> None:
    server = multiprocessing.forkserver._forkserver
    monkeypatch.setattr(server, "_preload_modules", before)
    monkeypatch.setattr(server, "_forkserver_pid", 1 if running else None)
    context._choose_preload(preload)
    assert vars(server)["_preload_modules"] == expected


PRELOADED_PROGRAM = """
import asyncio, gc, sys
from polyloop import Pool
def seen():
    wanted = ("asyncio", "polyloop.pool", "polyloop._worker", "polyloop._lazy")
    return all(name in sys.modules for name in wanted), gc.get_freeze_count() > 10_000, gc.isenabled()
async def main():
    async with Pool(1) as pool:
        print(await pool.apply(seen))
if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_worker_of_a_forkserver_finds_polyloop_imported_and_frozen(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRELOADED_PROGRAM)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "(True, True, True)\n"


# ---------------------------------------------------------------------------------------------------------------- setup


def test_a_child_has_its_parents_environment_and_directory_of_now(
    start_method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POLYLOOP_VANISHES", "1")
    result_of(targets.pid)  # a forkserver has it from now on
    monkeypatch.delenv("POLYLOOP_VANISHES")
    monkeypatch.setenv("POLYLOOP_APPEARS", "\udcff1")
    monkeypatch.chdir(tmp_path)
    environment, directory = result_of(targets.environment)
    assert environment == dict(os.environ)
    assert directory == str(tmp_path)


def test_a_child_ignores_sigint_without_letting_its_own_children_inherit_that(start_method: str) -> None:
    assert result_of(targets.sigint) == (True, False)


def test_a_vanished_directory_is_a_warning(tmp_path: Path) -> None:
    setup = Setup({}, str(tmp_path / "gone"), os.getpid(), "spawn")
    with pytest.warns(RuntimeWarning, match=r"working directory .*gone' cannot be entered \(No such file"):
        setup._apply_directory()


def test_a_setup_pickles_and_knows_whose_child_it_makes() -> None:
    setup = Setup.capture("forkserver")
    assert pickle.loads(pickle.dumps(setup)) == setup
    assert setup.parent_pid == os.getpid()
    assert not setup.is_direct_child
    assert Setup.capture("fork").is_direct_child


# ---------------------------------------------------------------------------------------------------------- descriptors


def test_a_passed_descriptor_works_in_the_child_and_is_close_on_exec(start_method: str) -> None:
    reader, writer = os.pipe()
    assert result_of(targets.write_to, PassedFd(writer), b"hello") is False
    os.close(writer)
    assert os.read(reader, 100) == b"hello"
    os.close(reader)


def test_a_descriptor_cannot_be_passed_outside_of_a_start() -> None:
    with pytest.raises(RuntimeError, match="only to a process that is being started"):
        pickle.dumps(PassedFd(0))


def test_a_forked_child_closes_what_is_registered_as_its_parents() -> None:
    context.set_start_method("fork")
    reader, writer = os.pipe()
    inode = os.fstat(writer).st_ino
    context.register_parent_fd(writer)
    assert [result_of(targets.is_open, fd, inode) for fd in (reader, writer)] == [True, False]
    assert context.forget_parent_fd(writer)
    assert not context.forget_parent_fd(writer)
    assert result_of(targets.is_open, writer, inode)
    os.close(reader)
    os.close(writer)


# -------------------------------------------------------------------------------------------------------------- starter


def test_jobs_run_in_order_on_one_thread_that_blocks_sigint() -> None:
    threads = [Starter.submit(threading.current_thread) for _ in range(3)]
    thread = threads[0].result()
    assert [future.result() for future in threads] == [thread] * 3
    assert (thread.name, thread.daemon) == ("polyloop-starter", True)
    assert signal.SIGINT in Starter.submit(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])).result()


def test_what_a_job_raises_is_its_futures_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        Starter.submit(lambda: 1 / 0).result()
    assert Starter.submit(lambda: 1).result() == 1


def test_a_forked_child_has_a_starter_of_its_own() -> None:
    context.set_start_method("fork")
    assert Starter.submit(os.getpid).result() == os.getpid()
    ran_in, child = result_of(targets.starter_pid)
    assert ran_in == child != os.getpid()


def test_the_interpreters_exit_waits_for_the_starts_that_were_asked_for() -> None:
    """Cut off between its connection to a forkserver and the descriptors, a start would leave a traceback there."""
    program = """
    import time
    from polyloop.context import Starter

    def start(name):
        time.sleep(0.2)
        print(name, flush=True)

    Starter.submit(lambda: start("at hand"))
    Starter.submit(lambda: start("next"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr, done.returncode) == ("at hand\nnext\n", "", 0)


def test_a_start_that_hangs_does_not_hold_the_exit_for_ever() -> None:
    program = """
    import threading
    from polyloop import context

    context.EXIT_WAIT_S = 0.1
    context.Starter.submit(threading.Event().wait)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50)
    assert (done.stderr, done.returncode) == ("", 0)


def test_exit_codes_survive_being_asked_for_from_many_threads(start_method: str) -> None:
    process = context.get_context().Process(target=sys.exit, args=(7,))  # type: ignore[attr-defined]
    Starter.start(process).result()
    codes: list[int | None] = []

    def ask() -> None:
        process.join()
        codes.append(process.exitcode)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.exitcode == 7
    assert set(codes) == {7}


def test_a_process_that_cannot_start_fails_its_future() -> None:
    context.set_start_method("spawn")
    process = context.get_context().Process(target=lambda: None)  # type: ignore[attr-defined]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        Starter.start(process).result()
