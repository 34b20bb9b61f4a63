//! What a pool has done so far, in numbers. Nothing is decided by them.

use crate::task::Outcome;

/// Why a worker had to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It died although nobody told it to.
    Died,
    /// It had run as many tasks as it may.
    Recycled,
    /// It held more memory than it may.
    Memory,
    /// It was as old as it may become.
    Age,
    /// It did not let go of a task in time, and was killed.
    Overdue,
    /// It wrote what no correct worker writes.
    Garbage,
    /// Its user asked for new workers.
    Restarted,
}

impl Cause {
    /// All of them, in the order of [`Counts::restarts`].
    pub const ALL: [Self; 7] =
        [Self::Died, Self::Recycled, Self::Memory, Self::Age, Self::Overdue, Self::Garbage, Self::Restarted];
}

/// Counts over the life of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that raised, or were lost with their worker.
    pub failed: u64,
    /// Times that a task was run again.
    pub retried: u64,
    /// Workers that were replaced, by [`Cause`].
    pub restarts: [u64; Cause::ALL.len()],
}

impl Counts {
    pub(crate) fn ended(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Value(_) => self.done += 1,
            Outcome::Raised(_) | Outcome::TimedOut | Outcome::Rejected(_) | Outcome::Lost(_) => self.failed += 1,
            // These have neither succeeded nor failed.
            Outcome::Cancelled | Outcome::Terminated | Outcome::NoWorkers(_) => (),
        }
    }

    pub(crate) fn replaced(&mut self, cause: Cause) {
        self.restarts[cause as usize] += 1;
    }
}
