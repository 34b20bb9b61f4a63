"""Takes an exception apart and puts it together again without calling its `__init__`; formats its traceback.

Knows nothing of pickle or of bytes: `_codec` carries the parts. An ordinary two-argument exception therefore arrives as
itself, while what its C base class keeps (errno, the position of a SyntaxError, a group's members) is set directly.
"""

from __future__ import annotations

import asyncio
import copyreg
import os
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

MAX_REPR_CHARS = 2_000
MAX_TRACEBACK_CHARS = 256_000

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, so not one of the interpreter's own exceptions
_ARGS: Any = vars(BaseException)["args"]  # a class may use the name for something else
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_OWN_DIRECTORIES = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (__file__, asyncio.__file__))
# `obj` is whatever the attribute was looked up on: the standard library leaves it behind as well.
_NOT_CARRIED = {"__dict__", "__weakref__", "obj"}

Parts = tuple[tuple[Any, ...], dict[str, Any], Any]


class RemoteTraceback(Exception):
    """The traceback in the worker, as text; hangs as `__cause__` at the end of an exception's chain."""

    def __str__(self) -> str:
        """The text, on lines of its own."""
        return "\n" + "".join(map(str, self.args))


def reduces_itself(cls: type[BaseException]) -> bool:
    """Whether the class says how it is pickled, or keeps C state that only its own code can rebuild."""
    if cls in copyreg.dispatch_table:
        return True
    for base in cls.__mro__:
        own = vars(base)
        if base.__flags__ & _HEAP_TYPE:
            if not own.keys().isdisjoint(("__reduce__", "__reduce_ex__")):
                return True
            if isinstance(own.get("__new__"), types.BuiltinFunctionType):
                return True
        elif base.__module__ != "builtins" and issubclass(base, BaseException):
            return True
    return False


def reduce(exc: BaseException) -> tuple[Any, ...]:
    """Return the exception as a pickle reduce value that `rebuild` and `restore` undo."""
    cls = type(exc)
    blank: tuple[Any, ...] = (cls,)
    if isinstance(exc, BaseExceptionGroup):  # its members can only be given at creation
        blank = (cls, exc.message, list(exc.exceptions))
    return (rebuild, blank, take_parts(exc), None, None, restore)


def rebuild(cls: type[BaseException], *group: Any) -> BaseException:
    """Return a new exception of this class; no Python code of the class runs."""
    base = cls
    while base.__flags__ & _HEAP_TYPE and base.__base__ is not None:
        base = base.__base__
    exc = base.__new__(cls, *group)
    assert isinstance(exc, BaseException)
    return exc


def take_parts(exc: BaseException) -> Parts:
    """Return what makes this exception itself: its args, its C and `__slots__` members, its attributes."""
    cls = type(exc)
    members: dict[str, Any] = {}
    for base, name, descriptor in _members(cls):
        try:
            value = descriptor.__get__(exc, cls)
        except Exception:  # an empty slot, or a computed attribute that has no value now
            continue
        # For a C member None means "not set"; setting it would change str(exc).
        if value is not None or base.__flags__ & _HEAP_TYPE:
            members.setdefault(name, value)
    state = exc.__getstate__() if _defines(cls, "__getstate__") else dict(vars(exc))
    return _ARGS.__get__(exc, cls), members, state


def restore(exc: BaseException, parts: Parts) -> None:
    """Give a rebuilt exception its parts."""
    args, members, state = parts
    _ARGS.__set__(exc, args)
    for _, name, descriptor in _members(type(exc)):
        if name in members:
            try:
                descriptor.__set__(exc, members[name])
            except (AttributeError, TypeError):  # read-only: it was set at creation
                continue
    if _defines(type(exc), "__setstate__"):
        exc.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    vars(exc).update(attributes or {})
    for name, value in (slots or {}).items():
        setattr(exc, name, value)


def _members(cls: type[BaseException]) -> Iterator[tuple[type, str, Any]]:
    for base in cls.__mro__:
        if base in (BaseException, BaseExceptionGroup, object):
            continue
        for name, value in vars(base).items():
            if isinstance(value, _DESCRIPTORS) and name not in _NOT_CARRIED:
                yield base, name, value


def _defines(cls: type, method: str) -> bool:
    return any(method in vars(base) for base in cls.__mro__ if base.__flags__ & _HEAP_TYPE)


def neighbours(exc: BaseException) -> list[BaseException]:
    """The exceptions shown together with this one: members of a group, then cause and context."""
    found = list(exc.exceptions) if isinstance(exc, BaseExceptionGroup) else []
    return found + [link for link in (exc.__cause__, exc.__context__) if link is not None]


def hang_at_end(exc: BaseException, text: str) -> None:
    """Make the remote traceback the cause of the last exception of the chain that is displayed for `exc`."""
    seen = {id(exc)}
    last = exc
    while True:
        following = last.__cause__
        if following is None and not last.__suppress_context__:
            following = last.__context__
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        last = following
    link(last, "__cause__", RemoteTraceback(text))


def link(exc: BaseException, name: str, value: object) -> None:
    """Set a link of the chain, or whether it is shown, also where the class is frozen."""
    object.__setattr__(exc, name, value)


def format_traceback(exc: BaseException, skip_frames: int = 0) -> str:
    """Return the traceback of `exc` and of its chain as text, without polyloop's own frames at its start.

    Parameters:
        skip_frames: how many of the outermost frames to leave out in any case.
    """
    try:
        start = _first_foreign(exc.__traceback__, skip_frames)
        text = "".join(traceback.format_exception(type(exc), exc, start))
    except BaseException:  # its __str__, __notes__ or __cause__ may do anything
        return f"{type_name(exc)}: {safe_repr(exc)}\n"
    return text if len(text) <= MAX_TRACEBACK_CHARS else "[...]\n" + text[-MAX_TRACEBACK_CHARS:]


def _first_foreign(tb: types.TracebackType | None, skip_frames: int) -> types.TracebackType | None:
    kept = tb
    while kept is not None and (skip_frames > 0 or kept.tb_frame.f_code.co_filename.startswith(_OWN_DIRECTORIES)):
        kept = kept.tb_next
        skip_frames -= 1
    return kept if kept is not None else tb


def type_name(value: object) -> str:
    """The full name of a value's type, as a traceback shows it."""
    return class_name(type(value))


def class_name(cls: type) -> str:
    """The full name of a class, as a traceback shows it."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def safe_repr(value: object) -> str:
    """`repr(value)`, shortened when long, and a stand-in when it raises."""
    text = _guarded(repr, value) or f"<{type_name(value)} whose repr fails>"
    return text if len(text) <= MAX_REPR_CHARS else text[:MAX_REPR_CHARS] + "..."


def describe(failure: BaseException) -> str:
    """One line that says what went wrong: the type and the message of `failure`."""
    message = _guarded(str, failure)
    name = type(failure).__name__
    return f"{name}: {message}" if message else name


def _guarded(render: Callable[[object], str], value: object) -> str | None:
    try:
        return str(render(value))
    except BaseException:  # whatever a user's repr raises while an error is told: callers show that it failed
        return None
