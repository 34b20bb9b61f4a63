"""What a pool is made with, looked at before anything is started."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["check_lifespan", "check_positive", "check_synchronous"]


def check_synchronous(name: str, function: Callable[..., Any] | None) -> None:
    if function is not None and inspect.iscoroutinefunction(function):
        raise ValueError(f"{name} must be synchronous function")


def check_lifespan(lifespan: Any) -> None:
    if lifespan is None:
        return
    if not callable(lifespan) or hasattr(type(lifespan), "__aenter__"):
        raise TypeError(
            "lifespan must be a function that makes an asynchronous context manager: "
            f"write lifespan=f, not lifespan=f(), if that is what made {lifespan!r}"
        )
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        raise TypeError(f"lifespan must make an asynchronous context manager: put @asynccontextmanager on {lifespan!r}")


def check_positive(name: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{name} must be more than 0, or None for no limit")
