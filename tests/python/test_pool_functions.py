"""Which functions run, however the program was started, and what is refused at once."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import pool_targets as targets
from polyloop import Pool

OnPool = Callable[[Callable[[Pool], Coroutine[Any, Any, Any]]], Any]
pytestmark = pytest.mark.timeout(60)

# ------------------------------------------------------------------------------------------------------------- by name


CALLS: dict[str, Callable[[], Any]] = {
    "bound method": lambda: targets.Counter(2).add,
    "bound coroutine method": lambda: targets.Counter(2).add_async,
    "partial": lambda: functools.partial(targets.add, 2),
    "partial with keywords": lambda: functools.partial(targets.add_async, y=2),
    "partial of a partial of a method": lambda: functools.partial(functools.partial(targets.Counter(2).add_async)),
    "callable instance": lambda: targets.PlainCallable(2),
    "coroutine callable instance": lambda: targets.AsyncCallable(2),
    "builtin method": lambda: (2).__add__,
    "lambda": lambda: lambda x: x + 2,
}


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS.keys())
def test_every_kind_of_callable_runs(on_pool: OnPool, make: Callable[[], Any]) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.apply(make(), (1,)) == 3
        assert await pool.map(make(), range(5)) == [2, 3, 4, 5, 6]
        assert [x async for x in pool.starmap(make(), ([x] for x in range(5)))] == [2, 3, 4, 5, 6]

    on_pool(main)


def test_static_and_class_methods_run(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.apply(targets.Counter.twice, (4,)) == 8
        assert (await pool.apply(targets.Counter.make, (4,))).n == 4

    on_pool(main)


def test_closures_see_what_they_captured_at_each_call(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        captured = 1

        async def closure(x: int) -> int:
            await asyncio.sleep(0)
            return x + captured

        assert await pool.apply(closure, (1,)) == 2
        captured = 10
        assert await pool.apply(closure, (1,)) == 11
        assert await pool.map(closure, range(3)) == [10, 11, 12]
        captured = 20
        assert await pool.map(closure, range(3)) == [20, 21, 22]

    on_pool(main)


def test_what_a_closure_changes_in_its_worker_stays_within_its_call(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        seen: list[int] = []

        async def note(x: int) -> int:
            seen.append(x)
            return len(seen)

        for _ in range(3):
            assert await pool.apply(note, (1,)) == 1
        assert sum(await pool.map(note, range(4))) >= 6  # a call's items share it, in each worker
        assert seen == []

    on_pool(main)


def test_a_function_that_wraps_another_is_not_mistaken_for_it(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        @functools.wraps(targets.double)
        async def wrapper(x: int) -> int:
            return -await targets.double(x)

        assert await pool.apply(wrapper, (3,)) == -6
        assert await pool.apply(targets.double, (3,)) == 6

    on_pool(main)


# ------------------------------------------------------------------------------------------------------------- refused


async def generate() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "expected a function, got 3 of type int"),
        (None, "expected a function, got None"),
        (generate, "is an async generator function"),
    ],
)
def test_what_is_no_function_to_run_is_refused_at_once(on_pool: OnPool, function: Any, message: str) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TypeError, match=message):
            await pool.apply(function)
        with pytest.raises(TypeError, match=message):
            pool.map(function, [1])
        with pytest.raises(TypeError, match=message):
            pool.starmap(function, [(1,)])

    on_pool(main)


def test_a_coroutine_instead_of_a_function_is_refused_with_what_to_write(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TypeError, match=r"write pool\.apply\(double, \(x,\)\) not pool\.apply\(double\(x\)\)"):
            await pool.apply(targets.double(1))  # type: ignore[call-overload]

    on_pool(main)


def test_text_instead_of_arguments_is_refused_with_what_to_write(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        with pytest.raises(TypeError, match=r"must be a sequence of arguments, not a str: write \(value,\)"):
            await pool.apply(targets.echo, "abc")
        with pytest.raises(TypeError, match="not iterable"):
            await pool.apply(targets.echo, 1)  # type: ignore[call-overload]

    on_pool(main)


def test_a_function_that_cannot_be_sent_is_refused_and_says_what_it_captures(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        captive = (x for x in ())

        async def closure() -> Any:
            return captive

        with pytest.raises(TypeError, match="it captures captive of type generator"):
            await pool.apply(closure)
        with pytest.raises(TypeError, match="it captures captive of type generator"):
            pool.map(closure, [1])  # type: ignore[arg-type]

    on_pool(main)


def test_a_function_that_captures_much_warns_and_names_it(on_pool: OnPool) -> None:
    async def main(pool: Pool) -> None:
        table = bytes(2 << 20)

        async def closure() -> int:
            return len(table)

        with pytest.warns(RuntimeWarning, match="it captures table"):
            assert await pool.apply(closure) == 2 << 20

    on_pool(main)


# ------------------------------------------------------------------------------------------------------- whole programs

METHODS = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
PROGRAM = """
import asyncio, functools
from polyloop import Pool, set_start_method
async def add(x, y=1):
    await asyncio.sleep(0)
    return x + y
def plain(x):
    return x + 1
class Error(Exception):
    def __init__(self, a, b):
        super().__init__(a + b)
        self.b = b
class Adder:
    def __init__(self, n): self.n = n
    async def add(self, x): return Adder(self.n + x)
async def fail():
    raise Error("a", "b")
async def main(*functions):
    async with Pool(2) as pool:
        for function in functions:
            print(await pool.apply(function, (1,)), await pool.map(function, [1, 2]), end=" ")
        print((await pool.apply(Adder(1).add, (2,))).n, end=" ")
        try:
            await pool.apply(fail)
        except Error as error:
            print(repr(error), error.b)
"""
GUARDED = """
if __name__ == "__main__":
    set_start_method({method!r})
    async def local(x, y=1):
        return await add(x, y)
    asyncio.run(main(add, plain, functools.partial(add, y=1), local, lambda x: x + 1))
"""
EXPECTED = "2 [2, 3] " * 5 + "3 Error('ab') b"


def program(method: str, rest: str = GUARDED) -> str:
    return PROGRAM + textwrap.dedent(rest).format(method=method)


@METHODS
@pytest.mark.parametrize("how", ["script", "module", "-c", "stdin", "repl"])
def test_functions_of_main_run_however_the_program_was_started(tmp_path: Path, method: str, how: str) -> None:
    code = program(method)
    (tmp_path / "script.py").write_text(code)
    command = {
        "script": ["script.py"],
        "module": ["-m", "script"],
        "-c": ["-c", code],
        "stdin": [],
        "repl": ["-q", "-i"],
    }[how]
    if how == "repl":  # where a block ends at an empty line
        code = f"exec({PROGRAM!r})\nexec({GUARDED.format(method=method)!r})\n"
    done = subprocess.run(
        [sys.executable, *command],
        input=code if how in ("stdin", "repl") else None,
        stdin=None if how in ("stdin", "repl") else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        cwd=tmp_path,
    )
    errors = done.stderr.replace(">>> ", "").strip()
    assert (done.stdout.replace(">>> ", "").strip(), errors) == (EXPECTED, "")
    assert done.returncode == 0


def test_a_function_that_no_worker_can_make_is_not_asked_for_again(tmp_path: Path) -> None:
    """Whatever is a reason to run a task again, and however often it may."""
    (tmp_path / "hidden.py").write_text(
        "import os\nif os.environ['SEEN_BY'] == str(os.getpid()):\n    class Hidden: pass\n"
    )
    script = tmp_path / "script.py"
    rest = """
    import functools, os
    def second(first, second):
        return second
    async def main():
        os.environ["SEEN_BY"] = str(os.getpid())
        import hidden
        function = functools.partial(second, hidden.Hidden())
        for retries in (0, 2):
            async with Pool(1, retries=retries, retry_on=(Exception,)) as pool:
                try:
                    await pool.apply(function, (1,))
                except Exception as error:
                    print(type(error).__name__, pool.stats().retried, pool.stats().failed)
    if __name__ == "__main__":
        asyncio.run(main())
    """
    script.write_text(program("spawn", rest))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("FunctionNotImportable 0 1\n" * 2, "")


@METHODS
def test_functions_that_workers_cannot_import_are_sent_by_value(tmp_path: Path, method: str) -> None:
    """Their module is known to the client only."""
    script = tmp_path / "script.py"
    rest = """
    import sys, types
    if __name__ == "__main__":
        set_start_method({method!r})
        async def warm_up():
            async with Pool(2) as pool:  # before the module exists: under fork, workers would have it
                await pool.apply(abs, (1,))
                module = types.ModuleType("made_up")
                sys.modules["made_up"] = module
                exec("async def double(x): return 2 * x\\ndef plain(x): return double(x)", module.__dict__)
                one, many = await pool.apply(module.double, (1,)), await pool.map(module.double, range(100))
                print(one, many == list(range(0, 200, 2)))
                print(await pool.apply(module.plain, (1,)), [x async for x in pool.map(module.plain, range(3))])
        asyncio.run(warm_up())
    """
    script.write_text(program(method, rest))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("2 True\n2 [0, 2, 4]\n", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_missing_main_guard_is_named(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    """By the client alone, and once: its workers say nothing, and no further ones are started."""
    rest = """
    import os, sys
    set_start_method({method!r})
    async def start():
        with open(sys.argv[1], "a") as starts:
            starts.write("started\\n")
        async with Pool(4) as pool:
            await pool.apply(add, (1, 2))
    asyncio.run(start())
    """
    script.write_text(program(method, rest))
    starts = tmp_path / "starts"
    done = subprocess.run([sys.executable, script, starts], capture_output=True, text=True, timeout=50)
    sentence = 'put the code that starts pools and processes under `if __name__ == "__main__":`'
    assert done.stderr.splitlines()[-1].startswith("polyloop.errors.WorkerStartError: the program starts its processes")
    assert (done.returncode, done.stderr.count(sentence), done.stderr.count("Traceback")) == (1, 1, 1)
    assert starts.read_text().count("started") <= 1 + 4


def test_under_fork_no_main_guard_is_needed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    rest = """
    set_start_method("fork")
    async def start():
        async with Pool(2) as pool:
            print(await pool.apply(plain, (1,)), await Worker(target=add, args=(1, 2)))
    from polyloop import Worker
    asyncio.run(start())
    """
    script.write_text(PROGRAM + textwrap.dedent(rest))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("2 3\n", "")
