//! Where everything stands in the two kinds of shared memory.
//!
//! ```text
//!  pool region (manager and all workers):  seats that were ever taken | manager's epoch | a line per seat: epoch, status | boards
//!  seat region (manager and one worker):   leases | result ring | control ring | heard
//! ```

use polyloop_shm::{Board, Geometry, Words, ring_words};

/// Words in a cache line.
const LINE: usize = 8;
/// Where the seats' lines begin.
const SEATS: usize = 2 * LINE;

/// The shape of a pool's memory, agreed in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) seats: u16,
    pub(crate) queues: u16,
    pub(crate) geometry: Geometry,
    /// Leases a worker can hold.
    pub(crate) leases: u32,
    pub(crate) result_words: u32,
    pub(crate) control_words: u32,
}

impl Layout {
    pub(crate) const FIELDS: usize = 8;

    pub(crate) fn to_fields(self) -> [u64; Self::FIELDS] {
        let Geometry { slots, items, blob_words } = self.geometry;
        [
            self.seats.into(),
            self.queues.into(),
            slots.into(),
            items.into(),
            blob_words.into(),
            self.leases.into(),
            self.result_words.into(),
            self.control_words.into(),
        ]
    }

    pub(crate) fn from_fields(fields: [u64; Self::FIELDS]) -> Option<Self> {
        let [seats, queues, slots, items, blob_words, leases, result_words, control_words] = fields;
        Some(Self {
            seats: seats.try_into().ok()?,
            queues: queues.try_into().ok()?,
            geometry: Geometry {
                slots: slots.try_into().ok()?,
                items: items.try_into().ok()?,
                blob_words: blob_words.try_into().ok()?,
            },
            leases: leases.try_into().ok()?,
            result_words: result_words.try_into().ok()?,
            control_words: control_words.try_into().ok()?,
        })
    }

    pub(crate) fn pool_words(&self) -> usize {
        self.board_start(self.queues)
    }

    pub(crate) fn seat_words(&self) -> usize {
        self.heard_start() + LINE
    }

    pub(crate) fn manager_epoch(&self, pool: &Words) -> Words {
        pool.slice(LINE..LINE + 1)
    }

    /// How many of the first seats were ever taken: nobody need look at the others.
    pub(crate) fn seats_taken(&self, pool: &Words) -> Words {
        pool.slice(0..1)
    }

    pub(crate) fn epoch(&self, pool: &Words, seat: u16) -> Words {
        let at = SEATS + usize::from(seat) * LINE;
        pool.slice(at..at + 1)
    }

    pub(crate) fn status(&self, pool: &Words, seat: u16) -> Words {
        let at = SEATS + usize::from(seat) * LINE + 1;
        pool.slice(at..at + 1)
    }

    pub(crate) fn board(&self, pool: &Words, queue: u16) -> Board {
        Board::new(pool.slice(self.board_start(queue)..self.board_start(queue + 1)), self.geometry)
    }

    pub(crate) fn leases(&self, seat: &Words) -> Words {
        seat.slice(0..self.leases as usize)
    }

    pub(crate) fn results(&self, seat: &Words) -> Words {
        let start = self.result_start();
        seat.slice(start..start + ring_words(self.result_words as usize))
    }

    pub(crate) fn control(&self, seat: &Words) -> Words {
        let start = self.control_start();
        seat.slice(start..start + ring_words(self.control_words as usize))
    }

    /// How many urgent words the worker has dealt with; it alone writes it.
    pub(crate) fn heard(&self, seat: &Words) -> Words {
        let start = self.heard_start();
        seat.slice(start..start + 1)
    }

    fn board_start(&self, queue: u16) -> usize {
        let board = self.geometry.board_words().next_multiple_of(LINE);
        SEATS + usize::from(self.seats) * LINE + usize::from(queue) * board
    }

    fn result_start(&self) -> usize {
        (self.leases as usize).next_multiple_of(LINE)
    }

    fn control_start(&self) -> usize {
        self.result_start() + ring_words(self.result_words as usize).next_multiple_of(LINE)
    }

    fn heard_start(&self) -> usize {
        self.control_start() + ring_words(self.control_words as usize).next_multiple_of(LINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_everything_fits() {
        let layout = Layout {
            seats: 3,
            queues: 2,
            geometry: Geometry { slots: 4, items: 8, blob_words: 32 },
            leases: 5,
            result_words: 64,
            control_words: 32,
        };
        assert_eq!(Layout::from_fields(layout.to_fields()), Some(layout));
        let pool = Words::heap(layout.pool_words());
        let parts = [
            layout.seats_taken(&pool),
            layout.manager_epoch(&pool),
            layout.epoch(&pool, 0),
            layout.status(&pool, 0),
            layout.epoch(&pool, 2),
            layout.status(&pool, 2),
        ];
        for (at, one) in parts.iter().enumerate() {
            assert!(parts[at + 1..].iter().all(|other| one.as_ptr() != other.as_ptr()));
        }
        let _ = (layout.board(&pool, 0), layout.board(&pool, 1));
        let seat = Words::heap(layout.seat_words());
        assert_eq!(layout.leases(&seat).len(), 5);
        assert!(layout.leases(&seat).as_ptr_range().end <= layout.results(&seat).as_ptr());
        assert!(layout.results(&seat).as_ptr_range().end <= layout.control(&seat).as_ptr());
        assert!(layout.control(&seat).as_ptr_range().end <= layout.heard(&seat).as_ptr());
    }
}
