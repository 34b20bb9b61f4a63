//! Who must be rung when an item is put or taken, though each side consists of processes that may die at any step.
//!
//! ```text
//!  waiter:  naps += 1; fence; does anyone act? look again; nobody: ......... sleep until the bell rings
//!                                             somebody: ................... sleep a moment at most
//!  actor:   acting is odd; fence; new naps? ring; ACT; fence; new naps? ring; acting is even
//! ```
//! The bell is never silenced: a ring wakes all who sleep, so nobody can take a wake-up with him into death. An actor
//! rings before it acts, so that who slept by then knows that somebody acts; it rings again only for naps since then.
//! One that dies or stops in between leaves `acting` odd, for which nobody sleeps long, until its seat is found empty.

use super::{ITEM_NAPS, PUTTING, ROOM_NAPS, SEAT_TABLE, SEAT_WORDS, SEATS, SEATS_USED, Seat, TAKING};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::Words;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Getters wait for items, which putters bring.
    Items,
    /// Putters wait for room, which getters make.
    Room,
}

impl Side {
    fn naps(self) -> usize {
        match self {
            Self::Items => ITEM_NAPS,
            Self::Room => ROOM_NAPS,
        }
    }

    fn acting(self, seat: Seat) -> usize {
        let word = match self {
            Self::Items => PUTTING,
            Self::Room => TAKING,
        };
        SEAT_TABLE + usize::from(seat.0) * SEAT_WORDS + word
    }
}

/// The waiting party.
pub struct Naps {
    header: Words,
    side: Side,
}

impl Naps {
    /// Of those who wait for this.
    pub fn new(header: Words, side: Side) -> Self {
        Self { header, side }
    }

    /// Announces a nap. The caller then asks [`Self::acting`], looks at the queue once more, and only then sleeps: not
    /// for long if somebody acts.
    pub fn announce(&self) {
        self.header[self.side.naps()].fetch_add(1, Ordering::Relaxed);
        // Pairs with the fences of `Act`: either the actor sees this nap, or we see that it acts, or what it did.
        fence(Ordering::SeqCst);
    }

    /// Seats whose process is about to do, or has just done, what is waited for; or died over it.
    pub fn acting(&self) -> impl Iterator<Item = Seat> {
        let used = self.header[SEATS_USED].load(Ordering::Relaxed).min(SEATS as u64) as u16;
        // Pairs with the Release of `Act::end`: who has just acted and acts no more is found by the look that follows.
        let acts = |seat: &Seat| self.header[self.side.acting(*seat)].load(Ordering::Acquire) & 1 == 1;
        (1..used).map(Seat).filter(acts)
    }
}

/// The acting party: one seat's.
pub struct Act {
    header: Words,
    side: Side,
    seat: Seat,
    rung: u64,
}

impl Act {
    /// Of a seat that was just taken, whatever its last process left there.
    pub fn new(header: Words, side: Side, seat: Seat) -> Self {
        header[SEATS_USED].fetch_max(u64::from(seat.0) + 1, Ordering::Relaxed);
        let act = Self { header, side, seat, rung: 0 };
        if act.word().load(Ordering::Relaxed) & 1 == 1 {
            act.end();
        }
        act
    }

    /// Before acting. Says whether the bell must be rung.
    pub fn begin(&mut self) -> bool {
        self.word().fetch_add(1, Ordering::Relaxed);
        self.must_ring()
    }

    /// After acting: whether the bell must be rung once more.
    pub fn must_ring(&mut self) -> bool {
        // Pairs with the fence in `Naps::announce`.
        fence(Ordering::SeqCst);
        let naps = self.header[self.side.naps()].load(Ordering::Relaxed);
        let must = naps != self.rung;
        self.rung = naps;
        must
    }

    /// After ringing.
    pub fn end(&self) {
        self.word().fetch_add(1, Ordering::Release);
    }

    fn word(&self) -> &AtomicU64 {
        &self.header[self.side.acting(self.seat)]
    }
}
