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

/// A call that a task makes of the pool that runs it: its number among the unanswered ones of its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NestedId(pub u32);

impl NestedId {
    /// As it is written where a frame names a task: no task has this generation.
    pub fn to_task(self) -> TaskId {
        TaskId { index: self.0, generation: 0 }
    }

    /// The call that a frame names in place of a task, if it does.
    pub fn from_task(task: TaskId) -> Option<Self> {
        (task.generation == 0).then_some(Self(task.index))
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
    /// In the numbers of calls whose tasks belong to tasks.
    pub(crate) const NESTED: u32 = 1 << 31;
    /// Stands for the tasks that run alone, whatever call they belong to, where they wait.
    pub(crate) const SUSPECTS: Self = Self(u32::MAX);

    /// Whether its tasks were submitted by tasks.
    pub fn is_nested(self) -> bool {
        self.0 & Self::NESTED != 0
    }

    /// The lane of the board on which this call competes with others.
    pub(crate) fn lane(self) -> u16 {
        match self {
            Self::SINGLES => 0,
            Self::SUSPECTS => ALONE_LANE,
            Self(call) => (call % u32::from(ALONE_LANE - 1)) as u16 + 1,
        }
    }
}
