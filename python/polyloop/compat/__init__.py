"""aiomultiprocess 0.9.1's interface on polyloop's engine: for programs that are to run unchanged.

`python -m polyloop.compat script.py` runs a program that imports aiomultiprocess; a program of your own says
`import polyloop.compat as aiomultiprocess`. What behaves as there and not as in polyloop: tasks that fail raise
`ProxyException` with a traceback as text, an awaited `Worker` returns the exception instead of raising it, the default
start method is spawn, and functions travel by name only.
"""

from .__version__ import __version__ as __version__
from .core import Process, Worker, set_context, set_start_method
from .pool import Pool, PoolResult
from .scheduler import RoundRobin, Scheduler
from .types import QueueID, TaskID

__all__ = [
    "Pool",
    "PoolResult",
    "Process",
    "QueueID",
    "RoundRobin",
    "Scheduler",
    "TaskID",
    "Worker",
    "set_context",
    "set_start_method",
]
