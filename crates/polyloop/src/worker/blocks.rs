//! Blocks in a worker: those it makes for results, and the manager's that arguments are in.

use std::os::fd::AsFd;
use std::sync::Arc;

use polyloop_core::{BlockFrame, Discarded, Moment, NestedId, Reply, ResultFrame};
use thiserror::Error;

use super::{Job, WorkerLink};
use crate::blocks::{BlockError, Lease, Returned};
use crate::inject::step;

/// Blocks of a worker's at a time. Once passed on, they are no descriptors.
pub(super) const BLOCKS_MAX: usize = 1024;
/// How the manager is named as a lender.
pub(super) const MANAGER: u64 = 0;

/// The system did not take memory that was to be passed on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the memory could not be passed on")]
pub struct CannotPass;

impl WorkerLink {
    /// Memory for the large parts of a result, to be filled. `None` when there is none, or as much as may be: then they
    /// have to go with the other bytes.
    pub fn take_block(&mut self, bytes: usize) -> Option<Lease> {
        self.settle_blocks();
        let now = self.now();
        self.is_ours().then(|| self.lender.take(now, bytes)).flatten()
    }

    /// While this holds, whoever can wait should do so before it asks for more.
    pub fn is_scarce(&self) -> bool {
        self.lender.is_scarce()
    }

    /// Publishes that an item returned a value whose large parts are in this memory.
    ///
    /// # Errors
    /// Nothing was published when the memory could not be passed on: the parts have to go with the other bytes.
    pub fn reply_apart(&mut self, job: Job, bytes: &[u8], lease: Lease) -> Result<(), CannotPass> {
        if !self.is_ours() || self.given_up.contains(&job.task) {
            return Ok(());
        }
        step("pass");
        self.lender.pass(&lease, (), self.socket.as_fd()).map_err(|_| CannotPass)?;
        step("passed");
        self.lender.close_fd(&lease);
        self.publish(&ResultFrame::Block(lease.frame(job.task)), None);
        step("lent");
        self.reply(job, Reply::Value(bytes));
        Ok(())
    }

    /// What the manager says of blocks.
    pub(super) fn block_frame(&mut self, frame: BlockFrame) -> Result<(), BlockError> {
        match frame {
            BlockFrame::Lent { task, block, bytes } => {
                step("borrow");
                let memory = self.borrower.borrow(self.socket.as_fd(), block, bytes)?;
                step("borrowed");
                // One that was cancelled meanwhile has no use for it.
                if let Some(number) = NestedId::from_task(task) {
                    self.answer_apart(number, memory);
                } else if let Some(fetching) = self.fetching.get_mut(&task) {
                    fetching.apart = Some(Arc::new(memory));
                }
            }
            BlockFrame::Forgotten(block) => self.borrower.forget(self.socket.as_fd(), block)?,
            BlockFrame::Returned { block, reusable } => {
                let now = self.now();
                self.lender.give_back(now, block, (), reusable)?;
                self.tell_discarded();
            }
        }
        Ok(())
    }

    /// Does what follows from users of blocks that are gone: marks blocks of this worker's as free, and tells the manager
    /// of its own.
    pub(super) fn settle_blocks(&mut self) {
        for returned in self.returns.take() {
            match returned {
                Returned::Lease { block, spoiled } => {
                    let now = self.now();
                    self.lender.end_lease(now, block, spoiled);
                }
                Returned::Loan { block, reusable, .. } => {
                    step("return");
                    self.publish(&ResultFrame::Block(BlockFrame::Returned { block, reusable }), None);
                }
            }
        }
        self.tell_discarded();
    }

    /// Gives back the memory of every block that nobody uses.
    pub(super) fn give_back_free(&mut self) {
        self.lender.give_back_free();
        self.tell_discarded();
    }

    fn tell_discarded(&mut self) {
        for Discarded { block, known_to } in self.lender.take_discarded() {
            if !known_to.is_empty() {
                self.publish(&ResultFrame::Block(BlockFrame::Forgotten(block)), None);
            }
        }
    }

    fn now(&self) -> Moment {
        self.origin.elapsed()
    }
}
