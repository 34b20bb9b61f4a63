//! A view of shared memory as 64-bit atomics: the only way this crate touches bytes another process may write.
//!
//! Reading and writing word by word with relaxed atomics makes every race a defined one, so that a hostile or
//! half-dead peer can produce wrong values but never undefined behaviour. Ordering comes from the queues.

use std::any::Any;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering};

/// Bytes in a word.
pub(crate) const WORD: usize = 8;
/// Words in a cache line: what one party writes often stands on a line of its own.
pub(crate) const LINE: usize = 8;

/// A run of shared 64-bit atomics that keeps its memory alive. Cloning copies the view, not the memory.
#[derive(Clone)]
pub struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: a view hands out only `&AtomicU64`, which any thread may use, and its owner is Send and Sync.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Zeroed words on the heap, for threads of one process: models, the simulator, tests.
    pub fn heap(len: usize) -> Self {
        let words: Arc<Vec<AtomicU64>> = Arc::new((0..len).map(|_| AtomicU64::new(0)).collect());
        let start = NonNull::from(words.as_slice()).cast();
        Self { start, len, _owner: words }
    }

    /// A view of mapped memory.
    ///
    /// # Safety
    /// `start` points to `len` words, aligned, readable and writable for as long as `owner` lives.
    #[cfg(not(loom))]
    pub(crate) unsafe fn mapped(start: NonNull<AtomicU64>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { start, len, _owner: owner }
    }

    /// The part of this view in `range`, in words.
    ///
    /// # Panics
    /// When the range leaves the view: a layout error in the caller.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "a slice outside its words");
        // SAFETY: start + range.start is within the allocation, as range.start <= len was just checked.
        let start = unsafe { self.start.add(range.start) };
        Self { start, len: range.end - range.start, _owner: Arc::clone(&self._owner) }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the constructors guarantee `len` valid words from `start` while `_owner` lives, and atomics may
        // be shared with anyone who writes them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Writes `bytes` into `words`, zero-padded to a whole word; `words` must have room.
pub(crate) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    let tail = words.get(whole.len());
    for (word, chunk) in words.iter().zip(whole) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    if let (false, Some(word)) = (rest.is_empty(), tail) {
        // Not by a copy of a length that is only known here, which costs more than all the rest.
        let value = rest.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        word.store(value, Ordering::Relaxed);
    }
}

/// Appends the first `len` bytes of `words` to `out`; `words` must hold that many.
pub(crate) fn load_bytes(words: &[AtomicU64], len: usize, out: &mut Vec<u8>) {
    let start = out.len();
    let words = &words[..len.div_ceil(WORD)];
    out.reserve(words.len() * WORD);
    for word in words {
        out.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    out.truncate(start + len);
}

/// Words that `bytes` bytes take.
pub(crate) fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(WORD)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_as_they_went_in(bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in proptest::collection::vec(any::<u8>(), 0..9)) {
            let words = Words::heap(words_for(bytes.len()) + 1);
            store_bytes(&words, &bytes);
            let mut out = prefix.clone();
            load_bytes(&words, bytes.len(), &mut out);
            prop_assert_eq!(&out[..prefix.len()], &prefix[..]);
            prop_assert_eq!(&out[prefix.len()..], &bytes[..]);
        }
    }

    #[test]
    #[should_panic(expected = "a slice outside its words")]
    fn a_slice_outside_its_words_is_refused() {
        let _ = Words::heap(4).slice(2..5);
    }
}
