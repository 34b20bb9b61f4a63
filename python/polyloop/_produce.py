"""What runs in a worker for a stream: calls the function, and gives what it yields to a port, pausing as that says.

The generator is closed whatever ends the stream, in the task that it ran in.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

from . import _core
from ._threads import Threads

__all__ = ["produce"]

TURN_S = 0.001
"""How long a generator that never waits may keep the loop from everything else."""

_END = object()


async def produce(
    threads: Threads,
    port: _core.StreamPort,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    in_thread: bool,
) -> None:
    """Give all that `function(*args, **kwargs)` yields.

    Parameters:
        in_thread: run a plain generator on threads.

    Raises:
        TypeError: the function returned nothing to iterate over.
        BaseException: what the function or its generator raises.
    """
    made = function(*args, **(kwargs or {}))
    if inspect.isawaitable(made):
        made = await made
    source = _values_of(made, threads if in_thread else None)
    now = asyncio.get_running_loop().time
    turned = now()
    try:
        async for value in source:
            if not port.give(value):
                await port.room()
                turned = now()
            elif now() - turned > TURN_S:
                await asyncio.sleep(0)
                turned = now()
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


def _values_of(made: Any, threads: Threads | None) -> AsyncIterator[Any]:
    if isinstance(made, AsyncIterable):
        return aiter(made)
    # One that takes text or bytes apart is a slip.
    if isinstance(made, Iterable) and not isinstance(made, (str, bytes)):
        iterator = iter(made)
        return _inline(iterator) if threads is None else _on_threads(iterator, threads)
    raise TypeError(
        f"a stream needs a generator, or another iterable, and got {type(made).__name__}: use apply for a single value"
    )


async def _inline(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    try:
        for value in iterator:
            yield value
    finally:
        # Other iterators that can be closed, such as files, are not ours to close.
        if isinstance(iterator, Generator):
            iterator.close()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _on_threads(iterator: Iterator[Any], threads: Threads) -> AsyncIterator[Any]:
    try:
        while (value := await threads.run(next, (iterator, _END), None)) is not _END:
            if _is_cancelled():  # and the thread was through before it heard
                raise asyncio.CancelledError
            yield value
    finally:
        if isinstance(iterator, Generator):
            await threads.run(iterator.close, (), None)
