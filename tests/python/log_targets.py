"""What workers log in test_pool_logs.py."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from typing import Any, NoReturn

from rendezvous import ring

log = logging.getLogger("app.worker")


def drop_handlers() -> None:
    """Under fork a worker begins with the handlers of the test runner."""
    logging.getLogger().handlers.clear()


def log_at_start() -> None:
    drop_handlers()
    log.warning("it starts")
    log.info("nobody hears this")


def configure() -> None:
    drop_handlers()
    logging.basicConfig(filename=os.devnull)


class Unsendable:
    def __reduce__(self) -> NoReturn:
        raise LookupError("stays here")

    def __repr__(self) -> str:
        return "<an unsendable thing>"


async def logs_of_all_kinds() -> int:
    log.warning("%d of %s", 1, {"a": 2})
    log.debug("nobody hears this")
    logging.getLogger("app.other").error("no arguments: %d")
    try:
        raise LookupError("what went wrong")
    except LookupError:
        log.exception("it failed", stack_info=True, extra={"user": "me", "thing": Unsendable(), "more": [1, {2: "3"}]})
    logging.getLogger().critical("of the root")
    return os.getpid()


def warns() -> None:
    warnings.warn("be careful", RuntimeWarning, stacklevel=1)


async def counts(count: int) -> None:
    for number in range(count):
        log.warning("%d", number)


def logs_and_dies() -> None:
    log.warning("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def floods(bell: str, count: int) -> None:
    for number in range(count):
        log.warning("%d", number)
    ring(bell)


def logs_elsewhere() -> None:
    log.warning("on a thread of the pool")
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
        log.exception("the beginning" + "." * 100_000, extra={"blob": bytes(100_000)})


def debugs() -> None:
    logging.getLogger("app.chatty").debug("a detail")
    log.info("nobody hears this")


def state_of_root(_: Any = None) -> tuple[int, int]:
    root = logging.getLogger()
    return len(root.handlers), root.level
