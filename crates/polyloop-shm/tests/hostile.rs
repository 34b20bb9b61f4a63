//! Bytes in shared memory are untrusted: whatever another process writes there, nothing panics and everything ends.

#![cfg(not(loom))]

use std::sync::atomic::Ordering::Relaxed;

use polyloop_shm::{
    Board, BoardReader, BoardWriter, Entry, Geometry, Item, LeaseReader, RingReader, RingWriter, Ringer, Sleeper,
    SlotIndex, Status, Words, ring_words,
};
use proptest::prelude::*;

const SHAPE: Geometry = Geometry { slots: 2, items: 3, blob_words: 6 };
const RING: usize = 8;

/// Values near those that a correct peer writes, and near the limits of every field.
fn word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0..8u64, Just(u64::from(u32::MAX)), Just(1 << 31), any::<u32>().prop_map(u64::from)];
    prop_oneof![
        4 => (half.clone(), half).prop_map(|(high, low)| high << 32 | low),
        2 => (0..4u64, 0..4u64, 0..5u64).prop_map(|(generation, owner, phase)| generation << 32 | owner << 16 | phase),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

/// Writes of another process, each to some word, that come between our own calls.
fn scribbles(words: usize) -> impl Strategy<Value = Vec<(usize, u64)>> {
    proptest::collection::vec((0..words, word()), 1..words)
}

/// Tail, head, waits, or a word of data: the words of a ring that are used.
fn ring_index() -> impl Strategy<Value = usize> {
    let data = ring_words(RING) - RING;
    prop_oneof![Just(0), Just(data / 3), Just(data / 3 * 2), data..data + RING]
}

/// A word, a position a little ahead of the truth, or the header of a record a little too long.
fn ring_word() -> impl Strategy<Value = u64> {
    prop_oneof![word(), 0..3 * RING as u64, (0..RING as u64 * 16).prop_map(|bytes| bytes << 32)]
}

fn use_as_worker(reader: &mut BoardReader) {
    let mut item = Item::default();
    reader.has_unclaimed(true);
    for _ in 0..8 {
        let Some(claim) = reader.claim(true) else { break };
        if reader.read(&claim, &mut item).is_some() {
            assert!(item.arguments.len() <= SHAPE.blob_bytes() && item.function.len() <= SHAPE.blob_bytes());
        }
        reader.take(claim);
    }
}

fn use_as_manager(writer: &mut BoardWriter) {
    writer.has_unclaimed(true);
    assert!(writer.unclaimed(usize::MAX) <= (SHAPE.slots * SHAPE.items) as usize);
    for owner in 0..4 {
        writer.owned_by(owner);
    }
    for slot in 0..SHAPE.slots {
        for index in 0..SHAPE.items {
            writer.retract(SlotIndex(slot), index);
        }
        if let Some(reclaimed) = writer.reclaim(SlotIndex(slot)) {
            assert!(reclaimed.owners.len() <= SHAPE.items as usize);
        }
    }
    let entries = (1..=3).map(|task| Entry { task, function: b"f", arguments: b"arguments", extra: 0 });
    let _ = writer.post(1, entries);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_board_full_of_garbage_neither_panics_nor_goes_on_for_ever(
        garbage in proptest::collection::vec(word(), SHAPE.board_words()),
        later in scribbles(SHAPE.board_words()),
    ) {
        let words = Words::heap(SHAPE.board_words());
        let board = Board::new(words.clone(), SHAPE);
        let mut writer = BoardWriter::new(board.clone());
        let mut reader = BoardReader::new(board, 1);
        use_as_manager(&mut writer);
        for (word, &value) in words.iter().zip(&garbage) {
            word.store(value, Relaxed);
        }
        use_as_worker(&mut reader);
        use_as_manager(&mut writer);
        for (index, value) in later {
            words[index].store(value, Relaxed);
            use_as_worker(&mut reader);
            use_as_manager(&mut writer);
        }
    }

    #[test]
    fn a_claim_survives_whatever_becomes_of_its_slot(
        later in scribbles(SHAPE.board_words()),
    ) {
        let words = Words::heap(SHAPE.board_words());
        let board = Board::new(words.clone(), SHAPE);
        let mut writer = BoardWriter::new(board.clone());
        use_as_manager(&mut writer);
        let mut reader = BoardReader::new(board, 1);
        let claim = reader.claim(true).expect("the manager posted three");
        for (index, value) in later {
            words[index].store(value, Relaxed);
            let _ = reader.read(&claim, &mut Item::default());
            reader.take(claim);
        }
    }

    #[test]
    fn a_scribbled_ring_neither_panics_nor_grows(later in proptest::collection::vec((ring_index(), ring_word()), 1..40)) {
        let words = Words::heap(ring_words(RING));
        let (mut writer, mut reader) = (RingWriter::new(words.clone()), RingReader::new(words.clone()));
        let mut payload = Vec::new();
        let mut corrupt = false;
        for (index, value) in later {
            words[index].store(value, Relaxed);
            reader.is_ready();
            reader.writer_waits();
            // What is corrupt once is not read from again.
            corrupt = corrupt || reader.pop(&mut payload).is_err();
            prop_assert!(payload.len() <= RING * 8);
            // Not every time, as it sets the tail right again.
            if index % 2 == 1 {
                let _ = writer.push(1, &[7; 8]);
            }
        }
    }

    #[test]
    fn epochs_leases_and_status_take_any_value(values in proptest::collection::vec(word(), 4)) {
        for value in values {
            let word = Words::heap(1);
            word[0].store(value, Relaxed);
            let mut ringer = Ringer::new(word.clone());
            prop_assert_eq!(ringer.must_ring(), value & 1 == 1);
            prop_assert!(LeaseReader::new(word.clone()).held().iter().eq(Some(&value).filter(|&&task| task != 0)));
            Status::read(&word);
            let sleeper = Sleeper::new(word.clone());
            prop_assert!(!ringer.is_asleep());
            sleeper.announce();
            prop_assert!(ringer.must_ring(), "a successor is not taken for its predecessor");
            sleeper.wake();
            word[0].store(value, Relaxed);
            sleeper.wake();
            prop_assert!(!ringer.is_asleep());
        }
    }
}
