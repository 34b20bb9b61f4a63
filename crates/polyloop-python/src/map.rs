//! One `map`: draws its input as room appears, keeps what came back in order, and wakes whoever waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polyloop::CallId;
use pyo3::exceptions::PyStopIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::manager::Manager;
use crate::options::TaskOptions;
use crate::pending::Target;

/// Items drawn ahead of what has come back, or of what has been taken by whoever iterates.
const WINDOW: usize = 2048;
/// How long one look at the input may keep the loop.
const DRAW_BUDGET: Duration = Duration::from_millis(1);
/// Items drawn between two looks at the clock.
const DRAWS_PER_LOOK: usize = 8;

/// What `take` says of the next result.
const PENDING: u8 = 0;
const VALUE: u8 = 1;
const FAILED: u8 = 2;
const END: u8 = 3;

enum Place {
    Empty,
    Value(Py<PyAny>),
    Failed(Py<PyAny>),
}

struct State {
    /// Results in order of their input, from the first that has not been taken.
    places: VecDeque<Place>,
    /// How many have been taken.
    taken: u64,
    /// Results that have not come back.
    outstanding: usize,
    /// Whether somebody wants them all at once: then what has come back takes no room.
    collecting: bool,
    source: Option<Py<PyAny>>,
    /// No more input will be drawn.
    exhausted: bool,
    /// The first exception in order of arrival, or what the input raised.
    failure: Option<Py<PyAny>>,
    /// Futures of those who wait for results, and for room to push.
    waiters: Vec<Py<PyAny>>,
    room_waiters: Vec<Py<PyAny>>,
    /// The call has been ended in the engine.
    ended: bool,
    drawing: bool,
}

/// What a map does with each item.
pub(crate) struct Opening {
    pub(crate) function: Py<PyAny>,
    pub(crate) reference: Arc<[u8]>,
    /// Makes references by value of different maps differ.
    pub(crate) scope: u64,
    pub(crate) call: CallId,
    pub(crate) options: Py<TaskOptions>,
    /// Whether each item is a sequence of arguments.
    pub(crate) star: bool,
}

/// A `map` under way. `polyloop.PoolResult` is its public face.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct MapCall {
    manager: Py<Manager>,
    function: Py<PyAny>,
    /// By name at first, where that can be; by value once a worker could not import it.
    reference: Mutex<Arc<[u8]>>,
    pub(crate) scope: u64,
    pub(crate) call: CallId,
    pub(crate) options: Py<TaskOptions>,
    /// Whether each item is a sequence of arguments.
    star: bool,
    state: Mutex<State>,
}

impl MapCall {
    pub(crate) fn new(manager: Py<Manager>, opening: Opening, source: Option<Py<PyAny>>) -> Self {
        let Opening { function, reference, scope, call, options, star } = opening;
        let state = State {
            places: VecDeque::new(),
            taken: 0,
            outstanding: 0,
            collecting: false,
            source,
            exhausted: false,
            failure: None,
            waiters: Vec::new(),
            room_waiters: Vec::new(),
            ended: false,
            drawing: false,
        };
        let reference = Mutex::new(reference);
        Self { manager, function, reference, scope, call, options, star, state: Mutex::new(state) }
    }

    pub(crate) fn function<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.function.bind(py)
    }

    pub(crate) fn reference(&self) -> Arc<[u8]> {
        Arc::clone(&self.reference.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_reference(&self, reference: Arc<[u8]>) {
        *self.reference.lock().unwrap_or_else(PoisonError::into_inner) = reference;
    }

    /// A result has come back: a value, or an exception.
    pub(crate) fn deliver(&self, py: Python<'_>, index: u64, result: Result<Py<PyAny>, Py<PyAny>>) {
        let mut state = self.lock();
        state.outstanding -= 1;
        let Some(place) = index.checked_sub(state.taken).and_then(|at| usize::try_from(at).ok()) else { return };
        let Some(place) = state.places.get_mut(place) else { return };
        match result {
            Ok(value) => *place = Place::Value(value),
            Err(error) => {
                *place = Place::Failed(error.clone_ref(py));
                if state.failure.is_none() {
                    state.failure = Some(error);
                }
            }
        }
    }

    /// After results have come back: draws more input and wakes whoever waits.
    pub(crate) fn go_on(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::draw(slf)?;
        slf.get().wake(slf.py())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws input while there is room for it. The input is the caller's code: it may do anything, also use this pool.
    fn draw(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let py = slf.py();
        let source = {
            let mut state = this.lock();
            if state.drawing || state.exhausted {
                return Ok(());
            }
            let Some(source) = state.source.as_ref().map(|source| source.clone_ref(py)) else { return Ok(()) };
            state.drawing = true;
            source
        };
        let started = Instant::now();
        let mut result = Ok(());
        for drawn in 1.. {
            let late = drawn % DRAWS_PER_LOOK == 0 && started.elapsed() > DRAW_BUDGET;
            if late || this.lock().room() == 0 {
                break;
            }
            // SAFETY: an iterator, as `iter()` gave it; a new reference, or null with or without an exception.
            let next = unsafe { Bound::from_owned_ptr_or_opt(py, (pyo3::ffi::PyIter_Next)(source.as_ptr())) };
            result = match next {
                Some(item) => Self::submit(slf, &item),
                None => {
                    let error = PyErr::take(py).map(|error| error.into_value(py).into_any());
                    this.end_input(py, error)
                }
            };
            if result.is_err() || this.lock().exhausted {
                break;
            }
        }
        this.lock().drawing = false;
        if let Err(error) = result {
            this.end_input(py, Some(error.into_value(py).into_any()))?;
        }
        Ok(())
    }

    fn submit(slf: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        let args = if this.star {
            item.py().get_type::<PyTuple>().call1((item,))?.cast_into()?
        } else {
            PyTuple::new(item.py(), [item])?
        };
        let index = {
            let mut state = this.lock();
            let index = state.taken + state.places.len() as u64;
            state.places.push_back(Place::Empty);
            state.outstanding += 1;
            index
        };
        let submitted = this.manager.get().submit_item(slf, index, &args);
        if submitted.is_err() {
            let mut state = this.lock();
            state.places.pop_back();
            state.outstanding -= 1;
        }
        submitted
    }

    /// No more input, because it is used up or because it failed.
    fn end_input(&self, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<()> {
        let (source, was_ended) = {
            let mut state = self.lock();
            state.exhausted = true;
            if let Some(error) = error {
                state.places.push_back(Place::Failed(error.clone_ref(py)));
                if state.failure.is_none() {
                    state.failure = Some(error);
                }
            }
            (state.source.take(), std::mem::replace(&mut state.ended, true))
        };
        // Dropped without the lock: the input is the caller's code, and may use this map once more as it ends.
        drop(source);
        if was_ended { Ok(()) } else { self.manager.get().end_call(self.call) }
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let mut woken = Vec::new();
        {
            let mut state = self.lock();
            if state.has_news() {
                woken.append(&mut state.waiters);
            }
            if state.exhausted || state.room() > 0 {
                woken.append(&mut state.room_waiters);
            }
        }
        for waiter in woken {
            if !waiter.bind(py).call_method0(intern!(py, "done"))?.is_truthy()? {
                waiter.bind(py).call_method1(intern!(py, "set_result"), (py.None(),))?;
            }
        }
        Ok(())
    }
}

impl State {
    fn room(&self) -> usize {
        let held = if self.collecting { self.outstanding } else { self.places.len() };
        if self.exhausted { 0 } else { WINDOW.saturating_sub(held) }
    }

    /// Whether whoever waits can go on: at the end or a failure if they want all, else at the next in order.
    fn has_news(&self) -> bool {
        if self.collecting {
            return self.failure.is_some() || self.is_complete();
        }
        match self.places.front() {
            Some(Place::Value(_) | Place::Failed(_)) => true,
            Some(Place::Empty) => false,
            None => self.exhausted,
        }
    }

    fn is_complete(&self) -> bool {
        self.exhausted && self.outstanding == 0
    }
}

#[pymethods]
impl MapCall {
    /// Draw what input there is room for. Input that fails is reported as a result that failed.
    #[pyo3(name = "draw")]
    fn py_draw(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::go_on(slf)?;
        slf.get().manager.get().schedule_flush(slf.py())
    }

    /// Submit one item of an input that the caller draws.
    fn push(slf: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::submit(slf, item)?;
        slf.get().manager.get().schedule_flush(slf.py())
    }

    /// Say that an input that the caller draws has ended, with the exception it raised or None.
    fn finish(&self, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<()> {
        self.end_input(py, error)?;
        self.wake(py)
    }

    /// How many more items may be pushed now.
    #[getter]
    fn room(&self) -> usize {
        self.lock().room()
    }

    /// Want all results at once: what has come back takes no more room.
    fn collect(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().lock().collecting = true;
        Self::py_draw(slf)
    }

    /// Whether all results are there.
    #[getter]
    fn complete(&self) -> bool {
        self.lock().is_complete()
    }

    /// The first exception that came back, or None.
    #[getter]
    fn failure(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock().failure.as_ref().map(|failure| failure.clone_ref(py))
    }

    /// All results that have not been taken, in order.
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let places = std::mem::take(&mut self.lock().places);
        let values: Vec<_> = places
            .into_iter()
            .filter_map(|place| match place {
                Place::Value(value) => Some(value),
                Place::Empty | Place::Failed(_) => None,
            })
            .collect();
        PyList::new(py, values)
    }

    /// The next result in order: (0, None) not there yet, (1, value), (2, exception), (3, None) the end.
    fn take(slf: &Bound<'_, Self>) -> PyResult<(u8, Option<Py<PyAny>>)> {
        let next = {
            let mut state = slf.get().lock();
            match state.places.front() {
                None if state.exhausted => return Ok((END, None)),
                None | Some(Place::Empty) => return Ok((PENDING, None)),
                Some(Place::Value(_) | Place::Failed(_)) => (),
            }
            state.taken += 1;
            state.places.pop_front()
        };
        Self::draw(slf)?;
        slf.get().manager.get().schedule_flush(slf.py())?;
        Ok(match next {
            Some(Place::Value(value)) => (VALUE, Some(value)),
            Some(Place::Failed(error)) => (FAILED, Some(error)),
            Some(Place::Empty) | None => (PENDING, None),
        })
    }

    /// Have `future` set when there is something to go on with.
    fn wait(&self, py: Python<'_>, future: Py<PyAny>) -> PyResult<()> {
        self.lock().waiters.push(future);
        self.wake(py)
    }

    /// Have `future` set when there is room to push, or no more input is wanted.
    fn wait_for_room(&self, py: Python<'_>, future: Py<PyAny>) -> PyResult<()> {
        self.lock().room_waiters.push(future);
        self.wake(py)
    }

    /// Cancel what has not come back, and draw no more input.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let source = {
            let mut state = self.lock();
            state.exhausted = true;
            state.ended = true;
            state.source.take()
        };
        if let Some(close) = source.and_then(|source| source.bind(py).getattr_opt(intern!(py, "close")).ok().flatten())
        {
            close.call0()?;
        }
        self.manager.get().cancel_call(self.call)?;
        self.wake(py)
    }
}

impl MapCall {
    pub(crate) fn target(slf: &Bound<'_, Self>, index: u64) -> Target {
        Target::Item(slf.clone().unbind(), index)
    }
}

/// `StopIteration` can't be set on a future, nor raised from a coroutine.
pub(crate) fn is_stop_iteration(error: &Bound<'_, PyAny>) -> bool {
    error.is_instance_of::<PyStopIteration>()
}
