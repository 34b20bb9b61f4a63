//! Python objects, written for a Rust program.

use polyloop::{EXT_APART, EXT_INT, Span, WideInt};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};
use pyo3::{ffi, intern};
use rmp::encode;

use super::{DEPTH_MAX, too_deep};
use crate::apart::Outbox;
use crate::codec::type_name;

/// Appends `value` to `out`, and what of it is large to `apart`. `raw_view` gives the bytes of any buffer in one run.
pub(crate) fn write(
    value: &Bound<'_, PyAny>,
    raw_view: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
    apart: &mut Outbox,
) -> PyResult<()> {
    let mut writer = Writer { out, apart, raw_view, depth: 0 };
    writer.value(value)?;
    if apart.takes(out.len()) {
        let put = apart.put(PyBytes::new(value.py(), out).as_any())?;
        out.clear();
        out.extend(Span { start: put.start as u64, len: put.len as u64 }.to_message());
    }
    Ok(())
}

/// Appends `value` to `out` if it is a number, a text or bytes, exactly, and not large. What is appended else is of no
/// use.
pub(crate) fn write_if_simple(value: &Bound<'_, PyAny>, raw_view: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let is_simple = value.is_none()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyBytes>();
    let mut apart = Outbox::default();
    is_simple && write(value, raw_view, out, &mut apart).is_ok() && apart.is_empty()
}

/// What a program learns of an exception: the name of its type, what it says, its traceback, and the names of the classes
/// that its type is derived from.
pub(crate) type Described = (String, String, String, Vec<String>);

/// A task has raised this.
pub(crate) fn write_exception((type_name, message, traceback, bases): Described) -> PyResult<Vec<u8>> {
    let mut out = write_failure("Raised", 4)?;
    write_fields(&mut out, &[("type_name", &type_name), ("message", &message), ("traceback", &traceback)])?;
    write_text(&mut out, "bases")?;
    encode::write_array_len(&mut out, bases.len() as u32).map_err(refused)?;
    bases.iter().try_for_each(|base| write_text(&mut out, base))?;
    Ok(out)
}

/// A value of this type can't be written, for this reason.
pub(crate) fn write_unsendable(type_name: &str, reason: &str) -> PyResult<Vec<u8>> {
    let mut out = write_failure("Unsendable", 2)?;
    write_fields(&mut out, &[("type_name", type_name), ("reason", reason)])?;
    Ok(out)
}

/// As serde writes a variant that has so many fields, up to these.
fn write_failure(variant: &str, fields: usize) -> PyResult<Vec<u8>> {
    let mut out = Vec::new();
    write_map_len(&mut out, 1)?;
    write_text(&mut out, variant)?;
    write_map_len(&mut out, fields)?;
    Ok(out)
}

fn write_fields(out: &mut Vec<u8>, fields: &[(&str, &str)]) -> PyResult<()> {
    fields.iter().try_for_each(|(name, value)| {
        write_text(out, name)?;
        write_text(out, value)
    })
}

struct Writer<'a, 'py> {
    out: &'a mut Vec<u8>,
    apart: &'a mut Outbox,
    raw_view: &'a Bound<'py, PyAny>,
    depth: u32,
}

impl<'py> Writer<'_, 'py> {
    fn value(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if value.is_none() {
            encode::write_nil(self.out).map_err(refused)
        } else if let Ok(truth) = value.cast::<PyBool>() {
            encode::write_bool(self.out, truth.is_true()).map_err(refused)
        } else if let Ok(int) = value.cast::<PyInt>() {
            self.int(int)
        } else if let Ok(float) = value.cast::<PyFloat>() {
            encode::write_f64(self.out, float.value()).map_err(refused)
        } else if let Ok(text) = value.cast::<PyString>() {
            let text = text.to_str().map_err(|_| PyValueError::new_err("text with a lone surrogate"))?;
            write_text(self.out, text)
        } else if let Ok(list) = value.cast::<PyList>() {
            self.items(list.to_tuple())
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.items(tuple.clone())
        } else if let Ok(map) = value.cast::<PyDict>() {
            self.map(map)
        } else if value.is_instance_of::<PySet>() || value.is_instance_of::<PyFrozenSet>() {
            self.items(PyTuple::new(value.py(), value.try_iter()?.collect::<PyResult<Vec<_>>>()?)?)
        } else {
            self.buffer(value)
        }
    }

    fn int(&mut self, int: &Bound<'py, PyInt>) -> PyResult<()> {
        if let Ok(int) = int.extract() {
            encode::write_sint(self.out, int).map(drop).map_err(refused)
        } else if let Ok(int) = int.extract() {
            encode::write_uint(self.out, int).map(drop).map_err(refused)
        } else {
            self.wide_int(int)
        }
    }

    fn wide_int(&mut self, int: &Bound<'py, PyInt>) -> PyResult<()> {
        let too_wide = |_| PyOverflowError::new_err("an integer of more than 128 bits");
        let int = match int.extract() {
            Ok(int) => WideInt::Unsigned(int),
            Err(_) => WideInt::Signed(int.extract().map_err(too_wide)?),
        };
        let bytes = int.to_bytes();
        encode::write_ext_meta(self.out, bytes.len() as u32, EXT_INT).map_err(refused)?;
        self.out.extend(bytes);
        Ok(())
    }

    /// A copy, so that nothing changes it meanwhile.
    fn items(&mut self, items: Bound<'py, PyTuple>) -> PyResult<()> {
        self.nest()?;
        encode::write_array_len(self.out, len32(items.len())?).map_err(refused)?;
        for item in items {
            self.value(&item)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn map(&mut self, map: &Bound<'py, PyDict>) -> PyResult<()> {
        self.nest()?;
        let items = map.items();
        write_map_len(self.out, items.len())?;
        for item in items {
            let (key, value) = item.extract()?;
            self.value(&key)?;
            self.value(&value)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn buffer(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = value.py();
        if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            return self.bytes(bytes.as_any(), bytes.as_bytes());
        }
        // SAFETY: asks a live object whether it has a buffer.
        if unsafe { ffi::PyObject_CheckBuffer(value.as_ptr()) } == 0 {
            let message = format!("a value of type {} has no counterpart in Rust", type_name(value)?);
            return Err(PyTypeError::new_err(message));
        }
        // A number of numpy's is a buffer, too, of no dimensions.
        if let Some(item) = value.getattr_opt(intern!(py, "item"))?
            && value
                .getattr_opt(intern!(py, "ndim"))?
                .is_some_and(|ndim| ndim.extract().is_ok_and(|ndim: usize| ndim == 0))
        {
            self.nest()?;
            self.value(&item.call0()?)?;
            self.depth -= 1;
            return Ok(());
        }
        let view = self.raw_view.call1((value,))?;
        if self.apart.takes(view.len()?) {
            return self.put_apart(&view);
        }
        let bytes: Vec<u8> = pyo3::buffer::PyBuffer::<u8>::get(&view)?.to_vec(py)?;
        encode::write_bin(self.out, &bytes).map_err(refused)
    }

    fn bytes(&mut self, object: &Bound<'py, PyAny>, bytes: &[u8]) -> PyResult<()> {
        if self.apart.takes(bytes.len()) {
            return self.put_apart(object);
        }
        len32(bytes.len())?;
        encode::write_bin(self.out, bytes).map_err(refused)
    }

    fn put_apart(&mut self, object: &Bound<'py, PyAny>) -> PyResult<()> {
        let put = self.apart.put(object)?;
        len32(put.len)?;
        let span = Span { start: put.start as u64, len: put.len as u64 }.to_bytes();
        encode::write_ext_meta(self.out, span.len() as u32, EXT_APART).map_err(refused)?;
        self.out.extend(span);
        Ok(())
    }

    fn nest(&mut self) -> PyResult<()> {
        if self.depth == DEPTH_MAX {
            return Err(too_deep());
        }
        self.depth += 1;
        Ok(())
    }
}

fn write_map_len(out: &mut Vec<u8>, len: usize) -> PyResult<()> {
    encode::write_map_len(out, len32(len)?).map(drop).map_err(refused)
}

fn write_text(out: &mut Vec<u8>, text: &str) -> PyResult<()> {
    len32(text.len())?;
    encode::write_str(out, text).map_err(refused)
}

/// MessagePack's lengths have 32 bits.
fn len32(len: usize) -> PyResult<u32> {
    u32::try_from(len).map_err(|_| PyOverflowError::new_err("more than 4 GiB in one value"))
}

/// A vector takes everything, as long as there is memory.
fn refused(error: impl std::error::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}
