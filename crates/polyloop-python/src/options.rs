//! How tasks are run: what a pool, or a view of it, says of all its tasks.

use std::time::Duration;

use polyloop::Manner;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What a function is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    /// To be called.
    Call,
    /// To be called, and what it returns iterated over.
    Stream,
}

/// How tasks are run.
///
/// Parameters:
///     retries: how many times a task may be run again.
///     retry_deaths: whether the death of its worker is a reason to.
///     retry_on: a tuple of the exceptions that are, too; None for none of those a task can raise.
///     timeout_s: how long a run may take, in seconds; None for any time.
///     in_thread: whether a plain function runs on a thread of its own.
///     name: what a task is called; None for the name of its function.
///
/// Raises:
///     ValueError: a timeout that is no time.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct TaskOptions {
    pub(crate) retries: u32,
    pub(crate) retry_deaths: bool,
    retry_on: Option<Py<PyAny>>,
    pub(crate) timeout: Option<Duration>,
    in_thread: bool,
    pub(crate) name: Option<String>,
}

#[pymethods]
impl TaskOptions {
    #[new]
    fn new(
        retries: u32,
        retry_deaths: bool,
        retry_on: Option<Py<PyAny>>,
        timeout_s: Option<f64>,
        in_thread: bool,
        name: Option<String>,
    ) -> PyResult<Self> {
        let timeout = timeout_s
            .map(|seconds| {
                Duration::try_from_secs_f64(seconds)
                    .map_err(|_| PyValueError::new_err("timeout must be a number of seconds above 0, or None"))
            })
            .transpose()?;
        Ok(Self { retries, retry_deaths, retry_on, timeout, in_thread, name })
    }
}

impl TaskOptions {
    /// What goes with the reference of the function.
    pub(crate) fn manner(&self, verb: Verb) -> Manner<'_> {
        Manner { name: self.name.as_deref(), in_thread: self.in_thread, is_stream: verb == Verb::Stream }
    }

    /// Whether a task that raises may be run again.
    pub(crate) fn judges(&self) -> bool {
        self.retry_on.is_some()
    }

    /// Whether a task that raised this is to be run again.
    pub(crate) fn is_reason(&self, error: &Bound<'_, PyAny>) -> bool {
        // What is no tuple of exceptions was refused when this was made; a metaclass may still raise.
        self.retry_on.as_ref().is_some_and(|retry_on| error.is_instance(retry_on.bind(error.py())).unwrap_or(false))
    }
}
