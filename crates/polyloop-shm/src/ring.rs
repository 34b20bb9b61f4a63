//! A ring of variable-size records: one writing process, one reading process.
//!
//! ```text
//!  words:  tail | head | waits | data ........................................
//!                                  head ^ [header|payload][header|payload] ^ tail
//! ```
//! The writer publishes `tail` last; the reader copies a record out and then advances `head`. A full ring never
//! blocks: the writer keeps its record, counts up `waits`, and is rung when the reader has made room.

use thiserror::Error;

use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::{LINE, WORD, Words, load_bytes, store_bytes, words_for};

const TAIL: usize = 0;
const HEAD: usize = LINE;
const WAITS: usize = 2 * LINE;
const DATA: usize = 3 * LINE;

/// Words that a ring with `data` words of room (a power of two) takes.
pub const fn ring_words(data: usize) -> usize {
    DATA + data
}

/// The ring has no room for the record now.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the ring is full")]
pub struct Full;

/// The ring's words say something that no correct writer writes. Nothing more can be read from it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the ring is corrupt: a record of {record} words where {published} are published")]
pub struct Corrupt {
    /// Words that the record's header claims.
    pub record: u64,
    /// Words between head and tail, or `u64::MAX` where the tail is out of range.
    pub published: u64,
}

/// A record's kind; its payload is in the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the writer called it.
    pub kind: u32,
}

/// The writing side.
pub struct RingWriter {
    words: Words,
    mask: u64,
    tail: u64,
    head_seen: u64,
    waits: u64,
}

impl RingWriter {
    /// The writer of a fresh ring.
    ///
    /// # Panics
    /// When the room for data is not a power of two: a layout error in the caller.
    pub fn new(words: Words) -> Self {
        let mask = data_mask(&words);
        Self { words, mask, tail: 0, head_seen: 0, waits: 0 }
    }

    /// The largest payload, in bytes, that goes into one record: a quarter of the ring, so that a large value
    /// flows in pieces while the reader drains.
    pub fn max_payload(&self) -> usize {
        ((self.mask as usize + 1) / 4 - 1) * WORD
    }

    /// Appends a record, or leaves everything as it was.
    ///
    /// # Errors
    /// [`Full`] when there is no room; the reader will say so through [`RingReader::writer_waits`] once it has made some.
    pub fn push(&mut self, kind: u32, payload: &[u8]) -> Result<(), Full> {
        let needed = self.begin(kind, payload.len())?;
        self.write(self.tail + 1, payload);
        self.publish(needed);
        Ok(())
    }

    /// Appends a record whose payload begins with a word, in little-endian order.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_tagged(&mut self, kind: u32, tag: u64, payload: &[u8]) -> Result<(), Full> {
        let needed = self.begin(kind, WORD + payload.len())?;
        self.data(self.tail + 1).store(tag, Ordering::Relaxed);
        self.write(self.tail + 2, payload);
        self.publish(needed);
        Ok(())
    }

    /// Writes a record's header if the whole record has room, and says how many words it takes.
    fn begin(&mut self, kind: u32, len: usize) -> Result<u64, Full> {
        debug_assert!(len <= self.max_payload(), "a record larger than the ring takes");
        let needed = 1 + words_for(len) as u64;
        if !self.has_room(needed) {
            self.waits += 1;
            self.words[WAITS].store(self.waits, Ordering::Relaxed);
            // Pairs with the fence in `RingReader::writer_waits`: either the reader sees us wait, or we see its room.
            fence(Ordering::SeqCst);
            if !self.has_room(needed) {
                return Err(Full);
            }
        }
        self.data(self.tail).store((len as u64) << 32 | u64::from(kind), Ordering::Relaxed);
        Ok(needed)
    }

    fn publish(&mut self, needed: u64) {
        self.tail += needed;
        // Pairs with the Acquire load in `RingReader::published`: whoever sees this tail sees the record.
        self.words[TAIL].store(self.tail, Ordering::Release);
    }

    fn has_room(&mut self, needed: u64) -> bool {
        let capacity = self.mask + 1;
        if self.tail - self.head_seen + needed <= capacity {
            return true;
        }
        // Pairs with the Release store in `RingReader::pop`. A head that no correct reader writes is ignored.
        let head = self.words[HEAD].load(Ordering::Acquire);
        if (self.head_seen..=self.tail).contains(&head) {
            self.head_seen = head;
        }
        self.tail - self.head_seen + needed <= capacity
    }

    fn write(&self, at: u64, payload: &[u8]) {
        let start = (at & self.mask) as usize;
        let room = self.mask as usize + 1 - start;
        let (first, second) = payload.split_at(payload.len().min(room * WORD));
        store_bytes(&self.words[DATA + start..], first);
        store_bytes(&self.words[DATA..], second);
    }

    fn data(&self, at: u64) -> &AtomicU64 {
        &self.words[DATA + (at & self.mask) as usize]
    }
}

/// The reading side. What it reads is checked before it is used.
pub struct RingReader {
    words: Words,
    mask: u64,
    head: u64,
    tail_seen: u64,
    waits_answered: u64,
}

impl RingReader {
    /// The reader of a fresh ring.
    ///
    /// # Panics
    /// When the room for data is not a power of two: a layout error in the caller.
    pub fn new(words: Words) -> Self {
        let mask = data_mask(&words);
        Self { words, mask, head: 0, tail_seen: 0, waits_answered: 0 }
    }

    /// Copies the next record's payload into `payload` (replacing what is there) and frees its room.
    ///
    /// # Errors
    /// [`Corrupt`] when the words make no sense; the writer must then be replaced together with its ring.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<Record>, Corrupt> {
        let Some(published) = self.published()? else {
            return Ok(None);
        };
        let header = self.words[DATA + (self.head & self.mask) as usize].load(Ordering::Relaxed);
        let len = (header >> 32) as usize;
        let needed = 1 + words_for(len) as u64;
        if needed > published {
            return Err(Corrupt { record: needed, published });
        }
        payload.clear();
        let start = ((self.head + 1) & self.mask) as usize;
        let room = (self.mask as usize + 1 - start) * WORD;
        load_bytes(&self.words[DATA + start..], len.min(room), payload);
        load_bytes(&self.words[DATA..], len.saturating_sub(room), payload);
        self.head += needed;
        // Pairs with the Acquire load in `RingWriter::has_room`: our copy is done before the room is given back.
        self.words[HEAD].store(self.head, Ordering::Release);
        Ok(Some(Record { kind: header as u32 }))
    }

    /// Whether a record is waiting. A corrupt ring counts as waiting, so that the next [`Self::pop`] tells.
    pub fn is_ready(&mut self) -> bool {
        !matches!(self.published(), Ok(None))
    }

    /// After popping: whether the writer found the ring full since the last call, and must be rung.
    pub fn writer_waits(&mut self) -> bool {
        // Pairs with the fence in `RingWriter::push`.
        fence(Ordering::SeqCst);
        let waits = self.words[WAITS].load(Ordering::Relaxed);
        let news = waits != self.waits_answered;
        self.waits_answered = waits;
        news
    }

    fn published(&mut self) -> Result<Option<u64>, Corrupt> {
        if self.tail_seen == self.head {
            // Pairs with the Release store in `RingWriter::push`.
            self.tail_seen = self.words[TAIL].load(Ordering::Acquire);
        }
        let published = self.tail_seen.wrapping_sub(self.head);
        match published {
            0 => Ok(None),
            n if n <= self.mask + 1 => Ok(Some(n)),
            _ => Err(Corrupt { record: 0, published: u64::MAX }),
        }
    }
}

fn data_mask(words: &Words) -> u64 {
    let data = words.len().saturating_sub(DATA);
    assert!(data.is_power_of_two(), "a ring's room must be a power of two, not {data} words");
    data as u64 - 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(data: usize) -> (RingWriter, RingReader, Words) {
        let words = Words::heap(ring_words(data));
        (RingWriter::new(words.clone()), RingReader::new(words.clone()), words)
    }

    proptest! {
        #[test]
        fn records_come_out_in_order_and_whole(sizes in proptest::collection::vec(0usize..50, 1..200)) {
            let (mut writer, mut reader, _) = ring(32);
            let records: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, &n)| vec![i as u8; n]).collect();
            let (mut sent, mut received, mut buffer) = (0, 0, Vec::new());
            while received < records.len() {
                while sent < records.len() {
                    let record = &records[sent];
                    let pushed = match record.split_first_chunk() {
                        Some((tag, rest)) if sent % 2 == 0 => {
                            writer.push_tagged(sent as u32, u64::from_le_bytes(*tag), rest)
                        }
                        _ => writer.push(sent as u32, record),
                    };
                    if pushed.is_err() { break }
                    sent += 1;
                }
                let record = reader.pop(&mut buffer).unwrap().expect("the writer stopped only when full or done");
                prop_assert_eq!(record.kind as usize, received);
                prop_assert_eq!(&buffer, &records[received]);
                received += 1;
            }
            prop_assert_eq!(reader.pop(&mut buffer), Ok(None));
        }

        #[test]
        fn garbage_is_an_error_or_a_bounded_record_never_a_panic(garbage in proptest::collection::vec(any::<u64>(), ring_words(16)), pops in 1usize..20) {
            let (_, mut reader, words) = ring(16);
            for (word, value) in words.iter().zip(&garbage) {
                word.store(*value, Ordering::Relaxed);
            }
            words[TAIL].store(garbage[0] % 32, Ordering::Relaxed);
            let mut buffer = Vec::new();
            for _ in 0..pops {
                if reader.pop(&mut buffer).is_err() { break }
                prop_assert!(buffer.len() <= 16 * WORD);
            }
        }
    }

    #[test]
    fn a_writer_that_found_the_ring_full_is_rung_once_there_is_room() {
        let (mut writer, mut reader, _) = ring(8);
        let mut buffer = Vec::new();
        assert!(!reader.writer_waits());
        while writer.push(0, &[0; 8]).is_ok() {}
        reader.pop(&mut buffer).unwrap();
        assert!(reader.writer_waits() && !reader.writer_waits());
        assert_eq!(writer.push(1, &[0; 8]), Ok(()));
    }

    #[test]
    fn a_tail_further_ahead_than_the_ring_is_long_is_corrupt() {
        let (_, mut reader, words) = ring(8);
        words[TAIL].store(9, Ordering::Relaxed);
        assert!(reader.is_ready());
        assert_eq!(reader.pop(&mut Vec::new()), Err(Corrupt { record: 0, published: u64::MAX }));
    }

    #[test]
    fn a_head_out_of_range_does_not_let_the_writer_overwrite() {
        let (mut writer, _, words) = ring(8);
        words[HEAD].store(u64::MAX, Ordering::Relaxed);
        while writer.push(0, &[0; 8]).is_ok() {}
        assert_eq!(words[TAIL].load(Ordering::Relaxed), 8);
    }
}
