//! Chunks: how many items of a call go into one slot of the board.
//!
//! Nobody owns a chunk; its items share the work of posting, a doorbell, and the time at which their slot is free again.
//! So a slot is to carry some time's work: hundreds of items that do next to nothing, one that takes long, whose
//! neighbours can still be called back by the manager alone.

use std::time::Duration;

use crate::id::Moment;

/// How long one worker is to be busy with a slot.
const SLOT_WORK: Duration = Duration::from_millis(1);
/// Items of a call of which nothing is known yet.
const FIRST: u32 = 32;
/// A measurement is made of so many items at least, or of this time.
const MEASURED_ITEMS: u32 = 8;
const MEASURED_TIME: Duration = Duration::from_millis(5);

/// The size of a call's chunks: fixed, or measured.
#[derive(Debug)]
pub(crate) struct Chunk {
    fixed: bool,
    items: u32,
    ended: u32,
    since: Moment,
}

impl Chunk {
    /// As many items as suit what they cost.
    pub(crate) fn measured(now: Moment) -> Self {
        Self { fixed: false, items: FIRST, ended: 0, since: now }
    }

    /// So many items, as far as a slot takes them.
    pub(crate) fn fixed(items: u32) -> Self {
        Self { fixed: true, items: items.max(1), ended: 0, since: Moment::ZERO }
    }

    /// An item has ended.
    pub(crate) fn ended(&mut self) {
        self.ended = self.ended.saturating_add(1);
    }

    /// How many items the next slot is to carry, at most. Those that `workers` have run since the last measurement tell
    /// what one costs. With fewer than `least` in each slot, workers with room for more would go without.
    pub(crate) fn items(&mut self, now: Moment, workers: u32, least: u32) -> u32 {
        if self.fixed {
            return self.items;
        }
        let passed = now.saturating_sub(self.since);
        if self.ended >= MEASURED_ITEMS || (self.ended > 0 && passed >= MEASURED_TIME) {
            let spent_ns = passed.as_nanos() * u128::from(workers);
            let fit = SLOT_WORK.as_nanos() * u128::from(self.ended) / spent_ns.max(1);
            self.items = u32::try_from(fit).unwrap_or(u32::MAX);
            (self.ended, self.since) = (0, now);
        }
        self.items.max(least).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The chunk after `ended` items in so much time on two workers.
    fn after(ended: u32, passed: Duration) -> u32 {
        let mut chunk = Chunk::measured(MS);
        (0..ended).for_each(|_| chunk.ended());
        chunk.items(MS + passed, 2, 1)
    }

    #[test]
    fn quick_items_share_a_slot_and_slow_ones_have_one_each() {
        assert_eq!(after(2_000, MS), 1_000, "a microsecond each");
        assert_eq!(after(40, MS), 20, "50 microseconds each");
        assert_eq!(after(2, 50 * MS), 1, "50 milliseconds each");
    }

    #[test]
    fn it_follows_a_call_whose_items_change() {
        let mut chunk = Chunk::measured(Moment::ZERO);
        let mut now = Moment::ZERO;
        let mut sizes = Vec::new();
        for (items, time) in [(1_000, MS), (10, 100 * MS), (1_000, MS)] {
            now += time;
            (0..items).for_each(|_| chunk.ended());
            sizes.push(chunk.items(now, 1, 1));
        }
        assert_eq!(sizes, [1_000, 1, 1_000]);
    }

    #[test]
    fn a_few_items_in_no_time_are_no_measurement() {
        assert_eq!(after(0, 100 * MS), FIRST);
        assert_eq!(after(MEASURED_ITEMS - 1, MS), FIRST);
    }

    #[test]
    fn workers_with_room_for_many_slow_items_get_them() {
        let mut chunk = Chunk::measured(Moment::ZERO);
        (0..10).for_each(|_| chunk.ended());
        assert_eq!(chunk.items(50 * MS, 2, 16), 16);
    }

    #[test]
    fn a_fixed_chunk_stays_as_it_is() {
        let mut chunk = Chunk::fixed(7);
        (0..1_000).for_each(|_| chunk.ended());
        assert_eq!([chunk.items(MS, 2, 16), chunk.items(1_000 * MS, 2, 1)], [7, 7]);
    }
}
