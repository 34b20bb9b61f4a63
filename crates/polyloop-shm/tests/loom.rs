//! Models of board, leases, ring, wake-ups and the queue under loom: every interleaving and every value that the memory model
//! allows, within `LOOM_MAX_PREEMPTIONS`.
//!
//!     RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 CARGO_TARGET_DIR=target/loom \
//!         cargo test -p polyloop-shm --release --test loom
//!
//! `tools/weaken.py` shows that they can fail: it weakens each ordering of the sources in turn and names the models
//! that then fail; what it printed stands in `tests/README.md`. What loom can't show by values alone:
//!
//! - A store that overtakes an earlier load: a [`Witness`] does.
//! - A lost wake-up: loom's deadlock report at a [`Bell`], or, where the bell's own lock would order too much, a
//!   comparison of what both sides did once they have stopped.
//! - A race whose read is followed by a read of the other side: loom remembers only the last access to an atomic, so
//!   that the second read hides the first. [`both_ways`] searches from either side.

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::cell::UnsafeCell;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use polyloop_shm::{
    Board, BoardReader, BoardWriter, Entry, Geometry, Item, LeaseReader, LeaseWriter, Phase, Retract, RingReader,
    RingWriter, Ringer, Sleeper, SlotIndex, Words, ring_words,
};

#[path = "loom/board.rs"]
mod board;
#[path = "loom/flow.rs"]
mod flow;
#[path = "loom/queue.rs"]
mod queue;
#[path = "loom/ring.rs"]
mod ring;
#[path = "loom/wake.rs"]
mod wake;

const SLOT: SlotIndex = SlotIndex(0);
/// The smallest ring whose records can have a payload: four records of header and one word.
const RING: usize = 8;

fn board(items: u32) -> (BoardWriter, Board) {
    let geometry = Geometry { slots: 1, items, blob_words: items };
    let board = Board::new(Words::heap(geometry.board_words()), geometry);
    (BoardWriter::new(board.clone()), board)
}

/// Posts `tasks` into the one slot; everything about an item follows from its number, so that a torn one shows.
fn post(writer: &mut BoardWriter, tasks: &[u64]) {
    let arguments: Vec<_> = tasks.iter().map(|task| task.to_le_bytes()).collect();
    let entries = tasks.iter().zip(&arguments).map(|(&task, bytes)| Entry {
        task,
        function: b"",
        arguments: bytes,
        extra: task + 100,
    });
    let posted = writer.post(0, entries).expect("the slot is free");
    assert_eq!(posted.count as usize, tasks.len());
}

fn read_whole(reader: &BoardReader, claim: &polyloop_shm::Claim) -> u64 {
    let mut item = Item::default();
    reader.read(claim, &mut item).expect("entries point into their slot");
    assert_eq!(item.extra, item.task + 100, "another item's extra");
    assert_eq!(item.arguments, item.task.to_le_bytes(), "another item's bytes");
    item.task
}

/// Claims, reads and takes one item.
fn run_one(reader: &mut BoardReader) -> Option<u64> {
    let claim = reader.claim(true)?;
    let task = read_whole(reader, &claim);
    reader.take(claim);
    Some(task)
}

fn run_all(reader: &mut BoardReader) -> Vec<u64> {
    std::iter::from_fn(|| run_one(reader)).collect()
}

/// Says that everything before `mark` happened before everything after `check`; loom fails the model if not.
#[derive(Clone)]
struct Witness(Arc<UnsafeCell<()>>);

impl Witness {
    fn new() -> Self {
        Self(Arc::new(UnsafeCell::new(())))
    }

    fn mark(&self) {
        self.0.with_mut(|_| ());
    }

    fn check(&self) {
        self.0.with(|_| ());
    }
}

/// A doorbell as the kernel makes it: rings are kept until they are taken, and two of them are one.
#[derive(Clone)]
struct Bell(Arc<(Mutex<bool>, Condvar)>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn ring(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }

    fn silence(&self) {
        *self.0.0.lock().unwrap() = false;
    }

    /// Sleeps until rung. A sleeper that nobody rings is a deadlock, which loom reports.
    fn wait(&self) {
        let mut rung = self.0.0.lock().unwrap();
        while !*rung {
            rung = self.0.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Who runs first, and is interrupted, in the executions that loom starts its search from.
#[derive(Clone, Copy)]
enum First {
    Manager,
    Worker,
}

fn both_ways(model: impl Fn(First) + Copy + Send + Sync + 'static) {
    for first in [First::Manager, First::Worker] {
        loom::model(move || model(first));
    }
}

impl First {
    /// Runs both sides at once.
    fn race<M: 'static, W: 'static>(
        self,
        manager: impl FnOnce() -> M + 'static,
        worker: impl FnOnce() -> W + 'static,
    ) -> (M, W) {
        match self {
            First::Manager => {
                let worker = thread::spawn(worker);
                let manager = manager();
                (manager, worker.join().unwrap())
            }
            First::Worker => {
                let manager = thread::spawn(manager);
                let worker = worker();
                (manager.join().unwrap(), worker)
            }
        }
    }
}

/// A ring that has moved on by `skip` words, so that the next records wrap.
fn ring_at(skip: usize) -> (RingWriter, RingReader) {
    let words = Words::heap(ring_words(RING));
    let (mut writer, mut reader) = (RingWriter::new(words.clone()), RingReader::new(words));
    for _ in 0..skip {
        writer.push(0, &[]).unwrap();
        reader.pop(&mut Vec::new()).unwrap();
    }
    (writer, reader)
}

fn push(writer: &mut RingWriter, number: u64) -> bool {
    writer.push(number as u32, &number.to_le_bytes()).is_ok()
}

fn pop(reader: &mut RingReader) -> Option<u64> {
    let mut payload = Vec::new();
    let record = reader.pop(&mut payload).expect("a sane ring")?;
    let number = u64::from(record.kind);
    assert_eq!(payload, number.to_le_bytes(), "a torn record");
    Some(number)
}

fn pop_all(reader: &mut RingReader) -> Vec<u64> {
    std::iter::from_fn(|| pop(reader)).collect()
}

/// Announces sleep and looks once more: whether it goes to sleep.
fn falls_asleep(sleeper: &Sleeper, found_work: impl FnOnce() -> bool) -> bool {
    sleeper.announce();
    let asleep = !found_work();
    if !asleep {
        sleeper.wake();
    }
    asleep
}
