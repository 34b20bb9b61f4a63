//! Which waiting task goes to the board next: fair between calls, in order within each.
//!
//! A queue gives its calls turns, one slot at a time and as many slots as the call's weight; no call may hold more
//! than its share of the slots, so that a million-item map leaves room for a single `apply`.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{CallId, TaskId};

/// What to do with the next waiting task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Take,
    /// It is no longer wanted.
    Drop,
    /// The slot is full.
    Stop,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<TaskId>,
    posted_slots: u32,
    /// Slots it may still post in this turn; 0 before its turn.
    credit: u32,
}

#[derive(Debug)]
struct PostedSlot {
    call: CallId,
    tasks: Vec<TaskId>,
}

/// One inter-process task queue as the manager sees it: what waits for it, and what its slots carry.
#[derive(Debug)]
pub(crate) struct Queue {
    lanes: BTreeMap<CallId, Lane>,
    /// Calls with waiting tasks, in the order of their turns.
    turns: VecDeque<CallId>,
    slots: Vec<Option<PostedSlot>>,
    free_slots: u32,
}

impl Queue {
    pub(crate) fn new(slots: u32) -> Self {
        let empty = (0..slots).map(|_| None).collect();
        Self { lanes: BTreeMap::new(), turns: VecDeque::new(), slots: empty, free_slots: slots }
    }

    /// Has tasks wait. Says how many.
    pub(crate) fn push(&mut self, call: CallId, tasks: impl Iterator<Item = TaskId>) -> usize {
        let mut tasks = tasks.peekable();
        if tasks.peek().is_none() {
            return 0;
        }
        let waiting = &mut self.lane(call).waiting;
        let before = waiting.len();
        waiting.extend(tasks);
        waiting.len() - before
    }

    /// For a task that comes back: it was first once, and is first again.
    pub(crate) fn push_front(&mut self, call: CallId, task: TaskId) {
        self.lane(call).waiting.push_front(task);
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Slots that one call may hold now.
    pub(crate) fn share(&self) -> u32 {
        (self.slots.len() as u32 / (self.turns.len() as u32 + 1)).max(1)
    }

    /// The call whose turn it is to post a slot, if any may.
    pub(crate) fn next_call(&mut self, weight: impl Fn(CallId) -> u32) -> Option<CallId> {
        let share = self.share();
        for _ in 0..self.turns.len() {
            let call = *self.turns.front()?;
            let lane = self.lanes.get_mut(&call)?;
            let may_post = self.free_slots > 0 && lane.posted_slots < share;
            if may_post {
                let credit = if lane.credit == 0 { weight(call).max(1) } else { lane.credit };
                lane.credit = credit - 1;
            }
            if !may_post || lane.credit == 0 {
                self.turns.rotate_left(1);
            }
            if may_post {
                return Some(call);
            }
        }
        None
    }

    /// Takes waiting tasks of `call` from the front, as `pick` says.
    pub(crate) fn take(&mut self, call: CallId, mut pick: impl FnMut(TaskId) -> Pick) -> Vec<TaskId> {
        let mut taken = Vec::new();
        let Some(lane) = self.lanes.get_mut(&call) else {
            return taken;
        };
        while let Some(&task) = lane.waiting.front() {
            match pick(task) {
                Pick::Take => taken.push(task),
                Pick::Drop => (),
                Pick::Stop => break,
            }
            lane.waiting.pop_front();
        }
        self.settle(call);
        taken
    }

    /// Forgets what waits.
    pub(crate) fn forget_waiting(&mut self) {
        self.turns.clear();
        self.lanes.retain(|_, lane| {
            lane.waiting.clear();
            lane.posted_slots > 0
        });
    }

    /// Reserves the room for one slot that is about to be posted.
    pub(crate) fn reserve(&mut self, call: CallId) {
        self.free_slots -= 1;
        self.lanes.entry(call).or_default().posted_slots += 1;
    }

    pub(crate) fn posted(&mut self, slot: u32, call: CallId, tasks: Vec<TaskId>) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(PostedSlot { call, tasks });
        }
    }

    /// Forgets a slot that is free again, and says what it carried.
    pub(crate) fn reclaimed(&mut self, slot: u32) -> Vec<TaskId> {
        let Some(PostedSlot { call, tasks }) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return Vec::new();
        };
        self.free_slots += 1;
        if let Some(lane) = self.lanes.get_mut(&call) {
            lane.posted_slots -= 1;
        }
        self.settle(call);
        tasks
    }

    pub(crate) fn task_at(&self, slot: u32, index: u32) -> Option<TaskId> {
        self.slots.get(slot as usize)?.as_ref()?.tasks.get(index as usize).copied()
    }

    fn lane(&mut self, call: CallId) -> &mut Lane {
        let lane = self.lanes.entry(call).or_default();
        if lane.waiting.is_empty() {
            self.turns.push_back(call);
        }
        lane
    }

    /// Ends the turns of a call that waits for nothing more, and forgets it once it holds no slot.
    fn settle(&mut self, call: CallId) {
        let Some(lane) = self.lanes.get(&call) else {
            return;
        };
        if lane.waiting.is_empty() {
            let idle = lane.posted_slots == 0;
            self.turns.retain(|&turn| turn != call);
            if idle {
                self.lanes.remove(&call);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(index: u32) -> TaskId {
        TaskId { index, generation: 1 }
    }

    fn post_all(queue: &mut Queue, weight: impl Fn(CallId) -> u32 + Copy, per_slot: usize) -> Vec<CallId> {
        let mut order = Vec::new();
        while let Some(call) = queue.next_call(weight) {
            let mut room = per_slot;
            let tasks = queue.take(call, |_| {
                let pick = if room > 0 { Pick::Take } else { Pick::Stop };
                room = room.saturating_sub(1);
                pick
            });
            queue.reserve(call);
            queue.posted(order.len() as u32, call, tasks);
            order.push(call);
        }
        order
    }

    #[test]
    fn calls_take_turns_and_a_large_one_leaves_room() {
        let mut queue = Queue::new(8);
        queue.push(CallId(1), (0..100).map(task));
        assert_eq!(post_all(&mut queue, |_| 1, 2).len(), 4, "half of the slots stay free for others");
        queue.push(CallId(2), [task(200)].into_iter());
        assert_eq!(queue.next_call(|_| 1), Some(CallId(2)));
    }

    #[test]
    fn a_weight_gives_more_slots_in_a_turn() {
        let mut queue = Queue::new(64);
        queue.push(CallId(1), (0..50).map(task));
        queue.push(CallId(2), (100..150).map(task));
        let order = post_all(&mut queue, |call| if call == CallId(1) { 3 } else { 1 }, 1);
        let heavy = order[..12].iter().filter(|&&call| call == CallId(1)).count();
        assert!((8..=10).contains(&heavy), "{order:?}");
    }

    #[test]
    fn a_reclaimed_slot_says_what_it_carried_and_makes_room() {
        let mut queue = Queue::new(2);
        queue.push(CallId(1), (0..3).map(task));
        assert_eq!(post_all(&mut queue, |_| 1, 2).len(), 1);
        assert_eq!(queue.task_at(0, 1), Some(task(1)));
        assert_eq!(queue.reclaimed(0), [task(0), task(1)]);
        assert_eq!(queue.reclaimed(0), []);
        assert_eq!(queue.next_call(|_| 1), Some(CallId(1)));
    }
}
