"""The table of goals: polyloop beside its rivals, in rounds, each turn a process of its own. `make bench` runs it.

Prints the table and keeps it as benches/results/<date>-bench-<python>.{md,json,svg}. Wall-clock figures gate nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness import machine, report, results
from harness.figures import Family, verdicts
from harness.turns import run_rounds
from rows import buffers, bulk, idle, latency, lifecycle, memory, waiting

BENCH = "bench"
ROUNDS = 5
FAMILIES = [family.FAMILY for family in (bulk, latency, waiting, buffers, idle, lifecycle, memory)]


def main() -> int:
    options = parse_arguments()
    families = [family for family in FAMILIES if not options.family or family.name in options.family]
    known = machine.facts()
    samples, failures = run_rounds(BENCH, families, options.rounds, options.contestant)
    result: dict[str, Any] = {
        "machine": known,
        "rounds": options.rounds,
        "families": [described(family) for family in families],
        "goals": [verdict.to_json() for verdict in verdicts(families, samples)],
        "samples": samples,
        "failures": failures,
    }
    text = page(result)
    print("\n" + text)
    if not options.family and not options.contestant:
        keep(result, text)
    return 1 if failures else 0


def described(family: Family) -> dict[str, Any]:
    """What a result file says of a family."""
    figures = [{"name": figure.name, "unit": figure.unit} for figure in family.figures]
    return {"name": family.name, "title": family.title, "figures": figures}


def page(result: dict[str, Any]) -> str:
    """The run as a page."""
    reached = sum(goal["reached"] for goal in result["goals"])
    parts = [
        f"# Goals, {result['machine']['taken_at'][:10]}",
        (
            f"{reached} of {len(result['goals'])} reached. Two workers; medians of {result['rounds']} rounds, in "
            "brackets the lowest and the highest. In each round contestants took turns, each in a process of its own; "
            "ratios are taken within rounds."
        ),
        report.goals_table(result["goals"]),
        "Everything that was measured:",
        report.figures_table(result["families"], result["samples"]),
        machine.described(result["machine"]),
        *(f"Failed: {failure}" for failure in result["failures"]),
    ]
    return "\n\n".join(parts) + "\n"


def keep(result: dict[str, Any], text: str) -> None:
    """Write the three files."""
    from harness import plots

    path = results.store(result, BENCH)
    path.with_suffix(".md").write_text(text)
    plots.goals_plot(result["goals"], machine.described(result["machine"]), path.with_suffix(".svg"))
    print(f"kept as {path.relative_to(Path.cwd())}, .md and .svg")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [family.name for family in FAMILIES]
    contestants = sorted({name for family in FAMILIES for name in family.contestants})
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--family", action="append", choices=names, help="these rows only; keeps no files")
    parser.add_argument(
        "--contestant", action="append", choices=contestants, help="leave the others out; keeps no files"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
