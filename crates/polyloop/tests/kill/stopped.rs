//! Workers that stop at a step, for a while or for ever: the others run everything that the stopped has not claimed.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::dice::{Dice, rounds};
use crate::rig::{Rig, WATCHDOG, process_state, send_signal};
use crate::steps::{CONCURRENCY_MAX, Held, Row, Step, play};

const BURSTS_MAX: u32 = 60;
/// How often a process's state is looked at; the driver is drained only when it says so.
const LOOK: Duration = Duration::from_millis(2);
/// Tasks submitted one by one, each after the end of the one before, while the worker stands still.
const SINGLES: u32 = 5;

#[test]
fn no_task_waits_for_a_stopped_worker_while_another_is_idle() {
    play("stopped, beside a healthy worker", 2, rounds().div_ceil(4), |step, number, dice| {
        round(step, 2, number, dice)
    });
}

#[test]
fn a_lone_worker_that_stops_and_goes_on_loses_nothing() {
    play("stopped, alone", 1, rounds().div_ceil(8), |step, number, dice| round(step, 1, number, dice));
}

fn round(step: Step, processes: u16, number: u32, dice: &mut Dice) -> Row {
    let (nth, retries) = (step.nth(dice), dice.below(2) as u32);
    let label = format!("SIGSTOP at {step:?} #{nth}, {processes} workers, {retries} retries, seed {}", dice.seed);
    let mut rig = Rig::new(&label, step.load.shape(processes), step.roles(nth, Signal::STOP.as_raw()));
    let victim = rig.pids()[0];
    if !run_until_stopped(&mut rig, victim, step, dice, retries) {
        return Row { rounds: 1, delivered: rig.submitted(), ..Row::default() };
    }
    if processes > 1 {
        run_beside(&mut rig, victim, step, dice, retries);
    }
    let held = rig.unfinished();
    if processes > 1 {
        check_held(&label, &rig, victim, &held, step.held(nth));
    }
    let killed = number % 2 == 1;
    send_signal(victim, if killed { Signal::KILL } else { Signal::CONT });
    rig.wait_all_done("everything has ended after the stop");
    if processes > 1 {
        check_ends(&label, &rig, victim, &held, killed, step.held(nth));
    }
    rig.wait_all_ready();
    step.load.submit(&mut rig, dice, 1);
    rig.wait_all_done("the aftermath has ended");
    let (lost, (_, rerun, _)) = (rig.lost().len(), rig.news.deaths());
    let delivered = rig.submitted() - lost;
    rig.close();
    Row { rounds: 1, hit: 1, held: held.len(), rerun, lost, delivered }
}

/// Gives bursts to the pool until the victim stands still. Says whether it does.
fn run_until_stopped(rig: &mut Rig, victim: u32, step: Step, dice: &mut Dice, retries: u32) -> bool {
    for _ in 0..BURSTS_MAX {
        step.load.submit(rig, dice, retries);
        let until = Instant::now() + WATCHDOG;
        while !rig.unfinished().is_empty() {
            if process_state(victim) == Some('T') {
                return true;
            }
            rig.turn(LOOK);
            assert!(Instant::now() < until, "stuck before the stop at {step:?}, seed {}", dice.seed);
        }
        // It may be on its way to sleep, and stop there.
        rig.turn(LOOK);
        if process_state(victim) == Some('T') {
            return true;
        }
    }
    false
}

/// While the victim stands still: single tasks, then a burst. All of them end, as it can't have claimed any.
fn run_beside(rig: &mut Rig, victim: u32, step: Step, dice: &mut Dice, retries: u32) {
    // First without a word from us, who would hear of everything then: the stopped worker may owe us a ring.
    wait_for_others(rig, victim);
    for _ in 0..SINGLES {
        let token = rig.submit(crate::rig::work::Work::Echo, 0, retries);
        rig.flush();
        rig.wait("a single task has run beside the stopped worker", |rig| rig.outcome(token).is_some());
    }
    let burst = step.load.submit(rig, dice, retries);
    let is_over = |rig: &Rig| burst.iter().all(|token| rig.outcome(*token).is_some());
    rig.wait("a burst has run beside the stopped worker", is_over);
    wait_for_others(rig, victim);
}

/// Waits until everything that others have started has ended. What nobody has started, the victim may hold.
fn wait_for_others(rig: &mut Rig, victim: u32) {
    rig.wait("nothing waits but what the stopped worker holds", |rig| {
        let (starts, waiting) = (rig.starts(), rig.unfinished());
        let is_his = |token: &u64| starts.get(token).is_none_or(|starts| *starts == [victim]);
        waiting.len() <= CONCURRENCY_MAX && waiting.iter().all(is_his)
    });
}

/// Nothing waits but what the victim holds.
fn check_held(label: &str, rig: &Rig, victim: u32, unfinished: &[u64], held: Held) {
    let count = unfinished.len();
    match held {
        Held::Nothing => assert_eq!(count, 0, "{label}: {unfinished:?} wait for a worker that has nothing"),
        Held::Claimed | Held::Started => assert_eq!(count, 1, "{label}: {unfinished:?} wait for a worker that has one"),
        Held::Unknown => assert!(count <= CONCURRENCY_MAX, "{label}: {unfinished:?} wait for a worker that has fewer"),
    }
    let starts = rig.starts();
    for token in unfinished {
        let starts = starts.get(token).map_or(&[][..], Vec::as_slice);
        assert!(starts.is_empty() || starts == [victim], "{label}: task {token} was started by {starts:?}");
    }
}

/// What the victim held, it ended itself when it went on; what it was killed with ran elsewhere, or went with it.
fn check_ends(label: &str, rig: &Rig, victim: u32, held: &[u64], killed: bool, exactly: Held) {
    let (starts, lost) = (rig.starts(), rig.lost());
    for token in 0..rig.submitted() as u64 {
        let starts = starts.get(&token).map_or(&[][..], Vec::as_slice);
        let is_held = held.contains(&token);
        let fine = match starts {
            [] => is_held && killed && lost.contains(&token),
            // Of many items, one may have been on its way to another worker when the others were counted.
            [one] if is_held && !killed => *one == victim || exactly == Held::Unknown,
            [one] if lost.contains(&token) => is_held && *one == victim,
            [_] => true,
            [first, _] => is_held && killed && *first == victim,
            _ => false,
        };
        assert!(fine, "{label}: task {token} (held: {is_held}) was started by {starts:?}: {:?}", rig.outcome(token));
    }
}
