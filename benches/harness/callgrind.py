"""Runs programs under callgrind, and reads what it wrote: costs of functions, with and without what they call."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WATCHDOG_S = 600.0
# A name is written out once, as "(12) name", and afterwards as "(12)".
NAMED = re.compile(r"(?:c?fn)=(\(\d+\))(?: (.*))?")
# Before it becomes valgrind, which may not know the call: a handle of the process, as its input.
LAUNCHER = "import os, sys; os.dup2(os.pidfd_open(os.getpid()), 0); os.execvp(sys.argv[1], sys.argv[1:])"
COST = re.compile(r"^[0-9+*-]\S* (\d+)$")


@dataclass(frozen=True)
class Costs:
    """Instructions by function: its own, and those of the calls it makes."""

    own: Mapping[str, int]
    called: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.own.values())

    def inclusive(self, name: str) -> int:
        """The cost of the one function whose name has this in it, what it calls included.

        Raises:
            LookupError: no function is named so.
        """
        found = [function for function in self.own if name in function]
        if not found:
            raise LookupError(f"no function {name} was called: has it been renamed, or inlined?")
        return sum(self.own[function] + self.called.get(function, 0) for function in found)


def count(command: list[str], output: Path, environment: Mapping[str, str], *options: str) -> Costs:
    """Run a program to its end and read its costs.

    Raises:
        RuntimeError: it fails.
    """
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", *options, *command]
    launched = [sys.executable, "-c", LAUNCHER, *valgrind]
    ended = subprocess.run(launched, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} fails under valgrind:\n{ended.stderr}")
    with output.open() as lines:
        return read(lines)


def read(lines: Iterator[str]) -> Costs:
    """The costs in a file of callgrind's."""
    names: dict[str, str] = {}
    own: defaultdict[str, int] = defaultdict(int)
    called: defaultdict[str, int] = defaultdict(int)
    function, is_call = "", False
    for line in lines:
        if named := NAMED.match(line):
            number, name = named.groups()
            if name is not None:
                names[number] = name
            if line.startswith("fn="):
                function = names[number]
        elif line.startswith("calls="):
            is_call = True  # the next line has the cost of the call
        elif cost := COST.match(line):
            (called if is_call else own)[function] += int(cost[1])
            is_call = False
    return Costs(dict(own), dict(called))
