//! Random interleavings of manager and workers over board, leases and rings, held against a model that is a few
//! queues and sets: each task is claimed in turn, and ends in exactly one way.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use polyloop_shm::{
    Board, BoardReader, BoardWriter, Claim, Entry, Geometry, Item, LeaseIndex, LeaseReader, LeaseWriter, Phase,
    Retract, RingReader, RingWriter, SlotIndex, Words, ring_words,
};
use proptest::prelude::*;
use proptest::sample::Index;

const SHAPE: Geometry = Geometry { slots: 3, items: 4, blob_words: 14 };
const SEATS: usize = 3;
const LEASES: usize = 4;
const RING: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Post { lane: u16, count: usize },
    Claim(usize),
    Take(usize),
    Finish(usize, usize),
    Retract(Index, Index),
    Reclaim(Index),
    Drain(usize),
    Die(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let seat = 0..SEATS;
    prop_oneof![
        3 => (0..3u16, 1..6usize).prop_map(|(lane, count)| Step::Post { lane, count }),
        6 => seat.clone().prop_map(Step::Claim),
        5 => seat.clone().prop_map(Step::Take),
        5 => (seat.clone(), 0..LEASES).prop_map(|(seat, which)| Step::Finish(seat, which)),
        2 => any::<(Index, Index)>().prop_map(|(slot, item)| Step::Retract(slot, item)),
        4 => any::<Index>().prop_map(Step::Reclaim),
        3 => seat.clone().prop_map(Step::Drain),
        1 => seat.prop_map(Step::Die),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Retracted,
    DiedUnstarted,
    DiedStarted,
}

/// A worker, and what the model knows of it.
struct Worker {
    owner: u16,
    reader: BoardReader,
    leases: LeaseWriter,
    held: LeaseReader,
    outcomes: RingWriter,
    drain: RingReader,
    lane: u16,
    claimed: VecDeque<(Claim, u64)>,
    running: Vec<(LeaseIndex, u64)>,
    undrained: VecDeque<u64>,
}

impl Worker {
    fn new(board: &Board, owner: u16) -> Self {
        let (table, ring) = (Words::heap(LEASES), Words::heap(ring_words(RING)));
        Self {
            owner,
            reader: BoardReader::new(board.clone(), owner),
            leases: LeaseWriter::new(table.clone()),
            held: LeaseReader::new(table),
            outcomes: RingWriter::new(ring.clone()),
            drain: RingReader::new(ring),
            lane: 0,
            claimed: VecDeque::new(),
            running: Vec::new(),
            undrained: VecDeque::new(),
        }
    }
}

/// A posted slot as the model knows it: each item's task, and where that is.
type Posted = Vec<(u64, Place)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Unclaimed,
    Owned(u16, Phase),
    Retracted,
}

struct World {
    board: Board,
    writer: BoardWriter,
    workers: Vec<Worker>,
    posted: BTreeMap<SlotIndex, Posted>,
    lanes: BTreeMap<u16, VecDeque<u64>>,
    ends: HashMap<u64, End>,
    tasks: u64,
    owners: u16,
}

fn arguments(task: u64) -> Vec<u8> {
    vec![task as u8; task as usize % 13]
}

fn function(task: u64) -> &'static [u8] {
    if task.is_multiple_of(3) { b"third" } else { b"" }
}

impl World {
    fn new() -> Self {
        let board = Board::new(Words::heap(SHAPE.board_words()), SHAPE);
        Self {
            writer: BoardWriter::new(board.clone()),
            workers: (0..SEATS as u16).map(|owner| Worker::new(&board, owner)).collect(),
            board,
            posted: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ends: HashMap::new(),
            tasks: 0,
            owners: SEATS as u16,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Post { lane, count } => self.post(lane, count),
            Step::Claim(seat) => self.claim(seat),
            Step::Take(seat) => self.take(seat),
            Step::Finish(seat, which) => self.finish(seat, which),
            Step::Retract(slot, item) => self.retract(slot, item),
            Step::Reclaim(slot) => self.reclaim(slot),
            Step::Drain(seat) => self.drain(seat),
            Step::Die(seat) => self.die(seat),
        }
        self.compare();
    }

    fn post(&mut self, lane: u16, count: usize) {
        let offered: Vec<_> = (self.tasks + 1..).take(count).collect();
        let bytes: Vec<_> = offered.iter().copied().map(arguments).collect();
        let entries = offered.iter().zip(&bytes).map(|(&task, arguments)| Entry {
            task,
            function: function(task),
            arguments,
            extra: !task,
        });
        let Ok(posted) = self.writer.post(lane, entries) else {
            assert_eq!(self.posted.len(), SHAPE.slots as usize);
            return;
        };
        let went = &offered[..posted.count as usize];
        assert!(went.len() == count.min(SHAPE.items as usize) || went.len() >= 3);
        self.tasks += went.len() as u64;
        self.lanes.entry(lane).or_default().extend(went);
        let slot = went.iter().map(|&task| (task, Place::Unclaimed)).collect();
        assert_eq!(self.posted.insert(posted.slot, slot), None, "a slot in use was posted to");
    }

    fn place(&mut self, task: u64) -> &mut Place {
        self.posted
            .values_mut()
            .flatten()
            .find(|(posted, _)| *posted == task)
            .map(|(_, place)| place)
            .expect("the task's slot is not reclaimed yet")
    }

    fn claim(&mut self, seat: usize) {
        let worker = &mut self.workers[seat];
        let waiting = || self.lanes.iter().filter(|(_, tasks)| !tasks.is_empty());
        let lane = waiting()
            .map(|(&lane, _)| lane)
            .find(|&lane| lane > worker.lane)
            .or_else(|| waiting().map(|(&lane, _)| lane).next());
        assert_eq!(worker.reader.has_unclaimed(true), lane.is_some());
        let claim = worker.reader.claim(true);
        let expected = lane.and_then(|lane| self.lanes.get_mut(&lane)?.pop_front());
        assert_eq!(claim.is_some(), expected.is_some());
        let (Some(claim), Some(lane), Some(task)) = (claim, lane, expected) else {
            return;
        };
        let mut item = Item::default();
        worker.reader.read(&claim, &mut item).unwrap();
        let whole = (task, function(task).to_vec(), arguments(task), !task);
        let read = (item.task, item.function, item.arguments, item.extra);
        assert_eq!(read, whole, "not the oldest of the lane whose turn it is");
        worker.lane = lane;
        worker.claimed.push_back((claim, task));
        let owner = worker.owner;
        *self.place(task) = Place::Owned(owner, Phase::Claimed);
    }

    fn take(&mut self, seat: usize) {
        let worker = &mut self.workers[seat];
        if worker.leases.room() == 0 {
            return;
        }
        let Some((claim, task)) = worker.claimed.pop_front() else {
            return;
        };
        let lease = worker.leases.record(task).unwrap();
        let owner = worker.owner;
        worker.running.push((lease, task));
        let backlog = task.is_multiple_of(2);
        self.writer.set_backlog(backlog);
        let told = self.workers[seat].reader.take(claim);
        *self.place(task) = Place::Owned(owner, Phase::Taken);
        let slot = self.posted.values().find(|slot| slot.iter().any(|(posted, _)| *posted == task));
        let empty = slot.unwrap().iter().all(|(_, place)| has_left(*place));
        assert_eq!(told, empty && backlog);
    }

    fn finish(&mut self, seat: usize, which: usize) {
        let worker = &mut self.workers[seat];
        if worker.running.is_empty() {
            return;
        }
        let index = which % worker.running.len();
        let (lease, task) = worker.running[index];
        let full = worker.undrained.len() * 2 == RING;
        assert_eq!(worker.outcomes.push(1, &task.to_le_bytes()).is_err(), full, "records of two words each");
        if !full {
            worker.leases.clear(lease);
            worker.running.remove(index);
            worker.undrained.push_back(task);
        }
    }

    fn retract(&mut self, slot: Index, item: Index) {
        if self.posted.is_empty() {
            return;
        }
        let slots: Vec<_> = self.posted.keys().copied().collect();
        let slot = slots[slot.index(slots.len())];
        let items = self.posted.get_mut(&slot).unwrap();
        let index = item.index(items.len());
        let (task, place) = &mut items[index];
        let result = self.writer.retract(slot, index as u32);
        match *place {
            Place::Unclaimed => {
                assert_eq!(result, Retract::Retracted);
                *place = Place::Retracted;
                let task = *task;
                for tasks in self.lanes.values_mut() {
                    tasks.retain(|&waiting| waiting != task);
                }
                end(&mut self.ends, task, End::Retracted);
            }
            Place::Retracted => assert_eq!(result, Retract::Retracted),
            Place::Owned(owner, _) => assert_eq!(result, Retract::Owned(owner)),
        }
    }

    fn reclaim(&mut self, slot: Index) {
        let slot = SlotIndex(slot.index(SHAPE.slots as usize) as u32);
        let expected = self.posted.get(&slot).filter(|items| items.iter().all(|(_, place)| has_left(*place)));
        let owners = expected.map(|items| {
            let owner = |&(_, place): &(u64, Place)| match place {
                Place::Owned(owner, _) => Some(owner),
                _ => None,
            };
            items.iter().map(owner).collect::<Vec<_>>()
        });
        let reclaimed = self.writer.reclaim(slot).map(|reclaimed| reclaimed.owners);
        assert_eq!(reclaimed, owners);
        if owners.is_some() {
            self.posted.remove(&slot);
        }
    }

    fn drain(&mut self, seat: usize) {
        let worker = &mut self.workers[seat];
        let mut payload = Vec::new();
        while worker.drain.pop(&mut payload).unwrap().is_some() {
            let task = u64::from_le_bytes(payload[..].try_into().unwrap());
            assert_eq!(Some(task), worker.undrained.pop_front());
            end(&mut self.ends, task, End::Done);
        }
        assert!(worker.undrained.is_empty());
    }

    /// The undertaker's round, and a successor in the seat.
    fn die(&mut self, seat: usize) {
        self.drain(seat);
        let owner = self.workers[seat].owner;
        for (slot, index, phase) in self.writer.owned_by(owner) {
            if phase == Phase::Claimed {
                self.writer.bury(slot, index);
                let (task, place) = &mut self.posted.get_mut(&slot).unwrap()[index as usize];
                *place = Place::Retracted;
                end(&mut self.ends, *task, End::DiedUnstarted);
            }
        }
        for task in self.workers[seat].held.held() {
            end(&mut self.ends, task, End::DiedStarted);
        }
        self.workers[seat] = Worker::new(&self.board, self.owners);
        self.owners += 1;
    }

    fn compare(&self) {
        let waiting: usize = self.lanes.values().map(VecDeque::len).sum();
        assert_eq!(self.writer.unclaimed(usize::MAX), waiting);
        assert_eq!(self.writer.has_unclaimed(true), waiting > 0);
        assert_eq!(self.writer.free_slots() + self.posted.len(), SHAPE.slots as usize);
        assert!(self.writer.posted_slots().eq(self.posted.keys().copied()));
        for worker in &self.workers {
            let held: BTreeSet<_> = worker.held.held().into_iter().collect();
            let running: BTreeSet<_> = worker.running.iter().map(|&(_, task)| task).collect();
            assert_eq!(held, running);
            let owned = self.posted.iter().flat_map(|(&slot, items)| {
                items.iter().zip(0..).filter_map(move |(&(_, place), index)| match place {
                    Place::Owned(owner, phase) if owner == worker.owner => Some((slot, index, phase)),
                    _ => None,
                })
            });
            assert_eq!(self.writer.owned_by(worker.owner), owned.collect::<Vec<_>>());
        }
    }

    /// Lets everything that is left run to its end.
    fn run_out(mut self) {
        for round in 0.. {
            for seat in 0..SEATS {
                self.apply(&Step::Claim(seat));
                self.apply(&Step::Take(seat));
                self.apply(&Step::Drain(seat));
                self.apply(&Step::Finish(seat, 0));
                self.apply(&Step::Drain(seat));
            }
            if self.ends.len() as u64 == self.tasks {
                break;
            }
            assert!(round < self.tasks, "a task never ends");
        }
        for slot in 0..SHAPE.slots {
            self.writer.reclaim(SlotIndex(slot));
        }
        assert_eq!(self.writer.free_slots(), SHAPE.slots as usize);
    }
}

fn has_left(place: Place) -> bool {
    matches!(place, Place::Owned(_, Phase::Taken) | Place::Retracted)
}

fn end(ends: &mut HashMap<u64, End>, task: u64, how: End) {
    assert_eq!(ends.insert(task, how), None, "task {task} ended twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn each_task_is_claimed_in_turn_and_ends_once(steps in proptest::collection::vec(step(), 0..150)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.run_out();
    }
}
