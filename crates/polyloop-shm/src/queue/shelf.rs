//! Where a process puts its items: the nodes and bytes of its seats, and which of them are free again. Private to the
//! process, so an ordinary data structure; what it knows of the others is how far the head has come.
//!
//! Bytes are handed out where the lowest are free: what was used lately is in memory already, and fresh memory costs
//! many times the copy.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::{INLINE_BYTES, NodeRef, Position, SEAT_BYTES, SEAT_NODES, Seat};

/// Bytes that a seat keeps for its next items, though none is in use. What is more goes back to the system.
const KEPT_BYTES: u64 = 4 << 20;
/// How much must be too much before it goes back.
const TRIM_BYTES: u64 = 1 << 20;
/// Calls of `reclaim` for which memory must have been of no use before it goes back: what goes back while a stream of
/// large items ebbs must be fetched again, which costs more than all else.
const TRIM_EVERY: u32 = 64;
/// Gaps between items that are looked at for one that is wide enough.
const GAPS_LOOKED_AT: usize = 64;
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
    reclaims: u32,
}

/// One seat's part of the shelf.
struct Row {
    seat: Seat,
    free: Vec<u16>,
    /// Nodes that have never been used.
    fresh: Range<u32>,
    /// Items that are placed and not yet free again.
    items: usize,
    /// The gaps between items in use: start and width.
    gaps: BTreeMap<u64, u64>,
    /// Behind the last byte in use.
    end: u64,
    /// The furthest `end` since it was last asked for what is too much.
    peak: u64,
    /// Behind the last byte that may take memory.
    reach: u64,
}

impl Shelf {
    /// Adds what belongs to a seat of this process, empty.
    pub fn add(&mut self, seat: Seat) {
        let fresh = 0..SEAT_NODES as u32;
        self.rows.push(Row {
            seat,
            free: Vec::new(),
            fresh,
            items: 0,
            gaps: BTreeMap::new(),
            end: 0,
            peak: 0,
            reach: 0,
        });
    }

    /// Whether there is any.
    pub fn has_seat(&self) -> bool {
        !self.rows.is_empty()
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

    /// An item that was placed has not been put.
    pub fn give_back(&mut self, spot: Spot) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
            row.free_bytes(&spot);
            row.free_node(&spot);
        }
    }

    /// Frees what is of no use any more now that the head is there, and says what goes back to the system.
    pub fn reclaim(&mut self, head: Position, trims: &mut Vec<Trim>) {
        while let Some((_, spot)) = self.placed.get(self.read).filter(|(position, _)| !head.is_before(*position)) {
            if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
                row.free_bytes(spot);
            }
            self.read += 1;
        }
        // The node that the head stands on is still needed.
        while let Some((_, spot)) = self.placed.pop_front_if(|(position, _)| position.is_before(head)) {
            if let Some(row) = self.rows.iter_mut().find(|row| row.seat == spot.node.seat) {
                row.free_node(&spot);
            }
            self.read -= 1;
        }
        self.reclaims = self.reclaims.wrapping_add(1);
        if self.reclaims.is_multiple_of(TRIM_EVERY) {
            trims.extend(self.rows.iter_mut().filter_map(Row::trim));
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
        let gap = self.gaps.iter().take(GAPS_LOOKED_AT).find(|(_, width)| **width >= bytes).map(|(start, _)| *start);
        if bytes > 0 && gap.is_none() && self.end + bytes > SEAT_BYTES {
            return None;
        }
        let index = self.free.pop().or_else(|| self.fresh.next().and_then(|index| u16::try_from(index).ok()))?;
        self.items += 1;
        let place = (bytes > 0).then(|| match gap {
            Some(start) => self.fill_gap(start, bytes),
            None => self.append(bytes),
        });
        Some(Spot { node: NodeRef { seat: self.seat, index }, place, bytes })
    }

    fn append(&mut self, bytes: u64) -> u64 {
        let start = self.end;
        self.end += bytes;
        self.peak = self.peak.max(self.end);
        self.reach = self.reach.max(self.end);
        start
    }

    fn fill_gap(&mut self, start: u64, bytes: u64) -> u64 {
        if let Some(width) = self.gaps.remove(&start).filter(|width| *width > bytes) {
            self.gaps.insert(start + bytes, width - bytes);
        }
        start
    }

    fn free_node(&mut self, spot: &Spot) {
        self.free.push(spot.node.index);
        self.items -= 1;
    }

    fn free_bytes(&mut self, spot: &Spot) {
        let Some(mut start) = spot.place else { return };
        let mut end = start + spot.bytes;
        if let Some((before, _)) = self.gaps.range(..start).next_back().filter(|(at, width)| *at + *width == start) {
            start = *before;
            self.gaps.remove(&start);
        }
        if let Some(width) = self.gaps.remove(&end) {
            end += width;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.gaps.insert(start, end - start);
        }
    }

    /// What is too much to keep.
    fn trim(&mut self) -> Option<Trim> {
        let peak = std::mem::replace(&mut self.peak, self.end);
        let kept = peak.max(KEPT_BYTES).next_multiple_of(PAGE);
        if self.reach < kept + TRIM_BYTES {
            return None;
        }
        let reach = std::mem::replace(&mut self.reach, kept);
        Some(Trim::Bytes(self.seat, kept..reach.next_multiple_of(PAGE)))
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
    fn memory_that_has_been_of_no_use_for_a_while_goes_back() {
        let mut shelf = shelf();
        let (mut position, mut trims) = (Position::FIRST, Vec::new());
        for _ in 0..10 {
            let spot = shelf.place(1 << 20).unwrap();
            position = position.next();
            shelf.keep(spot, position);
        }
        for _ in 0..2 * TRIM_EVERY {
            shelf.reclaim(position, &mut trims);
        }
        assert_eq!(trims, [Trim::Bytes(Seat(1), KEPT_BYTES..10 << 20)]);
    }

    #[test]
    fn an_item_that_was_not_put_leaves_nothing() {
        let mut shelf = shelf();
        let spot = shelf.place(10_000).unwrap();
        shelf.give_back(spot);
        assert_eq!(shelf.place(10_000), Some(spot));
    }
}
