//! The operating system's part of this crate: sealed anonymous memory, its mapping and locks, and doorbells.
//! Another system is supported by giving these few items a second body.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
    memfd_create, open,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::process::{Resource, getrlimit};

/// What keeps a region from changing size under a mapping, or from being unsealed.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Zeroed memory behind a descriptor, `bytes` long, sealed against resizing, closed on exec. The name is for people.
pub(crate) fn sealed_memory(name: &CStr, bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag that makes the memory non-executable.
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    check_file_size(bytes)?;
    ftruncate(&fd, bytes)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Memory is a file to the system: beyond the limit for those, it would end the process by a signal (SIGXFSZ).
fn check_file_size(bytes: u64) -> io::Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if bytes > limit => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}

/// The size in bytes of sealed memory, or `None` where `fd` lacks the seals and can't be trusted to keep its size.
pub(crate) fn sealed_size(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    if !fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
        return Ok(None);
    }
    Ok(u64::try_from(fstat(fd)?.st_size).ok())
}

/// Writes all of `bytes` into memory behind a descriptor. Where there is none left, that is an error, not a signal.
pub(crate) fn write_at(fd: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    check_file_size(at + bytes.len() as u64)?;
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Err(Errno::INTR) => (),
            written => {
                let written = written?;
                bytes = &bytes[written..];
                at += written as u64;
            }
        }
    }
    Ok(())
}

/// Makes sure that there is memory behind this part.
pub(crate) fn reserve(fd: BorrowedFd<'_>, part: Range<u64>) -> io::Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    loop {
        match fallocate(fd, FallocateFlags::empty(), part.start, part.end - part.start) {
            Err(Errno::INTR) => (),
            other => return Ok(other?),
        }
    }
}

/// Gives pages back to the system, which are zero from then on.
pub(crate) fn give_back(fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::io::retry_on_intr(|| fallocate(fd, flags, offset, bytes))?)
}

/// Another handle on the same memory, with locks of its own.
pub(crate) fn open_again(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Locks one byte for this handle, unless another has it. The kernel unlocks it when the handle's last descriptor goes.
pub(crate) fn try_lock(handle: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    match lock(handle, byte, libc::F_WRLCK) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Unlocks one byte.
pub(crate) fn unlock(handle: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    lock(handle, byte, libc::F_UNLCK)
}

fn lock(handle: BorrowedFd<'_>, byte: u64, kind: i32) -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this plain struct.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = kind as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = byte as _;
    lock.l_len = 1;
    // SAFETY: the kernel reads the struct during the call; the descriptor is open.
    match unsafe { libc::fcntl(handle.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A shared mapping, unmapped on drop. A forked child does not have it, unless it is let.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    owner: u32,
    is_inherited: AtomicBool,
}

// SAFETY: the mapping is plain memory; who may touch it, and how, is decided by `Words`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping chosen by the kernel; nothing else refers to these addresses.
        let start = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset)?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { start, bytes, owner: std::process::id(), is_inherited: AtomicBool::new(false) };
        // SAFETY: advice about the mapping just made; a forked child of a task must not reach the pool's queues.
        unsafe { madvise(mapping.start.as_ptr().cast(), bytes, Advice::LinuxDontFork)? };
        Ok(mapping)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Lets children that are forked from now on have this mapping, too, or no more. They share its memory.
    pub(crate) fn inherit(&self, inherits: bool) {
        // A child that finds the mark has the mapping; one that does not may have it all the same.
        if !inherits {
            self.is_inherited.store(false, Ordering::SeqCst);
        }
        let advice = if inherits { Advice::LinuxDoFork } else { Advice::LinuxDontFork };
        // SAFETY: advice about a live, whole mapping. It can only fail where that would be split, and this is not.
        let advised = unsafe { madvise(self.start.as_ptr().cast(), self.bytes, advice) };
        if inherits && advised.is_ok() {
            self.is_inherited.store(true, Ordering::SeqCst);
        }
    }

    /// Maps every page that has memory now, instead of one by one when written, where the system knows how to. As for
    /// reading, which maps many at a time, and for writing all the same: shared pages of this kind need no more.
    pub(crate) fn populate(&self) {
        // SAFETY: advice about a live mapping. Where it is not known, pages are mapped when touched, which is slower.
        let _ = unsafe { madvise(self.start.as_ptr().cast(), self.bytes, Advice::LinuxPopulateRead) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child these addresses may already belong to something else.
        if std::process::id() != self.owner && !self.is_inherited.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: this mapping was made by `new`, and every view of it keeps it alive, so none is left. Unmapping
        // whole, existing mappings does not fail.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A descriptor that becomes readable when rung: how a sleeping process is woken.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A silent doorbell, closed on exec.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// A doorbell received from the process that made it.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Makes the descriptor readable. Ringing twice is ringing once.
    pub fn ring(&self) -> io::Result<()> {
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            // The counter is full, so the sleeper has been rung already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the rings received so far, so that the descriptor can be waited on again. Says whether there were any.
    pub fn silence(&self) -> io::Result<bool> {
        match rustix::io::read(&self.fd, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
