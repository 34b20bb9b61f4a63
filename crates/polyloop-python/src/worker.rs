//! A worker as Python sees it: what it is told, what it tells, and whose turn it is. What a turn does is in `turn`.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use polyloop::{Job, Rested, TaskId, Watchdog, WorkerLink};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use self::calls::Calls;
pub(crate) use self::calls::Errand;
use self::functions::Function;
use crate::call_port::CallPort;
use crate::codec::Codec;
use crate::errors;
use crate::port::StreamPort;
use crate::task::TaskStarter;

mod calls;
mod functions;
mod replies;
mod time;
mod turn;

/// Bits that are no task's: generations are never 0.
const NO_TASK: u64 = 0;

/// How a turn ended, as Python sees it.
const ASLEEP: u8 = 0;
const AGAIN: u8 = 1;
const DEFER: u8 = 2;
const LEAVE: u8 = 3;

/// What the host's loop gives the worker when it starts.
struct Host {
    tasks: TaskStarter,
    event_loop: Py<PyAny>,
    /// What the loop is to call soon; `None` where it looks by itself whether a turn is due.
    take_turn: Option<Py<PyAny>>,
    exception_handler: Option<Py<PyAny>>,
    wait_for: Py<PyAny>,
    run_in_thread: Py<PyAny>,
    produce: Py<PyAny>,
    contextvars: Vec<Py<PyAny>>,
    /// Where items have their numbers, once they are marked.
    caller: Py<PyAny>,
    cancelled_error: Py<PyAny>,
}

/// The worker's side of a pool: connects over the socket it was given, and takes turns on the worker's event loop.
///
/// Parameters:
///     socket: the descriptor the pool passed to this process; it is taken over.
///     handle: a descriptor of this process (a pidfd), if it is not to open one itself; it is taken over.
///
/// Raises:
///     ConnectionError: the pool is gone.
///     OSError: the pool is of another version, or the system refuses.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct Worker {
    link: Arc<Mutex<WorkerLink>>,
    /// Bytes that an outcome may have.
    max_reply: u64,
    codec: Codec,
    host: OnceLock<Host>,
    functions: Mutex<HashMap<Vec<u8>, Arc<Function>>>,
    /// The function of the item that runs its first step, or ran it last.
    function_at_hand: Mutex<Option<Arc<Function>>>,
    running: Mutex<HashMap<TaskId, Running>>,
    /// What items have called the pool for.
    calls: Calls,
    /// The item whose function or first step runs, as bits; 0 for none.
    current: AtomicU64,
    /// What is said of items that are not like most: named, or run again.
    remarks: Mutex<HashMap<TaskId, Remark>>,
    /// Whether there was ever such an item.
    any_remarks: AtomicBool,
    /// Where the values of streams leave.
    ports: Mutex<HashMap<TaskId, Py<StreamPort>>>,
    /// Whether there was ever a stream.
    any_ports: AtomicBool,
    /// The last item that was interrupted there because it was cancelled, likewise.
    cancelled: AtomicU64,
    watchdog: OnceLock<Watchdog>,
    /// Items whose time is up, and that have not been interrupted.
    overdue: Arc<Mutex<BTreeSet<TaskId>>>,
    /// Items that were interrupted for it.
    interrupted: Mutex<BTreeSet<TaskId>>,
    scheduled: AtomicBool,
    /// This process was told to end at once: what it runs counts as lost with it.
    abandoned: AtomicBool,
    /// The pool has said to end now, and everything that ran has been cancelled.
    stopping: AtomicBool,
    /// An item's native function runs.
    in_native: AtomicBool,
    generation: u32,
}

/// An item that was not over after its first step.
struct Running {
    task: Py<PyAny>,
    function: Arc<Function>,
}

#[derive(Clone)]
struct Remark {
    name: Option<String>,
    attempt: u8,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Worker {
    #[new]
    #[pyo3(signature = (socket, handle=None))]
    fn new(py: Python<'_>, socket: RawFd, handle: Option<RawFd>) -> PyResult<Self> {
        let socket = errors::owned(socket)?;
        let handle = handle.map(errors::owned).transpose()?;
        let link = py.detach(|| match handle {
            None => WorkerLink::connect(socket),
            Some(handle) => WorkerLink::connect_as(socket, handle.as_fd()),
        });
        let link = link.map_err(errors::connect)?;
        Ok(Self {
            max_reply: link.max_reply(),
            link: Arc::new(Mutex::new(link)),
            codec: Codec::new(py)?,
            host: OnceLock::new(),
            functions: Mutex::default(),
            function_at_hand: Mutex::default(),
            running: Mutex::default(),
            calls: Calls::default(),
            current: AtomicU64::new(NO_TASK),
            remarks: Mutex::default(),
            any_remarks: AtomicBool::new(false),
            ports: Mutex::default(),
            any_ports: AtomicBool::new(false),
            cancelled: AtomicU64::new(NO_TASK),
            watchdog: OnceLock::new(),
            overdue: Arc::default(),
            interrupted: Mutex::default(),
            scheduled: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            in_native: AtomicBool::new(false),
            generation: polyloop::forked_generation(),
        })
    }

    /// The descriptor to watch: take a turn when it is readable.
    fn fileno(&self) -> RawFd {
        self.bell_fd()
    }

    /// Tell the pool that this worker takes work, and how it is to run it.
    ///
    /// Parameters:
    ///     event_loop: the loop that turns are taken on.
    ///     take_turn: what the loop is to call soon when an item has ended; None if it looks for that by itself.
    ///     wait_for: a coroutine function that awaits its argument.
    ///     run_in_thread: a coroutine function that calls a function with these arguments on a thread.
    ///     produce: a coroutine function that calls a function and gives what it yields to a port; its last argument is
    ///         whether that is done on a thread.
    ///     contextvars: the context variables that travel with items, in the pool's order.
    ///     caller: the context variable in which what an item starts finds the item's number.
    ///     exception_handler: called with each exception that an item raises, or None.
    ///     tasks: "lazy", "eager" or "plain": how items get their Tasks, if loop and interpreter allow it.
    ///
    /// Raises:
    ///     ValueError: `tasks` is none of these.
    #[expect(clippy::too_many_arguments, reason = "each has its name in Python")]
    fn start(
        &self,
        event_loop: &Bound<'_, PyAny>,
        take_turn: Option<Py<PyAny>>,
        wait_for: Py<PyAny>,
        run_in_thread: Py<PyAny>,
        produce: Py<PyAny>,
        contextvars: Vec<Py<PyAny>>,
        caller: Py<PyAny>,
        exception_handler: Option<Py<PyAny>>,
        tasks: &str,
    ) -> PyResult<()> {
        let py = event_loop.py();
        let host = Host {
            tasks: TaskStarter::new(event_loop, tasks.parse()?)?,
            event_loop: event_loop.clone().unbind(),
            take_turn,
            exception_handler,
            wait_for,
            run_in_thread,
            produce,
            contextvars,
            caller,
            cancelled_error: py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "CancelledError"))?.unbind(),
        };
        if self.host.set(host).is_err() {
            return Err(PyRuntimeError::new_err("this worker has been started already"));
        }
        Ok(lock(&self.link).ready()?)
    }

    /// Have the pool log a record. Never waits: what finds no room is counted, and the pool told of it.
    fn log(&self, record: &[u8]) {
        lock(&self.link).log(record);
    }

    /// Tell the pool that this worker could not be initialised.
    fn failed(&self, error: &[u8]) -> PyResult<()> {
        Ok(lock(&self.link).failed(error)?)
    }

    /// Take a turn. Returns what to do next: 0 wait for the descriptor, 1 take another turn soon, 2 take one after
    /// `defer_s` seconds, 3 leave.
    fn turn(slf: &Bound<'_, Self>) -> PyResult<u8> {
        let this = slf.get();
        if this.is_abandoned() {
            return Ok(LEAVE);
        }
        this.scheduled.store(false, Ordering::Relaxed);
        lock(&this.link).begin_turn()?;
        let next = this.work(slf)?;
        let rested = match next {
            AGAIN => AGAIN,
            next => match lock(&this.link).end_turn(next == DEFER)? {
                Rested::Again => AGAIN,
                Rested::Asleep => next,
                Rested::Leave => LEAVE,
            },
        };
        if rested == AGAIN {
            this.scheduled.store(true, Ordering::Relaxed);
        }
        Ok(rested)
    }

    /// Start nothing more and report nothing more: this process is about to end with what it runs.
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        lock(&self.link).abandon();
    }

    /// Whether this process is the worker, not one that it forked.
    #[getter]
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == polyloop::forked_generation()
    }

    /// Whether a native function that an item is runs: whatever interrupts it is the item's, though no frame is.
    #[getter]
    fn is_in_native(&self) -> bool {
        self.in_native.load(Ordering::Relaxed)
    }

    /// Whether the pool has said to end now, and everything that ran has been cancelled.
    #[getter]
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// In a process that an item forked: share with the worker no more what its loop waits for, and go on with no other
    /// task; whichever would calls `leave`, which does not return.
    fn part_from_parent(&self, py: Python<'_>, leave: Py<PyAny>) -> PyResult<()> {
        polyloop::part_from_parent()?;
        self.host()?.tasks.abandon_others(py, &leave)
    }

    /// The signal that has the worker's thread call `interrupts`.
    #[classattr]
    fn interrupt_signal() -> i32 {
        polyloop::interrupt_signal()
    }

    /// Whether the item whose code was interrupted has run out of time or is cancelled, and has not been told.
    fn interrupts(&self, py: Python<'_>) -> PyResult<bool> {
        let current = self.current.load(Ordering::Relaxed);
        let task = match current {
            NO_TASK => self.task_of_loop(py)?,
            bits => Some(TaskId::from_bits(bits)),
        };
        let Some(task) = task else { return Ok(false) };
        if self.mark_interrupted(task) {
            return Ok(true);
        }
        let is_cancelled = lock(&self.link).overhears_cancel(task);
        if is_cancelled {
            self.cancelled.store(current, Ordering::Relaxed);
        }
        Ok(is_cancelled)
    }

    /// This worker's place among the pool's.
    #[getter]
    fn index(&self) -> u16 {
        lock(&self.link).seat()
    }

    /// The item that is running: its number, its name, and which run of it this is, from 1. None between items.
    fn current_item(&self, py: Python<'_>) -> PyResult<Option<(u64, String, u8)>> {
        let current = self.current.load(Ordering::Relaxed);
        let (task, function) = match current {
            NO_TASK => {
                let Some(task) = self.task_of_loop(py)? else { return Ok(None) };
                (task, lock(&self.running).get(&task).map(|running| running.function.name.clone()))
            }
            bits => {
                (TaskId::from_bits(bits), lock(&self.function_at_hand).as_ref().map(|function| function.name.clone()))
            }
        };
        let remark = lock(&self.remarks).get(&task).cloned();
        let (name, attempt) = remark.map_or((None, 1), |remark| (remark.name, remark.attempt));
        Ok(Some((task.to_bits(), name.or(function).unwrap_or_default(), attempt)))
    }

    /// Where the calls leave that the item with this number makes of the pool; or, where it is None, whichever item it is.
    /// `capture_context` gives the bytes of what travels with a call, or None.
    ///
    /// Raises:
    ///     RuntimeError: it can't be an item's code that runs.
    #[pyo3(signature = (caller, capture_context=None))]
    fn call_port(slf: &Bound<'_, Self>, caller: Option<u64>, capture_context: Option<Py<PyAny>>) -> PyResult<CallPort> {
        Self::port_for(slf, caller, capture_context)
    }

    /// Items that run now.
    #[getter]
    fn in_flight(&self) -> u32 {
        lock(&self.link).in_flight()
    }

    /// The loop takes no more turns: have whatever waits for a call of the pool go on, as cancelled.
    fn end_calls(&self, py: Python<'_>) -> PyResult<()> {
        self.cancel_calls(py)
    }

    /// Cancel every item that runs.
    fn cancel_all(&self, py: Python<'_>) -> PyResult<()> {
        let tasks: Vec<_> = lock(&self.running).values().map(|running| running.task.clone_ref(py)).collect();
        tasks.iter().try_for_each(|task| cancel(task.bind(py)))
    }

    /// How long a turn that returned 2 is put off, in seconds.
    #[classattr]
    fn defer_s() -> f64 {
        polyloop::DEFER.as_secs_f64()
    }
}

impl Worker {
    pub(crate) fn codec(&self) -> &Codec {
        &self.codec
    }

    pub(crate) fn create_future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.host()?.event_loop.call_method0(py, intern!(py, "create_future"))
    }

    /// Sends a value of a stream.
    pub(crate) fn give(&self, job: Job, value: &[u8]) -> PyResult<()> {
        if self.is_abandoned() { Ok(()) } else { Ok(lock(&self.link).give(job, value)?) }
    }

    pub(crate) fn bell_fd(&self) -> RawFd {
        lock(&self.link).as_fd().as_raw_fd()
    }

    /// Whether a turn is to be taken soon, whatever the bell says.
    pub(crate) fn is_turn_due(&self) -> bool {
        self.scheduled.load(Ordering::Relaxed)
    }

    /// An item's task has ended.
    pub(crate) fn ended(&self, job: Job, task: &Bound<'_, PyAny>) -> PyResult<()> {
        lock(&self.running).remove(&job.task);
        self.report(job, task)?;
        self.schedule_turn(task.py())
    }

    /// Has a turn taken soon.
    pub(crate) fn schedule_turn(&self, py: Python<'_>) -> PyResult<()> {
        let host = self.host()?;
        if !self.scheduled.swap(true, Ordering::Relaxed)
            && let Some(take_turn) = &host.take_turn
        {
            host.event_loop.bind(py).call_method1(intern!(py, "call_soon"), (take_turn,))?;
        }
        Ok(())
    }

    /// Forgets what is kept of an item that has ended. Says whether its time was the reason.
    fn forget_ended(&self, job: Job) -> bool {
        if self.any_remarks.load(Ordering::Relaxed) {
            lock(&self.remarks).remove(&job.task);
        }
        if self.any_ports.load(Ordering::Relaxed) {
            let port = lock(&self.ports).remove(&job.task);
            drop(port);
        }
        job.timeout.is_some() && self.forget_time(job)
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn host(&self) -> PyResult<&Host> {
        self.host.get().ok_or_else(|| PyRuntimeError::new_err("this worker has not been started"))
    }
}

fn cancel(task: &Bound<'_, PyAny>) -> PyResult<()> {
    task.call_method0(intern!(task.py(), "cancel")).map(drop)
}
