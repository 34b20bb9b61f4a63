"""Which queue a task goes to when a pool has several: the `Scheduler` interface and `RoundRobin`.

A scheduler picks queues only. Workers claim tasks from their queue on their own; retries and restarts are the engine's.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NewType, TypeVar

__all__ = ["QueueID", "RoundRobin", "Scheduler", "TaskID", "TaskQueue"]

R = TypeVar("R")

TaskID = NewType("TaskID", int)
"""The number of a task, unique within its pool."""

QueueID = NewType("QueueID", int)
"""The number of a queue, unique within its pool."""


class TaskQueue:
    """Stands for one inter-process task queue of a pool in the hands of a scheduler."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"<TaskQueue {self.index}>"


class Scheduler(ABC):
    """Decides which of a pool's queues each task is put into.

    The pool calls these methods from its event loop's thread, one at a time: they must be quick and must not block.

    >>> class Pinned(RoundRobin):
    ...     "Sends every call of one function to one queue, so that its caches stay warm."
    ...     def schedule_task(self, task_id, func, args, kwargs):
    ...         return self.qids[hash(func) % len(self.qids)]
    >>> pinned = Pinned()
    >>> for _ in range(4):
    ...     pinned.register_process(pinned.register_queue(None))
    >>> pinned.schedule_task(1, print, (), {}) == pinned.schedule_task(2, print, (), {})
    True
    """

    @abstractmethod
    def register_queue(self, tx: Any) -> QueueID:
        """Take note of a new queue of the pool and give it an id.

        Parameters:
            tx: the queue, for implementations that look at it; polyloop's own pool gives an opaque object.
        """

    @abstractmethod
    def register_process(self, qid: QueueID) -> None:
        """Take note that a worker process serves the queue `qid`.

        Called once for each worker the pool starts with, and not for its replacements: use it to weigh queues.
        """

    @abstractmethod
    def schedule_task(
        self,
        task_id: TaskID,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> QueueID:
        """Return the id of the queue the task is put into.

        Parameters:
            task_id: the task, named again in `complete_task` when it ends.
            func, args, kwargs: the call itself, for schedulers that weigh by it.
        """

    @abstractmethod
    def complete_task(self, task_id: TaskID) -> None:
        """Take note that a task has ended, however it ended."""


class RoundRobin(Scheduler):
    """Puts tasks into the queues in turn; a queue served by two processes gets two turns.

    >>> turns = RoundRobin()
    >>> first, second = turns.register_queue(None), turns.register_queue(None)
    >>> for qid in (first, second, first):
    ...     turns.register_process(qid)
    >>> [turns.schedule_task(n, print, (), {}) for n in range(6)]
    [0, 1, 0, 0, 1, 0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.qids: list[QueueID] = []
        self.next_id = itertools.count()
        self.cycler: Iterator[QueueID] = itertools.cycle(())

    def register_queue(self, tx: Any) -> QueueID:
        """Give the queue the next number, from 0."""
        return QueueID(next(self.next_id))

    def register_process(self, qid: QueueID) -> None:
        """Give the queue one more turn; the round starts again."""
        self.qids.append(qid)
        self.cycler = itertools.cycle(self.qids)

    def schedule_task(
        self,
        task_id: TaskID,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> QueueID:
        """Return the queue whose turn it is.

        Raises:
            RuntimeError: no process was registered, so there is no queue to name.
        """
        try:
            return next(self.cycler)
        except StopIteration:
            raise RuntimeError("no process was registered with this scheduler yet") from None

    def complete_task(self, task_id: TaskID) -> None:
        """Nothing to do: turns do not depend on what has ended."""
