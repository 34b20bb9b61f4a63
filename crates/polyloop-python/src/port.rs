//! A stream in its worker: values go out, and whoever produces them waits where there is no credit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use polyloop::{Flow, Job};
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;

use crate::apart::Outbox;
use crate::manager::complete;
use crate::worker::Worker;

/// Where the values of one stream leave its worker.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct StreamPort {
    worker: Py<Worker>,
    job: Job,
    flow: Mutex<Flow>,
    waiter: Mutex<Option<Py<PyAny>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StreamPort {
    pub(crate) fn new(worker: Py<Worker>, job: Job) -> Self {
        Self { worker, job, flow: Mutex::default(), waiter: Mutex::default() }
    }

    /// So many values have been taken.
    pub(crate) fn credit(&self, py: Python<'_>, values: u32) {
        let admits = {
            let mut flow = lock(&self.flow);
            flow.credit(values);
            flow.admits()
        };
        let waiter = if admits { lock(&self.waiter).take() } else { None };
        if let Some(waiter) = waiter {
            complete(py, waiter.bind(py), intern!(py, "set_result"), Some(py.None()));
        }
    }
}

#[pymethods]
impl StreamPort {
    /// Give a value. Returns whether another may be given now; else wait for `credit` first.
    ///
    /// Raises:
    ///     RemoteError: the value can't be sent.
    ///     ValueError: it is larger than a worker may send.
    fn give(&self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = value.py();
        let (worker, mut bytes) = (self.worker.get(), Vec::with_capacity(16));
        if let Err(reason) = worker.codec().write(value, &mut bytes, &mut Outbox::closed()) {
            // An interruption in the midst of it is none of the value's faults.
            if !reason.is_instance_of::<PyException>(py) {
                return Err(reason);
            }
            return Err(worker.codec().unsendable(value, &reason)?);
        }
        if let Some(error) = worker.too_large("a value", &bytes) {
            return Err(error);
        }
        worker.give(self.job, &bytes)?;
        let mut flow = lock(&self.flow);
        flow.give(bytes.len());
        Ok(flow.admits())
    }

    /// A future of the worker's loop that is set once another value may be given. One may wait.
    fn room(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let future = self.worker.get().create_future(py)?;
        *lock(&self.waiter) = Some(future.clone_ref(py));
        self.credit(py, 0);
        Ok(future)
    }
}
