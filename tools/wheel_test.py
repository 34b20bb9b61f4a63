#!/usr/bin/env python3
"""Sees that a wheel is what a user needs: `make wheel-test`.

Every file of python/polyloop is in it; it installs into an empty environment with nothing but cloudpickle; there the
examples print what they promise, those that need more after that was installed, as requirements/dev.txt has it; and a
program that imports aiomultiprocess gets polyloop's. Not a part of `make
test`, as it asks the package index.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "polyloop"
BROUGHT_ALONG = {"polyloop", "cloudpickle", "pip", "setuptools"}  # the last by venv itself, before CPython 3.12
NEEDS_MORE = {"crawler": ("aiohttp", "tqdm"), "service": ("aiohttp",), "uvloop_workers": ("uvloop",)}
REQUIREMENTS = ROOT / "requirements" / "dev.txt"


def missing_files(wheel: Path) -> list[str]:
    """What a user would miss in `wheel`."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyi") or path.name == "py.typed")
    wanted = {str(path.relative_to(PACKAGE.parent)) for path in sources}
    missing = sorted(wanted - names)
    if not any(name.startswith("polyloop/_core.") and name.endswith(".so") for name in names):
        missing.append("polyloop/_core.*.so")
    return missing


def install(wheel: Path, directory: Path) -> Path:
    """Make an environment with `wheel` and what it requires, and return its interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(wheel)], check=True)
    listed = subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True, text=True)
    surplus = {package["name"] for package in json.loads(listed.stdout)} - BROUGHT_ALONG
    if surplus:
        sys.exit(f"the wheel brings more than cloudpickle: {', '.join(sorted(surplus))}")
    return python


def check_imports(python: Path, directory: Path) -> None:
    """See that both names lead into the environment in `directory`, and not to the sources."""
    program = directory / "program.py"
    for name in ("polyloop", "aiomultiprocess"):
        program.write_text(f"import {name}\nprint({name}.__file__)\n")
        command = [str(python), "-m", "polyloop.compat", str(program)]
        where = subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory).stdout
        if not where.startswith(f"{directory}/venv/"):
            sys.exit(f"{name} was imported from {where.strip()}, not from the wheel")


def install_more(python: Path, directory: Path) -> None:
    """Install what some examples import and polyloop does not, in the versions that the tests have."""
    wanted = sorted({name for names in NEEDS_MORE.values() for name in names})
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(re.findall(r"^[\w.-]+==[^\\\n]+", REQUIREMENTS.read_text(), re.MULTILINE)))
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(constraints), *wanted], check=True)


def run_examples(python: Path, *, those_that_need_more: bool) -> int:
    """Run the tests of the examples on another interpreter than their own."""
    needs_more = " or ".join(NEEDS_MORE)
    chosen = needs_more if those_that_need_more else f"not ({needs_more} or every)"
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests/python/test_examples.py"), "-k", chosen]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "POLYLOOP_EXAMPLES_PYTHON": str(python)}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    if missing := missing_files(wheel):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as directory:
        python = install(wheel, Path(directory) / "venv")
        check_imports(python, Path(directory))
        failed = run_examples(python, those_that_need_more=False)
        install_more(python, Path(directory))
        return failed or run_examples(python, those_that_need_more=True)


if __name__ == "__main__":
    sys.exit(main())
