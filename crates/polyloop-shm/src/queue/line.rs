//! The line itself: a linked list that processes append to and take from, each by one compare-and-swap.
//!
//! ```text
//!  head (7, a) ──> a: next (7, b) ──> b: next (8, c) ──> c: next (9, nothing)
//!                  passed             item 8             item 9      ^ tail (9, c), or (8, b) until the next push
//! ```
//! Every word carries the position of the node that it stands in or points to, so that a process that slept through a
//! reuse compares in vain. A node may be filled again once the head has passed it; whoever reads one meanwhile reads
//! nonsense, and finds out when it moves the head.

use thiserror::Error;

use super::{
    HEAD, INLINE_BYTES, LAST, LIMIT, NEXT, NODE_BITS, NodeRef, PLACE, Position, SEAT_BITS, SEAT_BYTES, SEAT_TABLE,
    SEAT_WORDS, SEATS, SEATS_USED, SIZE, Seat, Spot, TAIL,
};
use crate::sync::{AtomicU64, Ordering, spin_loop};
use crate::words::{Words, load_bytes, store_bytes};

/// Attempts at a line of which neither end moves meanwhile, until nobody can be at work on it. A correct process makes
/// two at most.
const UNMOVED_MAX: u32 = 10_000;

/// Why nothing can be put into a line, or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LineError<E> {
    /// Its words make no sense.
    #[error("a queue's memory holds what no correct process writes")]
    Corrupt,
    /// A node can't be reached.
    #[error(transparent)]
    Node(#[from] E),
}

/// Where the nodes of seats are.
pub trait Nodes {
    /// Why a node can't be reached.
    type Error;

    /// The words of a node.
    fn node(&self, node: NodeRef) -> Result<&[AtomicU64], Self::Error>;
}

/// A position and a node, as one word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

impl Link {
    const REF_MASK: u64 = (1 << (SEAT_BITS + NODE_BITS)) - 1;
    /// No seat has this number.
    const NOTHING: u64 = Self::REF_MASK;

    fn new(position: Position, node: NodeRef) -> Self {
        Self(position.0 << (SEAT_BITS + NODE_BITS) | u64::from(node.seat.0) << NODE_BITS | u64::from(node.index))
    }

    fn nothing(position: Position) -> Self {
        Self(position.0 << (SEAT_BITS + NODE_BITS) | Self::NOTHING)
    }

    fn position(self) -> Position {
        Position(self.0 >> (SEAT_BITS + NODE_BITS))
    }

    fn node(self) -> Option<NodeRef> {
        let node = self.0 & Self::REF_MASK;
        let seat = Seat((node >> NODE_BITS) as u16);
        (usize::from(seat.0) < SEATS).then_some(NodeRef { seat, index: node as u16 })
    }
}

/// The first item of a line, as it was found: by now another process may have taken it.
#[derive(Clone, Copy)]
pub struct First {
    head: Link,
    node: NodeRef,
    /// Its size in bytes.
    pub size: usize,
    place: u64,
}

impl First {
    /// Where the bytes are that do not stand in the node: whose, and from which byte on.
    pub fn place(&self) -> Option<(Seat, u64)> {
        (self.size > INLINE_BYTES).then_some((self.node.seat, self.place))
    }
}

/// The line of a queue.
pub struct Line {
    header: Words,
}

impl Line {
    /// Lays out an empty line that holds `limit` items at most, in zeroed memory.
    pub fn create<N: Nodes>(header: Words, nodes: &N, limit: u64) -> Result<Self, N::Error> {
        let start = NodeRef { seat: Seat(0), index: 0 };
        nodes.node(start)?[NEXT].store(Link::nothing(Position::FIRST).0, Ordering::Relaxed);
        for word in [HEAD, TAIL] {
            header[word].store(Link::new(Position::FIRST, start).0, Ordering::Relaxed);
        }
        header[LIMIT].store(limit, Ordering::Relaxed);
        header[SEATS_USED].store(1, Ordering::Relaxed);
        Ok(Self { header })
    }

    /// A view of a line that was laid out before this process heard of it.
    pub fn attach(header: Words) -> Self {
        Self { header }
    }

    /// Items that it holds at most.
    pub fn limit(&self) -> u64 {
        self.header[LIMIT].load(Ordering::Relaxed)
    }

    /// Writes an item into a node that nobody else may write.
    pub fn fill<N: Nodes>(&self, nodes: &N, spot: &Spot, bytes: &[u8]) -> Result<(), N::Error> {
        let node = nodes.node(spot.node)?;
        node[SIZE].store(bytes.len() as u64, Ordering::Relaxed);
        match spot.place {
            Some(place) => node[PLACE].store(place, Ordering::Relaxed),
            None => store_bytes(&node[PLACE..], bytes),
        }
        Ok(())
    }

    /// Appends a node that is filled, and says where it stands; `None` where the line is full. Whatever becomes of this
    /// process, the item is put or it is not.
    ///
    /// # Errors
    /// [`LineError`], as all that looks at the line.
    pub fn push<N: Nodes>(&self, nodes: &N, node: NodeRef) -> Result<Option<Position>, LineError<N::Error>> {
        self.retry(|| self.try_push(nodes, node))
    }

    fn try_push<N: Nodes>(&self, nodes: &N, node: NodeRef) -> Result<Option<Option<Position>>, N::Error> {
        // Positions tell an old tail, head or link from the one that it must be, so that these need no ordering.
        let tail = Link(self.header[TAIL].load(Ordering::Relaxed));
        let Some(last) = self.last_of(nodes, tail)? else { return Ok(None) };
        let head = Link(self.header[HEAD].load(Ordering::Relaxed));
        let Some(waiting) = tail.position().since(head.position()) else { return Ok(None) };
        if waiting >= self.limit() {
            return Ok(Some(None));
        }
        let position = tail.position().next();
        nodes.node(node)?[NEXT].store(Link::nothing(position).0, Ordering::Relaxed);
        // Whoever finds this seat without its owner knows by it until when its nodes are in the line.
        self.seat(node.seat)[LAST].store(position.0, Ordering::Relaxed);
        let (nothing, link) = (Link::nothing(tail.position()), Link::new(tail.position(), node));
        // Pairs with the Acquire of `next_of`: whoever sees the link sees the item.
        if last[NEXT].compare_exchange(nothing.0, link.0, Ordering::Release, Ordering::Relaxed).is_err() {
            return Ok(None);
        }
        self.follow(tail, node);
        Ok(Some(Some(position)))
    }

    /// The first item, or `None` where there is none.
    pub fn first<N: Nodes>(&self, nodes: &N) -> Result<Option<First>, LineError<N::Error>> {
        self.retry(|| self.try_first(nodes))
    }

    fn try_first<N: Nodes>(&self, nodes: &N) -> Result<Option<Option<First>>, N::Error> {
        // An old head names a node whose link is of another position, or an item that `pass` will not take.
        let head = Link(self.header[HEAD].load(Ordering::Relaxed));
        let Some(passed) = head.node() else { return Ok(None) };
        let next = next_of(nodes.node(passed)?);
        if next.position() != head.position() {
            return Ok(None); // the head has moved on, and the node is used again
        }
        let Some(node) = next.node() else { return Ok(Some(None)) };
        let words = nodes.node(node)?;
        // Of this item; or of another, which stands there if this one has been taken meanwhile.
        let (size, place) = (words[SIZE].load(Ordering::Relaxed), words[PLACE].load(Ordering::Relaxed));
        let size = size.min(SEAT_BYTES);
        Ok(Some(Some(First { head, node, size: size as usize, place: place.min(SEAT_BYTES - size) })))
    }

    /// The bytes of an item that stands in its node; nonsense, if it has been taken meanwhile.
    pub fn read<N: Nodes>(&self, nodes: &N, first: &First) -> Result<Vec<u8>, N::Error> {
        let mut out = Vec::with_capacity(INLINE_BYTES);
        load_bytes(&nodes.node(first.node)?[PLACE..], first.size.min(INLINE_BYTES), &mut out);
        Ok(out)
    }

    /// Takes an item that has been read, and says whether it is this process that took it: only then was it read well.
    pub fn pass(&self, first: &First) -> bool {
        let past = Link::new(first.head.position().next(), first.node);
        // The tail may stay on a node that is free by this, but not when that is linked again: who does so has seen that the
        // head is past it, so he sees its link too, and moves the tail on first.
        // Release: whoever fills a node again does so after everyone has read it, as each takes by the same word. Pairs with
        // the Acquire of `head`.
        self.header[HEAD].compare_exchange(first.head.0, past.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Whether nobody has taken this item yet.
    pub fn is_first(&self, first: &First) -> bool {
        self.header[HEAD].load(Ordering::Relaxed) == first.head.0
    }

    /// Where the head is: nodes of earlier positions can be filled again.
    pub fn head(&self) -> Position {
        // Pairs with the Release of `pass`.
        Link(self.header[HEAD].load(Ordering::Acquire)).position()
    }

    /// How many items are in line.
    pub fn len<N: Nodes>(&self, nodes: &N) -> Result<u64, LineError<N::Error>> {
        self.retry(|| {
            // What others do meanwhile, nobody can know: a number that was true lately needs no ordering.
            let head = Link(self.header[HEAD].load(Ordering::Relaxed));
            let tail = Link(self.header[TAIL].load(Ordering::Relaxed));
            let is_last = self.last_of(nodes, tail)?.is_some();
            let unmoved = self.header[HEAD].load(Ordering::Relaxed) == head.0;
            Ok(tail.position().since(head.position()).filter(|_| is_last && unmoved))
        })
    }

    /// Whether no node of a seat whose owner is gone is in the line.
    pub fn is_drained(&self, seat: Seat) -> bool {
        Position(self.seat(seat)[LAST].load(Ordering::Relaxed)).is_before(self.head())
    }

    fn seat(&self, seat: Seat) -> &[AtomicU64] {
        let start = SEAT_TABLE + usize::from(seat.0) * SEAT_WORDS;
        &self.header[start..start + SEAT_WORDS]
    }

    /// The words of the last node, if the tail names it; moves the tail on if it does not.
    fn last_of<'a, N: Nodes>(&self, nodes: &'a N, tail: Link) -> Result<Option<&'a [AtomicU64]>, N::Error> {
        let Some(node) = tail.node() else { return Ok(None) };
        let words = nodes.node(node)?;
        let next = next_of(words);
        if next.position() != tail.position() {
            return Ok(None); // the tail has moved on, and the node is used again
        }
        match next.node() {
            None => Ok(Some(words)),
            Some(node) => {
                self.follow(tail, node);
                Ok(None)
            }
        }
    }

    /// Tries until it works out. Each time that it does not, another process has come further, and an end has moved.
    fn retry<T, E>(&self, mut attempt: impl FnMut() -> Result<Option<T>, E>) -> Result<T, LineError<E>> {
        let (mut ends, mut unmoved) = ([0; 2], 0);
        loop {
            if let Some(done) = attempt()? {
                return Ok(done);
            }
            let now = [HEAD, TAIL].map(|end| self.header[end].load(Ordering::Relaxed));
            unmoved = if now == ends { unmoved + 1 } else { 0 };
            ends = now;
            if unmoved == UNMOVED_MAX {
                return Err(LineError::Corrupt);
            }
            spin_loop();
        }
    }

    /// Moves the tail on to `node`, unless someone else has.
    fn follow(&self, tail: Link, node: NodeRef) {
        let next = Link::new(tail.position().next(), node);
        let _ = self.header[TAIL].compare_exchange(tail.0, next.0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn next_of(node: &[AtomicU64]) -> Link {
    // Pairs with the Release of `push`.
    Link(node[NEXT].load(Ordering::Acquire))
}
