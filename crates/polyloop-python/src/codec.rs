//! Python objects as bytes and back: the engine's codec for simple values, `polyloop._codec` for all others. With a Rust
//! program, [`messagepack`].

use std::str::FromStr;

use polyloop::{Apart, Value, ValueReader, ValueWriter};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::apart::{Inbox, Outbox, Put};
use crate::messagepack;
use crate::options::Verb;

/// How deep simple values may nest.
const DEPTH_MAX: u32 = 4;
/// How many values a simple sequence may hold; beyond, pickle is as good.
const LEN_MAX: usize = 64;

/// What a worker and its pool exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Any Python object.
    Pickle,
    /// What both Python and Rust know.
    MessagePack,
}

impl FromStr for Dialect {
    type Err = PyErr;

    fn from_str(name: &str) -> PyResult<Self> {
        match name {
            "pickle" => Ok(Self::Pickle),
            "messagepack" => Ok(Self::MessagePack),
            _ => Err(PyValueError::new_err(format!("a dialect is 'pickle' or 'messagepack', not {name:?}"))),
        }
    }
}

/// `polyloop._codec` and `polyloop._functions`, what they have at hand.
pub(crate) struct Codec {
    dialect: Dialect,
    dumps: Py<PyAny>,
    loads: Py<PyAny>,
    dump_exception: Py<PyAny>,
    dump_unsendable: Py<PyAny>,
    load_exception: Py<PyAny>,
    load_function: Py<PyAny>,
    function_ref: Py<PyAny>,
    function_by_value: Py<PyAny>,
    not_importable: Py<PyAny>,
    import_function: Py<PyAny>,
    describe_exception: Py<PyAny>,
    is_async_generator: Py<PyAny>,
    refuse_async_generator: Py<PyAny>,
    not_sendable: Py<PyAny>,
    raw_view: Py<PyAny>,
}

/// What a function is called with.
pub(crate) enum Arguments<'py> {
    /// One, as nearly always in a map.
    One(Bound<'py, PyAny>),
    Many(Bound<'py, PyTuple>),
    Named(Bound<'py, PyTuple>, Bound<'py, PyDict>),
}

impl<'py> Arguments<'py> {
    pub(crate) fn call(self, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::One(argument) => function.call1((argument,)),
            Self::Many(args) => function.call1(args),
            Self::Named(args, kwargs) => function.call(args, Some(&kwargs)),
        }
    }

    /// As a tuple and keywords.
    pub(crate) fn into_parts(self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
        Ok(match self {
            Self::One(argument) => (PyTuple::new(py, [argument])?, None),
            Self::Many(args) => (args, None),
            Self::Named(args, kwargs) => (args, Some(kwargs)),
        })
    }
}

impl Codec {
    pub(crate) fn new(py: Python<'_>, dialect: Dialect) -> PyResult<Self> {
        let (values, functions) = (py.import("polyloop._codec")?, py.import("polyloop._functions")?);
        let get = |name: &str| values.getattr(name).map(Bound::unbind);
        let get_function = |name: &str| functions.getattr(name).map(Bound::unbind);
        Ok(Self {
            dialect,
            dumps: get("dumps")?,
            loads: get("loads")?,
            dump_exception: get("dump_exception")?,
            dump_unsendable: get("dump_unsendable")?,
            load_exception: get("load_exception")?,
            load_function: get_function("load_function")?,
            function_ref: get_function("function_ref")?,
            function_by_value: get_function("function_by_value")?,
            not_importable: get_function("FunctionNotImportable")?,
            import_function: get_function("import_function")?,
            describe_exception: get("describe_exception")?,
            is_async_generator: get_function("is_async_generator")?,
            refuse_async_generator: get_function("refuse_async_generator")?,
            not_sendable: get("NotSendable")?,
            raw_view: get("raw_view")?,
        })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Appends `value` to `out`, and what of it is large to `apart`.
    pub(crate) fn write(&self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>, apart: &mut Outbox) -> PyResult<()> {
        if self.dialect == Dialect::MessagePack {
            return messagepack::write(value, self.raw_view.bind(value.py()), out, apart);
        }
        let mut writer = ValueWriter::new(out);
        let (mark, mark_apart) = (writer.mark(), apart.mark());
        if write_simple(value, &mut writer, apart, &mut Nesting::default())? {
            return Ok(());
        }
        writer.rewind(mark);
        apart.rewind(mark_apart);
        self.write_pickled(value, &mut writer, apart)
    }

    /// Appends `value` to `out` if it is simple and nothing of it is large. What is appended else is of no use.
    pub(crate) fn write_if_simple(&self, value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
        if self.dialect == Dialect::MessagePack {
            return messagepack::write_if_simple(value, self.raw_view.bind(value.py()), out);
        }
        let mut apart = Outbox::default();
        let written = write_simple(value, &mut ValueWriter::new(out), &mut apart, &mut Nesting::default());
        matches!(written, Ok(true)) && apart.is_empty()
    }

    fn write_pickled(
        &self,
        value: &Bound<'_, PyAny>,
        writer: &mut ValueWriter<'_>,
        apart: &mut Outbox,
    ) -> PyResult<()> {
        let py = value.py();
        let dumps = self.dumps.bind(py);
        let bytes = if apart.is_closed() {
            dumps.call1((value,))?
        } else {
            let views = PyList::empty(py);
            let bytes = dumps.call1((value, &views))?;
            if !views.is_empty() {
                writer.write(Value::Buffers(views.len() as u32));
            }
            for view in views {
                let Put { len, readonly, .. } = apart.put(&view)?;
                writer.write(Value::Apart(if readonly { Apart::View } else { Apart::WritableView }, len as u64));
            }
            bytes
        };
        let pickle = bytes.cast::<PyBytes>()?;
        if apart.takes(pickle.as_bytes().len()) {
            let Put { len, .. } = apart.put(pickle)?;
            writer.write(Value::Apart(Apart::Other, len as u64));
        } else {
            writer.write(Value::Other(pickle.as_bytes()));
        }
        Ok(())
    }

    /// The value that [`Self::write`] wrote.
    pub(crate) fn read<'py>(&self, py: Python<'py>, bytes: &[u8], mut apart: Inbox<'_>) -> PyResult<Bound<'py, PyAny>> {
        self.read_one(py, &mut ValueReader::new(bytes), &mut apart)
    }

    /// Arguments: a tuple, or a tuple and a dictionary of keywords.
    pub(crate) fn write_arguments(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        out: &mut Vec<u8>,
        apart: &mut Outbox,
    ) -> PyResult<()> {
        match kwargs.filter(|kwargs| !kwargs.is_empty()) {
            None => self.write(args.as_any(), out, apart),
            Some(kwargs) => {
                let both = PyTuple::new(args.py(), [args.as_any(), kwargs.as_any()])?;
                // Two values stand for arguments with keywords.
                let mut writer = ValueWriter::new(out);
                writer.write(Value::None);
                self.write_pickled(both.as_any(), &mut writer, apart)
            }
        }
    }

    /// One positional argument, as [`Self::write_arguments`] does.
    pub(crate) fn write_argument(
        &self,
        argument: &Bound<'_, PyAny>,
        out: &mut Vec<u8>,
        apart: &mut Outbox,
    ) -> PyResult<()> {
        let mut writer = ValueWriter::new(out);
        let (mark, mark_apart) = (writer.mark(), apart.mark());
        writer.write(Value::Tuple(1));
        if write_simple(argument, &mut writer, apart, &mut Nesting { depth: 1, ..Nesting::default() })? {
            return Ok(());
        }
        writer.rewind(mark);
        apart.rewind(mark_apart);
        self.write_pickled(PyTuple::new(argument.py(), [argument])?.as_any(), &mut writer, apart)
    }

    /// What [`Self::write_arguments`] wrote.
    pub(crate) fn read_arguments<'py>(
        &self,
        py: Python<'py>,
        bytes: &[u8],
        mut apart: Inbox<'_>,
    ) -> PyResult<Arguments<'py>> {
        if self.dialect == Dialect::MessagePack {
            return messagepack::read_arguments(py, bytes, &apart);
        }
        let mut reader = ValueReader::new(bytes);
        let mut first = step(&mut reader)?;
        if first == Value::Bool(true) {
            // The context is dealt with by whoever enters it.
            step(&mut reader)?;
            first = step(&mut reader)?;
        }
        let first = match first {
            Value::Tuple(1) => return Ok(Arguments::One(self.read_one(py, &mut reader, &mut apart)?)),
            Value::None => {
                let (args, kwargs) = self.read_one(py, &mut reader, &mut apart)?.extract()?;
                return Ok(Arguments::Named(args, kwargs));
            }
            first => self.build(py, first, &mut reader, &mut apart)?,
        };
        Ok(Arguments::Many(first.cast_into()?))
    }

    /// What `polyloop._codec.dumps` wrote.
    pub(crate) fn loads<'py>(&self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        self.loads.bind(py).call1((PyBytes::new(py, bytes),))
    }

    pub(crate) fn dump_exception(&self, py: Python<'_>, error: &PyErr) -> PyResult<Vec<u8>> {
        if self.dialect == Dialect::MessagePack {
            if error.is_instance(py, self.not_sendable.bind(py)) {
                return error.value(py).getattr(intern!(py, "told"))?.extract();
            }
            let described = self.describe_exception.bind(py).call1((with_traceback(py, error),))?.extract()?;
            return messagepack::write_exception(described);
        }
        self.dump_exception.bind(py).call1((with_traceback(py, error),))?.extract()
    }

    pub(crate) fn dump_unsendable(&self, value: &Bound<'_, PyAny>, reason: &PyErr) -> PyResult<Vec<u8>> {
        let py = value.py();
        if self.dialect == Dialect::MessagePack {
            return messagepack::write_unsendable(&type_name(value)?, &reason.value(py).str()?.to_string_lossy());
        }
        self.dump_unsendable.bind(py).call1((value, with_traceback(py, reason)))?.extract()
    }

    /// The exception that says why a value of a stream can't be sent.
    pub(crate) fn unsendable(&self, value: &Bound<'_, PyAny>, reason: &PyErr) -> PyResult<PyErr> {
        let (py, told) = (value.py(), self.dump_unsendable(value, reason)?);
        Ok(PyErr::from_value(match self.dialect {
            Dialect::Pickle => self.load_exception(py, &told)?,
            Dialect::MessagePack => self.not_sendable.bind(py).call1((PyBytes::new(py, &told),))?,
        }))
    }

    pub(crate) fn load_exception<'py>(&self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        self.load_exception.bind(py).call1((PyBytes::new(py, bytes),))
    }

    pub(crate) fn load_function<'py>(&self, py: Python<'py>, reference: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let load = if self.dialect == Dialect::Pickle { &self.load_function } else { &self.import_function };
        load.bind(py).call1((PyBytes::new(py, reference),))
    }

    /// Whether calling a function makes an async generator.
    pub(crate) fn is_async_generator(&self, function: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.is_async_generator.bind(function.py()).call1((function,))?.is_truthy()
    }

    /// What calling an async generator function raises, where its values are not wanted one by one.
    pub(crate) fn refuse_async_generator(&self, function: &Bound<'_, PyAny>) -> PyErr {
        let refused = self.refuse_async_generator.bind(function.py()).call1((function,));
        refused.err().unwrap_or_else(|| PyTypeError::new_err("an async generator function"))
    }

    /// Whether an error says that a function must be sent again by value.
    pub(crate) fn is_not_importable(&self, py: Python<'_>, error: &PyErr) -> bool {
        error.is_instance(py, self.not_importable.bind(py))
    }

    pub(crate) fn function_ref(&self, function: &Bound<'_, PyAny>, scope: u64, verb: Verb) -> PyResult<Vec<u8>> {
        self.reference(&self.function_ref, function, scope, verb)
    }

    pub(crate) fn function_by_value(&self, function: &Bound<'_, PyAny>, scope: u64) -> PyResult<Vec<u8>> {
        self.reference(&self.function_by_value, function, scope, Verb::Call)
    }

    fn reference(&self, by: &Py<PyAny>, function: &Bound<'_, PyAny>, scope: u64, verb: Verb) -> PyResult<Vec<u8>> {
        let py = function.py();
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "scope"), scope)?;
        if verb == Verb::Stream {
            kwargs.set_item(intern!(py, "allow_async_generator"), true)?;
        }
        by.bind(py).call((function,), Some(&kwargs))?.extract()
    }

    fn read_one<'py>(
        &self,
        py: Python<'py>,
        reader: &mut ValueReader<'_>,
        apart: &mut Inbox<'_>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let first = step(reader)?;
        self.build(py, first, reader, apart)
    }

    /// The value that begins with this step.
    fn build<'py>(
        &self,
        py: Python<'py>,
        first: Value<'_>,
        reader: &mut ValueReader<'_>,
        apart: &mut Inbox<'_>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(match first {
            Value::None => py.None().into_bound(py),
            Value::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
            Value::Int(value) => value.into_pyobject(py)?.into_any(),
            Value::Float(value) => PyFloat::new(py, value).into_any(),
            Value::Text(value) => PyString::new(py, value).into_any(),
            Value::Bytes(value) => PyBytes::new(py, value).into_any(),
            Value::Tuple(len) => PyTuple::new(py, self.read_many(py, reader, apart, len)?)?.into_any(),
            Value::List(len) => PyList::new(py, self.read_many(py, reader, apart, len)?)?.into_any(),
            Value::Other(bytes) => self.loads(py, bytes)?,
            Value::Apart(Apart::Bytes, len) => apart.bytes(py, len)?,
            Value::Apart(Apart::ByteArray, len) => apart.byte_array(py, len)?,
            Value::Apart(kind @ (Apart::View | Apart::WritableView), len) => {
                apart.view(py, len, kind == Apart::View)?
            }
            Value::Apart(Apart::Other, len) => self.loads.bind(py).call1((apart.view(py, len, true)?,))?,
            Value::Buffers(count) => {
                let views = PyList::new(py, self.read_many(py, reader, apart, count)?)?;
                let pickle = match step(reader)? {
                    Value::Apart(Apart::Other, len) => apart.view(py, len, true)?,
                    Value::Other(bytes) => PyBytes::new(py, bytes).into_any(),
                    _ => return Err(PyValueError::new_err("buffers that belong to nothing")),
                };
                self.loads.bind(py).call1((pickle, views))?
            }
        })
    }

    fn read_many<'py>(
        &self,
        py: Python<'py>,
        reader: &mut ValueReader<'_>,
        apart: &mut Inbox<'_>,
        len: u32,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        (0..len).map(|_| self.read_one(py, reader, apart)).collect()
    }
}

/// Before arguments: the context that travels with them, if any.
pub(crate) fn write_context(context: Option<&[u8]>, out: &mut Vec<u8>) {
    if let Some(context) = context {
        let mut writer = ValueWriter::new(out);
        writer.write(Value::Bool(true));
        writer.write(Value::Other(context));
    }
}

/// The context that travels with arguments, if any.
pub(crate) fn context_of(arguments: &[u8]) -> Option<&[u8]> {
    let mut reader = ValueReader::new(arguments);
    match reader.read() {
        Ok(Value::Bool(true)) => match reader.read() {
            Ok(Value::Other(context)) => Some(context),
            _ => None,
        },
        _ => None,
    }
}

/// The full name of a value's type.
pub(crate) fn type_name(value: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(value.get_type().fully_qualified_name()?.to_string_lossy().into_owned())
}

/// The next step of a value.
#[inline(always)]
fn step<'a>(reader: &mut ValueReader<'a>) -> PyResult<Value<'a>> {
    reader.read().map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The exception as Python sees it: before CPython 3.12 a `PyErr` keeps the traceback beside it.
pub(crate) fn with_traceback<'py>(py: Python<'py>, error: &PyErr) -> Bound<'py, PyAny> {
    error.clone_ref(py).into_value(py).into_bound(py).into_any()
}

#[derive(Default)]
struct Nesting {
    depth: u32,
    /// With a second list it might be the same list twice, which only pickle keeps the same.
    has_list: bool,
    /// The same of byte arrays.
    has_byte_array: bool,
}

/// Writes a value of the simple types exactly (no subclass), or says that it is none.
fn write_simple(
    value: &Bound<'_, PyAny>,
    writer: &mut ValueWriter<'_>,
    apart: &mut Outbox,
    nesting: &mut Nesting,
) -> PyResult<bool> {
    if value.is_none() {
        writer.write(Value::None);
    } else if value.is_exact_instance_of::<PyInt>() {
        let Ok(int) = value.extract::<i64>() else { return Ok(false) };
        writer.write(Value::Int(int));
    } else if let Ok(text) = value.cast_exact::<PyString>() {
        let Ok(text) = text.to_str() else { return Ok(false) };
        // As a pickle it travels apart.
        if apart.takes(text.len()) {
            return Ok(false);
        }
        writer.write(Value::Text(text));
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        if tuple.len() > LEN_MAX {
            return Ok(false);
        }
        writer.write(Value::Tuple(tuple.len() as u32));
        return write_items(tuple.iter_borrowed().map(|item| item.to_owned()), writer, apart, nesting);
    } else if let Ok(float) = value.cast_exact::<PyFloat>() {
        writer.write(Value::Float(float.value()));
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        writer.write(Value::Bool(truth.is_true()));
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        if apart.takes(bytes.as_bytes().len()) {
            let Put { len, .. } = apart.put(bytes)?;
            writer.write(Value::Apart(Apart::Bytes, len as u64));
        } else {
            writer.write(Value::Bytes(bytes.as_bytes()));
        }
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        if nesting.has_list || list.len() > LEN_MAX {
            return Ok(false);
        }
        nesting.has_list = true;
        writer.write(Value::List(list.len() as u32));
        return write_items(list.iter(), writer, apart, nesting);
    } else if let Ok(bytes) = value.cast_exact::<PyByteArray>()
        && apart.takes(bytes.len())
        && !nesting.has_byte_array
    {
        nesting.has_byte_array = true;
        let Put { len, .. } = apart.put(bytes)?;
        writer.write(Value::Apart(Apart::ByteArray, len as u64));
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn write_items<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    writer: &mut ValueWriter<'_>,
    apart: &mut Outbox,
    nesting: &mut Nesting,
) -> PyResult<bool> {
    if nesting.depth == DEPTH_MAX {
        return Ok(false);
    }
    nesting.depth += 1;
    for item in items {
        if !write_simple(&item, writer, apart, nesting)? {
            return Ok(false);
        }
    }
    nesting.depth -= 1;
    Ok(true)
}
