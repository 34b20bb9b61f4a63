//! What a pool is made from, and what its host hears of it.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use polyloop_core::{CallId, Outcome, Payload, QueueIndex, Report, StartError, TaskId, WorkerId};
use thiserror::Error;

use super::Values;

/// More than any wait of a pool: longer ones are this.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The shape of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Worker processes, at least 1.
    pub processes: u16,
    /// Task queues, 1 to `processes`.
    pub queues: u16,
    /// Items a worker runs at the same time, at least 1.
    pub concurrency: u32,
    /// Items a worker runs before it is replaced; 0 for no limit.
    pub max_tasks: u64,
    /// Bytes of memory of its own that a worker may hold at the end of an item before it is replaced; 0 for no limit.
    pub max_memory: u64,
    /// Bytes that the outcome of an item may have; a worker that sends more is taken for a rogue.
    pub max_reply: u64,
    /// How old a worker may become before it is replaced; up to a tenth earlier.
    pub max_age: Option<Duration>,
    /// Whether the successor of a worker may be started before that is gone.
    pub overlap: bool,
    /// How long a worker's loop may be blocked before that is told.
    pub block_warning: Option<Duration>,
    /// How long whoever is asked to end may take.
    pub grace: Duration,
}

impl DriverConfig {
    /// The same with times that can be added to the present.
    pub(crate) fn within_bounds(self) -> Self {
        let bounded = |time: Duration| time.min(WAIT_MAX);
        Self {
            grace: bounded(self.grace),
            max_age: self.max_age.map(bounded),
            block_warning: self.block_warning.map(bounded),
            ..self
        }
    }
}

/// Why a pool could not be made or driven.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The shape is impossible.
    #[error("{0}")]
    Config(&'static str),
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

/// What the host must do to start a worker.
#[derive(Debug)]
pub struct StartOrder {
    /// The worker to be. Report it with [`Driver::started`](super::Driver::started) or [`Driver::not_started`](super::Driver::not_started).
    pub worker: WorkerId,
    /// The queue it will serve.
    pub queue: QueueIndex,
    /// For [`crate::WorkerLink::connect`] in the new process.
    pub socket: OwnedFd,
    /// For [`crate::die_with_parent`] in the new process.
    pub lifeline: OwnedFd,
    /// The other ends, which stay here, until [`Driver::exited`](super::Driver::exited) or [`Driver::not_started`](super::Driver::not_started). A forked child must close
    /// them: as long as anyone has them, the worker can't notice that they are closed here.
    pub our_ends: [RawFd; 2],
}

/// What the driver tells its host.
#[derive(Debug)]
pub enum Event {
    /// Start a process.
    Start(StartOrder),
    /// A worker's process has ended: collect its exit status and report it with [`Driver::exited`](super::Driver::exited).
    Reap(WorkerId),
    /// Tasks have returned.
    Returned(Values),
    /// A task has ended in another way, or with a value that came in pieces.
    Deliver {
        /// Which task.
        task: TaskId,
        /// The call it belonged to.
        call: CallId,
        /// As submitted.
        token: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A value of a stream has come. Answered, once it is taken, by [`Driver::taken`](super::Driver::taken).
    Yield {
        /// Which task.
        task: TaskId,
        /// As submitted.
        token: u64,
        /// The value.
        value: Payload,
    },
    /// A task failed in a way that its host may not want to leave at. Answered by [`Driver::again`](super::Driver::again) or
    /// [`Driver::settled`](super::Driver::settled).
    Judge {
        /// Which task.
        task: TaskId,
        /// The call it belongs to.
        call: CallId,
        /// As submitted.
        token: u64,
        /// How it would end.
        outcome: Outcome,
    },
    /// A worker has logged something.
    Log {
        /// Its process.
        pid: Option<u32>,
        /// Records that were dropped since the one before.
        dropped: u64,
        /// As its host wrote it; empty if only those are to be told.
        record: Vec<u8>,
    },
    /// News for a log.
    Report(Report),
    /// A worker runs something that has kept its loop from answering. Comes once for each time.
    Blocked {
        /// Which.
        worker: WorkerId,
        /// Its process.
        pid: Option<u32>,
        /// For how long so far.
        blocked: Duration,
    },
    /// A worker wrote what no correct worker writes, and is being replaced.
    Garbage {
        /// Which.
        worker: WorkerId,
        /// What was wrong.
        problem: String,
    },
    /// There are as many workers that take work as there should be. Comes when one has become ready.
    Up,
    /// No worker can be started: every task has ended with this error.
    GaveUp(StartError),
    /// Everything has ended. Comes once, and last.
    Closed,
}
