//! The pool manager: which task runs when, what becomes of it, and which workers live.
//!
//! A deterministic state machine. The caller submits and cancels; the driver reports what happened with
//! [`Pool::handle`] and carries out what [`Pool::poll_output`] says, until it says no more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::nested::Broods;
use crate::chunk::Chunk;
use crate::conduct::Standing;
use crate::event::{Input, Output, Place, Refused, Report};
use crate::id::{CallId, Moment, NestedId, QueueIndex, TaskId, WorkerId};
use crate::payload::Payload;
use crate::schedule::Queue;
use crate::stats::{Cause, Counts};
use crate::supervise::{StartError, State, Supervisor};
use crate::task::{Brief, Outcome, Submission, Task, TaskState, TaskTable, Wish};

mod cancel;
mod change;
mod nested;
mod post;
mod recycle;
mod staff;
mod streams;
mod undertake;

/// The shape of a pool. Fixed for its life.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Worker processes, at least 1.
    pub processes: u16,
    /// Task queues, each with workers of its own; at most as many as processes.
    pub queues: u16,
    /// Places for workers, including room for successors that start before their predecessors are gone.
    pub seats: u16,
    /// Slots of each queue's board.
    pub slots: u32,
    /// Items that go into one slot, at most.
    pub slot_items: u32,
    /// Items that a worker runs at the same time.
    pub concurrency: u32,
    /// Bytes that go into one slot.
    pub slot_bytes: usize,
    /// Function and arguments above this many bytes do not go into a slot; the worker fetches them.
    pub inline_bytes: usize,
    /// How long whoever is asked to end may take.
    pub grace: Duration,
    /// How old a worker may become before it is replaced; up to a tenth earlier.
    pub max_age: Option<Duration>,
    /// Whether the successor of a worker may be started before that is gone.
    pub overlap: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A worker has not let go of a cancelled task.
    CancelGrace(TaskId),
    /// A worker that was told to end is killed.
    Kill(WorkerId),
    /// A worker is as old as it may become.
    Age(WorkerId),
    /// A start that was put off may be tried.
    Start,
}

#[derive(Debug)]
struct Call {
    open: bool,
    unfinished: usize,
    weight: u32,
    chunk: Chunk,
    /// The worker that is told what comes of its tasks, where it was one that submitted them.
    asker: Option<WorkerId>,
}

impl Call {
    fn is_over(&self) -> bool {
        !self.open && self.unfinished == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Closing,
    Terminating,
    Broken(StartError),
}

/// The pool manager's decisions.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    mode: Mode,
    tasks: TaskTable,
    calls: BTreeMap<CallId, Call>,
    last_call: u32,
    queues: Vec<Queue>,
    workers: Supervisor,
    /// Workers that are still to be replaced, one after the other.
    renewed: BTreeSet<WorkerId>,
    timers: BTreeSet<(Moment, Timer)>,
    outputs: VecDeque<Output>,
    /// The calls that tasks have made.
    broods: Broods,
    /// Tasks whose callers have not been told.
    unanswered: usize,
    counts: Counts,
    /// When something happened last.
    seen: Moment,
    /// Whether [`Output::Closed`] has been said.
    over: bool,
}

impl Pool {
    /// A pool whose workers are about to be started.
    ///
    /// # Panics
    /// When there are no processes or queues, or fewer seats or processes than needed: an error in the caller.
    pub fn new(config: PoolConfig) -> Self {
        assert!(config.queues >= 1 && config.processes >= config.queues, "every queue needs a worker");
        assert!(config.seats >= config.processes, "every worker needs a seat");
        let chunk = Chunk::fixed(config.slot_items);
        let singles = Call { open: true, unfinished: 0, weight: 1, chunk, asker: None };
        let mut pool = Self {
            mode: Mode::Open,
            tasks: TaskTable::default(),
            calls: BTreeMap::from([(CallId::SINGLES, singles)]),
            last_call: 0,
            queues: (0..config.queues).map(|_| Queue::new(config.slots)).collect(),
            workers: Supervisor::new(config.processes, config.queues, config.seats, config.overlap),
            renewed: BTreeSet::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            broods: Broods::default(),
            unanswered: 0,
            counts: Counts::default(),
            seen: Moment::ZERO,
            over: false,
            config,
        };
        pool.start_workers(Moment::ZERO);
        pool
    }

    /// Opens a call: tasks that belong together and are submitted as room appears. It counts as accepted work until
    /// [`Self::end_call`]. Of two calls, the one with twice the weight gets twice the slots. So many items as `chunk` says go
    /// into one slot, as far as it takes them; `None` for as many as suit what they turn out to cost.
    ///
    /// # Errors
    /// [`Refused`] when the pool takes no new work.
    pub fn open_call(&mut self, weight: u32, chunk: Option<u32>) -> Result<CallId, Refused> {
        self.check_open()?;
        let chunk = chunk.map_or_else(|| Chunk::measured(self.seen), Chunk::fixed);
        Ok(self.new_call(0, Call { open: true, unfinished: 0, weight, chunk, asker: None }))
    }

    /// Gives a call a number that no other has, of this kind.
    fn new_call(&mut self, kind: u32, entry: Call) -> CallId {
        loop {
            self.last_call = self.last_call.wrapping_add(1) & (CallId::NESTED - 1);
            let call = CallId(self.last_call | kind);
            if ![CallId::SINGLES, CallId::SUSPECTS].contains(&call) && !self.calls.contains_key(&call) {
                self.calls.insert(call, entry);
                return call;
            }
        }
    }

    /// No more tasks will be submitted to this call.
    pub fn end_call(&mut self, now: Moment, call: CallId) {
        if call == CallId::SINGLES {
            return;
        }
        if let Some(entry) = self.calls.get_mut(&call) {
            entry.open = false;
        }
        self.settle_call(call);
        self.finish_if_done(now);
    }

    /// Accepts a task. It goes to the board with the next [`Self::flush`]. A queue that does not exist means the last.
    ///
    /// # Errors
    /// [`Refused`] when the pool takes no new work, except for a call that was open before, and when the call has ended.
    pub fn submit(&mut self, mut submission: Submission) -> Result<TaskId, Refused> {
        let arguments = std::mem::take(&mut submission.arguments);
        let mut accepted = None;
        self.accept(submission, [arguments], |id| accepted = Some(id))?;
        accepted.ok_or(Refused::Closed)
    }

    /// Accepts tasks that differ from `first` in nothing but their arguments and their tokens, which count up from its
    /// own. Its arguments are not used. All are accepted, or none.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_run(
        &mut self,
        first: Submission,
        arguments: impl IntoIterator<Item = Payload>,
    ) -> Result<(), Refused> {
        self.accept(first, arguments, |_| ())
    }

    fn accept(
        &mut self,
        first: Submission,
        arguments: impl IntoIterator<Item = Payload>,
        mut accepted: impl FnMut(TaskId),
    ) -> Result<(), Refused> {
        let Submission { call, queue, function, retries, on_death, judged, is_stream, .. } = first;
        let Submission { attempt, timeout, token, .. } = first;
        if call == CallId::SINGLES || self.mode != Mode::Closing {
            self.check_open()?;
        }
        let queue = queue.min(QueueIndex(self.config.queues - 1));
        let entry = self.calls.get_mut(&call).filter(|call| call.open).ok_or(Refused::Closed)?;
        let brief = Arc::new(Brief { call, queue, function, on_death, judged, is_stream, timeout });
        let tasks = &mut self.tasks;
        let ids = (token..).zip(arguments).map(|(token, arguments)| {
            let id = tasks.insert(Task::new(Arc::clone(&brief), arguments, token, retries, attempt));
            accepted(id);
            id
        });
        let count = self.queues[usize::from(queue.0)].push(call, ids);
        entry.unfinished += count;
        self.unanswered += count;
        Ok(())
    }

    /// Takes no new work, finishes what was accepted, then ends.
    pub fn close(&mut self, now: Moment) {
        if self.mode == Mode::Open {
            self.mode = Mode::Closing;
            self.finish_if_done(now);
        }
    }

    /// Ends every task and every worker now. Workers get the grace to leave, then they are killed.
    pub fn terminate(&mut self, now: Moment) {
        if matches!(self.mode, Mode::Open | Mode::Closing) {
            let is_wanted = |task: &Task| task.wish == Wish::Run && !task.brief.call.is_nested();
            let wanted = self.tasks.iter().filter(|(_, task)| is_wanted(task)).count();
            if wanted > 0 {
                self.outputs.push_back(Output::Report(Report::Terminated(wanted)));
            }
            self.mode = Mode::Terminating;
            self.end_all(now, &Outcome::Terminated);
        }
    }

    /// Takes note of something that happened.
    pub fn handle(&mut self, now: Moment, input: Input) {
        match input {
            Input::Started { worker, pid } => self.started(now, worker, pid),
            Input::NotStarted { worker, error } => self.not_started(now, worker, error),
            Input::Ready(worker) => self.ready(now, worker),
            Input::Failed { worker, error } => {
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.error = Some(StartError::Raised(error.into()));
                }
            }
            Input::Retiring { worker, cause } => self.retiring(now, worker, cause),
            Input::Garbage(worker) => self.blame(worker, Cause::Garbage),
            Input::Outcome { worker, task, outcome } => self.outcome(now, worker, task, outcome),
            Input::Retracted(task) => self.retracted(now, task),
            Input::Owned { task, seat } => self.owned(now, task, seat),
            Input::Reclaimed { queue, slot, owners } => self.reclaimed(now, queue, slot, &owners),
            Input::Exited(dead) => self.exited(now, &dead),
            Input::Timeout => (),
        }
        self.expire(now);
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle`] with [`Input::Timeout`], if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Tasks that have not ended for their callers.
    pub fn unfinished(&self) -> usize {
        self.unanswered
    }

    /// Whether tasks wait that are not on the board.
    pub fn has_waiting(&self, queue: QueueIndex) -> bool {
        self.queues[usize::from(queue.0)].has_waiting()
    }

    /// What a worker has to do with a task that it speaks of. `taken_by` says who has taken what stands at a place.
    pub fn standing(&self, worker: WorkerId, id: TaskId, taken_by: impl FnOnce(Place) -> Option<u16>) -> Standing {
        let Some(task) = self.tasks.get(id) else { return Standing::Over };
        let holds = match task.state {
            // It has ended there, and waits for the host's word.
            TaskState::Judged { .. } => return Standing::Over,
            TaskState::Taken { worker: owner } => owner == worker,
            TaskState::Posted { slot, index } => {
                taken_by(Place { queue: task.brief.queue, slot, index }) == Some(worker.seat)
            }
            TaskState::Waiting | TaskState::Posting => false,
        };
        if holds { Standing::Holds { large: !self.config.is_inline(task) } } else { Standing::Stranger }
    }

    /// What the pool is doing.
    pub fn state(&self) -> State {
        match self.mode {
            _ if self.over => State::Closed,
            Mode::Terminating | Mode::Broken(_) => State::Terminating,
            Mode::Closing => State::Closing,
            Mode::Open if self.workers.is_failing() => State::Degraded,
            Mode::Open if !self.workers.ever_ready() => State::Starting,
            Mode::Open => State::Running,
        }
    }

    fn check_open(&self) -> Result<(), Refused> {
        match &self.mode {
            Mode::Open => Ok(()),
            Mode::Broken(error) => Err(Refused::NoWorkers(error.clone())),
            Mode::Closing | Mode::Terminating => Err(Refused::Closed),
        }
    }

    /// A task returned in a worker: the same as [`Input::Outcome`] with a value, for many in a row. Gives the call and the
    /// token of the caller who is to be told, if there is one. Call [`Self::returned_all`] after the last. Where the call
    /// is a nested one, go on with [`Self::returned_nested`].
    pub fn returned(&mut self, worker: WorkerId, id: TaskId) -> Option<(CallId, u64)> {
        if !self.may_come_from(worker, id) {
            return None;
        }
        if !self.broods.is_empty() {
            self.release(id);
        }
        let (call, token) = self.take_out(id)?;
        self.counts.done += 1;
        if call.is_nested() {
            return Some((call, token));
        }
        self.answered(call);
        Some((call, token))
    }

    /// What [`Self::returned`] left undone: the pool may be done, and time has passed.
    pub fn returned_all(&mut self, now: Moment) {
        self.finish_if_done(now);
        self.expire(now);
    }

    fn outcome(&mut self, now: Moment, worker: WorkerId, id: TaskId, outcome: Outcome) {
        if self.may_come_from(worker, id) {
            self.judge(now, id, outcome);
        }
    }

    /// Counts an outcome for its worker, unless that does not have the task: then the frame comes late, or from a
    /// confused process.
    fn may_come_from(&mut self, worker: WorkerId, id: TaskId) -> bool {
        let has_it = match self.tasks.get(id).map(|task| task.state) {
            Some(TaskState::Taken { worker: owner }) => owner == worker,
            Some(TaskState::Posted { .. }) => true,
            Some(TaskState::Posting | TaskState::Waiting | TaskState::Judged { .. }) | None => false,
        };
        match self.workers.get_mut(worker) {
            Some(sender) if has_it => {
                sender.done += 1;
                true
            }
            _ => false,
        }
    }

    /// Ends a task, or asks the host first.
    fn judge(&mut self, now: Moment, id: TaskId, outcome: Outcome) {
        if self.tasks.get(id).is_some_and(|task| task.is_judged(&outcome)) {
            self.ask_host(id, outcome, 1);
            self.cancel_forsaken(now);
        } else {
            self.finish(now, id, outcome);
        }
    }

    /// Has the host say whether a task ends so, or runs again at this cost.
    fn ask_host(&mut self, id: TaskId, outcome: Outcome, cost: u32) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.state = TaskState::Judged { cost };
            self.outputs.push_back(Output::Judge { task: id, call: task.brief.call, token: task.token, outcome });
            self.forsake(id);
        }
    }

    /// The host's answer to [`Output::Judge`]: run it again, under the id that is returned, as its worker may have more to
    /// say of this run. With another form of its function, this run does not count. `None` if the task was no longer
    /// there to be judged.
    pub fn again(&mut self, id: TaskId, function: Option<Arc<[u8]>>) -> Option<TaskId> {
        let task = self.tasks.get_mut(id)?;
        let TaskState::Judged { cost } = task.state else { return None };
        match function {
            Some(function) => Arc::make_mut(&mut task.brief).function = function,
            None => {
                task.retries = task.retries.saturating_sub(cost);
                task.attempt += 1;
                self.counts.retried += 1;
            }
        }
        let id = self.tasks.renew(id)?;
        self.give_back(id);
        Some(id)
    }

    /// The host's answer to [`Output::Judge`]: the outcome stands, and the caller has it. Says whether the task was still
    /// there to be judged.
    pub fn settled(&mut self, now: Moment, id: TaskId) -> bool {
        if self.tasks.get(id).is_none_or(|task| !matches!(task.state, TaskState::Judged { .. })) {
            return false;
        }
        if let Some(task) = self.tasks.remove(id) {
            self.counts.failed += 1;
            self.answered(task.brief.call);
        }
        self.finish_if_done(now);
        true
    }

    fn finish(&mut self, now: Moment, id: TaskId, outcome: Outcome) {
        self.end(id, outcome);
        self.finish_if_done(now);
    }

    /// Ends a task. Whoever calls this asks afterwards whether the pool is done.
    fn end(&mut self, id: TaskId, outcome: Outcome) {
        match outcome {
            _ if self.broods.is_empty() => (),
            Outcome::Value(_) | Outcome::Raised(_) => self.release(id),
            _ => self.forsake(id),
        }
        if let Some((call, token)) = self.take_out(id) {
            self.counts.ended(&outcome);
            self.answer(id, call, token, outcome);
        }
    }

    /// Forgets a task. Gives the call and the token of its caller, if that is still to be told.
    fn take_out(&mut self, id: TaskId) -> Option<(CallId, u64)> {
        let task = self.tasks.remove(id)?;
        if let Wish::Cancel { until } | Wish::Forget { until } = task.wish {
            self.timers.remove(&(until, Timer::CancelGrace(id)));
        }
        task.is_awaited().then_some((task.brief.call, task.token))
    }

    fn answer(&mut self, task: TaskId, call: CallId, token: u64, outcome: Outcome) {
        if call.is_nested() {
            return self.answer_nested(call, NestedId(token as u32), outcome);
        }
        self.answered(call);
        self.outputs.push_back(Output::Deliver { task, call, token, outcome });
    }

    fn answered(&mut self, call: CallId) {
        self.unanswered -= 1;
        if let Some(entry) = self.calls.get_mut(&call) {
            entry.unfinished -= 1;
            entry.chunk.ended();
            if entry.is_over() {
                self.calls.remove(&call);
            }
        }
    }

    fn settle_call(&mut self, call: CallId) {
        if self.calls.get(&call).is_some_and(Call::is_over) {
            self.calls.remove(&call);
        }
    }

    fn expire(&mut self, now: Moment) {
        self.seen = now;
        while let Some((_, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            match timer {
                Timer::CancelGrace(id) => self.cancel_overdue(now, id),
                Timer::Kill(worker) if self.workers.get(worker).is_some() => {
                    self.outputs.push_back(Output::Kill { worker, gently: false });
                }
                Timer::Kill(_) => (),
                Timer::Age(worker) => self.aged(now, worker),
                Timer::Start => self.start_workers(now),
            }
        }
    }
}
