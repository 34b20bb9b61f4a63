"""How functions travel. No processes here but two that show what a bare `-c` program sends."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from polyloop import _codec, _functions
from polyloop._functions import FunctionNotImportable


def double(x: int) -> int:
    return 2 * x


async def fetch(url: str) -> str:
    return url


async def numbers() -> AsyncIterator[int]:
    yield 1


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def add(self, x: int) -> int:
        return self.n + x

    def __call__(self, x: int) -> int:
        return self.n + x

    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def create(cls, n: int) -> Adder:
        return cls(n)


def closure(n: int) -> Callable[[int], int]:
    def inner(x: int) -> int:
        return x + n

    return inner


def travel(func: Callable[..., Any]) -> Any:
    return _functions.load_function(_functions.function_ref(func))


@pytest.mark.parametrize("func", [double, fetch, len, math.sqrt, Adder, Adder.static, Adder.add, json.dumps])
def test_an_importable_function_travels_by_name(func: Callable[..., Any]) -> None:
    ref = _functions.function_ref(func, scope=7)
    assert ref == f"n{func.__module__}:{func.__qualname__}".encode()
    assert _functions.load_function(ref) is func


@pytest.mark.parametrize(
    "func",
    [lambda x: x + 3, closure(3), Adder(3), Adder(3).add, functools.partial(int.__add__, 3), closure(2 + 1)],
    ids=["lambda", "closure", "callable instance", "bound method", "partial", "nested"],
)
def test_other_functions_travel_by_value(func: Callable[[int], int]) -> None:
    ref = _functions.function_ref(func)
    assert ref[:1] == b"v"
    assert _functions.load_function(ref)(4) == 7


def test_a_class_method_travels_with_its_class() -> None:
    assert travel(Adder.create)(5).n == 5


def test_scopes_make_references_by_value_differ() -> None:
    add = Adder(1).add
    first, second = _functions.function_ref(add, scope=1), _functions.function_ref(add, scope=2)
    assert first != second
    assert first[9:] == second[9:]
    assert first[1:9] == (1).to_bytes(8, "little")


def test_what_pickle_can_do_needs_no_cloudpickle() -> None:
    program = (
        "import sys, functools, json; from polyloop import _codec, _functions\n"
        "_functions.function_ref(json.dumps); _functions.function_ref(functools.partial(json.dumps, indent=1))\n"
        "_codec.loads(_codec.dumps([1, {'a': (2, b'3')}]))\n"
        "_codec.load_exception(_codec.dump_exception(OSError(2, 'x')))\n"
        "assert 'cloudpickle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_program_without_a_file_sends_its_functions_and_values_by_value() -> None:
    program = (
        "import sys; from polyloop import _codec, _functions\n"
        "def f(x): return x + 1\n"
        "class P:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def m(self, y): return self.x + y\n"
        "class E(Exception):\n"
        "    def __init__(self, a, b): super().__init__(a + b); self.b = b\n"
        "out = [_functions.function_ref(f), _functions.function_ref(P(1).m)]\n"
        "out += [_codec.dumps(P(5)), _codec.dump_exception(E('a', 'b'))]\n"
        "sys.stdout.buffer.write(_codec.dumps(out))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    function, method, value, error = _codec.loads(done.stdout)
    assert _functions.load_function(function)(1) == 2
    assert _functions.load_function(method)(2) == 3
    assert _codec.loads(value).x == 5
    arrived = _codec.load_exception(error)
    assert (type(arrived).__name__, str(arrived), vars(arrived)) == ("E", "ab", {"b": "b"})


def test_a_function_that_is_not_what_its_name_leads_to_travels_by_value() -> None:
    impostor = types.FunctionType((lambda x: x + 1).__code__, globals())
    impostor.__qualname__ = "double"
    assert _functions.load_function(_functions.function_ref(impostor))(1) == 2


def test_a_coroutine_object_is_refused_with_what_to_write_and_without_a_warning() -> None:
    with pytest.raises(TypeError, match=r"write pool\.apply\(fetch, \(url,\)\) not pool\.apply\(fetch\(url\)\)"):
        _functions.function_ref(fetch("x"))


def test_what_is_not_callable_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function, got 'fetch' of type str"):
        _functions.function_ref("fetch")


@pytest.mark.parametrize("func", [numbers, functools.partial(numbers)])
def test_an_async_generator_function_is_refused_unless_allowed(func: Any) -> None:
    with pytest.raises(TypeError, match="async generator function, which apply and map do not support"):
        _functions.function_ref(func)
    assert _functions.function_ref(func, allow_async_generator=True)


def test_an_unpicklable_function_is_refused_naming_what_it_captures() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot send .*<lambda> to a worker: it captures lock of type _thread.lock"):
        _functions.function_ref(lambda: lock)


def test_a_large_function_by_value_warns_what_it_captures() -> None:
    table = b"x" * (2 << 20)
    with pytest.warns(RuntimeWarning, match=r"takes 2\.0 MiB in each call; it captures table"):
        _functions.function_ref(lambda: table)


def test_a_name_that_is_not_there_is_reported_as_not_importable() -> None:
    for ref in (b"nno_such_module:f", b"nasyncio.no_such_module:f", b"nasyncio:no_such_name", b"nasyncio:Task.nope"):
        with pytest.raises(FunctionNotImportable):
            _functions.load_function(ref)


def test_a_module_that_fails_to_import_raises_its_own_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_zero.py").write_text("1 / 0")
    (tmp_path / "fails_import.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        _functions.load_function(b"nfails_zero:f")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        _functions.load_function(b"nfails_import:f")


def test_a_function_sent_by_value_again_needs_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def f(x): return g(x) + 1\ndef g(x): return 2 * x\nclass C:\n    def m(self): return g(3)", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    assert _functions.function_ref(module.f) == b"nonly_here:f"
    by_value = [_functions.function_by_value(module.f), _functions.function_by_value(module.C().m)]
    monkeypatch.delitem(sys.modules, "only_here")
    function, method = map(_functions.load_function, by_value)
    assert (function(1), method()) == (3, 6)
