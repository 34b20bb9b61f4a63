//! Models of the queue between processes.
//!
//! A death is a thread that returns half-way, at each step in turn: what it would have written is never written.

use std::convert::Infallible;

use loom::sync::atomic::Ordering;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use polyloop_shm::{Act, INLINE_BYTES, Line, Naps, NodeRef, Nodes, QUEUE_HEADER_WORDS, Seat, Shelf, Side, Words};

use super::Witness;

/// Words of a node, and nodes of a seat in these models.
const NODE: usize = 16;
const NODES: usize = 3;

/// Nodes on the heap.
#[derive(Clone)]
struct Heap(Words);

impl Nodes for Heap {
    type Error = Infallible;

    fn node(&self, node: NodeRef) -> Result<&[loom::sync::atomic::AtomicU64], Infallible> {
        let start = (usize::from(node.seat.0) * NODES + usize::from(node.index)) * NODE;
        Ok(&self.0[start..start + NODE])
    }
}

/// Everything about an item follows from its number, so that a torn one shows.
fn bytes_of(item: u64) -> Vec<u8> {
    item.to_le_bytes().repeat(1 + item as usize % 2)
}

/// A queue as one of the processes of a model has it.
struct Peer {
    header: Words,
    nodes: Heap,
    line: Line,
    shelf: Shelf,
    seat: Seat,
}

impl Peer {
    fn of(header: &Words, nodes: &Heap, seat: u16) -> Self {
        let seat = Seat(seat);
        let mut shelf = Shelf::default();
        shelf.add(seat);
        Self { header: header.clone(), nodes: nodes.clone(), line: Line::attach(header.clone()), shelf, seat }
    }

    fn act(&self, side: Side) -> Act {
        Act::new(self.header.clone(), side, self.seat)
    }

    fn put(&mut self, item: u64) -> bool {
        self.shelf.reclaim(self.line.head(), &mut Vec::new());
        let bytes = bytes_of(item);
        let spot = self.shelf.place(bytes.len()).unwrap();
        let Ok(()) = self.line.fill(&self.nodes, &spot, &bytes);
        let pushed = self.line.push(&self.nodes, spot.node).unwrap();
        match pushed {
            Some(position) => self.shelf.keep(spot, position),
            None => self.shelf.give_back(spot),
        }
        pushed.is_some()
    }

    fn take(&self) -> Option<u64> {
        self.take_after(|| ())
    }

    /// Takes an item; `read` is called each time when one has been read.
    fn take_after(&self, read: impl Fn()) -> Option<u64> {
        loop {
            let first = self.line.first(&self.nodes).unwrap();
            let first = first?;
            let Ok(bytes) = self.line.read(&self.nodes, &first);
            read();
            if self.line.pass(&first) {
                let item = u64::from_le_bytes(*bytes.first_chunk().unwrap());
                assert_eq!(bytes, bytes_of(item), "a torn item");
                return Some(item);
            }
        }
    }

    fn is_empty(&self) -> bool {
        let first = self.line.first(&self.nodes).unwrap();
        first.is_none()
    }
}

fn model(limit: u64, check: impl Fn(Words, Heap) + Sync + Send + 'static) {
    assert!(INLINE_BYTES >= 8);
    loom::model(move || {
        // Only the first seats of the table are ever looked at.
        let header = Words::heap(QUEUE_HEADER_WORDS.min(12 * 8));
        let nodes = Heap(Words::heap(3 * NODES * NODE));
        let Ok(_) = Line::create(header.clone(), &nodes, limit);
        check(header, nodes);
    });
}

#[test]
fn items_of_two_putters_are_all_in_line_and_in_order() {
    model(10, |header, nodes| {
        let (mut one, mut other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        let putter = thread::spawn(move || assert!(one.put(10) && one.put(11)));
        assert!(other.put(20));
        putter.join().unwrap();
        let got: Vec<u64> = std::iter::from_fn(|| other.take()).collect();
        let firsts: Vec<u64> = got.iter().copied().filter(|item| *item < 20).collect();
        assert_eq!((got.len(), firsts), (3, vec![10, 11]));
    });
}

#[test]
fn two_getters_get_each_item_once_and_whole() {
    model(10, |header, nodes| {
        let (mut one, other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        assert!(one.put(10) && one.put(11));
        let getter = thread::spawn(move || other.take());
        let here = one.take();
        let there = getter.join().unwrap();
        let mut got: Vec<u64> = [here, there, one.take()].into_iter().flatten().collect();
        got.sort_unstable();
        assert_eq!(got, [10, 11]);
    });
}

#[test]
fn a_node_that_is_used_again_is_read_whole_or_in_vain() {
    model(10, |header, nodes| {
        let (mut one, other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        assert!(one.put(10));
        let getter = thread::spawn(move || other.take());
        let mut got = Vec::new();
        for item in 11..13 {
            got.extend(one.take());
            assert!(one.put(item));
        }
        got.extend(getter.join().unwrap());
        got.extend(std::iter::from_fn(|| one.take()));
        got.sort_unstable();
        assert_eq!(got, [10, 11, 12]);
    });
}

#[test]
fn a_queue_never_holds_more_than_it_may_and_says_that_it_is_full_only_then() {
    model(1, |header, nodes| {
        let (mut one, mut other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        let putter = thread::spawn(move || one.put(10));
        let here = other.put(20);
        let there = putter.join().unwrap();
        assert!(here ^ there, "exactly one has room");
        assert_eq!(other.line.len(&other.nodes), Ok(1));
        assert!(other.take().is_some() && other.take().is_none() && other.put(30));
    });
}

/// Searched from both sides: see `both_ways`.
fn room_is_used_again(by_the_spawned: bool) {
    model(10, move |header, nodes| {
        let (mut one, other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        assert!(one.put(10));
        let before = one.line.head();
        let was_read = Witness::new();
        let reading = was_read.clone();
        let get = move || assert_eq!(other.take_after(|| reading.mark()), Some(10));
        let put = move || {
            if before.is_before(one.line.head()) {
                was_read.check();
            }
        };
        if by_the_spawned {
            let putter = thread::spawn(put);
            get();
            putter.join().unwrap();
        } else {
            let getter = thread::spawn(get);
            put();
            getter.join().unwrap();
        }
    });
}

#[test]
fn room_is_used_again_only_after_it_was_read() {
    room_is_used_again(true);
    room_is_used_again(false);
}

#[test]
fn one_that_died_before_it_moved_the_tail_on_keeps_nobody_from_putting() {
    const TAIL: usize = 8;
    model(10, |header, nodes| {
        let (mut one, mut other) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        let tail = header[TAIL].load(Ordering::Relaxed);
        assert!(one.put(10));
        assert_ne!(header[TAIL].swap(tail, Ordering::Relaxed), tail, "this word is not the tail");
        // Its node is passed, and the tail is still on the one before it.
        assert_eq!(other.take(), Some(10));
        let putter = thread::spawn(move || assert!(one.put(11)));
        assert!(other.put(20));
        putter.join().unwrap();
        let mut got: Vec<u64> = std::iter::from_fn(|| other.take()).collect();
        got.sort_unstable();
        assert_eq!(got, [11, 20]);
    });
}

/// A bell that is never silenced: it counts, and wakes all who sleep.
#[derive(Clone)]
struct Bell(Arc<(Mutex<u64>, Condvar)>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new())))
    }

    fn ring(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    fn rings(&self) -> u64 {
        *self.0.0.lock().unwrap()
    }

    /// Sleeps until there is a ring that was not `heard`. One that nobody rings is a deadlock, which loom reports.
    fn wait(&self, heard: u64) {
        let mut rings = self.0.0.lock().unwrap();
        while *rings == heard {
            rings = self.0.1.wait(rings).unwrap();
        }
    }
}

/// Puts as the engine does, and dies after `steps` of its steps.
fn put_and_die(mut peer: Peer, bell: &Bell, item: u64, steps: u32) {
    let mut act = peer.act(Side::Items);
    let must_ring = act.begin();
    if steps == 0 {
        return;
    }
    if must_ring {
        bell.ring();
    }
    if steps == 1 {
        return;
    }
    assert!(peer.put(item));
    if steps == 2 {
        return;
    }
    if act.must_ring() {
        bell.ring();
    }
    if steps == 3 {
        return;
    }
    act.end();
}

/// Gets as a waiter does: sleeps only where nobody acts. Says nothing where somebody does who will not end.
fn get_or_see_somebody_act(peer: &Peer, bell: &Bell) -> Option<u64> {
    let naps = Naps::new(peer.header.clone(), Side::Items);
    loop {
        let heard = bell.rings();
        if let Some(item) = peer.take() {
            return Some(item);
        }
        naps.announce();
        let somebody = naps.acting().next().is_some();
        if !peer.is_empty() {
            continue;
        }
        if somebody {
            return None;
        }
        bell.wait(heard);
    }
}

fn a_putter_that_dies_after(steps: u32) {
    model(10, move |header, nodes| {
        let (putter, getter) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        let bell = Bell::new();
        let dying = {
            let bell = bell.clone();
            thread::spawn(move || put_and_die(putter, &bell, 10, steps))
        };
        // A death before the ring has put nothing, and nobody has to wake up for it.
        let got = if steps > 1 { get_or_see_somebody_act(&getter, &bell) } else { None };
        dying.join().unwrap();
        // Looking again after a while, which is what it does when it has seen somebody act.
        let got = got.or_else(|| getter.take());
        assert_eq!(got, (steps > 1).then_some(10));
    });
}

#[test]
fn nobody_sleeps_over_an_item_whose_putter_died_before_it_rang_again() {
    a_putter_that_dies_after(2);
}

#[test]
fn nobody_sleeps_over_an_item_whose_putter_died_while_it_acted() {
    a_putter_that_dies_after(3);
}

#[test]
fn nobody_sleeps_over_an_item() {
    a_putter_that_dies_after(4);
}

/// Whoever finds the seat of a dead process says there that nobody acts, and rings for nobody.
#[test]
fn nobody_sleeps_over_an_item_of_a_process_whose_seat_was_settled() {
    model(10, move |header, nodes| {
        let (putter, getter) = (Peer::of(&header, &nodes, 1), Peer::of(&header, &nodes, 2));
        let bell = Bell::new();
        let settling = {
            let bell = bell.clone();
            thread::spawn(move || {
                let seat = putter.seat;
                put_and_die(putter, &bell, 10, 2);
                drop(Act::new(header, Side::Items, seat));
            })
        };
        let got = get_or_see_somebody_act(&getter, &bell);
        settling.join().unwrap();
        assert_eq!(got.or_else(|| getter.take()), Some(10));
    });
}

#[test]
fn a_putter_that_died_before_it_put_has_put_nothing() {
    a_putter_that_dies_after(0);
    a_putter_that_dies_after(1);
}
