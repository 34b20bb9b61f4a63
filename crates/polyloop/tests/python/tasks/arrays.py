"""What the tests of `PythonPool` call that has to do with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np


def numbers() -> dict[str, Any]:
    return {
        "single": np.float32(1.5),
        "double": np.float64(2.5),
        "integer": np.int64(-3),
        "truth": np.bool_(True),
        "scalar": np.array(4),
        "text": np.str_("text"),
    }


def ramp(count: int, order: str) -> np.ndarray[Any, Any]:
    """Rows of three, each element its own number as it is counted along the rows."""
    return np.asarray(np.arange(count, dtype=np.float32).reshape(-1, 3), order=order)


def total(view: memoryview) -> float:
    return float(np.frombuffer(view, dtype=np.float32).sum())


def records() -> np.ndarray[Any, Any]:
    return np.array([(1, 2.0)], dtype=[("a", "<u4"), ("b", "<f8")])
