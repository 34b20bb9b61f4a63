"""How values and exceptions become bytes and back: the only file that knows pickle and cloudpickle.

Standard pickle comes first; cloudpickle is imported only for what pickle cannot do. Functions are `_functions`, taking
exceptions apart is `_exceptions`; sending bytes is the engine's.

What goes to a Rust program and comes from it is MessagePack, and the extension's: `describe_exception`, `NotSendable`
and `raw_view` are what it asks for here.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

from . import _core
from ._exceptions import (
    RemoteTraceback,
    class_name,
    describe,
    format_traceback,
    hang_at_end,
    link,
    neighbours,
    reduce,
    reduces_itself,
    safe_repr,
    type_name,
)
from .errors import PolyloopError, RemoteError

__all__ = [
    "NotSendable",
    "RemoteTraceback",
    "cloud_dumps",
    "cloud_dumps_whole",
    "describe_exception",
    "dump_exception",
    "dump_unsendable",
    "dumps",
    "dumps_for_child",
    "dumps_raw",
    "finish_imports",
    "load_exception",
    "loads",
    "main_is_importable",
    "raw_view",
    "reason_of",
]

PROTOCOL = 5
QUICKLY_SEARCHED_BYTES = 4 << 10
MAX_CHAINED_EXCEPTIONS = 100

_LINKS = ("__cause__", "__context__", "__suppress_context__")


# ------------------------------------------------------------------------------------------------------------- values


def dumps(value: Any, apart: list[memoryview] | None = None) -> bytes:
    """Return `value` as bytes: by standard pickle, or by cloudpickle where that is not enough.

    Parameters:
        apart: where to put large buffers (of arrays, for instance) instead of copies of them among the bytes. `loads`
            needs them again, in the same order.

    Raises:
        TypeError: neither can; the message names the type and the reason.
    """
    try:
        return dumps_raw(value, apart)
    except Exception as error:
        raise TypeError(f"cannot send a value of type {type_name(value)}: {reason_of(error)}") from error


class Unpicklable(TypeError, pickle.PicklingError):
    """What `dumps` raises, for programs that expect what pickle does."""


def as_pickling_error(error: BaseException) -> BaseException:
    """The same error as a `PicklingError` too, if that is why `dumps` has raised it."""
    if not (isinstance(error, TypeError) and isinstance(error.__cause__, pickle.PicklingError)):
        return error
    unpicklable = Unpicklable(*error.args).with_traceback(error.__traceback__)
    unpicklable.__cause__ = error.__cause__
    return unpicklable


def loads(data: bytes | memoryview, apart: Sequence[memoryview] = ()) -> Any:
    """Return the value that `dumps` was given. What was put apart is used in place."""
    return pickle.loads(data, buffers=apart)


def raw_view(value: Any) -> memoryview | bytes:
    """Return the bytes of a buffer in one run, the last dimension's next to each other: in place if they stand so."""
    view = memoryview(value)
    return pickle.PickleBuffer(view).raw() if view.c_contiguous else view.tobytes()


def dumps_for_child(value: Any) -> bytes:
    """As `dumps`, for a process that is being started: what only inheritance can pass (queues, locks, pipes) may go.

    Raises:
        TypeError: the value cannot be sent.
    """
    try:
        try:
            data = bytes(ForkingPickler.dumps(value, PROTOCOL))
            if not _needs_cloud(data):
                return data
        except Exception:  # cloudpickle may know how
            pass
        return _dump_with(_cloud_child_pickler(), value)
    except Exception as error:
        raise TypeError(f"cannot send this to a new process: {reason_of(error)}") from error


def main_is_importable() -> bool:
    """Whether a worker can import this process's `__main__`: a script or `-m module`; not a REPL, stdin or notebook."""
    global _main_seen
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if _main_seen[0] is not main or _main_seen[1] != path:
        _main_seen = (main, path, _is_importable_main(main, path))
    return _main_seen[2]


_main_seen: tuple[types.ModuleType | None, str | None, bool] = (None, None, False)


def _is_importable_main(main: types.ModuleType | None, path: str | None) -> bool:
    """What multiprocessing's preparation of a child does: a spec's name first, then the path."""
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return not (name == "__main__" or name.endswith(".__main__"))
    if path is None or os.path.splitext(os.path.basename(path))[0] == "ipython":
        return False
    return os.path.isfile(path)


def dumps_raw(value: Any, apart: list[memoryview] | None = None) -> bytes:
    """As `dumps`, but what goes wrong is raised as it is."""
    callback = None if apart is None else functools.partial(_stays, apart)
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=callback)
        if not _needs_cloud(data):
            return data
    except Exception:  # cloudpickle may know how, or says better why not
        pass
    if apart:
        apart.clear()
    return cloud_dumps(value, callback)


def _stays(apart: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer stays in the pickle."""
    try:
        raw = buffer.raw()
    except BufferError:  # not in one run: pickle says so
        return True
    if raw.nbytes < _core.LARGE_BYTES:
        return True
    apart.append(raw)
    return False


def _needs_cloud(data: bytes) -> bool:
    """Whether a pickle names things of a `__main__` that exists in this process only."""
    if len(data) <= QUICKLY_SEARCHED_BYTES:
        return b"__main__" in data and not main_is_importable()
    return not main_is_importable() and b"__main__" in data


def cloud_dumps(value: Any, callback: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    """Return `value` as bytes by cloudpickle, whatever pickle could do. What goes wrong is raised as it is."""
    buffer = io.BytesIO()
    _cloud_pickler()(buffer, PROTOCOL, callback).dump(value)
    return buffer.getvalue()


def cloud_dumps_whole(func: Any) -> bytes:
    """By value even where cloudpickle would write a name: the whole module is said to be unknown to the worker."""
    inner = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, types.MethodType):
        inner = inner.__self__
    owner = inner if hasattr(inner, "__qualname__") else type(inner)
    module = sys.modules.get(owner.__module__ or "")
    cloudpickle = _cloudpickle()
    if module is None or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        return cloud_dumps(func)
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloud_dumps(func)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def finish_imports() -> None:
    """Before a fork: have no thread in the middle of this import. The child would wait for its end for ever."""
    _cloudpickle()


def _cloudpickle() -> Any:
    import cloudpickle

    return cloudpickle


def _dump_with(pickler: Callable[..., Any], value: Any) -> bytes:
    buffer = io.BytesIO()
    pickler(buffer, PROTOCOL).dump(value)
    return buffer.getvalue()


@functools.cache
def _cloud_pickler() -> Any:
    base = _cloudpickle().Pickler

    class CloudPickler(base):  # type: ignore[misc, valid-type]
        dispatch_table = base.dispatch_table.new_child({memoryview: _reduce_view})

    return CloudPickler


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    """Views arrive as views, of the same format and shape; cloudpickle itself makes bytes of them."""
    if view.format.removeprefix("@") not in _NATIVE_FORMATS or view.ndim == 0:
        return bytes, (view.tobytes(),)
    content = pickle.PickleBuffer(view) if view.c_contiguous else view.tobytes()
    return _view, (content, view.format, view.shape)


def _view(content: Any, format: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(content)
    if 0 in shape:
        return view.cast(format)  # type: ignore[call-overload, no-any-return]
    return view.cast(format, shape)  # type: ignore[call-overload, no-any-return]


_NATIVE_FORMATS = frozenset("bBcdfhHiIlLnNqQ?")
"""What `memoryview.cast` knows."""


@functools.cache
def _cloud_child_pickler() -> Any:
    base = _cloudpickle().Pickler

    class CloudChildPickler(base):  # type: ignore[misc, valid-type]
        dispatch_table = base.dispatch_table.new_child(dict(ForkingPickler._extra_reducers))  # type: ignore[attr-defined]

    return CloudChildPickler


def reason_of(error: BaseException) -> str:
    """Say why something could not be pickled."""
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return "it is nested too deeply"
    return describe(error)


# --------------------------------------------------------------------------------------------------------- exceptions


def dump_exception(exc: BaseException, *, skip_frames: int = 0) -> bytes:
    """Return an exception as bytes, with its chain and its traceback as text; called in the worker. Never raises.

    What cannot be pickled becomes a `RemoteError`, in its own place of the chain.

    Parameters:
        skip_frames: how many of the outermost frames the traceback text leaves out, besides polyloop's own.
    """
    text = format_traceback(exc, skip_frames)
    name, shown, reason, body = type_name(exc), safe_repr(exc), "", b""
    try:
        body = _dump_chain(exc, text)
    except BaseException as error:
        reason = reason_of(error)
    return pickle.dumps((name, shown, text, reason, body), PROTOCOL)


def dump_unsendable(value: Any, reason: BaseException) -> bytes:
    """Return the bytes of a `RemoteError` that stands for a result that could not be pickled. Never raises."""
    return dump_exception(RemoteError(type_name(value), safe_repr(value), format_traceback(reason), reason_of(reason)))


def describe_exception(exc: BaseException) -> tuple[str, str, str, list[str]]:
    """Return what a Rust program learns of an exception: its type, what it says, its traceback, its base classes.

    Never raises.
    """
    try:
        message = str(exc)
    except Exception:
        message = safe_repr(exc)
    bases = (class_name(base) for base in type(exc).__mro__[1:-1])
    texts = (type_name(exc), message, format_traceback(exc), *bases)
    name, message, traceback, *names = (text.encode("utf-8", "replace").decode() for text in texts)
    return name, message, traceback, names


class NotSendable(PolyloopError):
    """A value of a stream cannot be sent to a Rust program, which is told so in these bytes."""

    def __init__(self, told: bytes) -> None:
        super().__init__(told)
        self.told = told


def load_exception(data: bytes | memoryview) -> BaseException:
    """Return the exception `dump_exception` was given, its remote traceback at the end of its chain. Never raises."""
    try:
        name, shown, text, reason, body = pickle.loads(data)
    except BaseException as error:
        return RemoteError(reason=f"the bytes of an exception are damaged ({describe(error)})")
    exc: BaseException
    try:
        exc = _load_chain(body) if body else RemoteError(name, shown, text, reason)
    except BaseException as error:
        exc = RemoteError(name, shown, text, reason_of(error))
    try:
        hang_at_end(exc, text)
    except BaseException:  # a class with a `__cause__` of its own, which may do anything
        _note(exc, text)
    return exc


def _note(exc: BaseException, text: str) -> None:
    """Tell of a traceback that can't hang at the end of the chain."""
    try:
        BaseException.add_note(exc, text)
    except BaseException:  # it takes no note either: its type and message must do
        pass


def _dump_chain(exc: BaseException, text: str) -> bytes:
    """By standard pickle if that does, else by cloudpickle, else with stand-ins for what neither can do."""
    try:
        data = _checked_chain(_ExceptionPickler, exc)
        if not _needs_cloud(data):
            return data
    except Exception:  # cloudpickle may know how
        pass
    pickler = _cloud_exception_pickler()
    try:
        return _checked_chain(pickler, exc)
    except Exception:  # the stand-ins say why
        return _write_chain(pickler, exc, _stand_ins(pickler, exc, text), honour=False)[0]


def _checked_chain(pickler_type: Any, exc: BaseException) -> bytes:
    """Let classes reduce themselves only if that can be undone: an inherited `__reduce__` may not fit `__init__`."""
    data, honoured = _write_chain(pickler_type, exc, {}, honour=True)
    if not honoured:
        return data
    try:
        _load_chain(data, strict=True)
    except Exception:  # so the classes do not have their way; if that can't be undone either, the client says why
        return _write_chain(pickler_type, exc, {}, honour=False)[0]
    return data


def _write_chain(
    pickler_type: Any, exc: BaseException, stand_ins: dict[int, RemoteError], *, honour: bool
) -> tuple[bytes, bool]:
    """One stream: the exception, then the links of each exception met so far, then None; and if a class had its way.

    Links follow later so that long and circular chains need no recursion: the pickler's memo ties the knots.
    """
    buffer = io.BytesIO()
    pickler = pickler_type(buffer, stand_ins, honour)
    pickler.dump(exc)
    linked = 0
    while linked < min(len(pickler.met), MAX_CHAINED_EXCEPTIONS):
        met = pickler.met[linked]
        pickler.dump((met, *(getattr(met, name) for name in _LINKS)))
        linked += 1
    pickler.dump(None)
    return buffer.getvalue(), pickler.honoured


def _load_chain(body: bytes, *, strict: bool = False) -> BaseException:
    unpickler = pickle.Unpickler(io.BytesIO(body))
    exc = unpickler.load()
    if not isinstance(exc, BaseException):
        raise TypeError(f"it arrived as {type_name(exc)}, which is not an exception")
    try:
        while (links := unpickler.load()) is not None:
            linked, *values = links
            for name, value in zip(_LINKS, values, strict=True):
                link(linked, name, value)
    except Exception:  # a cause that cannot be loaded does not take the exception with it
        if strict:
            raise
    return exc


def _stand_ins(pickler_type: Any, exc: BaseException, text: str) -> dict[int, RemoteError]:
    """A `RemoteError` for each exception of the chain that cannot be pickled; members of a group come first."""
    order, found = [exc], {id(exc)}
    for one in order:
        for other in neighbours(one):
            if id(other) not in found and len(order) < MAX_CHAINED_EXCEPTIONS:
                found.add(id(other))
                order.append(other)
    stand_ins: dict[int, RemoteError] = {}
    for one in reversed(order):
        try:
            pickler_type(io.BytesIO(), stand_ins, False).dump(one)
        except Exception as error:
            trace = text if one is exc else ""
            stand_ins[id(one)] = RemoteError(type_name(one), safe_repr(one), trace, reason_of(error))
    return stand_ins


class _TakesExceptionsApart:
    """What turns a pickler, the standard or cloudpickle's, into one that takes exceptions apart."""

    def __init__(self, file: io.BytesIO, stand_ins: dict[int, RemoteError], honour: bool) -> None:
        super().__init__(file, PROTOCOL)  # type: ignore[call-arg]
        self.met: list[BaseException] = []
        self.stand_ins = stand_ins
        self.honour = honour
        self.honoured = False

    def reducer_override(self, obj: Any) -> Any:
        if not issubclass(type(obj), BaseException):
            parent = getattr(super(), "reducer_override", None)
            return NotImplemented if parent is None else parent(obj)
        self.met.append(obj)
        stand_in = self.stand_ins.get(id(obj))
        if stand_in is None and self.honour and reduces_itself(type(obj)):
            self.honoured = True
            return NotImplemented
        return reduce(obj if stand_in is None else stand_in)


class _ExceptionPickler(_TakesExceptionsApart, pickle.Pickler):
    pass


@functools.cache
def _cloud_exception_pickler() -> Any:
    return type("CloudExceptionPickler", (_TakesExceptionsApart, _cloudpickle().Pickler), {})
