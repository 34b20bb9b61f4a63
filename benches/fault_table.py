"""What becomes of a program when something goes wrong: polyloop and its rivals, fault by fault.

Runs each case of `fault_cases` with each library as a program of its own under a watchdog, and writes docs/faults.md.
`make fault-table` runs it. Figures of speed are in `main_job`.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from fault_cases import CASES, LIBRARIES, RIGHT

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "faults.md"
WATCHDOG_S = 25.0
EXIT_WATCHDOG_S = 10.0
ORPHANS_GO_WITHIN_S = 2.0


class Program:
    """One case under way, in a session of its own; nothing of it stays."""

    def __init__(self, case: str, library: str) -> None:
        command = [sys.executable, str(HERE / "fault_cases.py"), case, library]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        while self.process.stdout.readline() not in ("ready\n", ""):
            pass

    def end(self, watchdog_s: float) -> tuple[str, str, bool]:
        """Output, errors, and whether it ended by itself."""
        try:
            output, errors = self.process.communicate(timeout=watchdog_s)
            return output, errors, True
        except subprocess.TimeoutExpired:
            self.kill_all()
            output, errors = self.process.communicate()
            return output, errors, False

    def orphans(self) -> int:
        """Processes of the session that live on a while after the program."""
        deadline = time.monotonic() + ORPHANS_GO_WITHIN_S
        while (alive := len(list(self._members()))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive

    def kill_all(self) -> None:
        for pid in list(self._members()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended meanwhile
                pass

    def _members(self) -> Iterator[int]:
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.process.pid and state != "Z":
                yield int(entry.parent.name)


def observe(case: str, library: str) -> str:
    """A few words on what happened."""
    program = Program(case, library)
    try:
        if case == "parent-killed":
            return observe_parent_killed(program)
        if case == "ctrl-c":
            return observe_ctrl_c(program)
        if case == "backlog":
            return observe_backlog(program)
        output, errors, ended = program.end(WATCHDOG_S)
        seen = [line.removeprefix("saw: ") for line in output.splitlines() if line.startswith("saw: ")]
        if not seen and ended:
            seen = [f"the program fails: {(errors.strip().splitlines() or ['no word'])[-1]}"[:120]]
        if not ended:
            seen = [note for note in seen if note != RIGHT] + ["then hangs at the end" if seen else "hangs"]
        elif orphans := program.orphans():
            seen = [note for note in seen if note != RIGHT] + [f"{orphans} processes stay"]
        return "; ".join(seen)
    finally:
        program.kill_all()
        program.process.wait()


def observe_parent_killed(program: Program) -> str:
    program.wait_until_ready()
    program.process.kill()
    program.process.wait()
    orphans = program.orphans()
    program.kill_all()
    program.end(WATCHDOG_S)
    return f"{orphans} processes stay" if orphans else RIGHT


def observe_ctrl_c(program: Program) -> str:
    program.wait_until_ready()
    os.killpg(program.process.pid, signal.SIGINT)
    _, errors, ended = program.end(EXIT_WATCHDOG_S)
    # One traceback may show a chain: what started from nothing is what is counted.
    chained = errors.count("During handling of the above") + errors.count("direct cause of the following")
    tracebacks = errors.count("Traceback (most recent call last)") - chained
    problems = [] if ended else ["hangs"]
    problems += [f"{tracebacks} tracebacks"] if tracebacks != 1 else []
    if ended and (orphans := program.orphans()):
        problems.append(f"{orphans} processes stay")
    return "; ".join(problems) or RIGHT


def observe_backlog(program: Program) -> str:
    _, errors, ended = program.end(EXIT_WATCHDOG_S)
    problems = [] if ended else [f"does not end within {EXIT_WATCHDOG_S:.0f} s"]
    problems += [f"{lines} lines on stderr"] if (lines := len(errors.splitlines())) else []
    if ended and (orphans := program.orphans()):
        problems.append(f"{orphans} processes stay")
    return "; ".join(problems) or RIGHT


def version_of(library: str) -> str:
    return platform.python_version() if library == "ProcessPoolExecutor" else version(library)


def page(observed: dict[tuple[str, str], str], libraries: list[str]) -> str:
    """The table, as a page."""
    lines = [
        "# What becomes of a program when something goes wrong",
        "",
        f"Written by `make fault-table`, not by hand. Each cell is a program of its own, on {MACHINE}, two workers,",
        "everything else as each library has it by default. ✓ is what the first column says; anything else is what was",
        "seen instead.",
        "",
        "| | " + " | ".join(libraries) + " |",
        "|---|" + "---|" * len(libraries),
        "| version | " + " | ".join(version_of(library) for library in libraries) + " |",
    ]
    for case in dict.fromkeys(case for case, _ in observed):
        cells = [observed[case, library] for library in libraries]
        lines.append(f"| {CASES[case][0]} | " + " | ".join("✓" if cell == RIGHT else cell for cell in cells) + " |")
    return "\n".join([*lines, ""])


MACHINE = f"CPython {platform.python_version()}, Linux {platform.release().partition('-')[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; does not write the page")
    parser.add_argument("--library", action="append", choices=list(LIBRARIES))
    parser.add_argument("--at-once", type=int, default=2, help="programs that run at the same time")
    options = parser.parse_args()
    cases, libraries = options.case or list(CASES), options.library or list(LIBRARIES)
    jobs = [(case, library) for case in cases for library in libraries]
    observed: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(options.at_once) as runners:
        for job, words in zip(jobs, runners.map(lambda job: observe(*job), jobs), strict=True):
            observed[job] = words
            print(f"{job[0]:22} {job[1]:20} {words}", flush=True)
    if not options.case and not options.library:
        PAGE.write_text(page(observed, libraries))
        print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
