//! Calls that items make of the pool.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use polyloop_core::{Ask, NestedId, ResultFrame, TaskId, TooMany, split_answer};
use thiserror::Error;

use super::control::Said;
use super::{WorkerError, WorkerLink};
use crate::blocks::{Lease, Memory};
use crate::inject::step;

/// Why an item's call was not made.
#[derive(Debug, Error)]
pub enum AskError {
    /// There are as many as may be.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// Memory could not be passed on: the large parts have to go with the other bytes.
    #[error("the memory could not be passed on")]
    CannotPass,
    /// A process that the worker forked is none.
    #[error("a process forked from a worker is no worker")]
    Forked,
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

/// The answer to a call, as far as it has come.
#[derive(Default)]
pub(super) struct Answering {
    bytes: Vec<u8>,
    apart: Option<Arc<Memory>>,
}

impl Answering {
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

impl WorkerLink {
    /// One of these items, which run here, calls the pool; the large parts of the arguments are in `lease`. What comes of it
    /// is told by [`super::Control::Answer`], once, whatever it is.
    ///
    /// # Errors
    /// [`AskError`]: no call was made.
    ///
    /// # Panics
    /// When there are no callers: an error in the host.
    pub fn ask(&mut self, callers: &[TaskId], ask: &Ask<'_>, lease: Option<&Lease>) -> Result<NestedId, AskError> {
        if !self.is_ours() {
            return Err(AskError::Forked);
        }
        let bytes = ask.write();
        let number = self.core.ask(callers, bytes.len() as u64, self.max_reply)?;
        if let Some(lease) = lease {
            step("pass");
            if self.lender.pass(lease, (), self.socket.as_fd()).is_err() {
                self.core.answered(number);
                return Err(AskError::CannotPass);
            }
            self.lender.close_fd(lease);
        }
        self.answers.insert(number, Answering::default());
        let task = callers[0];
        if let Some(lease) = lease {
            self.publish(&ResultFrame::Block(lease.frame(task)), None);
        }
        let bytes = self.publish_pieces(task, &bytes);
        self.publish(&ResultFrame::Submit { task, number, bytes }, None);
        step("asked");
        Ok(number)
    }

    /// Nobody wants the answer to this call any more: it is to be cancelled. The answer comes all the same.
    pub fn withdraw(&mut self, number: NestedId) {
        if self.is_ours() && self.answers.contains_key(&number) {
            self.publish(&ResultFrame::Withdraw(number), None);
            step("withdrawn");
        }
    }

    pub(super) fn answer_apart(&mut self, number: NestedId, memory: Memory) {
        if let Some(answering) = self.answers.get_mut(&number) {
            answering.apart = Some(Arc::new(memory));
        }
    }

    /// The answer to a call, all of whose bytes have come.
    pub(super) fn whole_answer(&mut self, number: NestedId) -> Result<Said, WorkerError> {
        let Answering { bytes, apart } = self.answers.remove(&number).unwrap_or_default();
        self.core.answered(number);
        step("answered");
        let (outcome, streamed) = split_answer(&bytes).ok_or(WorkerError::Task)?;
        let streamed = (!streamed.is_empty()).then(|| Arc::new(Memory::heap(streamed)));
        Ok(Said::Answer(number, Box::new(outcome), apart.or(streamed)))
    }
}
