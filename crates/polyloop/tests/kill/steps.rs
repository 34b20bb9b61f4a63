//! The steps at which workers are killed and stopped, what a worker holds there, and the table of what was seen.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use polyloop::DriverConfig;

use crate::dice::Dice;
use crate::rig::work::Work;
use crate::rig::{Rig, Role, SHAPE, open_fds};

/// Items that a worker runs at a time at most.
pub(crate) const CONCURRENCY_MAX: usize = 8;

/// What a worker that runs one item at a time has at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// No item, or one whose outcome is out.
    Nothing,
    /// An item that it has claimed and not started.
    Claimed,
    /// An item that it has started.
    Started,
    /// Up to as many as it may run at a time.
    Unknown,
}

/// What the workers are given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// One small item at a time.
    Small,
    /// One item at a time, whose arguments are fetched.
    Fetched,
    /// One item at a time, whose answer does not fit into the ring.
    Big,
    /// One item at a time, whose arguments and answer are in blocks.
    Apart,
    /// One item at a time, and few in a life.
    Lives,
    /// Up to eight items at a time, of every kind.
    Many,
}

impl Load {
    pub(crate) fn shape(self, processes: u16) -> DriverConfig {
        let concurrency = if self == Self::Many { CONCURRENCY_MAX as u32 } else { 1 };
        let max_tasks = if self == Self::Lives { 6 } else { 0 };
        DriverConfig { processes, concurrency, max_tasks, ..SHAPE }
    }

    /// Submits a burst of tasks.
    pub(crate) fn submit(self, rig: &mut Rig, dice: &mut Dice, retries: u32) -> Vec<u64> {
        let (one, padding) = match self {
            Self::Small | Self::Lives => (Work::Echo, 30),
            Self::Fetched => (Work::Echo, 300_000),
            Self::Big => (Work::Big(600_000), 0),
            Self::Apart => (Work::Mirror(150_000), 0),
            Self::Many => (Work::Echo, 0),
        };
        let most = if matches!(self, Self::Fetched | Self::Big | Self::Apart) { 3 } else { 16 };
        let tokens = (0..=dice.below(most)).map(|_| match (self, dice.below(12)) {
            (Self::Many, 0) => rig.submit(Work::Block(1), 0, retries),
            (Self::Many, 1..4) => rig.submit(Work::Nap(1 + dice.below(3)), 0, retries),
            (Self::Many, 4) => rig.submit(Work::Big(400_000), 0, retries),
            (Self::Many, 5) => rig.submit(Work::Echo, 200_000, retries),
            (Self::Many, 6) => rig.submit(Work::Mirror(100_000), 0, retries),
            (Self::Small, 0) => rig.submit(Work::Block(1), 0, retries),
            _ => rig.submit(one, padding, retries),
        });
        let tokens = tokens.collect();
        rig.flush();
        tokens
    }
}

/// A step of the worker's protocol, under a load that passes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    held: Held,
    /// The last time that it is tried at.
    nth_max: u64,
}

impl Step {
    pub(crate) fn nth(self, dice: &mut Dice) -> u64 {
        1 + dice.below(self.nth_max)
    }

    /// What a worker holds when it passes this step for the nth time.
    pub(crate) fn held(self, nth: u64) -> Held {
        match (self.name, self.load) {
            // The word that it is ready.
            ("publish", Load::Small) if nth == 1 => Held::Nothing,
            _ => self.held,
        }
    }

    /// The roles of a pool whose first process gets `signal` at the nth pass.
    pub(crate) fn roles(self, nth: u64, signal: i32) -> impl FnMut(usize) -> Role {
        roles_at(self.name, nth, signal)
    }
}

/// The roles of a pool whose first process gets `signal` at the nth pass of a step.
pub(crate) fn roles_at(step: &str, nth: u64, signal: i32) -> impl FnMut(usize) -> Role + use<> {
    let plan = format!("{step}:{nth}:{signal}");
    move |start| Role { inject: (start == 0).then(|| plan.clone()), ..Role::HEALTHY }
}

/// Every step that workers of such a pool pass: under the load that tells exactly what a worker holds there, then
/// under the load of many.
fn steps(processes: u16) -> Vec<Step> {
    use Held::{Claimed, Nothing, Started, Unknown};
    use Load::{Apart, Big, Fetched, Lives, Many, Small};
    let exact = [
        ("wake", Small, Nothing, 5),
        ("silence", Small, Nothing, 5),
        ("claim", Small, Nothing, 20),
        ("claimed", Small, Claimed, 20),
        ("read", Small, Claimed, 20),
        ("leased", Small, Claimed, 20),
        ("taken", Small, Started, 20),
        ("start", Small, Started, 20),
        ("publish", Small, Started, 20),
        ("published", Small, Nothing, 20),
        ("cleared", Small, Nothing, 20),
        // Before the next item is claimed; or, where the manager fell asleep only then, when that has been taken.
        ("ring", Small, Unknown, 5),
        ("rung", Small, Unknown, 5),
        ("announce", Small, Nothing, 5),
        ("announced", Small, Nothing, 5),
        ("fetch", Fetched, Started, 5),
        ("fetched", Fetched, Started, 5),
        ("control", Fetched, Started, 30),
        ("bytes", Fetched, Started, 30),
        ("room", Fetched, Started, 3),
        ("piece", Big, Started, 30),
        ("full", Big, Started, 10),
        ("waiting", Big, Started, 10),
        ("waited", Big, Unknown, 10),
        ("waited-cleared", Big, Nothing, 3),
        ("borrow", Apart, Started, 5),
        ("borrowed", Apart, Started, 5),
        ("pass", Apart, Started, 5),
        ("passed", Apart, Started, 5),
        ("lent", Apart, Started, 5),
        ("return", Apart, Unknown, 5),
        ("retire", Lives, Started, 1),
        ("leave", Lives, Nothing, 1),
    ];
    let deferring = (processes > 1).then_some(("defer", Many, Unknown, 3));
    let many = exact.into_iter().filter(|step| step.1 != Lives).chain([("again", Many, Unknown, 3)]).chain(deferring);
    let among_many = |(name, _, _, nth_max)| Step { name, load: Many, held: Unknown, nth_max };
    let exactly = |(name, load, held, nth_max)| Step { name, load, held, nth_max };
    exact.into_iter().map(exactly).chain(many.map(among_many)).collect()
}

/// What was seen at one step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row {
    pub(crate) rounds: u32,
    /// Rounds in which the signal was seen to arrive.
    pub(crate) hit: u32,
    /// Tasks that waited for a stopped worker.
    pub(crate) held: usize,
    pub(crate) rerun: usize,
    pub(crate) lost: usize,
    pub(crate) delivered: usize,
}

impl Row {
    pub(crate) fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.hit += other.hit;
        self.held += other.held;
        self.rerun += other.rerun;
        self.lost += other.lost;
        self.delivered += other.delivered;
    }
}

type Column = (&'static str, fn(&Row) -> usize);

/// The closing table of a test.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) rows: Vec<(String, Row)>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Row::default();
        self.rows.iter().for_each(|(_, row)| all.add(*row));
        let columns: [Column; 6] = [
            ("rounds", |row| row.rounds as usize),
            ("hit", |row| row.hit as usize),
            ("held", |row| row.held),
            ("rerun", |row| row.rerun),
            ("lost", |row| row.lost),
            ("delivered", |row| row.delivered),
        ];
        // Killed workers hold nothing.
        let columns: Vec<_> = columns.into_iter().filter(|(name, _)| *name != "held" || all.held > 0).collect();
        write!(f, "\n{}\n{:24}", self.title, "step, load")?;
        columns.iter().try_for_each(|(name, _)| write!(f, "{name:>10}"))?;
        for (name, row) in self.rows.iter().chain([&("all".into(), all)]) {
            write!(f, "\n{name:24}")?;
            columns.iter().try_for_each(|(_, count)| write!(f, "{:10}", count(row)))?;
        }
        writeln!(f)
    }
}

/// Plays all rounds of all steps, one after another, and prints what was seen. Fails where a step was never reached
/// or a round left descriptors open.
pub(crate) fn play(title: &str, processes: u16, rounds: u32, mut round: impl FnMut(Step, u32, &mut Dice) -> Row) {
    let _alone = alone();
    let mut dice = Dice::new();
    let mut table = Table { title: format!("{title}; seed {}", dice.seed), rows: Vec::new() };
    for step in steps(processes) {
        let mut row = Row::default();
        // Under the load of many, a step is only one of what differs from round to round.
        for number in 0..if step.load == Load::Many { rounds.div_ceil(2) } else { rounds } {
            let before = open_fds();
            row.add(round(step, number, &mut dice));
            assert_eq!(open_fds(), before, "descriptors left open after {step:?}, seed {}", dice.seed);
        }
        table.rows.push((format!("{} {:?}", step.name, step.load), row));
    }
    println!("{table}");
    for (step, row) in &table.rows {
        assert!(row.hit > 0, "no worker ever got its signal at {step}");
    }
}

/// One test at a time: descriptors are counted, and the machine is shared as it is.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
