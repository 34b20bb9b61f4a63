"""Instructions that an item costs on each hot path, counted by callgrind: the check that can gate a change.

Each path runs twice, with few items and with many, so that what is left of the difference is the items' alone. Counts
depend on the code, compiler and CPython, not on how busy the machine is, except for a turn or a nap more or less. So a
path that is over its limit is counted again, and the lowest count stands.

`make instructions` fails when a path costs more than its baseline and the tolerance; `BENCH=--update` sets baselines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.callgrind import Costs, count
from harness.report import table

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baselines" / "instructions.json"
ENGINE = HERE.parent / "target" / "release" / "polyloop-paths"

ENGINE_TOLERANCE = 0.01
PYTHON_TOLERANCE = 0.05  # the loop's rounds depend more on how long a round takes
TRIES = 3
PYTHON = "CPython {}.{}".format(*sys.version_info)


@dataclass(frozen=True)
class HotPath:
    """A program that runs so many items one way; the functions that are told apart in it, and the one that is all, if
    that is not the program."""

    name: str
    command: Callable[[int], list[str]]
    few: int
    many: int
    parts: dict[str, str]
    tolerance: float
    whole: str | None = None


def engine_path(name: str, mode: str, few: int, many: int) -> HotPath:
    """Both ends of the engine on one thread; no Python."""
    parts = {
        "client: submit and post": "polyloop_paths::client_submits",
        "worker: claim and reply": "polyloop_paths::worker_turns",
        "client: drain": "polyloop_paths::client_drains",
    }
    return HotPath(
        f"engine, {name}",
        lambda items: [str(ENGINE), mode, str(items)],
        few,
        many,
        parts,
        ENGINE_TOLERANCE,
        "polyloop_paths::Both::run",
    )


def python_path(name: str, few: int, many: int) -> HotPath:
    """Client and worker on one loop of this CPython."""
    program = str(HERE / "one_process.py")
    parts = {"worker: turns": "_core::worker::Worker::__pymethod_turn__"}
    return HotPath(
        f"{PYTHON}, {name}",
        lambda items: [sys.executable, program, name, str(items)],
        few,
        many,
        parts,
        PYTHON_TOLERANCE,
    )


PATHS = [
    engine_path("2,048 items under way", "bulk", 4096, 40960),
    engine_path("one item at a time", "single", 200, 2200),
    python_path("map of a no-op coroutine", 1000, 9000),
    python_path("map of a plain no-op function", 1000, 9000),
    python_path("map of coroutines that suspend once", 500, 2500),
    python_path("gather of apply", 500, 2500),
    python_path("one apply at a time", 200, 1200),
]


def main() -> int:
    options = parse_arguments()
    if shutil.which("valgrind") is None:
        print(
            "instructions are counted by valgrind: install it (apt install valgrind, dnf install valgrind)",
            file=sys.stderr,
        )
        return 2
    paths = [path for path in PATHS if not options.path or any(word in path.name for word in options.path)]
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"counts": {}}
    counts: dict[str, dict[str, float]] = {}
    for path in paths:
        limits = None if options.update else limits_of(path, baseline)
        counts[path.name] = measured(path, limits)
        print(
            f"{path.name}: {', '.join(f'{part} {value:,.0f}' for part, value in counts[path.name].items())}", flush=True
        )
    if options.update:
        update(baseline, counts)
        return 0
    print("\n" + comparison(baseline["counts"], counts))
    found = list(faults(paths, baseline, counts))
    for fault in found:
        print(fault, file=sys.stderr)
    if found and baseline.get("toolchain") != toolchain():
        print(f"the baselines were taken with {baseline.get('toolchain')}, this is {toolchain()}", file=sys.stderr)
    return 1 if found else 0


def measured(path: HotPath, limits: dict[str, float] | None) -> dict[str, float]:
    """Instructions an item, in all and by part: the lowest of as many tries as it takes to be within the limits, or of
    all tries."""
    lowest: dict[str, float] = {}
    for _ in range(TRIES):
        tried = per_item(path)
        lowest = {part: min(value, lowest.get(part, value)) for part, value in tried.items()}
        if limits is not None and all(value <= limits.get(part, value) for part, value in lowest.items()):
            break
    return lowest


def per_item(path: HotPath) -> dict[str, float]:
    """One try."""
    few, many = (run(path.command(items)) for items in (path.few, path.many))
    items = path.many - path.few
    parts = {part: (many.inclusive(name) - few.inclusive(name)) / items for part, name in path.parts.items()}
    totals = [costs.total if path.whole is None else costs.inclusive(path.whole) for costs in (few, many)]
    return {"all": (totals[1] - totals[0]) / items, **parts}


def run(command: list[str]) -> Costs:
    """A program's costs."""
    with tempfile.TemporaryDirectory() as place:
        return count(command, Path(place) / "costs", {**os.environ, "PYTHONHASHSEED": "0"})


def limits_of(path: HotPath, baseline: dict[str, Any]) -> dict[str, float]:
    """The most that each part may cost."""
    counts = baseline["counts"].get(path.name, {})
    return {part: value * (1 + path.tolerance) for part, value in counts.items()}


def comparison(baseline: dict[str, dict[str, float]], counts: dict[str, dict[str, float]]) -> str:
    """Every count beside its baseline."""
    rows = []
    for name, parts in counts.items():
        for part, value in parts.items():
            before = baseline.get(name, {}).get(part)
            change = f"{value / before - 1:+.1%}" if before else "no baseline"
            rows.append(
                [name if part == "all" else "", part, f"{value:,.0f}", f"{before:,.0f}" if before else "", change]
            )
    return table(["path", "part", "instructions an item", "baseline", "change"], rows)


def faults(paths: list[HotPath], baseline: dict[str, Any], counts: dict[str, dict[str, float]]) -> Iterator[str]:
    """What costs too much, or has no baseline."""
    for path in paths:
        limits = limits_of(path, baseline)
        for part, value in counts[path.name].items():
            if part not in limits:
                yield f"{path.name}, {part}: no baseline; set one by make instructions BENCH=--update"
            elif value > limits[part]:
                yield f"{path.name}, {part}: {value:,.0f} instructions an item, {limits[part]:,.0f} allowed"


def update(baseline: dict[str, Any], counts: dict[str, dict[str, float]]) -> None:
    """Keep these counts as baselines, beside those of paths that were not counted."""
    rounded = {name: {part: round(value) for part, value in parts.items()} for name, parts in counts.items()}
    kept = {"toolchain": toolchain(), "counts": dict(sorted({**baseline["counts"], **rounded}.items()))}
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"baselines are in {BASELINE.relative_to(HERE.parent)}")


def toolchain() -> dict[str, str]:
    """What counts depend on, beside the code."""
    says = {name: subprocess.check_output([name, "--version"], text=True) for name in ("rustc", "valgrind")}
    numbers = {name: match[0] for name, said in says.items() if (match := re.search(r"\d+\.\d+\.\d+", said))}
    return {**numbers, "architecture": platform.machine()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="set the baselines to what is counted now")
    parser.add_argument("--path", action="append", help="only paths whose name has these words")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
