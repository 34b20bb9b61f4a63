"""`mp_context` and `preload`: how a pool's workers come to be, each test in a program of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from polyloop import Pool, context
from polyloop._preload import path_in

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import asyncio, sys
from polyloop import Pool

def about(_=None):
    had = "beside" in sys.modules
    import beside
    return had, beside.imported_in == __import__("os").getpid()

async def main():
BODY
if __name__ == "__main__":
    asyncio.run(main())
"""


def run_program(directory: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A script with a module beside it, run from elsewhere."""
    script = directory / "scripts" / "program.py"
    script.parent.mkdir()
    (script.parent / "beside.py").write_text("import os\nimported_in = os.getpid()\n")
    script.write_text(PROGRAM.replace("BODY", textwrap.indent(textwrap.dedent(body), "    ")))
    command = [sys.executable, "-W", "always", str(script)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50)


def test_what_is_preloaded_is_imported_once_and_found_beside_the_script(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        async with Pool(2, preload=("beside",)) as pool:
            await pool.ready()
            print(await pool.map(about, range(4)), "beside" in sys.modules)
        """,
    )
    assert (done.stdout, done.stderr) == (f"{[(True, False)] * 4} False\n", "")


def test_without_preload_each_worker_imports_for_itself(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        async with Pool(1) as pool:
            print(await pool.submit(about), await pool.submit(about))
        """,
    )
    assert (done.stdout, done.stderr) == ("(False, True) (True, True)\n", "")


def test_whoever_preloads_too_late_is_told(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        async with Pool(1) as pool:
            await pool.ready()
            async with Pool(1, preload=("beside",)) as late, Pool(1, preload=("beside",), mp_context="spawn") as other:
                print(await late.submit(about), await other.submit(about))
        """,
    )
    assert done.stdout == "(False, True) (False, True)\n"
    assert done.stderr.count("RuntimeWarning: beside will not be preloaded") == 1
    assert "program.py" in done.stderr


@pytest.mark.parametrize("given", ["spawn", "fork", "forkserver", multiprocessing.get_context("spawn")])
def test_a_pool_has_the_context_it_is_given(given: Any) -> None:
    async def main() -> None:
        before = context.get_context()
        async with Pool(1, mp_context=given) as pool:
            wanted = given if isinstance(given, str) else "spawn"
            assert pool.context.get_start_method() == wanted
            assert await pool.submit(abs, -1) == 1
            (worker,) = pool.processes
            assert worker._process._start_method == wanted
        assert context.get_context() is before

    asyncio.run(main())


def test_what_makes_no_sense_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="cannot find context for 'threads'"):
            Pool(1, mp_context="threads")
        with pytest.raises(TypeError, match="a start method or a multiprocessing context"):
            Pool(1, mp_context=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a sequence of module names"):
            Pool(1, preload="json")
        with pytest.raises(ModuleNotFoundError, match=r"there is no module 'no_such_module\.x' to preload"):
            Pool(1, preload=("no_such_module.x",))

    asyncio.run(main())


def test_the_path_is_found_in_the_command_of_a_forkserver() -> None:
    command = "from multiprocessing.forkserver import main; main(3, 4, ['json'], **{'sys_path': ['/a', '/b'], 'x': 1})"
    assert path_in(command) == ["/a", "/b"]
    assert path_in("from multiprocessing.forkserver import main; main(3, 4, ['json'], **{})") is None
    assert path_in("print(1)") is None
