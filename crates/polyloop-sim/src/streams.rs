//! Streams: what a task gives before it ends, what the client does with it, and what must hold of it: values come in
//! order, each once, none after the end, never more of them than there is credit for, and all of them before a result.

use std::collections::BTreeMap;
use std::time::Duration;

use polyloop_core::{Outcome, STREAM_VALUES};

use crate::rng::Rng;
use crate::scenario::{Action, Behaviour, Plan};
use crate::site::{Event, Site};

/// Streams have a chance of their own, so that most seeds stand for what they stood for before there were any: those that
/// tests name, by this number.
const SALT: u64 = 0x5eed_0f57_4ea3_5008;
/// Streams of one seed; each value costs as many steps as a task.
const STREAMS_MAX: usize = 8;
/// Token and number, which every value begins with.
const HEAD_BYTES: u64 = 8;

/// What a stream gives, and how it is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamPlan {
    pub(crate) values: usize,
    pub(crate) bytes: usize,
    /// What its worker needs for each.
    pub(crate) pause: Duration,
    /// How long the client lets those wait that have come, at most.
    pace: Duration,
    /// It takes all that have come, not just one.
    takes_all: bool,
    /// It leaves after so many.
    leaves_after: Option<usize>,
}

/// Makes streams of some tasks of some seeds.
pub(crate) fn plan_streams(seed: u64, tasks: &mut [Plan]) {
    let mut rng = Rng::new(seed ^ SALT);
    if !rng.once_in(4) {
        return;
    }
    let mut left = STREAMS_MAX;
    for task in tasks {
        let can = matches!(
            task.behaviour,
            Behaviour::Return | Behaviour::Raise | Behaviour::Sleep(_) | Behaviour::Forever | Behaviour::Exit
        );
        if can && left > 0 && rng.once_in(3) {
            left -= 1;
            task.stream = Some(plan(&mut rng));
        }
    }
}

fn plan(rng: &mut Rng) -> StreamPlan {
    let most = rng.pick(&[0, 20, 200]);
    let (pace, pause) = (rng.pick(&[0, 50, 1_000]), rng.pick(&[0, 0, 20, 500]));
    StreamPlan {
        values: if most > 20 { rng.pick(&[1, 5, 40]) } else { rng.pick(&[0, 1, 5, 40, 100, 200]) },
        bytes: rng.within(HEAD_BYTES..=HEAD_BYTES + most) as usize,
        pause: Duration::from_micros(pause),
        pace: Duration::from_micros(pace),
        takes_all: rng.once_in(2),
        leaves_after: rng.once_in(4).then(|| rng.within(1..=50) as usize),
    }
}

/// The value of this number.
pub(crate) fn value_bytes(token: usize, number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..4].copy_from_slice(&(token as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    bytes
}

/// A stream as the client has it.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    arrived: usize,
    taken: usize,
    left: bool,
    /// The client will look at what has come.
    awaited: bool,
}

/// What a look at a stream has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// So many values were taken.
    Took(usize),
    /// So many, and then it left.
    Left(usize),
}

/// The client's streams, by token.
#[derive(Debug, Default)]
pub(crate) struct Readings(BTreeMap<usize, Reading>);

impl Readings {
    /// A value has come.
    pub(crate) fn arrived(&mut self, site: &mut Site, token: usize, value: &[u8]) {
        let reading = self.0.entry(token).or_default();
        let Some(plan) = site.scenario.tasks[token].stream else {
            return site.ledger.violate(format!("a value of task {token}, which is no stream"));
        };
        site.ledger.count("values of streams");
        let over = !site.ledger.is_unfinished(token);
        site.ledger.demand(!over, || format!("a value of stream {token} after its end"));
        if reading.left {
            return;
        }
        let number = reading.arrived;
        let is_next = number < plan.values && value == value_bytes(token, number, plan.bytes);
        site.ledger.demand(is_next, || format!("value {number} of stream {token} is another"));
        reading.arrived += 1;
        let kept = reading.arrived - reading.taken;
        site.ledger.demand(kept <= STREAM_VALUES, || format!("{kept} values of stream {token} wait"));
        reading.await_look(site, token, plan);
    }

    /// The client takes what it wants, or leaves.
    pub(crate) fn look(&mut self, site: &mut Site, token: usize) -> Look {
        let (Some(reading), Some(plan)) = (self.0.get_mut(&token), site.scenario.tasks[token].stream) else {
            return Look::Took(0);
        };
        reading.awaited = false;
        let most = if plan.takes_all { usize::MAX } else { 1 };
        let until_left = plan.leaves_after.map_or(usize::MAX, |most| most - reading.taken);
        let takes = if reading.left { 0 } else { (reading.arrived - reading.taken).min(most).min(until_left) };
        reading.taken += takes;
        if !reading.left && Some(reading.taken) == plan.leaves_after {
            reading.left = true;
            site.ledger.count("streams left");
            return Look::Left(takes);
        }
        if !reading.left && reading.arrived > reading.taken {
            reading.await_look(site, token, plan);
        }
        Look::Took(takes)
    }

    /// A task has ended: if it was a stream that nobody has left, by itself, then all of it has come.
    pub(crate) fn ended(&self, site: &mut Site, token: usize, outcome: &Outcome) {
        let Some(plan) = site.scenario.tasks[token].stream else { return };
        let reading = self.0.get(&token).copied().unwrap_or_default();
        let by_itself = matches!(outcome, Outcome::Value(_) | Outcome::Raised(_));
        if by_itself && !site.ledger.is_cancelled(token) {
            site.ledger.count("streams to the end");
            let whole = reading.arrived == plan.values;
            site.ledger.demand(whole, || format!("stream {token} ended, and {reading:?} of {plan:?}"));
        }
    }
}

impl Reading {
    fn await_look(&mut self, site: &mut Site, token: usize, plan: StreamPlan) {
        if !std::mem::replace(&mut self.awaited, true) {
            let at = site.now + site.rng.micros(0..=plan.pace.as_micros() as u64);
            site.schedule(at, Event::Action(Action::Take(token)));
        }
    }
}
