"""What the system sets limits to, and whether they allow a pool: descriptors, file sizes, and memory of a cgroup."""

from __future__ import annotations

import errno
import os
import resource

__all__ = ["OomKills", "check_descriptors", "explain_file_size"]

FDS_PER_WORKER = 6
FDS_PER_POOL = 16  # and what is open for a moment while a process is being started

CGROUPS = "/sys/fs/cgroup"


def check_descriptors(processes: int) -> None:
    """Refuse a pool that would run out of file descriptors half-way.

    Raises:
        ValueError: this process may not open that many.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_open = len(os.listdir("/proc/self/fd")) - 1  # the listing's own
    needed = FDS_PER_WORKER * processes + FDS_PER_POOL
    if limit != resource.RLIM_INFINITY and is_open + needed > limit:
        raise ValueError(
            f"a pool of {processes} processes needs about {needed} file descriptors, and of the {limit} that this "
            f"process may have {is_open} are open: use fewer processes, or raise the limit (ulimit -n)"
        )


def explain_file_size(error: OSError) -> OSError:
    """The error of making a pool's memory, in other words where a limit is the reason."""
    if error.errno != errno.EFBIG:
        return error
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return OSError(
        errno.EFBIG,
        f"a pool's shared memory is larger than the {limit} bytes that this process may write to a file: "
        "raise the limit (ulimit -f)",
    )


class OomKills:
    """How many processes of a worker's cgroup the kernel has killed for want of memory since this was made.

    Parameters:
        pid: the worker.
        file: what to read instead of the file of its cgroup.
    """

    def __init__(self, pid: int, file: str | None = None) -> None:
        self._file = file or _oom_file(pid)
        self._before = self._read()

    def any_since(self) -> bool:
        """Whether there were any."""
        return self._read() > self._before

    def _read(self) -> int:
        if self._file is None:
            return 0
        try:
            with open(self._file) as file:
                counts = dict(line.split() for line in file)
        except FileNotFoundError:  # the cgroup went with its last process
            return 0
        return int(counts.get("oom_kill", 0))


def _oom_file(pid: int) -> str | None:
    """The file in which the kernel counts, of cgroup v2 or v1; None where it does not."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or there are no cgroups
        return None
    for _, controllers, path in groups:
        if controllers == "memory":
            root, name = f"{CGROUPS}/memory", "memory.oom_control"
        elif controllers == "":
            root, name = CGROUPS, "memory.events"
        else:
            continue
        # In a container the path may be the host's, and the container's own cgroup what is mounted.
        for found in (f"{root}{path}/{name}", f"{root}/{name}"):
            if os.path.exists(found):
                return found
    return None
