//! Manager and workers as real threads over a small board and small rings, asleep whenever they find nothing to do and
//! woken by nothing but doorbells: each task ends once, and nobody sleeps through work.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::thread;

use polyloop_shm::{
    Board, BoardReader, BoardWriter, Doorbell, Entry, Geometry, Item, LeaseReader, LeaseWriter, Retract, RingReader,
    RingWriter, Ringer, Sleeper, SlotIndex, Words, ring_words,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SHAPE: Geometry = Geometry { slots: 3, items: 4, blob_words: 16 };
const WORKERS: usize = 3;
const TASKS: u64 = 20_000;
const LEASES: usize = 2;
const RING: usize = 16;
const WATCHDOG_S: i64 = 30;

/// A sleeper as others see it.
#[derive(Clone)]
struct Bed {
    epoch: Words,
    bell: Arc<Doorbell>,
}

impl Bed {
    fn new() -> Self {
        Self { epoch: Words::heap(1), bell: Arc::new(Doorbell::new().unwrap()) }
    }

    fn wait(&self, who: &str) {
        let watchdog = Timespec { tv_sec: WATCHDOG_S, tv_nsec: 0 };
        let rung = poll(&mut [PollFd::new(&*self.bell, PollFlags::IN)], Some(&watchdog)).unwrap();
        assert_eq!(rung, 1, "{who} slept through work");
        self.bell.silence().unwrap();
    }
}

struct Rope {
    ringer: Ringer,
    bell: Arc<Doorbell>,
}

impl Rope {
    fn new(bed: &Bed) -> Self {
        Self { ringer: Ringer::new(bed.epoch.clone()), bell: Arc::clone(&bed.bell) }
    }

    fn pull(&mut self) {
        if self.ringer.must_ring() {
            self.bell.ring().unwrap();
        }
    }
}

/// What the manager and one worker share, besides the board.
#[derive(Clone)]
struct Desk {
    bed: Bed,
    leases: Words,
    ring: Words,
}

const STOP: u64 = u64::MAX;

fn arguments(task: u64) -> Vec<u8> {
    vec![task as u8; task as usize % 20]
}

fn worker(owner: u16, board: Board, desk: Desk, manager: &Bed) {
    let mut reader = BoardReader::new(board, owner);
    let mut leases = LeaseWriter::new(desk.leases);
    let mut outcomes = RingWriter::new(desk.ring);
    let sleeper = Sleeper::new(desk.bed.epoch.clone());
    let mut rope = Rope::new(manager);
    let mut item = Item::default();
    let mut unsent = None;
    loop {
        sleeper.announce();
        if unsent.is_some() || !reader.has_unclaimed(true) {
            desk.bed.wait("a worker");
        }
        sleeper.wake();
        loop {
            if let Some((task, lease)) = unsent.take() {
                if outcomes.push(1, &u64::to_le_bytes(task)).is_err() {
                    unsent = Some((task, lease));
                    break;
                }
                leases.clear(lease);
                rope.pull();
            }
            let Some(claim) = reader.claim(true) else { break };
            reader.read(&claim, &mut item).unwrap();
            assert_eq!((item.extra, &item.arguments), (!item.task, &arguments(item.task)), "a torn item");
            let lease = leases.record(item.task).unwrap();
            if reader.take(claim) {
                rope.pull();
            }
            if item.task == STOP {
                return;
            }
            unsent = Some((item.task, lease));
        }
    }
}

struct Manager {
    writer: BoardWriter,
    bed: Bed,
    desks: Vec<(RingReader, LeaseReader, Rope, Arc<Doorbell>)>,
    posted: Vec<(SlotIndex, Vec<u64>)>,
    ended: Vec<bool>,
    open: usize,
}

impl Manager {
    /// Reclaims, drains: whether there was anything.
    fn collect(&mut self) -> bool {
        let posted = self.posted.len();
        self.posted.retain(|(slot, _)| self.writer.reclaim(*slot).is_none());
        let mut news = posted != self.posted.len();
        let mut payload = Vec::new();
        for seat in 0..self.desks.len() {
            while self.desks[seat].0.pop(&mut payload).unwrap().is_some() {
                news = true;
                self.end(u64::from_le_bytes(payload[..].try_into().unwrap()));
            }
            if self.desks[seat].0.writer_waits() {
                self.desks[seat].3.ring().unwrap();
            }
        }
        news
    }

    fn end(&mut self, task: u64) {
        let ended = &mut self.ended[task as usize];
        assert!(!*ended, "task {task} ended twice");
        *ended = true;
        self.open -= 1;
    }

    fn post(&mut self, tasks: &[u64]) -> usize {
        let bytes: Vec<_> = tasks.iter().map(|&task| arguments(task)).collect();
        let entries = tasks.iter().zip(&bytes).map(|(&task, bytes)| Entry {
            task,
            function: b"f",
            arguments: bytes,
            extra: !task,
        });
        let Ok(posted) = self.writer.post(0, entries) else { return 0 };
        let count = posted.count as usize;
        self.posted.push((posted.slot, tasks[..count].to_vec()));
        for (_, _, rope, _) in &mut self.desks {
            rope.pull();
        }
        count
    }

    /// Takes back the last item of the newest slot, where its number says so.
    fn retract_some(&mut self) {
        let Some((slot, tasks)) = self.posted.last() else { return };
        let (task, index) = (tasks[tasks.len() - 1], tasks.len() as u32 - 1);
        if task.is_multiple_of(3) && self.writer.retract(*slot, index) == Retract::Retracted {
            self.end(task);
        }
    }

    fn run(&mut self) {
        let sleeper = Sleeper::new(self.bed.epoch.clone());
        let mut next = 1;
        while self.open > 0 {
            self.writer.set_backlog(next <= TASKS);
            sleeper.announce();
            let idle = !self.collect() && next > 1;
            if idle {
                self.bed.wait("the manager");
            }
            sleeper.wake();
            while next <= TASKS {
                let offered: Vec<_> = (next..=TASKS).take(SHAPE.items as usize).collect();
                match self.post(&offered) {
                    0 => break,
                    count => next += count as u64,
                }
                self.retract_some();
            }
        }
    }
}

#[test]
fn each_task_ends_once_and_nobody_sleeps_through_work() {
    let board = Board::new(Words::heap(SHAPE.board_words()), SHAPE);
    let bed = Bed::new();
    let desk = || Desk { bed: Bed::new(), leases: Words::heap(LEASES), ring: Words::heap(ring_words(RING)) };
    let desks: Vec<_> = (0..WORKERS).map(|_| desk()).collect();
    let mut manager = Manager {
        writer: BoardWriter::new(board.clone()),
        bed: bed.clone(),
        desks: desks
            .iter()
            .map(|desk| {
                let (ring, held) = (RingReader::new(desk.ring.clone()), LeaseReader::new(desk.leases.clone()));
                (ring, held, Rope::new(&desk.bed), Arc::clone(&desk.bed.bell))
            })
            .collect(),
        posted: Vec::new(),
        ended: vec![false; TASKS as usize + 1],
        open: TASKS as usize,
    };
    thread::scope(|scope| {
        for (owner, desk) in (0..).zip(desks) {
            let (board, bed) = (board.clone(), &bed);
            scope.spawn(move || worker(owner, board, desk, bed));
        }
        manager.run();
        while !manager.posted.is_empty() {
            manager.collect();
        }
        for _ in 0..WORKERS {
            assert_eq!(manager.post(&[STOP]), 1);
        }
    });
    for (_, held, ..) in &manager.desks {
        assert_eq!(held.held(), [STOP], "every other lease was cleared");
    }
}
