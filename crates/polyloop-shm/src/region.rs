//! A sealed piece of memory that processes share by its descriptor. The only code that maps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use crate::os::{Mapping, sealed_memory, sealed_size};
use crate::words::{WORD, Words};

/// Why memory that another process offered was not mapped.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The memory could shrink under the mapping, which would kill whoever touches it.
    #[error("shared memory without seals: its size could change under us")]
    Unsealed,
    /// The memory is not a whole number of words, or larger than this machine can address.
    #[error("shared memory of an impossible size: {0} bytes")]
    Size(u64),
    /// The operating system refused.
    #[error("can't map shared memory: {0}")]
    Os(#[from] io::Error),
}

/// Sealed shared memory: never resized, never in a forked child, gone with its last descriptor and mapping.
pub struct Region {
    fd: OwnedFd,
    words: Words,
}

impl Region {
    /// New zeroed memory of `len` words.
    pub fn create(len: usize) -> io::Result<Self> {
        let bytes = len * WORD;
        let fd = sealed_memory(c"polyloop", bytes as u64)?;
        let words = map(fd.as_fd(), 0, bytes)?;
        Ok(Self { fd, words })
    }

    /// Memory that another process created, once its seals are checked.
    ///
    /// # Errors
    /// [`AttachError`] when the memory is unsealed, of a strange size, or can't be mapped.
    pub fn attach(fd: OwnedFd) -> Result<Self, AttachError> {
        let size = sealed_size(fd.as_fd())?.ok_or(AttachError::Unsealed)?;
        let bytes = usize::try_from(size).map_err(|_| AttachError::Size(size))?;
        if bytes == 0 || bytes % WORD != 0 {
            return Err(AttachError::Size(size));
        }
        let words = map(fd.as_fd(), 0, bytes)?;
        Ok(Self { fd, words })
    }

    /// The memory.
    pub fn words(&self) -> &Words {
        &self.words
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Maps `bytes` bytes of sealed memory from `offset` on, both a multiple of a word's size, the offset of a page's.
pub(crate) fn map(fd: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Words> {
    let mapping = Arc::new(Mapping::new(fd, offset, bytes)?);
    let start = mapping.start().cast();
    // SAFETY: the mapping is page-aligned, readable and writable, `bytes` long, sealed against shrinking, and kept
    // alive by the view.
    Ok(unsafe { Words::mapped(start, bytes / WORD, mapping) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Ordering;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn two_mappings_of_a_region_are_the_same_memory() {
        let region = Region::create(16).unwrap();
        let other = Region::attach(region.fd.try_clone().unwrap()).unwrap();
        region.words()[3].store(7, Ordering::Relaxed);
        assert_eq!(other.words()[3].load(Ordering::Relaxed), 7);
        assert_eq!(other.words().len(), 16);
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let fd = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert!(matches!(Region::attach(fd), Err(AttachError::Unsealed)));
    }

    #[test]
    fn a_region_can_not_be_resized() {
        let region = Region::create(16).unwrap();
        assert!(ftruncate(&region.fd, 8).is_err());
        assert!(ftruncate(&region.fd, 1 << 20).is_err());
    }
}
