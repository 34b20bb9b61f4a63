//! A worker's turns: claims items through the engine, runs them as Python, and sends back what came of them.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use polyloop::{
    Control, Interrupt, Item, Job, Memory, Next, Reply, Rested, Stop, TaskId, Thread, Watchdog, WorkerLink,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use crate::apart::{Inbox, Outbox};
use crate::codec::{Arguments, Codec, context_of, with_traceback};
use crate::errors;
use crate::port::StreamPort;
use crate::reference::{self, travels_by_name};
use crate::task::{Done, Level, Started, TaskStarter, in_own_context, is_coroutine};

/// How long a turn may keep the loop from everything else.
const TURN_BUDGET: Duration = Duration::from_millis(1);
/// Items that end one after the other within this time are quick.
const QUICK: Duration = Duration::from_micros(20);
/// Quick items between two looks at the clock.
const STRIDE_MAX: u32 = 16;
/// Functions remembered by their references.
const FUNCTIONS_MAX: usize = 256;

/// Bits that are no task's: generations are never 0.
const NO_TASK: u64 = 0;

/// How a turn ended, as Python sees it.
const ASLEEP: u8 = 0;
const AGAIN: u8 = 1;
const DEFER: u8 = 2;
const LEAVE: u8 = 3;

struct Function {
    call: Py<PyAny>,
    /// What a person calls it: "module:name" where it has both.
    name: String,
    /// A coroutine function runs nothing when it is called.
    is_coroutine: bool,
    /// A plain function of native code: while it runs there is no frame of the user's.
    is_native: bool,
    /// A coroutine of it was once not over after its first step.
    suspends: AtomicBool,
}

/// What the items of one turn use one after the other.
#[derive(Default)]
struct Desk {
    item: Item,
    /// The function of the last item, and its reference: most items run the same as the one before.
    function: Option<(Vec<u8>, Arc<Function>)>,
    /// What an item returned, as bytes.
    value: Vec<u8>,
    /// The large parts of the next item's arguments.
    apart: Option<Arc<Memory>>,
}

/// Looks at the clock often while items take long, and less often while they do not.
struct TurnClock {
    started: Instant,
    looked: Instant,
    stride: u32,
    left: u32,
}

impl TurnClock {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, looked: now, stride: 1, left: 1 }
    }

    /// After each item: whether the turn has lasted long enough.
    fn is_over(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        let now = Instant::now();
        self.stride = if now - self.looked < QUICK { (self.stride * 2).min(STRIDE_MAX) } else { 1 };
        (self.looked, self.left) = (now, self.stride);
        now - self.started > TURN_BUDGET
    }
}

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

/// Has the worker's thread look whether what it runs has run out of time.
struct Interrupter {
    link: Arc<Mutex<WorkerLink>>,
    overdue: Arc<Mutex<BTreeSet<TaskId>>>,
    thread: Thread,
}

impl Interrupt for Interrupter {
    fn interrupt(&self, task: TaskId) {
        lock(&self.overdue).insert(task);
        // A loop that turns hears the bell. One that is blocked hears nothing but the signal.
        if let Err(error) = lock(&self.link).ring_host() {
            eprintln!("polyloop: a worker can't ring its own bell: {error}");
        }
        // SAFETY: the worker's thread is the process's main one, and lives as long as the process.
        unsafe { self.thread.signal(polyloop::interrupt_signal()) };
    }

    fn is_interrupted(&self, task: TaskId) -> bool {
        !lock(&self.overdue).contains(&task)
    }
}

enum Called<'py> {
    Value(Bound<'py, PyAny>),
    Coroutine(Bound<'py, PyAny>),
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
    fn is_ours(&self) -> bool {
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

    /// Items that run now.
    #[getter]
    fn in_flight(&self) -> u32 {
        lock(&self.link).in_flight()
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
        let py = task.py();
        lock(&self.running).remove(&job.task);
        self.report(job, task)?;
        let host = self.host()?;
        if !self.scheduled.swap(true, Ordering::Relaxed)
            && let Some(take_turn) = &host.take_turn
        {
            host.event_loop.bind(py).call_method1(intern!(py, "call_soon"), (take_turn,))?;
        }
        Ok(())
    }

    /// Does what the manager says, and starts items until there are none, no room, or the time is up.
    fn work(&self, slf: &Bound<'_, Self>) -> PyResult<u8> {
        let py = slf.py();
        let host = self.host()?;
        let level = host.tasks.level(py)?;
        let mut desk = Desk::default();
        self.cancel_overdue(py)?;
        self.obey(slf, host, &mut desk, level)?;
        self.start_items(slf, host, &mut desk, level)
    }

    /// Cancels what has run out of time and waits for something.
    fn cancel_overdue(&self, py: Python<'_>) -> PyResult<()> {
        if self.watchdog.get().is_none() {
            return Ok(());
        }
        let overdue: Vec<_> = lock(&self.overdue).iter().copied().collect();
        for id in overdue {
            let task = lock(&self.running).get(&id).map(|running| running.task.clone_ref(py));
            match task {
                Some(task) if self.mark_interrupted(id) => cancel(task.bind(py))?,
                Some(_) => (),
                // It ended while its time did.
                None => drop(lock(&self.overdue).remove(&id)),
            }
        }
        Ok(())
    }

    fn mark_interrupted(&self, task: TaskId) -> bool {
        let is_overdue = lock(&self.overdue).remove(&task);
        if is_overdue {
            lock(&self.interrupted).insert(task);
        }
        is_overdue
    }

    /// The item whose Task the loop is running.
    fn task_of_loop(&self, py: Python<'_>) -> PyResult<Option<TaskId>> {
        let asyncio = py.import(intern!(py, "asyncio"))?;
        let current = asyncio.call_method1(intern!(py, "current_task"), (&self.host()?.event_loop,))?;
        Ok(lock(&self.running).iter().find(|(_, running)| current.is(&running.task)).map(|(id, _)| *id))
    }

    /// Has the item's time counted from now.
    fn watch(&self, job: Job) -> PyResult<()> {
        let Some(timeout) = job.timeout else { return Ok(()) };
        let watchdog = match self.watchdog.get() {
            Some(watchdog) => watchdog,
            None => {
                let (link, overdue) = (Arc::clone(&self.link), Arc::clone(&self.overdue));
                let interrupter = Interrupter { link: Arc::clone(&link), overdue, thread: Thread::current() };
                let grace = lock(&link).grace();
                let watchdog = Watchdog::start(link, grace, interrupter)?;
                self.watchdog.get_or_init(|| watchdog)
            }
        };
        watchdog.watch(job, timeout);
        Ok(())
    }

    /// The item has ended. Says whether its time was the reason.
    fn forget(&self, job: Job) -> bool {
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.forget(job.task);
        }
        lock(&self.overdue).remove(&job.task);
        lock(&self.interrupted).remove(&job.task)
    }

    fn obey(&self, slf: &Bound<'_, Self>, host: &Host, desk: &mut Desk, level: Level) -> PyResult<()> {
        let py = slf.py();
        loop {
            let control = lock(&self.link).next_control(&mut desk.item).map_err(errors::worker)?;
            match control {
                None => return Ok(()),
                Some(Control::Start(job, apart)) => {
                    desk.apart = apart;
                    self.run(slf, host, job, desk, level)?;
                }
                Some(Control::Stop(Stop::Now)) => {
                    self.cancel_all(py)?;
                    self.stopping.store(true, Ordering::Relaxed);
                }
                Some(Control::Stop(Stop::WhenDone)) => (),
                Some(Control::Credit(task, values)) => {
                    let port = lock(&self.ports).get(&task).map(|port| port.clone_ref(py));
                    if let Some(port) = port {
                        port.get().credit(py, values);
                    }
                }
                Some(Control::Cancel(task)) => {
                    let task = lock(&self.running).get(&task).map(|running| running.task.clone_ref(py));
                    if let Some(task) = task {
                        cancel(task.bind(py))?;
                    }
                }
            }
        }
    }

    fn start_items(&self, slf: &Bound<'_, Self>, host: &Host, desk: &mut Desk, level: Level) -> PyResult<u8> {
        let mut clock = TurnClock::new();
        loop {
            let next = lock(&self.link).next_item(&mut desk.item).map_err(errors::worker)?;
            match next {
                Next::Start(job) => self.run(slf, host, job, desk, level)?,
                Next::Defer(_) => return Ok(DEFER),
                Next::Nothing => return Ok(ASLEEP),
            }
            if self.is_abandoned() || clock.is_over() {
                return Ok(AGAIN);
            }
        }
    }

    fn run(&self, slf: &Bound<'_, Self>, host: &Host, job: Job, desk: &mut Desk, level: Level) -> PyResult<()> {
        self.watch(job)?;
        self.current.store(job.task.to_bits(), Ordering::Relaxed);
        let context = context_of(&desk.item.arguments).map(|context| self.codec.loads(slf.py(), context));
        let begun = match context {
            None => self.begin(slf, host, job, desk, level),
            Some(Ok(values)) => self.begin_in(slf, host, job, desk, level, &values),
            Some(Err(error)) => self.reply_error(slf.py(), job, &error),
        };
        self.current.store(NO_TASK, Ordering::Relaxed);
        begun?;
        // A process that this item forked goes no further: the loop shares what it waits for with the worker's.
        if self.is_ours() { Ok(()) } else { Err(PyRuntimeError::new_err("this process is not the worker")) }
    }

    /// Begins an item in a context in which the variables that came with it are set.
    fn begin_in(
        &self,
        slf: &Bound<'_, Self>,
        host: &Host,
        job: Job,
        desk: &mut Desk,
        level: Level,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (begun, _) = in_own_context(slf.py(), |_| match enter(host, values) {
            Ok(()) => self.begin(slf, host, job, desk, level),
            Err(error) => self.reply_error(slf.py(), job, &error),
        })?;
        begun
    }

    fn begin(&self, slf: &Bound<'_, Self>, host: &Host, job: Job, desk: &mut Desk, level: Level) -> PyResult<()> {
        let py = slf.py();
        let Desk { item, function, value: bytes, apart } = desk;
        let apart = apart.take();
        let (manner, reference) = reference::split(&item.function);
        if manner.name.is_some() || job.attempt > 1 {
            let remark = Remark { name: manner.name.map(str::to_owned), attempt: job.attempt };
            lock(&self.remarks).insert(job.task, remark);
            self.any_remarks.store(true, Ordering::Relaxed);
        }
        let function = match self.function(py, reference, function) {
            Err(error) if self.codec.is_not_importable(py, &error) => {
                let bytes = self.codec.dump_exception(py, &error)?;
                self.reply(job, Reply::Rejected(&bytes));
                return Ok(());
            }
            function => function,
        };
        let called = function.and_then(|function| {
            let arguments = self.codec.read_arguments(py, &item.arguments, Inbox::new(apart.as_ref(), job.kept))?;
            // What uses the memory keeps it, and no longer than that.
            drop(apart);
            let called = match manner.is_stream {
                true => self.open_port(slf, host, job, function, manner.in_thread, arguments)?,
                false => self.call(py, host, function, manner.in_thread, arguments)?,
            };
            Ok((called, Arc::clone(function)))
        });
        let (coroutine, function) = match called {
            Ok((Called::Value(value), _)) => return self.reply_value(job, &value, bytes),
            Ok((Called::Coroutine(coroutine), function)) => (coroutine, function),
            Err(error) if self.was_interrupted(py, host, job, &error)? => {
                self.reply(job, Reply::Cancelled);
                return Ok(());
            }
            Err(error) => return self.reply_error(py, job, &error),
        };
        match host.tasks.start(&coroutine, level, &function.suspends, manner.name) {
            Err(error) => {
                // It may not have begun, when a signal came first; then it is closed without a warning.
                coroutine.call_method0(intern!(py, "close"))?;
                self.reply_error(py, job, &error)
            }
            Ok(Started::Ended(Ok(value))) => self.reply_value(job, &value, bytes),
            Ok(Started::Ended(Err(error))) if error.matches(py, &host.cancelled_error)? => {
                self.reply(job, Reply::Cancelled);
                Ok(())
            }
            Ok(Started::Ended(Err(error))) => self.reply_error(py, job, &error),
            Ok(Started::Task(task)) if task.call_method0(intern!(py, "done"))?.is_truthy()? => self.report(job, &task),
            Ok(Started::Task(task)) => {
                lock(&self.running).insert(job.task, Running { task: task.clone().unbind(), function });
                let done = Done::new(slf.clone().unbind(), job);
                task.call_method1(intern!(py, "add_done_callback"), (done,))?;
                Ok(())
            }
        }
    }

    /// Opens a stream: what gives its values.
    fn open_port<'py>(
        &self,
        slf: &Bound<'py, Self>,
        host: &Host,
        job: Job,
        function: &Function,
        in_thread: bool,
        arguments: Arguments<'py>,
    ) -> PyResult<Called<'py>> {
        let py = slf.py();
        let (args, kwargs) = arguments.into_parts(py)?;
        let port = Py::new(py, StreamPort::new(slf.clone().unbind(), job))?;
        lock(&self.ports).insert(job.task, port.clone_ref(py));
        self.any_ports.store(true, Ordering::Relaxed);
        host.produce.bind(py).call1((port, &function.call, args, kwargs, in_thread)).map(Called::Coroutine)
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        host: &Host,
        function: &Function,
        in_thread: bool,
        arguments: Arguments<'py>,
    ) -> PyResult<Called<'py>> {
        let call = function.call.bind(py);
        if function.is_coroutine {
            return arguments.call(call).map(Called::Coroutine);
        }
        if in_thread {
            let (args, kwargs) = arguments.into_parts(py)?;
            return host.run_in_thread.bind(py).call1((call, args, kwargs)).map(Called::Coroutine);
        }
        self.in_native.store(function.is_native, Ordering::Relaxed);
        let called = in_own_context(py, |_| arguments.call(call));
        self.in_native.store(false, Ordering::Relaxed);
        let result = called?.0?;
        if is_coroutine(&result) {
            return Ok(Called::Coroutine(result));
        }
        if is_awaitable(&result) {
            return host.wait_for.bind(py).call1((result,)).map(Called::Coroutine);
        }
        Ok(Called::Value(result))
    }

    /// Whether this error of an item is there because it was interrupted.
    fn was_interrupted(&self, py: Python<'_>, host: &Host, job: Job, error: &PyErr) -> PyResult<bool> {
        let is_cancelled = self.cancelled.load(Ordering::Relaxed) == job.task.to_bits();
        let was = is_cancelled || job.timeout.is_some() && lock(&self.interrupted).contains(&job.task);
        Ok(was && error.matches(py, &host.cancelled_error)?)
    }

    /// The function a reference stands for, which is often that of the `last` item.
    fn function<'a>(
        &self,
        py: Python<'_>,
        reference: &[u8],
        last: &'a mut Option<(Vec<u8>, Arc<Function>)>,
    ) -> PyResult<&'a Arc<Function>> {
        let loaded = match last.take() {
            Some(last) if last.0 == reference && is_remembered(reference) => last,
            _ => {
                let function = self.load_function(py, reference)?;
                let before = lock(&self.function_at_hand).replace(Arc::clone(&function));
                drop(before);
                (reference.to_vec(), function)
            }
        };
        Ok(&last.insert(loaded).1)
    }

    /// The function a reference stands for: remembered for all calls if it travels by name, else for its own call.
    fn load_function(&self, py: Python<'_>, reference: &[u8]) -> PyResult<Arc<Function>> {
        if let Some(function) = lock(&self.functions).get(reference) {
            return Ok(Arc::clone(function));
        }
        let call = self.codec.load_function(py, reference)?;
        let inspect = py.import(intern!(py, "inspect"))?;
        let is_coroutine = inspect.call_method1(intern!(py, "iscoroutinefunction"), (&call,))?.is_truthy()?;
        let name = name_of(&call)?;
        let (is_native, suspends) = (is_native(&call)?, AtomicBool::new(false));
        let function = Arc::new(Function { call: call.unbind(), name, is_coroutine, is_native, suspends });
        if is_remembered(reference) {
            self.remember(reference, Arc::clone(&function));
        }
        Ok(function)
    }

    fn remember(&self, reference: &[u8], function: Arc<Function>) {
        let forgotten = {
            let mut functions = lock(&self.functions);
            let full = functions.len() >= FUNCTIONS_MAX;
            let forgotten = if full { std::mem::take(&mut *functions) } else { HashMap::new() };
            functions.insert(reference.to_vec(), function);
            forgotten
        };
        // Not under the lock: a function may hold something that runs code as it goes.
        drop(forgotten);
    }

    /// Sends what came of a task that has ended.
    fn report(&self, job: Job, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        // Asked first, as asking for the result takes the message and the context of a cancellation from the task.
        if task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            self.reply(job, Reply::Cancelled);
            return Ok(());
        }
        match task.call_method0(intern!(py, "result")) {
            Ok(value) => self.reply_value(job, &value, &mut Vec::new()),
            Err(error) => self.reply_error(py, job, &error),
        }
    }

    fn reply_value(&self, job: Job, value: &Bound<'_, PyAny>, bytes: &mut Vec<u8>) -> PyResult<()> {
        let py = value.py();
        bytes.clear();
        let mut apart = Outbox::default();
        let mut written = self.codec.write(value, bytes, &mut apart);
        if written.is_ok() && !apart.is_empty() {
            if self.reply_apart(py, job, bytes, &apart) {
                return Ok(());
            }
            bytes.clear();
            written = self.codec.write(value, bytes, &mut Outbox::closed());
        }
        match written {
            Ok(()) => match self.too_large(py, "a result", bytes)? {
                None => self.reply(job, Reply::Value(bytes)),
                Some(error) => self.reply(job, Reply::Raised(&error)),
            },
            Err(reason) if self.was_interrupted(py, self.host()?, job, &reason)? => self.reply(job, Reply::Cancelled),
            Err(reason) => {
                let bytes = self.codec.dump_unsendable(value, &reason)?;
                self.reply(job, Reply::Raised(&bytes));
            }
        }
        Ok(())
    }

    /// Sends a value whose large parts go into a block. Says whether there was one.
    fn reply_apart(&self, py: Python<'_>, job: Job, bytes: &[u8], apart: &Outbox) -> bool {
        let Some(lease) = apart.store(py, |len| lock(&self.link).take_block(len)) else { return false };
        if self.is_abandoned() {
            return true;
        }
        let is_sent = lock(&self.link).reply_apart(job, bytes, lease).is_ok();
        if is_sent {
            self.forget_remark(job);
            if job.timeout.is_some() {
                self.forget(job);
            }
        }
        is_sent
    }

    fn reply_error(&self, py: Python<'_>, job: Job, error: &PyErr) -> PyResult<()> {
        if let Some(handler) = self.host()?.exception_handler.as_ref()
            && let Err(failure) = handler.bind(py).call1((with_traceback(py, error),))
        {
            // The task's own exception is what its caller must get.
            failure.write_unraisable(py, Some(handler.bind(py)));
        }
        let bytes = self.codec.dump_exception(py, error)?;
        let too_large = self.too_large(py, "an exception", &bytes)?;
        self.reply(job, Reply::Raised(too_large.as_deref().unwrap_or(&bytes)));
        Ok(())
    }

    /// What is raised in place of an outcome that is larger than a worker may send.
    pub(crate) fn too_large(&self, py: Python<'_>, what: &str, bytes: &[u8]) -> PyResult<Option<Vec<u8>>> {
        let (len, max) = (bytes.len() as u64, self.max_reply);
        if len <= max {
            return Ok(None);
        }
        let advice = "return less of it at a time, or leave it in a file";
        let error = PyValueError::new_err(format!("{what} of {len} bytes is more than the {max} that fit; {advice}"));
        self.codec.dump_exception(py, &error).map(Some)
    }

    fn reply(&self, job: Job, reply: Reply<'_>) {
        self.forget_remark(job);
        let reply = match reply {
            Reply::Cancelled if job.timeout.is_some() && self.forget(job) => Reply::TimedOut,
            reply => {
                if job.timeout.is_some() {
                    self.forget(job);
                }
                reply
            }
        };
        if !self.is_abandoned() {
            lock(&self.link).reply(job, reply);
        }
    }

    /// Forgets what is said of an item that has ended, and the port of one that was a stream.
    fn forget_remark(&self, job: Job) {
        if self.any_remarks.load(Ordering::Relaxed) {
            lock(&self.remarks).remove(&job.task);
        }
        if self.any_ports.load(Ordering::Relaxed) {
            let port = lock(&self.ports).remove(&job.task);
            drop(port);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn host(&self) -> PyResult<&Host> {
        self.host.get().ok_or_else(|| PyRuntimeError::new_err("this worker has not been started"))
    }
}

/// References by name mean the same for ever; by value they are remembered where they carry the number of a call.
fn is_remembered(reference: &[u8]) -> bool {
    travels_by_name(reference) || reference.get(1..9).is_some_and(|scope| scope != [0; 8])
}

/// "module:name" of a function that has both, else what it shows of itself.
fn name_of(function: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = function.py();
    let module = function.getattr_opt(intern!(py, "__module__"))?.and_then(|module| module.extract::<String>().ok());
    let name = function.getattr_opt(intern!(py, "__qualname__"))?.and_then(|name| name.extract::<String>().ok());
    match (module, name) {
        (Some(module), Some(name)) => Ok(format!("{module}:{name}")),
        (None, Some(name)) => Ok(name),
        (_, None) => function.repr()?.extract(),
    }
}

/// Sets the variables that came with an item, in the current context.
fn enter(host: &Host, values: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = values.py();
    for (at, value) in values.extract::<HashMap<usize, Py<PyAny>>>()? {
        if let Some(variable) = host.contextvars.get(at) {
            variable.call_method1(py, intern!(py, "set"), (value,))?;
        }
    }
    Ok(())
}

/// Whether this is a function of native code, or a partial of one.
fn is_native(call: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = call.py();
    let partial = py.import(intern!(py, "functools"))?.getattr(intern!(py, "partial"))?;
    let mut function = call.clone();
    while function.is_exact_instance(&partial) {
        function = function.getattr(intern!(py, "func"))?;
    }
    Ok(function.is_instance_of::<PyCFunction>())
}

fn cancel(task: &Bound<'_, PyAny>) -> PyResult<()> {
    task.call_method0(intern!(task.py(), "cancel")).map(drop)
}

fn is_awaitable(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object's type is live, and its table of asynchronous slots, if there is one, is never changed.
    unsafe {
        let slots = (*value.get_type_ptr()).tp_as_async;
        !slots.is_null() && (*slots).am_await.is_some()
    }
}
