//! What two processes of a pool share: words of memory, the queues laid out in them, and wake-ups.
//!
//! Every structure is a view over [`Words`], a run of 64-bit atomics. On heap words the same code runs under
//! loom and in the simulator; on a sealed [`Region`] it runs between processes. Nothing here decides anything
//! about tasks, and nothing holds a lock that a dying process could take with it.

mod board;
mod lease;
mod queue;
mod ring;
mod sync;
mod wake;
mod words;

#[cfg(not(loom))]
mod blocks;
#[cfg(not(loom))]
mod os;
#[cfg(not(loom))]
mod region;

pub use board::{
    ALONE_LANE, Board, BoardReader, BoardWriter, Claim, Entry, Geometry, Item, Phase, Posted, Reclaimed, Retract,
    SlotFull, SlotIndex,
};
pub use lease::{LeaseIndex, LeaseReader, LeaseWriter};
pub use queue::{
    Act, First, INLINE_BYTES, Line, LineError, Naps, NodeRef, Nodes, Position, QUEUE_HEADER_WORDS, SEAT_BYTES,
    SEAT_NODE_WORDS, SEATS, Seat, Shelf, Side, Spot, Trim,
};
pub use ring::{Corrupt, Full, Record, RingReader, RingWriter, ring_words};
pub use wake::{Peer, Ringer, Sleeper, Status, StatusWriter};
pub use words::Words;

#[cfg(not(loom))]
pub use blocks::{BLOCK_NAME, Block, BorrowedBlock};
#[cfg(not(loom))]
pub use os::Doorbell;
#[cfg(not(loom))]
pub use queue::QueueFile;
#[cfg(not(loom))]
pub use region::{AttachError, Region};
