"""`current_worker` and `parent_pool`: what a task can ask of the worker that runs it, and of its pool."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _core
from .scheduler import TaskID

if TYPE_CHECKING:
    from collections.abc import Callable

    from .parent import ParentPool

__all__ = ["CurrentTask", "CurrentWorker", "caller", "current_worker", "enter", "parent_pool", "task_of_thread"]


@dataclass(frozen=True, slots=True)
class CurrentTask:
    """The task that runs.

    Parameters:
        id: its number, unique among the unfinished tasks of its pool.
        name: as its options say, else its function: "module:name".
        attempt: which run of it this is, from 1; counted up to 255.
    """

    id: TaskID
    name: str
    attempt: int


class CurrentWorker:
    """The worker process that this code runs in. Made by `current_worker`."""

    def __init__(self, worker: _core.Worker) -> None:
        self._worker = worker
        self._thread = threading.get_ident()
        self.state: Any = None
        """What the pool's `lifespan` has yielded; None without one, and before it has."""
        self._open_pool: Callable[[int | None], ParentPool] | None = None

    @property
    def index(self) -> int:
        """Its place in the pool: no other worker that lives has the same."""
        return self._worker.index

    @property
    def task(self) -> CurrentTask | None:
        """The task whose code runs, also where it runs `in_thread`; None outside of tasks, as in an initializer.

        What a task has started by itself, with `asyncio.create_task` or on a thread, is not that task.
        """
        if threading.get_ident() != self._thread:
            return task_of_thread.get()
        item = self._worker.current_item()
        return None if item is None else CurrentTask(TaskID(item[0]), item[1], item[2])

    @property
    def pool(self) -> ParentPool:
        """The pool that runs the task, for the task to call: see `ParentPool`.

        Also for what the task has started by itself, as in a task group.

        Raises:
            RuntimeError: no task runs here, as in an initializer or a lifespan; or one has started this in a thread or
                a context that does not say so.

        >>> import asyncio
        >>> from polyloop import Pool, current_worker
        >>> async def area(widths, height):
        ...     return sum(await current_worker().pool.starmap(int.__mul__, [(width, height) for width in widths]))
        >>> async def main():
        ...     async with Pool(1) as pool:
        ...         return await pool.submit(area, [1, 2, 3], height=2)
        >>> asyncio.run(main())
        12
        """
        if self._open_pool is None:
            raise RuntimeError("this worker runs no tasks yet: only a task can call the pool that runs it")
        task = self.task
        if task is None:
            return self._open_pool(caller.get())
        caller.set(task.id)  # for what it starts from here on
        return self._open_pool(task.id)

    def __repr__(self) -> str:
        return f"<CurrentWorker index={self.index}>"


task_of_thread: ContextVar[CurrentTask | None] = ContextVar("task_of_thread", default=None)
"""In the context of a function that a worker runs on a thread."""

caller: ContextVar[int | None] = ContextVar("caller", default=None)
"""In the contexts of what a task has started: the number of the task, if it was ever asked for."""

_current: CurrentWorker | None = None


def enter(worker: _core.Worker) -> CurrentWorker:
    """In a worker's process, once: this is the worker."""
    global _current
    _current = CurrentWorker(worker)
    return _current


def current_worker() -> CurrentWorker:
    """The worker that this code runs in: its `state`, its `index`, and the `task` that runs.

    Raises:
        RuntimeError: this process is no worker of a pool.

    >>> import asyncio, contextlib
    >>> from polyloop import Pool, current_worker
    >>> @contextlib.asynccontextmanager
    ... async def lifespan():
    ...     yield {"greeting": "hello"}
    >>> async def greet(name):
    ...     return f"{current_worker().state['greeting']} {name}"
    >>> async def main():
    ...     async with Pool(1, lifespan=lifespan) as pool:
    ...         return await pool.submit(greet, "world")
    >>> asyncio.run(main())
    'hello world'
    """
    if _current is None or not _current._worker.is_ours:
        raise RuntimeError("this process is no worker of a pool: call current_worker() in a task, not in the client")
    return _current


def parent_pool() -> ParentPool:
    """The pool that runs this task: `current_worker().pool`.

    Raises:
        RuntimeError: this is no task of a pool.

    >>> import asyncio
    >>> from polyloop import Pool, parent_pool
    >>> async def fetch(page):
    ...     return f"page {page}"
    >>> async def crawl(pages):
    ...     async with asyncio.TaskGroup() as group:
    ...         texts = [group.create_task(parent_pool().apply(fetch, (page,))) for page in range(pages)]
    ...     return [text.result() for text in texts]
    >>> async def main():
    ...     async with Pool(1) as pool:
    ...         return await pool.submit(crawl, 2)
    >>> asyncio.run(main())
    ['page 0', 'page 1']
    """
    return current_worker().pool
