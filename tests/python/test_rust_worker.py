"""What a worker of a Rust program's pool reads. Calls there and back are tests of the Rust face."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloop import _core
from polyloop._logs import describe_record


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b"\xc0", None),
        (b"\xc2", False),
        (b"\xc3", True),
        (b"\x7f", 127),
        (b"\xe0", -32),
        (b"\xcc\xff", 255),
        (b"\xcd\x01\x00", 256),
        (b"\xce\xff\xff\xff\xff", 2**32 - 1),
        (b"\xcf" + b"\xff" * 8, 2**64 - 1),
        (b"\xd0\x80", -128),
        (b"\xd1\x80\x00", -(2**15)),
        (b"\xd2\x80\x00\x00\x00", -(2**31)),
        (b"\xd3\x80" + b"\x00" * 7, -(2**63)),
        (b"\xca\x3f\x00\x00\x00", 0.5),
        (b"\xcb\x7f\xf0" + b"\x00" * 6, math.inf),
        (b"\xa2\xc3\x9f", "ß"),
        (b"\xd9\x01a", "a"),
        (b"\xda\x00\x01a", "a"),
        (b"\xdb\x00\x00\x00\x01a", "a"),
        (b"\xc4\x01\xff", b"\xff"),
        (b"\xc5\x00\x01\xff", b"\xff"),
        (b"\xc6\x00\x00\x00\x01\xff", b"\xff"),
        (b"\x92\x01\x92\x02\xc0", [1, [2, None]]),
        (b"\xdc\x00\x01\x01", [1]),
        (b"\xdd\x00\x00\x00\x01\x01", [1]),
        (b"\x81\xa1a\x91\x01", {"a": [1]}),
        (b"\xde\x00\x01\x01\x02", {1: 2}),
        (b"\xdf\x00\x00\x00\x01\x92\x01\x91\x02\x03", {(1, (2,)): 3}),
        (b"\xd4\x00\x01", memoryview(b"\x01")),
        (b"\xc7\x03\x00abc", memoryview(b"abc")),
        (b"\xc7\x11\x02\x00" + b"\xff" * 16, 2**128 - 1),
        (b"\xc7\x11\x02\xff\x80" + b"\x00" * 15, -(2**127)),
    ],
)
def test_a_value_is_read_as_what_it_is_in_python(message: bytes, value: Any) -> None:
    read = _core.read_message(message)
    assert read == value
    assert type(read) is type(value)
    if isinstance(read, memoryview):
        assert read.readonly


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "too early"),
        (b"\xcd\x01", "too early"),
        (b"\xc6\xff\xff\xff\xff", "too early"),
        (b"\xdd\xff\xff\xff\xff\x01", "too early"),
        (b"\xa1\xff", "not UTF-8"),
        (b"\xc1", "begins no value"),
        (b"\xc1" + b"\x00" * 16, "longer than they are"),
        (b"\xd4\x05\x00", "unknown extension type 5"),
        (b"\xd8\x01" + b"\x00" * 16, "longer than they are"),
        (b"\xd8\x02" + b"\x00" * 16, "integer of the wrong size"),
        (b"\xc7\x11\x02\x01" + b"\x00" * 16, "integer of the wrong size"),
    ],
)
def test_what_is_no_value_is_refused(message: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _core.read_message(message)


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested: Any = _core.read_message(b"\x91" * 1000 + b"\x01")
    for _ in range(1000):
        (nested,) = nested
    assert nested == 1
    with pytest.raises(RecursionError, match="nested"):
        _core.read_message(b"\x91" * 1001 + b"\x01")


@given(st.binary(max_size=60))
def test_garbage_is_an_error(message: bytes) -> None:
    try:
        _core.read_message(message)
    except (ValueError, TypeError):  # a key that can't be one
        pass


def test_what_is_written_is_read_as_it_was() -> None:
    value = {"a": [None, True, -1, 2**64 - 1, 2**64, -(2**63) - 1, 0.5, "ß", b"\xff"], (1, "b"): {}}
    assert _core.read_message(_core.write_message(value)) == value
    assert _core.read_message(_core.write_message("0" * 100_000)) == "0" * 100_000, "there is nowhere else to put it"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (object(), "type object has no counterpart in Rust"),
        (2**128, "more than 128 bits"),
        (-(2**127) - 1, "more than 128 bits"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_has_no_counterpart_is_not_written(value: object, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError), match=complaint):
        _core.write_message(value)


def test_there_are_two_dialects() -> None:
    with pytest.raises(ValueError, match="'pickle' or 'messagepack', not \"json\""):
        _core.Worker(-1, dialect="json")


class ShowsNothing:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lineno": None, "levelno": 1 << 70, "name": 7, "pathname": Path("app.py")},
        {"lineno": -1, "levelno": -5, "levelname": None, "exc_text": ShowsNothing(), "extra": ShowsNothing()},
    ],
)
def test_a_record_that_a_program_has_made_up_is_one_that_rust_reads(fields: dict[str, Any]) -> None:
    told = _core.read_message(describe_record(logging.makeLogRecord(fields)))
    assert all(type(told[name]) is str for name in ("name", "levelname", "msg", "pathname"))
    assert all(type(told[name]) is int and 0 <= told[name] < 1 << 31 for name in ("levelno", "lineno"))
    assert all(type(told[name]) in (str, type(None)) for name in ("exc_text", "stack_info", "extra"))
