//! The worker's half of the protocol: when it claims, when it leaves work to a peer, and when it leaves.

use std::time::Duration;

use crate::id::{NestedId, TaskId};
use crate::nested::{Nest, TooMany};

/// How long a worker leaves an item to an idle peer before it takes the item itself.
pub const DEFER: Duration = Duration::from_micros(500);

/// How a worker's process ends of which an item ran out of time and could not be interrupted.
pub const OVERDUE_EXITCODE: i32 = 71;

/// How many times items are left to a peer that does nothing: it may be stopped, or busy.
const FRUITLESS_MAX: u32 = 6;
/// How many times in a row items are left to peers of whatever kind: one that does something all the time may still
/// not be able to take them, as it may serve another queue.
const IN_A_ROW_MAX: u32 = 16;
/// A peer is idler if it has fewer items by more than this part of ours, so that a balanced pair of workers with many
/// items each does not wait for the other all the time.
const SLACK_DIVISOR: u32 = 8;

/// What a worker is told when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Items it runs at the same time, at least 1.
    pub concurrency: u32,
    /// Items it runs in its life; 0 for no limit.
    pub max_tasks: u64,
}

/// What a worker sees of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Changes whenever the peer does anything.
    pub state: u64,
    /// Items it runs.
    pub in_flight: u32,
    /// Items it would take.
    pub room: u32,
}

/// How often items were left to a peer since it was last seen to do something.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    state: u64,
    fruitless: u32,
    /// The next item would be left to it.
    is_asked: bool,
}

/// How a worker is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Claim nothing more, finish what runs, leave.
    WhenDone,
    /// Cancel what runs, leave.
    Now,
}

/// Whether a worker leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// There is, or may be, work.
    Stay,
    /// Everything is done and published.
    Leave,
}

/// The worker's decisions.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    in_flight: u32,
    claimed: u64,
    /// The item that runs must stay the only one.
    alone: bool,
    /// Outcomes that did not fit into the result ring yet.
    unpublished: usize,
    stop: Option<Stop>,
    /// It was told by its host to claim nothing more.
    retired: bool,
    watches: Vec<Watch>,
    /// Items left to peers since this worker last took one.
    deferred_in_a_row: u32,
    /// What its items have called the pool for.
    nest: Nest,
}

impl Worker {
    /// A worker that has claimed nothing yet.
    pub fn new(config: WorkerConfig) -> Self {
        let concurrency = config.concurrency.max(1);
        let config = WorkerConfig { concurrency, ..config };
        Self {
            config,
            in_flight: 0,
            claimed: 0,
            alone: false,
            unpublished: 0,
            stop: None,
            retired: false,
            watches: Vec::new(),
            deferred_in_a_row: 0,
            nest: Nest::default(),
        }
    }

    /// How many more items it would start now.
    pub fn room(&self) -> u32 {
        if self.nest.waiting() > 0 {
            return self.room_beside_waiting();
        }
        if self.stop.is_some() || self.retired || self.alone || self.unpublished > 0 {
            return 0;
        }
        // Those that went on when they had what they waited for may be too many.
        let free = self.config.concurrency.saturating_sub(self.in_flight);
        match self.config.max_tasks {
            0 => free,
            max => u32::try_from(max.saturating_sub(self.claimed)).map_or(free, |left| left.min(free)),
        }
    }

    /// The same while items wait for calls of their own: also if it is to leave, as nobody else may be there to run what
    /// they wait for.
    #[cold]
    fn room_beside_waiting(&self) -> u32 {
        if self.stop == Some(Stop::Now) || self.alone || self.unpublished > 0 {
            return 0;
        }
        self.config.concurrency.saturating_sub(self.running())
    }

    /// Whether items wait for calls of their own.
    pub fn has_waiting(&self) -> bool {
        self.nest.waiting() > 0
    }

    /// Items that have their place: those that wait for calls of their own have given it to others.
    fn running(&self) -> u32 {
        self.in_flight - self.nest.waiting()
    }

    /// One of these items, which run here, calls the pool. Until that is answered they may wait for it, and do not take a
    /// place. All of such calls that are unanswered have `bytes_max` bytes at most.
    ///
    /// # Errors
    /// [`TooMany`]: nothing has changed.
    pub fn ask(&mut self, callers: &[TaskId], bytes: u64, bytes_max: u64) -> Result<NestedId, TooMany> {
        let number = self.nest.ask(callers, bytes, bytes_max)?;
        // Others are to run beside it, or it would wait for ever.
        self.alone = false;
        Ok(number)
    }

    /// A call of the pool was answered. Says whether it was made, and not answered before.
    pub fn answered(&mut self, number: NestedId) -> bool {
        self.nest.answered(number)
    }

    /// Items started and not finished.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether it may claim an item that runs alone.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// It has claimed an item and starts it. Says whether it was the last it may, if that is news.
    pub fn claimed(&mut self, alone: bool) -> bool {
        self.alone = alone;
        self.in_flight += 1;
        self.claimed += 1;
        self.deferred_in_a_row = 0;
        self.claimed == self.config.max_tasks && !self.retired
    }

    /// An item ended.
    pub fn finished(&mut self, task: TaskId) {
        self.in_flight -= 1;
        self.alone = false;
        if !self.nest.is_empty() {
            self.nest.ended(task);
        }
    }

    /// So many outcomes wait for room in the result ring.
    pub fn set_unpublished(&mut self, outcomes: usize) {
        self.unpublished = outcomes;
    }

    /// It was told to stop. A gentle word does not take back a firm one.
    pub fn stop(&mut self, stop: Stop) {
        if self.stop != Some(Stop::Now) {
            self.stop = Some(stop);
        }
    }

    /// It is to claim nothing more, and to leave when what it runs is done. Says whether that is news.
    pub fn retire(&mut self) -> bool {
        let leaves = self.stop.is_some() || self.is_retired();
        self.retired = true;
        !leaves
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether the next item is left to a peer for [`DEFER`]: while this worker runs some items already, a peer that has
    /// done something lately runs fewer, and there are no more items than such peers have room for. The peers are always
    /// given in the same order; `waiting` counts items up to a limit.
    pub fn defers(&mut self, peers: impl IntoIterator<Item = PeerView>, waiting: impl FnOnce(usize) -> usize) -> bool {
        let mine = self.running();
        if mine == 0 || self.deferred_in_a_row == IN_A_ROW_MAX {
            return false;
        }
        let mut room = 0;
        for (index, peer) in peers.into_iter().enumerate() {
            if index == self.watches.len() {
                self.watches.push(Watch::default());
            }
            let watch = &mut self.watches[index];
            if watch.state != peer.state {
                *watch = Watch { state: peer.state, ..Watch::default() };
            }
            let idler = peer.room > 0 && peer.in_flight.saturating_add(mine / SLACK_DIVISOR) < mine;
            watch.is_asked = idler && watch.fruitless < FRUITLESS_MAX;
            room += if watch.is_asked { peer.room as usize } else { 0 };
        }
        let defers = room > 0 && waiting(room + 1) <= room;
        if defers {
            self.watches.iter_mut().for_each(|watch| watch.fruitless += u32::from(watch.is_asked));
            self.deferred_in_a_row += 1;
        }
        defers
    }

    fn is_retired(&self) -> bool {
        self.retired || self.config.max_tasks != 0 && self.claimed >= self.config.max_tasks
    }

    /// Whether it is time to leave.
    pub fn leave(&self) -> Leave {
        let ends = self.stop.is_some() || self.is_retired();
        if ends && self.in_flight == 0 && self.unpublished == 0 { Leave::Leave } else { Leave::Stay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: TaskId = TaskId { index: 0, generation: 1 };

    fn worker(concurrency: u32, max_tasks: u64) -> Worker {
        Worker::new(WorkerConfig { concurrency, max_tasks })
    }

    #[test]
    fn it_claims_up_to_its_concurrency() {
        let mut worker = worker(2, 0);
        assert_eq!(worker.room(), 2);
        worker.claimed(false);
        worker.claimed(false);
        assert_eq!(worker.room(), 0);
        worker.finished(ITEM);
        assert_eq!(worker.room(), 1);
    }

    #[test]
    fn its_life_in_tasks_is_exact_at_any_concurrency() {
        let mut worker = worker(16, 3);
        assert_eq!(worker.room(), 3);
        assert!(!worker.claimed(false) && !worker.claimed(false) && worker.claimed(false));
        assert_eq!((worker.room(), worker.leave()), (0, Leave::Stay));
        (0..3).for_each(|_| worker.finished(ITEM));
        assert_eq!(worker.leave(), Leave::Leave);
    }

    #[test]
    fn retired_it_claims_nothing_more_and_leaves_when_what_it_runs_is_done() {
        let mut worker = worker(4, 0);
        worker.claimed(false);
        assert!(worker.retire() && !worker.retire());
        assert_eq!((worker.room(), worker.leave()), (0, Leave::Stay));
        worker.finished(ITEM);
        assert_eq!(worker.leave(), Leave::Leave);
    }

    #[test]
    fn unpublished_outcomes_keep_it_from_claiming_and_from_leaving() {
        let mut worker = worker(2, 0);
        worker.set_unpublished(1);
        worker.stop(Stop::WhenDone);
        assert_eq!((worker.room(), worker.leave()), (0, Leave::Stay));
        worker.set_unpublished(0);
        assert_eq!(worker.leave(), Leave::Leave);
    }

    #[test]
    fn it_takes_items_of_which_there_are_more_than_idler_peers_have_room_for() {
        let mut worker = worker(8, 0);
        worker.claimed(false);
        assert!(!worker.defers([peer(1, 0), peer(1, 1)], |limit| 9.min(limit)), "one is left over");
        assert!(worker.defers([peer(1, 0), peer(1, 1)], |limit| 8.min(limit)));
        let watched = worker.watches.iter().map(|watch| watch.fruitless);
        assert_eq!(watched.collect::<Vec<_>>(), [1, 0], "only what was left to it counts");
    }

    fn peer(state: u64, in_flight: u32) -> PeerView {
        PeerView { state, in_flight, room: 8 }
    }

    #[test]
    fn a_peer_that_does_something_all_the_time_but_never_takes_an_item_does_not_hold_it_up_for_ever() {
        let mut worker = worker(8, 0);
        worker.claimed(false);
        let times = (0..1_000).filter(|&state| worker.defers([peer(state, 0)], |_| 1)).count();
        assert_eq!(times, IN_A_ROW_MAX as usize);
        worker.claimed(false);
        assert!(worker.defers([peer(1_001, 0)], |_| 1), "another item is another matter");
    }

    #[test]
    fn it_leaves_items_to_an_idler_peer_while_that_is_of_use() {
        let mut worker = worker(8, 0);
        assert!(!worker.defers([peer(1, 0)], |_| 1), "with nothing in flight it takes the item");
        worker.claimed(false);
        assert!(!worker.defers([peer(1, 1)], |_| 1), "the peer has as many");
        assert!(!worker.defers([PeerView { room: 0, ..peer(1, 0) }], |_| 1), "the peer takes none");
        let waited = (0..20).take_while(|_| worker.defers([peer(1, 0)], |_| 1)).count();
        assert_eq!(waited, FRUITLESS_MAX as usize, "the peer did nothing");
        assert!(worker.defers([peer(2, 0)], |_| 1), "it has moved since");
    }

    #[test]
    fn with_many_items_in_flight_a_small_difference_is_none() {
        let mut worker = worker(128, 0);
        for _ in 0..64 {
            worker.claimed(false);
        }
        assert!(!worker.defers([peer(1, 56)], |_| 1));
        assert!(worker.defers([peer(1, 55)], |_| 1));
    }

    fn item(index: u32) -> TaskId {
        TaskId { index, generation: 1 }
    }

    #[test]
    fn an_item_that_waits_for_a_call_of_its_own_gives_its_place_back() {
        let mut worker = worker(1, 0);
        worker.claimed(true);
        assert_eq!(worker.room(), 0);
        let first = worker.ask(&[item(1)], 0, 0).unwrap();
        assert_eq!((worker.room(), worker.is_idle()), (1, false));
        worker.claimed(false);
        assert_eq!(worker.room(), 0);
        worker.ask(&[item(2)], 0, 0).unwrap();
        assert_eq!(worker.room(), 1);
        assert!(worker.answered(first));
        assert_eq!(worker.room(), 0, "it goes on");
        worker.finished(item(1));
        assert_eq!(worker.room(), 1);
        worker.finished(item(2));
        assert_eq!((worker.room(), worker.is_idle()), (1, true));
    }

    #[test]
    fn a_worker_that_is_to_leave_takes_items_as_long_as_others_wait() {
        let mut worker = worker(1, 1);
        worker.claimed(false);
        worker.stop(Stop::WhenDone);
        assert_eq!((worker.room(), worker.leave()), (0, Leave::Stay));
        let call = worker.ask(&[item(1)], 0, 0).unwrap();
        assert_eq!(worker.room(), 1);
        assert!(!worker.claimed(false), "said before");
        worker.finished(item(2));
        assert_eq!((worker.room(), worker.leave()), (1, Leave::Stay));
        worker.answered(call);
        assert_eq!((worker.room(), worker.leave()), (0, Leave::Stay));
        worker.finished(item(1));
        assert_eq!(worker.leave(), Leave::Leave);
        worker.stop(Stop::Now);
        assert_eq!(worker.room(), 0);
    }

    #[test]
    fn a_worker_that_retired_before_and_goes_on_for_those_who_wait_does_not_say_it_again() {
        let mut worker = worker(1, 2);
        worker.claimed(false);
        worker.ask(&[item(1)], 0, 0).unwrap();
        assert!(worker.retire());
        assert!(!worker.claimed(false), "its last, and no news");
    }
}
