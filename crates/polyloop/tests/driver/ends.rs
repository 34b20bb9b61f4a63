//! How pools end, and how tasks are cancelled.

use std::time::Duration;

use polyloop::{DriverConfig, Exit, Outcome, Report};
use rustix::process::Signal;

use crate::rig::work::Work;
use crate::rig::{Rig, Role, SHAPE};

#[test]
fn a_closed_pool_finishes_what_it_has_accepted_and_lets_its_workers_leave() {
    let mut rig = Rig::healthy("close", DriverConfig { concurrency: 4, ..SHAPE });
    rig.submit_many(500, Work::Nap(1));
    rig.driver.close().expect("nothing of the system's is short");
    assert!(rig.driver.open_call(None).is_err());
    rig.wait("the pool is closed", |rig| rig.news.closed);
    assert_eq!(rig.unfinished(), []);
    assert!(rig.news.exits.iter().all(|(_, exit)| *exit == Exit::Code(0)), "{:?}", rig.news.exits);
    assert_eq!(rig.news.deaths(), (0, 0, 0));
}

#[test]
fn a_terminated_pool_ends_all_tasks_at_once_and_kills_who_does_not_leave_within_the_grace() {
    let config = DriverConfig { grace: Duration::from_millis(200), ..SHAPE };
    let mut rig = Rig::new("terminate", config, |_| Role::named("deaf to SIGTERM"));
    let spinning = [rig.submit(Work::Spin, 0, 0), rig.submit(Work::Spin, 0, 0)];
    rig.submit_many(50, Work::Echo);
    // Nothing comes back from them, so there is nothing to wait for but what they write themselves.
    while spinning.iter().any(|token| !rig.starts().contains_key(token)) {
        rig.turn(Duration::from_millis(5));
    }
    rig.terminate();
    let ended = (0..52).all(|token| rig.outcome(token) == Some(&Outcome::Terminated));
    assert!(ended, "at once, whatever the workers do");
    assert!(rig.news.reports.contains(&Report::Terminated(52)), "{:?}", rig.news.reports);
    rig.wait("the pool is closed", |rig| rig.news.closed);
    let killed = Exit::Signal(Signal::KILL.as_raw());
    assert!(rig.news.exits.iter().all(|(_, exit)| *exit == killed), "{:?}", rig.news.exits);
}

#[test]
fn a_worker_that_does_not_handle_interruptions_lives_through_them() {
    let mut rig = Rig::healthy("deaf", DriverConfig { processes: 1, ..SHAPE });
    let blocking = rig.submit(Work::Block(400), 0, 0);
    rig.flush();
    while !rig.starts().contains_key(&blocking) {
        rig.turn(Duration::from_millis(5));
    }
    rig.cancel(blocking);
    rig.wait_all_done("the blocking task has ended");
    assert!(matches!(rig.outcome(blocking), Some(Outcome::Value(_))), "{:?}", rig.outcome(blocking));
    assert_eq!(rig.close().deaths(), (0, 0, 0));
}

#[test]
fn a_cancelled_task_ends_where_it_runs_and_a_queued_one_never_starts() {
    let mut rig = Rig::healthy("cancel", DriverConfig { processes: 1, ..SHAPE });
    let (running, queued) = (rig.submit(Work::Nap(3_600_000), 0, 0), rig.submit(Work::Echo, 0, 0));
    rig.flush();
    while !rig.starts().contains_key(&running) {
        rig.turn(Duration::from_millis(5));
    }
    rig.cancel(queued);
    assert_eq!(rig.outcome(queued), Some(&Outcome::Cancelled));
    rig.cancel(running);
    rig.wait_all_done("the running task is cancelled");
    assert_eq!(rig.outcome(running), Some(&Outcome::Cancelled));
    rig.submit(Work::Echo, 0, 0);
    rig.flush();
    rig.wait_all_done("another task has run");
    assert!(!rig.starts().contains_key(&queued));
    rig.close();
}
