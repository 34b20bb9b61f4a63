//! How a worker's asyncio loop waits: takes the worker's turns itself as soon as the bell rings, and goes on waiting
//! where these left nothing for the loop to do.
//!
//! Stands in for `EpollSelector.select`, which would hand the bell to the loop, to be called in that round, and to come
//! back here in the next. What runs is the loop's own handle of the bell's reader, so that errors and contexts are its business.

use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use polyloop::wait_for_events;
use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::worker::Worker;

/// As in `selectors`.
const EVENT_READ: u32 = 1;
const EVENT_WRITE: u32 = 2;

/// The `select` of a worker's selector.
///
/// Parameters:
///     worker: whose turns are taken.
///     event_loop: the loop that waits.
///     epoll_fd: the selector's descriptor.
///     keys: the selector's keys by descriptor.
///     handle: the loop's handle of the bell's reader.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct Select {
    worker: Py<Worker>,
    event_loop: Py<PyAny>,
    epoll_fd: RawFd,
    bell_fd: RawFd,
    keys: Py<PyDict>,
    handle: Py<PyAny>,
}

#[pymethods]
impl Select {
    #[new]
    fn new(
        py: Python<'_>,
        worker: Py<Worker>,
        event_loop: Py<PyAny>,
        epoll_fd: RawFd,
        keys: Py<PyDict>,
        handle: Py<PyAny>,
    ) -> Self {
        let bell_fd = worker.bind(py).get().bell_fd();
        Self { worker, event_loop, epoll_fd, bell_fd, keys, handle }
    }

    /// Wait for events, `timeout` seconds at most, or for ever if it is None.
    #[pyo3(signature = (timeout=None))]
    fn __call__<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyList>> {
        let mut timeout = timeout;
        loop {
            if self.worker.get().is_turn_due() && self.take_turn(py)? {
                timeout = Some(0.0);
            }
            let events = self.wait(py, timeout)?;
            match events[..] {
                [(fd, _)] if fd == self.bell_fd && timeout.is_none() => {
                    if self.take_turn(py)? {
                        return Ok(PyList::empty(py));
                    }
                }
                _ => return self.to_list(py, &events),
            }
        }
    }
}

impl Select {
    /// Takes a turn. Says whether there is now something for the loop to do.
    fn take_turn(&self, py: Python<'_>) -> PyResult<bool> {
        self.handle.bind(py).call_method0(intern!(py, "_run"))?;
        let event_loop = self.event_loop.bind(py);
        Ok(self.worker.get().is_turn_due()
            || event_loop.getattr(intern!(py, "_ready"))?.is_truthy()?
            || event_loop.getattr(intern!(py, "_scheduled"))?.is_truthy()?
            || event_loop.getattr(intern!(py, "_stopping"))?.is_truthy()?)
    }

    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<(RawFd, u32)>> {
        let timeout = timeout.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        // SAFETY: the selector that owns the descriptor calls this, and does not once it is closed.
        let epoll = unsafe { BorrowedFd::borrow_raw(self.epoll_fd) };
        match py.detach(|| wait_for_events(epoll, timeout)) {
            Ok(events) => Ok(events),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                py.check_signals()?;
                Ok(Vec::new())
            }
            Err(error) => Err(PyOSError::new_err(error.raw_os_error().map(|errno| (errno, error.to_string())))),
        }
    }

    /// As `EpollSelector.select` gives them: keys, and which of the events that each asks for there are.
    fn to_list<'py>(&self, py: Python<'py>, events: &[(RawFd, u32)]) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (fd, flags) in events {
            let Some(key) = self.keys.bind(py).get_item(fd)? else { continue };
            let writes = if flags & !polyloop::READABLE == 0 { 0 } else { EVENT_WRITE };
            let reads = if flags & !polyloop::WRITABLE == 0 { 0 } else { EVENT_READ };
            let wanted: u32 = key.getattr(intern!(py, "events"))?.extract()?;
            list.append((key, (writes | reads) & wanted))?;
        }
        Ok(list)
    }
}
