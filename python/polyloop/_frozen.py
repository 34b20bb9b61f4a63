"""What a forkserver imports before it forks: all that a worker, and a program's main module, will ask of polyloop.

Imports happen once then, not once in each worker. What they leave is put out of the garbage collector's sight, so that
it is never walked again, and its memory stays shared with the forkserver. Imported for this effect, and nowhere else.
"""

from __future__ import annotations

import gc

gc.disable()  # imports make much and no garbage
try:
    import polyloop._lazy
    import polyloop._worker
    import polyloop.pool
    import polyloop.process  # noqa: F401
finally:
    gc.enable()
gc.freeze()
