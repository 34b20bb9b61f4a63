"""A program without an event loop: the standard executor's interface, on workers that may die."""

from __future__ import annotations

import os
import signal

from polyloop import ProcessPoolExecutor, WorkerDied


def count_words(line: str) -> int:
    if line == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return len(line.split())


def main() -> None:
    with ProcessPoolExecutor(2) as executor:
        print(list(executor.map(count_words, ["to be or not", "to be"])))
        calls = [executor.submit(count_words, line) for line in ("that is", "poison", "the question")]
        for call in calls:
            try:
                print(call.result())
            except WorkerDied as error:  # a BrokenProcessPool too; the executor goes on
                print(f"lost: {error.signal}")


if __name__ == "__main__":
    main()
