"""What the benches conclude from figures. The figures themselves are no test's business: they move with the machine."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

BENCHES = Path(__file__).resolve().parents[2] / "benches"

CALLGRIND = """\
events: Ir

fn=(1) main
10 100
cfn=(2) worker_turns
calls=2 20
10 1030
+1 1

fn=(2)
20 1000
* 20
cfn=(3) memcpy
calls=1 0
-3 10

fn=(3)
0 10
totals: 1131
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the benches, which are programs and no package of their own."""
    monkeypatch.syspath_prepend(BENCHES)
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(BENCHES) in str(sys.modules[name].__file__):
            del sys.modules[name]


def family_of(figures: Any, *goals: Any, better: str) -> Any:
    figure = figures.Figure("rate", "items/s", figures.Better(better), goals)
    return figures.Family("bulk", "Bulk", (figure,), {})


def test_a_ratio_is_taken_within_each_round(bench: Any) -> None:
    figures = bench("harness.figures")
    # A slow second round meets both; medians of each side on its own would say 2.
    samples = {"bulk": {"rate": {"polyloop": [30.0, 3.0, 20.0], "rival": [10.0, 1.0, 10.0]}}}
    [verdict] = figures.verdicts([family_of(figures, figures.Goal(3, "rival"), better="more")], samples)
    assert (verdict.measured.median, verdict.measured.low, verdict.measured.high) == (3, 2, 3)
    assert verdict.reached


def test_a_round_in_which_a_side_failed_is_left_out(bench: Any) -> None:
    figures = bench("harness.figures")
    samples = {"bulk": {"rate": {"polyloop": [None, 8.0, 6.0], "rival": [1.0, None, 3.0]}}}
    [verdict] = figures.verdicts([family_of(figures, figures.Goal(2, "rival"), better="more")], samples)
    assert verdict.measured == figures.Spread(2, 2, 2)


@pytest.mark.parametrize(("better", "reached"), [("more", False), ("less", True)])
def test_a_goal_bounds_a_figure_from_the_side_that_is_worse(bench: Any, better: str, reached: bool) -> None:
    figures = bench("harness.figures")
    samples = {"bulk": {"rate": {"polyloop": [1.0]}}}
    [verdict] = figures.verdicts([family_of(figures, figures.Goal(2), better=better)], samples)
    assert verdict.reached is reached


def test_what_was_not_measured_is_not_reached(bench: Any) -> None:
    figures = bench("harness.figures")
    families = [family_of(figures, figures.Goal(2), figures.Goal(2, "rival"), better="less")]
    assert [verdict.reached for verdict in figures.verdicts(families, {"bulk": {}})] == [False, False]


def test_every_goal_is_against_a_contestant_of_its_family(bench: Any) -> None:
    for family in bench("bench").FAMILIES:
        assert "polyloop" in family.contestants
        for figure in family.figures:
            assert {goal.against for goal in figure.goals} <= {None, *family.contestants}


def test_a_turn_that_fails_is_told_of_and_leaves_a_hole(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, figures = bench("harness.turns"), bench("harness.figures")
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys\n"
        "mark = pathlib.Path(__file__).with_suffix('.mark')\n"
        "if sys.argv[2] == 'bulk/rival' and not mark.exists():\n"
        "    mark.touch()\n"
        "    raise SystemExit('no luck')\n"
        "print('figures: {\"rate\": 5.0}')\n"
    )
    family = figures.Family("bulk", "Bulk", (), {"polyloop": dict, "rival": dict})
    monkeypatch.setattr(turns, "PROGRAM", program)
    samples, failures = turns.run_rounds("bench", [family], 2, None)
    assert samples == {"bulk": {"rate": {"polyloop": [5.0, 5.0], "rival": [None, 5.0]}}}
    assert failures == ["bulk/rival: no luck"]


def test_a_function_costs_what_it_does_and_what_it_calls(bench: Any) -> None:
    costs = bench("harness.callgrind").read(iter(CALLGRIND.splitlines()))
    assert costs.total == 1131
    assert costs.inclusive("worker_turns") == 1030
    assert costs.inclusive("main") == 1131
    with pytest.raises(LookupError, match="client_drains"):
        costs.inclusive("client_drains")


def test_a_path_that_costs_more_than_its_baseline_and_the_tolerance_is_a_fault(bench: Any) -> None:
    instructions = bench("instructions")
    path = instructions.engine_path("bulk", "bulk", 1, 2)
    baseline = {"counts": {path.name: {"all": 1000}}}
    allowed = {path.name: {"all": 1000 * (1 + path.tolerance)}}
    assert list(instructions.faults([path], baseline, allowed)) == []
    [fault] = instructions.faults([path], baseline, {path.name: {"all": 1000 * (1 + path.tolerance) + 1}})
    assert "1,010 allowed" in fault
    [fault] = instructions.faults([path], {"counts": {}}, allowed)
    assert "no baseline" in fault


def test_both_sides_of_a_pool_run_in_one_process(bench: Any) -> None:
    for path in bench("one_process").PATHS:
        ended = subprocess.run(
            [sys.executable, BENCHES / "one_process.py", path, "100"], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (0, "100 items\n"), (path, ended.stderr)


def test_the_performance_page_says_what_the_results_say(bench: Any) -> None:
    page = bench("performance_page")
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "make performance-page"
    assert {found[2] for found in page.SECTION.finditer(text)} == set(page.SECTIONS)
