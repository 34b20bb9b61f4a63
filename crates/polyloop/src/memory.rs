//! How much memory a worker holds that is its own, and whether that is too much.

use std::io;
use std::time::{Duration, Instant};

/// The shortest time between two looks: a look costs some microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Watches this process's private memory.
pub(crate) struct MemoryWatch {
    limit_bytes: u64,
    next_look: Instant,
}

impl MemoryWatch {
    /// A limit of 0 is none, and costs nothing.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, next_look: Instant::now() }
    }

    /// Whether this process holds more than it may; a look that is not due says no.
    pub(crate) fn is_exceeded(&mut self) -> io::Result<bool> {
        if self.limit_bytes == 0 {
            return Ok(false);
        }
        let now = Instant::now();
        if now < self.next_look {
            return Ok(false);
        }
        self.next_look = now + LOOK_EVERY;
        Ok(private_bytes()? > self.limit_bytes)
    }
}

/// Resident memory of this process that no file and no other process has a part in.
fn private_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let mut pages = statm.split(' ').skip(1).map(|pages| pages.parse::<u64>().ok());
    match (pages.next().flatten(), pages.next().flatten()) {
        (Some(resident), Some(shared)) => Ok(resident.saturating_sub(shared) * rustix::param::page_size() as u64),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_writes_to_is_counted() {
        let before = private_bytes().unwrap();
        let memory = vec![1_u8; 64 << 20];
        let after = private_bytes().unwrap();
        assert!(after - before > 60 << 20, "{before} {after} {}", memory.len());
    }

    #[test]
    fn it_looks_at_once_and_then_not_before_a_while() {
        let mut watch = MemoryWatch::new(1);
        assert!(watch.is_exceeded().unwrap());
        assert!(!watch.is_exceeded().unwrap());
        assert!(!MemoryWatch::new(0).is_exceeded().unwrap());
    }
}
