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

#[path = "loom/queue.rs"]
mod queue;

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

// The board.

#[test]
fn two_workers_claim_each_item_once_and_whole() {
    loom::model(|| {
        let (mut writer, board) = board(2);
        post(&mut writer, &[1, 2]);
        let mut other = BoardReader::new(board.clone(), 2);
        let worker = thread::spawn(move || run_all(&mut other));
        let mut tasks = run_all(&mut BoardReader::new(board, 1));
        let theirs = worker.join().unwrap();

        let owners = [1, 2].map(|task| Some(if theirs.contains(&task) { 2 } else { 1 }));
        tasks.extend(theirs);
        tasks.sort_unstable();
        assert_eq!(tasks, [1, 2]);
        let reclaimed = writer.reclaim(SLOT).expect("both were taken");
        assert_eq!(reclaimed.owners, owners);
    });
}

#[test]
fn an_item_is_claimed_or_retracted_never_both() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        post(&mut writer, &[1]);
        let mut reader = BoardReader::new(board, 7);
        let ((retract, writer), claimed) =
            first.race(move || (writer.retract(SLOT, 0), writer), move || run_one(&mut reader));
        match retract {
            Retract::Retracted => assert_eq!(claimed, None),
            Retract::Owned(owner) => assert_eq!((owner, claimed), (7, Some(1))),
        }
        assert_eq!(writer.retract(SLOT, 0), retract, "and stays so");
    });
}

#[test]
fn a_posted_item_is_seen_whole_or_later() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        let mut reader = BoardReader::new(board, 1);
        let ((), (early, mut reader)) =
            first.race(move || post(&mut writer, &[1]), move || (run_one(&mut reader), reader));
        // A view that was cached half-way through the post must not hide the item for good.
        assert_eq!(early.or_else(|| run_one(&mut reader)), Some(1));
        assert_eq!(run_one(&mut reader), None);
    });
}

/// The slot is retracted, reclaimed and posted again under a worker that is about to claim from it.
fn reuse_under_a_worker(first: First, with_old_view: bool) {
    let (mut writer, board) = board(1);
    post(&mut writer, &[1]);
    let mut reader = BoardReader::new(board, 1);
    if with_old_view {
        assert!(reader.has_unclaimed(true));
    }
    let manager = move || {
        let retract = writer.retract(SLOT, 0);
        if retract == Retract::Retracted {
            assert!(writer.reclaim(SLOT).is_some());
            post(&mut writer, &[2]);
        }
        retract
    };
    let (retract, (early, mut reader)) = first.race(manager, move || (run_one(&mut reader), reader));
    let tasks: Vec<_> = early.into_iter().chain(run_all(&mut reader)).collect();
    match retract {
        Retract::Retracted => assert_eq!(tasks, [2]),
        Retract::Owned(_) => assert_eq!(tasks, [1]),
    }
}

#[test]
fn a_worker_with_an_old_view_claims_nothing_of_a_reused_slot_by_it() {
    both_ways(|first| reuse_under_a_worker(first, true));
}

#[test]
fn a_worker_that_looks_while_a_slot_is_reused_reads_one_generation() {
    both_ways(|first| reuse_under_a_worker(first, false));
}

#[test]
fn a_slot_is_not_overwritten_while_its_bytes_are_read() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        post(&mut writer, &[1]);
        let mut reader = BoardReader::new(board, 1);
        let copied = Witness::new();
        let reused = {
            let copied = copied.clone();
            move || {
                let reused = writer.reclaim(SLOT).is_some();
                if reused {
                    copied.check();
                    post(&mut writer, &[2]);
                }
                reused
            }
        };
        let (reused, (early, mut reader)) = first.race(reused, move || {
            let claim = reader.claim(true).expect("nobody else wants it");
            assert_eq!(read_whole(&reader, &claim), 1);
            copied.mark();
            reader.take(claim);
            (run_one(&mut reader), reader)
        });
        let then = early.or_else(|| run_one(&mut reader));
        assert_eq!(then, reused.then_some(2));
    });
}

#[test]
fn two_workers_and_a_retraction_share_a_slot() {
    both_ways(|first| {
        let (mut writer, board) = board(2);
        post(&mut writer, &[1, 2]);
        let [mut one, mut two] = [1, 2].map(|owner| BoardReader::new(board.clone(), owner));
        let bystander = thread::spawn(move || run_one(&mut two));
        let ((retract, writer), claimed) =
            first.race(move || (writer.retract(SLOT, 1), writer), move || run_one(&mut one));
        let mut tasks: Vec<_> = claimed.into_iter().chain(bystander.join().unwrap()).collect();
        tasks.sort_unstable();
        match retract {
            Retract::Retracted => assert_eq!(tasks, [1]),
            Retract::Owned(_) => assert_eq!(tasks, [1, 2]),
        }
        assert!(!writer.has_unclaimed(true));
    });
}

// Board, leases and ring: at every moment a task is found in one of them.

/// Looks in the order of the undertaker: leases, then ring.
fn held_or_done(task: u64, leases: &LeaseReader, outcomes: &mut RingReader) -> bool {
    leases.held().contains(&task) || {
        let outcome = outcomes.pop(&mut Vec::new()).expect("a sane ring");
        outcome.is_some_and(|record| u64::from(record.kind) == task)
    }
}

/// One item from claim to outcome, while the manager looks whether it has left the board, and then where it went.
fn task_is_never_lost_sight_of(first: First, has_left: fn(&mut BoardWriter) -> bool) {
    let (mut writer, board) = board(1);
    post(&mut writer, &[1]);
    let (table, ring) = (Words::heap(1), Words::heap(ring_words(RING)));
    let (held, mut drain) = (LeaseReader::new(table.clone()), RingReader::new(ring.clone()));
    let manager = move || !has_left(&mut writer) || held_or_done(1, &held, &mut drain);
    let (found, ()) = first.race(manager, move || {
        let mut reader = BoardReader::new(board, 1);
        let mut leases = LeaseWriter::new(table);
        let claim = reader.claim(true).expect("nobody else wants it");
        let lease = leases.record(1).expect("one lease for one item");
        reader.take(claim);
        RingWriter::new(ring).push(1, &[]).expect("there is room");
        leases.clear(lease);
    });
    assert!(found, "neither on the board, nor held, nor done");
}

#[test]
fn a_reclaimed_item_is_held_or_done() {
    both_ways(|first| {
        task_is_never_lost_sight_of(first, |writer| writer.reclaim(SLOT).is_some());
    });
}

#[test]
fn a_taken_item_is_held_or_done() {
    both_ways(|first| {
        task_is_never_lost_sight_of(first, |writer| writer.owned_by(1) == [(SLOT, 0, Phase::Taken)]);
    });
}

#[test]
fn a_lease_used_again_does_not_hide_an_outcome() {
    both_ways(|first| {
        let (table, ring) = (Words::heap(1), Words::heap(ring_words(RING)));
        let mut leases = LeaseWriter::new(table.clone());
        let lease = leases.record(1).unwrap();
        let (held, mut drain) = (LeaseReader::new(table), RingReader::new(ring.clone()));
        let (found, ()) = first.race(
            move || held_or_done(1, &held, &mut drain),
            move || {
                RingWriter::new(ring).push(1, &[]).unwrap();
                leases.clear(lease);
                leases.record(2).unwrap();
            },
        );
        assert!(found);
    });
}

// The ring. Its reader is the manager, as with outcomes.

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

#[test]
fn records_arrive_whole_and_in_order_over_a_wrap() {
    both_ways(|first| {
        // The first record's header stands in the last word and its payload in the first.
        let (mut writer, mut reader) = ring_at(RING - 1);
        let ((mut seen, mut reader), ()) = first.race(
            move || {
                let seen: Vec<_> = (0..3).filter_map(|_| pop(&mut reader)).collect();
                (seen, reader)
            },
            move || assert!(push(&mut writer, 1) && push(&mut writer, 2)),
        );
        seen.extend(pop_all(&mut reader));
        assert_eq!(seen, [1, 2]);
    });
}

#[test]
fn a_record_is_copied_out_before_its_room_is_used_again() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(RING - 1);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let copied = Witness::new();
        let worker = {
            let copied = copied.clone();
            move || {
                let pushed = push(&mut writer, 5);
                if pushed {
                    copied.check();
                }
                pushed
            }
        };
        let ((mut seen, mut reader), pushed) = first.race(
            move || {
                copied.mark();
                (pop_all(&mut reader), reader)
            },
            worker,
        );
        seen.extend(pop_all(&mut reader));
        let all = if pushed { 1..=5 } else { 1..=4 };
        assert!(seen.into_iter().eq(all));
    });
}

#[test]
fn a_writer_that_found_no_room_is_told_of_room() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(0);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let (told, pushed) = first.race(
            move || {
                assert_eq!(pop(&mut reader), Some(1));
                reader.writer_waits()
            },
            move || push(&mut writer, 5),
        );
        assert!(pushed || told, "it sleeps on a full ring that has room");
    });
}

#[test]
fn a_full_ring_flows_on() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(0);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let room = Bell::new();
        let worker = {
            let room = room.clone();
            move || {
                for number in 5..=6 {
                    while !push(&mut writer, number) {
                        room.wait();
                    }
                }
            }
        };
        let (mut reader, ()) = first.race(
            move || {
                for number in 1..=3 {
                    assert_eq!(pop(&mut reader), Some(number));
                    if reader.writer_waits() {
                        room.ring();
                    }
                }
                reader
            },
            worker,
        );
        assert_eq!(pop_all(&mut reader), [4, 5, 6]);
    });
}

// Wake-ups. The sleeper is the worker.

/// Announces sleep and looks once more: whether it goes to sleep.
fn falls_asleep(sleeper: &Sleeper, found_work: impl FnOnce() -> bool) -> bool {
    sleeper.announce();
    let asleep = !found_work();
    if !asleep {
        sleeper.wake();
    }
    asleep
}

#[test]
fn a_sleeper_that_missed_the_work_is_rung() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(1));
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let published = work.clone();
        let (rung, asleep) = first.race(
            move || {
                published[0].store(1, Relaxed);
                ringer.must_ring()
            },
            move || falls_asleep(&sleeper, || work[0].load(Relaxed) == 1),
        );
        assert!(!asleep || rung);
    });
}

#[test]
fn a_ringer_that_stops_before_it_rings_silences_nobody_else() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(2));
        let sleeper = Sleeper::new(epoch.clone());
        let [one, two] = [0, 1].map(|index| {
            let (mut ringer, work) = (Ringer::new(epoch.clone()), work.clone());
            move || {
                work[index].store(1, Relaxed);
                ringer.must_ring()
            }
        });
        let bystander = thread::spawn(two);
        let look = move || work.iter().any(|word| word.load(Relaxed) == 1);
        let (one, asleep) = first.race(one, move || falls_asleep(&sleeper, look));
        let two = bystander.join().unwrap();
        assert!(!asleep || (one && two), "each must ring, not only one");
    });
}

#[test]
fn a_successor_is_rung_for_work_that_its_predecessor_was_rung_for() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(1));
        let mut ringer = Ringer::new(epoch.clone());
        Sleeper::new(epoch.clone()).announce();
        assert!(ringer.must_ring(), "and then it died asleep");
        let published = work.clone();
        let (rung, asleep) = first.race(
            move || {
                published[0].store(1, Relaxed);
                ringer.must_ring()
            },
            move || falls_asleep(&Sleeper::new(epoch), || work[0].load(Relaxed) == 1),
        );
        assert!(!asleep || rung);
    });
}

/// A sleeper that runs until it saw every piece of work, and that a timer has woken once for nothing.
fn sleep_until_all_is_seen(sleeper: &Sleeper, bell: &Bell, work: &Words, pieces: u64) {
    sleeper.announce();
    sleeper.wake();
    bell.silence();
    loop {
        sleeper.announce();
        let seen = work.iter().map(|word| word.load(Relaxed)).sum::<u64>();
        if seen < pieces {
            bell.wait();
        }
        sleeper.wake();
        if seen == pieces {
            return;
        }
    }
}

#[test]
fn a_sleeper_woken_by_a_timer_hears_the_next_ring() {
    both_ways(|first| {
        let (epoch, work, bell) = (Words::heap(1), Words::heap(1), Bell::new());
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let (published, rope) = (work.clone(), bell.clone());
        first.race(
            move || {
                for piece in 1..=2 {
                    published[0].store(piece, Relaxed);
                    if ringer.must_ring() {
                        rope.ring();
                    }
                }
            },
            move || sleep_until_all_is_seen(&sleeper, &bell, &work, 2),
        );
    });
}

#[test]
fn two_ringers_wake_a_sleeper_for_both_their_works() {
    loom::model(|| {
        let (epoch, work, bell) = (Words::heap(1), Words::heap(2), Bell::new());
        let sleeper = Sleeper::new(epoch.clone());
        for index in 0..2 {
            let mut ringer = Ringer::new(epoch.clone());
            let (work, bell) = (work.clone(), bell.clone());
            thread::spawn(move || {
                work[index].store(1, Relaxed);
                if ringer.must_ring() {
                    bell.ring();
                }
            });
        }
        sleep_until_all_is_seen(&sleeper, &bell, &work, 2);
    });
}

// Queues with wake-ups: what a process does before it sleeps, against what its peer does after it published.

#[test]
fn a_worker_does_not_sleep_through_a_post() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        let epoch = Words::heap(1);
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let mut reader = BoardReader::new(board, 1);
        let (rung, (asleep, mut reader)) = first.race(
            move || {
                post(&mut writer, &[1]);
                ringer.must_ring()
            },
            move || (falls_asleep(&sleeper, || reader.has_unclaimed(true)), reader),
        );
        assert!(!asleep || rung);
        assert_eq!(run_one(&mut reader), Some(1));
    });
}

#[test]
fn a_worker_does_not_sleep_through_a_reuse_of_its_slot() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        post(&mut writer, &[1]);
        let mut reader = BoardReader::new(board, 1);
        assert_eq!(run_one(&mut reader), Some(1));
        let epoch = Words::heap(1);
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let (rung, (asleep, mut reader)) = first.race(
            move || {
                assert!(writer.reclaim(SLOT).is_some());
                post(&mut writer, &[2]);
                ringer.must_ring()
            },
            move || (falls_asleep(&sleeper, || reader.has_unclaimed(true)), reader),
        );
        assert!(!asleep || rung);
        assert_eq!(run_one(&mut reader), Some(2));
    });
}

#[test]
fn a_manager_does_not_sleep_through_an_outcome() {
    both_ways(|first| {
        let (mut outcomes, mut reader) = ring_at(RING - 1);
        let epoch = Words::heap(1);
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let ((asleep, mut reader), rung) = first.race(
            move || (falls_asleep(&sleeper, || reader.is_ready()), reader),
            move || {
                assert!(push(&mut outcomes, 1));
                ringer.must_ring()
            },
        );
        assert!(!asleep || rung);
        assert_eq!(pop(&mut reader), Some(1));
    });
}

#[test]
fn a_manager_with_backlog_does_not_sleep_over_a_free_slot() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        post(&mut writer, &[1]);
        let epoch = Words::heap(1);
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let mut reader = BoardReader::new(board, 1);
        let claim = reader.claim(true).expect("nobody else wants it");
        let (asleep, rung) = first.race(
            move || {
                writer.set_backlog(true);
                falls_asleep(&sleeper, || writer.reclaim(SLOT).is_some())
            },
            move || reader.take(claim) && ringer.must_ring_fenced(),
        );
        assert!(!asleep || rung);
    });
}

#[test]
fn what_was_published_before_an_item_is_taken_is_told_by_that_fence() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        post(&mut writer, &[1]);
        let (epoch, ring) = (Words::heap(1), Words::heap(ring_words(4)));
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let (mut outcomes, mut drain) = (RingWriter::new(ring.clone()), RingReader::new(ring));
        let mut reader = BoardReader::new(board, 1);
        let claim = reader.claim(true).expect("nobody else wants it");
        let (asleep, rung) = first.race(
            move || falls_asleep(&sleeper, || drain.is_ready()),
            move || {
                assert!(push(&mut outcomes, 9));
                reader.take(claim);
                ringer.must_ring_fenced()
            },
        );
        assert!(!asleep || rung);
    });
}

#[test]
fn a_slot_whose_last_item_is_retracted_still_tells_the_manager() {
    both_ways(|first| {
        let (mut writer, board) = board(2);
        post(&mut writer, &[1, 2]);
        let epoch = Words::heap(1);
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let mut reader = BoardReader::new(board, 1);
        let claim = reader.claim(true).expect("there are two");
        let (asleep, rung) = first.race(
            move || {
                assert_eq!(writer.retract(SLOT, 1), Retract::Retracted);
                writer.set_backlog(true);
                falls_asleep(&sleeper, || writer.reclaim(SLOT).is_some())
            },
            move || reader.take(claim) && ringer.must_ring(),
        );
        assert!(!asleep || rung);
    });
}

#[test]
fn the_last_to_leave_a_slot_tells_the_manager() {
    both_ways(|first| {
        let (mut writer, board) = board(2);
        post(&mut writer, &[1, 2]);
        writer.set_backlog(true);
        let (epoch, bell) = (Words::heap(1), Bell::new());
        let sleeper = Sleeper::new(epoch.clone());
        let [one, two] = [1, 2].map(|owner| {
            let mut reader = BoardReader::new(board.clone(), owner);
            let claim = reader.claim(true).expect("there are two");
            let (mut ringer, bell) = (Ringer::new(epoch.clone()), bell.clone());
            move || {
                if reader.take(claim) && ringer.must_ring() {
                    bell.ring();
                }
            }
        });
        thread::spawn(two);
        first.race(
            move || {
                while falls_asleep(&sleeper, || writer.reclaim(SLOT).is_some()) {
                    bell.wait();
                    sleeper.wake();
                }
            },
            one,
        );
    });
}

/// A pool in miniature: one worker, a board of one slot, two tasks, and nobody who would wake a sleeper but its peer.
#[test]
fn two_tasks_flow_through_one_slot_and_come_back() {
    both_ways(|first| {
        let (mut writer, board) = board(1);
        let (table, ring) = (Words::heap(1), Words::heap(ring_words(RING)));
        let (manager_epoch, worker_epoch) = (Words::heap(1), Words::heap(1));
        let (manager_bell, worker_bell) = (Bell::new(), Bell::new());
        let manager = Sleeper::new(manager_epoch.clone());
        let worker = Sleeper::new(worker_epoch.clone());
        let mut to_manager = Ringer::new(manager_epoch);
        let mut to_worker = Ringer::new(worker_epoch);
        let mut drain = RingReader::new(ring.clone());
        post(&mut writer, &[1]);
        writer.set_backlog(true);

        let run_worker = {
            let (worker_bell, manager_bell) = (worker_bell.clone(), manager_bell.clone());
            move || {
                let mut reader = BoardReader::new(board, 1);
                let (mut outcomes, mut leases) = (RingWriter::new(ring), LeaseWriter::new(table));
                let mut done = 0;
                while done < 2 {
                    if falls_asleep(&worker, || reader.has_unclaimed(true)) {
                        worker_bell.wait();
                        worker.wake();
                    }
                    while let Some(claim) = reader.claim(true) {
                        let task = read_whole(&reader, &claim);
                        let lease = leases.record(task).expect("one lease for one item");
                        if reader.take(claim) && to_manager.must_ring_fenced() {
                            manager_bell.ring();
                        }
                        assert!(push(&mut outcomes, task));
                        leases.clear(lease);
                        if to_manager.must_ring() {
                            manager_bell.ring();
                        }
                        done += 1;
                    }
                }
            }
        };
        let run_manager = move || {
            let (mut backlog, mut seen) = (true, Vec::new());
            while seen != [1, 2] {
                let mut reclaimed = false;
                let asleep = falls_asleep(&manager, || {
                    reclaimed = backlog && writer.reclaim(SLOT).is_some();
                    reclaimed || drain.is_ready()
                });
                if asleep {
                    manager_bell.wait();
                    manager.wake();
                }
                seen.extend(pop_all(&mut drain));
                if reclaimed {
                    post(&mut writer, &[2]);
                    backlog = false;
                    writer.set_backlog(false);
                    if to_worker.must_ring() {
                        worker_bell.ring();
                    }
                }
            }
        };
        first.race(run_manager, run_worker);
    });
}
