//! A queue between processes: any of them puts, any of them takes, and any of them may die at any step.
//!
//! What is shared, and why nothing is lost, is `polyloop_shm`'s; here are the descriptors, the seats that processes
//! take and leave, and the order of the steps. Nothing here waits but [`Watch::sleep`].

mod watch;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polyloop_shm::{
    Act, AttachError, Doorbell, First, Line, LineError, Naps, QueueFile, SEAT_BYTES, SEATS, Seat, Shelf, Side, Spot,
    Trim,
};
use thiserror::Error;

use crate::inject::step;
use crate::os::{Poller, forked_generation};

pub use watch::{Nap, Watch};

/// Bytes that an item may say it has without a doubt. A larger one takes as much memory as it says.
const UNDOUBTED_BYTES: usize = 1 << 20;

/// Why nothing could be put or taken.
#[derive(Debug, Error)]
pub enum QueueError {
    /// It was closed in this process.
    #[error("the queue is closed")]
    Closed,
    /// This process was forked from the one that opened the queue, without a word.
    #[error("the queue was opened by another process, from which this one was forked")]
    Forked,
    /// No process has room for a larger item.
    #[error("an item of {0} bytes: {SEAT_BYTES} is the most that a queue takes")]
    TooLarge(usize),
    /// Every seat is taken, or holds items that nobody has taken.
    #[error("the queue holds too much: no more than {SEATS} processes can put into it, or have left items in it")]
    Crowded,
    /// The memory is not a queue's.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// What it holds was overwritten: of no use to anybody any more.
    #[error("a queue's memory holds what no correct process writes")]
    Corrupt,
    /// The operating system refused.
    #[error(transparent)]
    Os(#[from] io::Error),
}

impl From<LineError<io::Error>> for QueueError {
    fn from(error: LineError<io::Error>) -> Self {
        match error {
            LineError::Corrupt => Self::Corrupt,
            LineError::Node(error) => Self::Os(error),
        }
    }
}

/// A queue, as one process sees it.
pub struct SharedQueue {
    file: QueueFile,
    line: Line,
    items: Doorbell,
    /// There is none where there is always room.
    room: Option<Doorbell>,
    generation: u32,
    closed: AtomicBool,
    /// What the locks on seats hang on. No other process may have it, or the seats would outlive this one.
    locks: OwnedFd,
    seats: Mutex<Vec<Seat>>,
    putter: Mutex<Putter>,
    taker: Mutex<Option<Act>>,
    /// Sets of descriptors that nobody waits on now.
    spare: Mutex<Vec<(Side, Poller)>>,
}

/// What this process puts by.
#[derive(Default)]
struct Putter {
    act: Option<Act>,
    shelf: Shelf,
    trims: Vec<Trim>,
}

impl SharedQueue {
    /// A new queue of at most `limit` items, or of as many as there is memory for.
    pub fn create(limit: Option<u64>) -> Result<Self, QueueError> {
        let file = QueueFile::create()?;
        let line = Line::create(file.header().clone(), &file, limit.unwrap_or(u64::MAX))?;
        let room = limit.map(|_| Doorbell::new()).transpose()?;
        Self::new(file, line, Doorbell::new()?, room)
    }

    /// A queue that another process made, by what [`Self::fds`] says there.
    pub fn attach(memory: OwnedFd, items: OwnedFd, room: Option<OwnedFd>) -> Result<Self, QueueError> {
        let file = QueueFile::attach(memory)?;
        let line = Line::attach(file.header().clone());
        Self::new(file, line, Doorbell::from_fd(items), room.map(Doorbell::from_fd))
    }

    fn new(file: QueueFile, line: Line, items: Doorbell, room: Option<Doorbell>) -> Result<Self, QueueError> {
        Ok(Self {
            locks: file.open_locks()?,
            file,
            line,
            items,
            room,
            generation: forked_generation(),
            closed: AtomicBool::new(false),
            seats: Mutex::default(),
            putter: Mutex::default(),
            taker: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// The queue in a process that has just been forked: as if it had been passed on. What the parent's threads were
    /// about to do with it is the parent's.
    pub fn reborn(parents: Arc<Self>) -> Result<Self, QueueError> {
        let parents = ManuallyDrop::new(parents);
        // SAFETY: the parent's view is never dropped here, so that these descriptors have no other owner.
        let own = |fd: BorrowedFd<'_>| unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) };
        drop(own(parents.locks.as_fd()));
        let (memory, items, room) = parents.fds();
        Self::attach(own(memory), own(items), room.map(own))
    }

    /// The descriptors by which another process attaches: memory, and the bells for items and for room.
    pub fn fds(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.file.as_fd(), self.items.as_fd(), self.room.as_ref().map(Doorbell::as_fd))
    }

    /// Items that it holds at most.
    pub fn limit(&self) -> Option<u64> {
        self.room.as_ref().map(|_| self.line.limit())
    }

    /// Items in it.
    pub fn len(&self) -> Result<u64, QueueError> {
        self.check()?;
        Ok(self.line.len(&self.file)?)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> Result<bool, QueueError> {
        self.check()?;
        Ok(self.first()?.is_none())
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> Result<u64, QueueError> {
        Ok(self.file.memory()?)
    }

    /// Puts an item, or says that the queue is full. Once this returns, the item does not depend on this process.
    pub fn put(&self, bytes: &[u8]) -> Result<bool, QueueError> {
        self.check()?;
        if bytes.len() as u64 > SEAT_BYTES {
            return Err(QueueError::TooLarge(bytes.len()));
        }
        if self.limit().is_some() && self.is_full()? {
            return Ok(false);
        }
        let putter = &mut *lock(&self.putter);
        let spot = self.place(putter, bytes)?;
        step("put-written");
        let act = self.act(&mut putter.act, Side::Items)?;
        let pushed = self.acting(act, Side::Items, "put-begun", "put-pushed", |queue| {
            Ok(queue.line.push(&queue.file, spot.node)?)
        });
        match pushed {
            Ok(Some(position)) => putter.shelf.keep(spot, position),
            Ok(None) | Err(_) => putter.shelf.give_back(spot),
        }
        Ok(pushed?.is_some())
    }

    /// Takes the item that comes next, if there is one.
    pub fn take(&self) -> Result<Option<Vec<u8>>, QueueError> {
        self.take_into(|size, read| {
            let mut bytes = vec![0; size];
            read(&mut bytes).map(|()| bytes)
        })
    }

    /// Takes the item that comes next, if there is one: `make` is given its size, and what fills memory of that size.
    /// Until it is taken it is another's to take, also if this process dies; then `make` is asked again for the next.
    pub fn take_into<T, E: From<QueueError>>(
        &self,
        mut make: impl FnMut(usize, &mut dyn FnMut(&mut [u8]) -> Result<(), QueueError>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.check()?;
        let taker = &mut *lock(&self.taker);
        loop {
            let Some(first) = self.first()? else { return Ok(None) };
            step("take-found");
            if !self.can_be(&first)? {
                continue;
            }
            let made = make(first.size, &mut |bytes| self.read(&first, bytes))?;
            step("take-read");
            if self.pass(taker, &first)? {
                return Ok(Some(made));
            }
        }
    }

    /// Ends the queue for this process; what waits for it here is told. Its items are the others'.
    pub fn close(&self) -> Result<(), QueueError> {
        self.closed.store(true, Ordering::Relaxed);
        // The bells wake all who wait, who then look why.
        self.ring(Side::Items)?;
        self.ring(Side::Room)
    }

    fn check(&self) -> Result<(), QueueError> {
        if self.generation != forked_generation() {
            return Err(QueueError::Forked);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(QueueError::Closed);
        }
        Ok(())
    }

    fn first(&self) -> Result<Option<First>, QueueError> {
        Ok(self.line.first(&self.file)?)
    }

    /// Whether there is memory enough for this to be an item. If not, another process has taken it meanwhile.
    fn can_be(&self, first: &First) -> Result<bool, QueueError> {
        if first.size <= UNDOUBTED_BYTES || first.size as u64 <= self.file.memory()? {
            return Ok(true);
        }
        if self.line.is_first(first) { Err(QueueError::Corrupt) } else { Ok(false) }
    }

    fn read(&self, first: &First, bytes: &mut [u8]) -> Result<(), QueueError> {
        match first.place() {
            Some((seat, place)) => self.file.read(seat, place, bytes)?,
            None => bytes.copy_from_slice(&self.line.read(&self.file, first)?),
        }
        Ok(())
    }

    fn pass(&self, act: &mut Option<Act>, first: &First) -> Result<bool, QueueError> {
        if self.room.is_none() {
            return Ok(self.line.pass(first)); // nobody waits for room
        }
        let act = self.act(act, Side::Room)?;
        self.acting(act, Side::Room, "take-begun", "take-passed", |queue| Ok(queue.line.pass(first)))
    }

    fn is_full(&self) -> Result<bool, QueueError> {
        Ok(self.line.len(&self.file)? >= self.line.limit())
    }

    /// Writes an item where nobody looks yet.
    fn place(&self, putter: &mut Putter, bytes: &[u8]) -> Result<Spot, QueueError> {
        self.reclaim(putter)?;
        let spot = loop {
            if let Some(spot) = putter.shelf.place(bytes.len()) {
                break spot;
            }
            // The first seat is the one that this process acts by.
            let seat = if putter.shelf.has_seat() { self.claim()? } else { self.first_seat()? };
            putter.shelf.add(seat);
        };
        step("put-placed");
        let filled = self.line.fill(&self.file, &spot, bytes).and_then(|()| match spot.place {
            Some(place) => self.file.write(spot.node.seat, place, bytes),
            None => Ok(()),
        });
        if filled.is_err() {
            putter.shelf.give_back(spot);
        }
        filled?;
        Ok(spot)
    }

    /// Frees what has been taken of what this process has put.
    fn reclaim(&self, putter: &mut Putter) -> Result<(), QueueError> {
        putter.shelf.reclaim(self.line.head(), &mut putter.trims);
        for trim in putter.trims.drain(..) {
            self.file.trim(&trim)?;
            if let Trim::Seat(seat) = trim {
                lock(&self.seats).retain(|own| *own != seat);
                self.file.unlock(self.locks.as_fd(), seat)?;
            }
        }
        Ok(())
    }

    fn act<'a>(&self, act: &'a mut Option<Act>, side: Side) -> Result<&'a mut Act, QueueError> {
        match act {
            Some(act) => Ok(act),
            None => Ok(act.insert(Act::new(self.file.header().clone(), side, self.first_seat()?))),
        }
    }

    /// Does what others may wait for, and wakes them, in the order that survives a death at each step.
    fn acting<T>(
        &self,
        act: &mut Act,
        side: Side,
        begun: &'static str,
        acted: &'static str,
        work: impl FnOnce(&Self) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let must_ring = act.begin();
        step(begun);
        let rung = if must_ring { self.ring(side) } else { Ok(()) };
        let result = rung.and_then(|()| work(self));
        step(acted);
        let rung = if act.must_ring() { self.ring(side) } else { Ok(()) };
        act.end();
        result.and_then(|result| rung.map(|()| result))
    }

    fn ring(&self, side: Side) -> Result<(), QueueError> {
        step("ring");
        match side {
            Side::Items => self.items.ring()?,
            Side::Room => self.room.as_ref().map_or(Ok(()), Doorbell::ring)?,
        }
        step("rung");
        Ok(())
    }

    fn first_seat(&self) -> Result<Seat, QueueError> {
        let first = lock(&self.seats).first().copied();
        first.map_or_else(|| self.claim(), Ok)
    }

    /// Takes a seat that nobody has, and none of whose items is in line.
    fn claim(&self) -> Result<Seat, QueueError> {
        let mut own = lock(&self.seats);
        for seat in (1..SEATS as u16).map(Seat) {
            if own.contains(&seat) || !self.line.is_drained(seat) {
                continue;
            }
            if !self.file.try_lock(self.locks.as_fd(), seat)? {
                continue;
            }
            step("claimed");
            if self.line.is_drained(seat) {
                self.settle(seat);
                self.file.trim(&Trim::Seat(seat))?;
                own.push(seat);
                return Ok(seat);
            }
            self.file.unlock(self.locks.as_fd(), seat)?;
        }
        Err(QueueError::Crowded)
    }

    /// Says that nobody acts in a seat that is ours.
    fn settle(&self, seat: Seat) {
        for side in [Side::Items, Side::Room] {
            drop(Act::new(self.file.header().clone(), side, seat));
        }
    }

    /// Settles the seat of a process that died while it acted. One that lives keeps its own.
    fn bury(&self, seat: Seat) -> Result<(), QueueError> {
        let own = lock(&self.seats);
        if !own.contains(&seat) && self.file.try_lock(self.locks.as_fd(), seat)? {
            self.settle(seat);
            self.file.unlock(self.locks.as_fd(), seat)?;
        }
        Ok(())
    }

    fn naps(&self, side: Side) -> Naps {
        Naps::new(self.file.header().clone(), side)
    }
}

impl Drop for SharedQueue {
    /// Gives back what the seats of this process hold for nobody. What can't be given back now goes with the queue.
    fn drop(&mut self) {
        if self.generation != forked_generation() {
            return;
        }
        let putter = &mut *lock(&self.putter);
        putter.shelf.reclaim(self.line.head(), &mut putter.trims);
        if putter.shelf.is_drained() {
            putter.trims.extend(lock(&self.seats).iter().map(|seat| Trim::Bytes(*seat, 0..SEAT_BYTES)));
        }
        for trim in putter.trims.drain(..) {
            let _ = self.file.trim(&trim);
        }
    }
}

/// A mutex of this process. Whoever panicked with it has left nothing half-done that others rely on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyloop_shm::{NodeRef, Nodes};

    /// A queue with one item, and its memory in the hands of somebody else.
    fn queue_and_rogue() -> (SharedQueue, QueueFile) {
        let queue = SharedQueue::create(Some(4)).unwrap();
        assert!(queue.put(b"item").unwrap());
        let rogue = QueueFile::attach(queue.fds().0.try_clone_to_owned().unwrap()).unwrap();
        (queue, rogue)
    }

    #[test]
    fn a_queue_whose_ends_make_no_sense_keeps_nobody() {
        let (queue, rogue) = queue_and_rogue();
        for end in [0, 8] {
            let before = rogue.header()[end].fetch_add(100 << 28, Ordering::Relaxed); // a hundred positions further
            assert!(matches!(queue.len(), Err(QueueError::Corrupt)));
            assert!(matches!(queue.put(b"more"), Err(QueueError::Corrupt)));
            rogue.header()[end].store(before, Ordering::Relaxed);
        }
        assert_eq!(queue.take().unwrap().unwrap(), b"item");
    }

    #[test]
    fn an_item_that_says_it_is_larger_than_its_memory_is_not_believed() {
        let (queue, rogue) = queue_and_rogue();
        rogue.node(NodeRef { seat: Seat(1), index: 0 }).unwrap()[1].store(SEAT_BYTES, Ordering::Relaxed);
        assert!(matches!(queue.take(), Err(QueueError::Corrupt)));
    }
}
