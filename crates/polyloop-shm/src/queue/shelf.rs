//! Where a process puts its items: the nodes and bytes of its seats, and which of them are free again. Private to the
//! process, so an ordinary data structure; what it knows of the others is how far the head has come.
//!
//! Items leave in the order in which they came, so bytes are handed out one after another and start over when none is
//! in use.

use std::collections::VecDeque;
use std::ops::Range;

use super::{INLINE_BYTES, NodeRef, Position, SEAT_BYTES, SEAT_NODES, Seat};

/// Bytes that a seat keeps for its next items, though none is in use. What is more goes back to the system.
const KEPT_BYTES: u64 = 4 << 20;
/// How much of a seat's bytes is behind its items before it goes back to the system.
const TRIM_BYTES: u64 = 1 << 20;
/// Items start at multiples of this.
const ALIGN: u64 = 64;
const PAGE: u64 = 4096;

/// Where an item goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its node.
    pub node: NodeRef,
    /// Where its bytes start among those of the seat, if they do not stand in the node.
    pub place: Option<u64>,
    bytes: u64,
}

/// What goes back to the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trim {
    /// Some bytes of a seat.
    Bytes(Seat, Range<u64>),
    /// A seat, altogether.
    Seat(Seat),
}

/// Where the items of a process go.
#[derive(Default)]
pub struct Shelf {
    rows: Vec<Row>,
    placed: VecDeque<(Position, Spot)>,
    /// How many of these, the oldest, have been taken, so that their bytes are free.
    read: usize,
}

/// One seat's part of the shelf.
struct Row {
    seat: Seat,
    free: Vec<u16>,
    /// Nodes that have never been used.
    fresh: Range<u32>,
    /// Items that are placed and not yet free again.
    items: usize,
    /// The bytes in use, from the first to the last.
    used: Range<u64>,
    /// Up to where bytes have gone back to the system.
    trimmed: u64,
    /// How far bytes in use have reached since the last start.
    reach: u64,
}

impl Shelf {
    /// Adds what belongs to a seat of this process, empty.
    pub fn add(&mut self, seat: Seat) {
        let fresh = 0..SEAT_NODES as u32;
        self.rows.push(Row { seat, free: Vec::new(), fresh, items: 0, used: 0..0, trimmed: 0, reach: 0 });
    }

    /// A spot for an item of `size` bytes, or `None` where a further seat is needed.
    pub fn place(&mut self, size: usize) -> Option<Spot> {
        let bytes = if size > INLINE_BYTES { (size as u64).next_multiple_of(ALIGN) } else { 0 };
        self.rows.iter_mut().find_map(|row| row.place(bytes))
    }

    /// The item has been put.
    pub fn keep(&mut self, spot: Spot, position: Position) {
        self.placed.push_back((position, spot));
    }

    /// The item just placed has not been put.
    pub fn give_back(&mut self, spot: Spot) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
            row.free.push(spot.node.index);
            row.items -= 1;
            row.used.end -= spot.bytes;
        }
    }

    /// Frees what is of no use any more now that the head is there, and says what goes back to the system.
    pub fn reclaim(&mut self, head: Position, trims: &mut Vec<Trim>) {
        while let Some((_, spot)) = self.placed.get(self.read).filter(|(position, _)| !head.is_before(*position)) {
            if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
                trims.extend(row.free_bytes(spot));
            }
            self.read += 1;
        }
        // The node that the head stands on is still needed.
        while let Some((_, spot)) = self.placed.pop_front_if(|(position, _)| position.is_before(head)) {
            if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
                row.free.push(spot.node.index);
                row.items -= 1;
            }
            self.read -= 1;
        }
        // The first seat stays; another is given up when it is empty.
        let mut first = true;
        self.rows.retain(|row| {
            let stays = std::mem::take(&mut first) || row.items > 0;
            if !stays {
                trims.push(Trim::Seat(row.seat));
            }
            stays
        });
    }

    /// Whether every item of this process has been taken.
    pub fn is_drained(&self) -> bool {
        self.read == self.placed.len()
    }
}

impl Row {
    fn place(&mut self, bytes: u64) -> Option<Spot> {
        if self.used.end + bytes > SEAT_BYTES {
            return None;
        }
        let index = self.free.pop().or_else(|| self.fresh.next().and_then(|index| u16::try_from(index).ok()))?;
        let place = (bytes > 0).then_some(self.used.end);
        self.used.end += bytes;
        self.reach = self.reach.max(self.used.end);
        self.items += 1;
        Some(Spot { node: NodeRef { seat: self.seat, index }, place, bytes })
    }

    /// An item has been taken, the oldest of this row.
    fn free_bytes(&mut self, spot: &Spot) -> Option<Trim> {
        let place = spot.place?;
        self.used.start = place + spot.bytes;
        if self.used.is_empty() {
            let reach = std::mem::take(&mut self.reach);
            (self.used, self.trimmed) = (0..0, 0);
            return (reach > KEPT_BYTES).then_some(Trim::Bytes(self.seat, KEPT_BYTES..reach.next_multiple_of(PAGE)));
        }
        let behind = self.used.start / PAGE * PAGE;
        if behind - self.trimmed < TRIM_BYTES {
            return None;
        }
        let trimmed = std::mem::replace(&mut self.trimmed, behind);
        Some(Trim::Bytes(self.seat, trimmed..behind))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shelf() -> Shelf {
        let mut shelf = Shelf::default();
        shelf.add(Seat(1));
        shelf
    }

    proptest! {
        /// Items of any size come and go in order; what is in use never overlaps, is never given back to the system,
        /// and a node is never in use twice.
        #[test]
        fn what_is_in_use_is_used_once(sizes in proptest::collection::vec((0usize..3 << 20, 0usize..4), 1..200)) {
            let mut shelf = shelf();
            let mut line: VecDeque<(Spot, Range<u64>)> = VecDeque::new();
            let (mut tail, mut head) = (Position::FIRST, Position::FIRST);
            for (size, leave) in sizes {
                let spot = shelf.place(size).expect("there is room for all of them");
                let range = spot.place.map_or(0..0, |place| place..place + size as u64);
                for (other, taken) in &line {
                    prop_assert_ne!(other.node, spot.node);
                    prop_assert!(range.is_empty() || taken.end <= range.start || range.end <= taken.start);
                }
                tail = tail.next();
                shelf.keep(spot, tail);
                line.push_back((spot, range));
                for _ in 0..leave.min(line.len()) {
                    line.pop_front();
                    head = head.next();
                }
                let mut trims = Vec::new();
                shelf.reclaim(head, &mut trims);
                for trim in trims {
                    let Trim::Bytes(_, trimmed) = trim else { panic!("the only seat stays") };
                    for (_, taken) in &line {
                        prop_assert!(taken.is_empty() || taken.end <= trimmed.start || trimmed.end <= taken.start);
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_seat_asks_for_another_which_goes_when_it_is_empty() {
        let mut shelf = shelf();
        let mut position = Position::FIRST;
        for _ in 0..SEAT_NODES {
            let spot = shelf.place(1).unwrap();
            position = position.next();
            shelf.keep(spot, position);
        }
        assert_eq!(shelf.place(1), None);
        shelf.add(Seat(2));
        let spot = shelf.place(1).unwrap();
        assert_eq!(spot.node.seat, Seat(2));
        position = position.next();
        shelf.keep(spot, position);
        let mut trims = Vec::new();
        shelf.reclaim(position, &mut trims);
        assert!(trims.is_empty(), "the head stands on its node");
        shelf.reclaim(position.next(), &mut trims);
        assert_eq!(trims, [Trim::Seat(Seat(2))]);
        assert!(shelf.is_drained());
    }

    #[test]
    fn an_item_that_was_not_put_leaves_nothing() {
        let mut shelf = shelf();
        let spot = shelf.place(10_000).unwrap();
        shelf.give_back(spot);
        assert_eq!(shelf.place(10_000), Some(spot));
    }
}
