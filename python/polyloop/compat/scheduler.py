"""The names of aiomultiprocess's `scheduler` module: the same classes as polyloop's."""

from polyloop import RoundRobin, Scheduler

__all__ = ["RoundRobin", "Scheduler"]
