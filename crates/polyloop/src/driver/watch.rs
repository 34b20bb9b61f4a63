//! What a person may ask of a running pool: its numbers, and whether a worker's loop is blocked.

use std::io;

use polyloop_core::{Counts, Look, LoopWatch, Moment, WorkerView};

use super::{Driver, Event};
use crate::link::Seat;

impl Driver {
    /// What the pool has done so far.
    pub fn counts(&self) -> Counts {
        self.pool.counts()
    }

    /// The workers that have a process or are about to, and how many items each runs.
    pub fn loads(&self) -> Vec<(WorkerView, u32)> {
        let load = |view: WorkerView| {
            let seat = self.link.seats.get(&view.id.seat).filter(|seat| seat.worker == view.id);
            (view, seat.map_or(0, |seat| seat.load().in_flight))
        };
        self.pool.workers().map(load).collect()
    }

    /// Bytes kept for the workers: of replies that are not whole, and of what waits for them to listen. However they
    /// behave, each accounts for no more than one reply, the tasks it holds and a few words for each.
    pub fn held_bytes(&self) -> usize {
        self.link.seats.values().map(Seat::held_bytes).sum()
    }

    /// How long the pool has lived: what [`WorkerView::since`] is to be compared with.
    pub fn age(&self) -> Moment {
        self.now()
    }

    /// When to look at the workers' loops: again and again while there are tasks.
    pub(super) fn plan_watch(&mut self) {
        match (self.config.block_warning, self.watch_at) {
            _ if self.pool.unfinished() == 0 => self.watch_at = None,
            (Some(limit), None) => self.watch_at = Some(self.now() + LoopWatch::interval(limit)),
            (None, None) | (_, Some(_)) => (),
        }
    }

    /// Looks at the workers' loops, if it is time.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let now = self.now();
        let Some(limit) = self.config.block_warning.filter(|_| self.watch_at.is_some_and(|at| at <= now)) else {
            return Ok(());
        };
        self.watch_at = None;
        for seat in self.link.seats.values_mut() {
            match seat.look(now, limit) {
                Look::Fine => (),
                Look::Ask => seat.ask()?,
                Look::Blocked(blocked) => {
                    self.events.push_back(Event::Blocked { worker: seat.worker, pid: seat.pid, blocked });
                }
            }
        }
        Ok(())
    }
}
