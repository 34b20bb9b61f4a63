//! The inter-process task queue: slots that the manager fills and workers empty, item by item.
//!
//! ```text
//!  board:  open-slot bits | version | backlog | slot 0 | slot 1 | ...
//!  slot:   generation,count | lane | cursor | one word per item | one entry per item | bytes
//!  item:   (generation, owner, phase)   Unclaimed --worker--> Claimed --worker--> Taken
//!                                           `-----manager----> Retracted <--manager--' (its worker died)
//! ```
//! A worker claims an item with one compare-and-swap that also names it as the owner, and carries the slot's
//! generation, so that a worker which slept through a slot's reuse fails instead of claiming a stranger's item.
//! Nobody owns a slot: any worker with room claims its next item, so a blocked worker holds nothing behind it.
//! The cursor is a hint where to look first; every item before it has been claimed or retracted.
//!
//! Orderings: the words of an item are published by its slot's head, the heads by the version, and a worker's copy
//! and lease by its `take`. Whatever names no pair below is relaxed, since nothing else is read by virtue of it.

mod reader;
mod writer;

pub use self::reader::{BoardReader, Claim};
pub use self::writer::{BoardWriter, Posted, Reclaimed, Retract, SlotFull};
use crate::sync::{AtomicU64, Ordering};
use crate::words::{LINE, WORD, Words, words_for};

const OPEN: usize = 0;
const VERSION: usize = 1;
const BACKLOG: usize = LINE;
const SLOTS: usize = 2 * LINE;

const HEAD: usize = 0;
const LANE: usize = 1;
const CURSOR: usize = LINE;
const ITEMS: usize = 2 * LINE;
const ENTRY_WORDS: usize = 4;

/// Slots are named by the bits of one word.
const MAX_SLOTS: u32 = 64;

/// The shape of a board, agreed by everyone who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Slots, at most 64.
    pub slots: u32,
    /// Items that one slot can carry.
    pub items: u32,
    /// Words for the bytes of a slot's items.
    pub blob_words: u32,
}

impl Geometry {
    /// Words that a board of this shape takes.
    pub fn board_words(&self) -> usize {
        SLOTS + self.slots as usize * self.slot_words()
    }

    /// Bytes that the items of one slot share, each function and each argument rounded up to a word.
    pub fn blob_bytes(&self) -> usize {
        self.blob_words as usize * WORD
    }

    fn slot_words(&self) -> usize {
        (ITEMS + self.items as usize * (1 + ENTRY_WORDS) + self.blob_words as usize).next_multiple_of(LINE)
    }
}

/// A slot's lane and its place in the order of posting share a word.
const LANE_SHIFT: u32 = 48;
const SEQUENCE: u64 = (1 << LANE_SHIFT) - 1;

/// The lane of items that run alone: only a worker that runs nothing claims them, and it claims them first.
pub const ALONE_LANE: u16 = u16::MAX;

/// Which slot of a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotIndex(pub u32);

/// How far an item has come on the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a worker.
    Unclaimed,
    /// A worker named itself; it has not started the item.
    Claimed,
    /// The worker has its lease and its own copy, and starts it: the start mark.
    Taken,
    /// The manager took it back.
    Retracted,
}

/// What the manager puts on the board for one task.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The task's number, never 0.
    pub task: u64,
    /// The function. Equal neighbours share one copy.
    pub function: &'a [u8],
    /// The arguments.
    pub arguments: &'a [u8],
    /// Carried to the worker as it is.
    pub extra: u64,
}

impl Entry<'_> {
    /// Bytes this entry takes in a slot when it shares nothing.
    pub fn blob_bytes(&self) -> usize {
        (words_for(self.function.len()) + words_for(self.arguments.len())) * WORD
    }
}

/// What a worker reads from the board for one task. Used again for the next, it keeps the function that they share.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// The task's number.
    pub task: u64,
    /// The function.
    pub function: Vec<u8>,
    /// The arguments.
    pub arguments: Vec<u8>,
    /// As the manager gave it.
    pub extra: u64,
    /// Where on the board the function was read.
    source: Option<(SlotIndex, u32, u64)>,
}

impl Item {
    /// Replaces function and arguments by some that came another way.
    pub fn load(&mut self, function: &[u8], arguments: &[u8]) {
        self.source = None;
        self.function = function.to_vec();
        self.arguments = arguments.to_vec();
    }
}

/// A board in shared words.
#[derive(Clone)]
pub struct Board {
    words: Words,
    geometry: Geometry,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct ItemWord {
    generation: u32,
    owner: u16,
    phase: Phase,
}

impl ItemWord {
    fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Unclaimed => 0,
            Phase::Claimed => 1,
            Phase::Taken => 2,
            Phase::Retracted => 3,
        };
        u64::from(self.generation) << 32 | u64::from(self.owner) << 16 | phase
    }

    fn unpack(word: u64) -> Self {
        let phase = match word & 0xffff {
            0 => Phase::Unclaimed,
            1 => Phase::Claimed,
            2 => Phase::Taken,
            _ => Phase::Retracted,
        };
        Self { generation: (word >> 32) as u32, owner: (word >> 16) as u16, phase }
    }
}

impl Board {
    /// A board over zeroed words.
    ///
    /// # Panics
    /// When the words do not fit the geometry: a layout error in the caller.
    pub fn new(words: Words, geometry: Geometry) -> Self {
        assert!((1..=MAX_SLOTS).contains(&geometry.slots), "a board has 1 to 64 slots");
        assert!(words.len() >= geometry.board_words(), "a board larger than its words");
        Self { words, geometry }
    }

    /// The board's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn slot(&self, slot: SlotIndex) -> &[AtomicU64] {
        let size = self.geometry.slot_words();
        let start = SLOTS + slot.0 as usize * size;
        &self.words[start..start + size]
    }

    fn item(&self, slot: SlotIndex, index: u32) -> &AtomicU64 {
        &self.slot(slot)[ITEMS + index as usize]
    }

    fn entry(&self, slot: SlotIndex, index: u32) -> &[AtomicU64] {
        let start = ITEMS + self.geometry.items as usize + index as usize * ENTRY_WORDS;
        &self.slot(slot)[start..start + ENTRY_WORDS]
    }

    fn blob(&self, slot: SlotIndex) -> &[AtomicU64] {
        let start = ITEMS + self.geometry.items as usize * (1 + ENTRY_WORDS);
        &self.slot(slot)[start..start + self.geometry.blob_words as usize]
    }
}

fn lane(slot: &[AtomicU64]) -> u16 {
    (slot[LANE].load(Ordering::Relaxed) >> LANE_SHIFT) as u16
}

fn cursor(slot: &[AtomicU64], generation: u32) -> u32 {
    let word = slot[CURSOR].load(Ordering::Relaxed);
    if (word >> 32) as u32 == generation { word as u32 } else { 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SMALL: Geometry = Geometry { slots: 2, items: 4, blob_words: 16 };

    fn board() -> (BoardWriter, Board) {
        let board = Board::new(Words::heap(SMALL.board_words()), SMALL);
        (BoardWriter::new(board.clone()), board)
    }

    fn entry(task: u64) -> Entry<'static> {
        Entry { task, function: b"f", arguments: b"args", extra: task * 10 }
    }

    fn claim_task(reader: &mut BoardReader) -> Option<u64> {
        let claim = reader.claim(true)?;
        let mut item = Item::default();
        reader.read(&claim, &mut item).expect("entries point into their slot");
        reader.take(claim);
        Some(item.task)
    }

    #[test]
    fn items_come_out_whole_and_in_order_to_whoever_asks() {
        let (mut writer, board) = board();
        writer.post(0, (1..=3).map(entry)).unwrap();
        let (mut one, mut two) = (BoardReader::new(board.clone(), 1), BoardReader::new(board, 2));
        let claim = one.claim(true).unwrap();
        let mut item = Item::default();
        one.read(&claim, &mut item).unwrap();
        assert_eq!((item.task, &item.function[..], &item.arguments[..], item.extra), (1, &b"f"[..], &b"args"[..], 10));
        one.take(claim);
        assert_eq!([two.unclaimed(1), two.unclaimed(9)], [1, 2]);
        assert_eq!(claim_task(&mut two), Some(2));
        assert_eq!(claim_task(&mut one), Some(3));
        assert_eq!(two.unclaimed(9), 0);
        assert_eq!(claim_task(&mut one), None);
    }

    #[test]
    fn items_with_other_functions_are_read_with_theirs_into_the_same_buffer() {
        let (mut writer, board) = board();
        let functions = [b"f", b"f", b"g"];
        let posted = |offset: u64| {
            (offset..).zip(functions).map(|(task, function)| Entry { task, function, arguments: b"args", extra: 0 })
        };
        let (mut reader, mut item) = (BoardReader::new(board, 1), Item::default());
        for round in 0..3 {
            let slot = writer.post(0, posted(round * 3 + 1)).unwrap().slot;
            for (task, function) in (round * 3 + 1..).zip(functions) {
                let claim = reader.claim(true).unwrap();
                reader.read(&claim, &mut item).unwrap();
                assert_eq!((item.task, &item.function[..]), (task, &function[..]));
                reader.take(claim);
            }
            item.load(b"other", b"");
            writer.reclaim(slot).unwrap();
        }
    }

    #[test]
    fn a_slot_is_free_again_only_when_every_item_left_it() {
        let (mut writer, board) = board();
        let slot = writer.post(0, (1..=2).map(entry)).unwrap().slot;
        let mut reader = BoardReader::new(board, 5);
        assert_eq!(writer.reclaim(slot), None);
        claim_task(&mut reader);
        assert_eq!(writer.reclaim(slot), None);
        assert_eq!(writer.retract(slot, 0), Retract::Owned(5));
        assert_eq!(writer.retract(slot, 1), Retract::Retracted);
        assert_eq!(writer.reclaim(slot), Some(Reclaimed { owners: vec![Some(5), None] }));
        assert_eq!(claim_task(&mut reader), None);
        assert_eq!(writer.free_slots(), 2);
    }

    #[test]
    fn a_worker_that_slept_through_a_reuse_claims_nothing_of_the_new_generation_by_its_old_view() {
        let (mut writer, board) = board();
        let slot = writer.post(0, [entry(1)]).unwrap().slot;
        let mut late = BoardReader::new(board.clone(), 1);
        late.refresh();
        let old = late.view[0];
        writer.retract(slot, 0);
        writer.reclaim(slot).unwrap();
        assert_eq!(writer.post(0, [entry(2)]).unwrap().slot, slot);
        assert_eq!(late.claim_in(old), None);
        assert_eq!(claim_task(&mut late), Some(2));
    }

    #[test]
    fn lanes_take_turns() {
        let (mut writer, board) = board();
        writer.post(1, (1..=3).map(entry)).unwrap();
        writer.post(2, (11..=12).map(entry)).unwrap();
        let mut reader = BoardReader::new(board, 1);
        let order: Vec<_> = std::iter::from_fn(|| claim_task(&mut reader)).collect();
        assert_eq!(order, [1, 11, 2, 12, 3]);
    }

    #[test]
    fn what_does_not_fit_stays_with_the_caller() {
        let (mut writer, _) = board();
        let big = [0; 40];
        let entries = (1..=4).map(|task| Entry { task, function: b"f", arguments: &big, extra: 0 });
        assert_eq!(writer.post(0, entries).unwrap().count, 3);
        writer.post(0, [entry(1)]).unwrap();
        assert_eq!(writer.post(0, [entry(2)]), Err(SlotFull));
    }

    #[test]
    fn a_dead_owner_is_known_at_every_step() {
        let (mut writer, board) = board();
        let slot = writer.post(0, (1..=3).map(entry)).unwrap().slot;
        let mut reader = BoardReader::new(board, 9);
        claim_task(&mut reader);
        reader.claim(true).unwrap();
        assert_eq!(writer.owned_by(9), [(slot, 0, Phase::Taken), (slot, 1, Phase::Claimed)]);
        writer.bury(slot, 1);
        assert_eq!(writer.unclaimed(10), 1);
        assert!(writer.has_unclaimed(true));
    }

    #[test]
    fn an_entry_that_points_outside_its_slot_is_refused() {
        let (mut writer, board) = board();
        let slot = writer.post(0, [entry(1)]).unwrap().slot;
        board.entry(slot, 0)[2].store(u64::MAX, Ordering::Relaxed);
        let mut reader = BoardReader::new(board, 1);
        let claim = reader.claim(true).unwrap();
        assert_eq!(reader.read(&claim, &mut Item::default()), None);
    }
}
