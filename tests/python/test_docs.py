"""Every program in the pages of docs/ runs as its reader would run it, and what is no program is at least Python."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in sorted(PAGES.rglob("*.md")):
        name = str(page.relative_to(PAGES))
        found += [(f"{name}-{n}", match[1]) for n, match in enumerate(BLOCK.finditer(page.read_text()), 1)]
    return found


PROGRAMS = [(name, code) for name, code in blocks() if "__main__" in code]


def test_what_is_shown_is_python() -> None:
    for name, code in blocks():
        ast.parse(code, name)


@pytest.mark.parametrize("code", [code for _, code in PROGRAMS], ids=[name for name, _ in PROGRAMS])
def test_a_program_that_is_shown_runs(tmp_path: Path, code: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(code)
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout
