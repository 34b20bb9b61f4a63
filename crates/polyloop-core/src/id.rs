//! The names of things: small, copyable, never reused for another thing while anyone may still hold them.

use std::fmt;
use std::time::Duration;

/// A moment, as the time since the pool was made.
pub type Moment = Duration;

/// A task: where it stands in the manager's table, and which of the tasks that stood there it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub(crate) index: u32,
    /// Never 0, so that no task is written as 0 in shared memory.
    pub(crate) generation: u32,
}

impl TaskId {
    /// As one word, never 0.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// From a word another process wrote; whether such a task exists is for the pool to say.
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// A worker process: its seat in the shared tables, and which of the processes that sat there it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    /// Its place in the shared tables, and its name on the board.
    pub seat: u16,
    /// Counts the processes that have sat there.
    pub generation: u32,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seat, self.generation)
    }
}

/// An inter-process task queue of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

/// The lane of the board whose items run alone.
pub const ALONE_LANE: u16 = u16::MAX;

/// One `map`, or all single submissions together: what queues are fair between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub(crate) u32);

impl CallId {
    /// The call that all single submissions belong to. It never ends.
    pub const SINGLES: Self = Self(0);
    /// Stands for the tasks that run alone, whatever call they belong to, where they wait.
    pub(crate) const SUSPECTS: Self = Self(u32::MAX);

    /// The lane of the board on which this call competes with others.
    pub(crate) fn lane(self) -> u16 {
        match self {
            Self::SINGLES => 0,
            Self::SUSPECTS => ALONE_LANE,
            Self(call) => (call % u32::from(ALONE_LANE - 1)) as u16 + 1,
        }
    }
}
