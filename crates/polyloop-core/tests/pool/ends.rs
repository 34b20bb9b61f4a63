//! How a pool ends: closed, terminated, and only once.

use std::time::Duration;

use polyloop_core::{Exit, Input, Outcome, Output, PoolConfig, Refused, Report, State, Stop, Submission};

use crate::stage::{CONFIG, FIRST, GRACE, Stage, task, value};

fn stops(stage: &Stage, how: Stop) -> usize {
    stage.count(|o| matches!(o, Output::Stop { stop, .. } if *stop == how))
}

fn kills(stage: &Stage, how: bool) -> usize {
    stage.count(|o| matches!(o, Output::Kill { gently, .. } if *gently == how))
}

#[test]
fn a_closed_pool_finishes_its_tasks_then_sends_its_workers_away() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.close();
    assert_eq!(stage.pool.submit(task(2)), Err(Refused::Closed));
    assert_eq!(stage.pool.open_call(1, None), Err(Refused::Closed));
    assert_eq!(stops(&stage, Stop::WhenDone), 0, "there is work");
    stage.outcome(FIRST, id, value());
    assert_eq!(stops(&stage, Stop::WhenDone), 1);
    assert!(!stage.is_closed(), "its worker still lives");
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert!(stage.is_closed());
    assert_eq!(stage.pool.state(), State::Closed);
    assert_eq!((stage.reports(), stage.started()), (vec![], vec![]));
}

#[test]
fn a_closed_pool_waits_for_calls_that_were_open_and_takes_their_tasks() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    stage.close();
    assert_eq!(stops(&stage, Stop::WhenDone), 0);
    let id = stage.submit(Submission { call, ..task(1) });
    stage.pool.end_call(stage.now, call);
    stage.collect();
    assert_eq!(stops(&stage, Stop::WhenDone), 0);
    stage.outcome(FIRST, id, value());
    assert_eq!(stops(&stage, Stop::WhenDone), 1);
}

#[test]
fn a_closed_pool_replaces_dead_workers_while_there_is_work() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.close();
    let place = stage.place(id);
    stage.dies(FIRST, Exit::Signal(9), |dead| dead.claimed = vec![place]);
    let [successor] = stage.started()[..] else { panic!("{:?}", stage.outputs) };
    stage.is_ready(successor);
    stage.outcome(successor, id, value());
    stage.dies(successor, Exit::Code(0), |_| ());
    assert!(stage.is_closed());
}

#[test]
fn a_worker_that_does_not_leave_a_closed_pool_is_killed_after_the_grace() {
    let mut stage = Stage::ready();
    stage.close();
    assert_eq!(stage.pool.poll_timeout(), Some(GRACE));
    stage.pass(GRACE);
    assert_eq!((kills(&stage, true), kills(&stage, false)), (0, 1));
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    assert!(stage.is_closed() && stage.reports().is_empty());
}

#[test]
fn a_closed_pool_does_not_wait_for_a_task_whose_caller_has_given_it_up() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.taken(id, FIRST);
    stage.close();
    stage.cancel(id);
    stage.pass(GRACE);
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    assert_eq!(stops(&stage, Stop::WhenDone), 1);
    stage.pass(GRACE);
    assert_ne!(kills(&stage, false), 0);
}

#[test]
fn a_worker_whose_process_appears_after_it_was_told_to_leave_is_not_waited_for_for_ever() {
    let mut stage = Stage::new(crate::stage::CONFIG);
    stage.close();
    stage.pass(GRACE);
    stage.outputs.clear();
    stage.handle(Input::Started { worker: FIRST, pid: 100 });
    stage.pass(GRACE);
    assert_eq!((kills(&stage, true), kills(&stage, false)), (0, 1));
}

#[test]
fn the_loss_of_the_last_task_is_reported_before_the_end() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.taken(id, FIRST);
    stage.close();
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    assert!(matches!(stage.reports()[..], [Report::Died { lost: 1, .. }]));
    assert!(stage.is_closed());
}

#[test]
fn terminating_ends_every_task_with_one_report() {
    let mut stage = Stage::ready();
    let call = stage.pool.open_call(1, None).unwrap();
    let taken = stage.submit(task(0));
    stage.taken(taken, FIRST);
    for token in 1..20 {
        stage.submit(Submission { call, ..task(token) });
    }
    stage.terminate();
    let mut delivered = stage.delivered();
    delivered.sort_by_key(|(token, _)| *token);
    let all = (0..20).map(|token| (token, Outcome::Terminated));
    assert!(all.eq(delivered));
    assert_eq!(stage.reports(), [Report::Terminated(20)]);
    assert!(!stage.pool.has_waiting(polyloop_core::QueueIndex(0)));
    let again = stage.pool.submit(Submission { call, ..task(99) });
    assert_eq!(again, Err(Refused::Closed));
    stage.outcome(FIRST, taken, value());
    assert_eq!(stage.delivered().len(), 20);
}

#[test]
fn terminating_asks_workers_to_leave_and_kills_them_after_the_grace() {
    let mut stage = Stage::ready();
    stage.terminate();
    assert_eq!(stops(&stage, Stop::Now), 1);
    assert_eq!((kills(&stage, true), kills(&stage, false)), (1, 0));
    stage.pass(GRACE);
    assert_eq!(kills(&stage, false), 1);
    assert!(!stage.is_closed());
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    assert!(stage.is_closed());
    assert_eq!((stage.reports(), stage.started()), (vec![], vec![]));
}

#[test]
fn a_worker_that_is_still_being_started_when_the_pool_is_terminated_is_signalled_later() {
    let mut stage = Stage::new(crate::stage::CONFIG);
    stage.terminate();
    stage.outputs.clear();
    stage.handle(Input::Started { worker: FIRST, pid: 100 });
    assert_eq!(kills(&stage, true), 1);
    stage.pass(GRACE);
    assert_eq!(kills(&stage, false), 1);
}

#[test]
fn what_was_about_to_be_posted_is_not_once_the_pool_is_terminated() {
    let mut stage = Stage::ready();
    stage.pool.submit(task(1)).unwrap();
    stage.pool.flush();
    stage.terminate();
    assert!(stage.board.is_empty());
    assert_eq!(stage.delivered(), [(1, Outcome::Terminated)]);
}

#[test]
fn a_pool_ends_once_however_often_it_is_told() {
    let mut stage = Stage::ready();
    stage.close();
    stage.close();
    stage.terminate();
    stage.dies(FIRST, Exit::Code(0), |_| ());
    stage.terminate();
    stage.close();
    stage.pass(GRACE * 10);
    assert!(stage.is_closed());
    assert_eq!(stage.pool.poll_timeout(), None);
}

#[test]
fn a_pool_that_could_never_start_a_worker_ends_by_itself() {
    let mut stage = Stage::new(crate::stage::CONFIG);
    stage.handle(Input::NotStarted { worker: FIRST, error: polyloop_core::StartError::Refused("no".into()) });
    assert!(stage.is_closed());
    stage.close();
    assert!(stage.is_closed());
}

#[test]
fn without_any_grace_a_cancelled_task_that_nobody_can_be_asked_for_ends() {
    let mut stage = Stage::new(PoolConfig { grace: Duration::ZERO, ..CONFIG });
    stage.is_ready(FIRST);
    let id = stage.submit(task(1));
    stage.cancel(id);
    // The caller waits no longer, whatever the board says; and it may name somebody who is not there.
    stage.pass(Duration::ZERO);
    stage.handle(Input::Owned { task: id, seat: 999 });
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.pool.poll_timeout(), None);
}
