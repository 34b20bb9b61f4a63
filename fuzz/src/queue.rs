//! The queue between processes, as two of them have it while a third overwrites what they share: its header, and the
//! nodes of its first seats. Some of what it writes is nearly right, so that all is reached that comes after a check.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use polyloop::{QueueError, SharedQueue, Side, Watch};
use polyloop_shm::{NodeRef, Nodes, QUEUE_HEADER_WORDS, QueueFile, Seat};

const LIMIT: u64 = 4;
/// Words of the header that matter: head, tail, two counts of naps, seats used, limit, and a line for each seat.
const LINE: usize = 8;
const LINES: usize = 10;
/// What a node consists of, and how many of them are overwritten.
const NEXT: usize = 0;
const SIZE: usize = 1;
const SEATS: u16 = 4;
const NODES: u16 = 4;
/// Bits of a link that name a node.
const NODE_BITS: u32 = 16;
const SEAT_BITS: u32 = 12;
/// Larger than what stands in a node, and than what is believed without a look.
const SIZES: [usize; 4] = [1, 100, 5_000, 2 << 20];

/// Eleven bytes are one write, and what a correct process does next.
pub fn run(bytes: &[u8]) {
    let one = Arc::new(SharedQueue::create(Some(LIMIT)).expect("there is memory"));
    let (memory, items, room) = one.fds();
    let own = |fd: std::os::fd::BorrowedFd<'_>| -> OwnedFd { fd.try_clone_to_owned().expect("there are descriptors") };
    let third = QueueFile::attach(own(memory)).expect("it is a queue's");
    let other = Arc::new(SharedQueue::attach(own(memory), own(items), room.map(own)).expect("it is a queue's"));
    for act in bytes.as_chunks::<11>().0 {
        let [what, at, next, value @ ..] = act;
        scribble(&third, *what, usize::from(*at), u64::from_le_bytes(*value));
        let queue = if next & 1 == 0 { &one } else { &other };
        used(queue, *next >> 1, &third);
    }
}

fn scribble(file: &QueueFile, what: u8, at: usize, value: u64) {
    let value = if what & 1 == 0 { value } else { link(value) };
    match what >> 1 & 3 {
        0 => file.header()[at % LINES * LINE + at / LINES % 3].store(value, Relaxed),
        1 => file.header()[(value as usize ^ at) % QUEUE_HEADER_WORDS].store(value, Relaxed),
        n => {
            let node = NodeRef { seat: Seat(at as u16 % SEATS), index: at as u16 / SEATS % NODES };
            let words = file.node(node).expect("it can be mapped");
            words[if n == 2 { NEXT } else { SIZE + at / 16 % 2 }].store(value, Relaxed);
        }
    }
}

/// A low position, and one of the nodes that are in use, or nothing.
fn link(value: u64) -> u64 {
    let (position, seat, index) = (value & 15, value >> 4 & 7, value >> 7 & 3);
    let seat = if seat == 7 { (1 << SEAT_BITS) - 1 } else { seat % u64::from(SEATS) };
    position << (SEAT_BITS + NODE_BITS) | seat << NODE_BITS | index
}

fn used(queue: &Arc<SharedQueue>, how: u8, file: &QueueFile) {
    let outcome = match how % 6 {
        0 | 1 => queue.put(&vec![how; SIZES[usize::from(how / 6) % SIZES.len()]]).map(|_| ()),
        2 | 3 => queue.take().map(|taken| {
            let most = file.memory().expect("it has a size") as usize;
            assert!(taken.is_none_or(|bytes| bytes.len() <= most.max(1 << 20)));
        }),
        4 => queue.len().and_then(|_| queue.is_empty()).map(|_| ()),
        _ => nap(queue, if (how / 6).is_multiple_of(2) { Side::Items } else { Side::Room }),
    };
    match outcome {
        Ok(()) | Err(QueueError::Corrupt | QueueError::Crowded) => (),
        Err(error) => panic!("{error}"),
    }
}

fn nap(queue: &Arc<SharedQueue>, side: Side) -> Result<(), QueueError> {
    let mut watch = Watch::new(queue.clone(), side)?;
    for _ in 0..2 {
        watch.nap()?;
    }
    watch.silence()
}
