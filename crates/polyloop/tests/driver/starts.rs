//! Workers on their way into the pool, and those that never arrive.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use polyloop::{Driver, DriverConfig, DriverError, Exit, Outcome, Report, StartError, State};
use rustix::process::Signal;

use crate::rig::work::Work;
use crate::rig::{Rig, Role, SHAPE, Starts, exit_of, myself, send_signal};

const ONE: DriverConfig = DriverConfig { processes: 1, ..SHAPE };
/// Long enough for a worker to say hello.
const TURNS: usize = 30;

/// A process of that kind first, healthy ones after it.
fn first(name: &'static str) -> impl FnMut(usize) -> Role {
    move |start| if start == 0 { Role::named(name) } else { Role::HEALTHY }
}

fn run_one(rig: &mut Rig) {
    let token = rig.submit(Work::Echo, 100, 0);
    rig.flush();
    rig.wait_all_done("a task has run");
    assert!(matches!(rig.outcome(token), Some(Outcome::Value(_))));
}

#[test]
fn an_impossible_shape_is_refused() {
    let impossible = [
        DriverConfig { processes: 0, ..SHAPE },
        DriverConfig { queues: 0, ..SHAPE },
        DriverConfig { queues: 3, ..SHAPE },
        DriverConfig { concurrency: 0, ..SHAPE },
        DriverConfig { processes: 40_000, ..SHAPE },
    ];
    for config in impossible {
        assert!(matches!(Driver::new(config), Err(DriverError::Config(_))), "{config:?}");
    }
}

#[test]
fn a_worker_of_another_version_is_told_of_and_replaced() {
    let mut rig = Rig::new("another version", ONE, first("another version"));
    let stranger = rig.pids()[0];
    run_one(&mut rig);
    assert!(rig.was_killed(stranger));
    assert!(rig.news.garbage[0].1.contains("version"), "{:?}", rig.news.garbage);
    rig.close();
}

#[test]
fn a_pool_whose_workers_are_all_of_another_version_gives_up() {
    let mut rig = Rig::new("all of another version", ONE, |_| Role::named("another version"));
    let token = rig.submit(Work::Echo, 0, 0);
    rig.flush();
    rig.wait("the pool is over", |rig| rig.news.closed);
    let killed = StartError::Exited(Exit::Signal(Signal::KILL.as_raw()));
    assert_eq!(rig.outcome(token), Some(&Outcome::NoWorkers(killed)));
}

#[test]
fn a_worker_is_greeted_once_the_driver_is_told_of_its_process() {
    let mut rig = Rig::starting(Starts::Later, "late news", ONE, |_| Role::HEALTHY);
    rig.submit(Work::Echo, 100, 0);
    rig.flush();
    for _ in 0..TURNS {
        rig.turn(Duration::from_millis(10));
        assert_eq!(rig.driver.state(), State::Starting);
    }
    rig.report_started();
    rig.wait_all_done("the task has run");
    run_one(&mut rig);
    rig.close();
}

#[test]
fn a_worker_that_dies_before_the_driver_is_told_of_its_process_is_replaced() {
    let mut rig = Rig::starting(Starts::Later, "late news of the dead", ONE, |_| Role::HEALTHY);
    let first = rig.pids()[0];
    send_signal(first, Signal::KILL);
    rig.report_started();
    rig.wait("its death is known", |rig| !rig.is_alive(first));
    run_one(&mut rig);
    rig.close();
}

#[test]
fn workers_that_are_not_our_children_live_and_die_like_others() {
    let mut rig = Rig::starting(Starts::Foreign, "foreign", SHAPE, first("leaves at once"));
    rig.wait("one leaves before its hello", |rig| !rig.news.exits.is_empty());
    assert_eq!(rig.news.exits[0].1, Exit::Code(7));
    rig.wait_all_ready();
    let victim = rig.pids()[0];
    send_signal(victim, Signal::KILL);
    rig.wait("its death is known", |rig| !rig.is_alive(victim));
    run_one(&mut rig);
    rig.close();
}

#[test]
fn a_pool_whose_workers_can_not_be_initialised_fails_with_their_reason() {
    let mut rig = Rig::new("can't start", SHAPE, |_| Role::named("can't start"));
    let token = rig.submit(Work::Echo, 0, 0);
    rig.flush();
    rig.wait("the pool is over", |rig| rig.news.closed);
    let error = StartError::Raised(Arc::from(*b"no luck"));
    assert_eq!(rig.outcome(token), Some(&Outcome::NoWorkers(error)));
    assert_eq!(rig.driver.state(), State::Closed);
}

#[test]
fn initialisation_that_fails_later_is_tried_again_and_reported_once() {
    let fails = |start| if (1..3).contains(&start) { Role::named("can't start") } else { Role::HEALTHY };
    let mut rig = Rig::new("fails later", ONE, fails);
    rig.wait_all_ready();
    send_signal(rig.pids()[0], Signal::KILL);
    rig.wait("a start fails", |rig| rig.driver.state() == State::Degraded);
    run_one(&mut rig);
    let degraded = Report::Degraded(StartError::Raised(Arc::from(*b"no luck")));
    assert_eq!(rig.news.reports[1..], [degraded, Report::Recovered]);
    rig.close();
}

#[test]
fn a_pool_with_more_workers_than_descriptors_says_so() {
    let mut client = myself("few descriptors").stdout(Stdio::null()).spawn().expect("it runs here");
    assert_eq!(exit_of(client.wait().expect("a child")), Exit::Code(0));
}

#[test]
fn a_worker_with_the_handle_of_another_process_is_replaced_and_the_other_lives() {
    let mut rig = Rig::starting(Starts::Foreign, "another's handle", ONE, first("another's handle"));
    let stranger = rig.pids()[0];
    run_one(&mut rig);
    assert!(rig.was_killed(stranger));
    assert!(rig.news.garbage[0].1.contains("another process"), "{:?}", rig.news.garbage);
    rig.close();
}

/// What a worker does that is let in, and how large its task is.
const FORGERIES: [(&str, usize); 20] = [
    ("unknown kind", 0),
    ("short frame", 0),
    ("tail out of range", 0),
    ("record beyond the tail", 0),
    ("ready twice", 0),
    ("failed after all", 0),
    ("retires twice", 0),
    ("fetches without end", 0),
    ("a block that was never passed", 0),
    ("half a word of a block", 0),
    ("a block that was not lent to it", 0),
    ("a block that can shrink", 0),
    ("more than the block has", 0),
    ("another message", 0),
    ("piece of a task not taken", 0),
    ("outcome of a task not taken", 0),
    ("call of a task not taken", 0),
    ("a call that can't be read", 0),
    ("pieces without end", 0),
    ("fetched again", 40_000),
];

#[test]
fn a_worker_that_writes_garbage_is_told_of_and_replaced_and_its_task_runs_elsewhere() {
    for (forgery, padding) in FORGERIES {
        let mut rig = Rig::new(forgery, DriverConfig { max_reply: 1_000, ..ONE }, first(forgery));
        let forger = rig.pids()[0];
        let token = rig.submit(Work::Echo, padding, 1);
        rig.flush();
        rig.wait("the garbage is seen", |rig| !rig.news.garbage.is_empty());
        rig.wait_all_done("the task has run");
        assert!(matches!(rig.outcome(token), Some(Outcome::Value(_))), "{forgery}: {:?}", rig.outcome(token));
        assert!(rig.was_killed(forger));
        assert_eq!(rig.news.garbage.len(), 1, "{:?}", rig.news.garbage);
        assert_eq!(rig.driver.held_bytes(), 0, "{forgery}: something of it is kept");
        rig.close();
    }
}
