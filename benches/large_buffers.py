"""What it costs to send something large: polyloop and its rivals against a memcpy of the same size in the same run.

An array as argument (the worker looks at its length), and both ways (it comes back), again and again on one pool, so
that what can be reused is; and the first time, when it can not. Rivals take turns within each round. `make bench-large`
writes benches/results/<date>-large-buffers-<python>.md; `--sweep` prints how the cost of one call grows with its size.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import polyloop
from main_job import RESULTS, machine, spread

Array = npt.NDArray[np.uint8]
Call = Callable[[Callable[..., Any], Any], Awaitable[Any]]
SWEEP_BYTES = [1 << power for power in range(3, 28, 2)]
SWEEP_CALLS = 50


def size(value: Any) -> int:
    return len(value)


def echo(value: Any) -> Any:
    return value


@asynccontextmanager
async def on_polyloop() -> AsyncIterator[Call]:
    async with polyloop.Pool(1) as pool:
        yield lambda function, value: pool.apply(function, (value,))


@asynccontextmanager
async def on_executor() -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as executor:
        yield lambda function, value: loop.run_in_executor(executor, function, value)


RUNNERS: dict[str, Callable[[], AbstractAsyncContextManager[Call]]] = {
    "polyloop": on_polyloop,
    "ProcessPoolExecutor": on_executor,
}


@dataclass
class Samples:
    """Milliseconds, one figure per round."""

    argument: list[float] = field(default_factory=list)
    both_ways: list[float] = field(default_factory=list)
    first_argument: list[float] = field(default_factory=list)
    first_both_ways: list[float] = field(default_factory=list)


async def timed(call: Call, function: Callable[..., Any], value: Any) -> float:
    started_s = time.perf_counter()
    await call(function, value)
    return (time.perf_counter() - started_s) * 1e3


async def measure(runner: Callable[[], AbstractAsyncContextManager[Call]], value: Any, samples: Samples) -> None:
    """One round of one rival, on a pool of its own."""
    for function, first, later in (
        (size, samples.first_argument, samples.argument),
        (echo, samples.first_both_ways, samples.both_ways),
    ):
        async with runner() as call:
            await call(size, b"")  # until it has started
            first.append(await timed(call, function, value))
            times = [await timed(call, function, value) for _ in range(9)]
            later.append(statistics.median(times[4:]))


def copy_ms(array: Array) -> float:
    """What one memcpy between warm memory takes."""
    target = np.ones_like(array)
    times = []
    for _ in range(5):
        started_s = time.perf_counter()
        np.copyto(target, array)
        times.append((time.perf_counter() - started_s) * 1e3)
    return statistics.median(times)


def report(copies: list[float], taken: dict[str, Samples], options: argparse.Namespace) -> str:
    def ratio(values: list[float]) -> str:
        ratios = [value / copy for value, copy in zip(values, copies, strict=True)]
        return f"{spread(ratios)} x"

    return "\n".join(
        [
            f"# Large buffers, {datetime.date.today():%Y-%m-%d}",
            "",
            (
                f"A numpy array of {options.megabytes} MB, one worker, against a memcpy of as much in the same round: "
                f"{spread(copies)} ms. Median of {options.rounds} rounds, in brackets the lowest and the highest. "
                "Rivals took turns within each round."
            ),
            "",
            "| | as argument | both ways | first argument | first time both ways |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {ratio(samples.argument)} | {ratio(samples.both_ways)} | {ratio(samples.first_argument)} "
                f"| {ratio(samples.first_both_ways)} |"
                for name, samples in taken.items()
            ),
            "",
            machine(options),
            "",
        ]
    )


async def sweep() -> None:
    """How the cost of one call grows with its size, in microseconds: median of an argument, and of both ways."""
    print(f"{'bytes':>12}{'argument':>12}{'both ways':>12}{'memcpy':>12}")
    async with on_polyloop() as call:
        await call(size, b"")
        for length in SWEEP_BYTES:
            array = np.ones(length, dtype=np.uint8)
            times = [[await timed(call, function, array) for _ in range(SWEEP_CALLS)] for function in (size, echo)]
            row = [*map(statistics.median, times), copy_ms(array)]
            print(f"{length:12,}" + "".join(f"{ms * 1e3:12,.0f}" for ms in row))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=RUNNERS, action="append", help="leave the others out, and write no file")
    parser.add_argument(
        "--sweep", action="store_true", help="print the cost of one call by its size, and write no file"
    )
    options = parser.parse_args()
    options.load = os.getloadavg()[0]
    return options


def main() -> None:
    options = parse_arguments()
    if options.sweep:
        return asyncio.run(sweep())
    array = np.ones(options.megabytes * 1_000_000, dtype=np.uint8)
    taken = {name: Samples() for name in options.only or RUNNERS}
    copies: list[float] = []
    for number in range(options.rounds):
        copies.append(copy_ms(array))
        print(f"round {number + 1}: memcpy {copies[-1]:.1f} ms")
        for name, samples in taken.items():
            asyncio.run(measure(RUNNERS[name], array, samples))
            print(f"round {number + 1}: {name} {samples.argument[-1]:.1f} ms, both ways {samples.both_ways[-1]:.1f} ms")
    text = report(copies, taken, options)
    print("\n" + text)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        python = "{}.{}".format(*sys.version_info)
        (RESULTS / f"{datetime.date.today():%Y-%m-%d}-large-buffers-{python}.md").write_text(text)
    return None


if __name__ == "__main__":
    main()
