//! The memory file of a queue: one sparse memfd that holds everything, in which only what was used takes memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

use super::{NODE_WORDS, NodeRef, Nodes, QUEUE_HEADER_WORDS, SEAT_BYTES, SEAT_NODE_WORDS, SEATS, Seat, Trim};
use crate::os::{give_back, open_again, sealed_memory, sealed_size, try_lock, unlock};
use crate::region::{AttachError, map};
use crate::sync::AtomicU64;
use crate::words::{WORD, Words};

const HEADER_BYTES: u64 = 1 << 20;
const NODE_BYTES: u64 = (SEAT_NODE_WORDS * WORD) as u64;
const BYTES_AT: u64 = SEAT_BYTES;
const TOTAL_BYTES: u64 = BYTES_AT + (SEATS as u64 + 1) * SEAT_BYTES;
const _: () = assert!((QUEUE_HEADER_WORDS * WORD) as u64 <= HEADER_BYTES);
const _: () = assert!(HEADER_BYTES + (SEATS as u64 + 1) * NODE_BYTES <= BYTES_AT);

/// The memory of a queue.
pub struct QueueFile {
    fd: OwnedFd,
    header: Words,
    windows: Box<[OnceLock<Words>]>,
}

impl QueueFile {
    /// New memory, all zero.
    pub fn create() -> io::Result<Self> {
        let fd = sealed_memory(c"polyloop", TOTAL_BYTES)?;
        Self::map(fd)
    }

    /// The memory of a queue that another process made.
    ///
    /// # Errors
    /// [`AttachError`] when this is no memory of a queue, or can't be mapped.
    pub fn attach(fd: OwnedFd) -> Result<Self, AttachError> {
        match sealed_size(fd.as_fd())?.ok_or(AttachError::Unsealed)? {
            TOTAL_BYTES => Ok(Self::map(fd)?),
            size => Err(AttachError::Size(size)),
        }
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        let header = map(fd.as_fd(), 0, QUEUE_HEADER_WORDS * WORD)?;
        let windows = (0..SEATS).map(|_| OnceLock::new()).collect();
        Ok(Self { fd, header, windows })
    }

    /// The header.
    pub fn header(&self) -> &Words {
        &self.header
    }

    /// A further handle on this file, to lock seats by: each lock is lost when the last descriptor of this handle is
    /// closed, and other handles of the same process do not have it.
    pub fn open_locks(&self) -> io::Result<OwnedFd> {
        open_again(self.fd.as_fd())
    }

    /// Takes a seat, unless another handle has it. Never waits.
    pub fn try_lock(&self, locks: BorrowedFd<'_>, seat: Seat) -> io::Result<bool> {
        try_lock(locks, u64::from(seat.0))
    }

    /// Gives a seat back.
    pub fn unlock(&self, locks: BorrowedFd<'_>, seat: Seat) -> io::Result<()> {
        unlock(locks, u64::from(seat.0))
    }

    /// Writes a large item among the bytes of a seat.
    pub fn write(&self, seat: Seat, place: u64, mut bytes: &[u8]) -> io::Result<()> {
        let mut at = bytes_at(seat) + place;
        while !bytes.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.fd, bytes, at))?;
            bytes = &bytes[written..];
            at += written as u64;
        }
        Ok(())
    }

    /// Fills `bytes` with those from `place` on among a seat's.
    pub fn read(&self, seat: Seat, place: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut at = bytes_at(seat) + place;
        while !bytes.is_empty() {
            match rustix::io::pread(&self.fd, &mut *bytes, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    bytes = &mut bytes[read..];
                    at += read as u64;
                }
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives memory back to the system: it is zero from then on. The caller knows that nobody needs it.
    pub fn trim(&self, trim: &Trim) -> io::Result<()> {
        match trim {
            Trim::Bytes(seat, range) => {
                give_back(self.fd.as_fd(), bytes_at(*seat) + range.start, range.end - range.start)
            }
            Trim::Seat(seat) => {
                give_back(self.fd.as_fd(), nodes_at(*seat), NODE_BYTES)?;
                give_back(self.fd.as_fd(), bytes_at(*seat), SEAT_BYTES)
            }
        }
    }

    /// Bytes of memory that the queue takes now.
    pub fn memory(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_blocks as u64 * 512)
    }
}

impl Nodes for QueueFile {
    type Error = io::Error;

    fn node(&self, node: NodeRef) -> io::Result<&[AtomicU64]> {
        let window = &self.windows[usize::from(node.seat.0)];
        let words = match window.get() {
            Some(words) => words,
            None => {
                let words = map(self.fd.as_fd(), nodes_at(node.seat), NODE_BYTES as usize)?;
                window.get_or_init(|| words)
            }
        };
        let start = usize::from(node.index) * NODE_WORDS;
        Ok(&words[start..start + NODE_WORDS])
    }
}

impl AsFd for QueueFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn nodes_at(seat: Seat) -> u64 {
    HEADER_BYTES + u64::from(seat.0) * NODE_BYTES
}

fn bytes_at(seat: Seat) -> u64 {
    BYTES_AT + u64::from(seat.0) * SEAT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_one_handles_until_it_is_closed() {
        let file = QueueFile::create().unwrap();
        let (mine, yours) = (file.open_locks().unwrap(), file.open_locks().unwrap());
        assert!(file.try_lock(mine.as_fd(), Seat(3)).unwrap());
        assert!(!file.try_lock(yours.as_fd(), Seat(3)).unwrap());
        assert!(file.try_lock(yours.as_fd(), Seat(4)).unwrap());
        file.unlock(yours.as_fd(), Seat(4)).unwrap();
        assert!(file.try_lock(mine.as_fd(), Seat(4)).unwrap());
        drop(mine);
        assert!(file.try_lock(yours.as_fd(), Seat(3)).unwrap());
    }

    #[test]
    fn what_is_written_is_read_until_it_is_given_back() {
        let file = QueueFile::create().unwrap();
        let other = QueueFile::attach(file.fd.try_clone().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let last = Seat(SEATS as u16 - 1);
        file.write(last, SEAT_BYTES - bytes.len() as u64, &bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        other.read(last, SEAT_BYTES - bytes.len() as u64, &mut read).unwrap();
        assert_eq!(read, bytes);
        let before = file.memory().unwrap();
        file.trim(&Trim::Seat(last)).unwrap();
        assert!(file.memory().unwrap() + 90_000 < before);
    }

    #[test]
    fn memory_of_another_kind_is_refused() {
        let region = crate::Region::create(16).unwrap();
        let fd = region.as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(QueueFile::attach(fd), Err(AttachError::Size(128))));
    }
}
