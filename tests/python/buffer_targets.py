"""What the workers of test_large_buffers run, and how to see where memory is."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from typing import Any

import numpy as np
import numpy.typing as npt

from rendezvous import ring, wait_at

Array = npt.NDArray[Any]
BLOCK = "memfd:polyloop-block"
kept: list[Any] = []


# ------------------------------------------------------------------------------------------------------ where memory is


def blocks(pid: int | str = "self") -> int:
    """Blocks that a process has mapped."""
    with open(f"/proc/{pid}/maps") as file:
        return len({line.split()[4] for line in file if BLOCK in line})


def block_fds(pid: int | str = "self") -> int:
    """Descriptors of blocks that a process has open."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += BLOCK in os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            pass
    return count


def is_in_block(buffer: Any) -> bool:
    """Whether a buffer's memory is a block's."""
    address = np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]
    with open("/proc/self/maps") as file:
        for line in file:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return BLOCK in line
    return False


def private_bytes() -> int:
    """Memory of this process that is its own."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def state() -> tuple[int, int, int]:
    """Blocks that are mapped here, their descriptors, and all descriptors."""
    return blocks(), block_fds(), len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------------------------------------------------------ functions


async def echo(value: Any) -> Any:
    return value


def describe(array: Array) -> tuple[bool, bool, float]:
    """Whether it is in a block, whether it may be written, and its sum."""
    return is_in_block(array), bool(array.flags.writeable), float(array.sum())


def keywords(*, data: Array, scale: int) -> Array:
    return data * scale


def add_one(array: Array) -> Array:
    array += 1
    return array


def make(size: int, value: int) -> Array:
    return np.full(size, value, dtype=np.uint8)


def make_read_only(size: int) -> Array:
    array = np.zeros(size, dtype=np.uint8)
    array.flags.writeable = False
    return array


def keep(array: Array) -> int:
    kept.append(array)
    return os.getpid()


def sums_of_kept() -> list[float]:
    return [float(array.sum()) for array in kept]


def forget() -> None:
    kept.clear()


async def ring_and_wait(array: Array, bell: str, gate: str) -> float:
    ring(bell, os.getpid())
    await wait_at(gate)
    return float(array.sum())


def spoil_and_die_once(array: Array, marker: str) -> float:
    """Change the argument, and die of it the first time."""
    before = float(array.sum())
    array[:] = 7
    if not os.path.exists(marker):
        with open(marker, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def spoil_and_raise_once(array: Array, marker: str) -> float:
    before = float(array.sum())
    array[:] = 7
    if not os.path.exists(marker):
        with open(marker, "w"):
            pass
        raise ConnectionResetError
    return before


def make_and_die(size: int) -> None:
    kept.append(np.ones(size, dtype=np.uint8))
    os.kill(os.getpid(), signal.SIGKILL)


def sum_in_fork(array: Array) -> float:
    """What a forked child finds in the argument."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(float(array.sum())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(reader, 100)
    os.close(reader)
    os.close(writer)
    return float(found)


class Unsendable:
    """A result with something large in it that can't be sent."""

    def __init__(self) -> None:
        self.data = np.zeros(200_000, dtype=np.uint8)

    def __reduce__(self) -> Any:
        return Unsendable, (self.data, (n for n in ()))


def unsendable() -> Unsendable:
    return Unsendable()


def limit_files(size: int) -> None:
    """Let this process write no file larger than this, and so make no block."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def limit_descriptors() -> tuple[int, int]:
    """Let this process open nothing more. Returns the limits before."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    return limits


async def later(array: Array) -> float:
    await asyncio.sleep(0)
    return float(array.sum())
