//! The turns of a worker on its tokio runtime: taken when the pool rings, when an item has ended, and as often as the last
//! turn asked for.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use polyloop_core::{Reply, Stop, TaskId};
use polyloop_shm::Item;
use tokio::task::{AbortHandle, spawn_blocking, spawn_local, yield_now};

use super::panics::guard;
use super::running::{Running, Went};
use super::streams::{Port, produce};
use crate::blocks::Memory;
use crate::face::buffer::Outbox;
use crate::face::codec::{self, Failure};
use crate::face::error::RemoteError;
use crate::face::function::{Called, Role, Suspended, TaskRole, Written};
use crate::face::program::Program;
use crate::face::reference::Reference;
use crate::face::stream_function::StreamRole;
use crate::face::watched::Watched;
use crate::os::Timer;
use crate::signals;
use crate::watchdog::{Interrupt, Watchdog};
use crate::worker::{Control, Job, Next, Rested, WorkerError, WorkerLink};

/// How long one turn may keep the other tasks of the runtime waiting.
const TURN_BUDGET: Duration = Duration::from_millis(1);
/// Items started between two looks at the clock.
const STARTS_PER_LOOK: u32 = 32;
/// What a worker keeps of the buffer that results are written into, once one was larger.
const OUT_KEPT_BYTES: usize = 1 << 20;

/// How a worker's life ends.
pub(super) enum Ending {
    /// It was told to leave, and has finished what it ran.
    Done,
    /// By SIGTERM, which the pool has not sent.
    Terminated,
    /// The pool can't be understood.
    Broken(WorkerError),
}

enum Turned {
    Again,
    Asleep,
    Deferred(Duration),
    Leave,
}

enum Started {
    /// More may be waiting.
    Some,
    Nothing,
    Deferred(Duration),
}

/// A worker's items, and its side of the pool.
pub(super) struct Items {
    link: Arc<Mutex<WorkerLink>>,
    max_reply: u64,
    program: &'static Program,
    running: RefCell<BTreeMap<TaskId, Runs>>,
    watchdog: OnceCell<Watchdog>,
    overdue: Arc<Mutex<Overdue>>,
    /// An item has ended since the last turn began.
    turn_due: Cell<bool>,
    /// Nothing more is told.
    abandoned: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

/// An item that runs on the loop.
struct Runs {
    handle: AbortHandle,
    /// Where its values leave, if it is a stream.
    port: Option<Rc<Port>>,
}

/// Items whose time is up: those that have not been told, and those that have.
#[derive(Default)]
struct Overdue {
    untold: BTreeSet<TaskId>,
    told: BTreeSet<TaskId>,
}

/// How the watchdog reaches the loop.
struct Interrupter {
    link: Arc<Mutex<WorkerLink>>,
    overdue: Arc<Mutex<Overdue>>,
}

impl Interrupt for Interrupter {
    fn interrupt(&self, task: TaskId) {
        lock(&self.overdue).untold.insert(task);
        // A loop that can't be rung has ended, and so has the item.
        let _ = lock(&self.link).ring_host();
    }

    fn is_interrupted(&self, task: TaskId) -> bool {
        lock(&self.overdue).told.contains(&task)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker's loop.
pub(super) struct Host {
    items: Rc<Items>,
    item: Item,
    out: Vec<u8>,
    stopping: bool,
}

impl Host {
    pub(super) fn new(program: &'static Program, link: Arc<Mutex<WorkerLink>>) -> Self {
        let max_reply = lock(&link).max_reply();
        let items = Items {
            link,
            max_reply,
            program,
            running: RefCell::default(),
            watchdog: OnceCell::new(),
            overdue: Arc::default(),
            turn_due: Cell::new(false),
            abandoned: Cell::new(false),
            waiting: RefCell::new(None),
        };
        Self { items: Rc::new(items), item: Item::default(), out: Vec::new(), stopping: false }
    }

    pub(super) fn link(&self) -> Arc<Mutex<WorkerLink>> {
        Arc::clone(&self.items.link)
    }

    /// Serves the pool until it is time to leave.
    pub(super) async fn work(mut self) -> Ending {
        match self.take_turns().await {
            Ok(ending) => ending,
            Err(error) => Ending::Broken(error),
        }
    }

    async fn take_turns(&mut self) -> Result<Ending, WorkerError> {
        lock(&self.items.link).ready()?;
        let bell = Watched::new(lock(&self.items.link).as_fd().try_clone_to_owned()?)?;
        let (timer, deferral) = (Timer::new()?, OnceCell::new());
        loop {
            if signals::is_terminated() && !self.stopping {
                self.abandon().await;
                return Ok(Ending::Terminated);
            }
            match self.turn()? {
                Turned::Leave => return Ok(Ending::Done),
                Turned::Again => yield_now().await,
                Turned::Asleep => self.rest(&bell, None).await?,
                Turned::Deferred(delay) => {
                    if deferral.get().is_none() {
                        drop(deferral.set(Watched::new(timer.as_fd().try_clone_to_owned()?)?));
                    }
                    timer.set(Some(delay))?;
                    self.rest(&bell, deferral.get()).await?;
                    timer.silence()?;
                }
            }
        }
    }

    /// Starts nothing more and answers for nothing more: the pool finds what ran in a worker that died.
    async fn abandon(&self) {
        self.items.abandoned.set(true);
        lock(&self.items.link).abandon();
        self.items.cancel_all();
        while !self.items.running.borrow().is_empty() {
            yield_now().await;
        }
    }

    /// Waits until the pool rings, an item has ended, or the time of a deferral is over.
    async fn rest(&self, bell: &Watched, deferral: Option<&Watched>) -> io::Result<()> {
        poll_fn(|context| {
            if self.items.turn_due.get() {
                return Poll::Ready(Ok(()));
            }
            *self.items.waiting.borrow_mut() = Some(context.waker().clone());
            let is_over = deferral.is_some_and(|timer| timer.poll(context).is_ready());
            if is_over { Poll::Ready(Ok(())) } else { bell.poll(context) }
        })
        .await
    }

    fn turn(&mut self) -> Result<Turned, WorkerError> {
        self.items.turn_due.set(false);
        lock(&self.items.link).begin_turn()?;
        self.items.cancel_overdue();
        self.obey()?;
        let started = self.start_items()?;
        let deferral = match started {
            Started::Some => return Ok(Turned::Again),
            Started::Deferred(delay) => Some(delay),
            Started::Nothing => None,
        };
        Ok(match lock(&self.items.link).end_turn(deferral.is_some())? {
            Rested::Again => Turned::Again,
            Rested::Leave => Turned::Leave,
            Rested::Asleep => deferral.map_or(Turned::Asleep, Turned::Deferred),
        })
    }

    fn obey(&mut self) -> Result<(), WorkerError> {
        loop {
            let control = lock(&self.items.link).next_control(&mut self.item)?;
            match control {
                None => return Ok(()),
                Some(Control::Start(job, memory)) => self.run(job, memory)?,
                Some(Control::Cancel(task)) => self.items.cancel(task),
                Some(Control::Stop(Stop::Now)) => {
                    self.stopping = true;
                    self.items.cancel_all();
                }
                Some(Control::Credit(task, values)) => self.items.credit(task, values),
                // Nothing here calls its pool.
                Some(Control::Stop(Stop::WhenDone) | Control::Answer(..)) => (),
            }
        }
    }

    fn start_items(&mut self) -> Result<Started, WorkerError> {
        let began = Instant::now();
        for starts in 1.. {
            let next = lock(&self.items.link).next_item(&mut self.item)?;
            match next {
                Next::Start(job) => self.run(job, None)?,
                Next::Defer(delay) => return Ok(Started::Deferred(delay)),
                Next::Nothing => return Ok(Started::Nothing),
            }
            if starts % STARTS_PER_LOOK == 0 && began.elapsed() > TURN_BUDGET || signals::is_terminated() {
                break;
            }
        }
        Ok(Started::Some)
    }

    /// Begins the item whose bytes have come, and the memory that came along. Most end at once.
    fn run(&mut self, job: Job, memory: Option<Arc<Memory>>) -> io::Result<()> {
        self.items.watch(job)?;
        let Self { items, item, out, .. } = self;
        let role = Reference::from_bytes(&item.function)
            .and_then(|reference| Some((items.program.entry(reference.entry)?.role, reference.in_thread)));
        let task = match role {
            Some((Role::Task(task), true)) if task.is_plain => {
                run_in_thread(items, job, task, item.arguments.clone(), memory);
                return Ok(());
            }
            Some((Role::Task(task), _)) => task,
            Some((Role::Stream(stream), _)) => {
                open_stream(items, job, stream, &item.arguments, memory);
                return Ok(());
            }
            Some((Role::Lifespan(_), _)) | None => {
                items.reply(job, Reply::Rejected(&[]));
                return Ok(());
            }
        };
        match guard(|| (task.call)(&item.arguments, memory, out)) {
            Ok(Called::Done(result)) => {
                items.finish(job, Ok(result.map(|outbox| Written { bytes: &out[..], outbox })));
                if out.capacity() > OUT_KEPT_BYTES {
                    *out = Vec::new();
                }
            }
            Ok(Called::Suspended(future)) => go_on(items, job, future, None),
            Err(panic) => items.finish(job, Went::<&[u8]>::Err(panic)),
        }
        Ok(())
    }
}

/// Has an item go on that has not ended at once.
fn go_on(items: &Rc<Items>, job: Job, future: Suspended<Result<Written<Vec<u8>>, Failure>>, port: Option<Rc<Port>>) {
    let handle = spawn_local(Running::new(Rc::clone(items), job, future)).abort_handle();
    items.running.borrow_mut().insert(job.task, Runs { handle, port });
}

/// Has an item give its values.
fn open_stream(items: &Rc<Items>, job: Job, stream: StreamRole, arguments: &[u8], memory: Option<Arc<Memory>>) {
    match guard(|| (stream.open)(arguments, memory)) {
        Ok(Ok(values)) => {
            let port = Rc::new(Port::new(Rc::clone(items), job));
            go_on(items, job, Box::pin(produce(Rc::clone(&port), values)), Some(port));
        }
        Ok(Err(failure)) => items.finish(job, Went::<&[u8]>::Ok(Err(failure))),
        Err(panic) => items.finish(job, Went::<&[u8]>::Err(panic)),
    }
}

/// Runs a plain function beside the loop. It can't be cancelled: one that does not end goes with its worker.
fn run_in_thread(items: &Rc<Items>, job: Job, task: TaskRole, arguments: Vec<u8>, memory: Option<Arc<Memory>>) {
    let call = move || {
        let mut bytes = Vec::new();
        let went = guard(|| match (task.call)(&arguments, memory, &mut bytes) {
            Called::Done(result) => result,
            Called::Suspended(_) => Err(Failure::Unsendable(RemoteError::new("a plain function does not suspend"))),
        });
        went.map(|result| result.map(|outbox| Written { bytes, outbox }))
    };
    let (items, thread) = (Rc::clone(items), spawn_blocking(call));
    spawn_local(async move {
        match thread.await {
            Ok(went) => items.ended(job, went),
            // The runtime is on its way out.
            Err(_) => items.cancelled(job),
        }
    });
}

impl Items {
    /// An item that was running has ended.
    pub(super) fn ended(&self, job: Job, went: Went<Vec<u8>>) {
        self.running.borrow_mut().remove(&job.task);
        self.finish(job, went);
        self.call_turn();
    }

    /// An item that was running has been dropped.
    pub(super) fn cancelled(&self, job: Job) {
        self.running.borrow_mut().remove(&job.task);
        self.reply(job, Reply::Cancelled);
        self.call_turn();
    }

    fn finish(&self, job: Job, went: Went<impl AsRef<[u8]>>) {
        match went {
            Ok(Ok(Written { bytes, outbox })) if !codec::is_large(bytes.as_ref(), &outbox) => {
                self.reply_value(job, bytes.as_ref());
            }
            Ok(Ok(Written { bytes, outbox })) => self.reply_large(job, bytes.as_ref(), &outbox),
            Ok(Err(failure)) => self.reply(job, Reply::Raised(&failure.to_bytes())),
            Err(panic) => self.reply(job, Reply::Raised(&Failure::Panicked(panic).to_bytes())),
        }
    }

    fn reply_value(&self, job: Job, bytes: &[u8]) {
        match self.check_size("a result", bytes) {
            Ok(()) => self.reply(job, Reply::Value(bytes)),
            Err(failure) => self.reply(job, Reply::Raised(&failure.to_bytes())),
        }
    }

    /// What is large goes into a block, if there is one.
    fn reply_large(&self, job: Job, document: &[u8], outbox: &Outbox) {
        let beside = codec::beside(document, outbox, |len| lock(&self.link).take_block(len));
        if self.abandoned.get() {
            return;
        }
        if beside.is_some_and(|(lease, message)| lock(&self.link).reply_apart(job, &message, lease).is_ok()) {
            self.forget_time(job);
        } else if outbox.is_empty() {
            self.reply_value(job, document);
        } else {
            let mut whole = document.to_vec();
            outbox.append_to(&mut whole);
            self.reply_value(job, &whole);
        }
    }

    fn reply(&self, job: Job, reply: Reply<'_>) {
        let was_overdue = self.forget_time(job);
        let reply = if was_overdue && reply == Reply::Cancelled { Reply::TimedOut } else { reply };
        if !self.abandoned.get() {
            lock(&self.link).reply(job, reply);
        }
    }

    /// Has a turn taken: there may be room for another item.
    fn call_turn(&self) {
        self.turn_due.set(true);
        if let Some(waiting) = self.waiting.borrow_mut().take() {
            waiting.wake();
        }
    }

    fn cancel(&self, task: TaskId) {
        // Dropped by the runtime: an item may be cancelled from within another's turn, or its own.
        if let Some(running) = self.running.borrow().get(&task) {
            running.handle.abort();
        }
    }

    /// So many values of a stream have been taken.
    fn credit(&self, task: TaskId, values: u32) {
        let port = self.running.borrow().get(&task).and_then(|running| running.port.clone());
        if let Some(port) = port {
            port.credit(values);
        }
    }

    /// Sends a value of a stream.
    pub(super) fn give(&self, job: Job, value: &[u8]) -> Result<(), Failure> {
        self.check_size("a value", value)?;
        if self.abandoned.get() {
            return Ok(());
        }
        lock(&self.link).give(job, value).map_err(|error| Failure::Unsendable(error.into()))
    }

    fn check_size(&self, what: &str, bytes: &[u8]) -> Result<(), Failure> {
        let (len, max) = (bytes.len(), self.max_reply);
        if len as u64 <= max {
            return Ok(());
        }
        let message = format!("{what} of {len} bytes is more than the {max} that fit");
        Err(Failure::Unsendable(RemoteError::new(message)))
    }

    fn cancel_all(&self) {
        self.running.borrow().values().for_each(|running| running.handle.abort());
    }

    /// Cancels what has run out of time and waits for something.
    fn cancel_overdue(&self) {
        if self.watchdog.get().is_none() {
            return;
        }
        let mut overdue = lock(&self.overdue);
        for task in std::mem::take(&mut overdue.untold) {
            // One that is not running ended while its time did, or runs on a thread.
            if let Some(running) = self.running.borrow().get(&task) {
                overdue.told.insert(task);
                running.handle.abort();
            }
        }
    }

    /// Has the item's time counted from now.
    fn watch(&self, job: Job) -> io::Result<()> {
        let Some(timeout) = job.timeout else { return Ok(()) };
        let watchdog = match self.watchdog.get() {
            Some(watchdog) => watchdog,
            None => {
                let link = Arc::clone(&self.link);
                let interrupter = Interrupter { link: Arc::clone(&link), overdue: Arc::clone(&self.overdue) };
                let grace = lock(&link).grace();
                let watchdog = Watchdog::start(link, grace, interrupter)?;
                self.watchdog.get_or_init(|| watchdog)
            }
        };
        watchdog.watch(job, timeout);
        Ok(())
    }

    /// The item has ended. Says whether its time was the reason.
    fn forget_time(&self, job: Job) -> bool {
        if job.timeout.is_none() {
            return false;
        }
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.forget(job.task);
        }
        let mut overdue = lock(&self.overdue);
        overdue.untold.remove(&job.task);
        overdue.told.remove(&job.task)
    }
}
