//! Python objects as MessagePack and back, for workers whose pool belongs to a Rust program.
//!
//! Exactly what has a counterpart in serde's model goes either way; everything else is refused. Arrays arrive as lists,
//! and as tuples where they are keys, which must be hashable.

mod writer;

use polyloop::{EXT_APART, EXT_INT, EXT_VIEW, Span, WideInt};
use pyo3::exceptions::{PyRecursionError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyList, PyMemoryView, PyString, PyTuple};
use rmp::Marker;
use rmp::decode::{Bytes, RmpRead, read_marker};

pub(crate) use self::writer::{write, write_exception, write_if_simple, write_unsendable};
use crate::apart::{Inbox, Outbox};
use crate::codec::Arguments;

/// How deep values may nest: as deep as serde's side goes.
const DEPTH_MAX: u32 = 1000;

/// What a function is called with: an array of what is positional, and a map of the rest.
pub(crate) fn read_arguments<'py>(py: Python<'py>, message: &[u8], apart: &Inbox<'_>) -> PyResult<Arguments<'py>> {
    let mut reader = Reader::new(py, message, apart)?;
    let args = reader.value(Use::Tuple)?.cast_into::<PyTuple>()?;
    let kwargs = reader.value(Use::Value)?.cast_into::<PyDict>()?;
    Ok(match (args.len(), kwargs.is_empty()) {
        (1, true) => Arguments::One(args.get_item(0)?),
        (_, true) => Arguments::Many(args),
        (_, false) => Arguments::Named(args, kwargs),
    })
}

/// Read a value that a Rust program wrote.
///
/// Raises:
///     ValueError: these bytes are none.
#[pyfunction]
pub(crate) fn read_message<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    Reader::new(py, message, &Inbox::default())?.value(Use::Value)
}

/// Write a value for a Rust program to read.
///
/// Raises:
///     OverflowError: it is an integer of more than 128 bits.
///     TypeError: it is of a type that has no counterpart in Rust.
///     ValueError: it is a text that has none.
#[pyfunction]
pub(crate) fn write_message<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = value.py();
    let raw_view = py.import(intern!(py, "polyloop._codec"))?.getattr(intern!(py, "raw_view"))?;
    let mut message = Vec::new();
    write(value, &raw_view, &mut message, &mut Outbox::closed())?;
    Ok(PyBytes::new(py, &message))
}

/// What a value is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Value,
    /// A value that is a tuple if it is an array.
    Tuple,
    /// A key: likewise, and all within it.
    Key,
}

impl Use {
    fn of_items(self) -> Self {
        if self == Self::Key { Self::Key } else { Self::Value }
    }
}

struct Reader<'a, 'py> {
    py: Python<'py>,
    rest: Bytes<'a>,
    apart: &'a Inbox<'a>,
    depth: u32,
}

impl<'a, 'py> Reader<'a, 'py> {
    fn new(py: Python<'py>, message: &'a [u8], apart: &'a Inbox<'a>) -> PyResult<Self> {
        let document = match Span::of_message(message) {
            Some(span) => apart.bytes_at(span)?,
            None => message,
        };
        Ok(Self { py, rest: Bytes::new(document), apart, depth: 0 })
    }

    fn value(&mut self, purpose: Use) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        Ok(match read_marker(&mut self.rest).map_err(|_| truncated())? {
            Marker::Null => py.None().into_bound(py),
            Marker::False => PyBool::new(py, false).to_owned().into_any(),
            Marker::True => PyBool::new(py, true).to_owned().into_any(),
            Marker::FixPos(int) => int.into_pyobject(py)?.into_any(),
            Marker::FixNeg(int) => int.into_pyobject(py)?.into_any(),
            Marker::U8 => u8::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::U16 => u16::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::U32 => u32::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::U64 => u64::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::I8 => i8::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::I16 => i16::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::I32 => i32::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::I64 => i64::from_be_bytes(self.array()?).into_pyobject(py)?.into_any(),
            Marker::F32 => PyFloat::new(py, f32::from_be_bytes(self.array()?).into()).into_any(),
            Marker::F64 => PyFloat::new(py, f64::from_be_bytes(self.array()?)).into_any(),
            Marker::Reserved => return Err(PyValueError::new_err("a byte that begins no value")),
            marker => self.sized(marker, purpose)?,
        })
    }

    /// A value that says how long it is.
    fn sized(&mut self, marker: Marker, purpose: Use) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let len = match marker {
            Marker::FixStr(len) | Marker::FixArray(len) | Marker::FixMap(len) => len.into(),
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Str8 | Marker::Bin8 | Marker::Ext8 => u8::from_be_bytes(self.array()?).into(),
            Marker::Str16 | Marker::Bin16 | Marker::Array16 | Marker::Map16 | Marker::Ext16 => {
                u16::from_be_bytes(self.array()?).into()
            }
            _ => u32::from_be_bytes(self.array()?),
        };
        match marker {
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let text = std::str::from_utf8(self.take(len)?)
                    .map_err(|_| PyValueError::new_err("text that is not UTF-8"))?;
                Ok(PyString::new(py, text).into_any())
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => Ok(PyBytes::new(py, self.take(len)?).into_any()),
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => self.nested(|reader| reader.items(len, purpose)),
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => self.nested(|reader| reader.map(len)),
            _ => self.extension(len),
        }
    }

    fn items(&mut self, len: u32, purpose: Use) -> PyResult<Bound<'py, PyAny>> {
        // Never reserved for: the length is only said.
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(self.value(purpose.of_items())?);
        }
        Ok(match purpose {
            Use::Value => PyList::new(self.py, items)?.into_any(),
            Use::Tuple | Use::Key => PyTuple::new(self.py, items)?.into_any(),
        })
    }

    fn map(&mut self, len: u32) -> PyResult<Bound<'py, PyAny>> {
        let map = PyDict::new(self.py);
        for _ in 0..len {
            let key = self.value(Use::Key)?;
            map.set_item(key, self.value(Use::Value)?)?;
        }
        Ok(map.into_any())
    }

    fn extension(&mut self, len: u32) -> PyResult<Bound<'py, PyAny>> {
        let kind = i8::from_be_bytes(self.array()?);
        let content = self.take(len)?;
        match (kind, Span::from_bytes(content)) {
            (EXT_VIEW, _) => Ok(PyMemoryView::from(PyBytes::new(self.py, content).as_any())?.into_any()),
            (EXT_APART, Some(span)) => self.apart.view_at(self.py, span),
            (EXT_INT, _) => match WideInt::from_bytes(content) {
                Some(WideInt::Signed(int)) => Ok(int.into_pyobject(self.py)?.into_any()),
                Some(WideInt::Unsigned(int)) => Ok(int.into_pyobject(self.py)?.into_any()),
                None => Err(PyValueError::new_err("an integer of the wrong size")),
            },
            _ => Err(PyValueError::new_err(format!("a value of the unknown extension type {kind}"))),
        }
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> PyResult<T>) -> PyResult<T> {
        if self.depth == DEPTH_MAX {
            return Err(too_deep());
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn array<const N: usize>(&mut self) -> PyResult<[u8; N]> {
        let mut bytes = [0; N];
        self.rest.read_exact_buf(&mut bytes).map_err(|_| truncated())?;
        Ok(bytes)
    }

    fn take(&mut self, len: u32) -> PyResult<&'a [u8]> {
        let (content, rest) = self.rest.remaining_slice().split_at_checked(len as usize).ok_or_else(truncated)?;
        self.rest = Bytes::new(rest);
        Ok(content)
    }
}

fn truncated() -> PyErr {
    PyValueError::new_err("a value ends too early")
}

fn too_deep() -> PyErr {
    PyRecursionError::new_err(format!("it is nested more than {DEPTH_MAX} deep, or contains itself"))
}
