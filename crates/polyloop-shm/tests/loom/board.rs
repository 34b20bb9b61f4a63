//! Models of the board, and of board, leases and ring together: at every moment a task is found in one of them.

use super::*;

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

// Board, leases and ring.

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
