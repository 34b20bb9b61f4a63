"""How functions travel: by the name under which a worker can import them, or else by value.

    function reference:  b"n" "module:qualname"                      importable by name in a worker
                         b"v" scope (8 bytes, little endian) pickle  by value

For a Rust program, which has no functions of Python's to send, `import_function` finds one by its name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import struct
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, cast

from ._codec import cloud_dumps, cloud_dumps_whole, dumps_raw, loads, main_is_importable, reason_of
from ._exceptions import safe_repr, type_name
from .errors import PolyloopError

__all__ = [
    "FunctionNotImportable",
    "function_by_value",
    "function_ref",
    "import_function",
    "is_async_generator",
    "load_function",
    "refuse_async_generator",
]

LARGE_FUNCTION_BYTES = 1 << 20

_BY_NAME = b"n"
_BY_VALUE = b"v"
_SCOPE = struct.Struct("<Q")


class FunctionNotImportable(PolyloopError):
    """A worker cannot import a function that travelled by name: it must be sent again, by value."""


def function_ref(func: Any, *, scope: int = 0, allow_async_generator: bool = False) -> bytes:
    """Return the reference by which workers find `func`: its name where they can import it, else a pickle of it.

    Parameters:
        scope: a number that makes by-value references of different calls differ, so that workers never share one.
        allow_async_generator: for `stream`, which is the one verb that runs async generators.

    Raises:
        TypeError: `func` is not a function to call, or it cannot be sent.
    """
    if type(func) is types.FunctionType:
        if func.__code__.co_flags & inspect.CO_ASYNC_GENERATOR and not allow_async_generator:
            refuse_async_generator(func)
        module, name = func.__module__, func.__qualname__
        if getattr(sys.modules.get(module), name, None) is func and module != "__main__":
            return f"n{module}:{name}".encode()  # the usual case, on the path of every call
        return _named(func) or _valued(cloud_dumps, func, scope)
    _check_callable(func, allow_async_generator)
    return _named(func) or _valued(dumps_raw, func, scope)


def function_by_value(func: Any, *, scope: int = 0) -> bytes:
    """Return a by-value reference, whatever names `func` has: for workers that could not import it.

    Raises:
        TypeError: `func` cannot be sent by value.
    """
    return _valued(cloud_dumps_whole, func, scope)


def load_function(ref: bytes) -> Callable[..., Any]:
    """Return the function a reference stands for; called in the worker.

    Raises:
        FunctionNotImportable: its module or its name is not there. An import that fails in another way raises its
            own error.
    """
    kind, rest = ref[:1], ref[1:]
    if kind == _BY_NAME:
        return _import(str(rest, "utf-8"))
    if kind != _BY_VALUE:
        raise ValueError(f"not a function reference: {bytes(ref[:16])!r}")
    try:
        func = loads(rest[_SCOPE.size :])
    except AttributeError as error:
        if "Can't get attribute" not in str(error):
            raise
        raise FunctionNotImportable(f"the function needs something a worker cannot import: {error}") from error
    return cast(Callable[..., Any], func)


def import_function(ref: bytes) -> Callable[..., Any]:
    """Return the function a reference by name stands for, for a Rust program: nobody there could send it by value.

    It may be an async generator function: whether that is called for its values, its name does not tell.

    Raises:
        ImportError: as `from module import name` would.
        TypeError: it is nothing that a pool can call.
    """
    module_name, _, qualname = str(ref[1:], "utf-8").partition(":")
    module = importlib.import_module(module_name)
    found: Any = module
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        origin = getattr(module, "__file__", None) or "unknown location"
        raise ImportError(
            f"cannot import name {qualname!r} from {module_name!r} ({origin})", name=module_name, path=origin
        ) from None
    _check_callable(found, allow_async_generator=True)
    return cast(Callable[..., Any], found)


def _named(func: Any) -> bytes | None:
    """The by-name reference, if following that name leads back to this very object, here and in a worker."""
    module, qualname = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    if type(module) is not str or type(qualname) is not str or "<" in qualname:
        return None
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not func or (module == "__main__" and not main_is_importable()):
        return None
    return f"n{module}:{qualname}".encode()


def _import(name: str) -> Callable[..., Any]:
    module_name, _, qualname = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something it imports is not
        raise FunctionNotImportable(f"a worker cannot import {name}: {error}") from error
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise FunctionNotImportable(
            f"a worker cannot find {qualname} in {module_name}: define it at the top level of the module, "
            'not under `if __name__ == "__main__":`'
        ) from error
    return cast(Callable[..., Any], found)


def _valued(dump: Callable[[Any], bytes], func: Any, scope: int) -> bytes:
    try:
        data = dump(func)
    except Exception as error:
        raise TypeError(f"cannot send {_function_name(func)} to a worker: {_blame(func)}{reason_of(error)}") from error
    if len(data) > LARGE_FUNCTION_BYTES:
        names = ", ".join(_captured(func)) or "nothing by name"
        warnings.warn(
            f"{_function_name(func)} travels by value and takes {len(data) / 2**20:.1f} MiB in each call; "
            f"it captures {names}: pass large data as arguments, or load it in an initializer",
            RuntimeWarning,
            stacklevel=3,
        )
    return _BY_VALUE + _SCOPE.pack(scope & 0xFFFF_FFFF_FFFF_FFFF) + data


def _check_callable(func: Any, allow_async_generator: bool) -> None:
    if inspect.iscoroutine(func):
        code = func.cr_code
        name, names = func.__name__, code.co_varnames[: code.co_argcount]
        func.close()  # it will never be awaited: no RuntimeWarning about that on top of this error
        given = ", ".join(names)
        as_tuple = f"({given},)" if len(names) == 1 else f"({given})"
        right = f"pool.apply({name}, {as_tuple})" if names else f"pool.apply({name})"
        raise TypeError(f"expected a function, got a coroutine: write {right} not pool.apply({name}({given}))")
    if not callable(func):
        raise TypeError(f"expected a function, got {safe_repr(func)} of type {type_name(func)}")
    if not allow_async_generator and is_async_generator(func):
        refuse_async_generator(func)


def is_async_generator(func: Any) -> bool:
    """Whether calling `func` makes an async generator."""
    return inspect.isasyncgenfunction(func) or inspect.isasyncgenfunction(type(func).__call__)


def refuse_async_generator(func: Any) -> NoReturn:
    """Say what to do with an async generator function where its values are not wanted one by one.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        f"{_function_name(func)} is an async generator function, which apply and map do not support: "
        "return a list from a coroutine function, or use pool.stream"
    )


def _function_name(func: Any) -> str:
    return getattr(func, "__qualname__", None) or safe_repr(func)


def _captured(func: Any) -> dict[str, Any]:
    """What a function drags along when it travels by value, by name."""
    if isinstance(func, functools.partial):
        positional = {f"argument {index}": value for index, value in enumerate(func.args)}
        return {**_captured(func.func), **positional, **func.keywords}
    if isinstance(func, types.MethodType):
        return {"self": func.__self__}
    if not isinstance(func, types.FunctionType):
        return {f"self.{name}": value for name, value in getattr(func, "__dict__", {}).items()}
    used = inspect.getclosurevars(func)
    return {**used.nonlocals, **{k: v for k, v in used.globals.items() if not isinstance(v, types.ModuleType)}}


def _blame(func: Any) -> str:
    """Names the captured value that cannot be pickled, if there is one."""
    try:
        for name, value in _captured(func).items():
            try:
                cloud_dumps(value)
            except Exception:  # why, is what the caller says: this one is to blame
                return f"it captures {name} of type {type_name(value)}: "
    except Exception:  # an empty closure cell, a strange __getattr__: the reason alone must do
        pass
    return ""
