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

use thiserror::Error;

use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::{LINE, WORD, Words, load_bytes, store_bytes, words_for};

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

/// No slot is free: post again when one has been reclaimed.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no slot of the board is free")]
pub struct SlotFull;

/// What became of a call to [`BoardWriter::post`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The slot that carries the items.
    pub slot: SlotIndex,
    /// How many of the offered entries went in.
    pub count: u32,
}

/// What became of a retraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retract {
    /// The item was unclaimed and is off the board: it never starts.
    Retracted,
    /// This worker has it.
    Owned(u16),
}

/// A slot whose items have all left the board, free again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// The worker that took each item, in the order they were posted; `None` where it was retracted.
    pub owners: Vec<Option<u16>>,
}

#[derive(Clone, Copy, Default)]
struct SlotState {
    generation: u32,
    /// Items posted; 0 when the slot is free.
    count: u32,
}

/// The manager's side: the only one that fills and frees slots.
pub struct BoardWriter {
    board: Board,
    slots: Vec<SlotState>,
    free: Vec<SlotIndex>,
    open: u64,
    version: u64,
    sequence: u64,
}

impl BoardWriter {
    /// The writer of a fresh board.
    pub fn new(board: Board) -> Self {
        let slots = vec![SlotState::default(); board.geometry.slots as usize];
        let free = (0..board.geometry.slots).rev().map(SlotIndex).collect();
        Self { board, slots, free, open: 0, version: 0, sequence: 0 }
    }

    /// Slots that can be posted to now.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Fills one slot with as many of `entries` as fit (at least one) and opens it to the workers.
    /// `lane` says which entries compete: workers take turns between lanes, and empty each in posting order.
    ///
    /// # Errors
    /// [`SlotFull`] when no slot is free.
    ///
    /// # Panics
    /// When the first entry alone is larger than a slot: the caller sends such a task another way.
    pub fn post<'a>(&mut self, lane: u16, entries: impl IntoIterator<Item = Entry<'a>>) -> Result<Posted, SlotFull> {
        let slot = self.free.pop().ok_or(SlotFull)?;
        let generation = self.slots[slot.0 as usize].generation.wrapping_add(1);
        let count = self.fill(slot, generation, entries);
        assert!(count > 0, "an entry larger than a slot");
        self.slots[slot.0 as usize] = SlotState { generation, count };
        self.sequence += 1;
        let words = self.board.slot(slot);
        words[LANE].store(u64::from(lane) << LANE_SHIFT | self.sequence & SEQUENCE, Ordering::Relaxed);
        words[CURSOR].store(u64::from(generation) << 32, Ordering::Relaxed);
        // Pairs with the Acquire load in `BoardReader::look`: whoever sees this head sees the items.
        words[HEAD].store(u64::from(generation) << 32 | u64::from(count), Ordering::Release);
        self.set_open(self.open | 1 << slot.0);
        Ok(Posted { slot, count })
    }

    /// Takes one item back, if no worker has claimed it.
    pub fn retract(&self, slot: SlotIndex, index: u32) -> Retract {
        let generation = self.slots[slot.0 as usize].generation;
        let retracted = ItemWord { generation, owner: 0, phase: Phase::Retracted }.pack();
        let unclaimed = ItemWord { generation, owner: 0, phase: Phase::Unclaimed }.pack();
        let item = self.board.item(slot, index);
        match item.compare_exchange(unclaimed, retracted, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Retract::Retracted,
            Err(now) => match ItemWord::unpack(now) {
                ItemWord { phase: Phase::Retracted, .. } => Retract::Retracted,
                word => Retract::Owned(word.owner),
            },
        }
    }

    /// Frees a slot if every item of it has left the board.
    pub fn reclaim(&mut self, slot: SlotIndex) -> Option<Reclaimed> {
        let SlotState { generation, count } = self.slots[slot.0 as usize];
        if count == 0 {
            return None;
        }
        let mut owners = Vec::with_capacity(count as usize);
        for index in 0..count {
            // Pairs with the Release store in `BoardReader::take`: the lease is visible, the bytes are copied.
            let word = ItemWord::unpack(self.board.item(slot, index).load(Ordering::Acquire));
            match word.phase {
                Phase::Taken => owners.push(Some(word.owner)),
                Phase::Retracted => owners.push(None),
                Phase::Unclaimed | Phase::Claimed => return None,
            }
        }
        self.slots[slot.0 as usize] = SlotState { generation, count: 0 };
        self.set_open(self.open & !(1 << slot.0));
        self.free.push(slot);
        Some(Reclaimed { owners })
    }

    /// The worker that has taken an item.
    pub fn taken_by(&self, slot: SlotIndex, index: u32) -> Option<u16> {
        let generation = self.slots[slot.0 as usize].generation;
        // Pairs with the Release store in `BoardReader::take`, unless the caller has read what was published later.
        let word = ItemWord::unpack(self.board.item(slot, index).load(Ordering::Acquire));
        (word.generation == generation && word.phase == Phase::Taken).then_some(word.owner)
    }

    /// Whether nothing of a slot waits for a worker any more, though some of it may not have left the board yet.
    pub fn is_exhausted(&self, slot: SlotIndex) -> bool {
        self.unclaimed_from_cursor(slot).next().is_none()
    }

    /// Slots that are posted and not reclaimed.
    pub fn posted_slots(&self) -> impl Iterator<Item = SlotIndex> + use<> {
        let open = self.open;
        (0..MAX_SLOTS).filter(move |slot| open >> slot & 1 == 1).map(SlotIndex)
    }

    /// Whether any posted item still waits for a worker that is `idle` or not.
    pub fn has_unclaimed(&self, idle: bool) -> bool {
        let open_to_it = |slot: &SlotIndex| idle || lane(self.board.slot(*slot)) != ALONE_LANE;
        self.posted_slots().filter(open_to_it).any(|slot| self.unclaimed_from_cursor(slot).next().is_some())
    }

    /// Unclaimed items on the board, counted up to `limit`.
    pub fn unclaimed(&self, limit: usize) -> usize {
        self.posted_slots().flat_map(|slot| self.unclaimed_from_cursor(slot)).take(limit).count()
    }

    /// The items that `owner` had claimed or taken, of slots that are not reclaimed. For the undertaker: an owner
    /// that still runs may claim more at any moment.
    pub fn owned_by(&self, owner: u16) -> Vec<(SlotIndex, u32, Phase)> {
        let mut owned = Vec::new();
        for slot in self.posted_slots() {
            for index in 0..self.slots[slot.0 as usize].count {
                // Pairs with the Release store in `BoardReader::take`: the lease of what is taken is visible.
                let word = ItemWord::unpack(self.board.item(slot, index).load(Ordering::Acquire));
                if word.owner == owner && matches!(word.phase, Phase::Claimed | Phase::Taken) {
                    owned.push((slot, index, word.phase));
                }
            }
        }
        owned
    }

    /// Takes back an item whose worker died after claiming it and before starting it.
    pub fn bury(&self, slot: SlotIndex, index: u32) {
        let generation = self.slots[slot.0 as usize].generation;
        let word = ItemWord { generation, owner: 0, phase: Phase::Retracted }.pack();
        self.board.item(slot, index).store(word, Ordering::Relaxed);
    }

    /// Tells the workers whether the manager has more to post, so that whoever empties a slot rings it. To be
    /// set before the manager announces its sleep and tries once more to reclaim.
    pub fn set_backlog(&self, more: bool) {
        self.board.words[BACKLOG].store(u64::from(more), Ordering::Relaxed);
    }

    fn fill<'a>(&self, slot: SlotIndex, generation: u32, entries: impl IntoIterator<Item = Entry<'a>>) -> u32 {
        let (items, rest) = self.board.slot(slot)[ITEMS..].split_at(self.board.geometry.items as usize);
        let (places, blob) = rest.split_at(items.len() * ENTRY_WORDS);
        let blob = &blob[..self.board.geometry.blob_words as usize];
        let unclaimed = ItemWord { generation, owner: 0, phase: Phase::Unclaimed }.pack();
        let (mut count, mut used) = (0, 0);
        let mut shared: Option<(&[u8], u64)> = None;
        let places = items.iter().zip(places.as_chunks::<ENTRY_WORDS>().0);
        for (entry, (item, words)) in entries.into_iter().zip(places) {
            let mut place = |bytes: &[u8]| {
                let at = used;
                used += words_for(bytes.len());
                (used <= blob.len()).then(|| {
                    store_bytes(&blob[at..], bytes);
                    (at as u64) << 32 | bytes.len() as u64
                })
            };
            let function = match shared {
                Some((bytes, range)) if std::ptr::eq(bytes, entry.function) || bytes == entry.function => Some(range),
                _ => place(entry.function),
            };
            let (Some(function), Some(arguments)) = (function, place(entry.arguments)) else {
                break;
            };
            shared = Some((entry.function, function));
            for (word, value) in words.iter().zip([entry.task, function, arguments, entry.extra]) {
                word.store(value, Ordering::Relaxed);
            }
            item.store(unclaimed, Ordering::Relaxed);
            count += 1;
        }
        count
    }

    fn set_open(&mut self, open: u64) {
        self.open = open;
        self.version += 1;
        self.board.words[OPEN].store(open, Ordering::Relaxed);
        // Pairs with the Acquire load in `BoardReader::refresh`: whoever sees this version sees its open slots.
        self.board.words[VERSION].store(self.version, Ordering::Release);
    }

    fn unclaimed_from_cursor(&self, slot: SlotIndex) -> impl Iterator<Item = u32> + '_ {
        let SlotState { generation, count } = self.slots[slot.0 as usize];
        let start = cursor(self.board.slot(slot), generation);
        (start..count).filter(move |&index| {
            ItemWord::unpack(self.board.item(slot, index).load(Ordering::Relaxed)).phase == Phase::Unclaimed
        })
    }
}

fn lane(slot: &[AtomicU64]) -> u16 {
    (slot[LANE].load(Ordering::Relaxed) >> LANE_SHIFT) as u16
}

fn cursor(slot: &[AtomicU64], generation: u32) -> u32 {
    let word = slot[CURSOR].load(Ordering::Relaxed);
    if (word >> 32) as u32 == generation { word as u32 } else { 0 }
}

/// An item that belongs to the worker that holds this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    slot: SlotIndex,
    generation: u32,
    index: u32,
    count: u32,
}

/// An open slot as a worker last saw it.
#[derive(Clone, Copy)]
struct OpenSlot {
    slot: SlotIndex,
    generation: u32,
    count: u32,
    lane: u16,
    sequence: u64,
}

/// A worker's side.
pub struct BoardReader {
    board: Board,
    owner: u16,
    version: u64,
    /// Open slots by lane, and by posting order within each.
    view: Vec<OpenSlot>,
    lane: u16,
}

impl BoardReader {
    /// A reader that claims in the name of `owner`.
    pub fn new(board: Board, owner: u16) -> Self {
        Self { board, owner, version: u64::MAX, view: Vec::new(), lane: 0 }
    }

    /// Claims the next item: of the lane after the one served last, the oldest slot's first unclaimed item. Those that run
    /// alone come first for an `idle` worker, and are not for any other.
    pub fn claim(&mut self, idle: bool) -> Option<Claim> {
        self.refresh();
        loop {
            let shared = self.shared();
            let at = if idle && shared < self.view.len() {
                shared
            } else if shared == 0 {
                return None;
            } else {
                self.view[..shared].iter().position(|open| open.lane > self.lane).unwrap_or(0)
            };
            let open = self.view[at];
            match self.claim_in(open) {
                Some(claim) => {
                    if open.lane != ALONE_LANE {
                        self.lane = open.lane;
                    }
                    return Some(claim);
                }
                None => drop(self.view.remove(at)),
            }
        }
    }

    /// Open slots whose items need not run alone; they stand first.
    fn shared(&self) -> usize {
        self.view.partition_point(|open| open.lane != ALONE_LANE)
    }

    /// Whether an item waits that [`Self::claim`] could get.
    pub fn has_unclaimed(&mut self, idle: bool) -> bool {
        self.refresh();
        let open_to_it = if idle { self.view.len() } else { self.shared() };
        self.view[..open_to_it].iter().any(|open| self.unclaimed_in(open).next().is_some())
    }

    fn unclaimed_in(&self, open: &OpenSlot) -> impl Iterator<Item = u32> {
        let OpenSlot { slot, generation, count, .. } = *open;
        let unclaimed = ItemWord { generation, owner: 0, phase: Phase::Unclaimed }.pack();
        let start = cursor(self.board.slot(slot), generation);
        (start..count).filter(move |&index| self.board.item(slot, index).load(Ordering::Relaxed) == unclaimed)
    }

    /// Items that wait for a worker and need not run alone, counted up to `limit`.
    pub fn unclaimed(&mut self, limit: usize) -> usize {
        self.refresh();
        let shared = self.shared();
        self.view[..shared].iter().flat_map(|open| self.unclaimed_in(open)).take(limit).count()
    }

    /// Copies a claimed item out. `None` where the entry points outside its slot, which no correct manager writes.
    pub fn read(&self, claim: &Claim, item: &mut Item) -> Option<()> {
        let entry = self.board.entry(claim.slot, claim.index);
        let [task, function, arguments, extra] = [0, 1, 2, 3].map(|word| entry[word].load(Ordering::Relaxed));
        item.task = task;
        item.extra = extra;
        let source = Some((claim.slot, claim.generation, function));
        if item.source != source {
            item.source = None;
            self.read_bytes(claim.slot, function, &mut item.function)?;
            item.source = source;
        }
        self.read_bytes(claim.slot, arguments, &mut item.arguments)
    }

    /// Takes a claimed item off the board: call it once the lease is recorded and the bytes are copied, and only
    /// then start the item.
    ///
    /// Returns whether this emptied a slot while the manager has more to post: it must then be rung if it sleeps.
    /// Of those that leave a slot at the same time at least one is told so, whichever claimed the last item.
    /// [`Ringer::must_ring_fenced`](crate::Ringer::must_ring_fenced) may follow.
    pub fn take(&self, claim: Claim) -> bool {
        let word = ItemWord { generation: claim.generation, owner: self.owner, phase: Phase::Taken }.pack();
        // Pairs with the Acquire loads in `BoardWriter::reclaim` and `owned_by`.
        self.board.item(claim.slot, claim.index).store(word, Ordering::Release);
        self.has_backlog() && self.has_emptied(claim)
    }

    /// Whether the manager has more to post than the board holds.
    pub fn has_backlog(&self) -> bool {
        // Pairs with the fence in `Sleeper::announce`: either we see the backlog, or the manager sees what we took.
        // And with itself in other workers: of those that leave a slot, the last to pass here sees all the others gone.
        fence(Ordering::SeqCst);
        self.board.words[BACKLOG].load(Ordering::Relaxed) != 0
    }

    /// From the back, as the last item is nearly always the last to be claimed.
    fn has_emptied(&self, claim: Claim) -> bool {
        (0..claim.count).rev().all(|index| {
            let word = self.board.item(claim.slot, index).load(Ordering::Relaxed);
            matches!(ItemWord::unpack(word).phase, Phase::Taken | Phase::Retracted)
        })
    }

    fn claim_in(&self, open: OpenSlot) -> Option<Claim> {
        let OpenSlot { slot, generation, count, .. } = open;
        let unclaimed = ItemWord { generation, owner: 0, phase: Phase::Unclaimed }.pack();
        let mine = ItemWord { generation, owner: self.owner, phase: Phase::Claimed }.pack();
        for index in cursor(self.board.slot(slot), generation)..count {
            let item = self.board.item(slot, index);
            if item.load(Ordering::Relaxed) != unclaimed {
                continue;
            }
            if item.compare_exchange(unclaimed, mine, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                let next = u64::from(generation) << 32 | u64::from(index + 1);
                self.board.slot(slot)[CURSOR].store(next, Ordering::Relaxed);
                return Some(Claim { slot, generation, index, count });
            }
        }
        None
    }

    fn refresh(&mut self) {
        // Pairs with the Release store in `BoardWriter::set_open`.
        let version = self.board.words[VERSION].load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        self.version = version;
        self.view.clear();
        let open = self.board.words[OPEN].load(Ordering::Relaxed);
        let slots = (0..self.board.geometry.slots).filter(|slot| open >> slot & 1 == 1).map(SlotIndex);
        for slot in slots {
            self.view.extend(self.look(slot));
        }
        self.view.sort_unstable_by_key(|open| (open.lane, open.sequence));
    }

    fn look(&self, slot: SlotIndex) -> Option<OpenSlot> {
        let words = self.board.slot(slot);
        // Pairs with the Release store in `BoardWriter::post`.
        let head = words[HEAD].load(Ordering::Acquire);
        let sequence = words[LANE].load(Ordering::Relaxed) & SEQUENCE;
        let (generation, count) = ((head >> 32) as u32, head as u32);
        let open = OpenSlot { slot, generation, count, lane: lane(words), sequence };
        (cursor(words, generation) < count && count <= self.board.geometry.items).then_some(open)
    }

    fn read_bytes(&self, slot: SlotIndex, range: u64, out: &mut Vec<u8>) -> Option<()> {
        let (at, len) = ((range >> 32) as usize, (range & 0xffff_ffff) as usize);
        let words = self.board.blob(slot).get(at..)?.get(..words_for(len))?;
        out.clear();
        load_bytes(words, len, out);
        Some(())
    }
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
