"""Log records and warnings of workers in the loggers of the client.

A record is text by the time its call returns in the worker, and in shared memory: what was written just before a worker
dies arrives. Nothing waits: what finds no room there is counted, and the count arrives.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from . import _codec, _core
from ._exceptions import safe_repr

__all__ = ["Forwarder", "describe_record", "dump_record", "levels", "load_record"]

TEXT_MAX = 2500
"""Characters left of each text of a record that is too large."""

NUMBER_MAX = (1 << 31) - 1

_last_resort = logging.lastResort
_NUMBERS = frozenset({"levelno", "lineno"})
_PERHAPS = frozenset({"exc_text", "stack_info"})
_DESCRIBED = ("name", "levelno", "levelname", "msg", "pathname", "lineno", "exc_text", "stack_info")
_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "taskName"})


def levels() -> dict[str, int]:
    """The levels that loggers of this process have of their own."""
    root = logging.getLogger()
    named = {name: logger for name, logger in root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    return {name: logger.level for name, logger in {"root": root, **named}.items() if logger.level != logging.NOTSET}


class Forwarder(logging.Handler):
    """In a worker: sends records to its client. In a process that a task forked: writes them to stderr.

    Parameters:
        client_levels: of the client's loggers, for those here that have none.
        dump: a record as the client reads it.
    """

    def __init__(
        self, worker: _core.Worker, client_levels: Mapping[str, int], dump: Callable[[logging.LogRecord], bytes]
    ) -> None:
        super().__init__()
        self._worker = worker
        self._dump = dump
        self._pid = os.getpid()
        self._client_levels = client_levels

    def stand_in(self) -> None:
        """While the worker is initialised, take what nobody else does: that may give the root logger a handler."""
        if logging.lastResort is not None:
            self.setLevel(logging.lastResort.level)
            logging.lastResort = self

    def settle(self) -> None:
        """After that, take everything, warnings too, unless the root logger has a handler."""
        if logging.lastResort is self:
            logging.lastResort = _last_resort
        root = logging.getLogger()
        if root.handlers:
            return
        self.setLevel(logging.NOTSET)
        root.addHandler(self)
        for name, level in self._client_levels.items():
            logger = logging.getLogger(name)
            if logger.level == logging.NOTSET or (logger is root and root.level == logging.WARNING):
                logger.setLevel(level)
        if warnings.showwarning.__module__ == "warnings":
            logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. What goes wrong is dealt with as for any handler."""
        try:
            if os.getpid() == self._pid:
                self._worker.log(self._dump(record))
            elif _last_resort is not None and record.levelno >= _last_resort.level:
                _last_resort.handle(record)
        except Exception:
            self.handleError(record)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record has, its message and its exception as text."""
    fields: dict[str, Any] = {name: value for name, value in vars(record).items() if name != "message"}
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["exc_info"] = None
    return fields


def dump_record(record: logging.LogRecord) -> bytes:
    """A record as bytes for a Python program."""
    fields = _fields_of(record)
    try:
        data = _codec.dumps(fields)
    except TypeError:
        # Something of the user's own ("extra").
        data = _codec.dumps({name: _sendable(value) for name, value in fields.items()})
    if len(data) > _core.LOG_RECORD_BYTES:
        data = _codec.dumps({name: _cut(name, value) for name, value in fields.items() if name in _STANDARD})
    return data


def describe_record(record: logging.LogRecord) -> bytes:
    """A record as bytes for a Rust program: what else it has ("extra") is text there, too."""
    fields = _fields_of(record)
    extra = {name: value for name, value in fields.items() if name not in _STANDARD}
    told = {name: _described(name, fields[name]) for name in _DESCRIBED}
    data = _core.write_message(_without_surrogates({**told, "extra": safe_repr(extra) if extra else None}))
    if len(data) > _core.LOG_RECORD_BYTES:
        cut = {name: _cut(name, value) for name, value in told.items()}
        data = _core.write_message(_without_surrogates({**cut, "extra": None}))
    return data


def _described(name: str, value: Any) -> str | int | None:
    """A field as Rust reads it, whatever a program has put there."""
    if name in _NUMBERS:
        return min(max(value, 0), NUMBER_MAX) if isinstance(value, int) else 0
    if value is None:
        return None if name in _PERHAPS else ""
    return value if isinstance(value, str) else safe_repr(value)


def _without_surrogates(fields: dict[str, Any]) -> dict[str, Any]:
    """The same with texts that Rust knows."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _sendable(value: Any) -> Any:
    try:
        _codec.dumps(value)
    except TypeError:
        return repr(value)
    return value


def _cut(name: str, value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= TEXT_MAX:
        return value
    note = f"[{len(value) - TEXT_MAX} characters left out]"
    # The end of a traceback says most.
    return f"{note} {value[-TEXT_MAX:]}" if name == "exc_text" else f"{value[:TEXT_MAX]} {note}"


def load_record(data: bytes) -> logging.LogRecord:
    """In the client: the record that `dump_record` was given."""
    return logging.makeLogRecord(_codec.loads(data))
