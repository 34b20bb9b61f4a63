//! What a pool has done so far, in numbers. Nothing is decided by them.

use std::fmt;

use crate::task::Outcome;

/// Why a worker had to be replaced.
///
/// ```
/// # use polyloop_core as polyloop;
/// use polyloop::Cause;
///
/// let names: Vec<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
/// assert_eq!(names, ["died", "recycled", "memory", "age", "overdue", "garbage", "restarted"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
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
    /// All of them, as the counts have them.
    pub const ALL: &'static [Self] =
        &[Self::Died, Self::Recycled, Self::Memory, Self::Age, Self::Overdue, Self::Garbage, Self::Restarted];

    /// In one word, as the Python face has it.
    ///
    /// ```
    /// # use polyloop_core as polyloop;
    /// assert_eq!(polyloop::Cause::Overdue.name(), "overdue");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Recycled => "recycled",
            Self::Memory => "memory",
            Self::Age => "age",
            Self::Overdue => "overdue",
            Self::Garbage => "garbage",
            Self::Restarted => "restarted",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
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
