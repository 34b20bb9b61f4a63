"""The demo end to end: complete despite the killed worker, which costs one log line and nothing else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "polyloop.demo"]


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *options], capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)


def test_the_demo_is_complete_though_a_worker_is_killed() -> None:
    done = run_demo("--limit", "60", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    killed = re.search(r"complete: 60 of 60 files, both runs agree; worker (\d+) was killed on the way", done.stdout)
    assert killed, done.stdout
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING polyloop")]
    assert len(warnings) == 1, done.stdout
    assert killed[1] in warnings[0]


def test_the_demo_shows_what_it_found_and_each_workers_share() -> None:
    done = run_demo("--limit", "20", "--processes", "2", "--no-kill")
    assert done.returncode == 0, done.stderr
    assert "no worker was killed" in done.stdout
    assert "WARNING" not in done.stdout
    assert re.search(r"^pool of 2 .* x$", done.stdout, re.MULTILINE)
    files = [int(count) for count in re.findall(r"^pid \d+ +(\d+) .*lived$", done.stdout, re.MULTILINE)]
    assert sum(files) == 20


def test_ctrl_c_ends_the_demo_without_a_traceback(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as sink, subprocess.Popen(DEMO, stdout=sink, stderr=subprocess.STDOUT) as demo:
        server = wait_for_server(demo.pid)
        time.sleep(0.3)
        demo.send_signal(signal.SIGINT)
        assert demo.wait() == 128 + signal.SIGINT, output.read_text()
    assert "Traceback" not in output.read_text()
    while is_running(server):
        time.sleep(0.02)


def test_a_missing_client_is_named_with_what_to_write() -> None:
    hide = "import sys, runpy; sys.modules['aiohttp'] = None; runpy.run_module('polyloop.demo', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "The demo needs aiohttp, which is not installed. Write: pip install 'polyloop[demo]'\n"


def wait_for_server(pid: int) -> int:
    """The pid of the demo's server, once there is one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while True:
        for child in children.read_text().split():
            try:
                if b"polyloop.demo.server" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
            except FileNotFoundError:
                pytest.fail("the server ended")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
