"""A pool in numbers, as `Pool.stats` gives them. Read when asked for; nothing is measured in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _core

__all__ = ["PoolStats", "WorkerStats", "pool_stats"]

CPU_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Of what /proc/<pid>/stat says after the name, which may hold blanks and brackets.
UTIME, STIME = 11, 12


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker process of a pool.

    Parameters:
        pid: the process; None while it is being started.
        index: its place in the pool; its successor may have another.
        queue: the id of the queue it serves.
        state: "starting", "ready", "retiring" (it finishes what it runs, then another takes its place) or "stopping".
        in_flight: tasks that it runs now.
        done: tasks that have ended in it.
        private_memory: bytes of memory that are its own; None where there is no process.
        cpu_s: seconds of CPU time that it has used; None where there is no process.
        age_s: seconds since its start was asked for.
    """

    pid: int | None
    index: int
    queue: Any
    state: str
    in_flight: int
    done: int
    private_memory: int | None
    cpu_s: float | None
    age_s: float


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    Parameters:
        state: "starting", "running", "degraded" (workers fail to start), "closing", "terminating" or "closed".
        queued: tasks that no worker has started.
        running: tasks that workers run.
        done: tasks that returned, since the pool was made.
        failed: tasks that raised, or were lost with their worker.
        retried: how many times a task was run again because its worker died.
        workers: the workers that run or are being started.
        restarts: how many workers were replaced, by cause: "died", "recycled" (`maxtasksperchild`), "memory", "age",
            "overdue" (it did not let go of a cancelled task), "garbage" (it wrote nonsense) and "restarted" (by
            `restart`).
    """

    state: str
    queued: int
    running: int
    done: int
    failed: int
    retried: int
    workers: tuple[WorkerStats, ...]
    restarts: dict[str, int]


def pool_stats(manager: _core.Manager, queue_ids: Sequence[Any]) -> PoolStats:
    """Ask the manager, and the system about its workers."""
    state, unfinished, done, failed, retried, restarts, found = manager.stats()
    workers = tuple(
        WorkerStats(pid, index, queue_ids[queue], stage, in_flight, ended, _private_memory(pid), _cpu_s(pid), age_s)
        for pid, index, queue, stage, in_flight, ended, age_s in found
    )
    running = min(unfinished, sum(worker.in_flight for worker in workers))
    return PoolStats(state, unfinished - running, running, done, failed, retried, workers, restarts)


def _private_memory(pid: int | None) -> int | None:
    for line in (_read_proc(pid, "status") or "").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_s(pid: int | None) -> float | None:
    stat = _read_proc(pid, "stat")
    if stat is None:
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[UTIME]) + int(fields[STIME])) * CPU_TICK_S


def _read_proc(pid: int | None, name: str) -> str | None:
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/{name}") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return None
