"""Runs a program that imports aiomultiprocess, unchanged, on polyloop: `python -m polyloop.compat script.py args`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

USAGE = "usage: python -m polyloop.compat [-m module | script.py] args ..."
SHIM = str(Path(__file__).parent / "_shim")


def main() -> None:
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    program = arguments[int(is_module) :]
    if not program or (program[0].startswith("-") and not is_module):
        sys.exit(USAGE)
    # This process's path is handed to its workers before they import anything of the program.
    sys.path[0] = os.getcwd() if is_module else str(Path(program[0]).resolve().parent)
    sys.path.insert(0, SHIM)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHIM, os.environ.get("PYTHONPATH")]))
    sys.argv = program
    if is_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
