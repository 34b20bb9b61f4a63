//! What goes into a pool and what comes out of it: plain data between the core and whoever drives it.

use thiserror::Error;

use crate::id::{CallId, NestedId, QueueIndex, TaskId, WorkerId};
use crate::payload::Payload;
use crate::stats::Cause;
use crate::supervise::{Exit, StartError};
use crate::task::Outcome;
use crate::worker::Stop;

/// Where an item stood on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The board's queue.
    pub queue: QueueIndex,
    /// The slot's number.
    pub slot: u32,
    /// The item's number in it.
    pub index: u32,
}

/// What the undertaker found of a dead worker, after its ring was drained.
#[derive(Clone, Debug)]
pub struct Dead {
    /// Who died.
    pub worker: WorkerId,
    /// How.
    pub exit: Exit,
    /// Items it had claimed and not started; they have been taken off the board.
    pub claimed: Vec<Place>,
    /// Items it had started that are still on the board.
    pub taken: Vec<Place>,
    /// The tasks in its leases, as bits.
    pub leased: Vec<u64>,
}

/// What the world tells the pool.
#[derive(Clone, Debug)]
pub enum Input {
    /// The process of a worker runs.
    Started {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// The process of a worker could not be started.
    NotStarted {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        error: StartError,
    },
    /// A worker is initialised and takes work.
    Ready(WorkerId),
    /// A worker's initialisation failed; it is about to leave.
    Failed {
        /// Which worker.
        worker: WorkerId,
        /// Why, as its codec wrote it.
        error: Vec<u8>,
    },
    /// A worker takes no more work, for a reason of its own.
    Retiring {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// A worker wrote what no correct worker writes; it is being killed.
    Garbage(WorkerId),
    /// A task ended in a worker.
    Outcome {
        /// Which worker.
        worker: WorkerId,
        /// Which task.
        task: TaskId,
        /// How.
        outcome: Outcome,
    },
    /// [`Output::Retract`] succeeded: the item is off the board and never starts.
    Retracted(TaskId),
    /// [`Output::Retract`] came too late: the worker in this seat has the item.
    Owned {
        /// Which task.
        task: TaskId,
        /// The owner's seat.
        seat: u16,
    },
    /// Every item of a slot has left it.
    Reclaimed {
        /// The board's queue.
        queue: QueueIndex,
        /// The slot's number.
        slot: u32,
        /// Who took each item, by seat.
        owners: Vec<Option<u16>>,
    },
    /// A worker's process is gone.
    Exited(Dead),
    /// [`Pool::poll_timeout`](crate::Pool::poll_timeout) has passed.
    Timeout,
}

/// What the pool tells the world to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Start a process for this worker.
    Start {
        /// The worker to be.
        worker: WorkerId,
        /// The queue it will serve.
        queue: QueueIndex,
    },
    /// Put these tasks, all of them and in order, into one free slot, and say with [`Pool::posted`](crate::Pool::posted) which it was.
    Post {
        /// The board's queue.
        queue: QueueIndex,
        /// The call they belong to.
        call: CallId,
        /// The lane on which they compete.
        lane: u16,
        /// The tasks; their bytes are at [`Pool::parcel_of`](crate::Pool::parcel_of).
        tasks: Vec<TaskId>,
    },
    /// Take an item off the board if nobody has claimed it, and report [`Input::Retracted`] or [`Input::Owned`].
    Retract {
        /// Which task.
        task: TaskId,
        /// Where it is.
        place: Place,
    },
    /// Tell a worker to cancel a task.
    Cancel {
        /// Which worker.
        worker: WorkerId,
        /// Which task.
        task: TaskId,
    },
    /// Tell a worker that so many values of a stream have been taken.
    Credit {
        /// Which worker.
        worker: WorkerId,
        /// Which task.
        task: TaskId,
        /// How many.
        values: u32,
    },
    /// Tell a worker to stop.
    Stop {
        /// Which worker.
        worker: WorkerId,
        /// How.
        stop: Stop,
    },
    /// Send a signal to a worker's process, if it still runs.
    Kill {
        /// Which worker.
        worker: WorkerId,
        /// Whether it can be caught: SIGTERM, else SIGKILL.
        gently: bool,
    },
    /// Give the caller a value of its stream. Answered, once it is taken, by [`Pool::taken`](crate::Pool::taken).
    Yield {
        /// Which task.
        task: TaskId,
        /// As submitted.
        token: u64,
        /// The value, as the worker's codec wrote it.
        value: Payload,
    },
    /// Tell a worker what came of a call that one of its tasks made.
    Answer {
        /// Which worker.
        worker: WorkerId,
        /// Which call.
        number: NestedId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Tell the caller how its task ended.
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
    /// A task failed in a way that its host may not want to leave at. Answered by [`Pool::again`](crate::Pool::again) or
    /// [`Pool::settled`](crate::Pool::settled).
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
    /// Something a person would want to know.
    Report(Report),
    /// There are as many workers that take work as there should be. Said when one has become ready.
    Up,
    /// No worker can be started: every task has ended with this error.
    GaveUp(StartError),
    /// All tasks have ended and all workers are gone. Comes once, and last.
    Closed,
}

/// News of the workers, for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A worker died although nobody told it to.
    Died {
        /// Which.
        worker: WorkerId,
        /// Its process.
        pid: Option<u32>,
        /// How.
        exit: Exit,
        /// Tasks that it was running and that will be run again.
        retried: usize,
        /// Tasks that it was running and that failed.
        lost: usize,
        /// Tasks that it was running and of which the host is to say.
        judged: usize,
    },
    /// Workers fail to start; the pool keeps trying.
    Degraded(StartError),
    /// Workers start again.
    Recovered,
    /// The pool was terminated with so many tasks unfinished.
    Terminated(usize),
}

/// Why a submission was not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// The pool takes no new work.
    #[error("the pool is closed")]
    Closed,
    /// The pool has no workers and can't get any.
    #[error("no worker can be started")]
    NoWorkers(StartError),
}
