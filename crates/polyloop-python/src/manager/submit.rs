//! What a call becomes on its way out: bytes, with the queue they go to.

use std::sync::Arc;

use polyloop::{CallId, Driver, Luggage, OnDeath, Payload, QueueIndex, Refused, Submission};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::{Manager, lock};
use crate::apart::{Outbox, write_apart};
use crate::codec::write_context;
use crate::errors;
use crate::map::MapCall;
use crate::options::{TaskOptions, Verb};
use crate::pending::{Pending, Target};

/// Arguments up to this many bytes are written into a buffer that is used again.
const BUFFER_MAX: usize = 4096;
/// Applies that are submitted together.
const PORTION: usize = 256;

/// An item of a map, ready to be submitted.
pub(crate) struct Prepared {
    arguments: Payload,
    queue: QueueIndex,
    /// What the scheduler knows it by.
    scheduled_as: u64,
}

impl Prepared {
    /// One that no scheduler knows of.
    pub(crate) fn new(arguments: Payload) -> Self {
        Self { arguments, queue: QueueIndex(0), scheduled_as: 0 }
    }

    pub(crate) fn into_arguments(self) -> Payload {
        self.arguments
    }
}

impl Manager {
    /// Has the workers get what was submitted: at once where waiting for more gains nothing, else with what else is
    /// submitted before the loop waits again, but in portions, so that they need not wait for the last of thousands.
    fn flush_in_time(&self, py: Python<'_>) -> PyResult<()> {
        let full = {
            let mut due = lock(&self.flush_due);
            due.submitted += 1;
            due.submitted >= PORTION
        };
        if !full && !lock(&self.driver).is_quiet() {
            return self.schedule_flush(py);
        }
        lock(&self.flush_due).submitted = 0;
        self.drive(Driver::flush)
    }

    /// Has what was submitted flushed before the loop waits again.
    pub(crate) fn schedule_flush(&self, py: Python<'_>) -> PyResult<()> {
        if std::mem::replace(&mut lock(&self.flush_due).scheduled, true) {
            return Ok(());
        }
        self.call_flush_soon.bind(py).call0().map(drop)
    }

    /// Submits a call of its own, to whoever waits for it.
    pub(super) fn enter(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        target: Target,
    ) -> PyResult<usize> {
        let py = func.py();
        let verb = target.verb();
        let function = options.get().manner(verb).put_on(self.reference(func, 0, verb)?);
        let arguments = self.arguments(self.context(py)?.as_deref(), args, kwargs)?;
        let (queue, scheduled_as) = self.schedule(func, args, kwargs)?;
        let mut submission = submission(CallId::SINGLES, queue, function, arguments, options.get());
        submission.is_stream = verb == Verb::Stream;
        let pending = Pending { target, function: Some(func.clone().unbind()), task: None, options, scheduled_as };
        let token = self.accept(py, pending, submission)?;
        self.flush_in_time(py)?;
        Ok(token)
    }

    /// Adds to a run what an item of a map needs to be submitted. Says whether it holds memory of which there is not much.
    /// Runs the caller's code.
    pub(crate) fn prepare_item(
        &self,
        map: &MapCall,
        item: &Bound<'_, PyAny>,
        buffer: &mut Vec<u8>,
        run: &mut Vec<Prepared>,
    ) -> PyResult<bool> {
        buffer.clear();
        let context = map.context.as_deref();
        if !map.star && self.scheduler.get().is_none() {
            let write = |bytes: &mut _, apart: &mut _| {
                write_context(context, bytes);
                self.codec.write_argument(item, bytes, apart)
            };
            let arguments = self.write(item.py(), buffer, write)?;
            let is_large = arguments.luggage().is_some();
            run.push(Prepared { arguments, queue: QueueIndex(0), scheduled_as: 0 });
            return Ok(is_large);
        }
        let args = map.arguments(item)?;
        let write = |bytes: &mut _, apart: &mut _| {
            write_context(context, bytes);
            self.codec.write_arguments(&args, None, bytes, apart)
        };
        let arguments = self.write(item.py(), buffer, write)?;
        let (queue, scheduled_as) = self.schedule(map.function(item.py()), &args, None)?;
        let is_large = arguments.luggage().is_some();
        run.push(Prepared { arguments, queue, scheduled_as });
        Ok(is_large)
    }

    /// Submits items of a map, from this index on. All are accepted, or none.
    pub(crate) fn submit_items(&self, map: &Bound<'_, MapCall>, first: u64, items: Vec<Prepared>) -> PyResult<()> {
        let (this, py) = (map.get(), map.py());
        let mut driver = lock(&self.driver);
        let mut indexed = (first..).zip(items).peekable();
        while let Some((first, Prepared { queue, .. })) = indexed.peek() {
            let (first, queue) = (*first, *queue);
            let mut submission = submission(this.call, queue, this.reference(), Payload::new(), this.options.get());
            submission.token = first;
            let run = std::iter::from_fn(|| {
                let (index, item) = indexed.next_if(|(_, item)| item.queue == queue)?;
                this.set_scheduled(index, item.scheduled_as);
                Some(item.arguments)
            });
            match driver.submit_run(submission, run) {
                Ok(()) => (),
                // A closed pool goes on with the maps it has: this one was terminated.
                Err(Refused::Closed) => return Err(errors::terminated(py)),
                Err(refused) => return Err(errors::refused(py, &self.codec, &refused)),
            }
        }
        drop(driver);
        lock(&self.maps).entry(this.call).or_insert_with(|| map.clone().unbind());
        Ok(())
    }

    fn schedule(
        &self,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(QueueIndex, u64)> {
        let Some(scheduler) = self.scheduler.get() else { return Ok((QueueIndex(0), 0)) };
        let py = function.py();
        let id = {
            let mut last = lock(&self.last_scheduled);
            *last += 1;
            *last
        };
        let empty = PyDict::new(py);
        let kwargs = kwargs.unwrap_or(&empty);
        let chosen = scheduler.schedule.bind(py).call1((id, function, args, kwargs))?;
        for (index, queue_id) in (0..).zip(&scheduler.queue_ids) {
            if chosen.eq(queue_id)? {
                return Ok((QueueIndex(index), id));
            }
        }
        Err(PyValueError::new_err(format!("the scheduler chose the queue {chosen}, which it has not registered")))
    }

    /// What travels with the tasks of a call that is made now.
    pub(super) fn context(&self, py: Python<'_>) -> PyResult<Option<Vec<u8>>> {
        self.capture_context.as_ref().map_or(Ok(None), |capture| capture.call0(py)?.extract(py))
    }

    fn arguments(
        &self,
        context: Option<&[u8]>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Payload> {
        // Taken, not borrowed: pickling runs the caller's code, which may submit to this pool.
        let mut bytes = std::mem::take(&mut *lock(&self.buffer));
        bytes.clear();
        let arguments = self.write(args.py(), &mut bytes, |bytes, apart| {
            write_context(context, bytes);
            self.codec.write_arguments(args, kwargs, bytes, apart)
        })?;
        *lock(&self.buffer) = bytes;
        Ok(arguments)
    }

    /// Arguments as `write` writes them: what of them is large in a block, where there is one.
    fn write(
        &self,
        py: Python<'_>,
        bytes: &mut Vec<u8>,
        write: impl Fn(&mut Vec<u8>, &mut Outbox) -> PyResult<()>,
    ) -> PyResult<Payload> {
        let lease = write_apart(py, bytes, |len| lock(&self.driver).take_block(len), write)?;
        Ok(payload(bytes).with(lease.map(Luggage::new)))
    }

    fn accept(&self, py: Python<'_>, pending: Pending, mut submission: Submission) -> PyResult<usize> {
        let token = lock(&self.pending).insert(pending);
        submission.token = token as u64;
        let submitted = lock(&self.driver).submit(submission);
        let mut table = lock(&self.pending);
        match submitted {
            Ok(task) => {
                if let Some(pending) = table.get_mut(token) {
                    pending.task = Some(task);
                }
                Ok(token)
            }
            Err(refused) => {
                let pending = table.remove(token);
                drop(table);
                drop(pending);
                Err(errors::refused(py, &self.codec, &refused))
            }
        }
    }
}

fn submission(
    call: CallId,
    queue: QueueIndex,
    function: Arc<[u8]>,
    arguments: Payload,
    options: &TaskOptions,
) -> Submission {
    let TaskOptions { retries, retry_deaths, timeout, .. } = *options;
    let (on_death, judged, is_stream) = (OnDeath::again_if(retry_deaths), options.judges(), false);
    Submission { call, queue, function, arguments, retries, on_death, judged, is_stream, attempt: 1, timeout, token: 0 }
}

/// Bytes that were written into a buffer, which is used again unless they are many.
fn payload(buffer: &mut Vec<u8>) -> Payload {
    if buffer.len() > BUFFER_MAX { Payload::from_vec(std::mem::take(buffer)) } else { Payload::from_slice(buffer) }
}
