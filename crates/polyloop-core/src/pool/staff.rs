//! The staff: when workers start, how they are sent away, and when the pool is over.

use super::nested::Broods;
use super::{Mode, Pool, Timer};
use crate::event::{Output, Report};
use crate::id::{CallId, Moment, QueueIndex, WorkerId};
use crate::schedule::Queue;
use crate::supervise::{Stage, StartError, Verdict};
use crate::task::{Outcome, Task};
use crate::worker::Stop;

impl Pool {
    pub(super) fn started(&mut self, now: Moment, id: WorkerId, pid: u32) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        worker.pid = Some(pid);
        // It was told to stop before it had a process to be signalled, or killed. Merely sent away, it leaves by itself.
        if worker.stage == Stage::Stopping && self.mode != Mode::Open {
            if self.mode != Mode::Closing {
                self.outputs.push_back(Output::Kill { worker: id, gently: true });
            }
            self.timers.insert((now + self.config.grace, Timer::Kill(id)));
        }
    }

    pub(super) fn not_started(&mut self, now: Moment, id: WorkerId, error: StartError) {
        if let Some(worker) = self.workers.remove(id) {
            // One that was sent away meanwhile is not missed.
            if worker.stage == Stage::Starting {
                self.start_failed(now, error);
            }
            self.start_workers(now);
            self.finish_if_done(now);
        }
    }

    pub(super) fn ready(&mut self, now: Moment, id: WorkerId) {
        if self.workers.get(id).is_some() && self.workers.ready(id) {
            if self.mode == Mode::Open {
                self.outputs.push_back(Output::Report(Report::Recovered));
            }
            // The others need not wait any longer.
            self.start_workers(now);
        }
        self.succeed(now, id);
        self.renew(now);
        self.report_up();
    }

    pub(super) fn start_failed(&mut self, now: Moment, error: StartError) {
        if !matches!(self.mode, Mode::Open | Mode::Closing) {
            return;
        }
        let was_failing = self.workers.is_failing();
        match self.workers.failed(now, error.clone()) {
            Verdict::GiveUp(error) => {
                self.mode = Mode::Broken(error.clone());
                self.outputs.push_back(Output::GaveUp(error.clone()));
                self.end_all(now, &Outcome::NoWorkers(error));
            }
            Verdict::TryAgain => {
                if !was_failing {
                    self.outputs.push_back(Output::Report(Report::Degraded(error)));
                }
                if let Some(at) = self.workers.next_start(now) {
                    self.timers.insert((at, Timer::Start));
                }
            }
        }
    }

    /// Starts workers where they are missing and there is, or may be, work for them.
    pub(super) fn start_workers(&mut self, now: Moment) {
        let wanted = match self.mode {
            Mode::Open => true,
            Mode::Closing => self.has_work(),
            Mode::Terminating | Mode::Broken(_) => false,
        };
        while let Some(worker) = self.workers.start_next(now, |_| wanted) {
            let queue = self.workers.get(worker).map_or(QueueIndex(0), |worker| worker.queue);
            self.outputs.push_back(Output::Start { worker, queue });
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.unanswered > 0 || self.calls.iter().any(|(id, call)| *id != CallId::SINGLES && call.open)
    }

    /// Ends every task with `outcome` and sends every worker away.
    pub(super) fn end_all(&mut self, now: Moment, outcome: &Outcome) {
        self.outputs.retain(|output| !concerns_a_task(output));
        self.queues.iter_mut().for_each(Queue::forget_waiting);
        for id in self.tasks.ids() {
            if let Some(task) = self.tasks.remove(id).filter(Task::is_awaited) {
                self.answer(id, task.brief.call, task.token, outcome.clone());
            }
        }
        self.calls.retain(|call, _| *call == CallId::SINGLES);
        self.broods = Broods::default();
        self.timers.clear();
        for worker in self.stop_workers(Stop::Now) {
            self.outputs.push_back(Output::Kill { worker, gently: true });
            self.timers.insert((now + self.config.grace, Timer::Kill(worker)));
        }
        self.finish_if_done(now);
    }

    pub(super) fn stop_workers(&mut self, stop: Stop) -> Vec<WorkerId> {
        let ids: Vec<_> = self.workers.iter().map(|worker| worker.id).collect();
        for id in &ids {
            if let Some(worker) = self.workers.get_mut(*id) {
                worker.stage = Stage::Stopping;
            }
            self.outputs.push_back(Output::Stop { worker: *id, stop });
        }
        ids
    }

    /// Sends the workers away once nothing is left to do, and ends the pool once they are gone.
    pub(super) fn finish_if_done(&mut self, now: Moment) {
        self.cancel_forsaken(now);
        let ending = self.mode != Mode::Open && !self.has_work();
        if !ending || self.over {
            return;
        }
        if self.mode == Mode::Closing && self.workers.iter().any(|worker| worker.stage != Stage::Stopping) {
            for worker in self.stop_workers(Stop::WhenDone) {
                self.timers.insert((now + self.config.grace, Timer::Kill(worker)));
            }
        }
        if self.workers.is_empty() {
            self.over = true;
            self.timers.clear();
            self.outputs.push_back(Output::Closed);
        }
    }
}

/// Whether this would have been done for the sake of one task, which is not needed once all of them have ended.
fn concerns_a_task(output: &Output) -> bool {
    matches!(
        output,
        Output::Post { .. }
            | Output::Retract { .. }
            | Output::Cancel { .. }
            | Output::Credit { .. }
            | Output::Judge { .. }
    )
}
