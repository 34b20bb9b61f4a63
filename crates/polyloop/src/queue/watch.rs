//! Waiting for items or for room: by blocking, or by a descriptor that an event loop watches.
//!
//! The bells of a queue are never silenced, since a ring that one process takes away may be another's. Each waiter has
//! a set of descriptors of its own that reports each ring once.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyloop_shm::Side;

use super::{QueueError, SharedQueue, lock};
use crate::inject::step;
use crate::os::Poller;

/// How soon a waiter looks again that saw somebody act who does not come to an end; doubled each time.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// And at least so often: until the other ends what it does, or is dead.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What a waiter can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nap {
    /// Try again: there is what it waits for, or was a moment ago.
    Not,
    /// Sleep until it is rung, or so long at most.
    Sleep(Option<Duration>),
}

/// One waiter.
pub struct Watch {
    queue: Arc<SharedQueue>,
    side: Side,
    poller: Option<Poller>,
    looks: u32,
}

impl Watch {
    /// Begins to hear the bell.
    pub fn new(queue: Arc<SharedQueue>, side: Side) -> Result<Self, QueueError> {
        queue.check()?;
        let spare = {
            let mut spare = lock(&queue.spare);
            let found = spare.iter().position(|(other, _)| *other == side);
            found.map(|found| spare.swap_remove(found).1)
        };
        let poller = match (spare, side, &queue.room) {
            (Some(poller), _, _) => poller,
            (None, Side::Items, _) => Poller::of_rings(&queue.items)?,
            (None, Side::Room, Some(room)) => Poller::of_rings(room)?,
            (None, Side::Room, None) => Poller::new()?,
        };
        Ok(Self { queue, side, poller: Some(poller), looks: 0 })
    }

    /// Announces a nap, and says whether and how long it may be. To be asked after each wake-up that was in vain.
    pub fn nap(&mut self) -> Result<Nap, QueueError> {
        self.queue.check()?;
        let naps = self.queue.naps(self.side);
        naps.announce();
        step("nap-announced");
        let mut somebody = false;
        for seat in naps.acting() {
            somebody = true;
            if self.looks > 0 {
                self.queue.bury(seat)?;
            }
        }
        step("nap-looked");
        let ready = match self.side {
            Side::Items => !self.queue.is_empty()?,
            Side::Room => !self.queue.is_full()?,
        };
        if ready {
            return Ok(Nap::Not);
        }
        if !somebody {
            self.looks = 0;
            return Ok(Nap::Sleep(None));
        }
        let soon = FIRST_LOOK.saturating_mul(1 << self.looks.min(16)).min(LAST_LOOK);
        self.looks += 1;
        Ok(Nap::Sleep(Some(soon)))
    }

    /// Sleeps as [`Self::nap`] allows, until `until` at most. Signals end it too.
    pub fn sleep(&self, most: Option<Duration>, until: Option<Instant>) -> Result<(), QueueError> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let most = most.map_or(left, |most| Some(left.map_or(most, |left| left.min(most))));
        step("nap-sleep");
        self.poller().hear(most)?;
        step("nap-woken");
        Ok(())
    }

    /// Takes the rings heard so far, so that the descriptor can be waited on again.
    pub fn silence(&self) -> Result<(), QueueError> {
        Ok(self.poller().hear(Some(Duration::ZERO))?)
    }

    fn poller(&self) -> &Poller {
        self.poller.as_ref().expect("taken on drop only")
    }
}

impl AsFd for Watch {
    /// Readable once the bell has rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller().as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not a set that this process shares with its parent.
        if let (Ok(()), Some(poller)) = (self.queue.check(), self.poller.take()) {
            lock(&self.queue.spare).push((self.side, poller));
        }
    }
}
