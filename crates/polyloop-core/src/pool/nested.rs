//! Calls of the pool by its own tasks. Such a call is a task like any other; what comes of it goes to the worker that asked.
//!
//! The calls of one task are a brood: one call among those that queues are fair between. It outlives a task that returns
//! or raises, and is cancelled with one that ends in any other way.

use std::collections::BTreeMap;

use super::{Call, Mode, Pool};
use crate::chunk::Chunk;
use crate::event::{Output, Refused};
use crate::id::{CallId, Moment, NestedId, TaskId, WorkerId};
use crate::nested::Ask;
use crate::payload::Payload;
use crate::task::{OnDeath, Outcome, Submission, TaskState, Wish};

/// Which tasks have made calls, and which calls are whose.
#[derive(Debug, Default)]
pub(super) struct Broods {
    by_task: BTreeMap<TaskId, CallId>,
    /// The tasks that were made of calls, until they are answered.
    by_number: BTreeMap<(WorkerId, NestedId), TaskId>,
    /// Those whose tasks have ended in such a way that they are to be cancelled.
    forsaken: Vec<CallId>,
}

impl Broods {
    /// Whether no task that lives has made a call.
    pub(super) fn is_empty(&self) -> bool {
        self.by_task.is_empty()
    }

    /// Whether this task has made a call, in its present run.
    pub(super) fn has(&self, task: TaskId) -> bool {
        self.by_task.contains_key(&task)
    }
}

impl Pool {
    /// A task that `worker` runs calls the pool. The answer comes as [`Output::Answer`], or from
    /// [`Self::returned_nested`], whatever becomes of it. Returns the task that was made of it, if it was accepted.
    pub fn ask(&mut self, worker: WorkerId, caller: TaskId, number: NestedId, ask: &Payload) -> Option<TaskId> {
        let accepted = self.try_ask(worker, caller, number, ask);
        if let Err(outcome) = &accepted {
            self.outputs.push_back(Output::Answer { worker, number, outcome: outcome.clone() });
        }
        accepted.ok()
    }

    /// Nobody waits any more for the answer to a call: cancels it, if it has not been answered.
    pub fn withdraw(&mut self, now: Moment, worker: WorkerId, number: NestedId) {
        if let Some(id) = self.broods.by_number.get(&(worker, number)) {
            self.cancel(now, *id);
        }
    }

    fn try_ask(
        &mut self,
        worker: WorkerId,
        caller: TaskId,
        number: NestedId,
        ask: &Payload,
    ) -> Result<TaskId, Outcome> {
        match &self.mode {
            Mode::Open | Mode::Closing => (),
            Mode::Terminating => return Err(Outcome::Terminated),
            Mode::Broken(error) => return Err(Outcome::NoWorkers(error.clone())),
        }
        let task = self.tasks.get_mut(caller).ok_or(Outcome::Cancelled)?;
        // One that is being cancelled may need the pool to clean up.
        if matches!(task.state, TaskState::Judged { .. }) || matches!(task.wish, Wish::Forget { .. }) {
            return Err(Outcome::Cancelled);
        }
        if let TaskState::Posted { .. } = task.state {
            task.state = TaskState::Taken { worker };
        }
        let queue = task.brief.queue;
        let Some(asked) = Ask::parse(ask) else { return Err(Outcome::Cancelled) };
        let call = self.brood(worker, caller, asked.is_loose);
        let Ask { retries, retry_deaths, attempt, timeout, function, arguments, .. } = asked;
        let arguments = Payload::from_slice(arguments).with(ask.luggage().cloned());
        let token = number.0.into();
        let (function, judged, is_stream) = (function.into(), false, false);
        let submission = Submission {
            call,
            queue,
            function,
            arguments,
            retries,
            on_death: OnDeath::again_if(retry_deaths),
            judged,
            is_stream,
            attempt,
            timeout,
            token,
        };
        let accepted = self.submit(submission);
        if asked.is_loose {
            self.close_call(call);
        }
        match accepted {
            Ok(id) => {
                self.broods.by_number.insert((worker, number), id);
                Ok(id)
            }
            Err(Refused::Closed) => Err(Outcome::Terminated),
            Err(Refused::NoWorkers(error)) => Err(Outcome::NoWorkers(error)),
        }
    }

    /// The call that a task's calls belong to.
    fn brood(&mut self, worker: WorkerId, caller: TaskId, is_loose: bool) -> CallId {
        if let Some(call) = self.broods.by_task.get(&caller).filter(|_| !is_loose) {
            return *call;
        }
        let chunk = Chunk::measured(self.seen);
        let entry = Call { open: true, unfinished: 0, weight: 1, chunk, asker: Some(worker) };
        let call = self.new_call(CallId::NESTED, entry);
        if !is_loose {
            self.broods.by_task.insert(caller, call);
        }
        call
    }

    /// What [`Self::returned`] left undone for a task that was submitted by a task: the worker to be told, if it is there.
    pub fn returned_nested(&mut self, call: CallId, token: u64) -> Option<(WorkerId, NestedId)> {
        let number = NestedId(token as u32);
        let asker = self.calls.get(&call).and_then(|call| call.asker);
        if let Some(worker) = asker {
            self.broods.by_number.remove(&(worker, number));
        }
        self.answered(call);
        asker.map(|worker| (worker, number))
    }

    pub(super) fn answer_nested(&mut self, call: CallId, number: NestedId, outcome: Outcome) {
        if let Some((worker, number)) = self.returned_nested(call, number.0.into()) {
            self.outputs.push_back(Output::Answer { worker, number, outcome });
        }
    }

    /// A task has ended by itself: its calls go on.
    #[cold]
    pub(super) fn release(&mut self, id: TaskId) {
        if let Some(call) = self.broods.by_task.remove(&id) {
            self.close_call(call);
        }
    }

    /// A task has ended in another way, or is about to be run again: its calls are to be cancelled.
    pub(super) fn forsake(&mut self, id: TaskId) {
        if let Some(call) = self.broods.by_task.remove(&id) {
            self.broods.forsaken.push(call);
        }
    }

    pub(super) fn cancel_forsaken(&mut self, now: Moment) {
        for call in std::mem::take(&mut self.broods.forsaken) {
            match self.calls.get(&call).map_or(0, |call| call.unfinished) {
                0 => self.close_call(call),
                _ => self.cancel_call(now, call),
            }
        }
    }

    /// A worker is gone: nobody waits for the answers to what it has asked.
    pub(super) fn forget_asker(&mut self, worker: WorkerId) {
        self.broods.by_number.retain(|(asker, _), _| *asker != worker);
        let calls = self.calls.values_mut().filter(|call| call.asker == Some(worker));
        calls.for_each(|call| call.asker = None);
    }

    fn close_call(&mut self, call: CallId) {
        if let Some(entry) = self.calls.get_mut(&call) {
            entry.open = false;
        }
        self.settle_call(call);
    }
}
