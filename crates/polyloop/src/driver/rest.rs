//! How the driver waits: asleep, napping, or looking again at the boards; and whom it rings before.

use std::io;
use std::time::Duration;

use polyloop_core::{Moment, QueueIndex, RING_AGAIN, Rest, whom_to_ring};

use super::Driver;

/// The longest wait between two looks at something that only a stopped worker can keep from happening.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(64);

/// A timer that nobody needs any more is left to end by itself if it does so this soon: one call after the other would
/// otherwise set and unset it each time.
const STRAY_MAX: Duration = Duration::from_millis(2);

impl Driver {
    /// Decides how to wait, and announces it, so that nothing is missed: what came in the meantime is looked at once
    /// more after the announcement.
    pub(super) fn rest(&mut self, outcomes: usize) -> io::Result<()> {
        // A nap ends with the drain that follows it; other calls leave it alone.
        if self.nap.is_none() {
            let now = self.now();
            match self.resting.after(now, outcomes, self.pool.unfinished()) {
                Rest::Nap(nap) => self.nap = Some(now + nap),
                Rest::Sleep => {
                    self.link.sleeper.announce();
                    if self.link.seats.values_mut().any(|seat| seat.has_frames()) {
                        self.link.bell.ring()?;
                    }
                }
            }
        }
        self.watch_boards()?;
        self.arm()
    }

    /// While items wait for workers that were rung, or a slot is about to be free for what waits, looks again after a
    /// while that grows as long as nothing changes.
    pub(super) fn watch_boards(&mut self) -> io::Result<()> {
        let now = self.now();
        let due = self.look_again.is_some_and(|at| at <= now);
        let mut again = false;
        for queue in (0..self.config.queues).map(QueueIndex) {
            let unclaimed = self.link.unclaimed(queue, usize::from(self.config.processes));
            if unclaimed > 0 {
                again |= if due { self.ring(queue, 1)? } else { self.has_unrung(queue) };
            }
            again |= self.pool.has_waiting(queue) && self.link.is_about_to_free(queue);
        }
        if !again {
            (self.look_again, self.look_wait) = (None, RING_AGAIN);
        } else if due || self.look_again.is_none() {
            self.look_again = Some(now + self.look_wait);
            self.look_wait = (self.look_wait * 2).min(LOOK_AGAIN_MAX);
        }
        Ok(())
    }

    pub(super) fn has_unrung(&self, queue: QueueIndex) -> bool {
        let loads = self.link.seats.values().filter(|seat| seat.queue == queue).map(|seat| seat.load());
        loads.into_iter().any(|load| load.can_ring && load.room > 0)
    }

    pub(super) fn arm(&mut self) -> io::Result<()> {
        self.plan_watch();
        let wanted = self.next_look();
        let late = match (wanted, self.armed) {
            (Some(wanted), Some(armed)) => wanted < armed,
            (Some(_), None) => true,
            (None, Some(armed)) => armed > self.now() + STRAY_MAX,
            (None, None) => false,
        };
        if late {
            self.armed = wanted;
            self.timer.set(wanted.map(|at| at.saturating_sub(self.now())))?;
        }
        Ok(())
    }

    /// When there is something to do although nothing happens.
    pub(super) fn next_look(&self) -> Option<Moment> {
        let looks = [self.look_again, self.nap, self.watch_at, self.interrupt_at];
        looks.into_iter().chain([self.pool.poll_timeout(), self.next_idle()]).flatten().min()
    }

    /// Rings sleepers of a queue for so many items. Says whether a sleeper is left that could be rung.
    pub(super) fn ring(&mut self, queue: QueueIndex, items: usize) -> io::Result<bool> {
        let mut chosen = Vec::new();
        let seats: Vec<_> = self.link.seats.values_mut().filter(|seat| seat.queue == queue).collect();
        let loads: Vec<_> = seats.iter().map(|seat| seat.load()).collect();
        whom_to_ring(&loads, items, &mut chosen);
        let candidates = loads.iter().filter(|load| load.can_ring && load.room > 0).count();
        for (index, seat) in seats.into_iter().enumerate() {
            if chosen.contains(&index) {
                seat.ring()?;
            }
        }
        Ok(candidates > chosen.len())
    }
}
