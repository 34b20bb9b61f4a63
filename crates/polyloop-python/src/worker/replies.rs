//! What is sent back of an item that has ended.

use polyloop::{Job, Reply};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::{Worker, lock};
use crate::apart::Outbox;
use crate::codec::with_traceback;

impl Worker {
    /// Sends what came of a task that has ended.
    pub(super) fn report(&self, job: Job, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        // Asked first, as asking for the result takes the message and the context of a cancellation from the task.
        if task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            self.reply(job, Reply::Cancelled);
            return Ok(());
        }
        match task.call_method0(intern!(py, "result")) {
            Ok(value) => self.reply_value(job, &value, &mut Vec::new()),
            Err(error) => self.reply_error(py, job, &error),
        }
    }

    pub(super) fn reply_value(&self, job: Job, value: &Bound<'_, PyAny>, bytes: &mut Vec<u8>) -> PyResult<()> {
        let py = value.py();
        bytes.clear();
        let mut apart = Outbox::default();
        let mut written = self.codec.write(value, bytes, &mut apart);
        if written.is_ok() && !apart.is_empty() {
            if self.reply_apart(py, job, bytes, &apart) {
                return Ok(());
            }
            bytes.clear();
            written = self.codec.write(value, bytes, &mut Outbox::closed());
        }
        match written {
            Ok(()) => match self.too_large("a result", bytes) {
                None => self.reply(job, Reply::Value(bytes)),
                Some(error) => self.reply(job, Reply::Raised(&self.codec.dump_exception(py, &error)?)),
            },
            Err(reason) if self.was_interrupted(py, self.host()?, job, &reason)? => self.reply(job, Reply::Cancelled),
            Err(reason) => {
                let bytes = self.codec.dump_unsendable(value, &reason)?;
                self.reply(job, Reply::Raised(&bytes));
            }
        }
        Ok(())
    }

    /// Sends a value whose large parts go into a block. Says whether there was one.
    fn reply_apart(&self, py: Python<'_>, job: Job, bytes: &[u8], apart: &Outbox) -> bool {
        let Some(lease) = apart.store(py, |len| lock(&self.link).take_block(len)) else { return false };
        if self.is_abandoned() {
            return true;
        }
        let is_sent = lock(&self.link).reply_apart(job, bytes, lease).is_ok();
        if is_sent {
            self.forget_ended(job);
        }
        is_sent
    }

    pub(super) fn reply_error(&self, py: Python<'_>, job: Job, error: &PyErr) -> PyResult<()> {
        if let Some(handler) = self.host()?.exception_handler.as_ref()
            && let Err(failure) = handler.bind(py).call1((with_traceback(py, error),))
        {
            // The task's own exception is what its caller must get.
            failure.write_unraisable(py, Some(handler.bind(py)));
        }
        let mut bytes = self.codec.dump_exception(py, error)?;
        if let Some(error) = self.too_large("an exception", &bytes) {
            bytes = self.codec.dump_exception(py, &error)?;
        }
        self.reply(job, Reply::Raised(&bytes));
        Ok(())
    }

    /// What is raised in place of an outcome that is larger than a worker may send.
    pub(crate) fn too_large(&self, what: &str, bytes: &[u8]) -> Option<PyErr> {
        let (len, max) = (bytes.len() as u64, self.max_reply);
        if len <= max {
            return None;
        }
        let advice = "return less of it at a time, or leave it in a file";
        Some(PyValueError::new_err(format!("{what} of {len} bytes is more than the {max} that fit; {advice}")))
    }

    /// Writes what an item returned if it can be sent a moment later: a simple value, as nothing of the user's runs when
    /// that goes, and a short one.
    pub(super) fn write_returned(&self, value: &Bound<'_, PyAny>, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        self.codec.write_if_simple(value, bytes) && bytes.len() as u64 <= self.max_reply
    }

    pub(super) fn reply(&self, job: Job, reply: Reply<'_>) {
        let reply = match (reply, self.forget_ended(job)) {
            (Reply::Cancelled, true) => Reply::TimedOut,
            (reply, _) => reply,
        };
        if !self.is_abandoned() {
            lock(&self.link).reply(job, reply);
        }
    }
}
