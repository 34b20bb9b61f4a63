"""Every example runs as its reader would run it, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PRINTS = {
    "apply.py": r"""
        2 \+ 3 = 5
        10! = 3628800
        elsewhere: True
        raised: no such user: ada
    """,
    "endless_input.py": r"""
        from an async generator: \[2, 3\]
        first primes above a million: \[1000003, 1000033, 1000037\]
    """,
    "executor.py": r"""
        \[4, 2\]
        2
        lost: SIGKILL
        2
    """,
    "killed_worker.py": r"""
        complete and in order: True
        the crash is an error: SIGKILL
        the pool goes on: 4
    """,
    "one_process.py": r"""
        exit code: 3
        words: 6
        caught: raised in the worker, caught at home
    """,
    "pinned_queues.py": r"""
        workers per tenant: \[1, 1\]
        shared by tenants: 0
    """,
    "results_in_order.py": r"""
        awaited: \[0, 1, 4, 9, 16, 25, 36, 49\]
        next: 10000
        next: 10201
        next: 10404
        next: 10609
        starmap: \[1024, 81\]
    """,
    "shared_queue.py": r"""
        served: \['RICE', 'SOUP'\]
        served by the others: 20
        left over: 0
    """,
    "uvloop_workers.py": r"""
        hello from a worker, on uvloop, in another process: True
    """,
}


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_prints_what_it_promises(name: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    expected = "\n".join(line.strip() for line in PRINTS[name].strip().splitlines())
    assert re.fullmatch(expected, done.stdout.strip()), done.stdout
