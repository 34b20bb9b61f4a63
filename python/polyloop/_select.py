"""The selector of a worker's loop: asyncio's own, but its `select` takes the worker's turns itself.

What runs then is in crates/polyloop-python/src/select.rs. Only for asyncio's default loop. Any other loop, and one
whose inside is not as expected, watches the worker's bell as it would any descriptor.
"""

from __future__ import annotations

import asyncio
import os
import selectors

from . import _core

__all__ = ["WorkerSelector", "new_event_loop"]

# Of a loop: what it is to call, when, and whether it is to stop.
_INSIDE = ("_ready", "_scheduled", "_stopping")


class WorkerSelector(selectors.EpollSelector):
    """An `EpollSelector` until it is given a worker."""

    def attach(self, worker: _core.Worker, event_loop: asyncio.AbstractEventLoop) -> None:
        """Take the worker's turns from now on. The loop watches the worker's bell already."""
        reader, _ = self.get_key(worker.fileno()).data
        keys = self._fd_to_key  # type: ignore[attr-defined]
        self.select = _core.Select(worker, event_loop, self.fileno(), keys, reader)  # type: ignore[method-assign]

    def detach(self) -> None:
        """Be an `EpollSelector` again."""
        self.__dict__.pop("select", None)


def _is_wanted() -> bool:
    """Whether loops are asyncio's default ones, made as we know them. `POLYLOOP_SELECT=plain` turns it off."""
    wanted = os.environ.get("POLYLOOP_SELECT", "turns")
    if wanted not in ("turns", "plain"):
        raise ValueError(f"POLYLOOP_SELECT can be turns or plain, not {wanted!r}")
    return wanted == "turns" and type(asyncio.get_event_loop_policy()) is asyncio.DefaultEventLoopPolicy


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make a loop as asyncio would, with a selector for a worker if that can be."""
    if not _is_wanted():
        return asyncio.new_event_loop()
    selector = WorkerSelector()
    loop = asyncio.SelectorEventLoop(selector)
    if all(hasattr(loop, name) for name in _INSIDE) and hasattr(selector, "_fd_to_key"):
        return loop
    loop.close()
    return asyncio.new_event_loop()
