//! What workers have started, as they say themselves: it survives them, and no queue under test carries it.
#![expect(clippy::unwrap_used, reason = "a test that can't write its journal has failed")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) const PATH: &str = "POLYLOOP_TEST_JOURNAL";
const RECORD: usize = 16;

/// Read by the test.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    pub(crate) fn new() -> Self {
        let fd: OwnedFd = memfd_create("journal", MemfdFlags::CLOEXEC).unwrap();
        Self { file: fd.into() }
    }

    /// Where a worker finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn len(&self) -> usize {
        self.file.metadata().unwrap().len() as usize / RECORD
    }

    /// The processes that have started each task, in order, by the task's token.
    pub(crate) fn starts(&self) -> BTreeMap<u64, Vec<u32>> {
        let mut bytes = vec![0; self.len() * RECORD];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut starts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for record in bytes.as_chunks::<RECORD>().0 {
            let (token, pid) = record.split_at(RECORD / 2);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            starts.entry(word(token)).or_default().push(word(pid) as u32);
        }
        starts
    }
}

/// Written by a worker.
pub(crate) struct Pen {
    file: File,
}

impl Pen {
    pub(crate) fn from_env() -> Self {
        let path = std::env::var_os(PATH).unwrap();
        Self { file: OpenOptions::new().append(true).open(path).unwrap() }
    }

    pub(crate) fn started(&mut self, token: u64) {
        let mut record = [0; RECORD];
        record[..RECORD / 2].copy_from_slice(&token.to_le_bytes());
        record[RECORD / 2..].copy_from_slice(&u64::from(std::process::id()).to_le_bytes());
        // One write, so that it is there as a whole or not at all.
        assert_eq!(self.file.write(&record).unwrap(), RECORD);
    }
}
