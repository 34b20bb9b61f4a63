"""What crates/polyloop-python/src/lazy.rs needs of Python: a set of tasks that shows the one without a Task, too."""

from __future__ import annotations

import asyncio.events
import asyncio.tasks
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

__all__ = ["show_running"]


class ShownTasks(WeakSet[Any]):
    """A set of tasks that has the item whose first step runs get its Task before anyone looks."""

    def __iter__(self) -> Iterator[Any]:
        hash(asyncio.events._get_running_loop())
        return super().__iter__()


def show_running() -> None:
    """Have `asyncio.all_tasks`, under whatever name it was imported, see the item that runs."""
    for name in ("_all_tasks", "_scheduled_tasks"):  # of 3.11, and of 3.12 and later
        tasks = getattr(asyncio.tasks, name, None)
        if type(tasks) is WeakSet:
            tasks.__class__ = ShownTasks
