//! One `apply` under way: what its coroutine waits for.
//!
//! To asyncio it is a future. Unlike `asyncio.Future` it is made and completed without a call into Python, and whoever
//! waits goes on in the round of the loop in which the outcome was drained, not in the one after.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyStopIteration, PySystemExit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Whom to call once it is done.
struct Waiter {
    callback: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

enum State {
    Pending(Vec<Waiter>),
    Returned(Py<PyAny>),
    Raised(Py<PyAny>),
    /// With the message of whoever cancelled it.
    Cancelled(Option<Py<PyAny>>),
    /// Its exception is where it belongs.
    Told,
}

/// An `apply` under way. Only its own coroutine awaits it.
///
/// Not for the garbage collector to look into: as long as it has not ended the manager holds it, and then it holds
/// nobody. With thousands under way the collector's walks would cost more than all else here. So it must not hold an
/// exception that was raised: its traceback leads to the coroutine, and the coroutine holds this.
#[pyclass(frozen, weakref, module = "polyloop._core")]
pub(crate) struct ApplyCall {
    event_loop: Py<PyAny>,
    /// By which the manager knows it.
    token: AtomicUsize,
    state: Mutex<State>,
    /// Between the coroutine's `await` and its Task's answer: how asyncio tells a wait from a stray yield.
    is_awaited: AtomicBool,
    /// Those who waited, from the end until they have been called.
    called: Mutex<Vec<Waiter>>,
}

impl ApplyCall {
    pub(crate) fn new(event_loop: Py<PyAny>) -> Self {
        Self {
            event_loop,
            token: AtomicUsize::new(usize::MAX),
            state: Mutex::new(State::Pending(Vec::new())),
            is_awaited: AtomicBool::new(false),
            called: Mutex::default(),
        }
    }

    pub(crate) fn token(&self) -> usize {
        self.token.load(Ordering::Relaxed)
    }

    pub(crate) fn set_token(&self, token: usize) {
        self.token.store(token, Ordering::Relaxed);
    }

    /// Ends it, unless its owner has given up on it. Says whether somebody is to be woken.
    pub(crate) fn complete(&self, result: Result<Py<PyAny>, Py<PyAny>>) -> bool {
        self.end(result.map_or_else(State::Raised, State::Returned))
    }

    /// Ends it as cancelled. Says whether somebody is to be woken.
    pub(crate) fn complete_cancelled(&self) -> bool {
        self.end(State::Cancelled(None))
    }

    fn end(&self, end: State) -> bool {
        let mut state = self.lock();
        let State::Pending(waiters) = &mut *state else { return false };
        let waiters = std::mem::take(waiters);
        *state = end;
        drop(state);
        let wakes = !waiters.is_empty();
        lock(&self.called).extend(waiters);
        wakes
    }

    /// Calls whoever waited, here and now. To be called by the loop, not from within a task.
    ///
    /// # Errors
    /// What ends a program: everything else is told to the loop's handler.
    pub(crate) fn wake(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let waiters = std::mem::take(&mut *lock(&slf.get().called));
        for waiter in waiters {
            let Err(error) = waiter.call(slf) else { continue };
            if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
                return Err(error);
            }
            let report = PyDict::new(py);
            report.set_item("message", "Exception in callback of an apply")?;
            report.set_item("exception", error)?;
            slf.get().event_loop.bind(py).call_method1(intern!(py, "call_exception_handler"), (report,))?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiter {
    fn call(&self, call: &Bound<'_, ApplyCall>) -> PyResult<()> {
        let py = call.py();
        let Some(context) = &self.context else { return self.callback.bind(py).call1((call,)).map(drop) };
        // SAFETY: called with the interpreter attached; that it is a context is checked by both.
        if unsafe { pyo3::ffi::PyContext_Enter(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        let called = self.callback.bind(py).call1((call,)).map(drop);
        // SAFETY: entered above on this thread, and calls are nested properly.
        if unsafe { pyo3::ffi::PyContext_Exit(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        called
    }

    fn call_soon(&self, call: &Bound<'_, ApplyCall>) -> PyResult<()> {
        let py = call.py();
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "context"), &self.context)?;
        let event_loop = call.get().event_loop.bind(py);
        event_loop.call_method(intern!(py, "call_soon"), (&self.callback, call), Some(&kwargs)).map(drop)
    }
}

/// As `asyncio.Future`'s of the same names.
#[pymethods]
impl ApplyCall {
    #[getter(_asyncio_future_blocking)]
    fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_awaited(&self, is_awaited: bool) {
        self.is_awaited.store(is_awaited, Ordering::Relaxed);
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    #[pyo3(signature = (callback, *, context=None))]
    fn add_done_callback(slf: &Bound<'_, Self>, callback: Py<PyAny>, context: Option<Py<PyAny>>) -> PyResult<()> {
        let waiter = Waiter { callback, context };
        match &mut *slf.get().lock() {
            State::Pending(waiters) => {
                waiters.push(waiter);
                return Ok(());
            }
            State::Returned(_) | State::Raised(_) | State::Cancelled(_) | State::Told => (),
        }
        waiter.call_soon(slf)
    }

    fn remove_done_callback(&self, callback: &Bound<'_, PyAny>) -> usize {
        let State::Pending(waiters) = &mut *self.lock() else { return 0 };
        let before = waiters.len();
        waiters.retain(|waiter| !waiter.callback.is(callback));
        before - waiters.len()
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let this = slf.get();
        let waiters = match &mut *this.lock() {
            State::Pending(waiters) => std::mem::take(waiters),
            State::Returned(_) | State::Raised(_) | State::Cancelled(_) | State::Told => return Ok(false),
        };
        *this.lock() = State::Cancelled(msg);
        // Whoever cancels may be a task, in which none can be woken.
        waiters.iter().try_for_each(|waiter| waiter.call_soon(slf))?;
        Ok(true)
    }

    fn cancelled(&self) -> bool {
        matches!(&*self.lock(), State::Cancelled(_))
    }

    fn done(&self) -> bool {
        !matches!(&*self.lock(), State::Pending(_))
    }

    /// An exception is raised once.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut state = self.lock();
        match &*state {
            State::Returned(value) => return Ok(value.clone_ref(py)),
            State::Cancelled(msg) => return Err(cancelled_error(py, msg.as_ref())),
            State::Pending(_) => return Err(PyRuntimeError::new_err("an apply that has not ended has no result")),
            State::Told => return Err(PyRuntimeError::new_err("the exception of this apply was raised before")),
            State::Raised(_) => (),
        }
        let State::Raised(error) = std::mem::replace(&mut *state, State::Told) else { unreachable!("looked at above") };
        Err(PyErr::from_value(error.into_bound(py)))
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: Py<Self>, py: Python<'_>) -> PyResult<Py<Self>> {
        let this = slf.get();
        if !this.done() {
            if this.is_awaited.swap(true, Ordering::Relaxed) {
                return Err(PyRuntimeError::new_err("await wasn't used with future"));
            }
            return Ok(slf);
        }
        Err(PyStopIteration::new_err((this.result(py)?,)))
    }
}

fn cancelled_error(py: Python<'_>, msg: Option<&Py<PyAny>>) -> PyErr {
    let args = match msg {
        Some(msg) if !msg.is_none(py) => PyTuple::new(py, [msg]),
        Some(_) | None => Ok(PyTuple::empty(py)),
    };
    let error = py
        .import(intern!(py, "asyncio"))
        .and_then(|asyncio| asyncio.getattr(intern!(py, "CancelledError")))
        .and_then(|class| class.call1(args?));
    error.map_or_else(|error| error, PyErr::from_value)
}
