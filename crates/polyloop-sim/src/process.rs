//! A worker process: the core's worker over its side of the shared memory, and an event loop that runs items. A turn is
//! a list of steps, each with at most one effect that another can see.

mod calls;
mod items;
mod link;
mod streams;

use std::collections::{BTreeMap, VecDeque};

use polyloop_core::{Exit, Leave, Moment, NestedId, QueueIndex, ResultFrame, TaskId, Worker, WorkerId};
use polyloop_shm::{
    BoardReader, Claim, LeaseIndex, LeaseWriter, Peer, RingReader, RingWriter, Ringer, Sleeper, Status, StatusWriter,
};

use crate::process::items::{Claimed, Job};
use crate::process::link::Unpublished;
use crate::sabotage::Sabotage;
use crate::site::{Order, Own, Party, Site};

/// A step of a worker.
#[derive(Debug)]
enum Op {
    /// Takes over the seat's epoch and its status.
    Sit,
    /// Runs the initialiser.
    Initialise,
    Wake,
    Silence,
    /// Reads one control record.
    Control,
    /// After reading: rings the manager if the control ring had been full.
    GiveRoom,
    /// Puts one waiting frame into the result ring.
    Publish,
    Clear(LeaseIndex),
    /// Rings the manager if something was published and it sleeps.
    Tell,
    Ding,
    /// Ends the items that are due.
    EndDue,
    Look,
    Claim,
    Read(Claim),
    Lease(Claim, Claimed),
    Take(Claim, Claimed),
    /// Begins an item, or fetches what it needs.
    Start(Claimed, LeaseIndex),
    /// Runs an item that has all it needs.
    Run(TaskId),
    /// Says how busy it is, or leaves.
    Load,
    Announce,
    RecheckBoard,
    RecheckRoom,
    RecheckControl,
    Sleep,
    Quit(Exit),
}

/// How far a process has come in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Unborn,
    Alive,
    Dead,
}

/// Why a process takes no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// On its doorbell, or until then.
    Asleep(Moment),
    /// In an item that keeps its loop busy.
    Busy(Moment),
}

impl Pause {
    pub(crate) fn until(self) -> Moment {
        match self {
            Self::Asleep(until) | Self::Busy(until) => until,
        }
    }
}

pub(crate) struct Process {
    pub(crate) worker: WorkerId,
    pub(crate) queue: QueueIndex,
    index: usize,
    pub(crate) life: Life,
    pub(crate) pause: Option<Pause>,
    pub(crate) stalled_until: Moment,
    /// When the manager is told that it runs.
    pub(crate) told_at: Moment,
    core: Worker,
    board: BoardReader,
    leases: LeaseWriter,
    results: RingWriter,
    control: RingReader,
    seat: Option<(Sleeper, StatusWriter)>,
    manager: Ringer,
    /// Epoch and status of the others that might take an item.
    peers: Vec<Peer>,
    ops: VecDeque<Op>,
    jobs: Vec<Job>,
    unpublished: VecDeque<Unpublished>,
    /// Something was published of which the manager has not been told.
    news: bool,
    defers_until: Option<Moment>,
    /// SIGTERM has come, and the loop has not seen it.
    term: bool,
    last_reply: Option<(u32, Vec<u8>)>,
    /// Unanswered calls: their tokens, and what has come of their answers.
    asked: BTreeMap<NestedId, (usize, Vec<u8>)>,
}

impl Process {
    pub(crate) fn new(site: &Site, worker: WorkerId, queue: QueueIndex, index: usize, own: Own) -> Self {
        let shared = &site.shared;
        let mut config = site.scenario.worker;
        config.max_tasks += u64::from(site.sabotages(Sabotage::OneTaskTooMany) && config.max_tasks > 0);
        let others = (0..shared.epochs.len()).filter(|seat| *seat != usize::from(worker.seat));
        Self {
            worker,
            queue,
            index,
            life: Life::Unborn,
            pause: None,
            stalled_until: Moment::ZERO,
            told_at: Moment::ZERO,
            core: Worker::new(config),
            board: BoardReader::new(shared.boards[usize::from(queue.0)].clone(), worker.seat),
            leases: LeaseWriter::new(own.leases),
            results: RingWriter::new(own.results),
            control: RingReader::new(own.control),
            seat: None,
            manager: Ringer::new(shared.manager_epoch.clone()),
            peers: others.map(|seat| Peer::new(shared.epochs[seat].clone(), shared.statuses[seat].clone())).collect(),
            ops: VecDeque::from([Op::Sit, Op::Initialise]),
            jobs: Vec::new(),
            unpublished: VecDeque::new(),
            news: false,
            defers_until: None,
            term: false,
            last_reply: None,
            asked: BTreeMap::new(),
        }
    }

    pub(crate) fn can_step(&self, site: &Site) -> bool {
        self.life == Life::Alive
            && self.stalled_until <= site.now
            && match self.pause {
                None => true,
                Some(Pause::Busy(until)) => until <= site.now,
                Some(Pause::Asleep(until)) => until <= site.now || self.term || site.is_rung(self.party()),
            }
    }

    pub(crate) fn party(&self) -> Party {
        Party::Process(self.index)
    }

    /// Whether it sleeps with room for an item although nothing stops it.
    pub(crate) fn is_free(&self, site: &Site) -> bool {
        let sleeps = matches!(self.pause, Some(Pause::Asleep(_))) && self.life == Life::Alive;
        sleeps && self.stalled_until <= site.now && self.core.room() > 0 && !site.will_be_rung(self.party())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    /// Whether its loop has nothing to do, and would hear if there were something.
    pub(crate) fn is_calm(&self, site: &Site) -> bool {
        let sleeps = matches!(self.pause, Some(Pause::Asleep(_))) && self.life == Life::Alive;
        sleeps && self.stalled_until <= site.now && !site.will_be_rung(self.party())
    }

    /// Whether all that it has done has come to an end: it sleeps, or an item keeps it busy.
    pub(crate) fn is_settled(&self, site: &Site) -> bool {
        self.life == Life::Alive && self.pause.is_some() && self.stalled_until <= site.now
    }

    pub(crate) fn terminate(&mut self) {
        self.term = true;
    }

    pub(crate) fn step(&mut self, site: &mut Site) {
        match self.pause.take() {
            Some(Pause::Asleep(_)) => self.begin_turn(),
            Some(Pause::Busy(_)) | None if self.ops.is_empty() => self.begin_turn(),
            Some(Pause::Busy(_)) | None => (),
        }
        let Some(op) = self.ops.pop_front() else { return };
        site.trace(self.worker, || format!("{op:?}"));
        self.carry_out(op, site);
    }

    fn begin_turn(&mut self) {
        self.ops.clear();
        self.defers_until = None;
        self.ops.extend([Op::Wake, Op::Silence, Op::Control, Op::Publish, Op::EndDue, Op::Look]);
        self.ops.extend([Op::Publish, Op::Tell, Op::Load, Op::Announce]);
        self.ops.extend([Op::RecheckBoard, Op::RecheckRoom, Op::RecheckControl, Op::Sleep]);
    }

    /// Has these steps taken next, in this order.
    fn next(&mut self, ops: impl IntoIterator<Item = Op, IntoIter: DoubleEndedIterator>) {
        ops.into_iter().rev().for_each(|op| self.ops.push_front(op));
    }

    fn carry_out(&mut self, op: Op, site: &mut Site) {
        match op {
            Op::Sit => self.sit(site),
            Op::Initialise => self.initialise(site),
            Op::Wake => self.wake(),
            Op::Silence => site.silence(self.party()),
            Op::Control => self.control(site),
            Op::GiveRoom => {
                if self.control.writer_waits() {
                    self.next([Op::Ding]);
                }
            }
            Op::Publish => self.publish(site),
            Op::Clear(lease) => self.leases.clear(lease),
            Op::Tell => {
                if std::mem::take(&mut self.news) && self.manager.must_ring() {
                    self.next([Op::Ding]);
                }
            }
            Op::Ding => site.ring(Party::Manager),
            Op::EndDue => self.end_due(site),
            Op::Look => self.look(site),
            Op::Claim => self.claim(site),
            Op::Read(claim) => self.read(site, claim),
            Op::Lease(claim, claimed) => self.lease(site, claim, claimed),
            Op::Take(claim, claimed) => self.take(site, claim, claimed),
            Op::Start(claimed, lease) => self.start(claimed, lease),
            Op::Run(task) => self.run(site, task),
            Op::Load => self.load(site),
            Op::Announce => self.announce(site),
            Op::RecheckBoard => {
                let may_claim = self.defers_until.is_none() && self.core.room() > 0;
                self.recheck(|process| may_claim && process.board.has_unclaimed(process.core.is_idle()));
            }
            Op::RecheckRoom => self.recheck_room(site),
            Op::RecheckControl => self.recheck(|process| process.control.is_ready()),
            Op::Sleep => self.sleep(),
            Op::Quit(exit) => self.exit(site, exit),
        }
    }

    fn sit(&mut self, site: &Site) {
        let seat = usize::from(self.worker.seat);
        let sleeper = Sleeper::new(site.shared.epochs[seat].clone());
        self.seat = Some((sleeper, StatusWriter::new(site.shared.statuses[seat].clone())));
    }

    /// Takes its time, and may fail.
    fn initialise(&mut self, site: &mut Site) {
        self.pause = Some(Pause::Busy(site.now + site.delay()));
        let fails = site.fails_to_start();
        if fails && site.rng.once_in(2) {
            return self.next([Op::Quit(Exit::Code(3))]);
        }
        if fails {
            self.send(&ResultFrame::Failed(b"initialiser"), None);
            return self.next([Op::Publish, Op::Tell, Op::Quit(Exit::Code(1))]);
        }
        self.send(&ResultFrame::Ready, None);
        self.next([Op::Publish, Op::Tell]);
    }

    fn wake(&mut self) {
        if let Some((sleeper, _)) = &self.seat {
            sleeper.wake();
        }
    }

    fn load(&mut self, site: &mut Site) {
        if self.core.leave() == Leave::Leave {
            site.ledger.leaves(self.index, self.core.is_stopping());
            return self.exit(site, Exit::Code(0));
        }
        let status = Status { in_flight: self.core.in_flight(), room: self.core.room(), queue: self.queue.0 };
        if let Some((_, writer)) = &mut self.seat {
            writer.publish(status);
        }
    }

    fn announce(&mut self, site: &Site) {
        if let Some((sleeper, _)) = &self.seat {
            sleeper.announce();
        }
        if site.sabotages(Sabotage::WorkerSleepsUnchecked) {
            self.ops.clear();
            self.ops.push_back(Op::Sleep);
        }
    }

    fn recheck(&mut self, finds: impl Fn(&mut Self) -> bool) {
        if finds(self) {
            self.begin_turn();
        }
    }

    fn sleep(&mut self) {
        let due = self.jobs.iter().filter_map(Job::due);
        self.pause = Some(Pause::Asleep(due.chain(self.defers_until).min().unwrap_or(Moment::MAX)));
    }

    fn exit(&mut self, site: &mut Site, exit: Exit) {
        self.ops.clear();
        site.orders.push(Order::Exit { process: self.index, exit });
    }
}
