"""Where a blocked worker is: the client asks by a signal, and the worker's stack comes back through a memory file.

The answer needs neither the worker's loop nor its interpreter: faulthandler writes it from within the signal, so native
code that holds the interpreter's lock can be asked too. All workers of a pool share the file; they are asked in turn.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable

__all__ = ["Stacks", "answer_by_stack"]

STACK_SIGNAL = signal.SIGRTMIN + 3

# Nothing says where an answer ends: it is whole when it has not grown between two looks.
LOOK_AGAIN_S = 0.02
LOOKS_MAX = 50

Tell = Callable[[str], object]


def answer_by_stack(fd: int) -> None:
    """In a worker: have each STACK_SIGNAL write the main thread's stack to `fd`."""
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=False)


class Stacks:
    """Asks the workers of one pool for their stacks, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fd = os.memfd_create("polyloop-stacks", os.MFD_CLOEXEC)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)
        # Not closed earlier than this goes: a worker that is being started may still be waiting to get it.
        weakref.finalize(self, os.close, self.fd).atexit = False
        self._loop = loop
        self._questions: deque[tuple[int, Tell]] = deque()

    def ask(self, pid: int, tell: Tell) -> None:
        """Call `tell` with the stack of this worker, or with "" if it does not answer."""
        self._questions.append((pid, tell))
        if len(self._questions) == 1:
            self._ask_next()

    def forget_questions(self) -> None:
        """Ask no more."""
        self._questions.clear()

    def _ask_next(self) -> None:
        while self._questions:
            pid, tell = self._questions[0]
            os.ftruncate(self.fd, 0)
            if _catches_signal(pid):
                os.kill(pid, STACK_SIGNAL)
                self._loop.call_later(LOOK_AGAIN_S, self._look, 0, LOOKS_MAX)
                return
            self._questions.popleft()
            tell("")

    def _look(self, size_before: int, looks_left: int) -> None:
        if not self._questions:
            return
        size = os.fstat(self.fd).st_size
        if looks_left and (size == 0 or size != size_before):
            self._loop.call_later(LOOK_AGAIN_S, self._look, size, looks_left - 1)
            return
        _, tell = self._questions.popleft()
        tell(os.pread(self.fd, size, 0).decode(errors="replace"))
        self._ask_next()


def _catches_signal(pid: int) -> bool:
    """Whether STACK_SIGNAL has a handler there: it would kill the process otherwise."""
    try:
        with open(f"/proc/{pid}/status") as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(caught.split()[1], 16) >> (STACK_SIGNAL - 1) & 1)
