//! Calls that tasks make of the pool: their answers, and what of them is large.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use polyloop_core::{CallId, ControlFrame, NestedId, Outcome, Payload, TaskId, WorkerId, write_answer};

use super::Driver;
use crate::blocks::{Lease, Lender, Memory};
use crate::link::Seat;

impl Driver {
    /// A task that was submitted by a task has returned.
    #[cold]
    pub(super) fn answer_value(&mut self, call: CallId, token: u64, value: Payload) -> io::Result<()> {
        match self.pool.returned_nested(call, token) {
            Some((worker, number)) => self.answer(worker, number, &Outcome::Value(value)),
            None => Ok(()),
        }
    }

    /// Has a worker told what came of a call.
    pub(super) fn answer(&mut self, worker: WorkerId, number: NestedId, outcome: &Outcome) -> io::Result<()> {
        let now = self.now();
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let luggage = if let Outcome::Value(value) = outcome { value.luggage() } else { None };
        let mut apart = Vec::new();
        if let Some(memory) = luggage.and_then(|luggage| luggage.get::<Arc<Memory>>()) {
            let lease = copied(memory, |bytes| self.lender.take(now, bytes));
            let task = number.to_task();
            apart = pass_on(&mut self.lender, seat, task, lease.as_ref())?.unwrap_or_else(|| memory.read());
        }
        seat.send_large(number.to_task(), write_answer(outcome, &apart).into())
    }
}

/// What one worker has lent, in a block of the client's, which can be lent to another.
pub(super) fn copied(memory: &Memory, take: impl FnOnce(usize) -> Option<Lease>) -> Option<Lease> {
    let lease = take(memory.len())?;
    memory.copy_to(&lease).is_ok().then_some(lease)
}

/// Lends a block to a worker, for a task or for an answer. `None` if there is none, or it can't be passed on: then its
/// bytes have to go with the others.
pub(super) fn pass_on(
    lender: &mut Lender<WorkerId>,
    seat: &mut Seat,
    task: TaskId,
    lease: Option<&Lease>,
) -> io::Result<Option<Vec<u8>>> {
    let Some(lease) = lease else { return Ok(None) };
    if lender.pass(lease, seat.worker, seat.socket.as_fd()).is_err() {
        return Ok(None);
    }
    seat.send(ControlFrame::Block(lease.frame(task)))?;
    Ok(Some(Vec::new()))
}
