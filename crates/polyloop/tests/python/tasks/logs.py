"""What the workers of `PythonPool` log, and where they are blocked, in the tests of that."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import NoReturn

import tasks

from polyloop import current_worker

log = logging.getLogger("app.worker")


class Thing:
    def __repr__(self) -> str:
        return "<a thing>"


async def logs_of_all_kinds() -> int:
    log.warning("%d of %s", 1, {"a": 2})
    log.debug("a detail")
    log.log(5, "less than a detail")
    log.log(25, "between")
    logging.getLogger("app.other").error("a lone surrogate: \ud800, no arguments: %d")
    try:
        raise LookupError("what went wrong")
    except LookupError:
        log.exception("it failed", stack_info=True, extra={"user": "me", "thing": Thing()})
    logging.getLogger().critical("of the root")
    return os.getpid()


def warns() -> None:
    warnings.warn("be careful", RuntimeWarning, stacklevel=1)


def counts(count: int) -> None:
    for number in range(count):
        log.warning("%d", number)


def logs_details() -> None:
    logging.getLogger("app").info("not wanted")
    log.debug("a detail")


def log_at_start() -> None:
    log.warning("it starts")
    log.info("nobody hears this")


def configure() -> None:
    logging.basicConfig(filename=os.devnull)


def want_all() -> None:
    logging.getLogger().setLevel(logging.ERROR)


def handlers() -> int:
    return len(logging.getLogger().handlers)


def logs_and_dies() -> NoReturn:
    log.warning("last words")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def floods(count: int, flooded: str) -> None:
    counts(count)
    tasks.mark(flooded)


def logs_elsewhere() -> None:
    thread = threading.Thread(target=log.warning, args=("on a thread of its own",))
    thread.start()
    thread.join()


def logs_in_a_fork() -> int:
    pid = os.fork()
    if pid == 0:
        log.warning("of a child")
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def logs_much() -> None:
    try:
        raise LookupError("." * 100_000 + "the end")
    except LookupError:
        log.exception("the beginning" + "." * 100_000, extra={"blob": "." * 100_000})


def sends(record: bytes) -> None:
    """Have the pool log what is no record, as a package of another make might."""
    current_worker()._worker.log(record)


def block_until(begun: str, end: str) -> None:
    tasks.mark(begun)
    while not Path(end).exists():
        time.sleep(0.001)


def stop_until(begun: str, end: str) -> None:
    """The same, and answer no signals."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN + 3})
    block_until(begun, end)
    signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGRTMIN + 3})
