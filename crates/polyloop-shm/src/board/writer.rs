//! The manager's side of the board: posts, retracts and reclaims.

use thiserror::Error;

use super::{
    ALONE_LANE, BACKLOG, Board, CURSOR, ENTRY_WORDS, Entry, HEAD, ITEMS, ItemWord, LANE, LANE_SHIFT, MAX_SLOTS, OPEN,
    Phase, SEQUENCE, SlotIndex, VERSION, cursor, lane,
};
use crate::sync::Ordering;
use crate::words::{store_bytes, words_for};

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
