//! The client's side of the engine: turns what the operating system and the shared memory say into the core's
//! inputs, and the core's outputs into actions, or into events for the host.
//!
//! ```text
//!  host's loop --fd readable--> drain --Input--> core --Output--> board, rings, signals
//!                                 `----------- Event ----------> host: start, reap, deliver, log
//! ```

mod act;
mod blocks;
mod change;
mod event;
mod logs;
mod nested;
mod processes;
mod rest;
mod rings;
mod urge;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyloop_core::{
    CallId, Input, Moment, Payload, Pool, PoolConfig, QueueIndex, RING_AGAIN, Refused, Resting, State, Submission,
    TaskId, WAITING_MAX, WorkerId, WorkerView,
};
use polyloop_shm::Geometry;

use self::blocks::BLOCKS_MAX;
pub(crate) use self::blocks::lender_of;
use crate::blocks::{Lender, Returns};
use crate::layout::Layout;
use crate::link::Link;
use crate::os::{self, Poller, Timer};

pub use self::event::{DriverConfig, DriverError, Event, StartOrder};
pub use self::rings::Values;

/// Version of everything that manager and worker must agree on.
pub const PROTOCOL: u64 = 4;

const SLOTS: u32 = 64;
const SLOT_ITEMS: u32 = 256;
const SLOT_WORDS: u32 = 8 * 1024;
/// A quarter of a slot: larger tasks are fetched by the worker that starts them.
const INLINE_BYTES: usize = 16 * 1024;
/// Seats of a small pool, half of them for what it may grow to. Those that nobody ever had cost an unused page or two.
const SEATS_MIN: u16 = 256;
/// Tasks that a worker runs at a time at most: each has a place in the memory of its seat.
const CONCURRENCY_MAX: u32 = 1 << 20;
const RESULT_WORDS: u32 = 32 * 1024;
/// Records that a ring holds at most: each takes a word or more.
const RECORDS_MAX: usize = RESULT_WORDS as usize;
const CONTROL_WORDS: u32 = 16 * 1024;

/// The longest time for which rings of the bell keep the other descriptors from being looked at.
const POLL_EVERY: Duration = Duration::from_millis(1);

/// What a descriptor is stands in the upper bits of its token; below, whose it is.
const KIND_SHIFT: u32 = 48;
const BELL: u64 = 0;
const TIMER: u64 = 1;
const SOCKET: u64 = 2;
const DEATH: u64 = 3;

/// The client's side of a pool.
pub struct Driver {
    config: DriverConfig,
    pool: Pool,
    link: Link,
    poller: Poller,
    timer: Timer,
    /// When the timer will be readable.
    armed: Option<Moment>,
    /// When to look again at what is on the boards, and how long that wait has become.
    look_again: Option<Moment>,
    look_wait: Duration,
    nap: Option<Moment>,
    /// When every descriptor was last looked at.
    polled_at: Moment,
    /// When to look whether a loop is blocked.
    watch_at: Option<Moment>,
    /// When to look whether workers have heard what was urgent.
    interrupt_at: Option<Moment>,
    resting: Resting,
    /// The blocks that arguments are in.
    lender: Lender<WorkerId>,
    returns: Arc<Returns>,
    /// When workers are to give back blocks that they have not used for a while.
    workers_idle_at: Option<Moment>,
    /// Items that were posted to each queue since its workers were last rung.
    posted: Vec<usize>,
    events: VecDeque<Event>,
    /// Of these, records of workers' logs.
    logs_waiting: usize,
    origin: Instant,
    generation: u32,
    tokens: Vec<u64>,
}

impl Driver {
    /// A pool whose first events ask for its workers to be started.
    ///
    /// # Errors
    /// [`DriverError`] when the shape is impossible or the system has no memory or descriptors left.
    pub fn new(config: DriverConfig) -> Result<Self, DriverError> {
        let config = config.within_bounds();
        if config.processes == 0 || config.queues == 0 || config.concurrency == 0 {
            return Err(DriverError::Config("a pool needs at least one process, one queue and a concurrency of one"));
        }
        if config.concurrency > CONCURRENCY_MAX {
            return Err(DriverError::Config("a worker can't run more than 1,048,576 tasks at a time"));
        }
        if config.queues > config.processes {
            return Err(DriverError::Config("a pool can't have more queues than processes"));
        }
        let Some(seats) = config.processes.checked_mul(2).filter(|seats| *seats < u16::MAX) else {
            return Err(DriverError::Config("a pool can't have more than 32,766 processes"));
        };
        let seats = seats.max(SEATS_MIN);
        let geometry = Geometry { slots: SLOTS, items: SLOT_ITEMS, blob_words: SLOT_WORDS };
        let pool = Pool::new(PoolConfig {
            processes: config.processes,
            queues: config.queues,
            seats,
            slots: SLOTS,
            slot_items: SLOT_ITEMS,
            concurrency: config.concurrency,
            slot_bytes: geometry.blob_bytes(),
            inline_bytes: INLINE_BYTES,
            grace: config.grace,
            max_age: config.max_age,
            overlap: config.overlap,
        });
        let layout = Layout {
            seats,
            queues: config.queues,
            geometry,
            // Those that wait for calls of their own hold theirs too.
            leases: config.concurrency.saturating_add(WAITING_MAX),
            result_words: RESULT_WORDS,
            control_words: CONTROL_WORDS,
        };
        let (link, poller, timer) =
            (Link::new(layout, config.concurrency, config.max_reply)?, Poller::new()?, Timer::new()?);
        poller.add(&*link.bell, BELL << KIND_SHIFT)?;
        poller.add(&timer, TIMER << KIND_SHIFT)?;
        let returns = Returns::new(&link.bell);
        let mut driver = Self {
            config,
            pool,
            link,
            poller,
            timer,
            armed: None,
            look_again: None,
            look_wait: RING_AGAIN,
            nap: None,
            polled_at: Moment::ZERO,
            watch_at: None,
            interrupt_at: None,
            resting: Resting::default(),
            lender: Lender::new(BLOCKS_MAX, Arc::clone(&returns)),
            returns,
            workers_idle_at: None,
            posted: vec![0; usize::from(config.queues)],
            events: VecDeque::new(),
            logs_waiting: 0,
            origin: Instant::now(),
            generation: os::forked_generation(),
            tokens: Vec::new(),
        };
        driver.act_and_rest(0)?;
        Ok(driver)
    }

    /// Whether this driver belongs to the process it is in, not to one that this was forked from.
    pub fn is_ours(&self) -> bool {
        self.generation == os::forked_generation()
    }

    /// When [`Self::drain`] wants to be called even if the descriptor stays silent. The descriptor becomes readable
    /// then too, so a host may ignore this.
    pub fn deadline(&self) -> Option<Instant> {
        self.next_look().map(|at| self.origin + at)
    }

    /// Opens a call: tasks that are submitted as room appears, and that queues are fair to as one. So many of them as
    /// `chunk` says are posted together, up to 256; `None` for as many as suit what they turn out to cost.
    ///
    /// # Errors
    /// [`Refused`] when the pool takes no new work.
    pub fn open_call(&mut self, chunk: Option<u32>) -> Result<CallId, Refused> {
        self.pool.open_call(1, chunk)
    }

    /// No more tasks will be submitted to this call.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn end_call(&mut self, call: CallId) -> io::Result<()> {
        let now = self.now();
        self.pool.end_call(now, call);
        self.act_and_rest(0)
    }

    /// Accepts a task; it goes to the workers with the next [`Self::flush`] or [`Self::drain`].
    ///
    /// # Errors
    /// [`Refused`] when the pool takes no new work.
    pub fn submit(&mut self, submission: Submission) -> Result<TaskId, Refused> {
        self.pool.submit(submission)
    }

    /// Accepts tasks that differ from `first` in nothing but their arguments and their tokens, which count up from its
    /// own. All are accepted, or none.
    ///
    /// # Errors
    /// [`Refused`] when the pool takes no new work.
    pub fn submit_run(
        &mut self,
        first: Submission,
        arguments: impl IntoIterator<Item = Payload>,
    ) -> Result<(), Refused> {
        self.pool.submit_run(first, arguments)
    }

    /// Gives what was submitted to the workers.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn flush(&mut self) -> io::Result<()> {
        self.act_and_rest(0)
    }

    /// Asks for a task to be cancelled. Its outcome comes as for any other.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn cancel(&mut self, task: TaskId) -> io::Result<()> {
        let now = self.now();
        self.pool.cancel(now, task);
        self.act_and_rest(0)
    }

    /// Cancels the tasks of a call whose tokens are larger, and ends it.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn cancel_call_after(&mut self, call: CallId, token: u64) -> io::Result<()> {
        let now = self.now();
        self.pool.cancel_call_after(now, call, token);
        self.act_and_rest(0)
    }

    /// Cancels all tasks of a call and ends it.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn cancel_call(&mut self, call: CallId) -> io::Result<()> {
        let now = self.now();
        self.pool.cancel_call(now, call);
        self.act_and_rest(0)
    }

    /// The next value of a stream has been taken: its worker may give others.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn taken(&mut self, task: TaskId) -> io::Result<()> {
        if self.pool.taken(task) { self.act_and_rest(0) } else { Ok(()) }
    }

    /// What a task runs, as submitted.
    pub fn function_of(&self, task: TaskId) -> Option<Arc<[u8]>> {
        self.pool.parcel_of(task).map(|parcel| Arc::clone(parcel.function))
    }

    /// Has a task run again that [`Event::Judge`] was about, with the next [`Self::flush`] and under another id; with
    /// another form of its function, if the worker could make nothing of the first. `None` if it was no longer there:
    /// its outcome is among the events.
    pub fn again(&mut self, task: TaskId, function: Option<Arc<[u8]>>) -> Option<TaskId> {
        self.pool.again(task, function)
    }

    /// Lets a task end that [`Event::Judge`] was about; call [`Self::flush`] soon. Says whether it was still there: if
    /// not, its outcome is among the events.
    pub fn settled(&mut self, task: TaskId) -> bool {
        self.pool.settled(self.now(), task)
    }

    /// Takes no new work, finishes what was accepted, then ends.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn close(&mut self) -> io::Result<()> {
        let now = self.now();
        self.pool.close(now);
        self.act_and_rest(0)
    }

    /// Ends every task and every worker now.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn terminate(&mut self) -> io::Result<()> {
        let now = self.now();
        self.pool.terminate(now);
        self.act_and_rest(0)
    }

    /// Ends every worker at once and waits for nothing: for an owner that is gone. Those that are still being started
    /// end when they find that nobody is at the other end of their socket.
    pub fn abandon(&mut self) {
        for seat in std::mem::take(&mut self.link.seats).into_values() {
            // Whoever can't be killed is gone, or goes with its lifeline.
            let _ = seat.kill(false);
        }
    }

    /// Takes in what has happened, for about 2 ms at most. Then fetch the events with [`Self::next_event`].
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn drain(&mut self) -> io::Result<()> {
        self.check_ours()?;
        self.link.sleeper.wake();
        self.nap = None;
        self.poll()?;
        let outcomes = self.read_rings()?;
        self.watch()?;
        self.give_back_idle()?;
        self.interrupt_deaf()?;
        let now = self.now();
        if self.pool.poll_timeout().is_some_and(|at| at <= now) {
            self.pool.handle(now, Input::Timeout);
        }
        self.act_and_rest(outcomes)
    }

    /// Makes the descriptor readable, for a host that has left events for later.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn call_again(&self) -> io::Result<()> {
        self.link.bell.ring()
    }

    /// Whether events wait for the host.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next event for the host, if any.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if let Some(Event::Log { .. }) = event {
            self.log_is_heard();
        }
        event
    }

    /// Whether no more is under way than would have a worker each: then waiting for more to be submitted before a
    /// [`Self::flush`] gains nothing.
    pub fn is_quiet(&self) -> bool {
        self.pool.unfinished() <= usize::from(self.config.processes)
    }

    /// Tasks that have not ended.
    pub fn unfinished(&self) -> usize {
        self.pool.unfinished()
    }

    /// What the pool is doing.
    pub fn state(&self) -> State {
        self.pool.state()
    }

    /// The workers that have a process or are about to.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.pool.workers()
    }

    /// A forked child has the pool's objects, and not the memory they speak of.
    fn check_ours(&self) -> io::Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        Err(io::Error::other("this pool belongs to the process that forked this one"))
    }

    fn now(&self) -> Moment {
        self.origin.elapsed()
    }

    fn tell(&mut self, input: Input) -> io::Result<()> {
        let now = self.now();
        self.pool.handle(now, input);
        self.act_and_rest(0)
    }

    /// Carries out what the core says, and decides how to wait.
    fn act_and_rest(&mut self, outcomes: usize) -> io::Result<()> {
        self.check_ours()?;
        self.reclaim();
        self.act()?;
        self.rest(outcomes)?;
        let waiting = (0..self.config.queues).map(QueueIndex).any(|queue| self.pool.has_waiting(queue));
        if waiting && self.reclaim() {
            // A slot became free between the last look and the announcement of sleep: fill it in the next round.
            self.link.bell.ring()?;
        }
        Ok(())
    }

    /// Looks at the bell, and at every descriptor if that was silent, or has been all that was looked at for long.
    fn poll(&mut self) -> io::Result<()> {
        let now = self.now();
        if self.link.bell.silence()? && now.saturating_sub(self.polled_at) < POLL_EVERY {
            // Whatever else is readable keeps our own descriptor so.
            return Ok(());
        }
        self.polled_at = now;
        let mut tokens = std::mem::take(&mut self.tokens);
        self.poller.ready(Duration::ZERO, &mut tokens)?;
        for token in tokens.drain(..) {
            match kind_of(token) {
                BELL => _ = self.link.bell.silence()?,
                TIMER => {
                    self.timer.silence()?;
                    self.armed = None;
                }
                SOCKET => self.hello(worker_of(token))?,
                _ => self.death(worker_of(token))?,
            }
        }
        self.tokens = tokens;
        Ok(())
    }
}

impl AsFd for Driver {
    /// Readable when [`Driver::drain`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl Drop for Driver {
    /// Whoever drops a driver that has not closed takes its workers with it.
    fn drop(&mut self) {
        if self.is_ours() {
            self.abandon();
        } else {
            // A forked child may have closed these descriptors, and have others under their numbers.
            std::mem::forget(std::mem::take(&mut self.link.seats));
        }
    }
}

fn token(kind: u64, worker: WorkerId) -> u64 {
    kind << KIND_SHIFT | u64::from(worker.seat) << 32 | u64::from(worker.generation)
}

fn kind_of(token: u64) -> u64 {
    token >> KIND_SHIFT
}

fn worker_of(token: u64) -> WorkerId {
    WorkerId { seat: (token >> 32) as u16, generation: token as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_known_by_its_token() {
        let worker = WorkerId { seat: u16::MAX, generation: u32::MAX };
        for kind in [BELL, TIMER, SOCKET, DEATH] {
            assert_eq!((kind_of(kind << KIND_SHIFT), kind_of(token(kind, worker))), (kind, kind));
        }
        assert_eq!(worker_of(token(DEATH, worker)), worker);
    }
}
