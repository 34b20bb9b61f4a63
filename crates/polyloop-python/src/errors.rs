//! From the engine's errors and outcomes to Python's exceptions: one match for each.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use polyloop::{
    ConnectError, DriverError, Exit, HOPELESS_EXIT, Loss, OVERDUE_EXITCODE, Outcome, ParentDeathError, QueueError,
    Refused, StartError, WorkerError,
};
use pyo3::exceptions::{PyConnectionError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::codec::Codec;

const SIGKILL: i32 = 9;

/// A code as `multiprocessing` gives it: a signal is negative.
pub(crate) fn exit_code(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(code) => Some(code),
        Exit::Signal(signal) => Some(-signal),
        Exit::OutOfMemory => Some(-SIGKILL),
        _ => None,
    }
}

pub(crate) fn exit_of(code: Option<i32>, out_of_memory: bool) -> Exit {
    match code {
        None => Exit::Unknown,
        Some(code) if code == -SIGKILL && out_of_memory => Exit::OutOfMemory,
        Some(code) if code < 0 => Exit::Signal(-code),
        Some(code) => Exit::Code(code),
    }
}

fn new_error<'py>(
    py: Python<'py>,
    name: &str,
    message: Option<&str>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = py.import(intern!(py, "polyloop.errors"))?.getattr(name)?;
    match message {
        Some(message) => class.call((message,), kwargs),
        None => class.call((), kwargs),
    }
}

/// The exception for an outcome of `task` that is not a value and not a cancellation.
pub(crate) fn exception_for<'py>(
    py: Python<'py>,
    codec: &Codec,
    outcome: &Outcome,
    task: Option<String>,
    timeout: Option<Duration>,
) -> PyResult<Bound<'py, PyAny>> {
    match outcome {
        Outcome::Raised(bytes) | Outcome::Rejected(bytes) => codec.load_exception(py, bytes),
        Outcome::Lost(loss) => worker_died(py, loss, task),
        Outcome::TimedOut => task_timeout(py, timeout, task),
        Outcome::NoWorkers(error) => no_workers(py, codec, error),
        Outcome::Terminated => Ok(terminated(py).into_value(py).into_bound(py).into_any()),
        Outcome::Value(_) | Outcome::Cancelled => Err(PyRuntimeError::new_err("no exception belongs to this outcome")),
    }
}

/// For what was pending when the pool was terminated.
pub(crate) fn terminated(py: Python<'_>) -> PyErr {
    let error = new_error(py, "PoolTerminated", Some("the pool was terminated before this task ended"), None);
    error.map_or_else(|error| error, PyErr::from_value)
}

/// For a value that could not be rebuilt here. What went wrong is the `__cause__`.
pub(crate) fn unreadable(py: Python<'_>, error: PyErr) -> PyResult<Bound<'_, PyAny>> {
    let cause = error.into_value(py).into_bound(py).into_any();
    let kwargs = PyDict::new(py);
    kwargs.set_item("reason", describe(&cause))?;
    let error = new_error(py, "RemoteError", None, Some(&kwargs))?;
    error.setattr(intern!(py, "__cause__"), cause)?;
    Ok(error)
}

fn worker_died<'py>(py: Python<'py>, loss: &Loss, task: Option<String>) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = PyDict::new(py);
    kwargs.set_item("pid", loss.pid)?;
    kwargs.set_item("exitcode", exit_code(loss.exit))?;
    if loss.exit == Exit::OutOfMemory {
        kwargs.set_item("hint", py.import(intern!(py, "polyloop.errors"))?.getattr(intern!(py, "OUT_OF_MEMORY"))?)?;
    }
    kwargs.set_item("task", task)?;
    kwargs.set_item("attempt", loss.attempt)?;
    if loss.exit == Exit::Code(OVERDUE_EXITCODE) {
        kwargs.set_item("hint", "one of its tasks ran past its timeout and could not be interrupted")?;
    }
    new_error(py, if loss.poison { "PoisonTask" } else { "WorkerDied" }, None, Some(&kwargs))
}

fn task_timeout(py: Python<'_>, timeout: Option<Duration>, task: Option<String>) -> PyResult<Bound<'_, PyAny>> {
    let (task, timeout) = (task.as_deref().unwrap_or("a task"), timeout.unwrap_or_default().as_secs_f64());
    new_error(py, "TaskTimeout", Some(&format!("{task} ran longer than {timeout} s")), None)
}

/// Why no worker could be started, as an exception with its cause.
pub(crate) fn no_workers<'py>(py: Python<'py>, codec: &Codec, error: &StartError) -> PyResult<Bound<'py, PyAny>> {
    let (message, cause) = match error {
        StartError::Raised(bytes) => {
            let cause = codec.load_exception(py, bytes)?;
            (format!("the workers could not be initialised: {}", describe(&cause)), Some(cause))
        }
        StartError::Exited(Exit::Code(HOPELESS_EXIT)) => {
            let errors = py.import(intern!(py, "polyloop.errors"))?;
            (errors.getattr(intern!(py, "NO_MAIN_GUARD"))?.extract()?, None)
        }
        StartError::Exited(exit) => (format!("the workers ended before they were ready: {exit}"), None),
        StartError::Refused(reason) => (format!("the workers could not be started: {reason}"), None),
    };
    let error = new_error(py, "WorkerStartError", Some(&message), None)?;
    if let Some(cause) = cause {
        error.setattr(intern!(py, "__cause__"), cause)?;
    }
    Ok(error)
}

fn describe(error: &Bound<'_, PyAny>) -> String {
    let name = error.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    match error.str().map(|text| text.to_string()) {
        Ok(text) if !text.is_empty() => format!("{name}: {text}"),
        Ok(_) | Err(_) => name,
    }
}

/// The exception for a submission that was not accepted.
pub(crate) fn refused(py: Python<'_>, codec: &Codec, refused: &Refused) -> PyErr {
    let error = match refused {
        Refused::Closed => new_error(py, "PoolClosed", Some("pool is closed"), None),
        Refused::NoWorkers(error) => no_workers(py, codec, error),
    };
    error.map_or_else(|error| error, PyErr::from_value)
}

/// The exception for a call that a task may not make now.
pub(crate) fn pool_full(reason: &str) -> PyErr {
    Python::attach(|py| new_error(py, "PoolFull", Some(reason), None).map_or_else(|error| error, PyErr::from_value))
}

pub(crate) fn driver(error: DriverError) -> PyErr {
    match error {
        DriverError::Config(message) => PyValueError::new_err(message),
        DriverError::Os(error) => match error.raw_os_error() {
            Some(errno) => PyOSError::new_err((errno, error.to_string())),
            None => error.into(),
        },
    }
}

pub(crate) fn connect(error: ConnectError) -> PyErr {
    match error {
        ConnectError::Os(error) => error.into(),
        ConnectError::Gone => PyConnectionError::new_err(error.to_string()),
        ConnectError::Version | ConnectError::Memory(_) => PyOSError::new_err(error.to_string()),
    }
}

pub(crate) fn worker(error: WorkerError) -> PyErr {
    match error {
        WorkerError::Os(error) => error.into(),
        WorkerError::Ring(_) | WorkerError::Frame(_) | WorkerError::Block(_) | WorkerError::Task => {
            PyRuntimeError::new_err(error.to_string())
        }
    }
}

/// The exception for what became of an item, where the engine carries it.
pub(crate) struct Queue(pub(crate) PyErr);

impl From<QueueError> for Queue {
    fn from(error: QueueError) -> Self {
        Self(queue(error))
    }
}

impl From<PyErr> for Queue {
    fn from(error: PyErr) -> Self {
        Self(error)
    }
}

pub(crate) fn queue(error: QueueError) -> PyErr {
    match error {
        QueueError::Os(error) => error.into(),
        QueueError::Closed | QueueError::TooLarge(_) => PyValueError::new_err(error.to_string()),
        QueueError::Forked => PyRuntimeError::new_err(error.to_string()),
        QueueError::Crowded | QueueError::Corrupt | QueueError::Attach(_) => PyOSError::new_err(error.to_string()),
    }
}

/// An open descriptor that Python gives away.
pub(crate) fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("a file descriptor is never negative"));
    }
    // SAFETY: the Python side gives this descriptor away and does not close it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Tie this process's life to its parent's: it is killed when the parent ends in any way, also while it is blocked in
/// native code, holds the interpreter's lock, or is stopped.
///
/// Parameters:
///     lifeline: the reading end of a pipe whose other end only the parent has, or None (under fork); it is taken over.
///     parent_pid: the parent.
///     is_direct_child: whether this process was started by the parent itself, not by its forkserver.
///
/// Raises:
///     ConnectionError: the parent is gone already.
///     OSError: the operating system refused.
#[pyfunction]
pub(crate) fn die_with_parent(lifeline: Option<RawFd>, parent_pid: u32, is_direct_child: bool) -> PyResult<()> {
    let lifeline = lifeline.map(owned).transpose()?;
    polyloop::die_with_parent(lifeline, parent_pid, is_direct_child).map_err(|error| match error {
        ParentDeathError::Orphan(_) => PyConnectionError::new_err(error.to_string()),
        ParentDeathError::Os(error) => error.into(),
    })
}
