//! The manager's process: the pool, its side of the shared memory, and the client on its loop. A turn is a list of
//! steps, each with at most one effect that a worker can see.

mod link;
mod outputs;
mod seat;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use polyloop_core::{Exit, Input, Moment, NestedId, Pool, QueueIndex, RING_AGAIN, Resting, WorkerId};
use polyloop_shm::{BoardWriter, Sleeper};

use crate::client::Client;
use crate::manager::seat::Seat;
use crate::scenario::Action;
use crate::site::{Notice, Order, Party, Site};

/// How long the manager may rest while there is something it should see.
const REST_MAX: Duration = Duration::from_micros(600);

/// A step of the manager.
#[derive(Debug)]
enum Op {
    Wake,
    Silence,
    /// Looks at the descriptors of processes.
    Notices,
    /// Reads so many records of a seat's result ring.
    Read {
        seat: u16,
        left: u32,
    },
    /// After reading: rings a worker whose ring had been full.
    GiveRoom {
        seat: u16,
    },
    /// Everything a dead worker has left behind.
    LastWords {
        worker: WorkerId,
        exit: Exit,
    },
    Bury {
        worker: WorkerId,
        exit: Exit,
    },
    Timeout,
    Client,
    Reclaim {
        queue: u16,
        slot: u32,
    },
    Flush,
    Outputs,
    /// Sends what waits for room in a control ring.
    Pump {
        seat: u16,
    },
    Backlog {
        queue: u16,
    },
    /// Chooses whom to ring for so many items.
    RingFor {
        queue: u16,
        items: usize,
    },
    Tell {
        seat: u16,
    },
    Ding {
        process: usize,
    },
    Rest,
    Recheck,
    Watch,
    Sleep,
}

pub(crate) struct Manager {
    pub(crate) pool: Pool,
    client: Client,
    pub(crate) boards: Vec<BoardWriter>,
    pub(crate) seats: BTreeMap<u16, Seat>,
    /// Calls of tasks that were accepted and not answered, by token.
    asked: BTreeMap<(WorkerId, NestedId), usize>,
    sleeper: Sleeper,
    ops: VecDeque<Op>,
    notices: VecDeque<Notice>,
    actions: VecDeque<Action>,
    /// Items posted in this turn, by queue.
    posted: Vec<usize>,
    outcomes: usize,
    look_again: Option<Moment>,
    /// It looks again by itself then, and has not announced sleep.
    nap: Option<Moment>,
    resting: Resting,
    /// Asleep, until then at the latest.
    pub(crate) asleep: Option<Moment>,
    pub(crate) stalled_until: Moment,
    pub(crate) over: bool,
}

impl Manager {
    pub(crate) fn new(site: &Site) -> Self {
        let boards: Vec<_> = site.shared.boards.iter().cloned().map(BoardWriter::new).collect();
        let mut manager = Self {
            pool: Pool::new(site.scenario.pool.clone()),
            client: Client::new(site),
            posted: vec![0; boards.len()],
            boards,
            seats: BTreeMap::new(),
            asked: BTreeMap::new(),
            sleeper: Sleeper::new(site.shared.manager_epoch.clone()),
            ops: VecDeque::new(),
            notices: VecDeque::new(),
            actions: VecDeque::new(),
            outcomes: 0,
            look_again: None,
            nap: None,
            resting: Resting::default(),
            asleep: None,
            stalled_until: Moment::ZERO,
            over: false,
        };
        manager.act();
        manager.ops.push_back(Op::Rest);
        manager
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.notices.push_back(notice);
    }

    pub(crate) fn ask(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn can_step(&self, site: &Site) -> bool {
        let called = !self.notices.is_empty() || !self.actions.is_empty() || site.is_rung(Party::Manager);
        self.stalled_until <= site.now && self.asleep.is_none_or(|until| called || until <= site.now)
    }

    /// Whether it sleeps although nothing stops it, and will not look at anything soon.
    pub(crate) fn rests(&self, site: &Site) -> bool {
        let for_long = self.asleep.is_some_and(|until| until > site.now + REST_MAX);
        for_long && self.stalled_until <= site.now && !site.will_be_rung(Party::Manager)
    }

    pub(crate) fn step(&mut self, site: &mut Site) {
        if self.asleep.take().is_some() || self.ops.is_empty() {
            self.begin_turn(site);
        }
        let Some(op) = self.ops.pop_front() else { return };
        site.trace("manager", || format!("{op:?}"));
        self.carry_out(op, site);
    }

    /// Has these steps taken next, in this order.
    fn next(&mut self, ops: impl IntoIterator<Item = Op, IntoIter: DoubleEndedIterator>) {
        ops.into_iter().rev().for_each(|op| self.ops.push_front(op));
    }

    fn begin_turn(&mut self, site: &mut Site) {
        self.ops.clear();
        self.outcomes = 0;
        // The client's calls come at any time, and do not begin a look at everything.
        if !self.actions.is_empty() && site.rng.once_in(2) {
            self.ops.push_back(Op::Client);
        } else {
            self.nap = None;
            self.ops.extend([Op::Wake, Op::Silence, Op::Notices]);
            let left = site.scenario.habits.records_per_look;
            self.ops.extend(self.seats.keys().map(|&seat| Op::Read { seat, left }));
            self.ops.extend([Op::Timeout, Op::Client]);
        }
        self.act();
        self.ops.push_back(Op::Rest);
    }

    /// Frees slots, posts what waits, and carries out what the pool says.
    fn act(&mut self) {
        for queue in 0..self.boards.len() as u16 {
            self.ops.push_back(Op::Reclaim { queue, slot: 0 });
        }
        self.ops.extend([Op::Flush, Op::Outputs]);
    }

    /// What follows the outputs, by what they have changed.
    fn after_outputs(&mut self) {
        let seats: Vec<_> = self.seats.keys().copied().collect();
        let pumps = seats.into_iter().map(|seat| Op::Pump { seat });
        let mut ops: Vec<_> = pumps.collect();
        for queue in 0..self.boards.len() as u16 {
            ops.push(Op::Backlog { queue });
            let items = std::mem::take(&mut self.posted[usize::from(queue)]);
            if items > 0 {
                ops.push(Op::RingFor { queue, items });
            }
        }
        self.next(ops);
    }

    fn carry_out(&mut self, op: Op, site: &mut Site) {
        match op {
            Op::Wake => self.sleeper.wake(),
            Op::Silence => site.silence(Party::Manager),
            Op::Notices => self.notice(site),
            Op::Read { seat, left } => self.read(site, seat, left),
            Op::GiveRoom { seat } => self.give_room(site, seat),
            Op::LastWords { worker, exit } => self.last_words(site, worker, exit),
            Op::Bury { worker, exit } => self.bury(site, worker, exit),
            Op::Timeout => {
                if self.pool.poll_timeout().is_some_and(|at| at <= site.now) {
                    self.handle(site, Input::Timeout);
                }
            }
            Op::Client => {
                while let Some(action) = self.actions.pop_front() {
                    self.client.act(&mut self.pool, site, action);
                }
            }
            Op::Reclaim { queue, slot } => self.reclaim(site, queue, slot),
            Op::Flush => self.pool.flush(),
            Op::Outputs => match self.pool.poll_output() {
                Some(output) => {
                    self.next([Op::Outputs]);
                    self.output(site, output);
                }
                None => self.after_outputs(),
            },
            Op::Pump { seat } => self.pump(site, seat),
            Op::Backlog { queue } => {
                let more = self.pool.has_waiting(QueueIndex(queue));
                self.boards[usize::from(queue)].set_backlog(more);
            }
            Op::RingFor { queue, items } => self.ring_for(queue, items),
            Op::Tell { seat } => self.tell(seat),
            Op::Ding { process } => site.ring(Party::Process(process)),
            Op::Rest => self.rest(site),
            Op::Recheck => self.recheck(site),
            Op::Watch => self.watch(site),
            Op::Sleep => self.sleep(),
        }
    }

    fn handle(&mut self, site: &mut Site, input: Input) {
        site.trace("pool", || format!("{input:?}"));
        self.pool.handle(site.now, input);
    }

    fn notice(&mut self, site: &mut Site) {
        let Some(notice) = self.notices.pop_front() else { return };
        self.next([Op::Notices]);
        match notice {
            Notice::Started { worker, process } => {
                self.handle(site, Input::Started { worker, pid: process as u32 });
                site.orders.push(Order::Greet { process });
            }
            Notice::NotStarted { worker, error } => {
                self.seats.remove(&worker.seat);
                self.handle(site, Input::NotStarted { worker, error });
            }
            Notice::Exited { worker, exit } => self.next([Op::LastWords { worker, exit }]),
        }
    }

    fn sleep(&mut self) {
        let until = [self.pool.poll_timeout(), self.look_again, self.nap].into_iter().flatten().min();
        self.asleep = Some(until.unwrap_or(Moment::MAX));
    }

    /// Sets the time of another look, while items wait that a sleeper not rung could take.
    fn set_look_again(&mut self, site: &Site, wanted: bool) {
        self.look_again = wanted.then(|| self.look_again.filter(|at| *at > site.now).unwrap_or(site.now + RING_AGAIN));
    }
}
