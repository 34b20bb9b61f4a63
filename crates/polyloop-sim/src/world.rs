//! The world: picks who takes the next step, lets things go wrong, and moves the clock when nobody has anything to do.

use std::collections::BTreeMap;
use std::time::Duration;

use polyloop_core::{Exit, Moment, StartError};

use crate::manager::Manager;
use crate::process::{Life, Pause, Process};
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::scenario::{Action, Scenario};
use crate::site::{Event, Notice, Order, Party, Site};
use crate::vigil::Vigil;

/// Steps that no run needs.
const STEPS_MAX: u64 = 300_000;
/// A closed pool is over by then: longer than all tasks one after the other and all waits before starts.
const CLOSE_MAX: Duration = Duration::from_secs(300);
const TERMINATE_MAX: Duration = Duration::from_secs(2);
/// A step takes no longer.
const STEP_NANOS_MAX: u64 = 2_000;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed that leads to it.
    pub seed: u64,
    /// What was broken.
    pub what: String,
}

/// Figures of a run that ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) steps: u64,
    pub(crate) tally: BTreeMap<&'static str, u64>,
}

/// Runs one seed to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, sabotage: Option<Sabotage>, traces: bool) -> Result<(), Failure> {
    run_counted(seed, sabotage, traces).map(|_| ())
}

pub(crate) fn run_counted(seed: u64, sabotage: Option<Sabotage>, traces: bool) -> Result<Run, Failure> {
    let mut world = World::new(seed, sabotage, traces);
    world.run();
    match world.site.ledger.violation.take() {
        Some(what) => Err(Failure { seed, what }),
        None => Ok(Run { steps: world.steps, tally: world.site.ledger.tally }),
    }
}

struct World {
    site: Site,
    manager: Manager,
    processes: Vec<Process>,
    vigil: Vigil,
    rng: Rng,
    last: Party,
    steps: u64,
    kills: u32,
    end_by: Moment,
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>, traces: bool) -> Self {
        let scenario = Scenario::from_seed(seed);
        if traces {
            println!("{scenario:#?}");
        }
        let mut rng = Rng::new(!seed);
        let site = Site::new(scenario, rng.fork(), sabotage, traces);
        Self {
            manager: Manager::new(&site),
            site,
            processes: Vec::new(),
            vigil: Vigil::default(),
            rng,
            last: Party::Manager,
            steps: 0,
            kills: 0,
            end_by: Moment::MAX,
        }
    }

    fn run(&mut self) {
        while self.site.ledger.violation.is_none() && !self.site.ledger.closed {
            self.happen();
            match self.pick() {
                Some(party) => self.step(party),
                None => self.pass(),
            }
        }
        if self.site.ledger.violation.is_none() {
            let outlives = self.processes.iter().find(|process| process.life == Life::Alive);
            let outlives = outlives.map(|process| process.worker);
            self.site.ledger.demand(outlives.is_none(), || format!("{outlives:?} outlives its pool"));
            self.site.ledger.settle();
        }
    }

    /// Lets happen what is due.
    fn happen(&mut self) {
        while let Some(event) = self.site.next_event() {
            match event {
                Event::Rung(party) => self.site.rung(party),
                Event::Spawn(process) => self.spawn(process),
                Event::Notice(notice) => self.manager.notify(notice),
                Event::Action(action) => {
                    self.expect_end(action);
                    self.manager.ask(action);
                }
            }
        }
    }

    fn expect_end(&mut self, action: Action) {
        let within = match action {
            Action::Close => CLOSE_MAX,
            Action::Terminate => TERMINATE_MAX,
            _ => return,
        };
        self.end_by = self.end_by.min(self.site.now + within);
    }

    /// Who takes the next step: any that can, and often the same again.
    fn pick(&mut self) -> Option<Party> {
        let inertia = self.site.scenario.habits.inertia;
        if self.can_step(self.last) && self.rng.below(8) < inertia {
            return Some(self.last);
        }
        let able = (0..self.processes.len()).map(Party::Process).chain([Party::Manager]);
        let able: Vec<_> = able.filter(|party| self.can_step(*party)).collect();
        (!able.is_empty()).then(|| self.rng.pick(&able))
    }

    fn can_step(&self, party: Party) -> bool {
        match party {
            Party::Manager => self.manager.can_step(&self.site),
            Party::Process(index) => self.processes[index].can_step(&self.site),
        }
    }

    fn step(&mut self, party: Party) {
        self.last = party;
        self.steps += 1;
        self.site.ledger.demand(self.steps < STEPS_MAX, || "it goes on and on without an end".into());
        self.site.now += Duration::from_nanos(self.rng.below(STEP_NANOS_MAX));
        if self.interfere(party) {
            return;
        }
        match party {
            Party::Manager => self.manager.step(&mut self.site),
            Party::Process(index) => self.processes[index].step(&mut self.site),
        }
        for order in std::mem::take(&mut self.site.orders) {
            self.obey(order);
        }
    }

    /// Lets something go wrong before a step. Says whether the step must not be taken now.
    fn interfere(&mut self, party: Party) -> bool {
        let faults = self.site.scenario.faults.clone();
        if self.site.fails(faults.wake_steps) {
            self.wake_someone();
        }
        if self.site.fails(faults.stall_steps) {
            let until = self.site.now + self.rng.micros(1..=faults.stall_max.as_micros() as u64);
            self.site.trace("world", || format!("{party:?} stalls until {until:?}"));
            match party {
                Party::Manager => self.manager.stalled_until = until,
                Party::Process(index) => self.processes[index].stalled_until = until,
            }
            return true;
        }
        if self.kills < faults.kills_max && self.site.fails(faults.kill_steps) {
            let alive = |index: &usize| self.processes[*index].life == Life::Alive;
            let victims: Vec<_> = match party {
                Party::Process(index) => vec![index],
                Party::Manager => (0..self.processes.len()).filter(alive).collect(),
            };
            if !victims.is_empty() {
                self.kills += 1;
                let victim = self.rng.pick(&victims);
                self.kill(victim, Exit::Signal(SIGKILL));
                return true;
            }
        }
        false
    }

    /// A loop that wakes up for a reason of its own.
    fn wake_someone(&mut self) {
        let now = self.site.now;
        let sleeps =
            |process: &&mut Process| process.life == Life::Alive && matches!(process.pause, Some(Pause::Asleep(_)));
        let mut sleepers: Vec<_> = self.processes.iter_mut().filter(sleeps).collect();
        let at = self.rng.below(sleepers.len() as u64 + 1) as usize;
        match sleepers.get_mut(at) {
            Some(process) => process.pause = Some(Pause::Asleep(now)),
            None => self.manager.asleep = self.manager.asleep.map(|_| now),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start { worker, queue, own } => {
                let index = self.processes.len();
                self.processes.push(Process::new(&self.site, worker, queue, index, own));
                self.site.ledger.process(worker);
                let at = self.site.now + self.site.delay();
                self.site.schedule(at, Event::Spawn(index));
            }
            Order::Greet { process } => self.processes[process].stalled_until = self.site.now,
            Order::Exit { process, exit } => self.kill(process, exit),
            Order::Signal { process, gently } => match (gently, self.site.scenario.habits.dies_of_term) {
                (false, _) => self.kill(process, Exit::Signal(SIGKILL)),
                (true, true) => self.kill(process, Exit::Signal(SIGTERM)),
                (true, false) => self.processes[process].terminate(),
            },
        }
    }

    fn spawn(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let worker = process.worker;
        let refused = self.site.fails_to_start();
        self.site.trace("world", || format!("{worker} {}", if refused { "is refused" } else { "starts" }));
        let notice = if refused {
            process.life = Life::Dead;
            Notice::NotStarted { worker, error: StartError::Refused("refused".into()) }
        } else {
            process.life = Life::Alive;
            process.stalled_until = Moment::MAX;
            Notice::Started { worker, process: index }
        };
        let at = self.site.now + self.site.delay();
        process.told_at = at;
        self.site.schedule(at, Event::Notice(notice));
    }

    /// Ends a process, if it runs. Its manager learns of that later, and not before it knows that it was started.
    fn kill(&mut self, index: usize, exit: Exit) {
        let process = &mut self.processes[index];
        if process.life != Life::Alive {
            return;
        }
        process.life = Life::Dead;
        let worker = process.worker;
        let at = (self.site.now + self.site.delay()).max(process.told_at);
        self.site.trace("world", || format!("{worker} ends: {exit}"));
        self.site.ledger.died(index, exit);
        self.site.schedule(at, Event::Notice(Notice::Exited { worker, exit }));
    }

    /// Nobody can take a step: moves the clock to when something happens by itself.
    fn pass(&mut self) {
        let now = self.site.now;
        let sleeping = self.processes.iter().filter(|process| process.life == Life::Alive);
        let waits = sleeping.flat_map(|process| [process.pause.map(Pause::until), Some(process.stalled_until)]);
        let manager = [self.manager.asleep, Some(self.manager.stalled_until), self.site.next_event_at()];
        let next = waits.chain(manager).flatten().filter(|at| *at > now && *at != Moment::MAX).min();
        self.vigil.look(&mut self.site, &mut self.manager, &self.processes, next.unwrap_or(Moment::MAX));
        let Some(next) = next else {
            return self.site.ledger.violate("nothing will ever happen again, and the pool is not closed".into());
        };
        let end_by = self.end_by;
        self.site.ledger.demand(next <= end_by, || format!("the pool should have been over by {end_by:?}"));
        self.site.now = next;
    }
}
