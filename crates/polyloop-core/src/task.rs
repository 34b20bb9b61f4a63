//! Tasks: what they carry, the states they move through, and how they end.
//!
//! ```text
//!  Waiting --> Posting --> Posted --its slot is reclaimed--> Taken --outcome--> (gone)
//!     ^                      |  `------------- outcome -------------------------^
//!     `---------- its worker died, or it was retracted ---------'
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::frame::Terms;
use crate::id::{CallId, Moment, QueueIndex, TaskId, WorkerId};
use crate::payload::Payload;
use crate::stream::Intake;
use crate::supervise::{Exit, StartError};

/// What becomes of a task whose worker dies while it may be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeath {
    /// It ends.
    End,
    /// It runs again.
    Again,
    /// The host says which of the two.
    Judge,
}

impl OnDeath {
    /// For a host that says beforehand whether a death is a reason to run again.
    pub fn again_if(is_reason: bool) -> Self {
        if is_reason { Self::Again } else { Self::End }
    }
}

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The call it belongs to.
    pub call: CallId,
    /// The queue it goes to.
    pub queue: QueueIndex,
    /// The function, as the worker's codec reads it.
    pub function: Arc<[u8]>,
    /// The arguments, as the worker's codec reads them.
    pub arguments: Payload,
    /// How many times it may still be run again.
    pub retries: u32,
    /// Whether the death of its worker is a reason to.
    pub on_death: OnDeath,
    /// Whether the host judges when it raises or runs out of time.
    pub judged: bool,
    /// Whether it gives values while it runs.
    pub is_stream: bool,
    /// Which run of it this is, from 1.
    pub attempt: u32,
    /// How long a run may take.
    pub timeout: Option<Duration>,
    /// Given back with the outcome.
    pub token: u64,
}

/// What the tasks of one submission have in common.
#[derive(Clone, Debug)]
pub(crate) struct Brief {
    pub(crate) call: CallId,
    pub(crate) queue: QueueIndex,
    pub(crate) function: Arc<[u8]>,
    pub(crate) on_death: OnDeath,
    pub(crate) judged: bool,
    pub(crate) is_stream: bool,
    pub(crate) timeout: Option<Duration>,
}

/// What goes to a worker for a task, as its codec reads it.
#[derive(Clone, Copy, Debug)]
pub struct Parcel<'a> {
    /// The function.
    pub function: &'a Arc<[u8]>,
    /// The arguments.
    pub arguments: &'a Payload,
    /// How it is to be run.
    pub terms: Terms,
}

/// How a task ended. Every accepted task gets exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned; the value as the worker's codec wrote it.
    Value(Payload),
    /// It raised; the exception as the worker's codec wrote it.
    Raised(Payload),
    /// It was cancelled, by the caller or by itself.
    Cancelled,
    /// It ran longer than its timeout.
    TimedOut,
    /// The worker could not make the function out of its bytes; the reason as the worker's codec wrote it.
    Rejected(Payload),
    /// Its worker died while running it, and no retry was left.
    Lost(Loss),
    /// The pool was terminated first.
    Terminated,
    /// No worker could be started.
    NoWorkers(StartError),
}

/// The end of a worker, as told to a task it was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The worker.
    pub worker: WorkerId,
    /// Its process, where it was known.
    pub pid: Option<u32>,
    /// How it ended.
    pub exit: Exit,
    /// Which run of the task this was, from 1.
    pub attempt: u32,
    /// The task kills its worker whenever it runs alone.
    pub poison: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskState {
    Waiting,
    /// The driver has been told to put it on the board.
    Posting,
    Posted {
        slot: u32,
        index: u32,
    },
    Taken {
        worker: WorkerId,
    },
    /// It failed, and the host is to say whether it runs again, which takes so many of its retries.
    Judged {
        cost: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    /// Cancelled by the caller, who is told by this moment at the latest.
    Cancel {
        until: Moment,
    },
    /// Cancelled, and the caller has been told; kept until its worker lets go of it, or until then.
    Forget {
        until: Moment,
    },
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) brief: Arc<Brief>,
    pub(crate) arguments: Payload,
    pub(crate) token: u64,
    /// How many times it may still be run again.
    pub(crate) retries: u32,
    /// Which run of it this is, from 1.
    pub(crate) attempt: u32,
    pub(crate) state: TaskState,
    pub(crate) wish: Wish,
    /// Of a stream; boxed, as most tasks are none.
    pub(crate) intake: Option<Box<Intake>>,
    /// A worker died while running it, so it runs alone from then on.
    pub(crate) suspect: bool,
    /// Workers that died while running nothing else.
    pub(crate) deaths_alone: u32,
}

impl Task {
    pub(crate) fn new(brief: Arc<Brief>, arguments: Payload, token: u64, retries: u32, attempt: u32) -> Self {
        let (state, wish) = (TaskState::Waiting, Wish::Run);
        let intake = brief.is_stream.then(Box::default);
        Self { brief, arguments, token, retries, attempt, state, wish, intake, suspect: false, deaths_alone: 0 }
    }

    /// Whether the host has a say in whether it ends so.
    pub(crate) fn is_judged(&self, outcome: &Outcome) -> bool {
        let has_say = match outcome {
            // A worker judges the calls of its tasks by itself.
            _ if self.brief.call.is_nested() => false,
            Outcome::Rejected(_) => true,
            Outcome::Raised(_) | Outcome::TimedOut => self.brief.judged && self.retries > 0,
            _ => false,
        };
        has_say && self.wish == Wish::Run
    }

    /// Whether its caller still waits to be told how it ended.
    pub(crate) fn is_awaited(&self) -> bool {
        !matches!(self.wish, Wish::Forget { .. })
    }
}

#[derive(Debug)]
struct Seat {
    generation: u32,
    task: Option<Task>,
}

/// All unfinished tasks, by id, in constant time.
#[derive(Debug, Default)]
pub(crate) struct TaskTable {
    seats: Vec<Seat>,
    free: Vec<u32>,
}

impl TaskTable {
    pub(crate) fn insert(&mut self, task: Task) -> TaskId {
        if let Some(index) = self.free.pop() {
            let seat = &mut self.seats[index as usize];
            seat.task = Some(task);
            return TaskId { index, generation: seat.generation };
        }
        let index = self.seats.len() as u32;
        self.seats.push(Seat { generation: 1, task: Some(task) });
        TaskId { index, generation: 1 }
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&Task> {
        self.seats.get(id.index as usize).filter(|seat| seat.generation == id.generation)?.task.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.seats.get_mut(id.index as usize).filter(|seat| seat.generation == id.generation)?.task.as_mut()
    }

    pub(crate) fn remove(&mut self, id: TaskId) -> Option<Task> {
        let seat = self.seats.get_mut(id.index as usize).filter(|seat| seat.generation == id.generation)?;
        let task = seat.task.take()?;
        seat.generation = seat.generation.wrapping_add(1).max(1);
        self.free.push(id.index);
        Some(task)
    }

    /// The same task under another id, so that what still comes for this one finds nothing.
    pub(crate) fn renew(&mut self, id: TaskId) -> Option<TaskId> {
        let task = self.remove(id)?;
        Some(self.insert(task))
    }

    pub(crate) fn ids(&self) -> Vec<TaskId> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.seats.iter().enumerate().filter_map(|(index, seat)| {
            let id = TaskId { index: index as u32, generation: seat.generation };
            seat.task.as_ref().map(|task| (id, task))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_never_finds_a_new_task() {
        let brief = Arc::new(Brief {
            call: CallId::SINGLES,
            queue: QueueIndex(0),
            function: Arc::from(*b"f"),
            on_death: OnDeath::Again,
            judged: false,
            is_stream: false,
            timeout: None,
        });
        let task = || Task::new(Arc::clone(&brief), Payload::new(), 0, 0, 1);
        let mut table = TaskTable::default();
        let old = table.insert(task());
        assert!(table.remove(old).is_some());
        let new = table.insert(task());
        assert_eq!(old.index, new.index);
        assert!(table.get(old).is_none() && table.remove(old).is_none() && table.get(new).is_some());
        assert_ne!(TaskId::from_bits(new.to_bits()), old);
        assert_eq!(table.ids(), [new]);
    }
}
