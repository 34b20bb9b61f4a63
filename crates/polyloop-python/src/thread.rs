//! A plain function on a thread of the worker: called once, and interrupted from the loop.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

enum State {
    /// Not called yet. An interruption that came before the call takes its place.
    Waiting,
    Interrupted(Py<PyAny>),
    /// On the thread with this identifier.
    Running(std::ffi::c_long),
    Ended(PyResult<Py<PyAny>>),
}

/// One call of a function, on whatever thread calls `run`.
///
/// Parameters:
///     call, args, kwargs: what is called.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct ThreadCall {
    call: Py<PyAny>,
    args: Py<PyTuple>,
    kwargs: Option<Py<PyDict>>,
    state: Mutex<State>,
}

#[pymethods]
impl ThreadCall {
    #[new]
    #[pyo3(signature = (call, args, kwargs))]
    fn new(call: Py<PyAny>, args: Py<PyTuple>, kwargs: Option<Py<PyDict>>) -> Self {
        Self { call, args, kwargs, state: Mutex::new(State::Waiting) }
    }

    /// Call it. Whatever it returns or raises is for `result`.
    fn run(&self, py: Python<'_>) {
        // SAFETY: asks for the identifier of the running thread.
        let thread = unsafe { ffi::PyThread_get_thread_ident() }.cast_signed();
        let interrupted = match std::mem::replace(&mut *self.lock(), State::Running(thread)) {
            State::Interrupted(error) => Some(PyErr::from_value(error.into_bound(py))),
            _ => None,
        };
        let kwargs = self.kwargs.as_ref().map(|kwargs| kwargs.bind(py));
        let result = match interrupted {
            Some(error) => Err(error),
            None => self.call.bind(py).call(self.args.bind(py), kwargs).map(Bound::unbind),
        };
        let mut state = self.lock();
        // SAFETY: the interpreter is attached. An interruption that came after the function's last step must not hit
        // whoever has the thread next; none comes from now on, as that takes the lock and another state.
        unsafe { ffi::PyThreadState_SetAsyncExc(thread, std::ptr::null_mut()) };
        *state = State::Ended(result);
    }

    /// Raise an exception of this class in the function, as soon as it runs Python code. Nothing, if it has ended.
    fn interrupt(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let not_started = error.call0()?.unbind();
        let mut state = self.lock();
        match &*state {
            State::Waiting => *state = State::Interrupted(not_started),
            // SAFETY: the interpreter is attached, and the class outlives the call, which takes a reference of its own.
            // The thread runs the function: it leaves this state under the lock.
            State::Running(thread) => unsafe {
                ffi::PyThreadState_SetAsyncExc(*thread, error.as_ptr());
            },
            State::Interrupted(_) | State::Ended(_) => (),
        }
        Ok(())
    }

    /// What the function returned; what it raised is raised.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &*self.lock() {
            State::Ended(Ok(value)) => Ok(value.clone_ref(py)),
            State::Ended(Err(error)) => Err(error.clone_ref(py)),
            _ => Err(PyRuntimeError::new_err("the function has not ended")),
        }
    }
}

impl ThreadCall {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
