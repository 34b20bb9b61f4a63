//! The client's side for Python: takes tasks in, and completes futures and maps as outcomes come back.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use polyloop::{CallId, Cause, Driver, DriverConfig, Event, MAX_REPLY, Payload};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use self::functions::References;
use self::orders::{worker_id, worker_key};
use crate::apart::Inbox;
use crate::apply::ApplyCall;
use crate::codec::{Codec, Dialect};
use crate::errors;
use crate::map::{MapCall, Opening};
use crate::options::{TaskOptions, Verb};
use crate::pending::{Pending, PendingTable, Target};
use crate::stream::StreamCall;
use crate::submitter::Submitter;

mod deliver;
mod functions;
mod orders;
mod submit;

pub(crate) use self::deliver::{ItemResult, as_result, cancelled, complete};
pub(crate) use self::functions::name_of;
pub(crate) use self::submit::Prepared;

/// How long one drain may spend on completing what has come back.
const DELIVERY_BUDGET: Duration = Duration::from_millis(2);
/// Deliveries between two looks at the clock.
const DELIVERIES_PER_LOOK: usize = 32;
/// Records of workers' logs in one drain: what the client's handlers do with each takes its time.
const LOGS_PER_DRAIN: usize = 64;

#[derive(Default)]
struct FlushDue {
    scheduled: bool,
    submitted: usize,
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
///     capture_context: called at each call; gives the bytes of what travels with its tasks, or None. None for nothing.
#[pyclass(frozen, weakref, module = "polyloop._core")]
pub(crate) struct Manager {
    driver: Mutex<Driver>,
    codec: Codec,
    pending: Mutex<PendingTable>,
    /// Maps with items that have not ended.
    maps: Mutex<HashMap<CallId, Py<MapCall>>>,
    /// Of these, those that have drawn as long as they may in a round of the loop, and go on in the next.
    late: Mutex<Vec<Py<MapCall>>>,
    buffer: Mutex<Vec<u8>>,
    references: Mutex<References>,
    scheduler: OnceLock<Scheduler>,
    last_scheduled: Mutex<u64>,
    event_loop: Py<PyAny>,
    call_flush_soon: Py<PyAny>,
    capture_context: Option<Py<PyAny>>,
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

#[pymethods]
impl Manager {
    #[new]
    #[pyo3(signature = (
        *, processes, queues, concurrency, max_tasks, max_memory, max_age_s, overlap, block_warning_s, grace_s,
        event_loop, call_flush_soon, max_reply=None, capture_context=None,
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
            codec: Codec::new(py, Dialect::Pickle)?,
            pending: Mutex::default(),
            maps: Mutex::default(),
            late: Mutex::default(),
            buffer: Mutex::default(),
            references: Mutex::default(),
            scheduler: OnceLock::new(),
            last_scheduled: Mutex::new(0),
            event_loop,
            call_flush_soon,
            capture_context,
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
        lock(&self.driver).state().name()
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
        for (cause, count) in Cause::ALL.iter().zip(counts.restarts) {
            restarts.set_item(cause.name(), count)?;
        }
        let workers: Vec<_> = loads
            .into_iter()
            .map(|(view, in_flight)| {
                let age_s = age.saturating_sub(view.since).as_secs_f64();
                (view.pid, view.id.seat, view.queue.0, view.stage.name(), in_flight, view.done, age_s)
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
        let token = this.enter(func, args, kwargs, options, Target::Stream(call.clone_ref(py)))?;
        call.get().opened(token);
        Ok(call)
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
        let reference = options.get().manner(Verb::Call).put_on(this.reference(func, scope, Verb::Call)?);
        let context = this.context(py)?;
        let call = lock(&this.driver).open_call(chunk).map_err(|error| errors::refused(py, &this.codec, &error))?;
        let function = func.clone().unbind();
        let opening = Opening { function, reference, scope, call, options, context, star, window, keeps_errors };
        Py::new(py, MapCall::new(Submitter::Manager(slf.clone().unbind()), opening, source))
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
    /// ("blocked", key, pid, seconds), ("log", pid, records dropped before, record or nothing), ("up",),
    /// ("gave_up", exception), ("closed",).
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
        let mut maps = std::mem::take(&mut *lock(&self.late));
        let (mut judged, mut logs) = (false, 0);
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
                Event::Yield { token, value, .. } => self.yielded(py, token as usize, value),
                Event::Judge { task, call, token, outcome } => {
                    self.judge(py, task, (call, token), outcome, &mut maps);
                    judged = true;
                }
                other => {
                    logs += usize::from(matches!(other, Event::Log { .. }));
                    orders.append(self.order(py, other)?)?;
                }
            }
            let looks = since_look >= DELIVERIES_PER_LOOK;
            if looks {
                since_look = 0;
            }
            if logs == LOGS_PER_DRAIN || looks && started.elapsed() > DELIVERY_BUDGET {
                // The rest comes with the loop's next round.
                lock(&self.driver).call_again()?;
                break;
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
        let (maps, late) = (std::mem::take(&mut *lock(&self.maps)), std::mem::take(&mut *lock(&self.late)));
        drop((pending, maps, late));
    }
}

impl Manager {
    pub(crate) fn end_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.end_call(call))
    }

    pub(crate) fn cancel_call(&self, call: CallId) -> PyResult<()> {
        self.drive(|driver| driver.cancel_call(call))
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

    pub(crate) fn read<'py>(&self, py: Python<'py>, value: &Payload) -> PyResult<Bound<'py, PyAny>> {
        self.codec.read(py, value, Inbox::of(value))
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

    /// Has a map go on in the loop's next round.
    pub(crate) fn go_on_later(&self, map: Py<MapCall>) -> PyResult<()> {
        lock(&self.late).push(map);
        Ok(lock(&self.driver).call_again()?)
    }

    /// How many items a map may have outstanding while memory for what is large is scarce.
    pub(crate) fn scarce_window(&self) -> Option<usize> {
        lock(&self.driver).scarce_window()
    }

    /// Cancels the items of a map after this one, and ends its call.
    pub(crate) fn cancel_after(&self, call: CallId, index: u64) -> PyResult<()> {
        self.drive(|driver| driver.cancel_call_after(call, index))
    }
}
