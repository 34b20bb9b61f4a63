//! The manager's side of the shared memory: boards, and for each seated worker its rings, leases and doorbell.
//! Moves bytes and rings bells; what they mean is the driver's and the core's business.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polyloop_core::{
    BlockId, Breach, CONTROL_WAITING_MAX, Conduct, ControlFrame, FrameError, Heard, HearingWatch, Load, Look,
    LoopWatch, Moment, NestedId, Place, Pool, QueueIndex, ResultFrame, Standing, TaskId, Terms, WorkerId,
};
use polyloop_shm::{
    BoardWriter, Corrupt, Doorbell, Entry, LeaseReader, Peer, Phase, Reclaimed, Region, Retract, RingReader,
    RingWriter, Ringer, Sleeper, SlotIndex, Status, StatusWriter, Words,
};
use thiserror::Error;

use crate::blocks::{BlockError, Borrower, Returns};
use crate::driver::lender_of;
use crate::layout::Layout;
use crate::os;

/// A worker wrote what no correct worker writes.
#[derive(Debug, Error)]
pub(crate) enum WorkerGarbage {
    #[error(transparent)]
    Ring(#[from] Corrupt),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Breach(#[from] Breach),
    #[error("{0} orders wait for it, and it reads none")]
    Deaf(usize),
}

/// Bytes of a large task on their way to the worker that fetched them, or of the answer to a call.
struct Stream {
    task: TaskId,
    bytes: Arc<[u8]>,
    sent: usize,
}

enum Outgoing {
    Frame(u32, Vec<u8>),
    /// A word of a block: there are no more than there are blocks.
    Note(u32, Vec<u8>),
    Stream(Stream),
}

/// One worker's part of the shared memory, and what belongs to its process.
pub(crate) struct Seat {
    pub(crate) worker: WorkerId,
    pub(crate) queue: QueueIndex,
    pub(crate) pid: Option<u32>,
    /// Says when the process is gone; unknown before the hello of a process that is not our child.
    pub(crate) handle: Option<OwnedFd>,
    /// Tells of the process's end while there is no handle.
    pub(crate) sentinel: Option<OwnedFd>,
    /// Our end of the worker's socket.
    pub(crate) socket: OwnedFd,
    /// Held open: when we end in any way, the kernel kills the worker.
    pub(crate) lifeline: OwnedFd,
    region: Region,
    results: RingReader,
    control: RingWriter,
    outgoing: VecDeque<Outgoing>,
    leases: LeaseReader,
    bell: Doorbell,
    ringer: Ringer,
    status: Words,
    activity: Peer,
    watch: LoopWatch,
    conduct: Conduct,
    hearing: HearingWatch,
    /// Urgent words it has dealt with, as it says.
    heard: Words,
    borrower: Borrower,
    /// Nothing more is read from a worker that wrote garbage.
    pub(crate) mute: bool,
    pub(crate) gone: bool,
    /// Records of its log that were dropped here, and not told.
    pub(crate) dropped_logs: u64,
    payload: Vec<u8>,
}

/// What a worker says.
pub(crate) enum Said<'a> {
    /// What a task returned, as most of it is.
    Value(TaskId, &'a [u8]),
    Other(Heard),
}

/// What a new worker gets passed when its process is started.
pub(crate) struct NewSeat {
    pub(crate) socket: OwnedFd,
    pub(crate) lifeline: OwnedFd,
}

impl Seat {
    /// What this worker says next, if anything.
    fn next_frame(&mut self, standing: impl Fn(TaskId) -> Standing) -> Result<Option<Said<'_>>, WorkerGarbage> {
        if self.mute {
            return Ok(None);
        }
        let Some(record) = self.results.pop(&mut self.payload)? else { return Ok(None) };
        let frame = ResultFrame::parse(record.kind, &self.payload)?;
        Ok(Some(match self.conduct.hear_value(&frame, &standing)? {
            Some((task, bytes)) => Said::Value(task, bytes),
            None => Said::Other(self.conduct.hear(frame, standing)?),
        }))
    }

    pub(crate) fn has_frames(&mut self) -> bool {
        !self.mute && self.results.is_ready()
    }

    /// The worker says that the large parts of a reply to come are in this block of its own.
    pub(crate) fn borrow(&mut self, block: BlockId, bytes: u64) -> Result<(), BlockError> {
        let memory = self.borrower.borrow(self.socket.as_fd(), block, bytes)?;
        self.conduct.carry(memory.into_luggage());
        Ok(())
    }

    /// The worker says that it uses this block of its own no more.
    pub(crate) fn forget(&mut self, block: BlockId) -> Result<(), BlockError> {
        self.borrower.forget(self.socket.as_fd(), block)
    }

    /// Whether blocks of this worker's are mapped here.
    pub(crate) fn has_borrowed(&self) -> bool {
        self.borrower.knows_any()
    }

    /// After reading: rings a worker whose ring had been full.
    pub(crate) fn give_room(&mut self) -> io::Result<()> {
        if self.results.writer_waits() { self.bell.ring() } else { Ok(()) }
    }

    pub(crate) fn send(&mut self, frame: ControlFrame<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let kind = frame.write(&mut bytes);
        let is_note = matches!(frame, ControlFrame::Block(_) | ControlFrame::GiveBack);
        self.outgoing.push_back(if is_note { Outgoing::Note(kind, bytes) } else { Outgoing::Frame(kind, bytes) });
        self.pump()
    }

    /// Bytes kept for this worker: of a reply that is not whole, and of what waits for it to listen.
    pub(crate) fn held_bytes(&self) -> usize {
        let waiting = self.outgoing.iter().map(|outgoing| match outgoing {
            Outgoing::Frame(_, bytes) | Outgoing::Note(_, bytes) => bytes.len(),
            Outgoing::Stream(stream) => stream.bytes.len(),
        });
        self.conduct.kept_bytes() + waiting.sum::<usize>()
    }

    /// Whether it reads what it is told.
    pub(crate) fn listens(&self) -> Result<(), WorkerGarbage> {
        let frames = self.outgoing.iter().filter(|outgoing| matches!(outgoing, Outgoing::Frame(..))).count();
        let most = CONTROL_WAITING_MAX.saturating_mul(self.conduct.held_max());
        if frames > most { Err(WorkerGarbage::Deaf(frames)) } else { Ok(()) }
    }

    /// Says what the worker must hear soon, before any bytes that wait for room. Returns when to look whether it has.
    pub(crate) fn urge(&mut self, frame: ControlFrame<'_>, now: Moment) -> io::Result<Option<Moment>> {
        let mut bytes = Vec::new();
        let kind = frame.write(&mut bytes);
        let is_stream = |outgoing: &Outgoing| matches!(outgoing, Outgoing::Stream(_));
        let at = self.outgoing.iter().position(is_stream).unwrap_or(self.outgoing.len());
        self.outgoing.insert(at, Outgoing::Frame(kind, bytes));
        self.hearing.told(now);
        self.pump()?;
        Ok(self.hearing.at())
    }

    /// Interrupts a worker that has had its time to hear and has not. Returns when to look again.
    pub(crate) fn interrupt_if_deaf(&mut self, now: Moment) -> io::Result<Option<Moment>> {
        // A count, which publishes nothing.
        if self.hearing.look(now, self.heard[0].load(Ordering::Relaxed))
            && let Some(handle) = self.handle.as_ref().filter(|_| !self.gone)
        {
            os::interrupt(handle.as_fd())?;
        }
        Ok(self.hearing.at())
    }

    pub(crate) fn send_large(&mut self, task: TaskId, bytes: Arc<[u8]>) -> io::Result<()> {
        self.outgoing.push_back(Outgoing::Stream(Stream { task, bytes, sent: 0 }));
        self.pump()
    }

    /// Writes what waits for room in the control ring, and rings the worker if it sleeps. The worker rings back when
    /// the ring was full and it has made room.
    pub(crate) fn pump(&mut self) -> io::Result<()> {
        let mut wrote = false;
        while let Some(outgoing) = self.outgoing.front_mut() {
            let done = match outgoing {
                Outgoing::Frame(kind, bytes) | Outgoing::Note(kind, bytes) => self.control.push(*kind, bytes).is_ok(),
                Outgoing::Stream(stream) => {
                    let done = push_stream(&mut self.control, stream, &mut wrote);
                    if done && let Some(number) = NestedId::from_task(stream.task) {
                        self.conduct.answered(number);
                    }
                    done
                }
            };
            if !done {
                break;
            }
            wrote = true;
            self.outgoing.pop_front();
        }
        if wrote && self.ringer.must_ring() { self.bell.ring() } else { Ok(()) }
    }

    pub(crate) fn load(&self) -> Load {
        let Status { in_flight, room, .. } = Status::read(&self.status);
        Load { can_ring: self.ringer.can_ring(), in_flight, room }
    }

    /// Looks whether the worker's loop does anything.
    pub(crate) fn look(&mut self, now: Moment, limit: Duration) -> Look {
        self.watch.look(now, self.activity.state(), self.activity.status().in_flight, limit)
    }

    /// It has said something, so what it runs now is not what it ran at the last look, however equal its state: it may have
    /// taken the next item without a sleep in between.
    pub(crate) fn has_spoken(&mut self) {
        self.watch = LoopWatch::default();
    }

    /// Rings the worker whether it sleeps or not: its loop answers by waking.
    pub(crate) fn ask(&self) -> io::Result<()> {
        self.bell.ring()
    }

    pub(crate) fn ring(&mut self) -> io::Result<()> {
        if self.ringer.must_ring() { self.bell.ring() } else { Ok(()) }
    }

    pub(crate) fn leased(&self) -> Vec<u64> {
        self.leases.held()
    }

    /// What the worker gets with the handshake, beside the pool's own: its memory and its bell.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.region.as_fd(), self.bell.as_fd()]
    }

    pub(crate) fn kill(&self, gently: bool) -> io::Result<()> {
        match (&self.handle, self.pid) {
            (Some(handle), _) => os::kill(handle.as_fd(), gently),
            // Not our child, and no word from it yet. Its number was told by whoever started it.
            (None, Some(pid)) if !self.gone => os::kill_number(pid, gently),
            (None, _) => Ok(()),
        }
    }
}

fn push_stream(control: &mut RingWriter, stream: &mut Stream, wrote: &mut bool) -> bool {
    let piece = control.max_payload() - size_of::<u64>();
    let mut payload = Vec::new();
    loop {
        let rest = &stream.bytes[stream.sent..];
        let bytes = &rest[..rest.len().min(piece)];
        let last = bytes.len() == rest.len();
        let kind = ControlFrame::Bytes { task: stream.task, bytes, last }.write(&mut payload);
        if control.push(kind, &payload).is_err() {
            return false;
        }
        *wrote = true;
        stream.sent += bytes.len();
        if last {
            return true;
        }
    }
}

/// All shared memory of a pool, from its manager's side.
pub(crate) struct Link {
    pub(crate) layout: Layout,
    concurrency: u32,
    max_reply: u64,
    pub(crate) region: Region,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) sleeper: Sleeper,
    boards: Vec<BoardWriter>,
    pub(crate) seats: BTreeMap<u16, Seat>,
}

impl Link {
    pub(crate) fn new(layout: Layout, concurrency: u32, max_reply: u64) -> io::Result<Self> {
        let region = Region::create(layout.pool_words())?;
        let words = region.words();
        let boards = (0..layout.queues).map(|queue| BoardWriter::new(layout.board(words, queue))).collect();
        let sleeper = Sleeper::new(layout.manager_epoch(words));
        let (bell, seats) = (Arc::new(Doorbell::new()?), BTreeMap::new());
        Ok(Self { layout, concurrency, max_reply, bell, sleeper, boards, seats, region })
    }

    /// Makes the memory and the descriptors of a new worker.
    pub(crate) fn seat(&mut self, worker: WorkerId, queue: QueueIndex, returns: &Arc<Returns>) -> io::Result<NewSeat> {
        let region = Region::create(self.layout.seat_words())?;
        let words = region.words();
        let (socket, worker_socket) = os::socket_pair()?;
        let (lifeline, our_lifeline) = os::pipe()?;
        let status = self.layout.status(self.region.words(), worker.seat);
        // Whatever a predecessor left there is no longer true: this worker has no room until it says so.
        drop(StatusWriter::new(status.clone()));
        let epoch = self.layout.epoch(self.region.words(), worker.seat);
        let seat = Seat {
            worker,
            queue,
            pid: None,
            handle: None,
            sentinel: None,
            socket,
            lifeline: our_lifeline,
            results: RingReader::new(self.layout.results(words)),
            control: RingWriter::new(self.layout.control(words)),
            outgoing: VecDeque::new(),
            leases: LeaseReader::new(self.layout.leases(words)),
            bell: Doorbell::new()?,
            ringer: Ringer::new(epoch.clone()),
            activity: Peer::new(epoch, status.clone()),
            watch: LoopWatch::default(),
            hearing: HearingWatch::default(),
            heard: self.layout.heard(words),
            status,
            conduct: Conduct::new(worker, self.concurrency, self.max_reply),
            borrower: Borrower::new(lender_of(worker), Arc::clone(returns)),
            mute: false,
            gone: false,
            dropped_logs: 0,
            payload: Vec::new(),
            region,
        };
        self.seats.insert(worker.seat, seat);
        // Workers that read an older number overlook a newcomer for a while, which costs it an item or two.
        let taken = self.layout.seats_taken(self.region.words());
        taken[0].fetch_max(u64::from(worker.seat) + 1, Ordering::Relaxed);
        Ok(NewSeat { socket: worker_socket, lifeline })
    }

    pub(crate) fn get(&mut self, worker: WorkerId) -> Option<&mut Seat> {
        self.seats.get_mut(&worker.seat).filter(|seat| seat.worker == worker)
    }

    /// What the worker in a seat says next, if anything.
    pub(crate) fn next_frame(&mut self, seat: u16, pool: &Pool) -> Result<Option<Said<'_>>, WorkerGarbage> {
        let Self { seats, boards, .. } = self;
        let Some(seat) = seats.get_mut(&seat) else { return Ok(None) };
        let worker = seat.worker;
        let taken_by = |place: Place| boards[usize::from(place.queue.0)].taken_by(SlotIndex(place.slot), place.index);
        seat.next_frame(|task| pool.standing(worker, task, taken_by))
    }

    pub(crate) fn free_slots(&self, queue: QueueIndex) -> usize {
        self.boards[usize::from(queue.0)].free_slots()
    }

    /// Puts tasks into a slot. The core has counted them to fit.
    pub(crate) fn post<'a>(
        &mut self,
        queue: QueueIndex,
        lane: u16,
        tasks: impl Iterator<Item = Entry<'a>>,
    ) -> Option<polyloop_shm::Posted> {
        self.boards[usize::from(queue.0)].post(lane, tasks).ok()
    }

    pub(crate) fn retract(&self, place: Place) -> Retract {
        self.boards[usize::from(place.queue.0)].retract(SlotIndex(place.slot), place.index)
    }

    /// Frees every slot of a queue whose items have all left it.
    pub(crate) fn reclaim(&mut self, queue: QueueIndex) -> Vec<(u32, Vec<Option<u16>>)> {
        let board = &mut self.boards[usize::from(queue.0)];
        let mut freed = Vec::new();
        for slot in board.posted_slots() {
            if board.is_exhausted(slot) {
                freed.extend(board.reclaim(slot).map(|Reclaimed { owners }| (slot.0, owners)));
            }
        }
        freed
    }

    /// Whether a slot of this queue has nothing left to claim and yet something that is not taken: it is about to be
    /// free, unless the worker in between has stopped.
    pub(crate) fn is_about_to_free(&self, queue: QueueIndex) -> bool {
        let board = &self.boards[usize::from(queue.0)];
        board.posted_slots().any(|slot| board.is_exhausted(slot))
    }

    pub(crate) fn set_backlog(&self, queue: QueueIndex, more: bool) {
        self.boards[usize::from(queue.0)].set_backlog(more);
    }

    pub(crate) fn unclaimed(&self, queue: QueueIndex, limit: usize) -> usize {
        self.boards[usize::from(queue.0)].unclaimed(limit)
    }

    /// What a dead worker had on the boards: items claimed and not started, now taken back, and items started.
    pub(crate) fn bury(&self, seat: u16) -> (Vec<Place>, Vec<Place>) {
        let (mut claimed, mut taken) = (Vec::new(), Vec::new());
        for (queue, board) in (0..).map(QueueIndex).zip(&self.boards) {
            for (slot, index, phase) in board.owned_by(seat) {
                let place = Place { queue, slot: slot.0, index };
                if phase == Phase::Claimed {
                    board.bury(slot, index);
                    claimed.push(place);
                } else {
                    taken.push(place);
                }
            }
        }
        (claimed, taken)
    }
}

const _: () = assert!(polyloop_core::ALONE_LANE == polyloop_shm::ALONE_LANE);

/// What goes on the board for a task that fits into a slot, and for one that must be fetched.
pub(crate) fn entry<'a>(task: TaskId, function: &'a [u8], arguments: &'a [u8], terms: Terms) -> Entry<'a> {
    let (task, extra) = (task.to_bits(), terms.to_bits());
    if terms.large {
        Entry { task, function: &[], arguments: &[], extra }
    } else {
        Entry { task, function, arguments, extra }
    }
}
