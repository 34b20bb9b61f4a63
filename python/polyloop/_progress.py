"""A bar that shows how far a map has come: tqdm's, where that is installed. Looks ten times a second, so that items
pay nothing for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import _core

__all__ = ["show_progress"]

LOOK_EVERY_S = 0.1


def show_progress(call: _core.MapCall, ended: asyncio.Future[None], total: int | None, options: dict[str, Any]) -> None:
    """Show a bar until the map has ended.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError as error:
        if error.name not in ("tqdm", "tqdm.auto"):
            raise
        message = "progress() needs tqdm, which is not installed: pip install 'polyloop[progress]'"
        raise ModuleNotFoundError(message, name="tqdm") from None
    bar = tqdm(**{"total": total, **options})
    loop = ended.get_loop()
    next_look: asyncio.TimerHandle

    def look() -> None:
        nonlocal next_look
        bar.update(call.finished - bar.n)
        next_look = loop.call_later(LOOK_EVERY_S, look)

    def close(_: object) -> None:
        next_look.cancel()
        bar.update(call.finished - bar.n)
        bar.close()

    next_look = loop.call_later(LOOK_EVERY_S, look)
    ended.add_done_callback(close)
