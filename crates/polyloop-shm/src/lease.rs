//! A worker's lease table: which tasks it holds. One writer, the worker; read by the manager when the worker dies.
//!
//! A lease is written before the item leaves the board and cleared after its outcome is in the ring, so at every
//! moment a task is found in the board, in a lease, in the ring, or in more than one of them: never in none.

use crate::sync::Ordering;
use crate::words::Words;

/// Where in its table a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseIndex(u32);

/// The worker's side.
pub struct LeaseWriter {
    table: Words,
    free: Vec<u32>,
}

impl LeaseWriter {
    /// An empty table over zeroed words, one word for each lease.
    pub fn new(table: Words) -> Self {
        let free = (0..table.len() as u32).rev().collect();
        Self { table, free }
    }

    /// Records that this worker holds `task` (never 0), or `None` when the table is full.
    pub fn record(&mut self, task: u64) -> Option<LeaseIndex> {
        debug_assert_ne!(task, 0, "0 marks a free lease");
        let index = self.free.pop()?;
        // Pairs with `held`, like `clear`: in a word used again this, too, says that the earlier outcome is in the ring.
        self.table[index as usize].store(task, Ordering::Release);
        Some(LeaseIndex(index))
    }

    /// Forgets a lease whose outcome has been published.
    pub fn clear(&mut self, lease: LeaseIndex) {
        // Pairs with the Acquire load in `LeaseReader::held`: whoever misses the lease finds the outcome in the ring.
        self.table[lease.0 as usize].store(0, Ordering::Release);
        self.free.push(lease.0);
    }

    /// Leases that can still be recorded.
    pub fn room(&self) -> usize {
        self.free.len()
    }
}

/// The manager's side.
pub struct LeaseReader {
    table: Words,
}

impl LeaseReader {
    /// A reader of a worker's table.
    pub fn new(table: Words) -> Self {
        Self { table }
    }

    /// The tasks held, as the worker last wrote them; to be read before the ring, into which a task goes before its
    /// lease is cleared. Untrusted: the caller checks each against what it knows.
    pub fn held(&self) -> Vec<u64> {
        self.table
            .iter()
            // Pairs with the Release stores in `LeaseWriter`.
            .map(|word| word.load(Ordering::Acquire))
            .filter(|&task| task != 0)
            .collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_seen_until_it_is_cleared() {
        let words = Words::heap(2);
        let (mut writer, reader) = (LeaseWriter::new(words.clone()), LeaseReader::new(words));
        let first = writer.record(7).unwrap();
        writer.record(9).unwrap();
        assert_eq!(writer.record(11), None, "full");
        assert_eq!(reader.held(), [7, 9]);
        writer.clear(first);
        assert_eq!(reader.held(), [9]);
        assert_eq!(writer.room(), 1);
    }
}
