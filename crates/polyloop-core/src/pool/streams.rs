//! Streams: tasks that give values while they run, and are given credit as those are taken.

use super::Pool;
use crate::event::Output;
use crate::id::{TaskId, WorkerId};
use crate::payload::Payload;
use crate::stream::Unasked;
use crate::task::{TaskState, Wish};

impl Pool {
    /// A worker gives a value of a stream. From the first one on the task is not run again: it would repeat what its
    /// caller has seen.
    ///
    /// # Errors
    /// [`Unasked`]: no correct worker gives this. Nothing is kept of it.
    pub fn yielded(&mut self, worker: WorkerId, id: TaskId, value: Payload) -> Result<(), Unasked> {
        let Some(task) = self.tasks.get_mut(id).filter(|_| self.workers.get(worker).is_some()) else {
            return Ok(());
        };
        match task.state {
            TaskState::Taken { worker: owner } if owner == worker => (),
            TaskState::Posted { .. } => task.state = TaskState::Taken { worker },
            // From a worker that does not have it, or no more.
            TaskState::Taken { .. } | TaskState::Posting | TaskState::Waiting | TaskState::Judged { .. } => {
                return Ok(());
            }
        }
        let intake = task.intake.as_mut().ok_or(Unasked::NoStream(id))?;
        if !intake.arrive(value.len()) {
            return Err(Unasked::NoCredit(id));
        }
        task.retries = 0;
        if task.wish == Wish::Run {
            self.outputs.push_back(Output::Yield { task: id, token: task.token, value });
        }
        Ok(())
    }

    /// The caller has taken the next value of a stream. Says whether its worker is to be given credit.
    pub fn taken(&mut self, id: TaskId) -> bool {
        if let Some(task) = self.tasks.get_mut(id)
            && let Some(values) = task.intake.as_mut().and_then(|intake| intake.take())
            && let TaskState::Taken { worker } = task.state
        {
            self.outputs.push_back(Output::Credit { worker, task: id, values });
            return true;
        }
        false
    }
}
