//! Bytes, time and rest: large tasks, bounded drains, and silence when idle.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use polyloop::{DriverConfig, Outcome};
use rustix::process::Signal;

use crate::rig::work::Work;
use crate::rig::worker::wait;
use crate::rig::{Rig, SHAPE, WATCHDOG, send_signal};

const TEN_MB: usize = 10 << 20;
/// Wake-ups between the last outcome and rest, at most.
const SETTLING_MAX: u32 = 20;
/// What the rings of four workers take, and more than is read in the time of one drain.
const OUTCOMES: usize = 40_000;
/// A task, and how often a driver that looks every 20 ms does so while it runs.
const LONG_MS: u64 = 600;
const LOOKS: u32 = 30;
const IDLE: Duration = Duration::from_secs(2);
/// Wake-ups of a driver whose workers stand still, in that time.
const WAKES_MAX: u32 = 100;

#[test]
fn ten_megabytes_arrive_whole_in_both_directions_at_the_same_time() {
    let mut rig = Rig::healthy("large", DriverConfig { concurrency: 2, ..SHAPE });
    for _ in 0..3 {
        rig.submit(Work::Echo, TEN_MB, 0);
        rig.submit(Work::Big(TEN_MB), TEN_MB, 0);
        rig.submit(Work::Big(TEN_MB), 0, 0);
        rig.submit(Work::Echo, 10, 0);
    }
    rig.flush();
    rig.wait_all_done("everything has arrived");
    let whole = (0..12).all(|token| matches!(rig.outcome(token), Some(Outcome::Value(_))));
    assert!(whole, "the rig compares every byte");
    rig.close();
}

#[test]
fn one_drain_does_not_hold_the_loop_for_all_outcomes_there_are() {
    let mut rig = Rig::healthy("drain", DriverConfig { processes: 4, ..SHAPE });
    rig.wait_all_ready();
    rig.run_unread(OUTCOMES);
    let (mut drains, mut longest) = (0, Duration::ZERO);
    while rig.driver.unfinished() > 0 {
        assert!(drains == 0 || wait(rig.driver.as_fd(), Some(WATCHDOG)), "what is left is not told of");
        let before = Instant::now();
        rig.driver.drain().expect("nothing of the system's is short");
        (drains, longest) = (drains + 1, longest.max(before.elapsed()));
    }
    println!("{OUTCOMES} outcomes in {drains} drains, the longest of {longest:?}");
    assert!(drains > 1, "{OUTCOMES} outcomes came in one drain, of {longest:?}");
    rig.wait_all_done("the events are taken");
    rig.close();
}

#[test]
fn an_idle_pool_wakes_nobody() {
    let mut rig = Rig::healthy("idle", SHAPE);
    rig.submit_many(1_000, Work::Echo);
    rig.wait_all_done("some work is done");
    // What comes after the last outcome: a worker that goes to sleep, a nap that ends.
    assert!((0..SETTLING_MAX).any(|_| !rig.turn(Duration::from_millis(200))), "the driver never comes to rest");
    let pids = rig.pids();
    let switches = |pids: &[u32]| pids.iter().map(|pid| voluntary_switches(*pid)).collect::<Vec<_>>();
    let before = switches(&pids);
    assert_eq!(rig.driver.deadline(), None);
    assert!(!rig.turn(IDLE), "the driver's descriptor became readable");
    assert_eq!(switches(&pids), before, "a worker woke up");
    rig.close();
}

#[test]
fn a_driver_that_watches_a_long_task_wakes_up_to_look_and_not_in_between() {
    let block_warning = Some(Duration::from_millis(40));
    let mut rig = Rig::healthy("watch", DriverConfig { block_warning, ..SHAPE });
    rig.wait_all_ready();
    rig.submit(Work::Nap(LONG_MS), 0, 0);
    rig.flush();
    let mut wake_ups = 0;
    while rig.driver.unfinished() > 0 {
        wake_ups += u32::from(rig.turn(WATCHDOG));
        assert!(wake_ups < 2 * LOOKS + SETTLING_MAX, "it does not come to rest between two looks");
    }
    rig.close();
}

fn voluntary_switches(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("the kernel counts them").trim().parse().expect("a number")
}

#[test]
fn a_timer_that_has_fired_wakes_the_host_once() {
    // Beside the timer that is far away, one that is near: the second worker is rung a while after the first.
    let max_age = Some(Duration::from_secs(100_000));
    let mut rig = Rig::healthy("timer", DriverConfig { processes: 2, concurrency: 1, max_age, ..SHAPE });
    rig.wait_all_ready();
    let stopped = rig.pids();
    stopped.iter().for_each(|pid| send_signal(*pid, Signal::STOP));
    rig.submit_many(1, Work::Echo);
    let until = Instant::now() + IDLE;
    let mut wakes = 0;
    while Instant::now() < until {
        wakes += u32::from(rig.turn(until.saturating_duration_since(Instant::now())));
    }
    stopped.iter().for_each(|pid| send_signal(*pid, Signal::CONT));
    rig.wait_all_done("the item is run");
    assert!(wakes < WAKES_MAX, "{wakes} wake-ups in {IDLE:?}");
    rig.close();
}
