//! The undertaker: what becomes of the tasks of a worker that is gone.

use std::collections::BTreeSet;

use super::{Pool, Timer};
use crate::event::{Dead, Output, Place, Report};
use crate::id::{CallId, Moment, TaskId, WorkerId};
use crate::supervise::{Exit, Stage, StartError};
use crate::task::{Loss, OnDeath, Outcome, TaskState, Wish};
use crate::worker::OVERDUE_EXITCODE;

/// Worth a word, whatever else became of the worker.
const OVERDUE: Exit = Exit::Code(OVERDUE_EXITCODE);

/// Workers that a task may kill while running alone.
const POISON_DEATHS: u32 = 3;

/// What became of a task whose worker died.
enum Bereaved {
    Retried,
    Lost,
    /// Its host is to say which.
    Judged,
    /// Nobody wanted it any more.
    Cancelled,
}

impl Pool {
    /// A worker's process is gone: gives back what it had not started, and retries or fails what it had.
    pub(super) fn exited(&mut self, now: Moment, dead: &Dead) {
        let Some(worker) = self.workers.remove(dead.worker) else {
            return;
        };
        self.timers.retain(|(_, timer)| *timer != Timer::Kill(dead.worker));
        for place in &dead.claimed {
            if let Some(id) = self.claimed_at(*place, dead.worker) {
                self.give_back(id);
            }
        }
        let loss = Loss { worker: dead.worker, pid: worker.pid, exit: dead.exit, attempt: 1, poison: false };
        self.forget_asker(dead.worker);
        let (mut retried, mut lost, mut judged) = (0, 0, 0);
        let running = self.running_in(dead);
        // One that left because of a task took others with it that are not to blame.
        let alone = running.len() == 1 && dead.exit != OVERDUE;
        for id in &running {
            match self.bereave(*id, loss, alone) {
                Bereaved::Retried => retried += 1,
                Bereaved::Lost => lost += 1,
                Bereaved::Judged => judged += 1,
                Bereaved::Cancelled => (),
            }
        }
        self.counts.retried += retried as u64;
        let bereaved = retried + lost + judged;
        self.count_gone(&worker, bereaved);
        match worker.stage {
            Stage::Starting => {
                self.start_failed(now, worker.error.unwrap_or(StartError::Exited(dead.exit)));
            }
            Stage::Stopping if bereaved == 0 && dead.exit != OVERDUE => (),
            Stage::Retiring if bereaved == 0 && matches!(dead.exit, Exit::Code(0) | Exit::Unknown) => (),
            Stage::Ready | Stage::Retiring | Stage::Stopping => {
                let (worker, pid, exit) = (dead.worker, worker.pid, dead.exit);
                self.outputs.push_back(Output::Report(Report::Died { worker, pid, exit, retried, lost, judged }));
            }
        }
        self.start_workers(now);
        self.renew(now);
        self.finish_if_done(now);
    }

    /// Lets a task whose worker died while running it run again, or ends it. One that runs again does so alone, as it may
    /// have been the cause; and only a death while it was alone counts against it.
    fn bereave(&mut self, id: TaskId, loss: Loss, alone: bool) -> Bereaved {
        let Some(task) = self.tasks.get_mut(id) else {
            return Bereaved::Cancelled;
        };
        if task.wish != Wish::Run {
            self.end(id, Outcome::Cancelled);
            return Bereaved::Cancelled;
        }
        // Whoever has called the pool, or is such a call, is never alone for sure. Each death counts against it, or it
        // might be run again for ever.
        let is_nested = task.brief.call.is_nested();
        let counts = alone || is_nested || self.broods.has(id);
        task.deaths_alone += u32::from(alone);
        let poison = task.deaths_alone == POISON_DEATHS;
        let lost = Outcome::Lost(Loss { attempt: task.attempt, poison, ..loss });
        if poison || task.brief.on_death == OnDeath::End || task.retries == 0 {
            self.end(id, lost);
            return Bereaved::Lost;
        }
        // Alone it might wait for workers that never are: tasks that wait for it keep them.
        task.suspect = !is_nested;
        if task.brief.on_death == OnDeath::Judge {
            self.ask_host(id, lost, u32::from(counts));
            return Bereaved::Judged;
        }
        task.retries -= u32::from(counts);
        task.attempt += 1;
        self.forsake(id);
        self.give_back(id);
        Bereaved::Retried
    }

    /// Lets a task run again, or ends it, that has left its board in the name of nobody who is there. Whether it was
    /// started nobody knows, so it counts as that.
    pub(super) fn bereave_of_nobody(&mut self, now: Moment, id: TaskId, seat: Option<u16>) {
        let worker = WorkerId { seat: seat.unwrap_or(u16::MAX), generation: 0 };
        let loss = Loss { worker, pid: None, exit: Exit::Unknown, attempt: 1, poison: false };
        if let Bereaved::Retried = self.bereave(id, loss, false) {
            self.counts.retried += 1;
        }
        self.finish_if_done(now);
    }

    /// The tasks that a dead worker had started and not finished.
    pub(super) fn running_in(&self, dead: &Dead) -> BTreeSet<TaskId> {
        let on_board = dead.taken.iter().filter_map(|place| self.at(*place));
        let has = |id: &TaskId| match self.tasks.get(*id).map(|task| task.state) {
            Some(TaskState::Taken { worker }) => worker == dead.worker,
            // Where it is on a board, the board tells who has it; a lease that says otherwise is a lie.
            Some(TaskState::Posted { .. } | TaskState::Waiting | TaskState::Posting | TaskState::Judged { .. })
            | None => false,
        };
        let leased = dead.leased.iter().map(|bits| TaskId::from_bits(*bits)).filter(has);
        let known = self.tasks.iter().filter(|(_, task)| task.state == TaskState::Taken { worker: dead.worker });
        on_board.chain(leased).chain(known.map(|(id, _)| id)).collect()
    }

    /// The task at a place that a dead worker had claimed. One that was to be cancelled is known as the worker's already,
    /// though it was never started.
    fn claimed_at(&self, place: Place, worker: WorkerId) -> Option<TaskId> {
        let Place { queue, slot, index } = place;
        let id = self.queues.get(usize::from(queue.0))?.task_at(slot, index)?;
        let state = self.tasks.get(id)?.state;
        (state == TaskState::Posted { slot, index } || state == TaskState::Taken { worker }).then_some(id)
    }

    /// The task that is still posted at a place.
    pub(super) fn at(&self, place: Place) -> Option<TaskId> {
        let Place { queue, slot, index } = place;
        let id = self.queues.get(usize::from(queue.0))?.task_at(slot, index)?;
        let task = self.tasks.get(id)?;
        (task.state == TaskState::Posted { slot, index }).then_some(id)
    }

    /// Lets a task wait again, first in its queue, or ends it if nobody wants it any more.
    pub(super) fn give_back(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if task.wish != Wish::Run {
            return self.end(id, Outcome::Cancelled);
        }
        task.state = TaskState::Waiting;
        let call = if task.suspect { CallId::SUSPECTS } else { task.brief.call };
        let queue = task.brief.queue;
        self.queues[usize::from(queue.0)].push_front(call, id);
    }
}
