"""What a `Process` and its child share: what is to run, descriptors, and the memory files they exchange bytes by.

The child runs `Launch`; the parent keeps `Handles`. Neither waits for anything: waiting is `process`.
"""

from __future__ import annotations

import multiprocessing
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from polyloop import _core

from . import _codec
from .context import CHILD_NAME, PassedFd, Setup, forget_parent_fd, holding_forks, register_parent_fd

INLINE_PAYLOAD_BYTES = 16 << 10


class Launch:
    """What the child does. Pickled while the process is being started, except under fork."""

    def __init__(self, run: Callable[..., Any], unit: Any) -> None:
        self.call: tuple[Callable[..., Any], Any] | None = (run, unit)
        self.pickled: bytes | PassedFd = b""
        self.setup: Setup | None = None
        self.lifeline: PassedFd | None = None
        self.outcome: PassedFd | None = None
        self.payload_fd = -1

    def __getstate__(self) -> tuple[Any, ...]:
        assert self.call is not None
        pickled: bytes | PassedFd = _codec.dumps_for_child(self.call)
        if isinstance(pickled, bytes) and len(pickled) > INLINE_PAYLOAD_BYTES:
            # multiprocessing writes into a pipe that it holds the other end of: if the child died, for ever.
            self.payload_fd = os.memfd_create("polyloop-call", os.MFD_CLOEXEC)
            write_memory_file(self.payload_fd, pickled)
            pickled = PassedFd(self.payload_fd)
        return pickled, self.setup, self.lifeline, self.outcome

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.call = None
        self.pickled, self.setup, self.lifeline, self.outcome = state

    def close_payload(self) -> None:
        """In the parent, once the child has its own copy."""
        if self.payload_fd >= 0:
            os.close(self.payload_fd)
            self.payload_fd = -1

    def __call__(self) -> None:
        """Run in the child, from its first act to its last."""
        assert self.setup is not None
        assert self.lifeline is not None
        process = multiprocessing.current_process()
        process.name = process.name.removeprefix(CHILD_NAME)
        self.setup.apply()
        try:
            _core.die_with_parent(self.lifeline.take(), self.setup.parent_pid, self.setup.is_direct_child)
        except ConnectionError:  # gone before this process had begun: there is nobody to tell
            sys.exit(1)
        if self.outcome is None:
            self._run()
        else:
            self._run_for_outcome(self.outcome.take())

    def load(self) -> tuple[Callable[..., Any], Any]:
        """What is to run, and with what."""
        if self.call is None:
            self.call = _codec.loads(_take_payload(self.pickled))
        return self.call

    def _run(self) -> Any:
        run, unit = self.load()
        return run(unit)

    def _run_for_outcome(self, fd: int) -> None:
        try:
            value = self._run()
        except BaseException as error:
            write_memory_file(fd, _codec.dump_exception(error), raised=True)
            if isinstance(error, SystemExit):
                raise
            sys.exit(1)  # quietly: the parent has the exception, with its traceback
        try:
            data, raised = _codec.dumps(value), False
        except Exception as error:
            data, raised = _codec.dump_unsendable(value, error), True
        write_memory_file(fd, data, raised=raised)


class Handles:
    """The descriptors a parent holds of one child. Refers to nothing else, so that it can outlive what owns it."""

    def __init__(self, *, has_outcome: bool) -> None:
        with holding_forks():
            self.childs_end, self.lifeline = os.pipe()
            register_parent_fd(self.lifeline)
        self.outcome = os.memfd_create("polyloop-outcome", os.MFD_CLOEXEC) if has_outcome else -1
        self.pidfd = -1

    def release(self) -> None:
        """Close them all. The child, if it lives, dies of it."""
        if self.lifeline >= 0 and forget_parent_fd(self.lifeline):
            os.close(self.lifeline)
        for fd in (self.childs_end, self.outcome, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.childs_end = self.lifeline = self.outcome = self.pidfd = -1

    def close_childs_end(self) -> None:
        """Once the child has its own copy."""
        if self.childs_end >= 0:
            os.close(self.childs_end)
            self.childs_end = -1


# --------------------------------------------------------------------------------------------------------- memory files

_HEADER = struct.Struct("<Q?")  # length, whether the coroutine raised; written last, so that half an outcome is none


def write_memory_file(fd: int, data: bytes, *, raised: bool = False) -> None:
    rest, position = memoryview(data), _HEADER.size
    while rest:
        written = os.pwrite(fd, rest, position)
        rest, position = rest[written:], position + written
    os.pwrite(fd, _HEADER.pack(len(data), raised), 0)


def read_memory_file(fd: int) -> tuple[bool, memoryview] | None:
    """What the file holds, None if nothing or not all of it; its memory is given back."""
    size = os.fstat(fd).st_size - _HEADER.size
    if size < 0:
        return None
    length, raised = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    if not 0 < length <= size:
        return None
    data = memoryview(bytearray(length))
    filled = 0
    while filled < length:
        read = os.preadv(fd, [data[filled:]], _HEADER.size + filled)
        if read == 0:
            return None
        filled += read
    os.ftruncate(fd, 0)  # children forked meanwhile hold the file as well
    return raised, data


def _take_payload(pickled: bytes | PassedFd) -> bytes | memoryview:
    if isinstance(pickled, bytes):
        return pickled
    fd = pickled.take()
    found = read_memory_file(fd)
    os.close(fd)
    assert found is not None, "the parent writes it before the start"
    return found[1]
