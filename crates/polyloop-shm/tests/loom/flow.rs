//! Models of queues with wake-ups: what a process does before it sleeps, against what its peer does after it published.

use super::*;

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
