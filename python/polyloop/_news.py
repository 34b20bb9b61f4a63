"""What a pool says in its client's log of its workers, and what its workers have logged themselves."""

from __future__ import annotations

import asyncio
import logging

from . import _worker
from ._logs import load_record
from .errors import WorkerDied

__all__ = ["log_of_worker", "warn_blocked", "warn_died"]

_log = logging.getLogger("polyloop")


def warn_died(pid: int | None, exitcode: int | None, retried: int, lost: int) -> None:
    """A worker has died, and what becomes of its tasks."""
    fates = [f"{retried} to be run again"] if retried else []
    fates += [f"{lost} lost"] if lost else []
    running = f"; of its tasks {' and '.join(fates)}" if fates else ""
    _log.warning("worker %s died (%s)%s", pid, _describe_exit(exitcode), running)


def warn_blocked(pid: int, blocked_s: float, stack: str) -> None:
    """One call blocks a worker's event loop: so long, and here."""
    own_frames = f'  File "{_worker.__file__}"'
    where = stack.partition(own_frames)[0].rstrip() or "it does not say where"
    _log.warning("worker %d has been blocked for %.1f s by one call: %s", pid, blocked_s, where)


def log_of_worker(loop: asyncio.AbstractEventLoop, pid: int | None, dropped: int, data: bytes) -> None:
    """Pass on a record that a worker has logged, and say how many it had no room for."""
    try:
        if dropped:
            _log.warning("worker %s logged more than there was room for: %d records were dropped", pid, dropped)
        if data:
            record = load_record(data)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
    except Exception as error:  # of a filter here, or of what a record carries: nobody's task must suffer from it
        message = f"a record of worker {pid} can't be logged"
        loop.call_exception_handler({"message": message, "exception": error})


def _describe_exit(exitcode: int | None) -> str:
    death = WorkerDied(exitcode=exitcode)
    if death.signal is not None:
        return death.signal
    return "exit status unknown" if exitcode is None else f"exit code {exitcode}"
