//! Blocks in the client: those it makes for arguments, and those of workers that results are in.

use std::io;

use polyloop_core::{BLOCK_IDLE, BlockFrame, ControlFrame, Discarded, Moment, WorkerId};

use super::Driver;
use crate::blocks::{BlockError, Lease, Returned};

/// Blocks of the client's at a time: each is a descriptor, of which a process may have no more than some thousand.
pub(super) const BLOCKS_MAX: usize = 64;
/// One that runs and one that waits.
const SCARCE_TASKS_PER_WORKER: usize = 2;

impl Driver {
    /// Memory for the large parts of arguments: to be filled, and to travel as the luggage of a submission's arguments.
    /// `None` when there is none, or as many as may be: then they have to go with the other bytes.
    pub fn take_block(&mut self, bytes: usize) -> Option<Lease> {
        let now = self.now();
        self.is_ours().then(|| self.lender.take(now, bytes)).flatten()
    }

    /// While this holds, whoever can wait should do so before it submits more with large parts; and how many of its tasks
    /// may be unfinished even then.
    pub fn scarce_window(&self) -> Option<usize> {
        self.lender.is_scarce().then_some(usize::from(self.config.processes) * SCARCE_TASKS_PER_WORKER)
    }

    /// Does what follows from users of blocks that are gone: marks blocks of ours as free, and tells workers of theirs.
    pub(super) fn settle_blocks(&mut self) -> io::Result<()> {
        let now = self.now();
        for returned in self.returns.take() {
            match returned {
                Returned::Lease { block, spoiled } => self.lender.end_lease(now, block, spoiled),
                Returned::Loan { lender, block, reusable } => {
                    let frame = BlockFrame::Returned { block, reusable };
                    self.send(worker_of(lender), ControlFrame::Block(frame))?;
                    self.workers_idle_at = Some(now + BLOCK_IDLE);
                }
            }
        }
        self.tell_discarded()
    }

    /// What a worker says of blocks.
    pub(super) fn block_frame(&mut self, worker: WorkerId, frame: BlockFrame) -> io::Result<()> {
        let now = self.now();
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let heard = match frame {
            BlockFrame::Lent { block, bytes, .. } => seat.borrow(block, bytes),
            BlockFrame::Forgotten(block) => seat.forget(block),
            BlockFrame::Returned { block, reusable } => {
                self.lender.give_back(now, block, worker, reusable).map_err(BlockError::from)
            }
        };
        match heard {
            Ok(()) => self.tell_discarded(),
            Err(error) => self.garbage(worker, &error.to_string()),
        }
    }

    /// Gives back memory that has not been used for a while, here and in the workers.
    pub(super) fn give_back_idle(&mut self) -> io::Result<()> {
        let now = self.now();
        self.lender.give_back_idle(now);
        if self.workers_idle_at.is_some_and(|at| at <= now) {
            self.workers_idle_at = None;
            for seat in self.link.seats.values_mut().filter(|seat| seat.has_borrowed()) {
                seat.send(ControlFrame::GiveBack)?;
            }
        }
        self.tell_discarded()
    }

    /// Lets go of all blocks: the pool is over, and nobody is left to be told.
    pub(super) fn give_back_all(&mut self) {
        self.lender.give_back_free();
        self.lender.take_discarded();
    }

    /// When [`Self::give_back_idle`] has something to do.
    pub(super) fn next_idle(&self) -> Option<Moment> {
        [self.lender.next_idle(), self.workers_idle_at].into_iter().flatten().min()
    }

    fn tell_discarded(&mut self) -> io::Result<()> {
        for Discarded { block, known_to } in self.lender.take_discarded() {
            for worker in known_to {
                self.send(worker, ControlFrame::Block(BlockFrame::Forgotten(block)))?;
            }
        }
        Ok(())
    }
}

/// How [`Returned::Loan`] names a worker.
pub(crate) fn lender_of(worker: WorkerId) -> u64 {
    u64::from(worker.seat) << 32 | u64::from(worker.generation)
}

fn worker_of(lender: u64) -> WorkerId {
    WorkerId { seat: (lender >> 32) as u16, generation: lender as u32 }
}
