//! Workers that are killed, or stopped for a while, while they give the values of streams: what has come is in order and
//! comes once, a stream of which something has come is not run again, and every stream ends.

use std::time::{Duration, Instant};

use polyloop::{DriverConfig, Outcome, STREAM_VALUES};
use rustix::process::Signal;

use crate::dice::{Dice, rounds};
use crate::rig::work::Work;
use crate::rig::{Rig, SHAPE, WATCHDOG, open_fds, process_state, send_signal};
use crate::steps::{Row, Table, alone, roles_at};

/// Steps that a worker takes for the values of a stream, and the last time that each is tried at.
const STEPS: [(&str, u64); 13] = [
    ("taken", 6),
    ("given", 300),
    ("publish", 300),
    ("published", 300),
    ("ring", 20),
    ("rung", 20),
    ("full", 100),
    ("waiting", 60),
    ("waited", 60),
    ("control", 20),
    ("announce", 20),
    ("announced", 20),
    ("cleared", 3),
];
/// Streams that the victim runs at a time, at most, and the bursts after which a step counts as not reached.
const CONCURRENCY: u32 = 4;
const BURSTS_MAX: u32 = 60;
/// How often a process's state is looked at.
const LOOK: Duration = Duration::from_millis(2);

#[test]
fn a_worker_killed_while_it_gives_takes_only_its_streams_with_it() {
    play("killed while it gives", Signal::KILL);
}

#[test]
fn a_worker_stopped_for_a_while_loses_no_value() {
    play("stopped while it gives", Signal::STOP);
}

fn play(title: &str, signal: Signal) {
    let _alone = alone();
    let mut dice = Dice::new();
    let mut table = Table { title: format!("{title}; seed {}", dice.seed), rows: Vec::new() };
    for (step, nth_max) in STEPS {
        let mut row = Row::default();
        for _ in 0..rounds().div_ceil(2) {
            let before = open_fds();
            row.add(round(step, 1 + dice.below(nth_max), signal, &mut dice));
            assert_eq!(open_fds(), before, "descriptors left open after {step}, seed {}", dice.seed);
        }
        table.rows.push((step.to_owned(), row));
    }
    println!("{table}");
    for (step, row) in &table.rows {
        assert!(row.hit > 0, "no worker ever got its signal at {step}");
    }
}

fn round(step: &str, nth: u64, signal: Signal, dice: &mut Dice) -> Row {
    let retries = dice.below(2) as u32;
    let label = format!("{signal:?} at {step} #{nth} of streams, {retries} retries, seed {}", dice.seed);
    let shape = DriverConfig { processes: 2, concurrency: CONCURRENCY, ..SHAPE };
    let mut rig = Rig::new(&label, shape, roles_at(step, nth, signal.as_raw()));
    let victim = rig.pids()[0];
    let mut row = Row { rounds: 1, ..Row::default() };
    for _ in 0..BURSTS_MAX {
        burst(&mut rig, dice, retries);
        let until = Instant::now() + WATCHDOG;
        while !rig.unfinished().is_empty() && process_state(victim) != Some('T') {
            rig.turn(LOOK);
            assert!(Instant::now() < until, "{label}: stuck before the signal");
        }
        if process_state(victim) == Some('T') {
            row.hit = 1;
            row.held = rig.unfinished().len();
            send_signal(victim, Signal::CONT);
        }
        rig.wait_all_done("a burst has ended");
        if row.hit == 1 || !rig.is_alive(victim) {
            break;
        }
    }
    rig.wait_all_ready();
    burst(&mut rig, dice, retries);
    rig.wait_all_done("the aftermath has ended");
    row.hit |= u32::from(rig.was_killed(victim));
    (row.lost, row.rerun) = (check(&label, &rig, victim, retries), rig.news.deaths().1);
    row.delivered = rig.submitted() - row.lost;
    rig.close();
    row
}

/// Submits some streams, most of which need credit; one of them may be left at once.
fn burst(rig: &mut Rig, dice: &mut Dice, retries: u32) {
    let lengths = [0, 1, 20, STREAM_VALUES as u64, 3 * STREAM_VALUES as u64];
    let streams = 1 + dice.below(6);
    let tokens = (0..streams).map(|_| {
        let values = lengths[dice.below(lengths.len() as u64) as usize];
        rig.submit(Work::Stream(values), 0, retries)
    });
    let tokens: Vec<_> = tokens.collect();
    rig.flush();
    if dice.below(4) == 0 {
        rig.cancel(tokens[0]);
    }
}

/// Checks how each stream ended, and says how many were lost. That values came in order was checked as they came.
fn check(label: &str, rig: &Rig, victim: u32, retries: u32) -> usize {
    let starts = rig.starts();
    for token in 0..rig.submitted() as u64 {
        let starts = starts.get(&token).map_or(&[][..], Vec::as_slice);
        let fine = match rig.outcome(token) {
            Some(Outcome::Value(_)) => starts.len() == 1 || starts.len() == 2 && starts[0] == victim && retries == 1,
            Some(Outcome::Cancelled) => rig.was_left(token),
            // With a retry left, only because something of it had come.
            Some(Outcome::Lost(loss)) => loss.pid == Some(victim) && (retries == 0 || rig.values(token) > 0),
            _ => false,
        };
        assert!(fine, "{label}: stream {token} was started by {starts:?} and ended as {:?}", rig.outcome(token));
    }
    let lost = rig.lost().len();
    assert!(lost <= CONCURRENCY as usize, "{label}: it can't have had so many: {:?}", rig.lost());
    lost
}
