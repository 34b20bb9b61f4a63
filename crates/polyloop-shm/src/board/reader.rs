//! A worker's side of the board: claims, reads and takes.

use super::{
    ALONE_LANE, BACKLOG, Board, CURSOR, HEAD, Item, ItemWord, LANE, OPEN, Phase, SEQUENCE, SlotIndex, VERSION, cursor,
    lane,
};
use crate::sync::{Ordering, fence};
use crate::words::{load_bytes, words_for};

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
pub(super) struct OpenSlot {
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
    pub(super) view: Vec<OpenSlot>,
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
            } else {
                match self.view[..shared].last() {
                    None => return None,
                    Some(last) if last.lane <= self.lane => 0,
                    Some(_) => self.view[..shared].partition_point(|open| open.lane <= self.lane),
                }
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
        match self.view.last() {
            Some(last) if last.lane == ALONE_LANE => self.view.partition_point(|open| open.lane != ALONE_LANE),
            _ => self.view.len(),
        }
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

    pub(super) fn claim_in(&self, open: OpenSlot) -> Option<Claim> {
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

    pub(super) fn refresh(&mut self) {
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
