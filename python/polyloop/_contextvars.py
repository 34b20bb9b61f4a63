"""Context variables that travel with tasks: found by their names here and in workers, taken as they are at the call.

Setting them in a task's context is the extension's business.
"""

from __future__ import annotations

import contextvars
import importlib
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from . import _codec

__all__ = ["Travelling", "find_contextvars"]


def find_contextvars(names: Sequence[str]) -> tuple[ContextVar[Any], ...]:
    """The variables of these names, each "module:name".

    Raises:
        TypeError: these are no names, or one is of something else.
        ValueError: a name that can't be followed.
    """
    if isinstance(names, str):
        raise TypeError(f'contextvars must be a sequence of names: write contextvars=("{names}",)')
    return tuple(_find(name) for name in names)


def _find(name: Any) -> ContextVar[Any]:
    if isinstance(name, ContextVar):
        raise TypeError(f'contextvars are given by name, so that workers find them: write "module:name" for {name!r}')
    if not isinstance(name, str):
        raise TypeError(f'contextvars are given by name, as "module:name", not {name!r}')
    module, _, path = name.partition(":")
    if not (module and path):
        raise ValueError(f'a context variable is named as "module:name", not {name!r}')
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no context variable {name}: {error}") from error
    if not isinstance(found, ContextVar):
        raise TypeError(f"{name} is no context variable, but a {type(found).__name__}")
    return found


class Travelling:
    """The variables that travel from this process.

    Parameters:
        names: as for `find_contextvars`, which says what this raises.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._variables = list(zip(names, find_contextvars(names), strict=True))

    def capture(self) -> bytes | None:
        """What those that are set in the current context are set to, by their places; None if none is.

        Raises:
            TypeError: a value can't be sent; it says of which.
        """
        context = contextvars.copy_context()
        values = {at: context[variable] for at, (_, variable) in enumerate(self._variables) if variable in context}
        if not values:
            return None
        try:
            return _codec.dumps(values)
        except TypeError:
            for at, value in values.items():
                self._check(at, value)
            raise

    def _check(self, at: int, value: Any) -> None:
        try:
            _codec.dumps(value)
        except TypeError as error:
            raise TypeError(f"the context variable {self._variables[at][0]} can't travel: {error}") from error
