"""Imported first in a forkserver that preloads a user's modules: gives it the program's module path.

CPython passes the path along, on the command line, and most versions do nothing with it: what stands beside a script
would not be found, and that not said.
"""

from __future__ import annotations

import ast
import sys

__all__ = ["path_in"]


def path_in(command: str) -> list[str] | None:
    """The module path that a forkserver's command passes along; None where there is none."""
    for node in ast.walk(ast.parse(command)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is None:
                    path = ast.literal_eval(keyword.value).get("sys_path")
                    return [str(entry) for entry in path] if path else None
    return None


if sys.orig_argv[-2:-1] == ["-c"]:
    sys.path[:] = path_in(sys.orig_argv[-1]) or sys.path
