"""Items between two processes: polyloop.Queue and multiprocessing.Queue side by side, blocking calls on both.

Rivals take turns within each round. `make bench-queue` writes benches/results/<date>-queue-<python>.md.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polyloop

RESULTS = Path(__file__).resolve().parent / "results"
RIVALS: dict[str, Callable[[int], Any]] = {
    "polyloop.Queue": polyloop.Queue,
    "multiprocessing.Queue": multiprocessing.get_context("fork").Queue,
}
ITEMS: dict[str, tuple[Any, int, int]] = {  # the item, how many, how many at once
    "an int": (7, 20_000, 0),
    "200 B": (b"x" * 200, 20_000, 0),
    "64 KiB, bounded by 8": (b"x" * (64 << 10), 1_000, 8),
    "1 MiB, bounded by 8": (b"x" * (1 << 20), 100, 8),
}
ROUND_TRIPS = 1_000


def count(inbox: Any, outbox: Any) -> None:
    counted = 0
    while inbox.get() is not None:
        counted += 1
    outbox.put(counted)


def echo(inbox: Any, outbox: Any) -> None:
    while (item := inbox.get()) is not None:
        outbox.put(item)


@contextmanager
def peer(make: Callable[[int], Any], target: Callable[[Any, Any], None], bound: int) -> Iterator[tuple[Any, Any]]:
    there, back = make(bound), make(0)
    process = multiprocessing.get_context("fork").Process(target=target, args=(there, back))
    process.start()
    yield there, back
    process.join()


def items_per_s(make: Callable[[int], Any], item: Any, number: int, bound: int) -> float:
    with peer(make, count, bound) as (there, back):
        start = time.perf_counter()
        for _ in range(number):
            there.put(item)
        there.put(None)
        assert back.get() == number
        return number / (time.perf_counter() - start)


def round_trip_us(make: Callable[[int], Any]) -> float:
    with peer(make, echo, 0) as (there, back):
        took = []
        for number in range(ROUND_TRIPS):
            start = time.perf_counter()
            there.put(number)
            assert back.get() == number
            took.append(time.perf_counter() - start)
        there.put(None)
        return statistics.median(took) * 1e6


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in RIVALS}
    for _ in range(rounds):
        for label, (item, number, bound) in ITEMS.items():
            for name, make in RIVALS.items():
                figures[name].setdefault(label, []).append(items_per_s(make, item, number, bound))
        for name, make in RIVALS.items():
            figures[name].setdefault("there and back, p50 in us", []).append(round_trip_us(make))
    return figures


def cell(samples: list[float]) -> str:
    return f"{statistics.median(samples):,.0f} ({min(samples):,.0f} to {max(samples):,.0f})"


def page(figures: dict[str, dict[str, list[float]]], rounds: int, load: float) -> str:
    columns = list(next(iter(figures.values())))
    rows = [f"| {name} | {' | '.join(cell(figures[name][column]) for column in columns)} |" for name in figures]
    how = (
        "One process puts, another gets: items per second, from the first put until the last is counted there. "
        f"Then {ROUND_TRIPS:,} items there and back, one at a time. Median of {rounds} rounds, in brackets the lowest "
        "and the highest. Rivals took turns within each round."
    )
    machine = (
        f"Machine: {os.cpu_count()} cores, Linux {platform.release()}, CPython {platform.python_version()}, "
        f"polyloop {polyloop.__version__}. Load before the run: {load:.2f}."
    )
    table = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}", *rows]
    return "\n".join([f"# Queues, {datetime.date.today()}", "", how, "", *table, "", machine, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    text = page(measure(options.rounds), options.rounds, load)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (RESULTS / f"{datetime.date.today()}-queue-{version}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
