//! What a seed stands for: the shape of the pool, the tasks, what the client does and when, and how often what fails.
//! Everything is small, so that full boards, full rings and empty rooms are the rule.

use std::time::Duration;

use polyloop_core::{Moment, PoolConfig, WorkerConfig};

use crate::rng::Rng;
use crate::streams::{StreamPlan, plan_streams};

/// What a task does once it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Return,
    Raise,
    Reject,
    /// Returns so many bytes.
    ReturnLarge(usize),
    /// Keeps its worker's loop busy.
    Block(Duration),
    Sleep(Duration),
    /// Waits until it is cancelled.
    Forever,
    /// Waits, and ignores its cancellation; its worker leaves after the grace.
    Stubborn,
    /// Keeps its worker's loop busy until that is killed.
    Hang,
    /// Ends its process.
    Exit,
    /// Calls the pool so many times, waits for all answers, and returns.
    Call(u64),
}

impl Behaviour {
    pub(crate) fn is_endless(self) -> bool {
        matches!(self, Self::Forever | Self::Stubborn | Self::Hang)
    }
}

/// One seed in so many has tasks that call the pool.
const CALLING_SEEDS: u64 = 5;
/// How deep calls of tasks by tasks go.
const DEPTH_MAX: u32 = 2;
/// Calls of one task.
const CALLS_MAX: u64 = 4;
/// Tasks that wait for calls of their own in one worker: more than ever do here.
const WAITING_PLACES: u32 = 256;

/// A task to be; its token is its place in the list.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) behaviour: Behaviour,
    pub(crate) retries: u32,
    /// Whether the death of its worker is a reason to run it again.
    pub(crate) retry_deaths: bool,
    pub(crate) timeout: Option<Moment>,
    pub(crate) queue: u16,
    pub(crate) call: Option<usize>,
    pub(crate) function: Vec<u8>,
    pub(crate) arguments: Vec<u8>,
    /// What it gives before its behaviour, if it is a stream.
    pub(crate) stream: Option<StreamPlan>,
    /// How many tasks called for it, one for the other.
    pub(crate) depth: u32,
}

/// A call that submits its tasks as earlier ones end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallPlan {
    pub(crate) weight: u32,
    pub(crate) window: usize,
    /// Whether the first failure cancels the rest.
    pub(crate) gives_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Submit(usize),
    Open(usize),
    Cancel(usize),
    CancelCall(usize),
    /// To look at what has come of a stream.
    Take(usize),
    Close,
    Terminate,
    Resize(u16),
    Restart,
}

/// How often something goes wrong: once in so many times, 0 for never.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) kill_steps: u64,
    pub(crate) kills_max: u32,
    pub(crate) stall_steps: u64,
    pub(crate) stall_max: Duration,
    pub(crate) start_fails: u64,
    pub(crate) start_fails_max: u32,
    pub(crate) late_ring: u64,
    pub(crate) wake_steps: u64,
    pub(crate) repeated_frame: u64,
    /// Nothing goes wrong after this.
    pub(crate) until: Moment,
}

impl Faults {
    /// Whether somebody may be slow to hear of something.
    pub(crate) fn slows(&self) -> bool {
        self.stall_steps != 0 || self.late_ring != 0
    }
}

/// Liberties that the link has.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// The manager is rung after each outcome, not once for many.
    pub(crate) rings_each: bool,
    /// Records read of one ring before the next one's turn.
    pub(crate) records_per_look: u32,
    /// SIGTERM ends a worker at once, rather than asking it to stop.
    pub(crate) dies_of_term: bool,
    /// A worker outgrows its limit with an item once in so many times; 0 for never.
    pub(crate) grows: u64,
    /// An actor goes on rather than letting another step, so many times in eight.
    pub(crate) inertia: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) pool: PoolConfig,
    pub(crate) worker: WorkerConfig,
    pub(crate) result_words: usize,
    pub(crate) control_words: usize,
    pub(crate) tasks: Vec<Plan>,
    pub(crate) calls: Vec<CallPlan>,
    pub(crate) actions: Vec<(Moment, Action)>,
    pub(crate) faults: Faults,
    pub(crate) habits: Habits,
}

impl Scenario {
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let (pool, worker) = shape(&mut rng);
        let horizon = rng.pick(&[2_000, 20_000, 100_000]);
        let end = end(&mut rng, horizon);
        let calls: Vec<_> = (0..rng.below(3)).map(|_| call(&mut rng)).collect();
        let most = rng.pick(&[8, 24, 24, 24, 24, 24, 24, 60, 60, 200]);
        let tasks: Vec<_> = (0..rng.within(1..=most)).map(|token| task(&mut rng, token, &pool, calls.len())).collect();
        let mut actions = end;
        for (token, _) in tasks.iter().enumerate().filter(|(_, task)| task.call.is_none()) {
            actions.push((rng.micros(0..=horizon), Action::Submit(token)));
        }
        for call in 0..calls.len() {
            actions.push((rng.micros(0..=horizon / 2), Action::Open(call)));
            if rng.once_in(4) {
                actions.push((rng.micros(0..=horizon), Action::CancelCall(call)));
            }
        }
        for _ in 0..rng.below(5) {
            actions.push((rng.micros(0..=horizon), Action::Cancel(rng.below(tasks.len() as u64) as usize)));
        }
        actions.sort_by_key(|(at, _)| *at);
        let faults = faults(&mut rng, horizon);
        let habits = habits(&mut rng);
        let (result_words, control_words) = (rng.pick(&[16, 16, 32, 64, 1024]), rng.pick(&[16, 16, 32, 512]));
        let max_age = rng.once_in(3).then(|| rng.micros(500..=horizon));
        let pool = PoolConfig { max_age, overlap: !rng.once_in(3), ..pool };
        actions.extend(changes(&mut rng, horizon, &pool));
        actions.sort_by_key(|(at, _)| *at);
        let (mut tasks, mut pool) = (tasks, pool);
        // By a generator of their own, so that all other seeds stand for what they have stood for.
        if seed % CALLING_SEEDS == 1 {
            let mut rng = Rng::new(seed.rotate_left(32));
            // With one alone, what is to run alone could fill the board, and wait for those who wait for what is not on it.
            pool.slots = pool.slots.max(2);
            for task in &mut tasks {
                if rng.once_in(3) {
                    task.behaviour = Behaviour::Call(rng.within(1..=CALLS_MAX));
                }
            }
        }
        plan_streams(seed, &mut tasks);
        Self { pool, worker, result_words, control_words, tasks, calls, actions, faults, habits }
    }
}

impl Scenario {
    /// Items that a worker may hold.
    pub(crate) fn leases(&self) -> u32 {
        self.worker.concurrency + WAITING_PLACES
    }

    /// A task that another calls for, and its token.
    pub(crate) fn call(&mut self, rng: &mut Rng, caller: usize) -> usize {
        let (token, depth) = (self.tasks.len(), self.tasks[caller].depth + 1);
        let mut plan = task(rng, token as u64, &self.pool, 0);
        // Beside its caller, who alone would withdraw it, it would hang for ever.
        if plan.behaviour == Behaviour::Hang {
            plan.behaviour = Behaviour::Stubborn;
        }
        if depth < DEPTH_MAX && rng.once_in(3) {
            plan.behaviour = Behaviour::Call(rng.within(1..=CALLS_MAX));
        }
        self.tasks.push(Plan { depth, queue: self.tasks[caller].queue, ..plan });
        token
    }
}

fn shape(rng: &mut Rng) -> (PoolConfig, WorkerConfig) {
    let processes = rng.within(1..=4) as u16;
    let slot_bytes = rng.pick(&[32, 64, 128, 512]);
    let items_max = rng.pick(&[4, 4, 4, 32]);
    let pool = PoolConfig {
        processes,
        queues: rng.within(1..=2).min(processes.into()) as u16,
        seats: processes + rng.below(3) as u16,
        slots: rng.within(1..=4) as u32,
        slot_items: rng.within(1..=items_max) as u32,
        concurrency: 1,
        slot_bytes,
        inline_bytes: rng.pick(&[16, 32, slot_bytes]),
        grace: rng.micros(1_000..=10_000),
        max_age: None,
        overlap: true,
    };
    let max_tasks = if rng.once_in(2) { 0 } else { rng.within(1..=5) };
    let concurrency = rng.pick(&[1, 1, 2, 3, 4, 16]);
    (PoolConfig { concurrency, ..pool }, WorkerConfig { concurrency, max_tasks })
}

fn end(rng: &mut Rng, horizon: u64) -> Vec<(Moment, Action)> {
    let at = rng.micros(0..=horizon + horizon / 4);
    let later = at + rng.micros(0..=horizon / 2);
    match rng.below(4) {
        0 => vec![(at, Action::Terminate)],
        1 => vec![(at, Action::Close), (later, Action::Terminate)],
        _ => vec![(at, Action::Close)],
    }
}

fn changes(rng: &mut Rng, horizon: u64, pool: &PoolConfig) -> Vec<(Moment, Action)> {
    let resize = |rng: &mut Rng| Action::Resize(rng.within(pool.queues.into()..=pool.seats.into()) as u16);
    let each = |rng: &mut Rng| if rng.once_in(2) { resize(rng) } else { Action::Restart };
    let count = if rng.once_in(2) { 0 } else { rng.below(4) };
    (0..count).map(|_| (rng.micros(0..=horizon), each(rng))).collect()
}

fn call(rng: &mut Rng) -> CallPlan {
    CallPlan { weight: rng.within(1..=3) as u32, window: rng.pick(&[1, 2, 4, 8, 100]), gives_up: rng.once_in(3) }
}

fn task(rng: &mut Rng, token: u64, pool: &PoolConfig, calls: usize) -> Plan {
    let time = |rng: &mut Rng| {
        let most = rng.pick(&[50, 1_000, 20_000]);
        rng.micros(0..=most)
    };
    let behaviour = match rng.below(24) {
        0..8 => Behaviour::Return,
        8..10 => Behaviour::Raise,
        10 => Behaviour::Reject,
        11..13 => Behaviour::ReturnLarge(rng.within(10..=300) as usize),
        13..16 => Behaviour::Block(time(rng)),
        16..20 => Behaviour::Sleep(time(rng)),
        20..22 => Behaviour::Forever,
        22 => rng.pick(&[Behaviour::Stubborn, Behaviour::Hang]),
        _ => Behaviour::Exit,
    };
    let length = if rng.once_in(5) { rng.within(1..=200) } else { rng.within(4..=12) };
    let mut arguments = vec![token as u8; length.max(4) as usize];
    arguments[..4].copy_from_slice(&(token as u32).to_le_bytes());
    Plan {
        behaviour,
        retries: rng.pick(&[0, 0, 1, 2, 3, 5]),
        retry_deaths: !rng.once_in(8),
        timeout: rng.once_in(4).then(|| rng.micros(1..=5_000)),
        queue: rng.below(pool.queues.into()) as u16,
        call: (calls > 0 && rng.once_in(2)).then(|| rng.below(calls as u64) as usize),
        function: vec![b'f'; rng.pick(&[1, 1, 8, 15])],
        arguments,
        stream: None,
        depth: 0,
    }
}

fn faults(rng: &mut Rng, horizon: u64) -> Faults {
    if rng.once_in(5) {
        return Faults::default();
    }
    Faults {
        kill_steps: rng.pick(&[0, 15, 60, 300, 1_000]),
        kills_max: rng.within(1..=10) as u32,
        stall_steps: rng.pick(&[0, 20, 100, 500]),
        stall_max: rng.micros(1..=30_000),
        start_fails: rng.pick(&[0, 0, 2, 5]),
        start_fails_max: rng.within(1..=5) as u32,
        late_ring: rng.pick(&[0, 2, 10]),
        wake_steps: rng.pick(&[0, 50, 500]),
        repeated_frame: rng.pick(&[0, 3, 20]),
        until: rng.micros(horizon / 2..=horizon * 2),
    }
}

fn habits(rng: &mut Rng) -> Habits {
    Habits {
        rings_each: rng.once_in(2),
        records_per_look: rng.pick(&[1, 3, 100]),
        dies_of_term: rng.once_in(2),
        grows: rng.pick(&[0, 0, 4, 20]),
        inertia: rng.pick(&[0, 4, 7]),
    }
}
