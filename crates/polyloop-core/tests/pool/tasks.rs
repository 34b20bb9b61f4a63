//! What becomes of tasks while workers live.

use std::sync::Arc;

use polyloop_core::{CallId, Input, Outcome, Output, Payload, QueueIndex, Refused, Submission, WorkerId};

use crate::stage::{CONFIG, FIRST, GRACE, Stage, task, value};

#[test]
fn a_task_is_posted_and_its_outcome_delivered_once() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(7));
    assert_eq!(stage.board[0].tasks, [id]);
    stage.outcome(FIRST, id, value());
    assert_eq!(stage.delivered(), [(7, value())]);
    assert_eq!(stage.pool.unfinished(), 0);
}

#[test]
fn an_outcome_counts_also_after_its_slot_was_freed() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(7));
    stage.taken(id, FIRST);
    stage.outcome(FIRST, id, value());
    assert_eq!(stage.delivered(), [(7, value())]);
}

#[test]
fn a_second_outcome_is_ignored_also_when_its_place_in_the_table_is_another_task_now() {
    let mut stage = Stage::ready();
    let old = stage.submit(task(1));
    stage.outcome(FIRST, old, value());
    let new = stage.submit(task(2));
    assert_ne!(old, new);
    stage.outcome(FIRST, old, Outcome::Raised(Payload::from_slice(b"late")));
    assert_eq!(stage.delivered(), [(1, value())]);
}

#[test]
fn an_outcome_from_a_worker_that_does_not_have_the_task_is_ignored() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    let stranger = WorkerId { seat: 1, generation: 9 };
    stage.outcome(stranger, id, value());
    assert_eq!(stage.delivered(), [], "from a worker that does not exist");
    stage.taken(id, FIRST);
    stage.outcome(stranger, id, value());
    assert_eq!(stage.delivered(), [], "another worker has it");
}

#[test]
fn a_task_cancelled_before_it_is_posted_never_is() {
    let mut stage = Stage::ready();
    let id = stage.pool.submit(task(1)).unwrap();
    stage.cancel(id);
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    assert!(stage.board.is_empty());
}

#[test]
fn a_task_cancelled_while_the_driver_is_about_to_post_it_is_taken_back_afterwards() {
    let mut stage = Stage::ready();
    let id = stage.pool.submit(task(1)).unwrap();
    stage.pool.flush();
    stage.cancel(id);
    let place = stage.place(id);
    assert_eq!(stage.count(|o| matches!(o, Output::Retract { place: p, .. } if *p == place)), 1);
    stage.handle(Input::Retracted(id));
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
}

#[test]
fn a_posted_task_that_is_cancelled_is_retracted_and_never_starts() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.cancel(id);
    assert_eq!(stage.count(|o| matches!(o, Output::Retract { .. })), 1);
    assert_eq!(stage.delivered(), [], "not yet: a worker may have it");
    stage.handle(Input::Retracted(id));
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    stage.cancel(id);
    assert_eq!(stage.delivered().len(), 1);
}

#[test]
fn a_task_that_a_worker_already_has_is_cancelled_there() {
    let to_first = |o: &Output| matches!(o, Output::Cancel { worker, .. } if *worker == FIRST);
    let mut stage = Stage::ready();
    let owned = stage.submit(task(1));
    stage.cancel(owned);
    stage.handle(Input::Owned { task: owned, seat: 0 });
    assert_eq!(stage.count(to_first), 1);
    stage.outcome(FIRST, owned, Outcome::Cancelled);
    let taken = stage.submit(task(2));
    stage.taken(taken, FIRST);
    stage.cancel(taken);
    assert_eq!(stage.count(to_first), 2);
    stage.outcome(FIRST, taken, value());
    assert_eq!(
        stage.delivered(),
        [(1, Outcome::Cancelled), (2, value())],
        "it may have been faster than the cancellation"
    );
}

#[test]
fn a_caller_waits_for_its_cancelled_task_no_longer_than_the_grace() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.taken(id, FIRST);
    stage.cancel(id);
    assert_eq!(stage.pool.poll_timeout(), Some(GRACE));
    stage.pass(GRACE);
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    stage.outcome(FIRST, id, value());
    assert_eq!(stage.delivered().len(), 1, "the late outcome is nobody's");
}

#[test]
fn a_worker_that_does_not_let_go_of_a_cancelled_task_is_killed_after_another_grace() {
    let killed = |o: &Output| matches!(o, Output::Kill { worker, gently: false } if *worker == FIRST);
    for is_taken in [true, false] {
        let mut stage = Stage::ready();
        let id = stage.submit(task(1));
        if is_taken {
            stage.taken(id, FIRST);
        }
        stage.cancel(id);
        if !is_taken {
            stage.handle(Input::Owned { task: id, seat: 0 });
        }
        stage.pass(GRACE);
        assert_eq!(stage.count(killed), 0, "it may still leave by itself");
        stage.pass(GRACE);
        assert_eq!(stage.count(killed), 1);
        assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    }
}

#[test]
fn a_worker_whose_name_is_learned_late_is_killed_all_the_same() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.cancel(id);
    stage.pass(GRACE);
    stage.pass(GRACE);
    stage.handle(Input::Owned { task: id, seat: 0 });
    stage.pass(GRACE);
    assert_eq!(stage.count(|o| matches!(o, Output::Kill { gently: false, .. })), 1);
}

#[test]
fn a_worker_that_lets_go_of_a_cancelled_task_late_lives_on() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.taken(id, FIRST);
    stage.cancel(id);
    stage.pass(GRACE);
    stage.outcome(FIRST, id, value());
    stage.pass(GRACE);
    assert_eq!(stage.count(|o| matches!(o, Output::Kill { .. })), 0);
}

#[test]
fn cancelling_a_call_cancels_all_its_tasks_and_no_others() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    let other = stage.submit(task(1));
    for token in 2..20 {
        stage.submit(Submission { call, ..task(token) });
    }
    let posted: Vec<_> = stage.board.iter().flat_map(|s| s.tasks.clone()).collect();
    stage.pool.cancel_call(stage.now, call);
    stage.collect();
    for id in posted.into_iter().filter(|id| *id != other) {
        stage.handle(Input::Retracted(id));
    }
    let mut delivered = stage.delivered();
    delivered.sort_by_key(|(token, _)| *token);
    assert!((2..20).map(|token| (token, Outcome::Cancelled)).eq(delivered));
    let again = stage.pool.submit(Submission { call, ..task(99) });
    assert_eq!(again, Err(Refused::Closed), "the call has ended");
}

#[test]
fn a_run_of_tasks_is_accepted_at_once_and_each_ends_by_itself() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    let arguments = [b"a", b"b", b"c"].map(|bytes| Payload::from_slice(bytes));
    stage.pool.submit_run(Submission { call, ..task(7) }, arguments).unwrap();
    stage.collect();
    let ids: Vec<_> = stage.board.iter().flat_map(|slot| slot.tasks.clone()).collect();
    let parcel = stage.pool.parcel_of(ids[1]).expect("it has not ended");
    assert_eq!((&parcel.function[..], &parcel.arguments[..]), (&b"f"[..], &b"b"[..]));
    stage.outcome(FIRST, ids[2], value());
    stage.cancel(ids[0]);
    stage.handle(Input::Retracted(ids[0]));
    stage.outcome(FIRST, ids[1], value());
    assert_eq!(stage.delivered(), [(9, value()), (7, Outcome::Cancelled), (8, value())]);
    assert_eq!(stage.pool.unfinished(), 0);
    stage.pool.end_call(stage.now, call);
    let refused = stage.pool.submit_run(Submission { call, ..task(10) }, [Payload::new()]);
    assert_eq!(refused, Err(Refused::Closed), "the call has ended");
}

#[test]
fn tasks_that_return_in_a_row_end_as_one_by_one() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    let first = stage.submit(Submission { call, ..task(4) });
    let second = stage.submit(task(5));
    stage.pool.end_call(stage.now, call);
    stage.close();
    assert_eq!(stage.pool.returned(FIRST, first), Some((call, 4)));
    assert_eq!(stage.pool.returned(FIRST, first), None, "it has ended");
    assert_eq!(stage.pool.returned(WorkerId { seat: 9, ..FIRST }, second), None, "there is no such worker");
    assert_eq!(stage.pool.returned(FIRST, second), Some((CallId::SINGLES, 5)));
    assert_eq!((stage.pool.counts().done, stage.pool.unfinished()), (2, 0));
    let stops = |output: &Output| matches!(output, Output::Stop { .. });
    assert_eq!(stage.count(stops), 0);
    stage.pool.returned_all(stage.now);
    stage.collect();
    assert_eq!(stage.count(stops), 1, "the pool was closed, and this was all");
}

#[test]
fn a_value_of_a_task_that_nobody_waits_for_any_more_tells_nobody() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.taken(id, FIRST);
    stage.cancel(id);
    stage.pass(GRACE);
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    assert_eq!(stage.pool.returned(FIRST, id), None);
    stage.pass(GRACE);
    assert_eq!(stage.count(|output| matches!(output, Output::Kill { .. })), 0, "its worker has let go of it");
}

#[test]
fn cancelling_a_call_after_a_token_leaves_those_before_it() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    stage.pool.submit_run(Submission { call, ..task(0) }, [(); 12].map(|()| Payload::new())).unwrap();
    stage.pool.submit(task(100)).unwrap();
    stage.pool.cancel_call_after(stage.now, call, 8);
    let mut cancelled = Vec::new();
    while let Some(output) = stage.pool.poll_output() {
        if let Output::Deliver { token, outcome: Outcome::Cancelled, .. } = output {
            cancelled.push(token);
        }
    }
    assert_eq!(cancelled, [9, 10, 11]);
    let again = stage.pool.submit(Submission { call, ..task(99) });
    assert_eq!(again, Err(Refused::Closed), "the call has ended");
}

#[test]
fn what_waits_on_the_board_is_taken_off_it_before_what_runs_is_cancelled() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    let running = [0, 1].map(|token| stage.pool.submit(Submission { call, ..task(token) }).unwrap());
    stage.collect();
    stage.taken(running[0], FIRST);
    stage.submit(Submission { call, ..task(2) });
    stage.pool.cancel_call(stage.now, call);
    stage.collect();
    let at = |what: fn(&Output) -> bool| stage.outputs.iter().position(what).expect("it is said");
    assert!(at(|o| matches!(o, Output::Retract { .. })) < at(|o| matches!(o, Output::Cancel { .. })));
}

#[test]
fn a_single_task_does_not_wait_behind_a_huge_call() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    for token in 0..1000 {
        stage.pool.submit(Submission { call, ..task(token) }).unwrap();
    }
    stage.collect();
    assert!(stage.board.len() < CONFIG.slots as usize);
    let single = stage.submit(task(5000));
    assert!(stage.board.iter().any(|slot| slot.tasks.contains(&single)));
}

#[test]
fn a_slot_takes_no_more_than_its_items_and_its_bytes() {
    let mut stage = Stage::ready();
    let arguments = Payload::from_slice(&[0; 24]);
    for token in 0..6 {
        stage.pool.submit(Submission { arguments: arguments.clone(), ..task(token) }).unwrap();
    }
    stage.collect();
    let sizes: Vec<_> = stage.board.iter().map(|slot| slot.tasks.len()).collect();
    assert_eq!(sizes, [2, 2], "half of the slots stay free for other calls");
}

#[test]
fn large_tasks_are_fetched_and_take_no_room_in_a_slot() {
    let mut stage = Stage::ready();
    let arguments = Payload::from_slice(&[0; 1000]);
    for token in 0..2 {
        stage.pool.submit(Submission { arguments: arguments.clone(), ..task(token) }).unwrap();
    }
    stage.collect();
    let [slot] = &stage.board[..] else {
        panic!("both in one slot: {:?}", stage.board);
    };
    let inline = |id| stage.pool.parcel_of(id).map(|parcel| !parcel.terms.large);
    assert_eq!(inline(slot.tasks[0]), Some(false));
}

#[test]
fn a_task_below_the_limit_that_would_still_overflow_a_slot_is_fetched() {
    let mut config = CONFIG;
    config.inline_bytes = config.slot_bytes;
    let mut stage = Stage::new(config);
    let id =
        stage.submit(Submission { function: Arc::from([0; 33]), arguments: Payload::from_slice(&[0; 31]), ..task(1) });
    assert_eq!(stage.pool.parcel_of(id).map(|parcel| !parcel.terms.large), Some(false));
    assert_eq!(stage.board[0].tasks, [id]);
}

#[test]
fn a_queue_that_does_not_exist_means_the_last() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { queue: QueueIndex(9), ..task(1) });
    stage.cancel(id);
    stage.handle(Input::Retracted(id));
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
}
