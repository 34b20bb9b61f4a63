//! One `map`: draws its input as room appears, hands back what came of it, and wakes whoever waits. What is given when,
//! and what a failure cancels, is decided by `MapResults` of the core.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polyloop::{CallId, Cut, MapResults, NextResult, Want};
use pyo3::exceptions::{PyStopIteration, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use crate::budget::TimeBudget;
use crate::errors;
use crate::manager::{ItemResult, Prepared, cancelled, complete};
use crate::options::TaskOptions;
use crate::submitter::Submitter;

/// How long one look at the input may keep the loop.
const DRAW_BUDGET: Duration = Duration::from_millis(1);
/// Items that are submitted together, at most.
const RUN_ITEMS: usize = 64;

/// What `take` says of the next result.
pub(crate) const PENDING: u8 = 0;
pub(crate) const VALUE: u8 = 1;
const ERROR: u8 = 2;
pub(crate) const FAILED: u8 = 3;
pub(crate) const END: u8 = 4;

struct State {
    results: MapResults<Py<PyAny>>,
    /// The input, if it is drawn here and has not ended.
    source: Option<Py<PyAny>>,
    /// Ends an input that the caller draws.
    stop_feeding: Option<Py<PyAny>>,
    /// Futures of those who wait for results, for room to push, and for the end.
    waiters: Vec<Py<PyAny>>,
    room_waiters: Vec<Py<PyAny>>,
    end_waiters: Vec<Py<PyAny>>,
    /// The call has been ended in the engine.
    ended: bool,
    drawing: bool,
    /// The input is to be closed as soon as it does not run.
    close_after_drawing: bool,
}

/// What a map does with each item, and with its input.
pub(crate) struct Opening {
    pub(crate) function: Py<PyAny>,
    pub(crate) reference: Arc<[u8]>,
    /// Makes references by value of different maps differ.
    pub(crate) scope: u64,
    pub(crate) call: CallId,
    pub(crate) options: Py<TaskOptions>,
    /// What travels with each item.
    pub(crate) context: Option<Vec<u8>>,
    /// Whether each item is a sequence of arguments.
    pub(crate) star: bool,
    /// Items drawn ahead of what has come back, or of what has been taken by whoever iterates.
    pub(crate) window: usize,
    /// Whether errors stand in place of values.
    pub(crate) keeps_errors: bool,
}

/// A `map` under way. `polyloop.PoolResult` is its public face.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct MapCall {
    submitter: Submitter,
    function: Py<PyAny>,
    /// By name at first, where that can be; by value once a worker could not import it.
    reference: Mutex<Arc<[u8]>>,
    pub(crate) scope: u64,
    pub(crate) call: CallId,
    pub(crate) options: Py<TaskOptions>,
    /// What travels with each item.
    pub(crate) context: Option<Vec<u8>>,
    /// Whether each item is a sequence of arguments.
    pub(crate) star: bool,
    keeps_errors: bool,
    /// What the scheduler knows the items by, if there is one.
    scheduled: Mutex<HashMap<u64, u64>>,
    state: Mutex<State>,
}

impl MapCall {
    pub(crate) fn new(submitter: Submitter, opening: Opening, source: Option<Py<PyAny>>) -> Self {
        let Opening { function, reference, scope, call, options, context, star, window, keeps_errors } = opening;
        let state = State {
            results: MapResults::new(window, keeps_errors),
            source,
            stop_feeding: None,
            waiters: Vec::new(),
            room_waiters: Vec::new(),
            end_waiters: Vec::new(),
            ended: false,
            drawing: false,
            close_after_drawing: false,
        };
        let (reference, state) = (Mutex::new(reference), Mutex::new(state));
        let scheduled = Mutex::default();
        Self { submitter, function, reference, scope, call, options, context, star, keeps_errors, scheduled, state }
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

    /// Results have come back.
    pub(crate) fn deliver(&self, results: impl IntoIterator<Item = (u64, ItemResult)>) {
        self.with(|state| results.into_iter().for_each(|(index, result)| state.results.deliver(index, result)));
    }

    /// Items that have not come back.
    pub(crate) fn outstanding(&self) -> usize {
        self.with(|state| state.results.outstanding())
    }

    /// Keeps what the scheduler knows an item by; 0 for nothing.
    pub(crate) fn set_scheduled(&self, index: u64, scheduled_as: u64) {
        if scheduled_as != 0 {
            self.scheduled.lock().unwrap_or_else(PoisonError::into_inner).insert(index, scheduled_as);
        }
    }

    /// What [`Self::set_scheduled`] kept, which is forgotten.
    pub(crate) fn take_scheduled(&self, index: u64) -> u64 {
        self.scheduled.lock().unwrap_or_else(PoisonError::into_inner).remove(&index).unwrap_or(0)
    }

    /// After something has changed: cancels what is not wanted any more, draws more input and wakes whoever waits.
    pub(crate) fn go_on(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::cut(slf)?;
        if slf.get().with(|state| state.results.is_scarce()) {
            slf.get().look_for_memory();
        }
        Self::draw(slf)?;
        Self::cut(slf)?;
        slf.get().wake(slf.py());
        Ok(())
    }

    /// Does something with the state. What nobody wants of it is dropped without the lock: as it goes it may run
    /// anything, also use this map.
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut state);
        let scraps = state.results.scraps();
        drop(state);
        drop(scraps);
        done
    }

    /// Draws input while there is room for it. The input is the caller's code: it may do anything, also use this pool.
    fn draw(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        let source = this.with(|state| {
            let source = state.source.as_ref().filter(|_| !state.drawing && state.results.room() > 0)?;
            let source = source.clone_ref(py);
            state.drawing = true;
            Some(source)
        });
        let Some(source) = source else { return Ok(()) };
        let drawn = Self::draw_from(slf, source.bind(py));
        let close = this.with(|state| {
            state.drawing = false;
            std::mem::take(&mut state.close_after_drawing)
        });
        if close {
            close_input(source.bind(py));
        }
        drawn
    }

    fn draw_from(slf: &Bound<'_, Self>, source: &Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        let (mut budget, mut buffer) = (TimeBudget::new(DRAW_BUDGET), Vec::new());
        loop {
            let room = this.with(|state| state.results.room());
            if room == 0 {
                return Ok(());
            }
            let (run, stop) = this.draw_run(source, room.min(RUN_ITEMS), &mut budget, &mut buffer);
            Self::submit(slf, run)?;
            match stop {
                Stop::Full => (),
                Stop::Late => return this.submitter.go_on_later(slf),
                Stop::Unsendable(error) => Self::fail_item(slf, error),
                Stop::Ended(error) => this.end_drawn(source, error)?,
            }
        }
    }

    /// Draws so many items, as far as they come and can be sent, and there is time.
    fn draw_run(
        &self,
        source: &Bound<'_, PyAny>,
        most: usize,
        budget: &mut TimeBudget,
        buffer: &mut Vec<u8>,
    ) -> (Vec<Prepared>, Stop) {
        let py = source.py();
        let mut run = Vec::with_capacity(most);
        while run.len() < most {
            // SAFETY: an iterator, as `iter()` gave it; a new reference, or null with or without an exception.
            let next = unsafe { Bound::from_owned_ptr_or_opt(py, pyo3::ffi::PyIter_Next(source.as_ptr())) };
            let Some(item) = next else { return (run, Stop::Ended(PyErr::take(py))) };
            match self.submitter.prepare_item(self, &item, buffer, &mut run) {
                Ok(is_large) if is_large && self.look_for_memory() => return (run, Stop::Full),
                Ok(_) => (),
                Err(error) => return (run, Stop::Unsendable(error)),
            }
            if budget.is_spent() {
                return (run, Stop::Late);
            }
        }
        (run, Stop::Full)
    }

    /// The input is used up, or has failed.
    fn end_drawn(&self, source: &Bound<'_, PyAny>, error: Option<PyErr>) -> PyResult<()> {
        let py = source.py();
        if let Some(unheard) = self.end_input(py, error.map(|error| error.into_value(py).into_any()))? {
            PyErr::from_value(unheard.into_bound(py)).write_unraisable(py, Some(source));
        }
        Ok(())
    }

    /// Submits items. If the pool takes no more, the input has failed.
    fn submit(slf: &Bound<'_, Self>, run: Vec<Prepared>) -> PyResult<()> {
        let (this, count) = (slf.get(), run.len());
        let Some(first) = this.begin(count) else { return Ok(()) };
        if let Err(refused) = this.submitter.submit_items(slf, first, run) {
            this.with(|state| state.results.withdraw(count));
            Self::break_off(slf, refused)?;
        }
        Ok(())
    }

    /// Draws no further than there is memory for what is large. Says whether that is scarce.
    fn look_for_memory(&self) -> bool {
        let window = self.submitter.scarce_window();
        self.with(|state| state.results.set_scarce(window));
        window.is_some()
    }

    /// The next item can't be sent.
    fn fail_item(slf: &Bound<'_, Self>, error: PyErr) {
        if let Some(index) = slf.get().begin(1) {
            slf.get().deliver([(index, Err(error.into_value(slf.py()).into_any()))]);
        }
    }

    /// The index of the first of so many items that have been drawn. `None` if they are not wanted: drawing and pickling
    /// them has run the caller's code, which may have given up this map.
    fn begin(&self, count: usize) -> Option<u64> {
        self.with(|state| (count > 0 && !state.results.input_ended()).then(|| state.results.begin(count)))
    }

    /// An item as positional arguments.
    pub(crate) fn arguments<'py>(&self, item: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
        if self.star {
            if item.is_instance_of::<PyString>() || item.is_instance_of::<PyBytes>() {
                let kind = item.get_type().name()?;
                let message = format!("args must be a sequence of arguments, not a {kind}: write (value,)");
                return Err(PyTypeError::new_err(message));
            }
            Ok(item.py().get_type::<PyTuple>().call1((item,))?.cast_into()?)
        } else {
            PyTuple::new(item.py(), [item])
        }
    }

    /// No more input, because it is used up or because it failed. Gives the error back if nobody will hear of it.
    fn end_input(&self, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<Option<Py<PyAny>>> {
        let copy = error.as_ref().map(|error| error.clone_ref(py));
        let (heard, input, was_ended) = self.with(|state| {
            let heard = state.results.end_input(error);
            let input = (state.source.take(), state.stop_feeding.take());
            (heard, input, std::mem::replace(&mut state.ended, true))
        });
        drop(input);
        if !was_ended {
            self.submitter.end_call(self.call)?;
        }
        Ok(copy.filter(|_| !heard))
    }

    /// Ends an input that has more to give.
    fn break_off(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        if this.with(|state| !state.results.input_ended()) {
            let input = this.give_up_input();
            this.end_input(py, Some(error.into_value(py).into_any()))?;
            input.close(py);
        }
        Ok(())
    }

    /// Carries out what the results have decided: cancels items, and closes the input.
    fn cut(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        let Some(cut) = this.with(|state| state.results.take_cut()) else { return Ok(()) };
        let input = this.give_up_input();
        this.with(|state| state.ended = true);
        // Before the input is closed, which is the caller's code.
        let cancelled = match cut {
            Cut::All => this.submitter.cancel_map(slf),
            Cut::After(index) => this.submitter.cancel_after(slf, index),
        };
        input.close(py);
        cancelled
    }

    fn give_up_input(&self) -> Input {
        self.with(|state| {
            let source = state.source.take();
            state.close_after_drawing |= state.drawing && source.is_some();
            Input { source: source.filter(|_| !state.drawing), stop_feeding: state.stop_feeding.take() }
        })
    }

    fn wake(&self, py: Python<'_>) {
        let woken = self.with(|state| {
            let mut woken = Vec::new();
            if state.results.has_news() {
                woken.append(&mut state.waiters);
            }
            if state.results.input_ended() || state.results.room() > 0 {
                woken.append(&mut state.room_waiters);
            }
            if state.results.is_complete() {
                woken.append(&mut state.end_waiters);
            }
            woken
        });
        for waiter in woken {
            complete(py, waiter.bind(py), intern!(py, "set_result"), Some(py.None()));
        }
    }
}

/// Why no more items were drawn.
enum Stop {
    /// There are as many as were wanted.
    Full,
    /// The loop has been kept long enough.
    Late,
    /// The next can't be sent.
    Unsendable(PyErr),
    /// There are no more, or drawing them failed.
    Ended(Option<PyErr>),
}

/// An input that is given up: its own error of that is nobody's, and is reported as that of a finalizer.
struct Input {
    source: Option<Py<PyAny>>,
    stop_feeding: Option<Py<PyAny>>,
}

impl Input {
    fn close(self, py: Python<'_>) {
        if let Some(source) = self.source {
            close_input(source.bind(py));
        }
        if let Some(stop_feeding) = self.stop_feeding
            && let Err(error) = stop_feeding.call0(py)
        {
            error.write_unraisable(py, Some(stop_feeding.bind(py)));
        }
    }
}

/// Closes a generator. Other iterators that can be closed, such as files, are not ours to close.
fn close_input(source: &Bound<'_, PyAny>) {
    let py = source.py();
    let closed = py
        .import(intern!(py, "collections.abc"))
        .and_then(|module| module.getattr(intern!(py, "Generator")))
        .and_then(|generator| source.is_instance(&generator))
        .and_then(
            |is_generator| if is_generator { source.call_method0(intern!(py, "close")).map(drop) } else { Ok(()) },
        );
    if let Err(error) = closed {
        error.write_unraisable(py, Some(source));
    }
}

#[pymethods]
impl MapCall {
    /// A failure's traceback leads to whoever awaits this map, and so back here. The rest of such a circle can be cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.state.try_lock() {
            Ok(state) => state.results.failure().map_or(Ok(()), |failure| visit.call(failure)),
            Err(_) => Ok(()),
        }
    }

    /// Draw what input there is room for. Input that fails is reported as a result that failed.
    #[pyo3(name = "draw")]
    fn py_draw(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::go_on(slf)?;
        slf.get().submitter.schedule_flush(slf.py())
    }

    /// Submit one item of an input that the caller draws.
    fn push(slf: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut run = Vec::new();
        match slf.get().submitter.prepare_item(slf.get(), item, &mut Vec::new(), &mut run) {
            Ok(is_large) => {
                Self::submit(slf, run)?;
                if is_large {
                    slf.get().look_for_memory();
                }
            }
            Err(error) => Self::fail_item(slf, error),
        }
        Self::cut(slf)?;
        slf.get().wake(slf.py());
        slf.get().submitter.schedule_flush(slf.py())
    }

    /// Say that an input that the caller draws has ended, with the exception it raised or None. Gives that back if
    /// nobody will hear of it.
    fn finish(slf: &Bound<'_, Self>, error: Option<Py<PyAny>>) -> PyResult<Option<Py<PyAny>>> {
        let unheard = slf.get().end_input(slf.py(), error)?;
        Self::cut(slf)?;
        slf.get().wake(slf.py());
        Ok(unheard)
    }

    /// Have `stop` called when no more input is wanted of a caller who draws it.
    fn on_stop(&self, stop: Py<PyAny>) {
        self.with(|state| state.stop_feeding = Some(stop));
    }

    /// The pool has ended: there is no one to draw input for.
    fn pool_ended(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::break_off(slf, errors::terminated(slf.py()))?;
        Self::cut(slf)?;
        slf.get().wake(slf.py());
        Ok(())
    }

    /// Items that have come back, in whatever way.
    #[getter]
    fn finished(&self) -> u64 {
        self.with(|state| state.results.finished())
    }

    /// How many more items may be pushed now.
    #[getter]
    fn room(&self) -> usize {
        self.with(|state| state.results.room())
    }

    /// Whether no more input is wanted, or there is none.
    #[getter]
    fn input_ended(&self) -> bool {
        self.with(|state| state.results.input_ended())
    }

    /// Want all results at once: what has come back takes no more room.
    fn collect(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().with(|state| state.results.ask(Want::All, slf.get().keeps_errors));
        Self::py_draw(slf)
    }

    /// The same for a pool that closes, as long as nobody wants them in another way.
    fn collect_rest(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().with(|state| state.results.ask(Want::Rest, slf.get().keeps_errors));
        Self::py_draw(slf)
    }

    /// Want the results one by one, in order of the input.
    fn iterate(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().with(|state| state.results.ask(Want::InOrder, slf.get().keeps_errors));
        Self::py_draw(slf)
    }

    /// Want the results one by one as they finish, with errors in place of values or with the first as the end.
    fn iterate_as_finished(slf: &Bound<'_, Self>, keep_errors: bool) -> PyResult<()> {
        slf.get().with(|state| state.results.ask(Want::AsFinished, keep_errors || slf.get().keeps_errors));
        Self::py_draw(slf)
    }

    /// Whether all results have come back.
    #[getter]
    fn complete(&self) -> bool {
        self.with(|state| state.results.is_complete())
    }

    /// The exception that the map has ended with, or None.
    #[getter]
    fn failure(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.with(|state| state.results.failure().map(|failure| failure.clone_ref(py)))
    }

    /// All results, in order, once they are complete.
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.with(|state| state.results.take_all()))
    }

    /// The next result: (0, 0, None) not there yet, (1, index, value), (2, index, exception that is kept),
    /// (3, 0, exception) the map has failed, (4, 0, None) the end.
    fn take(slf: &Bound<'_, Self>) -> PyResult<(u8, u64, Option<Py<PyAny>>)> {
        let this = slf.get();
        let (kind, index, value) = match this.with(|state| state.results.take()) {
            NextResult::Pending => return Ok((PENDING, 0, None)),
            NextResult::End => return Ok((END, 0, None)),
            NextResult::Failed => return Ok((FAILED, 0, this.failure(slf.py()))),
            NextResult::Value(index, value) => (VALUE, index, value),
            NextResult::Error(index, error) => (ERROR, index, error),
        };
        Self::draw(slf)?;
        Self::cut(slf)?;
        // Taking may have made room, or drawn the end of an input of which all has come back.
        if this.with(|state| {
            let has_room = !state.room_waiters.is_empty() && state.results.has_ample_room();
            has_room || !state.end_waiters.is_empty() && state.results.is_complete()
        }) {
            this.wake(slf.py());
        }
        this.submitter.schedule_flush(slf.py())?;
        Ok((kind, index, Some(value)))
    }

    /// Have `future` set when there is something to go on with.
    fn wait(&self, py: Python<'_>, future: Py<PyAny>) {
        self.with(|state| state.waiters.push(future));
        self.wake(py);
    }

    /// Have `future` set when there is room to push, or no more input is wanted.
    fn wait_for_room(&self, py: Python<'_>, future: Py<PyAny>) {
        self.with(|state| state.room_waiters.push(future));
        self.wake(py);
    }

    /// Have `future` set when the input has ended and all items have.
    fn wait_for_end(&self, py: Python<'_>, future: Py<PyAny>) {
        self.with(|state| state.end_waiters.push(future));
        self.wake(py);
    }

    /// Cancel what has not come back, and draw no more input. False if the map had failed or was cancelled before.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let error = cancelled(slf.py())?.unbind();
        let was_alive = slf.get().with(|state| state.results.cancel(error));
        Self::cut(slf)?;
        slf.get().wake(slf.py());
        Ok(was_alive)
    }
}

/// `StopIteration` can't be set on a future, nor raised from a coroutine.
pub(crate) fn is_stop_iteration(error: &Bound<'_, PyAny>) -> bool {
    error.is_instance_of::<PyStopIteration>()
}
