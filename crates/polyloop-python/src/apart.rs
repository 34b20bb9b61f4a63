//! What of a value is too large to travel with its other bytes: buffers on their way into a block, and memory on its way
//! to Python, in place where it can be.

use std::ops::Range;
use std::os::raw::c_int;
use std::slice;
use std::sync::Arc;

use polyloop::{LARGE_BYTES, Lease, Memory, MemoryError, Payload, Span, lay_apart};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyOverflowError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};

/// Buffers that a value mentions, in order, until they are in a block.
#[derive(Default)]
pub(crate) struct Outbox {
    /// It takes nothing: everything is to travel with the other bytes.
    closed: bool,
    buffers: Vec<(usize, PyBuffer<u8>)>,
    end: usize,
}

impl Outbox {
    pub(crate) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    /// Whether a buffer of this length goes here.
    pub(crate) fn takes(&self, len: usize) -> bool {
        len >= LARGE_BYTES && !self.closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The buffer of an object: bytes in one run.
    pub(crate) fn put(&mut self, object: &Bound<'_, PyAny>) -> PyResult<Put> {
        let buffer = PyBuffer::<u8>::get(object)?;
        let (len, readonly) = (buffer.len_bytes(), buffer.readonly());
        let place = lay_apart(self.end, len).ok_or_else(|| PyOverflowError::new_err("more than can be addressed"))?;
        self.end = place.end;
        self.buffers.push((place.start, buffer));
        Ok(Put { start: place.start, len, readonly })
    }

    /// How much is in it, to go back to with [`Self::rewind`].
    pub(crate) fn mark(&self) -> (usize, usize) {
        (self.buffers.len(), self.end)
    }

    pub(crate) fn rewind(&mut self, (count, end): (usize, usize)) {
        self.buffers.truncate(count);
        self.end = end;
    }

    /// Copies everything into a block that `take` gives for so many bytes. `None` when there is none, or no memory for it.
    pub(crate) fn store(&self, py: Python<'_>, take: impl FnOnce(usize) -> Option<Lease>) -> Option<Lease> {
        let lease = take(self.end)?;
        let part = |(at, buffer): &(usize, PyBuffer<u8>)| {
            // SAFETY: an exported buffer stays where it is, as long as it is until released, which `self` does later. A
            // thread that writes it meanwhile does so to a value that is being sent: it may find any mixture.
            (*at, unsafe { slice::from_raw_parts(buffer.buf_ptr().cast::<u8>().cast_const(), buffer.len_bytes()) })
        };
        let parts: Vec<_> = self.buffers.iter().map(part).collect();
        py.detach(|| lease.fill(parts)).is_ok().then_some(lease)
    }
}

/// Has a value written, and what of it is large stored in a block that `take` gives for so many bytes; where there is
/// none, all of it is written into `bytes`.
pub(crate) fn write_apart(
    py: Python<'_>,
    bytes: &mut Vec<u8>,
    take: impl FnOnce(usize) -> Option<Lease>,
    write: impl Fn(&mut Vec<u8>, &mut Outbox) -> PyResult<()>,
) -> PyResult<Option<Lease>> {
    let mut apart = Outbox::default();
    write(bytes, &mut apart)?;
    if apart.is_empty() {
        return Ok(None);
    }
    let lease = apart.store(py, take);
    if lease.is_none() {
        bytes.clear();
        write(bytes, &mut Outbox::closed())?;
    }
    Ok(lease)
}

/// A buffer in an [`Outbox`].
pub(crate) struct Put {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) readonly: bool,
}

/// The large parts of what was received, one after the other.
#[derive(Default)]
pub(crate) struct Inbox<'a> {
    memory: Option<&'a Arc<Memory>>,
    at: usize,
    /// What may be changed is copied, so that what was sent stays as it is.
    kept: bool,
}

impl<'a> Inbox<'a> {
    pub(crate) fn new(memory: Option<&'a Arc<Memory>>, kept: bool) -> Self {
        Self { memory, at: 0, kept }
    }

    /// What travelled with a payload.
    pub(crate) fn of(payload: &'a Payload) -> Self {
        Self::new(payload.luggage().and_then(|luggage| luggage.get()), false)
    }

    fn next(&mut self, len: u64) -> PyResult<(&'a Arc<Memory>, *mut u8, usize)> {
        let place = usize::try_from(len).ok().and_then(|len| lay_apart(self.at, len)).ok_or_else(outside)?;
        self.at = place.end;
        self.part(place)
    }

    fn part(&self, place: Range<usize>) -> PyResult<(&'a Arc<Memory>, *mut u8, usize)> {
        let (memory, len) = (self.memory.ok_or_else(outside)?, place.len());
        let start = memory.part(place).map_err(|error| memory_error(&error))?;
        Ok((memory, start, len))
    }

    /// What stands there, to be read at once.
    pub(crate) fn bytes_at(&self, span: Span) -> PyResult<&'a [u8]> {
        let (_, start, len) = self.part(span.range().ok_or_else(outside)?)?;
        // SAFETY: as in `next_bytes`.
        Ok(unsafe { slice::from_raw_parts(start, len) })
    }

    /// What stands there, in place, as a memoryview that can't be written.
    pub(crate) fn view_at<'py>(&self, py: Python<'py>, span: Span) -> PyResult<Bound<'py, PyAny>> {
        let (memory, start, len) = self.part(span.range().ok_or_else(outside)?)?;
        let buffer = Buffer { memory: Arc::clone(memory), start: Start(start), len, readonly: true };
        Ok(PyMemoryView::from(Bound::new(py, buffer)?.as_any())?.into_any())
    }

    /// The next part for a copy.
    fn next_bytes(&mut self, len: u64) -> PyResult<&'a [u8]> {
        let (_, start, len) = self.next(len)?;
        // SAFETY: the part is there, and as long as `memory`. Until it is given back, its sender leaves it alone; one
        // that does not makes the copy another, no more.
        Ok(unsafe { slice::from_raw_parts(start, len) })
    }

    pub(crate) fn bytes<'py>(&mut self, py: Python<'py>, len: u64) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyBytes::new(py, self.next_bytes(len)?).into_any())
    }

    pub(crate) fn byte_array<'py>(&mut self, py: Python<'py>, len: u64) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyByteArray::new(py, self.next_bytes(len)?).into_any())
    }

    /// The next part in place, as a memoryview.
    pub(crate) fn view<'py>(&mut self, py: Python<'py>, len: u64, readonly: bool) -> PyResult<Bound<'py, PyAny>> {
        let buffer = if self.kept && !readonly {
            self.byte_array(py, len)?
        } else {
            let (memory, start, len) = self.next(len)?;
            Bound::new(py, Buffer { memory: Arc::clone(memory), start: Start(start), len, readonly })?.into_any()
        };
        Ok(PyMemoryView::from(&buffer)?.into_any())
    }
}

fn outside() -> PyErr {
    memory_error(&MemoryError::Outside)
}

fn memory_error(error: &MemoryError) -> PyErr {
    match error {
        MemoryError::Lost(_) => PyOSError::new_err(error.to_string()),
        MemoryError::Outside => PyValueError::new_err(error.to_string()),
    }
}

/// Where a part of a memory begins.
struct Start(*mut u8);

// SAFETY: an address; what is there may be touched from any thread that has the interpreter's leave to.
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

/// A part of received memory that Python uses in place. The memory is given back when nobody looks at it any more.
#[pyclass(frozen, module = "polyloop._core")]
struct Buffer {
    memory: Arc<Memory>,
    start: Start,
    len: usize,
    readonly: bool,
}

#[pymethods]
impl Buffer {
    unsafe fn __getbuffer__(slf: &Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        debug_assert!(this.memory.part(0..this.len).is_ok());
        let len = ffi::Py_ssize_t::try_from(this.len)?;
        // SAFETY: `view` is the caller's to fill. The part is there as long as `memory`, and so as this object, which the
        // view keeps.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), this.start.0.cast(), len, this.readonly.into(), flags)
        };
        if filled == -1 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}
