//! Cancelling: off the queue, off the board, or in the worker that has the task, and what if that does not let go.

use std::time::Duration;

use super::{Pool, Timer};
use crate::event::{Output, Place};
use crate::id::{CallId, Moment, TaskId};
use crate::stats::Cause;
use crate::task::{Outcome, Task, TaskState, Wish};

/// The least time until a cancelled task is looked at again whose worker is not known yet.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Pool {
    /// Asks for a task to be cancelled. Its outcome comes as for any other: at once if it never started, else when
    /// its worker has answered, or after the grace.
    pub fn cancel(&mut self, now: Moment, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id).filter(|task| task.wish == Wish::Run) else {
            return;
        };
        let until = now + self.config.grace;
        task.wish = Wish::Cancel { until };
        let (state, queue) = (task.state, task.brief.queue);
        match state {
            TaskState::Waiting | TaskState::Judged { .. } => return self.finish(now, id, Outcome::Cancelled),
            // It is taken off the board as soon as the driver has said where it is.
            TaskState::Posting => (),
            TaskState::Posted { slot, index } => {
                self.outputs.push_back(Output::Retract { task: id, place: Place { queue, slot, index } });
            }
            TaskState::Taken { worker } => self.outputs.push_back(Output::Cancel { worker, task: id }),
        }
        self.timers.insert((until, Timer::CancelGrace(id)));
    }

    /// Cancels every task of a call and ends it.
    pub fn cancel_call(&mut self, now: Moment, call: CallId) {
        self.cancel_where(now, |task| task.brief.call == call);
        self.end_call(now, call);
    }

    /// Cancels every task of a call whose token is larger, and ends the call.
    pub fn cancel_call_after(&mut self, now: Moment, call: CallId, token: u64) {
        self.cancel_where(now, |task| task.brief.call == call && task.token > token);
        self.end_call(now, call);
    }

    fn cancel_where(&mut self, now: Moment, is_meant: impl Fn(&Task) -> bool) {
        let meant = self.tasks.iter().filter(|(_, task)| is_meant(task));
        let (running, others): (Vec<_>, Vec<_>) =
            meant.partition(|(_, task)| matches!(task.state, TaskState::Taken { .. }));
        // A worker whose tasks are cancelled takes others, so those that have not started are taken off the board first.
        let ids: Vec<_> = others.into_iter().chain(running).map(|(id, _)| id).collect();
        for id in ids {
            self.cancel(now, id);
        }
    }

    pub(super) fn retracted(&mut self, now: Moment, id: TaskId) {
        if matches!(self.tasks.get(id), Some(task) if matches!(task.state, TaskState::Posted { .. })) {
            self.finish(now, id, Outcome::Cancelled);
        }
    }

    pub(super) fn owned(&mut self, now: Moment, id: TaskId, seat: u16) {
        let Some(worker) = self.workers.seated(seat) else {
            // The board names somebody who is not there: nobody will ever answer for it.
            return self.finish(now, id, Outcome::Cancelled);
        };
        if let Some(task) = self.tasks.get_mut(id) {
            task.state = TaskState::Taken { worker };
            self.outputs.push_back(Output::Cancel { worker, task: id });
        }
    }

    /// After the grace the caller waits no longer, and the worker gets the same time again to let go of the task, or
    /// to leave. After that it is killed: it would be lost to all other tasks.
    pub(super) fn cancel_overdue(&mut self, now: Moment, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        // Not at once, so that even without any grace there is time to hear where it is.
        let until = now + self.config.grace.max(LOOK_AGAIN);
        match (task.wish, task.state) {
            (Wish::Forget { .. }, TaskState::Taken { worker }) => {
                self.blame(worker, Cause::Overdue);
                self.outputs.push_back(Output::Kill { worker, gently: false });
            }
            // Where it is will be known once the driver has tried to take it off the board.
            (Wish::Forget { .. }, _) => {
                task.wish = Wish::Forget { until };
                self.timers.insert((until, Timer::CancelGrace(id)));
            }
            _ => {
                task.wish = Wish::Forget { until };
                let (call, token) = (task.brief.call, task.token);
                self.forsake(id);
                self.timers.insert((until, Timer::CancelGrace(id)));
                self.answer(id, call, token, Outcome::Cancelled);
                self.finish_if_done(now);
            }
        }
    }
}
