//! The worker's side of the engine: claims items, publishes outcomes, and sleeps without missing anything.
//!
//! The host runs turns: [`WorkerLink::begin_turn`], control and items until there are none, [`WorkerLink::end_turn`].
//! Between turns it waits on the link's descriptor, and runs whatever the items left running.

mod blocks;
mod control;
mod nested;
mod publish;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polyloop_core::{
    Cause, DEFER, FrameError, Leave, NestedId, Outcome, PeerView, Reply, ResultFrame, Stop, TaskId, Terms, Worker,
    WorkerConfig,
};
use polyloop_shm::{
    AttachError, BoardReader, Claim, Corrupt, Doorbell, Item, LeaseIndex, LeaseWriter, Peer, Region, RingReader,
    RingWriter, Ringer, Sleeper, Status, StatusWriter, Words,
};
use thiserror::Error;

pub use self::blocks::CannotPass;
use self::blocks::{BLOCKS_MAX, MANAGER};
use self::control::Said;
use self::nested::Answering;
pub use self::nested::AskError;
use self::publish::Unpublished;
use crate::blocks::{BlockError, Borrower, Lender, Memory, Returns};
use crate::driver::PROTOCOL;
use crate::inject::step;
use crate::layout::Layout;
use crate::memory::MemoryWatch;
use crate::os;

/// Why a worker could not join its pool.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The manager hung up.
    #[error("the pool is gone")]
    Gone,
    /// The manager speaks another version of the protocol, or garbage.
    #[error("the pool speaks another version of polyloop")]
    Version,
    /// Its memory can't be used.
    #[error(transparent)]
    Memory(#[from] AttachError),
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

/// Why a worker can't go on.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The control ring is damaged.
    #[error(transparent)]
    Ring(#[from] Corrupt),
    /// A control frame is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What it says of blocks makes no sense.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The board or a fetched task is damaged.
    #[error("a task whose bytes make no sense")]
    Task,
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] io::Error),
}

/// An item that this worker has started, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The task.
    pub task: TaskId,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// Its arguments are to stay as they are: it may be run again.
    pub kept: bool,
    /// Which run of the task this is, from 1; counted up to 255.
    pub attempt: u8,
    lease: LeaseIndex,
}

/// The answer to a request for work.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this item; its function and arguments are in the buffer.
    Start(Job),
    /// Ask again after this long: an idle peer gets the chance to take the next item.
    Defer(Duration),
    /// Nothing to start now.
    Nothing,
}

/// What the manager says to this worker.
pub enum Control {
    /// Cancel the item of this task, if it runs here.
    Cancel(TaskId),
    /// Claim nothing more; with [`Stop::Now`], cancel what runs too.
    Stop(Stop),
    /// So many values of this item's stream have been taken.
    Credit(TaskId, u32),
    /// What came of this call, and the large parts of its value.
    Answer(NestedId, Box<Outcome>, Option<Arc<Memory>>),
    /// Start this item: a large one, whose function and arguments have arrived in the buffer, and the arguments' large
    /// parts in this memory.
    Start(Job, Option<Arc<Memory>>),
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rested {
    /// Something came in the meantime: take another turn soon.
    Again,
    /// Asleep: take a turn when the descriptor is readable, or when an item has ended.
    Asleep,
    /// Everything is done: leave the process.
    Leave,
}

/// A large item that was claimed, as far as it has come.
struct Fetching {
    job: Job,
    bytes: Vec<u8>,
    apart: Option<Arc<Memory>>,
}

/// A worker's side of its pool.
pub struct WorkerLink {
    core: Worker,
    seat: u16,
    queue: u16,
    board: BoardReader,
    leases: LeaseWriter,
    results: RingWriter,
    control: RingReader,
    /// What was taken from the control ring while the host could not be told.
    overheard: VecDeque<Result<Said, WorkerError>>,
    /// Urgent words dealt with, for the manager to see.
    heard: Words,
    sleeper: Sleeper,
    status: StatusWriter,
    bell: Arc<Doorbell>,
    manager: Ringer,
    manager_bell: Doorbell,
    peers: Vec<Peer>,
    /// How many of the first seats were ever taken.
    seats_taken: Words,
    memory: MemoryWatch,
    /// Until when items are left to a peer.
    defers_until: Option<Instant>,
    unpublished: VecDeque<Unpublished>,
    /// Large items that were claimed and whose bytes are on their way.
    fetching: BTreeMap<TaskId, Fetching>,
    /// Calls of items, as far as their answers have come.
    answers: BTreeMap<NestedId, Answering>,
    /// The blocks that results are in.
    lender: Lender<()>,
    /// The manager's, that arguments are in.
    borrower: Borrower,
    returns: Arc<Returns>,
    origin: Instant,
    /// Records of the host's log for which there was no room, and of which the manager has not been told.
    dropped_logs: u64,
    /// Items that were answered for although they go on.
    given_up: BTreeSet<TaskId>,
    grace: Duration,
    max_reply: u64,
    turns: u64,
    /// Something was published since the manager was last looked at.
    news: bool,
    payload: Vec<u8>,
    generation: u32,
    socket: OwnedFd,
    _regions: [Region; 2],
}

impl WorkerLink {
    /// Joins the pool at the other end of `socket`. Waits for the manager to answer.
    ///
    /// # Errors
    /// [`ConnectError`] when the pool is gone, of another version, or the system refuses.
    pub fn connect(socket: OwnedFd) -> Result<Self, ConnectError> {
        let handle = os::process_handle(std::process::id())?;
        Self::connect_as(socket, handle.as_fd())
    }

    /// The same with a handle of this process that somebody else has opened: under a tool that counts instructions, the
    /// process itself may be unable to.
    ///
    /// # Errors
    /// As [`Self::connect`].
    #[doc(hidden)]
    pub fn connect_as(socket: OwnedFd, handle: BorrowedFd<'_>) -> Result<Self, ConnectError> {
        os::close_inherited_blocks()?;
        os::send(socket.as_fd(), &[PROTOCOL, std::process::id().into()], &[handle])?;
        let (numbers, fds) = os::receive(socket.as_fd())?.ok_or(ConnectError::Gone)?;
        let (&[version, seat, queue, concurrency, max_tasks, max_memory, grace_micros, max_reply], fields) =
            numbers.split_first_chunk().ok_or(ConnectError::Version)?;
        let fields = fields.first_chunk::<{ Layout::FIELDS }>().ok_or(ConnectError::Version)?;
        let layout = Layout::from_fields(*fields).filter(|_| version == PROTOCOL).ok_or(ConnectError::Version)?;
        let seat = u16::try_from(seat).ok().filter(|seat| *seat < layout.seats).ok_or(ConnectError::Version)?;
        let queue = u16::try_from(queue).ok().filter(|queue| *queue < layout.queues).ok_or(ConnectError::Version)?;
        let concurrency = u32::try_from(concurrency).map_err(|_| ConnectError::Version)?;
        let [pool, own, bell, manager_bell] = <[OwnedFd; 4]>::try_from(fds).map_err(|_| ConnectError::Version)?;
        // From here on the manager may interrupt this process.
        os::survive_interrupts()?;
        let regions = [Region::attach(pool)?, Region::attach(own)?];
        let [pool, own] = [regions[0].words(), regions[1].words()];
        if pool.len() < layout.pool_words() || own.len() < layout.seat_words() {
            return Err(ConnectError::Version);
        }
        let bell = Arc::new(Doorbell::from_fd(bell));
        let returns = Returns::new(&bell);
        let peers = (0..layout.seats).filter(|peer| *peer != seat);
        let peer = |peer| Peer::new(layout.epoch(pool, peer), layout.status(pool, peer));
        Ok(Self {
            core: Worker::new(WorkerConfig { concurrency, max_tasks }),
            seat,
            queue,
            board: BoardReader::new(layout.board(pool, queue), seat),
            leases: LeaseWriter::new(layout.leases(own)),
            results: RingWriter::new(layout.results(own)),
            control: RingReader::new(layout.control(own)),
            overheard: VecDeque::new(),
            heard: layout.heard(own),
            sleeper: Sleeper::new(layout.epoch(pool, seat)),
            status: StatusWriter::new(layout.status(pool, seat)),
            bell,
            manager: Ringer::new(layout.manager_epoch(pool)),
            manager_bell: Doorbell::from_fd(manager_bell),
            peers: peers.map(peer).collect(),
            seats_taken: layout.seats_taken(pool),
            memory: MemoryWatch::new(max_memory),
            defers_until: None,
            unpublished: VecDeque::new(),
            fetching: BTreeMap::new(),
            answers: BTreeMap::new(),
            lender: Lender::new(BLOCKS_MAX, Arc::clone(&returns)),
            borrower: Borrower::new(MANAGER, Arc::clone(&returns)),
            returns,
            origin: Instant::now(),
            dropped_logs: 0,
            given_up: BTreeSet::new(),
            grace: Duration::from_micros(grace_micros),
            max_reply,
            turns: 0,
            news: false,
            payload: Vec::new(),
            generation: os::forked_generation(),
            socket,
            _regions: regions,
        })
    }

    /// Whether this process is the worker, not one that it forked: such a child has no part in the pool.
    pub fn is_ours(&self) -> bool {
        self.generation == os::forked_generation()
    }

    /// This worker's place among the pool's.
    pub fn seat(&self) -> u16 {
        self.seat
    }

    /// Tells the manager that this worker takes work.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn ready(&mut self) -> io::Result<()> {
        self.publish(&ResultFrame::Ready, None);
        self.tell()
    }

    /// Tells the manager that this worker could not be initialised, and why. Leave afterwards.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn failed(&mut self, error: &[u8]) -> io::Result<()> {
        let error = &error[..error.len().min(self.results.max_payload())];
        self.publish(&ResultFrame::Failed(error), None);
        self.tell()
    }

    /// Begins a turn, whatever caused it.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn begin_turn(&mut self) -> io::Result<()> {
        self.check_ours()?;
        self.turns += 1;
        self.sleeper.turn();
        step("wake");
        self.bell.silence()?;
        step("silence");
        self.settle_blocks();
        self.retire_if_too_large()
    }

    /// The next item to start, if this worker has room and there is one. Start it before asking for another.
    ///
    /// # Errors
    /// [`WorkerError`] when the board makes no sense: leave.
    pub fn next_item(&mut self, item: &mut Item) -> Result<Next, WorkerError> {
        // The item before may have forked.
        self.check_ours()?;
        // What was published must not wait for the next item, which may block. Nor is an item to wait for this, taken and
        // not started, as whoever is rung may take the processor.
        if self.manager.can_ring() {
            self.tell()?;
        }
        loop {
            let claim = match self.claim() {
                Ok(claim) => claim,
                Err(next) => {
                    self.tell()?;
                    self.publish_status();
                    return Ok(next);
                }
            };
            step("claimed");
            self.board.read(&claim, item).ok_or(WorkerError::Task)?;
            step("read");
            let lease = self.leases.record(item.task).ok_or(WorkerError::Task)?;
            step("leased");
            let manager_may_post = self.board.take(claim);
            step("taken");
            // By the fence of `take`: a manager that fell asleep since it was looked at is rung after all.
            if (std::mem::take(&mut self.news) || manager_may_post) && self.manager.must_ring_fenced() {
                self.ring_manager()?;
            }
            let terms = Terms::from_bits(item.extra);
            let Terms { timeout, attempt, kept, .. } = terms;
            let job = Job { task: TaskId::from_bits(item.task), timeout, attempt, kept, lease };
            let last = self.core.claimed(terms.alone);
            // Peers and the manager see at once that this worker is busy, should the item block.
            self.publish_status();
            if last {
                step("retire");
                self.publish(&ResultFrame::Retiring(Cause::Recycled), None);
                self.tell()?;
            }
            if !terms.large {
                step("start");
                return Ok(Next::Start(job));
            }
            step("fetch");
            self.fetching.insert(job.task, Fetching { job, bytes: Vec::new(), apart: None });
            self.publish(&ResultFrame::Fetch(job.task), None);
            self.tell()?;
            step("fetched");
        }
    }

    /// The next item for this worker, or what it does instead of taking one.
    fn claim(&mut self) -> Result<Claim, Next> {
        if self.core.room() == 0 || self.leases.room() == 0 {
            return Err(Next::Nothing);
        }
        let has_choice = !self.core.is_idle() && self.board.has_unclaimed(false);
        if let Some(left) = has_choice.then(|| self.leaves_it_to_a_peer()).flatten() {
            step("defer");
            return Err(Next::Defer(left));
        }
        step("claim");
        self.board.claim(self.core.is_idle()).ok_or(Next::Nothing)
    }

    /// Answers for an item that has run out of time and goes on, and takes no more items: the process is to end soon.
    /// The loop is rung, to see whether it turns. Returns the turns so far.
    pub fn give_up(&mut self, job: Job) -> u64 {
        self.reply(job, Reply::TimedOut);
        self.given_up.insert(job.task);
        if self.core.retire() {
            self.publish(&ResultFrame::Retiring(Cause::Overdue), None);
        }
        self.publish_status();
        self.flush();
        // The process ends whether or not its loop hears of it.
        let _ = self.bell.ring();
        self.turns
    }

    /// How long whoever is asked to end may take.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Bytes that a reply may have. A worker that publishes more is killed.
    pub fn max_reply(&self) -> u64 {
        self.max_reply
    }

    /// Turns taken so far.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Whether nothing runs that is not given up, and all is published.
    pub fn is_done(&self) -> bool {
        self.core.is_idle() && self.unpublished.is_empty()
    }

    /// Has the host take a turn.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn ring_host(&self) -> io::Result<()> {
        self.bell.ring()
    }

    /// Ends a turn: rings the manager if it must know, and announces sleep if there is nothing left. `deferring` says
    /// that the turn ended with [`Next::Defer`], so that what waits on the board does not count.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn end_turn(&mut self, deferring: bool) -> io::Result<Rested> {
        self.check_ours()?;
        self.settle_blocks();
        self.publish_waiting();
        self.tell_dropped();
        self.tell()?;
        self.publish_status();
        if self.core.leave() == Leave::Leave {
            step("leave");
            return Ok(Rested::Leave);
        }
        step("announce");
        self.sleeper.announce();
        step("announced");
        let work = !deferring && self.core.room() > 0 && self.board.has_unclaimed(self.core.is_idle());
        let room = !self.unpublished.is_empty() && self.publish_waiting();
        if work || room || !self.overheard.is_empty() || self.control.is_ready() {
            step("again");
            self.sleeper.wake();
            return Ok(Rested::Again);
        }
        Ok(Rested::Asleep)
    }

    /// Items started and not finished.
    pub fn in_flight(&self) -> u32 {
        self.core.in_flight()
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.core.is_stopping()
    }

    /// Claims nothing more once this process holds more memory than it may.
    fn retire_if_too_large(&mut self) -> io::Result<()> {
        if self.memory.is_exceeded()? && self.core.retire() {
            step("retire");
            self.publish(&ResultFrame::Retiring(Cause::Memory), None);
        }
        Ok(())
    }

    /// A process that this worker forked has its objects, and not the memory they speak of.
    fn check_ours(&self) -> io::Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(io::Error::other("a process forked from a worker is no worker"))
    }

    /// Whether an idler peer gets the chance to take the next item, and for how long from now.
    fn leaves_it_to_a_peer(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if let Some(left) = self.defers_until.and_then(|until| until.checked_duration_since(now)) {
            return Some(left);
        }
        // But for this worker's own.
        let peers = self.seats_taken[0].load(Ordering::Relaxed).saturating_sub(1);
        let views = self.peers.iter().take(usize::try_from(peers).unwrap_or(usize::MAX)).map(|peer| {
            let Status { in_flight, room, queue } = peer.status();
            PeerView { state: peer.state(), in_flight, room: if queue == self.queue { room } else { 0 } }
        });
        let board = &mut self.board;
        self.defers_until = self.core.defers(views, |limit| board.unclaimed(limit)).then(|| now + DEFER);
        self.defers_until.map(|_| DEFER)
    }
}

impl AsFd for WorkerLink {
    /// Readable when a turn should be taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
