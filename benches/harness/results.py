"""Results as files: benches/results/<date>-<bench>-<python>.json, and a page and a plot of the same name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"


def stem(known: dict[str, Any], bench: str) -> str:
    """The name of a run's files, without what follows the last dot."""
    python = ".".join(known["versions"]["CPython"].split(".")[:2])
    return f"{known['taken_at'][:10]}-{bench}-{python}"


def store(result: dict[str, Any], bench: str) -> Path:
    """Keep a run. A second one of the same day replaces the first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem(result['machine'], bench)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def latest(bench: str) -> dict[str, Any] | None:
    """The last run of this bench, on whatever CPython; None where none is kept."""
    runs = [json.loads(path.read_text()) for path in RESULTS.glob(f"*-{bench}-*.json")]
    taken: dict[str, Any] | None = max(runs, key=lambda run: run["machine"]["taken_at"], default=None)
    return taken
