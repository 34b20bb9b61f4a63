//! What comes back, and who waits for it.

use polyloop::{CallId, Outcome, Payload, TaskId, Values};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::{Manager, lock};
use crate::apart::Inbox;
use crate::errors;
use crate::map::{MapCall, is_stop_iteration};
use crate::pending::{Pending, Target};

/// The value of an item, or its exception.
pub(crate) type ItemResult = Result<Py<PyAny>, Py<PyAny>>;

impl Manager {
    /// Hands a value to whoever takes those of its stream.
    pub(super) fn yielded(&self, py: Python<'_>, token: usize, value: Payload) {
        let call = match lock(&self.pending).get_mut(token) {
            Some(Pending { target: Target::Stream(call), .. }) => call.clone_ref(py),
            _ => return,
        };
        call.get().push(py, value);
    }

    /// Gives values to whoever waits for them; those of a map many at once.
    pub(super) fn returned(&self, py: Python<'_>, values: &Values, maps: &mut Vec<Py<MapCall>>) {
        let (mut of, mut results) = (CallId::SINGLES, Vec::with_capacity(values.len()));
        for (call, token, bytes) in values.iter() {
            if call == CallId::SINGLES {
                self.deliver(py, call, token, Outcome::Value(Payload::from_slice(bytes)), maps);
                continue;
            }
            if call != of {
                self.settle_items(py, of, &mut results, maps);
                of = call;
            }
            results.push((token, self.value(py, bytes, Inbox::default())));
        }
        self.settle_items(py, of, &mut results, maps);
    }

    fn settle_items(
        &self,
        py: Python<'_>,
        call: CallId,
        results: &mut Vec<(u64, ItemResult)>,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        let map = lock(&self.maps).get(&call).map(|map| map.clone_ref(py));
        let Some(map) = map else { return results.clear() };
        if self.scheduler.get().is_some() {
            results.iter().for_each(|(index, _)| self.tell_scheduler(py, map.get().take_scheduled(*index)));
        }
        map.get().deliver(results.drain(..));
        touch(maps, map);
    }

    /// Gives one outcome to whoever waits for it. Whatever goes wrong in that is theirs, and no one else's.
    pub(super) fn deliver(
        &self,
        py: Python<'_>,
        call: CallId,
        token: u64,
        outcome: Outcome,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        if let Some(pending) = self.lift(py, call, token) {
            self.lower(call, token, None);
            self.end(py, pending, outcome, maps);
        }
    }

    /// Takes out who waits for a task. An item's place is kept for it by its map.
    fn lift(&self, py: Python<'_>, call: CallId, token: u64) -> Option<Pending> {
        if call == CallId::SINGLES {
            return lock(&self.pending).lift(token as usize);
        }
        let map = lock(&self.maps).get(&call)?.clone_ref(py);
        let (options, scheduled_as) = (map.get().options.clone_ref(py), map.get().take_scheduled(token));
        Some(Pending { target: Target::Item(map, token), function: None, task: None, options, scheduled_as })
    }

    /// Puts back who waits for a task, or forgets its place.
    fn lower(&self, call: CallId, token: u64, pending: Option<Pending>) {
        match pending {
            pending if call == CallId::SINGLES => lock(&self.pending).lower(token as usize, pending),
            Some(Pending { target: Target::Item(map, index), scheduled_as, .. }) => {
                map.get().set_scheduled(index, scheduled_as);
            }
            _ => (),
        }
    }

    /// Decides whether a task that failed runs again.
    pub(super) fn judge(
        &self,
        py: Python<'_>,
        task: TaskId,
        (call, token): (CallId, u64),
        outcome: Outcome,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        let Some(mut pending) = self.lift(py, call, token) else { return };
        // A worker that can't make the function will not, however often it is asked: that is no reason to run again.
        let is_rejected = matches!(outcome, Outcome::Rejected(_));
        let function = if is_rejected { self.value_for(py, task, &pending) } else { None };
        let result = if function.is_some() { None } else { Some(self.result(py, &pending, outcome)) };
        let again = match &result {
            None => true,
            Some(Err(error)) => !is_rejected && pending.options.get().is_reason(error.bind(py)),
            Some(Ok(_)) => false,
        };
        if again {
            // Gone, if it was cancelled meanwhile: its end is to be delivered.
            if let Some(task) = lock(&self.driver).again(task, function) {
                pending.task = Some(task);
            }
            return self.lower(call, token, Some(pending));
        }
        let settled = lock(&self.driver).settled(task);
        match result {
            Some(result) if settled => {
                self.lower(call, token, None);
                self.settle(py, pending, result, maps);
            }
            _ => self.lower(call, token, Some(pending)),
        }
    }

    /// Gives an outcome to whoever waits for it.
    fn end(&self, py: Python<'_>, pending: Pending, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        let takes_results = matches!(pending.target, Target::Item(..) | Target::Stream(_));
        if matches!(outcome, Outcome::Cancelled) && !takes_results {
            self.tell_scheduler(py, pending.scheduled_as);
            match pending.target {
                Target::Apply(call) => {
                    if call.get().complete_cancelled() {
                        lock(&self.woken).push_back(call);
                    }
                }
                Target::Future(future, _) => complete(py, future.bind(py), intern!(py, "cancel"), None),
                Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
                Target::Item(..) | Target::Stream(_) => (),
            }
            return;
        }
        let result = self.result(py, &pending, outcome);
        self.settle(py, pending, result, maps);
    }

    fn settle(&self, py: Python<'_>, pending: Pending, result: ItemResult, maps: &mut Vec<Py<MapCall>>) {
        self.tell_scheduler(py, pending.scheduled_as);
        match pending.target {
            Target::Item(map, index) => {
                map.get().deliver([(index, result)]);
                touch(maps, map);
            }
            Target::Stream(call) => call.get().end(py, result),
            Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
            Target::Apply(call) => {
                if call.get().complete(result) {
                    lock(&self.woken).push_back(call);
                }
            }
            Target::Future(future, _) => {
                let future = future.bind(py);
                match result {
                    Ok(value) => complete(py, future, intern!(py, "set_result"), Some(value)),
                    Err(error) => complete(py, future, intern!(py, "set_exception"), Some(error)),
                }
            }
        }
    }

    /// A value, or the exception that says why it can't be read.
    fn value(&self, py: Python<'_>, bytes: &[u8], apart: Inbox<'_>) -> ItemResult {
        self.codec
            .read(py, bytes, apart)
            .map(Bound::unbind)
            .map_err(|error| as_result(py, errors::unreadable(py, error)))
    }

    /// The value, or the exception that stands for everything else.
    fn result(&self, py: Python<'_>, pending: &Pending, outcome: Outcome) -> ItemResult {
        let is_named = matches!(outcome, Outcome::Lost(_) | Outcome::TimedOut);
        let name = if is_named { self.name(py, pending) } else { None };
        let result = match outcome {
            Outcome::Value(bytes) => return self.value(py, &bytes, Inbox::of(&bytes)),
            Outcome::Cancelled => cancelled(py),
            outcome => errors::exception_for(py, &self.codec, &outcome, name, pending.options.get().timeout),
        };
        Err(as_result(py, result))
    }

    fn tell_scheduler(&self, py: Python<'_>, scheduled_as: u64) {
        if let Some(scheduler) = self.scheduler.get()
            && let Err(error) = scheduler.complete.bind(py).call1((scheduled_as,))
        {
            error.write_unraisable(py, Some(scheduler.complete.bind(py)));
        }
    }
}

fn touch(maps: &mut Vec<Py<MapCall>>, map: Py<MapCall>) {
    if !maps.iter().any(|touched| touched.is(&map)) {
        maps.push(map);
    }
}

/// An exception as it can be raised from a coroutine; where it could not be made, why not.
pub(crate) fn as_result(py: Python<'_>, error: PyResult<Bound<'_, PyAny>>) -> Py<PyAny> {
    let error = match error {
        Ok(error) if is_stop_iteration(&error) => stop_iteration(py, error),
        other => other,
    };
    error.map_or_else(|error| error.into_value(py).into_any(), Bound::unbind)
}

/// Completes a future, unless its owner has given up on it meanwhile.
pub(crate) fn complete(
    py: Python<'_>,
    future: &Bound<'_, PyAny>,
    how: &Bound<'_, pyo3::types::PyString>,
    value: Option<Py<PyAny>>,
) {
    let done = future.call_method0(intern!(py, "done")).and_then(|done| done.is_truthy());
    let result = match (done, value) {
        (Ok(true), _) => return,
        (Ok(false), Some(value)) => future.call_method1(how, (value,)),
        (Ok(false), None) => future.call_method0(how),
        (Err(error), _) => Err(error),
    };
    if let Err(error) = result {
        // The loop is closed, for one: then nobody can be told.
        error.write_unraisable(py, Some(future));
    }
}

pub(crate) fn cancelled(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "CancelledError"))?.call0()
}

/// As a coroutine does with a `StopIteration` that leaves it.
fn stop_iteration<'py>(py: Python<'py>, cause: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let error = PyRuntimeError::new_err("the task raised StopIteration").into_value(py).into_bound(py).into_any();
    error.setattr(intern!(py, "__cause__"), cause)?;
    Ok(error)
}
