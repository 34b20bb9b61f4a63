//! The client's side for Python: takes tasks in, and completes futures and maps as outcomes come back.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use polyloop::{
    CallId, Cause, Driver, DriverConfig, Event, Outcome, Payload, QueueIndex, Refused, Report, Stage, State,
    Submission, TaskId, WorkerId,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::codec::Codec;
use crate::errors;
use crate::map::{MapCall, Opening, is_stop_iteration};
use crate::options::{TaskOptions, Verb};
use crate::pending::{Pending, PendingTable, Target};
use crate::reference::travels_by_name;
use crate::stream::StreamCall;

/// How long one drain may spend on completing what has come back.
const DELIVERY_BUDGET: Duration = Duration::from_millis(2);
/// Deliveries between two looks at the clock.
const DELIVERIES_PER_LOOK: usize = 32;
/// Records of workers' logs in one drain: what the client's handlers do with each takes its time.
const LOGS_PER_DRAIN: usize = 64;
/// Arguments up to this many bytes are written into a buffer that is used again.
const BUFFER_MAX: usize = 4096;
/// Functions whose references are remembered.
const REFERENCES_MAX: usize = 256;

/// An item of a map, ready to be submitted.
pub(crate) struct Prepared {
    arguments: Payload,
    queue: QueueIndex,
    scheduled_as: u64,
}

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
///     call_flush_soon: called when tasks have been submitted; it has `flush` called before the loop waits again.
///     capture_context: called at each call; gives the bytes of what travels with its tasks, or None. None for nothing.
#[pyclass(frozen, weakref, module = "polyloop._core")]
pub(crate) struct Manager {
    driver: Mutex<Driver>,
    codec: Codec,
    pending: Mutex<PendingTable>,
    buffer: Mutex<Vec<u8>>,
    /// By the function's address, and what it is sent for.
    references: Mutex<HashMap<(usize, Verb), (Py<PyAny>, Reference)>>,
    scheduler: OnceLock<Scheduler>,
    last_scheduled: Mutex<u64>,
    call_flush_soon: Py<PyAny>,
    capture_context: Option<Py<PyAny>>,
    last_scope: Mutex<u64>,
    flush_due: Mutex<bool>,
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
        call_flush_soon, capture_context = None
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
        call_flush_soon: Py<PyAny>,
        capture_context: Option<Py<PyAny>>,
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
            buffer: Mutex::default(),
            references: Mutex::default(),
            scheduler: OnceLock::new(),
            last_scheduled: Mutex::new(0),
            call_flush_soon,
            capture_context,
            last_scope: Mutex::new(0),
            flush_due: Mutex::new(false),
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
        let this = slf.get();
        this.submit_single(func, args, kwargs, options, Target::Future(future, keeps))
    }

    /// Open a stream of what `func(*args, **kwargs)` yields.
    fn open_stream(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
    ) -> PyResult<Py<StreamCall>> {
        let (this, py) = (slf.get(), slf.py());
        let call = Py::new(py, StreamCall::new(slf.clone().unbind()))?;
        let token = this.submit_single(func, args, kwargs, options, Target::Stream(call.clone_ref(py)))?;
        call.get().opened(token);
        Ok(call)
    }

    /// Open a map of `func` over what `source` (an iterator) gives, or over what is pushed if it is None. `window` is
    /// how many items are drawn ahead.
    fn open_map(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        source: Option<Py<PyAny>>,
        star: bool,
        options: Py<TaskOptions>,
        window: usize,
        keeps_errors: bool,
    ) -> PyResult<Py<MapCall>> {
        let (this, py) = (slf.get(), slf.py());
        let scope = {
            let mut last = lock(&this.last_scope);
            *last += 1;
            *last
        };
        let reference = options.get().manner(Verb::Call).put_on(this.reference(func, scope, Verb::Call)?);
        let context = this.context(py)?;
        let call = lock(&this.driver).open_call().map_err(|error| errors::refused(py, &this.codec, &error))?;
        let function = func.clone().unbind();
        let opening = Opening { function, reference, scope, call, options, context, star, window, keeps_errors };
        Py::new(py, MapCall::new(slf.clone().unbind(), opening, source))
    }

    /// Cancel a task; `ended` is set once it has ended. False if it has ended already.
    fn cancel(&self, token: usize, future: Py<PyAny>, ended: Py<PyAny>) -> PyResult<bool> {
        let task = {
            let mut pending = lock(&self.pending);
            let Some(pending) = pending.get_mut(token) else { return Ok(false) };
            if !matches!(&pending.target, Target::Future(target, _) if target.is(&future)) {
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
        *lock(&self.flush_due) = false;
        self.drive(Driver::flush)
    }

    /// Take in what has happened. Returns what Python must do, in order, as tuples:
    /// ("start", key, queue, socket, lifeline, our_ends), ("reap", key), ("died", key, pid, exitcode, retried, lost),
    /// ("degraded", exception), ("recovered",), ("terminated", count), ("garbage", key, problem),
    /// ("blocked", key, pid, seconds), ("log", pid, records dropped before, record or nothing), ("closed",).
    fn drain<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let (this, py) = (slf.get(), slf.py());
        lock(&this.driver).drain()?;
        this.events(py)
    }

    /// What Python must do, as `drain` gives it, without looking at anything new.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let orders = PyList::empty(py);
        let mut maps: Vec<Py<MapCall>> = Vec::new();
        let (mut judged, mut logs) = (false, 0);
        let started = Instant::now();
        for count in 1.. {
            let Some(event) = lock(&self.driver).next_event() else { break };
            match event {
                Event::Deliver { token, outcome, .. } => self.deliver(py, token as usize, outcome, &mut maps),
                Event::Yield { token, value, .. } => self.yielded(py, token as usize, value),
                Event::Judge { task, token, outcome } => {
                    self.judge(py, task, token as usize, outcome, &mut maps);
                    judged = true;
                }
                other => {
                    logs += usize::from(matches!(other, Event::Log { .. }));
                    orders.append(self.order(py, other)?)?;
                }
            }
            let late = count % DELIVERIES_PER_LOOK == 0 && started.elapsed() > DELIVERY_BUDGET;
            if late || logs == LOGS_PER_DRAIN {
                // The rest comes with the loop's next round.
                lock(&self.driver).call_again()?;
                break;
            }
        }
        let must_flush = judged || !maps.is_empty();
        for map in maps {
            MapCall::go_on(map.bind(py))?;
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
        drop(pending);
    }
}

impl Manager {
    pub(crate) fn end_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.end_call(call))
    }

    pub(crate) fn cancel_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.cancel_call(call))
    }

    /// Submits a task that is no item of a map.
    fn submit_single(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        target: Target,
    ) -> PyResult<usize> {
        let function = Some(func.clone().unbind());
        let mut pending = Pending { target, function, task: None, options, scheduled_as: 0 };
        let (verb, options) = (pending.verb(), pending.options.get());
        let reference = options.manner(verb).put_on(self.reference(func, 0, verb)?);
        let arguments = self.arguments(self.context(func.py())?.as_deref(), args, kwargs)?;
        let (queue, scheduled_as) = self.schedule(func, args, kwargs)?;
        let mut submission = submission(CallId::SINGLES, queue, reference, arguments, options);
        submission.is_stream = verb == Verb::Stream;
        pending.scheduled_as = scheduled_as;
        let token = self.accept(func.py(), pending, submission)?;
        self.schedule_flush(func.py())?;
        Ok(token)
    }

    /// The next value of a stream has been taken.
    pub(crate) fn taken(&self, call: &Bound<'_, StreamCall>) -> PyResult<()> {
        let task = lock(&self.pending).of_stream(call);
        task.map_or(Ok(()), |task| self.drive(|driver| driver.taken(task)))
    }

    /// Cancels a stream, unless it has ended, or its pool is another process's.
    pub(crate) fn cancel_stream(&self, call: &Bound<'_, StreamCall>) -> PyResult<()> {
        let task = lock(&self.pending).of_stream(call);
        task.filter(|_| self.is_ours()).map_or(Ok(()), |task| self.drive(|driver| driver.cancel(task)))
    }

    pub(crate) fn read<'py>(&self, py: Python<'py>, value: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        self.codec.read(py, value)
    }

    /// Hands a value to whoever takes those of its stream.
    fn yielded(&self, py: Python<'_>, token: usize, value: Payload) {
        let call = match lock(&self.pending).get_mut(token) {
            Some(Pending { target: Target::Stream(call), .. }) => call.clone_ref(py),
            _ => return,
        };
        call.get().push(py, value);
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

    /// Has what was submitted flushed before the loop waits again.
    pub(crate) fn schedule_flush(&self, py: Python<'_>) -> PyResult<()> {
        if std::mem::replace(&mut *lock(&self.flush_due), true) {
            return Ok(());
        }
        self.call_flush_soon.bind(py).call0().map(drop)
    }

    /// What an item of a map needs to be submitted. Runs the caller's code.
    pub(crate) fn prepare_item(&self, map: &Bound<'_, MapCall>, args: &Bound<'_, PyTuple>) -> PyResult<Prepared> {
        let arguments = self.arguments(map.get().context.as_deref(), args, None)?;
        let (queue, scheduled_as) = self.schedule(map.get().function(map.py()), args, None)?;
        Ok(Prepared { arguments, queue, scheduled_as })
    }

    /// Submits an item of a map.
    pub(crate) fn submit_item(&self, map: &Bound<'_, MapCall>, index: u64, item: Prepared) -> PyResult<()> {
        let this = map.get();
        let Prepared { arguments, queue, scheduled_as } = item;
        let submission = submission(this.call, queue, this.reference(), arguments, this.options.get());
        let (target, options) = (MapCall::target(map, index), this.options.clone_ref(map.py()));
        let pending = Pending { target, function: None, task: None, options, scheduled_as };
        self.accept(map.py(), pending, submission).map(drop)
    }

    /// Cancels the items of a map after this one.
    pub(crate) fn cancel_after(&self, map: &Bound<'_, MapCall>, index: u64) -> PyResult<()> {
        let tasks = lock(&self.pending).items_after(map, index);
        self.drive(|driver| driver.cancel_each(tasks))
    }

    /// What travels with the tasks of a call that is made now.
    fn context(&self, py: Python<'_>) -> PyResult<Option<Vec<u8>>> {
        self.capture_context.as_ref().map_or(Ok(None), |capture| capture.call0(py)?.extract(py))
    }

    fn arguments(
        &self,
        context: Option<&[u8]>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Payload> {
        // Taken, not borrowed: pickling runs the caller's code, which may submit to this pool.
        let mut bytes = std::mem::take(&mut *lock(&self.buffer));
        bytes.clear();
        self.codec.write_arguments(context, args, kwargs, &mut bytes)?;
        if bytes.len() > BUFFER_MAX {
            return Ok(Payload::from_vec(bytes));
        }
        let arguments = Payload::from_slice(&bytes);
        *lock(&self.buffer) = bytes;
        Ok(arguments)
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
                Err(match (&refused, pending.map(|pending| pending.target)) {
                    // A closed pool goes on with the maps it has: this one was terminated.
                    (Refused::Closed, Some(Target::Item(..))) => errors::terminated(py),
                    _ => errors::refused(py, &self.codec, &refused),
                })
            }
        }
    }

    /// What a person calls a task: as its options do, or its function, "module:name" where it travels by name.
    fn name(&self, py: Python<'_>, pending: &Pending) -> Option<String> {
        if let Some(name) = &pending.options.get().name {
            return Some(name.clone());
        }
        let function = pending.function(py)?;
        if let Ok(reference) = self.reference(&function, 0, pending.verb())
            && let Some((b'n', name)) = reference.split_first()
        {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        let name =
            function.getattr(intern!(py, "__qualname__")).or_else(|_| Ok::<_, PyErr>(function.repr()?.into_any()));
        name.and_then(|name| name.extract()).ok()
    }

    /// A function's reference; remembered where it is the same in every call.
    fn reference(&self, function: &Bound<'_, PyAny>, scope: u64, verb: Verb) -> PyResult<Arc<[u8]>> {
        match lock(&self.references).get(&(function.as_ptr() as usize, verb)) {
            Some((_, Reference::ByName(reference))) => return Ok(Arc::clone(reference)),
            Some((_, Reference::ByValue)) => return Ok(self.codec.function_by_value(function, scope)?.into()),
            None => (),
        }
        let reference: Arc<[u8]> = self.codec.function_ref(function, scope, verb)?.into();
        if travels_by_name(&reference) {
            self.remember(function, verb, Reference::ByName(Arc::clone(&reference)));
        }
        Ok(reference)
    }

    /// Remembers a reference by the function itself, which is kept alive so that no other takes its address.
    fn remember(&self, function: &Bound<'_, PyAny>, verb: Verb, reference: Reference) {
        let forgotten = {
            let mut references = lock(&self.references);
            let full = references.len() >= REFERENCES_MAX;
            let forgotten = if full { std::mem::take(&mut *references) } else { HashMap::new() };
            references.insert((function.as_ptr() as usize, verb), (function.clone().unbind(), reference));
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

    /// Gives one outcome to whoever waits for it. Whatever goes wrong in that is theirs, and no one else's.
    fn deliver(&self, py: Python<'_>, token: usize, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        let pending = lock(&self.pending).remove(token);
        if let Some(pending) = pending {
            self.end(py, pending, outcome, maps);
        }
    }

    /// Decides whether a task that failed runs again.
    fn judge(&self, py: Python<'_>, task: TaskId, token: usize, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        let Some(mut pending) = lock(&self.pending).lift(token) else { return };
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
            return lock(&self.pending).lower(token, Some(pending));
        }
        let settled = lock(&self.driver).settled(task);
        match result {
            Some(result) if settled => {
                lock(&self.pending).lower(token, None);
                self.settle(py, pending, result, maps);
            }
            _ => lock(&self.pending).lower(token, Some(pending)),
        }
    }

    /// Gives an outcome to whoever waits for it.
    fn end(&self, py: Python<'_>, pending: Pending, outcome: Outcome, maps: &mut Vec<Py<MapCall>>) {
        if matches!(outcome, Outcome::Cancelled) && matches!(pending.target, Target::Future(..) | Target::Ended(_)) {
            self.tell_scheduler(py, pending.scheduled_as);
            match pending.target {
                Target::Future(future, _) => complete(py, future.bind(py), intern!(py, "cancel"), None),
                Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
                Target::Item(..) | Target::Stream(_) => (),
            }
            return;
        }
        let result = self.result(py, &pending, outcome);
        self.settle(py, pending, result, maps);
    }

    fn settle(
        &self,
        py: Python<'_>,
        pending: Pending,
        result: Result<Py<PyAny>, Py<PyAny>>,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        self.tell_scheduler(py, pending.scheduled_as);
        match pending.target {
            Target::Item(map, index) => {
                map.get().deliver(index, result);
                if !maps.iter().any(|touched| touched.is(&map)) {
                    maps.push(map);
                }
            }
            Target::Stream(call) => call.get().end(py, result),
            Target::Ended(future) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
            Target::Future(future, _) => {
                let future = future.bind(py);
                match result {
                    Ok(value) => complete(py, future, intern!(py, "set_result"), Some(value)),
                    Err(error) => complete(py, future, intern!(py, "set_exception"), Some(error)),
                }
            }
        }
    }

    /// The value, or the exception that stands for everything else.
    fn result(&self, py: Python<'_>, pending: &Pending, outcome: Outcome) -> Result<Py<PyAny>, Py<PyAny>> {
        let is_named = matches!(outcome, Outcome::Lost(_) | Outcome::TimedOut);
        let name = if is_named { self.name(py, pending) } else { None };
        let result = match outcome {
            Outcome::Value(bytes) => match self.codec.read(py, &bytes) {
                Ok(value) => return Ok(value.unbind()),
                Err(error) => errors::unreadable(py, error),
            },
            Outcome::Cancelled => cancelled(py),
            outcome => errors::exception_for(py, &self.codec, &outcome, name, pending.options.get().timeout),
        };
        let error = match result {
            Ok(error) if is_stop_iteration(&error) => stop_iteration(py, error),
            other => other,
        };
        Err(error.map_or_else(|error| error.into_value(py).into_any(), Bound::unbind))
    }

    /// The function of a task by value, if its worker could not import it; taken once for all items of a map.
    fn value_for(&self, py: Python<'_>, task: TaskId, pending: &Pending) -> Option<Arc<[u8]>> {
        if !travels_by_name(&lock(&self.driver).function_of(task)?) {
            return None;
        }
        let by_value = |function: &Bound<'_, PyAny>, scope| {
            self.remember(function, pending.verb(), Reference::ByValue);
            let reference = self.codec.function_by_value(function, scope).ok()?;
            Some(pending.options.get().manner(pending.verb()).put_on(reference.into()))
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
            Event::Log { pid, dropped, record } => {
                ("log", pid, dropped, PyBytes::new(py, &record)).into_pyobject(py)?.into_any()
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
            Event::Deliver { .. } | Event::Yield { .. } | Event::Judge { .. } => {
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
    let (judged, is_stream) = (options.judges(), false);
    Submission {
        call,
        queue,
        function,
        arguments,
        retries,
        retry_deaths,
        judged,
        is_stream,
        attempt: 1,
        timeout,
        token: 0,
    }
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
