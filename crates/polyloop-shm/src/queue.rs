//! An inter-process queue of many putters and many getters: a line of nodes in one sparse memory file.
//!
//! ```text
//!  header  | head | tail | naps | seats: putting, taking, last |
//!  nodes   | seat 0 | seat 1: [next size bytes....][next size place.....] | seat 2 | ...
//!  bytes   | seat 0 | seat 1: [ a large item ][ another ]                 | seat 2 | ...
//! ```
//! A process takes a seat by a lock on one byte that the kernel gives back when the process ends, and nobody waits for.
//! The nodes and bytes of its seats are its own to fill, so there is no shared allocator. An item is put by one
//! compare-and-swap that links its node, and taken by one that moves the head past it: before it, nothing has happened,
//! and after it, everything. See decision 15.

mod line;
mod naps;
mod shelf;

#[cfg(not(loom))]
mod file;

pub use line::{First, Line, LineError, Nodes};
pub use naps::{Act, Naps, Side};
pub use shelf::{Shelf, Spot, Trim};

#[cfg(not(loom))]
pub use file::QueueFile;

use crate::words::LINE;

/// Seats of a queue, the first of which is nobody's: it holds the node that the line begins with.
pub const SEATS: usize = 4095;
/// Bytes of large items that a seat has room for at once.
pub const SEAT_BYTES: u64 = 1 << 36;
/// Items that stand in the nodes of one seat at most.
const SEAT_NODES: usize = 1 << NODE_BITS;

const NODE_BITS: u32 = 16;
const SEAT_BITS: u32 = 12;
/// Words of a node: the next node, the item's size, then its bytes, or where they are.
const NODE_WORDS: usize = 16;
const NEXT: usize = 0;
const SIZE: usize = 1;
const PLACE: usize = 2;
/// The largest item that stands in its node.
pub const INLINE_BYTES: usize = (NODE_WORDS - PLACE) * crate::words::WORD;

const HEAD: usize = 0;
const TAIL: usize = LINE;
const ITEM_NAPS: usize = 2 * LINE;
const ROOM_NAPS: usize = 3 * LINE;
const SEATS_USED: usize = 4 * LINE;
const LIMIT: usize = 5 * LINE;
const SEAT_TABLE: usize = 6 * LINE;
const SEAT_WORDS: usize = LINE;
const PUTTING: usize = 0;
const TAKING: usize = 1;
const LAST: usize = 2;

/// Words of a queue's header.
pub const QUEUE_HEADER_WORDS: usize = SEAT_TABLE + SEATS * SEAT_WORDS;
/// Words of the nodes of one seat.
pub const SEAT_NODE_WORDS: usize = SEAT_NODES * NODE_WORDS;

/// A seat of a queue: what a process has while it puts and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(pub u16);

/// A node of a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef {
    /// Whose it is.
    pub seat: Seat,
    /// Its number there.
    pub index: u16,
}

/// How many items have been put before one, counted from 1. Wraps after more than any process sleeps through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(u64);

impl Position {
    const BITS: u32 = 64 - SEAT_BITS - NODE_BITS;
    const MASK: u64 = (1 << Self::BITS) - 1;
    const FIRST: Self = Self(1);

    fn next(self) -> Self {
        Self((self.0 + 1) & Self::MASK)
    }

    /// How far this is after `earlier`, or `None` where it is before it.
    fn since(self, earlier: Self) -> Option<u64> {
        let distance = self.0.wrapping_sub(earlier.0) & Self::MASK;
        (distance <= Self::MASK / 2).then_some(distance)
    }

    /// Whether this is before `other`.
    pub fn is_before(self, other: Self) -> bool {
        self.since(other).is_none()
    }
}
