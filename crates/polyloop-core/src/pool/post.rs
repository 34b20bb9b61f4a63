//! Posting: which waiting tasks go into which slot of the board, and what a slot carried when it is free again.

use std::sync::Arc;

use super::{Pool, PoolConfig};
use crate::event::{Output, Place};
use crate::frame::Terms;
use crate::id::{CallId, QueueIndex, TaskId};
use crate::schedule::Pick;
use crate::task::{Submission, Task, TaskState, Wish};

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

    /// A task, and how it is to be run.
    pub fn terms_of(&self, id: TaskId) -> Option<(&Submission, Terms)> {
        let Task { submission, suspect, .. } = self.tasks.get(id)?;
        let large = !self.config.is_inline(submission);
        let attempt = submission.attempt.min(u8::MAX.into()) as u8;
        Some((submission, Terms { large, alone: *suspect, attempt, timeout: submission.timeout }))
    }

    /// Packs one slot full of a call's waiting tasks.
    pub(super) fn post(&mut self, queue: QueueIndex, call: CallId) {
        let mut room = Room::of(&self.config);
        let place = &mut self.queues[usize::from(queue.0)];
        let tasks = place.take(call, |id| match self.tasks.get(id) {
            Some(task) if room.take(&task.submission) => Pick::Take,
            Some(_) => Pick::Stop,
            None => Pick::Drop,
        });
        if !tasks.is_empty() {
            for id in &tasks {
                if let Some(task) = self.tasks.get_mut(*id) {
                    task.state = TaskState::Posting;
                }
            }
            place.reserve(call);
            self.outputs.push_back(Output::Post { queue, call, lane: call.lane(), tasks });
        }
    }

    pub(super) fn reclaimed(&mut self, queue: QueueIndex, slot: u32, owners: &[Option<u16>]) {
        let Some(place) = self.queues.get_mut(usize::from(queue.0)) else {
            return;
        };
        let tasks = place.reclaimed(slot);
        for (index, (id, owner)) in (0..).zip(tasks.into_iter().zip(owners)) {
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            let worker = owner.and_then(|seat| self.workers.seated(seat));
            if let (true, Some(worker)) = (task.state == TaskState::Posted { slot, index }, worker) {
                task.state = TaskState::Taken { worker };
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
    last_function: Option<&'a Arc<[u8]>>,
}

impl<'a> Room<'a> {
    fn of(config: &'a PoolConfig) -> Self {
        Self { config, items: config.slot_items, bytes: config.slot_bytes, last_function: None }
    }

    /// Counts a task in, if it fits. One that is fetched takes no bytes, and leaves no function to share.
    fn take(&mut self, task: &'a Submission) -> bool {
        let inline = self.config.is_inline(task);
        let shares = self.last_function.is_some_and(|last| Arc::ptr_eq(last, &task.function) || *last == task.function);
        let size = match (inline, shares) {
            (false, _) => 0,
            (true, true) => rounded(task.arguments.len()),
            (true, false) => slot_bytes(task),
        };
        let fits = self.items > 0 && size <= self.bytes;
        if fits {
            self.items -= 1;
            self.bytes -= size;
            self.last_function = inline.then_some(&task.function);
        }
        fits
    }
}

impl PoolConfig {
    /// Whether a task's bytes go into the slot. Those of any other are fetched by its worker.
    fn is_inline(&self, task: &Submission) -> bool {
        let bytes = task.function.len() + task.arguments.len();
        bytes <= self.inline_bytes && slot_bytes(task) <= self.slot_bytes
    }
}

/// Bytes that a task takes in a slot when it shares nothing.
fn slot_bytes(task: &Submission) -> usize {
    rounded(task.function.len()) + rounded(task.arguments.len())
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(WORD)
}
