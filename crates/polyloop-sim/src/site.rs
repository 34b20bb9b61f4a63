//! What all actors share: the clock, shared memory, doorbells, what the operating system has been asked to do, and
//! the ledger. Ringing a bell here is all that one actor can do to another, but for the memory.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use polyloop_core::{Exit, Moment, QueueIndex, StartError, WorkerId};
use polyloop_shm::{Board, Geometry, Words, ring_words};

use crate::ledger::Ledger;
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::scenario::{Action, Scenario};

/// Someone who takes steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Manager,
    /// By the order in which processes were asked for.
    Process(usize),
}

impl Party {
    fn bell(self) -> usize {
        match self {
            Self::Manager => 0,
            Self::Process(index) => index + 1,
        }
    }
}

/// What a descriptor other than a doorbell tells the manager.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    Started { worker: WorkerId, process: usize },
    NotStarted { worker: WorkerId, error: StartError },
    Exited { worker: WorkerId, exit: Exit },
}

/// Something that happens by itself at a given time.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A ring that was late.
    Rung(Party),
    Spawn(usize),
    Notice(Notice),
    Action(Action),
}

/// What an actor asks the operating system for; carried out after its step.
pub(crate) enum Order {
    Start {
        worker: WorkerId,
        queue: QueueIndex,
        own: Own,
    },
    /// A process is welcome: it does nothing before.
    Greet {
        process: usize,
    },
    Signal {
        process: usize,
        gently: bool,
    },
    /// The process ends itself.
    Exit {
        process: usize,
        exit: Exit,
    },
}

/// The memory of one worker and the manager.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) leases: Words,
    pub(crate) results: Words,
    pub(crate) control: Words,
}

/// The memory of the whole pool.
pub(crate) struct Shared {
    pub(crate) manager_epoch: Words,
    pub(crate) epochs: Vec<Words>,
    pub(crate) statuses: Vec<Words>,
    pub(crate) boards: Vec<Board>,
}

impl Shared {
    fn new(scenario: &Scenario) -> Self {
        let pool = &scenario.pool;
        let words = |count| (0..count).map(|_| Words::heap(1)).collect();
        let geometry = Geometry { slots: pool.slots, items: pool.slot_items, blob_words: pool.slot_bytes as u32 / 8 };
        let board = |_| Board::new(Words::heap(geometry.board_words()), geometry);
        Self {
            manager_epoch: Words::heap(1),
            epochs: words(pool.seats),
            statuses: words(pool.seats),
            boards: (0..pool.queues).map(board).collect(),
        }
    }
}

pub(crate) struct Site {
    pub(crate) now: Moment,
    pub(crate) rng: Rng,
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) shared: Shared,
    pub(crate) ledger: Ledger,
    pub(crate) orders: Vec<Order>,
    agenda: BTreeMap<(Moment, u64), Event>,
    scheduled: u64,
    processes: usize,
    start_failures: u32,
    /// By party: whether the bell has been rung and not silenced, and how many rings are on their way.
    bells: Vec<(bool, u32)>,
    traces: bool,
}

impl Site {
    pub(crate) fn new(scenario: Scenario, rng: Rng, sabotage: Option<Sabotage>, traces: bool) -> Self {
        let mut site = Self {
            now: Moment::ZERO,
            rng,
            sabotage,
            shared: Shared::new(&scenario),
            ledger: Ledger::new(&scenario),
            orders: Vec::new(),
            agenda: BTreeMap::new(),
            scheduled: 0,
            processes: 0,
            start_failures: 0,
            bells: vec![(false, 0)],
            traces,
            scenario: Arc::new(scenario),
        };
        let scenario = Arc::clone(&site.scenario);
        for (at, action) in &scenario.actions {
            site.schedule(*at, Event::Action(*action));
        }
        site
    }

    /// Fresh memory for one worker.
    pub(crate) fn own(&self) -> Own {
        let Scenario { result_words, control_words, .. } = &*self.scenario;
        Own {
            leases: Words::heap(self.scenario.leases() as usize),
            results: Words::heap(ring_words(*result_words)),
            control: Words::heap(ring_words(*control_words)),
        }
    }

    /// A task that another calls for: its token.
    pub(crate) fn new_call(&mut self, caller: usize, process: usize) -> usize {
        let token = Arc::make_mut(&mut self.scenario).call(&mut self.rng, caller);
        self.ledger.calls(&self.scenario.tasks[token], caller, process);
        token
    }

    /// The number of the next process.
    pub(crate) fn next_process(&mut self) -> usize {
        self.processes += 1;
        self.processes - 1
    }

    pub(crate) fn schedule(&mut self, at: Moment, event: Event) {
        self.scheduled += 1;
        self.agenda.insert((at, self.scheduled), event);
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let entry = self.agenda.first_entry()?;
        (entry.key().0 <= self.now).then(|| entry.remove())
    }

    pub(crate) fn next_event_at(&self) -> Option<Moment> {
        self.agenda.keys().next().map(|(at, _)| *at)
    }

    /// Whether faults happen now, and one that happens once in `times` does.
    pub(crate) fn fails(&mut self, times: u64) -> bool {
        times != 0 && self.now < self.scenario.faults.until && self.rng.once_in(times)
    }

    /// Whether a start that goes on now fails.
    pub(crate) fn fails_to_start(&mut self) -> bool {
        let (times, max) = (self.scenario.faults.start_fails, self.scenario.faults.start_fails_max);
        let fails = self.start_failures < max && self.fails(times);
        self.start_failures += u32::from(fails);
        fails
    }

    pub(crate) fn sabotages(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// Writes to someone's doorbell; whoever polls it may learn of that late.
    pub(crate) fn ring(&mut self, party: Party) {
        if self.fails(self.scenario.faults.late_ring) {
            self.bell(party).1 += 1;
            let at = self.now + self.rng.micros(1..=3_000);
            return self.schedule(at, Event::Rung(party));
        }
        self.bell(party).0 = true;
    }

    pub(crate) fn rung(&mut self, party: Party) {
        *self.bell(party) = (true, self.bell(party).1 - 1);
    }

    pub(crate) fn silence(&mut self, party: Party) {
        self.bell(party).0 = false;
    }

    pub(crate) fn is_rung(&self, party: Party) -> bool {
        self.bells.get(party.bell()).is_some_and(|bell| bell.0)
    }

    /// Whether someone has been rung, though it may not have heard yet.
    pub(crate) fn will_be_rung(&self, party: Party) -> bool {
        self.bells.get(party.bell()).is_some_and(|bell| bell.0 || bell.1 > 0)
    }

    /// How long the operating system takes for something.
    pub(crate) fn delay(&mut self) -> Duration {
        let most = self.rng.pick(&[10, 300, 5_000]);
        self.rng.micros(0..=most)
    }

    pub(crate) fn trace(&self, who: impl Display, what: impl FnOnce() -> String) {
        if self.traces {
            let micros = self.now.as_nanos() as f64 / 1000.0;
            println!("{micros:>12.3} us  {who:<9} {}", what());
        }
    }

    fn bell(&mut self, party: Party) -> &mut (bool, u32) {
        let at = party.bell();
        if self.bells.len() <= at {
            self.bells.resize(at + 1, (false, 0));
        }
        &mut self.bells[at]
    }
}
