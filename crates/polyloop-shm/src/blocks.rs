//! Payload memory: pieces of shared memory for what is too large for a queue. One process makes a block and writes it,
//! others map it and use it in place; both keep it mapped for the next time, as fresh memory costs ten times the copy.
//!
//! Unlike everything else here this is plain memory, as arrays and the like want it. So it is touched through raw
//! pointers only, and nothing in it is ever parsed in place by this code. Whose turn it is to touch it is agreed on by
//! messages through the rings, which also order the accesses.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::os::{Mapping, reserve, sealed_memory, sealed_size, write_at};
use crate::region::AttachError;

/// What a block is called where the system lists descriptors and mappings.
pub const BLOCK_NAME: &CStr = c"polyloop-block";

/// A block, in the process that made it. A forked child has no part in it.
pub struct Block {
    mapping: Mapping,
    /// Until every process that is to have it has it.
    fd: Mutex<Option<OwnedFd>>,
    /// It has been written once, so that there is memory behind all of it.
    is_backed: AtomicBool,
    /// All pages are mapped.
    is_populated: AtomicBool,
    maker: u32,
}

impl Block {
    /// A block of `bytes` bytes, without memory so far.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn create(bytes: usize) -> io::Result<Self> {
        let fd = sealed_memory(BLOCK_NAME, bytes as u64)?;
        let mapping = Mapping::new(fd.as_fd(), 0, bytes)?;
        Ok(Self {
            mapping,
            fd: Mutex::new(Some(fd)),
            is_backed: AtomicBool::new(false),
            is_populated: AtomicBool::new(false),
            maker: std::process::id(),
        })
    }

    /// Writes parts, each at its place, while nobody else uses the block.
    ///
    /// The first time they go through the descriptor: that is a good deal faster than touching fresh memory, and where
    /// there is none it is an error instead of SIGBUS. After that they are copied.
    ///
    /// # Errors
    /// When the system has no memory for the block, or it is larger than a file may be. It can't be used then.
    ///
    /// # Panics
    /// When a part leaves the block: a layout error in the caller.
    pub fn fill<'a>(&self, parts: impl IntoIterator<Item = (usize, &'a [u8])>) -> io::Result<()> {
        if self.is_backed.load(Ordering::Relaxed) {
            if !self.is_populated.swap(true, Ordering::Relaxed) {
                self.mapping.populate();
            }
            parts.into_iter().for_each(|(at, bytes)| self.copy_in(at, bytes));
            return Ok(());
        }
        let fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = fd.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut end = 0;
        for (at, bytes) in parts {
            assert!(self.has(at, bytes.len()), "a part outside its block");
            write_at(fd.as_fd(), bytes, at as u64)?;
            end = at + bytes.len();
        }
        reserve(fd.as_fd(), end as u64..self.mapping.len() as u64)?;
        self.is_backed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Appends the first `len` bytes to `out`, while nobody writes the block.
    ///
    /// # Panics
    /// When there are fewer: an error in the caller.
    pub fn read(&self, len: usize, out: &mut Vec<u8>) {
        assert!(self.has(0, len), "a part outside its block");
        out.reserve(len);
        // SAFETY: the mapping has `len` bytes, backed since `fill` was called, and `out` has room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(self.mapping.start().as_ptr(), out.as_mut_ptr().add(out.len()), len);
            out.set_len(out.len() + len);
        }
    }

    /// Does something with the descriptor, if it is still there: passes it on.
    pub fn with_fd<R>(&self, act: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> R) -> Option<R> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|fd| act(fd.as_fd()))
    }

    /// Closes the descriptor: whoever is to have the block has it.
    pub fn close_fd(&self) {
        drop(self.fd.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn has(&self, at: usize, len: usize) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.mapping.len())
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(self.has(at, bytes.len()), "a part outside its block");
        // SAFETY: within the mapping, as was just checked; backed by memory since the first `fill`, and of a fixed size.
        // By agreement nobody else touches it now; a peer that breaks the agreement finds other values, and so may
        // whoever reads them: bytes of arrays, which mean nothing to this code. The source is no block of this process's
        // own making: those are never lent as slices.
        unsafe {
            let to = self.mapping.start().as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if std::process::id() != self.maker {
            // A forked child may have closed this descriptor, and have another under its number.
            let fd = self.fd.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            std::mem::forget(fd);
        }
    }
}

/// A block that another process made, mapped here.
///
/// A child that is forked while somebody here uses it has it, too, and shares its memory.
pub struct BorrowedBlock {
    mapping: Mapping,
    users: Mutex<usize>,
}

impl BorrowedBlock {
    /// Maps a block that was received, once its seals are checked, and closes the descriptor.
    ///
    /// # Errors
    /// [`AttachError`] when the memory is unsealed, empty, or can't be mapped.
    pub fn attach(fd: OwnedFd) -> Result<Self, AttachError> {
        let size = sealed_size(fd.as_fd())?.ok_or(AttachError::Unsealed)?;
        let bytes = usize::try_from(size).ok().filter(|bytes| *bytes > 0).ok_or(AttachError::Size(size))?;
        Ok(Self { mapping: Mapping::new(fd.as_fd(), 0, bytes)?, users: Mutex::new(0) })
    }

    /// Its first byte. The memory stays as long as this object, whatever becomes of the process that made it.
    pub fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    /// Its size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Somebody uses it from now on.
    pub fn begin_use(&self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        *users += 1;
        if *users == 1 {
            self.mapping.inherit(true);
        }
    }

    /// Somebody uses it no more.
    pub fn end_use(&self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            self.mapping.inherit(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(block: &Block) -> BorrowedBlock {
        let fd = block.with_fd(|fd| fd.try_clone_to_owned().unwrap()).unwrap();
        BorrowedBlock::attach(fd).unwrap()
    }

    fn bytes(block: &BorrowedBlock, len: usize) -> Vec<u8> {
        assert!(len <= block.len());
        // SAFETY: within the mapping, and no test writes meanwhile.
        unsafe { std::slice::from_raw_parts(block.start().as_ptr(), len) }.to_vec()
    }

    #[test]
    fn what_is_filled_in_is_there_for_the_borrower_the_first_time_and_later() {
        let block = Block::create(10_000).unwrap();
        let borrowed = lent(&block);
        for round in 1..4 {
            block.fill([(0, &[round; 5][..]), (64, &[round + 10; 9000])]).unwrap();
            let seen = bytes(&borrowed, 64 + 9000);
            assert_eq!((&seen[..5], &seen[64..]), (&[round; 5][..], &[round + 10; 9000][..]));
        }
        let mut out = vec![1];
        block.read(3, &mut out);
        assert_eq!(out, [1, 3, 3, 3]);
    }

    #[test]
    fn the_memory_outlives_its_maker() {
        let block = Block::create(4096).unwrap();
        block.fill([(0, &b"kept"[..])]).unwrap();
        let borrowed = lent(&block);
        drop(block);
        assert_eq!(bytes(&borrowed, 4), b"kept");
    }

    #[test]
    #[should_panic(expected = "a part outside its block")]
    fn a_part_outside_its_block_is_refused() {
        let _ = Block::create(4096).unwrap().fill([(4000, &[0; 97][..])]);
    }

    #[test]
    fn unsealed_and_empty_memory_is_refused() {
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let unsealed = rustix::fs::memfd_create("x", flags).unwrap();
        rustix::fs::ftruncate(&unsealed, 4096).unwrap();
        assert!(matches!(BorrowedBlock::attach(unsealed), Err(AttachError::Unsealed)));
        let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        assert!(matches!(BorrowedBlock::attach(file), Err(AttachError::Unsealed)));
        let empty = sealed_memory(c"x", 0).unwrap();
        assert!(matches!(BorrowedBlock::attach(empty), Err(AttachError::Size(0))));
    }
}
