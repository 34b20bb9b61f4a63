"""CPython's own tests of ProcessPoolExecutor pass on ours. Which can't apply, and why: see `stdlib_executor`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("stdlib_executor.py")


def ships_its_tests() -> bool:
    try:
        return importlib.util.find_spec("test.test_concurrent_futures.test_process_pool") is not None
    except ModuleNotFoundError:  # a single file before 3.12, and many builds leave it out
        return False


@pytest.mark.skipif(not ships_its_tests(), reason="this CPython comes without test.test_concurrent_futures")
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("options", "at_least"),
    [(["fork", "strict"], 40), (["fork"], 25), (["forkserver", "strict"], 25), (["spawn", "strict"], 15)],
    ids=lambda options: "-".join(options) if isinstance(options, list) else "",
)
def test_the_standard_executors_tests_pass(options: list[str], at_least: int) -> None:
    command = [sys.executable, str(PROGRAM), *options]
    ran = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=230)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    count, _, word = ran.stdout.splitlines()[-1].partition(" ")
    assert word == "run"
    assert int(count) >= at_least
