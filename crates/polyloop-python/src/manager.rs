//! The client's side for Python: takes tasks in, and completes futures and maps as outcomes come back.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use polyloop::{
    CallId, Cause, Driver, DriverConfig, Event, Luggage, MAX_REPLY, Outcome, Payload, QueueIndex, Refused, Report,
    Stage, State, Submission, TaskId, Values, WorkerId,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::apart::{Inbox, Outbox};
use crate::apply::ApplyCall;
use crate::codec::Codec;
use crate::errors;
use crate::map::{MapCall, Opening, is_stop_iteration};
use crate::options::TaskOptions;
use crate::pending::{Pending, PendingTable, Target};
use crate::reference::travels_by_name;

/// How long one drain may spend on completing what has come back.
const DELIVERY_BUDGET: Duration = Duration::from_millis(2);
/// Deliveries between two looks at the clock.
const DELIVERIES_PER_LOOK: usize = 32;
/// Arguments up to this many bytes are written into a buffer that is used again.
const BUFFER_MAX: usize = 4096;
/// Functions whose references are remembered.
const REFERENCES_MAX: usize = 256;

/// Applies that are submitted together.
const PORTION: usize = 256;

#[derive(Default)]
struct FlushDue {
    scheduled: bool,
    submitted: usize,
}

/// An item of a map, ready to be submitted.
pub(crate) struct Prepared {
    arguments: Payload,
    queue: QueueIndex,
    /// What the scheduler knows it by.
    scheduled_as: u64,
}

impl Prepared {
    /// Whether it holds memory of which there is not much.
    pub(crate) fn is_large(&self) -> bool {
        self.arguments.luggage().is_some()
    }
}
/// The value of an item, or its exception.
pub(crate) type ItemResult = Result<Py<PyAny>, Py<PyAny>>;

/// What is known of a function that was sent before.
enum Reference {
    ByName(Arc<[u8]>),
    /// Workers can't import it: it is taken as it is, anew for each call.
    ByValue,
}

/// The scheduler that chooses the queue of each task, where there is a choice.
struct Scheduler {
    schedule: Py<PyAny>,
    complete: Py<PyAny>,
    /// Queue ids as the scheduler gave them, by our index.
    queue_ids: Vec<Py<PyAny>>,
}

/// The pool manager in the client: one descriptor to watch, `drain` to call when it is readable.
///
/// Parameters:
///     processes, queues, concurrency, max_tasks: the pool's shape; max_tasks 0 means no limit.
///     max_memory: bytes of its own that a worker may hold before it is replaced; 0 means no limit.
///     max_age_s: how old a worker may become before it is replaced, in seconds; None for no limit.
///     overlap: whether the successor of a worker may be started before that is gone.
///     block_warning_s: how long a worker's loop may be blocked before that is told, in seconds; None for ever.
///     grace_s: how long whoever is asked to end may take, in seconds.
///     event_loop: the loop that calls `drain`, and that whoever submits runs on.
///     call_flush_soon: called when tasks have been submitted; it has `flush` called before the loop waits again.
#[pyclass(frozen, weakref, module = "polyloop._core")]
pub(crate) struct Manager {
    driver: Mutex<Driver>,
    codec: Codec,
    pending: Mutex<PendingTable>,
    /// Maps with items that have not ended.
    maps: Mutex<HashMap<CallId, Py<MapCall>>>,
    buffer: Mutex<Vec<u8>>,
    references: Mutex<HashMap<usize, (Py<PyAny>, Reference)>>,
    scheduler: OnceLock<Scheduler>,
    last_scheduled: Mutex<u64>,
    event_loop: Py<PyAny>,
    call_flush_soon: Py<PyAny>,
    /// Calls that have ended and whose coroutines are to go on.
    woken: Mutex<VecDeque<Py<ApplyCall>>>,
    last_scope: Mutex<u64>,
    /// Whether a flush is to come, and how many applies have been submitted since the last.
    flush_due: Mutex<FlushDue>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    let error = |_| PyValueError::new_err(format!("{name} must be a number of seconds, 0 or more"));
    Duration::try_from_secs_f64(value).map_err(error)
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Starting => "starting",
        Stage::Ready => "ready",
        Stage::Retiring => "retiring",
        Stage::Stopping => "stopping",
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Died => "died",
        Cause::Recycled => "recycled",
        Cause::Memory => "memory",
        Cause::Age => "age",
        Cause::Overdue => "overdue",
        Cause::Garbage => "garbage",
        Cause::Restarted => "restarted",
    }
}

fn worker_key(worker: WorkerId) -> u64 {
    u64::from(worker.seat) << 32 | u64::from(worker.generation)
}

fn worker_id(key: u64) -> WorkerId {
    WorkerId { seat: (key >> 32) as u16, generation: key as u32 }
}

#[pymethods]
impl Manager {
    #[new]
    #[pyo3(signature = (
        *, processes, queues, concurrency, max_tasks, max_memory, max_age_s, overlap, block_warning_s, grace_s,
        event_loop, call_flush_soon, max_reply=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "each has its name in Python")]
    fn new(
        py: Python<'_>,
        processes: u16,
        queues: u16,
        concurrency: u32,
        max_tasks: u64,
        max_memory: u64,
        max_age_s: Option<f64>,
        overlap: bool,
        block_warning_s: Option<f64>,
        grace_s: f64,
        event_loop: Py<PyAny>,
        call_flush_soon: Py<PyAny>,
        max_reply: Option<u64>,
    ) -> PyResult<Self> {
        let grace = seconds("grace", grace_s)?;
        let max_age = max_age_s.map(|age| seconds("max_age_per_child", age)).transpose()?;
        let block_warning = block_warning_s.map(|limit| seconds("block_warning", limit)).transpose()?;
        let config = DriverConfig {
            processes,
            queues,
            concurrency,
            max_tasks,
            max_memory,
            max_reply: max_reply.unwrap_or(MAX_REPLY),
            max_age,
            overlap,
            block_warning: block_warning.filter(|limit| !limit.is_zero()),
            grace,
        };
        let driver = Driver::new(config).map_err(errors::driver)?;
        // Its first events ask for workers.
        driver.call_again()?;
        Ok(Self {
            driver: Mutex::new(driver),
            codec: Codec::new(py)?,
            pending: Mutex::default(),
            maps: Mutex::default(),
            buffer: Mutex::default(),
            references: Mutex::default(),
            scheduler: OnceLock::new(),
            last_scheduled: Mutex::new(0),
            event_loop,
            call_flush_soon,
            woken: Mutex::default(),
            last_scope: Mutex::new(0),
            flush_due: Mutex::default(),
        })
    }

    /// The descriptor to watch: call `drain` when it is readable.
    fn fileno(&self) -> RawFd {
        lock(&self.driver).as_fd().as_raw_fd()
    }

    /// Whether this process made the pool, and was not forked from the one that did.
    #[getter]
    fn is_ours(&self) -> bool {
        lock(&self.driver).is_ours()
    }

    /// "starting", "running", "degraded", "closing", "terminating" or "closed".
    #[getter]
    fn state(&self) -> &'static str {
        match lock(&self.driver).state() {
            State::Starting => "starting",
            State::Running => "running",
            State::Degraded => "degraded",
            State::Closing => "closing",
            State::Terminating => "terminating",
            State::Closed => "closed",
        }
    }

    /// Tasks that have not ended.
    #[getter]
    fn unfinished(&self) -> usize {
        lock(&self.driver).unfinished()
    }

    /// The pool in numbers: state, tasks unfinished, done, failed and retried, restarts by cause, and the workers:
    /// pid, seat, queue, stage, items in flight, tasks done, age in seconds.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let (counts, loads, age, unfinished) = {
            let driver = lock(&self.driver);
            (driver.counts(), driver.loads(), driver.age(), driver.unfinished())
        };
        let restarts = PyDict::new(py);
        for (cause, count) in Cause::ALL.into_iter().zip(counts.restarts) {
            restarts.set_item(cause_name(cause), count)?;
        }
        let workers: Vec<_> = loads
            .into_iter()
            .map(|(view, in_flight)| {
                let age_s = age.saturating_sub(view.since).as_secs_f64();
                (view.pid, view.id.seat, view.queue.0, stage_name(view.stage), in_flight, view.done, age_s)
            })
            .collect();
        (self.state(), unfinished, counts.done, counts.failed, counts.retried, restarts, workers).into_pyobject(py)
    }

    /// Have a scheduler choose the queue of every task: `schedule(task_id, func, args, kwargs)` gives one of
    /// `queue_ids`, which stand for the queues in order; `complete(task_id)` is told when the task has ended.
    fn set_scheduler(&self, schedule: Py<PyAny>, complete: Py<PyAny>, queue_ids: Vec<Py<PyAny>>) -> PyResult<()> {
        self.scheduler
            .set(Scheduler { schedule, complete, queue_ids })
            .map_err(|_| PyRuntimeError::new_err("the pool has a scheduler already"))
    }

    /// Submit `func(*args, **kwargs)`; `future` gets what comes of it, and `keeps` is kept alive until then. Returns a
    /// token for `cancel` and `request_cancel`.
    #[pyo3(signature = (func, args, kwargs, options, future, keeps = None))]
    fn submit(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        future: Py<PyAny>,
        keeps: Option<Py<PyAny>>,
    ) -> PyResult<usize> {
        slf.get().enter(func, args, kwargs, options, Target::Future(future, keeps))
    }

    /// Submit `func(*args, **kwargs)`. Await what this returns for what comes of it.
    #[pyo3(signature = (func, args, kwargs, options))]
    fn apply(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
    ) -> PyResult<Py<ApplyCall>> {
        let (this, py) = (slf.get(), slf.py());
        let call = Py::new(py, ApplyCall::new(this.event_loop.clone_ref(py)))?;
        let token = this.enter(func, args, kwargs, options, Target::Apply(call.clone_ref(py)))?;
        call.get().set_token(token);
        Ok(call)
    }

    /// Open a map of `func` over what `source` (an iterator) gives, or over what is pushed if it is None. `window` is
    /// how many items are drawn ahead, `chunk` how many are posted together, or None for as many as suit their cost.
    #[expect(clippy::too_many_arguments, reason = "a map has that many sides")]
    #[pyo3(signature = (func, source, star, options, window, chunk, keeps_errors))]
    fn open_map(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        source: Option<Py<PyAny>>,
        star: bool,
        options: Py<TaskOptions>,
        window: usize,
        chunk: Option<u32>,
        keeps_errors: bool,
    ) -> PyResult<Py<MapCall>> {
        let (this, py) = (slf.get(), slf.py());
        let scope = {
            let mut last = lock(&this.last_scope);
            *last += 1;
            *last
        };
        let reference = options.get().manner().put_on(this.reference(func, scope)?);
        let call = lock(&this.driver).open_call(chunk).map_err(|error| errors::refused(py, &this.codec, &error))?;
        let function = func.clone().unbind();
        let opening = Opening { function, reference, scope, call, options, star, window, keeps_errors };
        Py::new(py, MapCall::new(slf.clone().unbind(), opening, source))
    }

    /// Cancel a task; `ended` is set once it has ended. False if it has ended already.
    fn cancel(&self, call: &Bound<'_, ApplyCall>, ended: Py<PyAny>) -> PyResult<bool> {
        let task = {
            let mut pending = lock(&self.pending);
            let Some(pending) = pending.get_mut(call.get().token()) else { return Ok(false) };
            if !matches!(&pending.target, Target::Apply(target) if target.is(call)) {
                return Ok(false);
            }
            pending.target = Target::Ended(ended);
            pending.task
        };
        if let Some(task) = task {
            self.drive(|driver| driver.cancel(task))?;
        }
        Ok(true)
    }

    /// Ask for a task to be cancelled; `future` gets what comes of it all the same. False if it has ended already.
    fn request_cancel(&self, token: usize, future: &Bound<'_, PyAny>) -> PyResult<bool> {
        let task = match lock(&self.pending).get_mut(token) {
            Some(Pending { target: Target::Future(target, _), task, .. }) if target.is(future) => *task,
            _ => return Ok(false),
        };
        if let Some(task) = task {
            self.drive(|driver| driver.cancel(task))?;
        }
        Ok(true)
    }

    /// Give the workers what was submitted.
    fn flush(&self) -> PyResult<()> {
        *lock(&self.flush_due) = FlushDue::default();
        self.drive(Driver::flush)
    }

    /// Take in what has happened. Returns what Python must do, in order, as tuples:
    /// ("start", key, queue, socket, lifeline, our_ends), ("reap", key), ("died", key, pid, exitcode, retried, lost),
    /// ("degraded", exception), ("recovered",), ("terminated", count), ("garbage", key, problem),
    /// ("blocked", key, pid, seconds), ("up",), ("gave_up", exception), ("closed",).
    fn drain<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let (this, py) = (slf.get(), slf.py());
        lock(&this.driver).drain()?;
        this.events(py)
    }

    /// Has whoever waited for what was drained go on, here and now. To be called by the loop.
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let Some(call) = lock(&self.woken).pop_front() else { return Ok(()) };
            if let Err(error) = ApplyCall::wake(call.bind(py)) {
                // It ends the program, or this run of the loop: then the others go on in the next.
                lock(&self.driver).call_again()?;
                return Err(error);
            }
        }
    }

    /// What Python must do, as `drain` gives it, without looking at anything new.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let orders = PyList::empty(py);
        let mut maps: Vec<Py<MapCall>> = Vec::new();
        let mut judged = false;
        let started = Instant::now();
        let mut since_look = 0;
        loop {
            let Some(event) = lock(&self.driver).next_event() else { break };
            since_look += 1;
            match event {
                Event::Returned(values) => {
                    since_look += values.len();
                    self.returned(py, &values, &mut maps);
                }
                Event::Deliver { call, token, outcome, .. } => self.deliver(py, call, token, outcome, &mut maps),
                Event::Judge { task, call, token, outcome } => {
                    self.judge(py, task, (call, token), outcome, &mut maps);
                    judged = true;
                }
                other => orders.append(self.order(py, other)?)?,
            }
            if since_look >= DELIVERIES_PER_LOOK {
                since_look = 0;
                if started.elapsed() > DELIVERY_BUDGET {
                    // The rest comes with the loop's next round.
                    lock(&self.driver).call_again()?;
                    break;
                }
            }
        }
        let must_flush = judged || !maps.is_empty();
        for map in maps {
            MapCall::go_on(map.bind(py))?;
            if map.get().outstanding() == 0 {
                let forgotten = lock(&self.maps).remove(&map.get().call);
                drop(forgotten);
            }
        }
        if must_flush {
            lock(&self.driver).flush()?;
        }
        Ok(orders)
    }

    /// A worker's process runs.
    fn started(&self, key: u64, pid: u32, is_direct_child: bool, sentinel: RawFd) -> PyResult<()> {
        // SAFETY: the process object that owns the sentinel outlives this call.
        let sentinel = unsafe { BorrowedFd::borrow_raw(sentinel) };
        self.drive(|driver| driver.started(worker_id(key), pid, is_direct_child, sentinel))
    }

    /// A worker's process could not be started.
    fn not_started(&self, key: u64, reason: &str) -> PyResult<()> {
        self.drive(|driver| driver.not_started(worker_id(key), reason))
    }

    /// A worker's process has ended with this code, negative for a signal, None if unknown; `out_of_memory` says that
    /// the kernel has killed something for want of memory meanwhile.
    #[pyo3(signature = (key, exitcode, *, out_of_memory = false))]
    fn exited(&self, key: u64, exitcode: Option<i32>, out_of_memory: bool) -> PyResult<()> {
        self.drive(|driver| driver.exited(worker_id(key), errors::exit_of(exitcode, out_of_memory)))
    }

    /// Whether there are as many workers that take work as there should be.
    #[getter]
    fn is_up(&self) -> bool {
        lock(&self.driver).is_up()
    }

    /// Have so many workers from now on. Returns the keys of those that are sent away, which finish what they run.
    fn resize(&self, processes: u16) -> PyResult<Vec<u64>> {
        let max = lock(&self.driver).processes_max();
        if processes > max {
            return Err(PyValueError::new_err(format!("this pool can't have more than {max} processes")));
        }
        let mut sent_away = Vec::new();
        self.drive(|driver| driver.resize(processes).map(|workers| sent_away = workers))?;
        Ok(sent_away.into_iter().map(worker_key).collect())
    }

    /// Replace all workers by new ones, one after the other. Returns the keys of those that will be replaced.
    fn restart(&self) -> PyResult<Vec<u64>> {
        let mut old = Vec::new();
        self.drive(|driver| driver.restart().map(|workers| old = workers))?;
        Ok(old.into_iter().map(worker_key).collect())
    }

    /// Take no new work, finish what was accepted, then end.
    fn close(&self) -> PyResult<()> {
        self.drive(Driver::close)
    }

    /// End every task and every worker now.
    fn terminate(&self) -> PyResult<()> {
        self.drive(Driver::terminate)
    }

    /// Kill every worker, also those that are being started, and wait for nothing: for an owner that is gone, or a
    /// program that is about to be.
    fn abandon(&self) {
        lock(&self.driver).abandon();
        let pending = std::mem::take(&mut *lock(&self.pending));
        let maps = std::mem::take(&mut *lock(&self.maps));
        drop((pending, maps));
    }
}

impl Manager {
    pub(crate) fn end_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.end_call(call))
    }

    pub(crate) fn cancel_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.cancel_call(call))
    }

    /// Does something with the driver; what comes of it is fetched by the drain that this makes the loop call.
    fn drive(&self, act: impl FnOnce(&mut Driver) -> std::io::Result<()>) -> PyResult<()> {
        let mut driver = lock(&self.driver);
        act(&mut driver)?;
        if driver.has_events() {
            driver.call_again()?;
        }
        Ok(())
    }

    /// Has the workers get what was submitted: at once where waiting for more gains nothing, else with what else is
    /// submitted before the loop waits again, but in portions, so that they need not wait for the last of thousands.
    fn flush_in_time(&self, py: Python<'_>) -> PyResult<()> {
        let full = {
            let mut due = lock(&self.flush_due);
            due.submitted += 1;
            due.submitted >= PORTION
        };
        if !full && !lock(&self.driver).is_quiet() {
            return self.schedule_flush(py);
        }
        lock(&self.flush_due).submitted = 0;
        self.drive(Driver::flush)
    }

    /// Has what was submitted flushed before the loop waits again.
    pub(crate) fn schedule_flush(&self, py: Python<'_>) -> PyResult<()> {
        if std::mem::replace(&mut lock(&self.flush_due).scheduled, true) {
            return Ok(());
        }
        self.call_flush_soon.bind(py).call0().map(drop)
    }

    /// Submits a call of its own, to whoever waits for it.
    fn enter(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        target: Target,
    ) -> PyResult<usize> {
        let py = func.py();
        let function = options.get().manner().put_on(self.reference(func, 0)?);
        let arguments = self.arguments(args, kwargs)?;
        let (queue, scheduled_as) = self.schedule(func, args, kwargs)?;
        let submission = submission(CallId::SINGLES, queue, function, arguments, options.get());
        let pending = Pending { target, function: Some(func.clone().unbind()), task: None, options, scheduled_as };
        let token = self.accept(py, pending, submission)?;
        self.flush_in_time(py)?;
        Ok(token)
    }

    /// What an item of a map needs to be submitted. Runs the caller's code.
    pub(crate) fn prepare_item(
        &self,
        map: &MapCall,
        item: &Bound<'_, PyAny>,
        buffer: &mut Vec<u8>,
    ) -> PyResult<Prepared> {
        buffer.clear();
        if !map.star && self.scheduler.get().is_none() {
            let write = |bytes: &mut _, apart: &mut _| self.codec.write_argument(item, bytes, apart);
            let arguments = self.write(item.py(), buffer, write)?;
            return Ok(Prepared { arguments, queue: QueueIndex(0), scheduled_as: 0 });
        }
        let args = map.arguments(item)?;
        let write = |bytes: &mut _, apart: &mut _| self.codec.write_arguments(&args, None, bytes, apart);
        let arguments = self.write(item.py(), buffer, write)?;
        let (queue, scheduled_as) = self.schedule(map.function(item.py()), &args, None)?;
        Ok(Prepared { arguments, queue, scheduled_as })
    }

    /// Submits items of a map, from this index on. All are accepted, or none.
    pub(crate) fn submit_items(&self, map: &Bound<'_, MapCall>, first: u64, items: Vec<Prepared>) -> PyResult<()> {
        let (this, py) = (map.get(), map.py());
        let mut driver = lock(&self.driver);
        let mut indexed = (first..).zip(items).peekable();
        while let Some((first, Prepared { queue, .. })) = indexed.peek() {
            let (first, queue) = (*first, *queue);
            let mut submission = submission(this.call, queue, this.reference(), Payload::new(), this.options.get());
            submission.token = first;
            let run = std::iter::from_fn(|| {
                let (index, item) = indexed.next_if(|(_, item)| item.queue == queue)?;
                this.set_scheduled(index, item.scheduled_as);
                Some(item.arguments)
            });
            match driver.submit_run(submission, run) {
                Ok(()) => (),
                // A closed pool goes on with the maps it has: this one was terminated.
                Err(Refused::Closed) => return Err(errors::terminated(py)),
                Err(refused) => return Err(errors::refused(py, &self.codec, &refused)),
            }
        }
        drop(driver);
        lock(&self.maps).entry(this.call).or_insert_with(|| map.clone().unbind());
        Ok(())
    }

    /// How many items a map may have outstanding while memory for what is large is scarce.
    pub(crate) fn scarce_window(&self) -> Option<usize> {
        lock(&self.driver).scarce_window()
    }

    /// Cancels the items of a map after this one, and ends its call.
    pub(crate) fn cancel_after(&self, call: CallId, index: u64) -> PyResult<()> {
        self.drive(|driver| driver.cancel_call_after(call, index))
    }

    fn arguments(&self, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Payload> {
        // Taken, not borrowed: pickling runs the caller's code, which may submit to this pool.
        let mut bytes = std::mem::take(&mut *lock(&self.buffer));
        bytes.clear();
        let arguments =
            self.write(args.py(), &mut bytes, |bytes, apart| self.codec.write_arguments(args, kwargs, bytes, apart))?;
        *lock(&self.buffer) = bytes;
        Ok(arguments)
    }

    /// Arguments as `write` writes them: what of them is large in a block, where there is one.
    fn write(
        &self,
        py: Python<'_>,
        bytes: &mut Vec<u8>,
        write: impl Fn(&mut Vec<u8>, &mut Outbox) -> PyResult<()>,
    ) -> PyResult<Payload> {
        let mut apart = Outbox::default();
        write(bytes, &mut apart)?;
        if apart.is_empty() {
            return Ok(payload(bytes));
        }
        let lease = apart.store(py, |len| lock(&self.driver).take_block(len));
        if lease.is_none() {
            bytes.clear();
            write(bytes, &mut Outbox::closed())?;
        }
        Ok(payload(bytes).with(lease.map(Luggage::new)))
    }

    fn accept(&self, py: Python<'_>, pending: Pending, mut submission: Submission) -> PyResult<usize> {
        let token = lock(&self.pending).insert(pending);
        submission.token = token as u64;
        let submitted = lock(&self.driver).submit(submission);
        let mut table = lock(&self.pending);
        match submitted {
            Ok(task) => {
                if let Some(pending) = table.get_mut(token) {
                    pending.task = Some(task);
                }
                Ok(token)
            }
            Err(refused) => {
                let pending = table.remove(token);
                drop(table);
                drop(pending);
                Err(errors::refused(py, &self.codec, &refused))
            }
        }
    }

    /// What a person calls a task: as its options do, or its function, "module:name" where it travels by name.
    fn name(&self, py: Python<'_>, pending: &Pending) -> Option<String> {
        if let Some(name) = &pending.options.get().name {
            return Some(name.clone());
        }
        let function = pending.function(py)?;
        if let Ok(reference) = self.reference(&function, 0)
            && let Some((b'n', name)) = reference.split_first()
        {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        let name =
            function.getattr(intern!(py, "__qualname__")).or_else(|_| Ok::<_, PyErr>(function.repr()?.into_any()));
        name.and_then(|name| name.extract()).ok()
    }

    /// A function's reference; remembered where it is the same in every call.
    fn reference(&self, function: &Bound<'_, PyAny>, scope: u64) -> PyResult<Arc<[u8]>> {
        match lock(&self.references).get(&(function.as_ptr() as usize)) {
            Some((_, Reference::ByName(reference))) => return Ok(Arc::clone(reference)),
            Some((_, Reference::ByValue)) => return Ok(self.codec.function_by_value(function, scope)?.into()),
            None => (),
        }
        let reference: Arc<[u8]> = self.codec.function_ref(function, scope)?.into();
        if travels_by_name(&reference) {
            self.remember(function, Reference::ByName(Arc::clone(&reference)));
        }
        Ok(reference)
    }

    /// Remembers a reference by the function itself, which is kept alive so that no other takes its address.
    fn remember(&self, function: &Bound<'_, PyAny>, reference: Reference) {
        let forgotten = {
            let mut references = lock(&self.references);
            let full = references.len() >= REFERENCES_MAX;
            let forgotten = if full { std::mem::take(&mut *references) } else { HashMap::new() };
            references.insert(function.as_ptr() as usize, (function.clone().unbind(), reference));
            forgotten
        };
        // Not under the lock: a function may be the last to hold something that uses this pool as it goes.
        drop(forgotten);
    }

    fn schedule(
        &self,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(QueueIndex, u64)> {
        let Some(scheduler) = self.scheduler.get() else { return Ok((QueueIndex(0), 0)) };
        let py = function.py();
        let id = {
            let mut last = lock(&self.last_scheduled);
            *last += 1;
            *last
        };
        let empty = PyDict::new(py);
        let kwargs = kwargs.unwrap_or(&empty);
        let chosen = scheduler.schedule.bind(py).call1((id, function, args, kwargs))?;
        for (index, queue_id) in (0..).zip(&scheduler.queue_ids) {
            if chosen.eq(queue_id)? {
                return Ok((QueueIndex(index), id));
            }
        }
        Err(PyValueError::new_err(format!("the scheduler chose the queue {chosen}, which it has not registered")))
    }

    /// Gives values to whoever waits for them; those of a map many at once.
    fn returned(&self, py: Python<'_>, values: &Values, maps: &mut Vec<Py<MapCall>>) {
        let (mut of, mut results) = (CallId::SINGLES, Vec::with_capacity(values.len()));
        for (call, token, bytes) in values.iter() {
            if call == CallId::SINGLES {
                self.deliver(py, call, token, Outcome::Value(Payload::from_slice(bytes)), maps);
                continue;
            }
            if call != of {
                self.settle_items(py, of, &mut results, maps);
                of = call;
            }
            results.push((token, self.value(py, bytes, Inbox::default())));
        }
        self.settle_items(py, of, &mut results, maps);
    }

    fn settle_items(
        &self,
        py: Python<'_>,
        call: CallId,
        results: &mut Vec<(u64, ItemResult)>,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        let map = lock(&self.maps).get(&call).map(|map| map.clone_ref(py));
        let Some(map) = map else { return results.clear() };
        if self.scheduler.get().is_some() {
            results.iter().for_each(|(index, _)| self.tell_scheduler(py, map.get().take_scheduled(*index)));
        }
        map.get().deliver(results.drain(..));
        touch(maps, map);
    }

    /// Gives one outcome to whoever waits for it. Whatever goes wrong in that is theirs, and no one else's.
    fn deliver(&self, py: Python<'_>, call: CallId, token: u64, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        if let Some(pending) = self.lift(py, call, token) {
            self.lower(call, token, None);
            self.end(py, pending, outcome, maps);
        }
    }

    /// Takes out who waits for a task. An item's place is kept for it by its map.
    fn lift(&self, py: Python<'_>, call: CallId, token: u64) -> Option<Pending> {
        if call == CallId::SINGLES {
            return lock(&self.pending).lift(token as usize);
        }
        let map = lock(&self.maps).get(&call)?.clone_ref(py);
        let (options, scheduled_as) = (map.get().options.clone_ref(py), map.get().take_scheduled(token));
        Some(Pending { target: Target::Item(map, token), function: None, task: None, options, scheduled_as })
    }

    /// Puts back who waits for a task, or forgets its place.
    fn lower(&self, call: CallId, token: u64, pending: Option<Pending>) {
        match pending {
            pending if call == CallId::SINGLES => lock(&self.pending).lower(token as usize, pending),
            Some(Pending { target: Target::Item(map, index), scheduled_as, .. }) => {
                map.get().set_scheduled(index, scheduled_as);
            }
            _ => (),
        }
    }

    /// Decides whether a task that failed runs again.
    fn judge(
        &self,
        py: Python<'_>,
        task: TaskId,
        (call, token): (CallId, u64),
        outcome: Outcome,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        let Some(mut pending) = self.lift(py, call, token) else { return };
        let function = match &outcome {
            Outcome::Rejected(_) => self.value_for(py, task, &pending),
            _ => None,
        };
        let result = if function.is_some() { None } else { Some(self.result(py, &pending, outcome)) };
        let again = match &result {
            None => true,
            Some(Err(error)) => pending.options.get().is_reason(error.bind(py)),
            Some(Ok(_)) => false,
        };
        if again {
            // Gone, if it was cancelled meanwhile: its end is to be delivered.
            if let Some(task) = lock(&self.driver).again(task, function) {
                pending.task = Some(task);
            }
            return self.lower(call, token, Some(pending));
        }
        let settled = lock(&self.driver).settled(task);
        match result {
            Some(result) if settled => {
                self.lower(call, token, None);
                self.settle(py, pending, result, maps);
            }
            _ => self.lower(call, token, Some(pending)),
        }
    }

    /// Gives an outcome to whoever waits for it.
    fn end(&self, py: Python<'_>, pending: Pending, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        if matches!(outcome, Outcome::Cancelled) && !matches!(pending.target, Target::Item(..)) {
            self.tell_scheduler(py, pending.scheduled_as);
            match pending.target {
                Target::Apply(call) => {
                    if call.get().complete_cancelled() {
                        lock(&self.woken).push_back(call);
                    }
                }
                Target::Future(future, _) => complete(py, future.bind(py), intern!(py, "cancel"), None),
                Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
                Target::Item(..) => (),
            }
            return;
        }
        let result = self.result(py, &pending, outcome);
        self.settle(py, pending, result, maps);
    }

    fn settle(&self, py: Python<'_>, pending: Pending, result: ItemResult, maps: &mut Vec<Py<MapCall>>) {
        self.tell_scheduler(py, pending.scheduled_as);
        match pending.target {
            Target::Item(map, index) => {
                map.get().deliver([(index, result)]);
                touch(maps, map);
            }
            Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
            Target::Apply(call) => {
                if call.get().complete(result) {
                    lock(&self.woken).push_back(call);
                }
            }
            Target::Future(future, _) => {
                let future = future.bind(py);
                match result {
                    Ok(value) => complete(py, future, intern!(py, "set_result"), Some(value)),
                    Err(error) => complete(py, future, intern!(py, "set_exception"), Some(error)),
                }
            }
        }
    }

    /// A value, or the exception that says why it can't be read.
    fn value(&self, py: Python<'_>, bytes: &[u8], apart: Inbox<'_>) -> ItemResult {
        self.codec
            .read(py, bytes, apart)
            .map(Bound::unbind)
            .map_err(|error| as_result(py, errors::unreadable(py, error)))
    }

    /// The value, or the exception that stands for everything else.
    fn result(&self, py: Python<'_>, pending: &Pending, outcome: Outcome) -> ItemResult {
        let is_named = matches!(outcome, Outcome::Lost(_) | Outcome::TimedOut);
        let name = if is_named { self.name(py, pending) } else { None };
        let result = match outcome {
            Outcome::Value(bytes) => return self.value(py, &bytes, Inbox::of(&bytes)),
            Outcome::Cancelled => cancelled(py),
            outcome => errors::exception_for(py, &self.codec, &outcome, name, pending.options.get().timeout),
        };
        Err(as_result(py, result))
    }

    /// The function of a task by value, if its worker could not import it; taken once for all items of a map.
    fn value_for(&self, py: Python<'_>, task: TaskId, pending: &Pending) -> Option<Arc<[u8]>> {
        if !travels_by_name(&lock(&self.driver).function_of(task)?) {
            return None;
        }
        let by_value = |function: &Bound<'_, PyAny>, scope| {
            self.remember(function, Reference::ByValue);
            let reference = self.codec.function_by_value(function, scope).ok()?;
            Some(pending.options.get().manner().put_on(reference.into()))
        };
        let Target::Item(map, _) = &pending.target else {
            return by_value(pending.function.as_ref()?.bind(py), 0);
        };
        let map = map.get();
        if travels_by_name(&map.reference()) {
            map.set_reference(by_value(map.function(py), map.scope)?);
        }
        Some(map.reference())
    }

    fn tell_scheduler(&self, py: Python<'_>, scheduled_as: u64) {
        if let Some(scheduler) = self.scheduler.get()
            && let Err(error) = scheduler.complete.bind(py).call1((scheduled_as,))
        {
            error.write_unraisable(py, Some(scheduler.complete.bind(py)));
        }
    }

    fn order<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
        let order = match event {
            Event::Start(order) => {
                let (socket, lifeline) = (order.socket.into_raw_fd(), order.lifeline.into_raw_fd());
                let key = worker_key(order.worker);
                ("start", key, order.queue.0, socket, lifeline, order.our_ends).into_pyobject(py)?.into_any()
            }
            Event::Reap(worker) => ("reap", worker_key(worker)).into_pyobject(py)?.into_any(),
            Event::Garbage { worker, problem } => {
                ("garbage", worker_key(worker), problem).into_pyobject(py)?.into_any()
            }
            Event::Blocked { worker, pid, blocked } => {
                ("blocked", worker_key(worker), pid, blocked.as_secs_f64()).into_pyobject(py)?.into_any()
            }
            Event::Up => ("up",).into_pyobject(py)?.into_any(),
            Event::GaveUp(error) => {
                ("gave_up", errors::no_workers(py, &self.codec, &error)?).into_pyobject(py)?.into_any()
            }
            Event::Closed => ("closed",).into_pyobject(py)?.into_any(),
            Event::Report(Report::Died { worker, pid, exit, retried, lost }) => {
                let exitcode = errors::exit_code(exit);
                ("died", worker_key(worker), pid, exitcode, retried, lost).into_pyobject(py)?.into_any()
            }
            Event::Report(Report::Degraded(error)) => {
                ("degraded", errors::no_workers(py, &self.codec, &error)?).into_pyobject(py)?.into_any()
            }
            Event::Report(Report::Recovered) => ("recovered",).into_pyobject(py)?.into_any(),
            Event::Report(Report::Terminated(count)) => ("terminated", count).into_pyobject(py)?.into_any(),
            Event::Returned(_) | Event::Deliver { .. } | Event::Judge { .. } => {
                return Err(PyRuntimeError::new_err("an outcome is no order"));
            }
        };
        Ok(order)
    }
}

fn submission(
    call: CallId,
    queue: QueueIndex,
    function: Arc<[u8]>,
    arguments: Payload,
    options: &TaskOptions,
) -> Submission {
    let TaskOptions { retries, retry_deaths, timeout, .. } = *options;
    let judged = options.judges();
    Submission { call, queue, function, arguments, retries, retry_deaths, judged, attempt: 1, timeout, token: 0 }
}

/// Bytes that were written into a buffer, which is used again unless they are many.
fn payload(buffer: &mut Vec<u8>) -> Payload {
    if buffer.len() > BUFFER_MAX { Payload::from_vec(std::mem::take(buffer)) } else { Payload::from_slice(buffer) }
}

fn touch(maps: &mut Vec<Py<MapCall>>, map: Py<MapCall>) {
    if !maps.iter().any(|touched| touched.is(&map)) {
        maps.push(map);
    }
}

/// An exception as it can be raised from a coroutine; where it could not be made, why not.
fn as_result(py: Python<'_>, error: PyResult<Bound<'_, PyAny>>) -> Py<PyAny> {
    let error = match error {
        Ok(error) if is_stop_iteration(&error) => stop_iteration(py, error),
        other => other,
    };
    error.map_or_else(|error| error.into_value(py).into_any(), Bound::unbind)
}

/// Completes a future, unless its owner has given up on it meanwhile.
pub(crate) fn complete(
    py: Python<'_>,
    future: &Bound<'_, PyAny>,
    how: &Bound<'_, pyo3::types::PyString>,
    value: Option<Py<PyAny>>,
) {
    let done = future.call_method0(intern!(py, "done")).and_then(|done| done.is_truthy());
    let result = match (done, value) {
        (Ok(true), _) => return,
        (Ok(false), Some(value)) => future.call_method1(how, (value,)),
        (Ok(false), None) => future.call_method0(how),
        (Err(error), _) => Err(error),
    };
    if let Err(error) = result {
        // The loop is closed, for one: then nobody can be told.
        error.write_unraisable(py, Some(future));
    }
}

pub(crate) fn cancelled(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "CancelledError"))?.call0()
}

/// As a coroutine does with a `StopIteration` that leaves it.
fn stop_iteration<'py>(py: Python<'py>, cause: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let error = PyRuntimeError::new_err("the task raised StopIteration").into_value(py).into_bound(py).into_any();
    error.setattr(intern!(py, "__cause__"), cause)?;
    Ok(error)
}
