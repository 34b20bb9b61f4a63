//! A stream in the client: values that have come and were not taken, how it ended, and who waits for either. How many
//! values may come is the engine's account.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

use polyloop::Payload;
use pyo3::intern;
use pyo3::prelude::*;

use crate::errors;
use crate::manager::{Manager, complete};
use crate::map::{END, FAILED, PENDING, VALUE};

#[derive(Default)]
struct State {
    values: VecDeque<Payload>,
    /// What it raised, if that has not been told, once it has ended.
    ended: Option<Option<Py<PyAny>>>,
    /// Nobody wants anything more of it.
    left: bool,
    /// Futures of those who wait for a value, and for the end.
    waiters: Vec<Py<PyAny>>,
    end_waiters: Vec<Py<PyAny>>,
}

/// A `stream` under way. `polyloop.Stream` is its public face.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct StreamCall {
    manager: Py<Manager>,
    /// What the manager knows it by.
    token: OnceLock<usize>,
    state: Mutex<State>,
}

impl StreamCall {
    pub(crate) fn new(manager: Py<Manager>) -> Self {
        Self { manager, token: OnceLock::new(), state: Mutex::default() }
    }

    /// The manager knows it by this now.
    pub(crate) fn opened(&self, token: usize) {
        self.token.get_or_init(|| token);
    }

    pub(crate) fn token(&self) -> Option<usize> {
        self.token.get().copied()
    }

    /// A value has come.
    pub(crate) fn push(&self, py: Python<'_>, value: Payload) {
        self.with(|state| {
            if !state.left {
                state.values.push_back(value);
            }
        });
        self.wake(py);
    }

    /// It has ended: returned, or raised this.
    pub(crate) fn end(&self, py: Python<'_>, result: Result<Py<PyAny>, Py<PyAny>>) {
        let unwanted = self.with(|state| match (state.left, result) {
            (false, Err(error)) => {
                state.ended = Some(Some(error));
                None
            }
            (_, Ok(unwanted) | Err(unwanted)) => {
                state.ended = Some(None);
                Some(unwanted)
            }
        });
        drop(unwanted);
        self.wake(py);
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self, py: Python<'_>) {
        let woken = self.with(|state| {
            let mut woken = Vec::new();
            if !state.values.is_empty() || state.left || state.ended.is_some() {
                woken.append(&mut state.waiters);
            }
            if state.ended.is_some() {
                woken.append(&mut state.end_waiters);
            }
            woken
        });
        for waiter in woken {
            complete(py, waiter.bind(py), intern!(py, "set_result"), Some(py.None()));
        }
    }
}

#[pymethods]
impl StreamCall {
    /// The next value: (0, None) not there yet, (1, value), (3, exception) it has failed, (4, None) the end.
    fn take(slf: &Bound<'_, Self>) -> PyResult<(u8, Option<Py<PyAny>>)> {
        let (this, py) = (slf.get(), slf.py());
        let (value, ended) = this.with(|state| {
            let value = state.values.pop_front();
            let is_over = state.left || value.is_none() && state.ended.is_some();
            (value, is_over.then(|| state.ended.as_mut().and_then(Option::take)))
        });
        if let Some(value) = value {
            let manager = this.manager.get();
            manager.taken(slf)?;
            return Ok(match manager.read(py, &value) {
                Ok(value) => (VALUE, Some(value.unbind())),
                Err(error) => (FAILED, Some(errors::unreadable(py, error)?.unbind())),
            });
        }
        Ok(match ended {
            None => (PENDING, None),
            Some(None) => (END, None),
            Some(Some(error)) => (FAILED, Some(error)),
        })
    }

    /// Have `future` set when there is something to go on with.
    fn wait(&self, py: Python<'_>, future: Py<PyAny>) {
        self.with(|state| state.waiters.push(future));
        self.wake(py);
    }

    /// Have `future` set when the stream has ended in its worker.
    fn wait_for_end(&self, py: Python<'_>, future: Py<PyAny>) {
        self.with(|state| state.end_waiters.push(future));
        self.wake(py);
    }

    /// Want nothing more: what has come is dropped, and the stream is cancelled in its worker.
    fn leave(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        let (was_left, unwanted) = this.with(|state| {
            let unwanted = (std::mem::take(&mut state.values), state.ended.as_mut().and_then(Option::take));
            (std::mem::replace(&mut state.left, true), unwanted)
        });
        drop(unwanted);
        this.wake(py);
        if was_left { Ok(()) } else { this.manager.get().cancel_stream(slf) }
    }
}
