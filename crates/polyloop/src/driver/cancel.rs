//! Cancels on their way to workers, and what if one does not hear: its loop is blocked, and only a signal reaches it.

use std::io;

use polyloop_core::{TaskId, WorkerId};

use super::Driver;

impl Driver {
    /// Tells a worker to cancel a task.
    pub(super) fn cancel_in(&mut self, worker: WorkerId, task: TaskId) -> io::Result<()> {
        let now = self.now();
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let look = seat.cancel(task, now)?;
        self.interrupt_at = [self.interrupt_at, look].into_iter().flatten().min();
        Ok(())
    }

    /// Interrupts workers that have not heard of their cancels, if it is time. The rings have been read: a worker that has
    /// answered is not interrupted.
    pub(super) fn interrupt_deaf(&mut self) -> io::Result<()> {
        let now = self.now();
        if self.interrupt_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.interrupt_at = None;
        for seat in self.link.seats.values_mut() {
            let look = seat.interrupt_if_deaf(now)?;
            self.interrupt_at = [self.interrupt_at, look].into_iter().flatten().min();
        }
        Ok(())
    }
}
