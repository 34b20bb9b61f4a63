//! What a worker must hear soon, and what if it does not: its loop is blocked, and only a signal reaches it.

use std::io;

use polyloop_core::{ControlFrame, WorkerId};

use super::Driver;

impl Driver {
    /// Tells a worker to cancel something, or everything.
    pub(super) fn urge(&mut self, worker: WorkerId, frame: ControlFrame<'_>) -> io::Result<()> {
        let now = self.now();
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let look = seat.urge(frame, now)?;
        self.interrupt_at = [self.interrupt_at, look].into_iter().flatten().min();
        self.replace_if_deaf(worker)
    }

    /// Replaces a worker for which more orders wait than a correct one would leave unread.
    pub(super) fn replace_if_deaf(&mut self, worker: WorkerId) -> io::Result<()> {
        match self.link.get(worker).map_or(Ok(()), |seat| seat.listens()) {
            Ok(()) => Ok(()),
            Err(garbage) => self.garbage(worker, &garbage.to_string()),
        }
    }

    /// Interrupts workers that have not heard, if it is time.
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
