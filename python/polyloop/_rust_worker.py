"""A worker of a Rust program's pool: from its orders, on its standard input, to where it is a worker like others.

The program has an interpreter run a few lines of its own, which look whether this package is there and fits, and call
`main`. Values and exceptions travel as MessagePack.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyloop import _core

from . import _codec
from ._functions import import_function
from ._logs import describe_record
from ._worker import Plan, join, serve, work
from .context import leave_ctrl_c_to_parent

__all__ = ["main"]

ORDERS_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Orders:
    """What the program wants of its workers. Functions are named as "module:name"."""

    parent: int
    module_path: list[str]
    preload: list[str]
    initializer: str | None
    lifespan: str | None
    loop_initializer: str | None
    concurrency: int
    grace_s: float
    log_level: int | None
    """From which on records are sent; None if they are not."""


def main() -> None:
    """Be a worker."""
    leave_ctrl_c_to_parent()
    orders, (pool, lifeline, stacks) = take_orders()
    sys.path[:0] = orders.module_path
    worker = join(pool, lifeline, orders.parent, is_direct_child=True, dialect="messagepack")
    serve(worker, lambda: (work, make_plan(orders)), describe_failure, describe_record, lambda: stacks)


def take_orders() -> tuple[Orders, tuple[int, int, int]]:
    """Return the orders, and the descriptors that came with them; the standard input is empty from then on."""
    with socket.socket(fileno=os.dup(0)) as inbox:
        data, fds, _, _ = socket.recv_fds(inbox, ORDERS_MAX_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    pool, lifeline, stacks = fds
    return Orders(**_core.read_message(data)), (pool, lifeline, stacks)


def make_plan(orders: Orders) -> Plan:
    """Import what the orders name."""
    for module in orders.preload:
        importlib.import_module(module)
    return Plan(
        initializer=_named(orders.initializer),
        lifespan=_named(orders.lifespan),
        loop_initializer=_named(orders.loop_initializer),
        grace_s=orders.grace_s,
        concurrency=orders.concurrency,
        log_levels=None if orders.log_level is None else {"root": orders.log_level},
    )


def _named(name: str | None) -> Callable[..., Any] | None:
    return None if name is None else import_function(f"n{name}".encode())


def describe_failure(error: BaseException) -> bytes:
    """Say why this process can't be a worker, as the program shows it."""
    name, message, traceback, _ = _codec.describe_exception(error)
    return f"{name}: {message}\n{traceback}".encode()
