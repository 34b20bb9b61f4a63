"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import polyloop

MODULES = ["polyloop", *(f"polyloop.{module.name}" for module in pkgutil.iter_modules(polyloop.__path__))]
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "polyloop._core"])
def test_the_examples_of_a_module_are_right(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.failed == 0


@pytest.mark.parametrize(
    "name",
    ["Outcome", "Pool", "PoolResult", "Process", "Queue", "RoundRobin", "Scheduler", "TaskHandle", "Worker"],
)
def test_public_classes_have_an_example(name: str) -> None:
    assert ">>>" in (getattr(polyloop, name).__doc__ or "")
