"""Rounds in which contestants take turns, each turn in a process of its own, so that none inherits another's state.

Who begins moves on by one with each round. A turn that fails or hangs is told of and leaves a hole; the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .figures import Family, Samples, rounded

WATCHDOG_S = 120.0
PROGRAM = Path(__file__).resolve().parent.parent / "turn.py"
MARK = "figures: "


@dataclass(frozen=True)
class Turn:
    """One contestant's part in a family."""

    family: str
    contestant: str

    def __str__(self) -> str:
        return f"{self.family}/{self.contestant}"


def run_rounds(bench: str, families: list[Family], rounds: int, only: list[str] | None) -> tuple[Samples, list[str]]:
    """Samples of all rounds, and what failed. `bench` is the module whose `FAMILIES` these are of."""
    samples: Samples = {family.name: {} for family in families}
    failures: list[str] = []
    for number in range(rounds):
        for family in families:
            names = [name for name in family.contestants if only is None or name in only]
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                turn = Turn(family.name, name)
                figures = _take(bench, turn, failures)
                _keep(samples[family.name], name, number, figures)
                told = ", ".join(f"{figure} {rounded(value)}" for figure, value in figures.items())
                print(f"round {number + 1}/{rounds} {turn}: {told or failures[-1]}", flush=True)
    return samples, failures


def _keep(
    taken: dict[str, dict[str, list[float | None]]], name: str, number: int, figures: Mapping[str, float]
) -> None:
    """Round `number` of this contestant: every figure it has ever given has one value a round, or a hole."""
    for figure, value in figures.items():
        values = taken.setdefault(figure, {}).setdefault(name, [])
        values.extend([None] * (number - len(values)))
        values.append(value)


def _take(bench: str, turn: Turn, failures: list[str]) -> Mapping[str, float]:
    # Files, not pipes: a process that a rival leaves behind would hold a pipe open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(PROGRAM), bench, str(turn)]
        process = subprocess.Popen(command, env=_environment(), stdout=output, stderr=errors, start_new_session=True)
        try:
            process.wait(WATCHDOG_S)
        except subprocess.TimeoutExpired:
            failures.append(f"{turn}: not over after {WATCHDOG_S:.0f} s")
            return {}
        finally:
            _end_session(process)
        said, complaints = (_rewound(file).splitlines() for file in (output, errors))
    figures = next((line.removeprefix(MARK) for line in said if line.startswith(MARK)), None)
    if process.returncode != 0 or figures is None:
        failures.append(f"{turn}: {(complaints or [f'exit code {process.returncode}'])[-1]}")
        return {}
    taken: dict[str, float] = json.loads(figures)
    return taken


def _environment() -> dict[str, str]:
    """This one, but modules are compiled once, as on any user's machine, and not by each process that imports them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End the turn and whatever it has left: rivals leave processes behind when they fail."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _rewound(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def take_turn(families: list[Family], words: str) -> None:
    """In the process of a turn: take the figures and print them."""
    name, _, contestant = words.partition("/")
    take: Callable[[], Mapping[str, float]] = next(f for f in families if f.name == name).contestants[contestant]
    print(MARK + json.dumps(dict(take())), flush=True)
