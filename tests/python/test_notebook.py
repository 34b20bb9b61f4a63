"""Pools where there is no script: cells of a real IPython kernel, and the prompt of `python -m asyncio`."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.timeout(90)
REPLY_WITHIN_S = 60


class Notebook:
    """A kernel and its cells."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client: BlockingKernelClient = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=REPLY_WITHIN_S)

    def run(self, cell: str) -> Any:
        """Run a cell that must not fail, and return the value of its last line."""
        shown: list[str] = []
        errors: list[str] = []

        def read(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif kind == "error" or content.get("name") == "stderr":
                errors.append(content.get("text") or "\n".join(content["traceback"]))

        reply = self.client.execute_interactive(cell, timeout=REPLY_WITHIN_S, output_hook=read, allow_stdin=False)
        assert not errors, "\n".join(errors)
        assert reply["content"]["status"] == "ok"
        return json.loads(shown[-1]) if shown else None

    def worker_fds(self) -> list[int]:
        """Descriptors that say when the workers of `pool`, and their forkserver, are gone."""
        pids = self.run("[worker.pid for worker in pool.stats().workers]")
        forkserver = self.run("import multiprocessing.forkserver as fs; fs._forkserver._forkserver_pid")
        assert len(pids) == 2
        return [os.pidfd_open(pid) for pid in (*pids, forkserver)]


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    manager = KernelManager()
    manager.start_kernel(cwd=str(tmp_path))
    notebook = Notebook(manager)
    try:
        yield notebook
    finally:
        notebook.client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy()


def wait_and_close(fds: list[int]) -> None:
    for fd in fds:
        select.select([fd], [], [])
        os.close(fd)


POOL = """
from polyloop import Pool
pool = Pool(2)
await pool.ready()
"""


def test_a_function_of_a_cell_runs_on_a_pool_and_an_edited_cell_takes_effect(notebook: Notebook) -> None:
    notebook.run(POOL)
    notebook.run("factor = 2\nasync def scaled(n):\n    return n * factor")
    assert notebook.run("await pool.apply(scaled, (21,))") == 42
    assert notebook.run("await pool.map(scaled, range(3))") == [0, 2, 4]
    notebook.run("factor = 3")
    assert notebook.run("await pool.apply(scaled, (21,))") == 63
    notebook.run("async def scaled(n):\n    return -n * factor")
    assert notebook.run("await pool.apply(scaled, (21,))") == -63
    notebook.run(
        "class Point:\n    def __init__(self, x):\n        self.x = x\n\ndef moved(p):\n    return Point(p.x + 1)"
    )
    assert notebook.run("(await pool.submit(moved, Point(1))).x") == 2
    notebook.run("await pool.aclose()")


def test_an_interrupted_cell_ends_its_task_and_the_pool_goes_on(notebook: Notebook, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    os.mkfifo(mark)
    notebook.run(POOL)
    notebook.run(
        "import asyncio, pathlib\n"
        "async def wait(mark):\n"
        "    try:\n"
        "        mark.write_text('started')\n"
        "        await asyncio.Event().wait()\n"
        "    finally:\n"
        "        mark.write_text('ended')"
    )
    cell = f"await pool.apply(wait, (pathlib.Path({str(mark)!r}),))"
    request = notebook.client.execute(cell, stop_on_error=False)  # else a cell that comes soon after it is not run
    assert mark.read_text() == "started"
    notebook.manager.interrupt_kernel()
    assert mark.read_text() == "ended"
    while (reply := notebook.client.get_shell_msg(timeout=REPLY_WITHIN_S))["parent_header"]["msg_id"] != request:
        pass
    assert reply["content"]["status"] == "error"
    assert notebook.run("await pool.apply(abs, (-1,))") == 1


@pytest.mark.parametrize("end", ["shut down", "killed", "restarted"])
def test_no_worker_outlives_its_kernel(notebook: Notebook, end: str) -> None:
    notebook.run(POOL)
    fds = notebook.worker_fds()
    notebook.client.execute("await pool.map(__import__('time').sleep, [3600] * 100)")
    if end == "restarted":
        notebook.manager.restart_kernel()
    else:
        notebook.manager.shutdown_kernel(now=end == "killed")
    wait_and_close(fds)
    if end == "restarted":
        notebook.client.wait_for_ready(timeout=REPLY_WITHIN_S)
        notebook.run(POOL)
        assert notebook.run("await pool.apply(abs, (-1,))") == 1


# CPython 3.13.0 takes no further lines of a definition from a pipe.
PROMPT = """\
from polyloop import Pool
pool = Pool(2)
await pool.ready()
async def scaled(n): return n * 2

print("first:", await pool.map(scaled, range(3)))
async def scaled(n): return n * 3

print("then:", await pool.map(scaled, range(3)))
print("pids:", *(worker.pid for worker in pool.stats().workers))
"""


@pytest.mark.parametrize("leave", ["await pool.aclose()\n", "pool.terminate()\n", ""], ids=["closed", "ended", "left"])
def test_functions_of_the_prompt_run_on_a_pool(leave: str) -> None:
    command = [sys.executable, "-m", "asyncio"]
    done = subprocess.run(command, input=PROMPT + leave, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "first: [0, 2, 4]" in done.stdout
    assert "then: [0, 3, 6]" in done.stdout
    pids = re.search(r"pids: (\d+) (\d+)", done.stdout)
    assert pids, done.stdout
    for pid in pids.groups():
        while os.path.exists(f"/proc/{pid}"):
            time.sleep(0.02)
