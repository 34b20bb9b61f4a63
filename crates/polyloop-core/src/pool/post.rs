//! Posting: which waiting tasks go into which slot of the board, and what a slot carried when it is free again.

use std::sync::Arc;

use super::{Pool, PoolConfig};
use crate::event::{Output, Place};
use crate::frame::Terms;
use crate::id::{CallId, Moment, QueueIndex, TaskId};
use crate::schedule::Pick;
use crate::task::{Parcel, Task, TaskState, Wish};

const WORD: usize = 8;

impl Pool {
    /// Posts what waits, as far as there is room.
    pub fn flush(&mut self) {
        for queue in 0..self.queues.len() {
            while let Some(call) = self.queues[queue].next_call(|call| self.calls.get(&call).map_or(1, |c| c.weight)) {
                self.post(QueueIndex(queue as u16), call);
            }
        }
    }

    /// The driver's answer to [`Output::Post`].
    pub fn posted(&mut self, queue: QueueIndex, call: CallId, slot: u32, tasks: Vec<TaskId>) {
        for (index, id) in (0..).zip(&tasks) {
            let Some(task) = self.tasks.get_mut(*id) else {
                continue;
            };
            task.state = TaskState::Posted { slot, index };
            if task.wish != Wish::Run {
                self.outputs.push_back(Output::Retract { task: *id, place: Place { queue, slot, index } });
            }
        }
        self.queues[usize::from(queue.0)].posted(slot, call, tasks);
    }

    /// What goes to a worker for a task.
    pub fn parcel_of(&self, id: TaskId) -> Option<Parcel<'_>> {
        let task = self.tasks.get(id)?;
        let Task { brief, arguments, suspect, .. } = task;
        let attempt = task.attempt.min(u8::MAX.into()) as u8;
        let (large, kept) = (!self.config.is_inline(task), task.retries > 0);
        let terms = Terms { large, alone: *suspect, kept, attempt, timeout: brief.timeout };
        Some(Parcel { function: &brief.function, arguments, terms })
    }

    /// Packs one slot full of a call's waiting tasks.
    pub(super) fn post(&mut self, queue: QueueIndex, call: CallId) {
        let items = self.chunk(queue, call);
        let mut room = Room::of(&self.config, items);
        let place = &mut self.queues[usize::from(queue.0)];
        let tasks = place.take(call, |id| match self.tasks.get_mut(id) {
            Some(task) if room.take(task) => {
                task.state = TaskState::Posting;
                Pick::Take
            }
            Some(_) => Pick::Stop,
            None => Pick::Drop,
        });
        if !tasks.is_empty() {
            place.reserve(call);
            self.outputs.push_back(Output::Post { queue, call, lane: call.lane(), tasks });
        }
    }

    /// How many tasks of a call are to go into its next slot.
    fn chunk(&mut self, queue: QueueIndex, call: CallId) -> u32 {
        let PoolConfig { processes, queues, concurrency, slot_items, .. } = self.config;
        let workers = u32::from(processes.div_ceil(queues));
        let least = (workers * concurrency).div_ceil(self.queues[usize::from(queue.0)].share());
        let chunk = self.calls.get_mut(&call).map(|call| call.chunk.items(self.seen, processes.into(), least));
        chunk.map_or(slot_items, |items| items.min(slot_items))
    }

    pub(super) fn reclaimed(&mut self, now: Moment, queue: QueueIndex, slot: u32, owners: &[Option<u16>]) {
        let Some(place) = self.queues.get_mut(usize::from(queue.0)) else {
            return;
        };
        let tasks = place.reclaimed(slot);
        for (index, (id, owner)) in (0..).zip(tasks.into_iter().zip(owners)) {
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            if task.state != (TaskState::Posted { slot, index }) {
                continue;
            }
            match owner.and_then(|seat| self.workers.seated(seat)) {
                Some(worker) => task.state = TaskState::Taken { worker },
                // Neither taken back from here nor taken by anybody who is there: the board is damaged.
                None => self.bereave_of_nobody(now, id, *owner),
            }
        }
    }
}

/// What still fits into a slot that is being packed.
struct Room<'a> {
    config: &'a PoolConfig,
    items: u32,
    bytes: usize,
    /// The function before, which an equal one shares.
    last_function: Option<Arc<[u8]>>,
}

impl<'a> Room<'a> {
    fn of(config: &'a PoolConfig, items: u32) -> Self {
        Self { config, items, bytes: config.slot_bytes, last_function: None }
    }

    /// Counts a task in, if it fits. One that is fetched takes no bytes, and leaves no function to share.
    fn take(&mut self, task: &Task) -> bool {
        let inline = self.config.is_inline(task);
        let function = &task.brief.function;
        let shares = self.last_function.as_ref().is_some_and(|last| Arc::ptr_eq(last, function) || last == function);
        let size = match (inline, shares) {
            (false, _) => 0,
            (true, true) => rounded(task.arguments.len()),
            (true, false) => slot_bytes(task),
        };
        let fits = self.items > 0 && size <= self.bytes;
        if fits {
            self.items -= 1;
            self.bytes -= size;
            if !(inline && shares) {
                self.last_function = inline.then(|| Arc::clone(function));
            }
        }
        fits
    }
}

impl PoolConfig {
    /// Whether a task's bytes go into the slot. Those of any other are fetched by its worker.
    pub(super) fn is_inline(&self, task: &Task) -> bool {
        let bytes = task.brief.function.len() + task.arguments.len();
        task.arguments.luggage().is_none() && bytes <= self.inline_bytes && slot_bytes(task) <= self.slot_bytes
    }
}

/// Bytes that a task takes in a slot when it shares nothing.
fn slot_bytes(task: &Task) -> usize {
    rounded(task.brief.function.len()) + rounded(task.arguments.len())
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(WORD)
}
