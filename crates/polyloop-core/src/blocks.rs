//! Whose a block is: who uses each piece of pooled memory that this process has made, when it is free to be written
//! again, and when it is given back. Making, mapping and passing on is the engine's.
//!
//! ```text
//!  (none) --take--> leased --lend--> leased, in use by peers --lease ends, peers return it or die--> free --take--> ..
//!                                                                free too long, or too much is free --> (given back)
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::id::Moment;

/// How long a block may be free before it is given back.
pub const BLOCK_IDLE: Duration = Duration::from_secs(2);
/// Blocks that may be free.
const FREE_MAX: usize = 32;
/// Bytes of blocks that may be free.
const FREE_BYTES_MAX: usize = 512 << 20;
/// Bytes of blocks in use from which on they are scarce.
const SCARCE_BYTES: usize = 1 << 30;
/// Blocks are scarce, too, when less than one part of so many is left.
const SCARCE_PART: usize = 4;
/// A free block serves for so many times less than it holds, and for no less: it would keep what it does not need.
const WASTE_MAX: usize = 2;
/// Sizes are rounded up to one part of so many of a power of two, so that blocks are used again for what is nearly as
/// large.
const SIZE_STEPS: usize = 16;
/// The smallest block, in bytes: one page.
const SIZE_MIN: usize = 4096;

/// A block, among those of the process that made it. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

/// A block to write into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It exists.
    Again(BlockId),
    /// It is to be made, this many bytes large; [`BlockTable::spoil`] it if it can't be.
    New(BlockId, usize),
}

/// A peer gave back what it does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("block {0} was given back by a process that does not have it")]
pub struct NotLent(pub u64);

/// A block that is to be given back to the system, and the peers that know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded<P> {
    /// Which.
    pub block: BlockId,
    /// Who may have it mapped.
    pub known_to: Vec<P>,
}

#[derive(Debug)]
struct Block<P> {
    bytes: usize,
    /// A task's payload, or one that is being written, is in it.
    leased: bool,
    /// Peers that use it, once for each use.
    users: Vec<P>,
    /// Peers that it was passed to.
    known_to: Vec<P>,
    /// It is not to be used again.
    spoiled: bool,
    free_since: Moment,
}

impl<P> Block<P> {
    fn is_unused(&self) -> bool {
        !self.leased && self.users.is_empty()
    }
}

/// The blocks that one process has made. `P` names the peers they are lent to.
#[derive(Debug)]
pub struct BlockTable<P> {
    blocks: BTreeMap<BlockId, Block<P>>,
    last: u64,
    blocks_max: usize,
    discarded: Vec<Discarded<P>>,
}

impl<P: Copy + PartialEq> BlockTable<P> {
    /// For at most so many blocks at a time.
    pub fn new(blocks_max: usize) -> Self {
        Self { blocks: BTreeMap::new(), last: 0, blocks_max, discarded: Vec::new() }
    }

    /// A block with room for so many bytes, leased: the free one that fits best, or a new one. `None` when there are
    /// as many as may be.
    pub fn take(&mut self, bytes: usize) -> Option<Taken> {
        let fits = |(_, block): &(&BlockId, &mut Block<P>)| {
            block.is_unused() && (bytes..=bytes.saturating_mul(WASTE_MAX).max(SIZE_MIN)).contains(&block.bytes)
        };
        let best = self.blocks.iter_mut().filter(fits).min_by_key(|(_, block)| block.bytes);
        if let Some((id, block)) = best {
            block.leased = true;
            return Some(Taken::Again(*id));
        }
        if self.blocks.len() >= self.blocks_max {
            // One that is free and does not fit is of no use here.
            let oldest = self.oldest_free()?;
            self.discard(oldest);
        }
        self.last += 1;
        let (id, bytes) = (BlockId(self.last), rounded(bytes)?);
        let block = Block {
            bytes,
            leased: true,
            users: Vec::new(),
            known_to: Vec::new(),
            spoiled: false,
            free_since: Moment::ZERO,
        };
        self.blocks.insert(id, block);
        Some(Taken::New(id, bytes))
    }

    /// Whether whoever can wait should do so before it takes another block.
    pub fn is_scarce(&self) -> bool {
        let used = self.blocks.values().filter(|block| !block.is_unused());
        let (count, bytes) = used.fold((0, 0), |(count, bytes), block| (count + 1, bytes + block.bytes));
        (self.blocks_max - count) * SCARCE_PART < self.blocks_max || bytes >= SCARCE_BYTES
    }

    /// A leased block is now in use by a peer, too. Says whether the peer has yet to get it: once, and then it knows it.
    pub fn lend(&mut self, id: BlockId, peer: P) -> bool {
        let Some(block) = self.blocks.get_mut(&id) else { return false };
        block.users.push(peer);
        let is_news = !block.known_to.contains(&peer);
        if is_news {
            block.known_to.push(peer);
        }
        is_news
    }

    /// What [`Self::lend`] had begun did not come about.
    pub fn not_lent(&mut self, id: BlockId, peer: P) {
        if let Some(block) = self.blocks.get_mut(&id) {
            remove_one(&mut block.users, peer);
            block.known_to.retain(|known| *known != peer);
        }
    }

    /// The payload that was in a block is not needed any more.
    pub fn end_lease(&mut self, now: Moment, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.leased = false;
            self.settle(now, id);
        }
    }

    /// A block is not to be used again: its content can't be written, or somebody not known here may still read it.
    pub fn spoil(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.spoiled = true;
        }
    }

    /// A peer has no more use for a block.
    ///
    /// # Errors
    /// [`NotLent`] when it had none.
    pub fn give_back(&mut self, now: Moment, id: BlockId, peer: P) -> Result<(), NotLent> {
        let block = self.blocks.get_mut(&id).ok_or(NotLent(id.0))?;
        if !remove_one(&mut block.users, peer) {
            return Err(NotLent(id.0));
        }
        self.settle(now, id);
        Ok(())
    }

    /// A peer is gone, and with it all its uses, and nobody else's.
    pub fn forget_peer(&mut self, now: Moment, peer: P) {
        let ids: Vec<_> = self.blocks.keys().copied().collect();
        for id in ids {
            if let Some(block) = self.blocks.get_mut(&id) {
                let was_used = !block.is_unused();
                block.users.retain(|user| *user != peer);
                block.known_to.retain(|known| *known != peer);
                if was_used {
                    self.settle(now, id);
                }
            }
        }
    }

    /// When [`Self::give_back_idle`] has something to do.
    pub fn next_idle(&self) -> Option<Moment> {
        self.free().map(|(_, block)| block.free_since + BLOCK_IDLE).min()
    }

    /// Gives back what has been free for too long.
    pub fn give_back_idle(&mut self, now: Moment) {
        let idle: Vec<_> =
            self.free().filter(|(_, block)| block.free_since + BLOCK_IDLE <= now).map(|(id, _)| id).collect();
        idle.into_iter().for_each(|id| self.discard(id));
    }

    /// Gives back everything that is free.
    pub fn give_back_free(&mut self) {
        let free: Vec<_> = self.free().map(|(id, _)| id).collect();
        free.into_iter().for_each(|id| self.discard(id));
    }

    /// What has been given back since the last call.
    pub fn take_discarded(&mut self) -> Vec<Discarded<P>> {
        std::mem::take(&mut self.discarded)
    }

    fn free(&self) -> impl Iterator<Item = (BlockId, &Block<P>)> {
        self.blocks.iter().filter(|(_, block)| block.is_unused()).map(|(id, block)| (*id, block))
    }

    fn oldest_free(&self) -> Option<BlockId> {
        self.free().min_by_key(|(_, block)| block.free_since).map(|(id, _)| id)
    }

    /// A block may have become free.
    fn settle(&mut self, now: Moment, id: BlockId) {
        let Some(block) = self.blocks.get_mut(&id).filter(|block| block.is_unused()) else { return };
        block.free_since = now;
        if block.spoiled {
            return self.discard(id);
        }
        while let (count, bytes) =
            self.free().fold((0, 0), |(count, bytes), (_, block)| (count + 1, bytes + block.bytes))
            && (count > FREE_MAX || bytes > FREE_BYTES_MAX)
            && let Some(oldest) = self.oldest_free()
        {
            self.discard(oldest);
        }
    }

    fn discard(&mut self, id: BlockId) {
        if let Some(block) = self.blocks.remove(&id) {
            self.discarded.push(Discarded { block: id, known_to: block.known_to });
        }
    }
}

fn remove_one<P: PartialEq>(users: &mut Vec<P>, peer: P) -> bool {
    let at = users.iter().position(|user| *user == peer);
    at.map(|at| users.swap_remove(at)).is_some()
}

/// The size of a block for so many bytes.
fn rounded(bytes: usize) -> Option<usize> {
    let step = (bytes.checked_next_power_of_two()? / SIZE_STEPS).max(SIZE_MIN);
    bytes.max(1).checked_next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Moment = Duration::from_secs(9);
    const MIB: usize = 1 << 20;

    fn new(table: &mut BlockTable<u8>, bytes: usize) -> BlockId {
        match table.take(bytes) {
            Some(Taken::New(id, _)) => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_block_is_free_when_its_lease_has_ended_and_each_peer_has_given_it_back() {
        let mut table = BlockTable::new(4);
        let id = new(&mut table, MIB);
        assert!(table.lend(id, 1));
        assert!(!table.lend(id, 1), "it knows it");
        table.end_lease(NOW, id);
        assert_eq!(table.give_back(NOW, id, 2), Err(NotLent(id.0)));
        table.give_back(NOW, id, 1).unwrap();
        assert_eq!(table.next_idle(), None, "it was lent twice");
        table.give_back(NOW, id, 1).unwrap();
        assert_eq!(table.give_back(NOW, id, 1), Err(NotLent(id.0)));
        assert_eq!(table.take(MIB - 5), Some(Taken::Again(id)));
    }

    #[test]
    fn a_death_clears_the_dead_peers_share_only() {
        let mut table = BlockTable::new(4);
        let id = new(&mut table, MIB);
        table.lend(id, 1);
        table.lend(id, 2);
        table.forget_peer(NOW, 1);
        table.end_lease(NOW, id);
        assert_eq!(table.next_idle(), None);
        table.forget_peer(NOW, 2);
        assert_eq!(table.next_idle(), Some(NOW + BLOCK_IDLE));
        assert_eq!(table.take(MIB), Some(Taken::Again(id)));
        assert!(table.lend(id, 2), "one that came after the dead one has yet to get it");
    }

    #[test]
    fn what_is_idle_is_given_back_and_whoever_knows_it_is_told() {
        let mut table = BlockTable::new(4);
        let id = new(&mut table, MIB);
        table.lend(id, 7);
        table.give_back(NOW, id, 7).unwrap();
        table.end_lease(NOW, id);
        table.give_back_idle(NOW);
        assert_eq!(table.take_discarded(), []);
        table.give_back_idle(NOW + BLOCK_IDLE);
        assert_eq!(table.take_discarded(), [Discarded { block: id, known_to: vec![7] }]);
        assert_eq!(table.next_idle(), None);
    }

    #[test]
    fn what_is_spoiled_is_given_back_when_nobody_uses_it() {
        let mut table = BlockTable::new(4);
        let id = new(&mut table, MIB);
        table.lend(id, 1);
        table.spoil(id);
        table.end_lease(NOW, id);
        assert_eq!(table.take_discarded(), []);
        table.give_back(NOW, id, 1).unwrap();
        assert_eq!(table.take_discarded(), [Discarded { block: id, known_to: vec![1] }]);
    }

    #[test]
    fn at_the_limit_free_blocks_make_room_and_used_ones_do_not() {
        let mut table = BlockTable::<u8>::new(2);
        let (small, _large) = (new(&mut table, MIB), new(&mut table, 64 * MIB));
        assert_eq!(table.take(9), None);
        table.end_lease(NOW, small);
        assert!(matches!(table.take(64 * MIB), Some(Taken::New(..))));
        assert_eq!(table.take_discarded(), [Discarded { block: small, known_to: vec![] }]);
    }

    #[test]
    fn blocks_are_scarce_when_most_are_in_use_or_they_hold_much() {
        let mut table = BlockTable::<u8>::new(4);
        let ids: Vec<_> = (0..3).map(|_| new(&mut table, 4096)).collect();
        assert!(!table.is_scarce());
        new(&mut table, 4096);
        assert!(table.is_scarce());
        table.end_lease(NOW, ids[0]);
        assert!(!table.is_scarce());
        new(&mut table, SCARCE_BYTES);
        assert!(table.is_scarce());
    }

    #[test]
    fn no_more_than_the_bound_stays_free() {
        let mut table = BlockTable::<u8>::new(9);
        let ids: Vec<_> = (0..9).map(|_| new(&mut table, 100 * MIB)).collect();
        for (second, id) in (0..).zip(&ids) {
            table.end_lease(Duration::from_secs(second), *id);
        }
        let given_back: Vec<_> = table.take_discarded().into_iter().map(|discarded| discarded.block).collect();
        assert_eq!(given_back, ids[..5], "the oldest go, 512 MiB stay");
    }

    #[test]
    fn sizes_that_are_near_share_a_block() {
        assert_eq!(rounded(100_000_000), Some(96 * MIB));
        assert_eq!(rounded(1), Some(SIZE_MIN));
        assert_eq!(rounded(usize::MAX), None);
        let mut table = BlockTable::<u8>::new(9);
        let id = new(&mut table, 100 * MIB);
        table.end_lease(NOW, id);
        assert!(matches!(table.take(10 * MIB), Some(Taken::New(..))), "a tenth of it would be a waste");
        assert_eq!(table.take(60 * MIB), Some(Taken::Again(id)));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Take(usize),
        Lend(usize, u8),
        Back(usize, u8),
        End(usize),
        Dies(u8),
        Idle,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (1usize..4 * MIB).prop_map(Act::Take),
            (0usize..8, 0u8..3).prop_map(|(at, peer)| Act::Lend(at, peer)),
            (0usize..8, 0u8..3).prop_map(|(at, peer)| Act::Back(at, peer)),
            (0usize..8).prop_map(Act::End),
            (0u8..3).prop_map(Act::Dies),
            Just(Act::Idle),
        ];
        proptest::collection::vec(act, 1..80)
    }

    proptest! {
        #[test]
        fn nobody_gets_a_block_that_somebody_uses(acts in acts()) {
            let mut table = BlockTable::<u8>::new(6);
            // What is in use by the rules of this page: lease and users of each block.
            let mut used: BTreeMap<BlockId, (bool, Vec<u8>)> = BTreeMap::new();
            let pick = |used: &BTreeMap<BlockId, (bool, Vec<u8>)>, at: usize| used.keys().nth(at % used.len().max(1)).copied();
            for act in acts {
                match act {
                    Act::Take(bytes) => if let Some(Taken::Again(id) | Taken::New(id, _)) = table.take(bytes) {
                        let uses = used.insert(id, (true, Vec::new()));
                        prop_assert!(uses.is_none_or(|(leased, users)| !leased && users.is_empty()));
                    },
                    Act::Lend(at, peer) => if let Some(id) = pick(&used, at) {
                        let (leased, users) = used.get_mut(&id).unwrap();
                        if *leased {
                            table.lend(id, peer);
                            users.push(peer);
                        }
                    },
                    Act::Back(at, peer) => if let Some(id) = pick(&used, at) {
                        let users = &mut used.get_mut(&id).unwrap().1;
                        let had = remove_one(users, peer);
                        prop_assert_eq!(table.give_back(NOW, id, peer).is_ok(), had);
                    },
                    Act::End(at) => if let Some(id) = pick(&used, at) {
                        table.end_lease(NOW, id);
                        used.get_mut(&id).unwrap().0 = false;
                    },
                    Act::Dies(peer) => {
                        table.forget_peer(NOW, peer);
                        used.values_mut().for_each(|(_, users)| users.retain(|user| *user != peer));
                    }
                    Act::Idle => table.give_back_idle(NOW + BLOCK_IDLE),
                }
                for Discarded { block, .. } in table.take_discarded() {
                    let (leased, users) = used.remove(&block).unwrap();
                    prop_assert!(!leased && users.is_empty(), "given back while in use");
                }
            }
            used.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| table.end_lease(NOW, id));
            (0..3).for_each(|peer| table.forget_peer(NOW, peer));
            table.give_back_free();
            prop_assert!(table.blocks.is_empty(), "a block was lost");
        }
    }
}
