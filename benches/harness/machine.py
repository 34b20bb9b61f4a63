"""What the figures were taken on: machine, versions, and how busy the machine was."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMPARED = ("polyloop", "aiomultiprocess", "cloudpickle", "numpy", "uvloop")


def facts() -> dict[str, Any]:
    """Date, machine, versions and load, as they are now."""
    return {
        "taken_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "versions": {"CPython": platform.python_version(), **{name: _version(name) for name in COMPARED}},
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def described(known: dict[str, Any]) -> str:
    """The facts as a sentence or two."""
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items() if number)
    return (
        f"Taken {known['taken_at']}, commit {known['commit']}, on {known['cores']} cores ({known['cpu']}), "
        f"{known['memory_gb']} GB, Linux {known['kernel']}; {versions}. Load before the run: {known['load_before']}."
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit, with a + if files differ from it."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # not a checkout
        return "unknown"
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
