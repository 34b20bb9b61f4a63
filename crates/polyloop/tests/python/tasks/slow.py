"""A module that takes its time to be imported, for the tests of `PythonPool`."""

from __future__ import annotations

import os
import time

import tasks

tasks.mark(os.environ["IMPORTED"])
time.sleep(0.3)


def block() -> None:
    while True:
        time.sleep(0.001)


def is_whole() -> bool:
    return True
