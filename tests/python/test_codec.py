"""How values and exceptions travel. No processes here."""

from __future__ import annotations

import asyncio
import copyreg
import functools
import json
import pickle
import subprocess
import sys
import threading
import traceback
import types
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from polyloop import _codec
from polyloop._codec import RemoteTraceback
from polyloop.errors import RemoteError, WorkerDied

# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("spec", "file", "importable"),
    [
        (None, None, False),
        (None, "<stdin>", False),
        (None, __file__, True),
        (None, "/usr/bin/ipython", False),
        ("app.cli", "/gone.py", True),
        ("app.__main__", __file__, False),
    ],
)
def test_main_is_importable_exactly_where_multiprocessing_would_run_it(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, file: str | None, importable: bool
) -> None:
    main = types.ModuleType("__main__")
    main.__spec__ = None if spec is None else types.SimpleNamespace(name=spec)  # type: ignore[assignment]
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert _codec.main_is_importable() is importable


@pytest.mark.parametrize("value", [None, 1, "text", [1, {"a": (b"x", 2.5)}], range(3), {1, 2}])
def test_values_travel(value: Any) -> None:
    data = _codec.dumps(value)
    assert _codec.loads(data) == value
    assert _codec.loads(memoryview(data)) == value


def test_a_lambda_within_a_value_travels() -> None:
    assert _codec.loads(_codec.dumps({"f": lambda x: x + 1}))["f"](1) == 2


def test_an_unpicklable_value_is_refused_with_its_type_and_the_reason() -> None:
    with pytest.raises(TypeError, match=r"cannot send a value of type list: .*cannot pickle '_thread.lock' object"):
        _codec.dumps([threading.Lock()])


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(TypeError, match="nested too deeply"):
            _codec.dumps(deep)
    finally:
        while deep:
            deep = deep[0]


# --------------------------------------------------------------------------------------------------------- exceptions


class TwoArguments(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a}{b}")
        self.a = a
        self.b = b


class Slotted(Exception):
    __slots__ = ("__private", "code", "empty")

    def __init__(self, code: int) -> None:
        self.code = code
        self.__private = code + 1

    @property
    def private(self) -> int:
        return self.__private


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class OwnReduce(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__("own")
        self.code = code
        self.how = "init"

    def __reduce__(self) -> Any:
        return functools.partial(OwnReduce, code=self.code), ()


class InheritedReduce(OwnReduce):
    def __init__(self, extra: str) -> None:
        super().__init__(code=1)
        self.extra = extra

    def __reduce__(self) -> Any:
        return type(self), (1, 2, 3)


class OwnState(Exception):
    def __init__(self, a: int, b: int) -> None:
        self.total = a + b
        self.lock = threading.Lock()

    def __getstate__(self) -> Any:
        return {"total": self.total}

    def __setstate__(self, state: Any) -> None:
        self.total = state["total"]
        self.lock = threading.Lock()


class Registered(Exception):
    def __init__(self, a: int, b: int) -> None:
        self.pair = (a, b)


copyreg.pickle(Registered, lambda error: (Registered, error.pair))


class NeedsNew(Exception):
    def __new__(cls, a: int, b: int) -> NeedsNew:
        return super().__new__(cls, a)

    def __init__(self, a: int, b: int) -> None:
        self.b = b


class Both(ValueError, OSError):
    def __init__(self, where: str) -> None:
        super().__init__(5, "both", where)


class Group(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], code: int) -> Group:
        group = super().__new__(cls, "custom", errors)
        group.code = code
        return group

    code: int


class Falsy(Exception):
    def __len__(self) -> int:
        return 0


def travelled(error: BaseException) -> BaseException:
    return _codec.load_exception(_codec.dump_exception(error))


def raised(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("did not raise")


BUILTIN = [
    raised(lambda: open("/no/such/file")),  # noqa: SIM115
    OSError(5, "io", "a", None, "b"),
    OSError("only text"),
    raised(lambda: b"\xff".decode()),
    raised(lambda: "\u20ac".encode("ascii")),
    raised(lambda: __import__("no_such_module")),
    raised(lambda: compile("a b", "file.py", "exec")),
    raised(lambda: {}["key"]),
    raised(lambda: undefined_name),  # type: ignore[name-defined]  # noqa: F821
    StopIteration(3),
    StopAsyncIteration(),
    SystemExit(4),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError("why"),
    asyncio.IncompleteReadError(b"ab", 4),
    raised(lambda: json.loads("{")),
    subprocess.CalledProcessError(3, ["cmd"], b"out"),
    BlockingIOError(11, "again", 3),
    WorkerDied(pid=3, exitcode=-9),
]
C_STATE = [
    *("errno", "strerror", "filename", "filename2", "characters_written"),
    *("encoding", "object", "start", "end", "reason"),
    *("msg", "name", "path", "value", "code"),
    *("lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"),
]


def state(error: BaseException) -> dict[str, Any]:
    kept = {name: getattr(error, name, None) for name in C_STATE}
    return {**kept, "args": error.args, "str": str(error), "dict": vars(error)}


@pytest.mark.parametrize("error", BUILTIN, ids=lambda error: type(error).__name__)
def test_builtin_and_library_exceptions_arrive_as_themselves(error: BaseException) -> None:
    arrived = travelled(error)
    assert type(arrived) is type(error)
    assert state(arrived) == state(error)


CUSTOM: list[tuple[BaseException, Callable[[Any], Any]]] = [
    (TwoArguments("a", "b"), lambda e: (str(e), e.a, e.b)),
    (Slotted(1), lambda e: (e.code, e.private, hasattr(e, "empty"))),
    (Frozen(3), lambda e: e.code),
    (OwnReduce(code=2), lambda e: (e.code, e.how)),
    (InheritedReduce("x"), lambda e: (e.code, e.extra, e.how)),
    (OwnState(1, 2), lambda e: (e.total, type(e.lock))),
    (Registered(1, 2), lambda e: e.pair),
    (NeedsNew(1, 2), lambda e: (e.args, e.b)),
    (Both("/x"), lambda e: (e.errno, e.filename, str(e))),
    (Falsy("x"), lambda e: e.args),
    (Group([ValueError(1)], 7), lambda e: (e.code, e.message, [repr(x) for x in e.exceptions])),
    (urllib.error.HTTPError("http://x", 404, "no", {}, None), lambda e: (e.code, e.url, e.reason)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("error", "look"), CUSTOM, ids=[type(error).__name__ for error, _ in CUSTOM])
def test_custom_exceptions_arrive_as_themselves(error: BaseException, look: Callable[[Any], Any]) -> None:
    arrived = travelled(error)
    assert type(arrived) is type(error)
    assert look(arrived) == look(error)


def test_an_exception_class_defined_in_a_function_arrives_as_itself() -> None:
    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            self.sum = a + b

    arrived = travelled(Local(1, 2))
    assert type(arrived) is Local
    assert arrived.sum == 3


def test_nested_groups_arrive_with_members_and_their_causes() -> None:
    inner = TwoArguments("a", "b")
    inner.__cause__ = KeyError("cause")
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [inner, OSError(2, "no")]), SystemExit(3)])
    arrived: Any = travelled(group)
    assert type(arrived) is BaseExceptionGroup
    first, second = arrived.exceptions
    assert [type(e) for e in first.exceptions] == [TwoArguments, FileNotFoundError]
    assert repr(first.exceptions[0].__cause__) == "KeyError('cause')"
    assert second.code == 3


def test_notes_cause_context_and_suppression_are_kept() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise TwoArguments("a", "b")  # noqa: B904
        except TwoArguments as error:
            error.add_note("a note")
            raise OSError(2, "last") from error

    arrived = travelled(raised(fail))
    cause = arrived.__cause__
    assert isinstance(cause, TwoArguments)
    assert cause.__notes__ == ["a note"]
    assert repr(cause.__context__) == "KeyError('first')"
    assert cause.__suppress_context__ is False
    assert arrived.__context__ is cause


def test_the_remote_traceback_hangs_at_the_end_of_the_chain() -> None:
    error = ValueError("top")
    error.__cause__ = TwoArguments("a", "b")
    error.__cause__.__context__ = KeyError("deepest")
    arrived: Any = travelled(error)
    last = arrived.__cause__.__context__.__cause__
    assert isinstance(last, RemoteTraceback)
    printed = "".join(traceback.format_exception(arrived))
    assert "RemoteTraceback: \nKeyError: 'deepest'\n" in printed
    assert printed.rstrip().endswith("ValueError: top")


def test_raise_from_none_hides_the_context_but_not_the_remote_traceback() -> None:
    error = ValueError("top")
    error.__context__ = KeyError("hidden")
    error.__suppress_context__ = True
    arrived = travelled(error)
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "hidden" not in "".join(traceback.format_exception(arrived))
    assert repr(arrived.__context__) == "KeyError('hidden')"


def halve(x: int) -> float:
    return x / 2


def test_the_traceback_text_shows_the_users_frames_only() -> None:
    def engine() -> None:
        halve(None)  # type: ignore[arg-type]

    whole = str(_codec.load_exception(_codec.dump_exception(raised(engine))).__cause__)
    assert "in raised" in whole
    assert "in halve" in whole
    trimmed = str(_codec.load_exception(_codec.dump_exception(raised(engine), skip_frames=1)).__cause__)
    assert "in raised" not in trimmed
    assert "in engine" in trimmed


def test_a_circular_chain_arrives_and_prints() -> None:
    first, second = ValueError(1), KeyError(2)
    first.__context__, second.__context__ = second, first
    first.other = second  # type: ignore[attr-defined]
    arrived: Any = travelled(first)
    assert arrived.other is arrived.__context__
    assert "RemoteTraceback" in "".join(traceback.format_exception(arrived))


def test_a_very_long_chain_is_cut_not_refused() -> None:
    error = top = ValueError(0)
    for n in range(1, 5_000):
        error.__context__ = ValueError(n)
        error = error.__context__
    arrived: Any = travelled(top)
    assert type(arrived) is ValueError
    assert arrived.args == (0,)
    assert arrived.__context__.__context__.args == (2,)


def test_what_cannot_be_pickled_becomes_a_remote_error() -> None:
    error = ValueError(threading.Lock())
    arrived = travelled(error)
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "ValueError"
    assert arrived.repr.startswith("ValueError(<unlocked _thread.lock")
    assert "cannot pickle '_thread.lock' object" in arrived.reason
    assert "ValueError: <unlocked" in arrived.traceback
    assert isinstance(arrived.__cause__, RemoteTraceback)


def test_an_unpicklable_link_or_member_does_not_take_the_exception_with_it() -> None:
    error = TwoArguments("a", "b")
    error.__cause__ = ExceptionGroup("g", [ValueError(threading.Lock()), KeyError(1)])
    arrived: Any = travelled(error)
    assert type(arrived) is TwoArguments
    assert [type(e) for e in arrived.__cause__.exceptions] == [RemoteError, KeyError]


class RaisesInRepr(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


def test_a_repr_that_raises_is_replaced() -> None:
    arrived = travelled(RaisesInRepr())
    assert isinstance(arrived, RemoteError)
    assert "RaisesInRepr whose repr fails" in arrived.repr
    assert str(arrived)


class FailsToLoad(Exception):
    def __setstate__(self, state: Any) -> None:
        raise KeyboardInterrupt("in __setstate__")


def test_what_cannot_be_unpickled_becomes_a_remote_error() -> None:
    arrived = travelled(FailsToLoad("x"))
    assert isinstance(arrived, RemoteError)
    assert arrived.repr == "FailsToLoad('x')"
    assert "in __setstate__" in arrived.reason


def test_an_exception_whose_class_is_unknown_here_becomes_a_remote_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_there")
    exec("class E(Exception): pass", vars(module))
    monkeypatch.setitem(sys.modules, "only_there", module)
    data = _codec.dump_exception(module.E("x"))
    monkeypatch.delitem(sys.modules, "only_there")
    arrived = _codec.load_exception(data)
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "only_there.E"
    assert "only_there" in arrived.reason


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps((1, 2)), pickle.dumps(("", "", "", "", b"x"))])
def test_damaged_bytes_become_a_remote_error(data: bytes) -> None:
    assert isinstance(_codec.load_exception(data), RemoteError)
    assert isinstance(_codec.load_exception(memoryview(data)), RemoteError)


class NotAnException(Exception):
    def __reduce__(self) -> Any:
        return str, ("text",)


def test_a_reduce_that_yields_no_exception_is_not_honoured() -> None:
    assert type(travelled(NotAnException("x"))) is NotAnException


def test_an_unsendable_result_becomes_a_remote_error_with_its_type() -> None:
    value = [threading.Lock()]
    arrived = _codec.load_exception(_codec.dump_unsendable(value, raised(lambda: _codec.dumps(value))))
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "list"
    assert "cannot pickle" in str(arrived)


def test_an_exception_can_travel_twice() -> None:
    arrived = travelled(travelled(TwoArguments("a", "b")))
    assert type(arrived) is TwoArguments
    assert isinstance(arrived.__cause__, RemoteTraceback)
