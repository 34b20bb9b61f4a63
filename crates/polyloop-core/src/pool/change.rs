//! Changes of the staff that its user asks for: how many there are, and all of them anew.

use super::{Mode, Pool};
use crate::event::Output;
use crate::id::{Moment, WorkerId};
use crate::stats::Cause;
use crate::supervise::{Stage, Worker};
use crate::worker::Stop;

impl Pool {
    /// Has so many workers from now on, at least one for each queue and no more than there are seats. Returns those
    /// that are sent away, which finish what they run.
    pub fn resize(&mut self, now: Moment, processes: u16) -> Vec<WorkerId> {
        if self.mode != Mode::Open {
            return Vec::new();
        }
        self.workers.set_targets(processes);
        let surplus = self.workers.surplus();
        for id in &surplus {
            self.dismiss(*id);
        }
        self.start_workers(now);
        self.renew(now);
        surplus
    }

    /// Replaces all workers by new ones, one after the other: each leaves when its successor is ready, or, where they
    /// must not overlap, before that is started. Returns those that will be replaced.
    pub fn restart(&mut self, now: Moment) -> Vec<WorkerId> {
        if self.mode != Mode::Open {
            return Vec::new();
        }
        let stays = |worker: &&Worker| matches!(worker.stage, Stage::Starting | Stage::Ready);
        let old: Vec<_> = self.workers.iter().filter(stays).map(|worker| worker.id).collect();
        self.renewed.extend(&old);
        self.renew(now);
        old
    }

    /// Whether there are as many workers that take work as there should be.
    pub fn is_up(&self) -> bool {
        self.workers.are_all_ready()
    }

    /// Begins with the next worker that is to be replaced, if the one before has its successor.
    pub(super) fn renew(&mut self, now: Moment) {
        let busy = self.workers.iter().any(|worker| worker.waits_for_successor);
        if self.renewed.is_empty() || self.mode != Mode::Open || busy || !self.is_up() {
            return;
        }
        let workers = &self.workers;
        self.renewed.retain(|id| workers.get(*id).is_some_and(|worker| worker.stage <= Stage::Ready));
        let next = self.renewed.iter().find(|id| workers.get(**id).is_some_and(|worker| worker.stage == Stage::Ready));
        if let Some(id) = next.copied() {
            self.renewed.remove(&id);
            self.replace(now, id, Cause::Restarted);
        }
    }

    pub(super) fn report_up(&mut self) {
        if self.mode == Mode::Open && self.is_up() {
            self.outputs.push_back(Output::Up);
        }
    }

    /// It finishes what it has. So does one that is being started, as far as is known here: it may have begun already.
    fn dismiss(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.stage = Stage::Stopping;
        worker.waits_for_successor = false;
        self.outputs.push_back(Output::Stop { worker: id, stop: Stop::WhenDone });
    }
}
