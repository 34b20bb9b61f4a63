//! Rings, boards and leases over memory that somebody scribbles on: no panic, no endless loop, nothing out of bounds.

use std::sync::atomic::Ordering::Relaxed;

use polyloop_shm::{
    Board, BoardReader, BoardWriter, Entry, Geometry, Item, LeaseReader, RingReader, RingWriter, SlotIndex, Status,
    Words, ring_words,
};

const SHAPE: Geometry = Geometry { slots: 2, items: 3, blob_words: 6 };
const RING: usize = 8;

/// Ten bytes are one write of the other process: where, the value, and what we do next.
fn scribbles(bytes: &[u8], words: &Words) -> impl Iterator<Item = u8> {
    bytes.as_chunks::<10>().0.iter().map(|[at, next, value @ ..]| {
        words[usize::from(*at) % words.len()].store(u64::from_le_bytes(*value), Relaxed);
        *next
    })
}

/// The first words of a ring lie in cache lines of their own, so `at` reaches all that are used.
pub fn ring(bytes: &[u8]) {
    let words = Words::heap(ring_words(RING));
    let (mut writer, mut reader) = (RingWriter::new(words.clone()), RingReader::new(words.clone()));
    let (mut payload, mut corrupt) = (Vec::new(), false);
    for next in scribbles(bytes, &words) {
        if next & 1 != 0 {
            let _ = writer.push(1, &vec![next; usize::from(next) % (writer.max_payload() + 1)]);
        }
        if next & 2 != 0 {
            // What is corrupt once is not read from again.
            corrupt = corrupt || reader.pop(&mut payload).is_err();
            assert!(payload.len() <= RING * 8);
        }
        reader.is_ready();
        reader.writer_waits();
    }
}

/// A board as its manager and a worker see it, and the same words as a lease table and as a worker's status.
pub fn board(bytes: &[u8]) {
    let words = Words::heap(SHAPE.board_words());
    let board = Board::new(words.clone(), SHAPE);
    let (mut writer, mut reader) = (BoardWriter::new(board.clone()), BoardReader::new(board, 1));
    for next in scribbles(bytes, &words) {
        if next & 1 != 0 {
            let entries = (1..=3).map(|task| Entry { task, function: b"f", arguments: b"arguments", extra: 0 });
            let _ = writer.post(1, entries);
        }
        if next & 2 != 0 {
            work(&mut reader);
        }
        if next & 4 != 0 {
            manage(&mut writer);
        }
        assert!(LeaseReader::new(words.clone()).held().len() <= words.len());
        Status::read(&words.slice(usize::from(next) % words.len()..usize::from(next) % words.len() + 1));
    }
}

fn work(reader: &mut BoardReader) {
    let mut item = Item::default();
    reader.has_unclaimed(false);
    reader.has_unclaimed(true);
    let Some(claim) = reader.claim(true) else { return };
    if reader.read(&claim, &mut item).is_some() {
        assert!(item.arguments.len() <= SHAPE.blob_bytes() && item.function.len() <= SHAPE.blob_bytes());
    }
    reader.take(claim);
}

fn manage(writer: &mut BoardWriter) {
    writer.has_unclaimed(true);
    assert!(writer.unclaimed(usize::MAX) <= (SHAPE.slots * SHAPE.items) as usize);
    for (slot, index, _) in writer.owned_by(1) {
        writer.bury(slot, index);
    }
    for slot in (0..SHAPE.slots).map(SlotIndex) {
        for index in 0..SHAPE.items {
            writer.retract(slot, index);
        }
        if let Some(reclaimed) = writer.reclaim(slot) {
            assert!(reclaimed.owners.len() <= SHAPE.items as usize);
        }
    }
}
