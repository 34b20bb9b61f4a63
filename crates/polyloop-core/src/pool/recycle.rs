//! Recycling: workers that are replaced while they are well, and what is counted of those that are not.

use std::time::Duration;

use super::{Mode, Pool, Timer};
use crate::event::Output;
use crate::id::{Moment, WorkerId};
use crate::stats::{Cause, Counts};
use crate::supervise::{Stage, Worker, WorkerView};
use crate::worker::Stop;

/// A worker may be replaced earlier than its age demands by one part of so many, so that not all are at once.
const JITTER_PARTS: u32 = 10;

impl Pool {
    /// What the pool has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The workers that have a process or are about to.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.workers.iter().map(|worker| WorkerView {
            id: worker.id,
            queue: worker.queue,
            pid: worker.pid,
            stage: worker.stage,
            since: worker.since,
            done: worker.done,
        })
    }

    pub(super) fn retiring(&mut self, now: Moment, id: WorkerId, cause: Cause) {
        if let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.stage == Stage::Ready) {
            worker.stage = Stage::Retiring;
            worker.leaves = Some(cause);
            worker.waits_for_successor = false;
            self.start_workers(now);
        }
    }

    /// Limits the age of a worker that is ready, and sends away one that had waited for it.
    pub(super) fn succeed(&mut self, now: Moment, id: WorkerId) {
        if let Some(age) = self.config.max_age {
            self.timers.insert((now + age - jitter(id, age), Timer::Age(id)));
        }
        let Some(queue) = self.workers.get(id).map(|worker| worker.queue) else {
            return;
        };
        let waits = |worker: &&Worker| worker.queue == queue && worker.waits_for_successor;
        let old = self.workers.iter().find(waits).map(|worker| (worker.id, worker.leaves));
        if let Some((old, cause)) = old {
            self.relieve(now, old, cause.unwrap_or(Cause::Age));
        }
    }

    /// A worker is as old as it may become: it goes on until its successor is ready, if there may and can be one.
    pub(super) fn aged(&mut self, now: Moment, id: WorkerId) {
        if matches!(self.mode, Mode::Open | Mode::Closing) {
            self.replace(now, id, Cause::Age);
        }
    }

    /// Has another take the place of a worker that is ready.
    pub(super) fn replace(&mut self, now: Moment, id: WorkerId, cause: Cause) {
        let has_seat = self.config.overlap && self.workers.has_free_seat();
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.stage == Stage::Ready) else {
            return;
        };
        worker.waits_for_successor = has_seat;
        worker.leaves = Some(cause);
        if has_seat {
            self.start_workers(now);
        } else {
            self.relieve(now, id, cause);
        }
    }

    fn relieve(&mut self, now: Moment, id: WorkerId, cause: Cause) {
        self.outputs.push_back(Output::Stop { worker: id, stop: Stop::WhenDone });
        self.retiring(now, id, cause);
    }

    /// Someone is about to end this worker, and why.
    pub(super) fn blame(&mut self, id: WorkerId, cause: Cause) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.leaves = Some(cause);
        }
    }

    /// Counts a worker that is gone, and its tasks that run again.
    pub(super) fn count_gone(&mut self, worker: &Worker, bereaved: usize) {
        let cause = match (worker.stage, worker.leaves) {
            (_, Some(cause @ (Cause::Overdue | Cause::Garbage))) => cause,
            (Stage::Starting | Stage::Stopping, _) => return,
            (Stage::Retiring, Some(cause)) if bereaved == 0 => cause,
            (Stage::Ready | Stage::Retiring, _) => Cause::Died,
        };
        self.counts.replaced(cause);
    }
}

/// Some part of `age`, another for each worker.
fn jitter(id: WorkerId, age: Duration) -> Duration {
    let bits =
        (u64::from(id.seat) << 32 | u64::from(id.generation)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let part = (bits >> 32) as u32;
    (age / JITTER_PARTS).mul_f64(f64::from(part) / f64::from(u32::MAX))
}
