//! Blocks between this process and its peers: made, filled, passed on by descriptor, used in place, given back.
//! When a block is free is decided by the core's table; here is who tells it, and what becomes of the memory.
//!
//! ```text
//!  Lease: a payload of ours is in it, until dropped          Loan: something here uses a peer's, until dropped
//!    `--drop, any thread--> Returns --bell--> whoever drives the table, or tells the peer that drives its own
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use polyloop_core::{BlockFrame, BlockId, BlockTable, Discarded, Luggage, Moment, NotLent, Taken, TaskId};
use polyloop_shm::{AttachError, Block, BorrowedBlock, Doorbell};
use thiserror::Error;

use crate::os;

/// The kind of a message that passes a block.
const PASS: u64 = 2;
/// Blocks of one peer that are mapped here at most.
const KNOWN_MAX: usize = 4096;

/// What came of a user that is gone.
#[derive(Debug)]
pub(crate) enum Returned {
    /// A payload of ours has gone from this block.
    Lease { block: BlockId, spoiled: bool },
    /// A block of this lender's is not used here any more.
    Loan { lender: u64, block: BlockId, reusable: bool },
}

/// Where users of blocks say that they are gone, from whatever thread, at whatever moment.
pub(crate) struct Returns {
    waiting: Mutex<Vec<Returned>>,
    any: AtomicBool,
    /// Rung for each; gone with the pool.
    bell: Weak<Doorbell>,
    generation: u32,
}

impl Returns {
    pub(crate) fn new(bell: &Arc<Doorbell>) -> Arc<Self> {
        let waiting = Mutex::default();
        Arc::new(Self {
            waiting,
            any: AtomicBool::new(false),
            bell: Arc::downgrade(bell),
            generation: os::forked_generation(),
        })
    }

    /// In a forked child nothing happens: the block is still its parent's.
    fn push(&self, returned: Returned) {
        if self.generation != os::forked_generation() {
            return;
        }
        let Some(bell) = self.bell.upgrade() else { return };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(returned);
        self.any.store(true, Ordering::Release);
        // A bell that can't be rung is heard of when the pool looks next.
        let _ = bell.ring();
    }

    pub(crate) fn take(&self) -> Vec<Returned> {
        // The usual case, on the path of every item. Who is missed has rung, or is about to.
        if !self.any.load(Ordering::Relaxed) || !self.any.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A block of this process's that holds, or is to hold, the large parts of one payload, and does so until this is dropped.
pub struct Lease {
    id: BlockId,
    block: Arc<Block>,
    bytes: usize,
    spoiled: AtomicBool,
    returns: Arc<Returns>,
}

impl Lease {
    /// Writes the parts, each at its place. May take long for many bytes.
    ///
    /// # Errors
    /// When the system has no memory for it: drop this, and send the parts another way.
    ///
    /// # Panics
    /// When a part leaves the room that was asked for.
    pub fn fill<'a>(&self, parts: impl IntoIterator<Item = (usize, &'a [u8])>) -> io::Result<()> {
        let filled = self.block.fill(parts);
        if filled.is_err() {
            self.spoiled.store(true, Ordering::Relaxed);
        }
        filled
    }

    /// What a peer is told of it.
    pub(crate) fn frame(&self, task: TaskId) -> BlockFrame {
        BlockFrame::Lent { task, block: self.id, bytes: self.bytes as u64 }
    }

    /// A copy of what is in it.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.block.read(self.bytes, &mut bytes);
        bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.returns.push(Returned::Lease { block: self.id, spoiled: *self.spoiled.get_mut() });
    }
}

/// The blocks that this process has made. `P` names the peers that they are lent to.
pub(crate) struct Lender<P> {
    table: BlockTable<P>,
    blocks: BTreeMap<BlockId, Arc<Block>>,
    returns: Arc<Returns>,
}

impl<P: Copy + PartialEq> Lender<P> {
    pub(crate) fn new(blocks_max: usize, returns: Arc<Returns>) -> Self {
        Self { table: BlockTable::new(blocks_max), blocks: BTreeMap::new(), returns }
    }

    /// A block with room for so many bytes, if there is one or one can be made.
    pub(crate) fn take(&mut self, now: Moment, bytes: usize) -> Option<Lease> {
        let id = match self.table.take(bytes)? {
            Taken::Again(id) => id,
            Taken::New(id, size) => {
                let Ok(block) = Block::create(size) else {
                    self.table.spoil(id);
                    self.table.end_lease(now, id);
                    return None;
                };
                self.blocks.insert(id, Arc::new(block));
                id
            }
        };
        let block = Arc::clone(self.blocks.get(&id)?);
        Some(Lease { id, block, bytes, spoiled: AtomicBool::new(false), returns: Arc::clone(&self.returns) })
    }

    pub(crate) fn is_scarce(&self) -> bool {
        self.table.is_scarce()
    }

    /// Lets a peer use a block that was filled, and passes it on if the peer does not have it.
    ///
    /// # Errors
    /// When the system does not pass it on: send the bytes another way.
    pub(crate) fn pass(&mut self, lease: &Lease, peer: P, socket: BorrowedFd<'_>) -> io::Result<()> {
        if !self.table.lend(lease.id, peer) {
            return Ok(());
        }
        let passed = lease.block.with_fd(|fd| os::send(socket, &[PASS, lease.id.0], &[fd]));
        let passed = passed.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
        if passed.is_err() {
            self.table.not_lent(lease.id, peer);
        }
        passed
    }

    /// A block that was passed to the only peer there is needs no descriptor.
    pub(crate) fn close_fd(&self, lease: &Lease) {
        lease.block.close_fd();
    }

    pub(crate) fn end_lease(&mut self, now: Moment, block: BlockId, spoiled: bool) {
        if spoiled {
            self.table.spoil(block);
        }
        self.table.end_lease(now, block);
    }

    /// A peer says that it has no more use for a block.
    pub(crate) fn give_back(&mut self, now: Moment, block: BlockId, peer: P, reusable: bool) -> Result<(), NotLent> {
        if !reusable {
            self.table.spoil(block);
        }
        self.table.give_back(now, block, peer)
    }

    pub(crate) fn forget_peer(&mut self, now: Moment, peer: P) {
        self.table.forget_peer(now, peer);
    }

    pub(crate) fn next_idle(&self) -> Option<Moment> {
        self.table.next_idle()
    }

    pub(crate) fn give_back_idle(&mut self, now: Moment) {
        self.table.give_back_idle(now);
    }

    pub(crate) fn give_back_free(&mut self) {
        self.table.give_back_free();
    }

    /// Lets go of the memory of what was given back. Tell whoever knows these blocks.
    pub(crate) fn take_discarded(&mut self) -> Vec<Discarded<P>> {
        let discarded = self.table.take_discarded();
        for Discarded { block, .. } in &discarded {
            self.blocks.remove(block);
        }
        discarded
    }
}

/// A peer said of blocks what no correct peer says.
#[derive(Debug, Error)]
pub enum BlockError {
    /// A block that was not passed on before.
    #[error("block {0} was never passed on")]
    Unknown(u64),
    /// More bytes than the block has.
    #[error("{bytes} bytes in a block of {size}")]
    Size {
        /// What was said.
        bytes: u64,
        /// What there is.
        size: usize,
    },
    /// Not a block.
    #[error(transparent)]
    Attach(AttachError),
    /// Not a message about a block.
    #[error("a message that passes no block")]
    Message,
    /// More than `KNOWN_MAX`.
    #[error("more blocks than a process may have")]
    TooMany,
    /// It gave back what it does not have.
    #[error(transparent)]
    NotLent(#[from] NotLent),
}

/// The blocks of one peer, as far as they are known here.
pub(crate) struct Borrower {
    lender: u64,
    /// Mapped, or why that could not be.
    known: BTreeMap<BlockId, Result<Arc<BorrowedBlock>, String>>,
    returns: Arc<Returns>,
}

impl Borrower {
    /// `lender` is how [`Returned::Loan`] names the peer.
    pub(crate) fn new(lender: u64, returns: Arc<Returns>) -> Self {
        Self { lender, known: BTreeMap::new(), returns }
    }

    pub(crate) fn knows_any(&self) -> bool {
        !self.known.is_empty()
    }

    /// Begins to use a block that the peer has lent.
    pub(crate) fn borrow(&mut self, socket: BorrowedFd<'_>, block: BlockId, bytes: u64) -> Result<Memory, BlockError> {
        let (lender, returns) = (self.lender, Arc::clone(&self.returns));
        match self.find(socket, block)? {
            Ok(mapped) => {
                let size = mapped.len();
                let len = usize::try_from(bytes).ok().filter(|len| *len <= size);
                let len = len.ok_or(BlockError::Size { bytes, size })?;
                let block = LoanOf { lender, block, returns };
                Ok(Memory(Place::Loan(Loan::new(Arc::clone(mapped), len, block))))
            }
            Err(reason) => {
                // The lender is to let go of it, and to pass another one next time.
                returns.push(Returned::Loan { lender, block, reusable: false });
                Ok(Memory(Place::Lost(reason.clone())))
            }
        }
    }

    /// The peer uses this block no more. Whoever uses it here goes on.
    pub(crate) fn forget(&mut self, socket: BorrowedFd<'_>, block: BlockId) -> Result<(), BlockError> {
        self.find(socket, block)?;
        self.known.remove(&block);
        Ok(())
    }

    /// A block that has been passed on before a word of it came. What was passed before it is taken in too.
    fn find(
        &mut self,
        socket: BorrowedFd<'_>,
        block: BlockId,
    ) -> Result<&Result<Arc<BorrowedBlock>, String>, BlockError> {
        while !self.known.contains_key(&block) {
            let received = os::receive_now(socket).ok().flatten();
            let (numbers, fds) = received.ok_or(BlockError::Unknown(block.0))?;
            let &[PASS, passed] = &numbers[..] else { return Err(BlockError::Message) };
            if self.known.len() >= KNOWN_MAX {
                return Err(BlockError::TooMany);
            }
            let mapped = match fds.into_iter().next().map(BorrowedBlock::attach) {
                // The system drops what it has no number for.
                None => Err("this process may not have more file descriptors".to_owned()),
                Some(Ok(mapped)) => Ok(Arc::new(mapped)),
                Some(Err(AttachError::Os(error))) => Err(format!("its memory can't be mapped: {error}")),
                Some(Err(error)) => return Err(BlockError::Attach(error)),
            };
            self.known.insert(BlockId(passed), mapped);
        }
        self.known.get(&block).ok_or(BlockError::Unknown(block.0))
    }
}

struct LoanOf {
    lender: u64,
    block: BlockId,
    returns: Arc<Returns>,
}

/// The use of a peer's block, from its being received until this is dropped.
struct Loan {
    mapped: Arc<BorrowedBlock>,
    len: usize,
    of: LoanOf,
    /// Forks before it began: a child of a later one has the memory too.
    forks: u32,
}

impl Loan {
    fn new(mapped: Arc<BorrowedBlock>, len: usize, of: LoanOf) -> Self {
        let forks = os::forks();
        mapped.begin_use();
        Self { mapped, len, of, forks }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let LoanOf { lender, block, returns } = &self.of;
        // A forked child keeps what it has; it is for its parent to give back.
        if returns.generation == os::forked_generation() {
            self.mapped.end_use();
            let reusable = os::forks() == self.forks;
            returns.push(Returned::Loan { lender: *lender, block: *block, reusable });
        }
    }
}

enum Place {
    Loan(Loan),
    Heap(Box<[AtomicU8]>),
    Lost(String),
}

/// Why a part of what was received is not there.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// It could not be received.
    #[error("its large parts could not be received: {0}")]
    Lost(String),
    /// It is said to be where nothing is.
    #[error("its large parts are said to be longer than they are")]
    Outside,
}

/// The large parts of a payload that was received. They stay where they are as long as this does, whatever becomes of
/// the pool and of the process that sent them.
pub struct Memory(Place);

impl Memory {
    /// Memory of this process's own.
    pub(crate) fn heap(bytes: &[u8]) -> Self {
        Self(Place::Heap(bytes.iter().copied().map(AtomicU8::new).collect()))
    }

    pub(crate) fn into_luggage(self) -> Luggage {
        Luggage::new(Arc::new(self))
    }

    /// How many bytes it has. None where it was lost.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Place::Loan(loan) => loan.len,
            Place::Heap(bytes) => bytes.len(),
            Place::Lost(_) => 0,
        }
    }

    /// Does something with its bytes. Until it is given back its sender leaves it alone.
    fn with_bytes<R>(&self, act: impl FnOnce(&[u8]) -> R) -> R {
        match self.part(0..self.len()) {
            // SAFETY: the part is there, and as long as `self`. A sender that writes it all the same makes what is read
            // another mixture of bytes, which whoever gets it checks.
            Ok(start) => act(unsafe { std::slice::from_raw_parts(start, self.len()) }),
            Err(_) => act(&[]),
        }
    }

    /// A copy of it.
    pub(crate) fn read(&self) -> Vec<u8> {
        self.with_bytes(<[u8]>::to_vec)
    }

    /// A copy of it in a block of this process's own.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub(crate) fn copy_to(&self, lease: &Lease) -> io::Result<()> {
        self.with_bytes(|bytes| lease.fill([(0, bytes)]))
    }

    /// Where a part begins. It may be read and written; that nobody else does is agreed on, not enforced.
    ///
    /// # Errors
    /// [`MemoryError`] when it is not there.
    pub fn part(&self, part: Range<usize>) -> Result<*mut u8, MemoryError> {
        let (start, len) = match &self.0 {
            Place::Loan(loan) => (loan.mapped.start().as_ptr(), loan.len),
            Place::Heap(bytes) => (bytes.as_ptr().cast::<u8>().cast_mut(), bytes.len()),
            Place::Lost(reason) => return Err(MemoryError::Lost(reason.clone())),
        };
        if part.start > part.end || part.end > len {
            return Err(MemoryError::Outside);
        }
        Ok(start.wrapping_add(part.start))
    }

    /// A copy of a part.
    ///
    /// # Errors
    /// [`MemoryError`] when it is not there.
    #[cfg(feature = "tokio")]
    pub(crate) fn copy(self: &Arc<Self>, part: Range<usize>) -> Result<Vec<u8>, MemoryError> {
        Ok(Part::new(self, part)?.as_ref().to_vec())
    }
}

/// A part of received memory, in place.
#[cfg(feature = "tokio")]
pub(crate) struct Part {
    memory: Arc<Memory>,
    range: Range<usize>,
}

#[cfg(feature = "tokio")]
impl Part {
    /// # Errors
    /// [`MemoryError`] when it is not there.
    pub(crate) fn new(memory: &Arc<Memory>, range: Range<usize>) -> Result<Self, MemoryError> {
        memory.part(range.clone())?;
        Ok(Self { memory: Arc::clone(memory), range })
    }
}

#[cfg(feature = "tokio")]
impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        let Ok(start) = self.memory.part(self.range.clone()) else { unreachable!("it was there, and memory stays") };
        // SAFETY: the part is there as long as `memory`. Its sender has agreed to leave it alone until it is given back; one
        // that does not changes bytes, of which all are valid.
        unsafe { std::slice::from_raw_parts(start, self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::socket_pair;
    use std::os::fd::AsFd;

    const NOW: Moment = Moment::ZERO;

    fn task() -> TaskId {
        TaskId::from_bits(1 << 32)
    }

    fn read(memory: &Memory, part: Range<usize>) -> Vec<u8> {
        let start = memory.part(part.clone()).unwrap();
        // SAFETY: a part that is there; no test writes meanwhile.
        unsafe { std::slice::from_raw_parts(start, part.len()) }.to_vec()
    }

    struct Pair {
        lender: Lender<u8>,
        borrower: Borrower,
        sockets: (std::os::fd::OwnedFd, std::os::fd::OwnedFd),
        returns: Arc<Returns>,
        _bell: Arc<Doorbell>,
    }

    impl Pair {
        fn new() -> Self {
            let bell = Arc::new(Doorbell::new().unwrap());
            let returns = Returns::new(&bell);
            let (lender, borrower) = (Lender::new(4, Arc::clone(&returns)), Borrower::new(7, Arc::clone(&returns)));
            Self { lender, borrower, sockets: socket_pair().unwrap(), returns, _bell: bell }
        }

        fn send(&mut self, lease: &Lease) -> BlockId {
            self.lender.pass(lease, 1, self.sockets.0.as_fd()).unwrap();
            let BlockFrame::Lent { block, .. } = lease.frame(task()) else { panic!() };
            block
        }

        fn borrow(&mut self, block: BlockId, bytes: u64) -> Result<Memory, BlockError> {
            self.borrower.borrow(self.sockets.1.as_fd(), block, bytes)
        }
    }

    #[test]
    fn what_is_lent_is_used_in_place_and_used_again_once_it_is_back() {
        let mut pair = Pair::new();
        for round in 0..3 {
            let lease = pair.lender.take(NOW, 5000).unwrap();
            lease.fill([(0, &[round; 5000][..])]).unwrap();
            let block = pair.send(&lease);
            assert_eq!(block, BlockId(1), "always the same one");
            let memory = pair.borrow(block, 5000).unwrap();
            drop(lease);
            assert_eq!(read(&memory, 4990..5000), [round; 10]);
            assert!(matches!(memory.part(0..5001), Err(MemoryError::Outside)));
            drop(memory);
            for returned in pair.returns.take() {
                match returned {
                    Returned::Lease { block, spoiled } => pair.lender.end_lease(NOW, block, spoiled),
                    Returned::Loan { lender, block, reusable } => {
                        assert_eq!((lender, reusable), (7, true));
                        pair.lender.give_back(NOW, block, 1, reusable).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn memory_that_was_received_outlives_its_lender_and_the_pool() {
        let mut pair = Pair::new();
        let lease = pair.lender.take(NOW, 100).unwrap();
        lease.fill([(0, &b"still here"[..])]).unwrap();
        let block = pair.send(&lease);
        let memory = pair.borrow(block, 100).unwrap();
        drop((pair, lease));
        assert_eq!(read(&memory, 0..10), b"still here");
    }

    #[test]
    fn what_no_correct_peer_says_is_an_error() {
        let mut pair = Pair::new();
        assert!(matches!(pair.borrow(BlockId(5), 1), Err(BlockError::Unknown(5))));
        let lease = pair.lender.take(NOW, 4096).unwrap();
        lease.fill([(0, &[1; 4096][..])]).unwrap();
        let block = pair.send(&lease);
        assert!(matches!(pair.borrow(block, 4097), Err(BlockError::Size { bytes: 4097, size: 4096 })));
        assert!(matches!(pair.borrow(block, u64::MAX), Err(BlockError::Size { .. })));
        os::send(pair.sockets.0.as_fd(), &[9, 9, 9], &[]).unwrap();
        assert!(matches!(pair.borrow(BlockId(6), 1), Err(BlockError::Message)));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        os::send(pair.sockets.0.as_fd(), &[PASS, 7], &[file.as_fd()]).unwrap();
        assert!(matches!(pair.borrow(BlockId(7), 1), Err(BlockError::Attach(AttachError::Unsealed))));
    }

    #[test]
    fn a_block_that_came_without_its_descriptor_is_lost_and_goes_back() {
        let mut pair = Pair::new();
        os::send(pair.sockets.0.as_fd(), &[PASS, 3], &[]).unwrap();
        let memory = pair.borrow(BlockId(3), 1).unwrap();
        assert!(matches!(memory.part(0..1), Err(MemoryError::Lost(_))));
        assert!(matches!(pair.returns.take()[..], [Returned::Loan { reusable: false, .. }]));
    }

    #[test]
    fn what_a_peer_had_passed_on_before_it_died_can_be_used() {
        let mut pair = Pair::new();
        let lease = pair.lender.take(NOW, 100).unwrap();
        lease.fill([(0, &[3; 100][..])]).unwrap();
        let block = pair.send(&lease);
        // What it has not read makes the system report a reset first.
        os::send(pair.sockets.1.as_fd(), &[1], &[]).unwrap();
        let (gone, _) = socket_pair().unwrap();
        drop(std::mem::replace(&mut pair.sockets.0, gone));
        assert_eq!(read(&pair.borrow(block, 100).unwrap(), 0..100), [3; 100]);
    }
}
