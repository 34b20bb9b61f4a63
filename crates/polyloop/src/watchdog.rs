//! Deadlines of a worker's items, kept by a thread of their own: they hold while the worker's loop is blocked.
//!
//! ```text
//!  start ──timeout──> interrupted ──grace──> given up: answered for, the worker takes no more
//!                                               `── its neighbours have ended, or grace, or a loop that is blocked ──> the process ends
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polyloop_core::{OVERDUE_EXITCODE, TaskId};

use crate::worker::{Job, WorkerLink};

/// How often an item is interrupted until it is.
const REPEAT: Duration = Duration::from_millis(20);
/// A loop that turns answers its bell within this time.
const ANSWER: Duration = Duration::from_millis(250);
/// How often a worker that is about to leave is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How an item is interrupted. Called from the watchdog's thread.
pub trait Interrupt: Send + 'static {
    /// The time of this item is up. Called again after a while if that did not take effect.
    fn interrupt(&self, task: TaskId);

    /// Whether the item has been interrupted.
    fn is_interrupted(&self, task: TaskId) -> bool;
}

#[derive(Clone, Copy, Debug)]
enum Alarm {
    Expires,
    /// Until it is interrupted, or given up then.
    Repeats(Instant),
    IsGivenUp,
}

#[derive(Default)]
struct State {
    alarms: BTreeSet<(Instant, TaskId)>,
    jobs: BTreeMap<TaskId, (Job, Instant, Alarm)>,
    ended: bool,
}

impl State {
    /// Has the job looked at again then, and given up no later than that.
    fn alarm(&mut self, job: Job, at: Instant, given_up: Instant) {
        let (at, alarm) = if at < given_up { (at, Alarm::Repeats(given_up)) } else { (given_up, Alarm::IsGivenUp) };
        self.alarms.insert((at, job.task));
        self.jobs.insert(job.task, (job, at, alarm));
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Watches the items of a worker that may run for a limited time only.
pub struct Watchdog {
    shared: Arc<Shared>,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn start(link: Arc<Mutex<WorkerLink>>, grace: Duration, host: impl Interrupt) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("polyloop-watchdog".into())
            .stack_size(128 * 1024)
            .spawn(move || watch(&watched, &link, grace, &host))?;
        Ok(Self { shared })
    }

    /// An item starts that may run for so long.
    pub fn watch(&self, job: Job, timeout: Duration) {
        let Some(at) = Instant::now().checked_add(timeout) else { return };
        let mut state = lock(&self.shared.state);
        let sooner = state.alarms.first().is_none_or(|(first, _)| at < *first);
        state.alarms.insert((at, job.task));
        state.jobs.insert(job.task, (job, at, Alarm::Expires));
        if sooner {
            self.shared.changed.notify_one();
        }
    }

    /// The item has ended.
    pub fn forget(&self, task: TaskId) {
        let mut state = lock(&self.shared.state);
        if let Some((_, at, _)) = state.jobs.remove(&task) {
            state.alarms.remove(&(at, task));
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps from alarm to alarm.
fn watch(shared: &Shared, link: &Mutex<WorkerLink>, grace: Duration, host: &impl Interrupt) {
    let mut state = lock(&shared.state);
    while !state.ended {
        let now = Instant::now();
        let Some((at, task)) = state.alarms.first().copied() else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        if at > now {
            state = shared.changed.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        state.alarms.remove(&(at, task));
        let Some((job, _, alarm)) = state.jobs.get(&task).copied() else { continue };
        match alarm {
            Alarm::Expires => {
                state.alarm(job, now + REPEAT, now + grace);
                drop(state);
                host.interrupt(task);
                state = lock(&shared.state);
            }
            Alarm::Repeats(given_up) => {
                // A moment at which user code may be interrupted is a matter of luck where it uses the loop a lot.
                let again = !host.is_interrupted(task);
                state.alarm(job, if again { now + REPEAT } else { given_up }, given_up);
                drop(state);
                if again {
                    host.interrupt(task);
                }
                state = lock(&shared.state);
            }
            Alarm::IsGivenUp => {
                drop(state);
                leave(link, job, grace)
            }
        }
    }
}

/// Answers for an item that ignores its end, and ends the process: once the items beside it are through, if the loop
/// still turns, but no later than after another grace.
fn leave(link: &Mutex<WorkerLink>, job: Job, grace: Duration) -> ! {
    let began = Instant::now();
    let turns = lock(link).give_up(job);
    loop {
        std::thread::sleep(LOOK);
        let mut link = lock(link);
        let answers = link.turns() != turns || began.elapsed() < ANSWER;
        if link.is_done() || !answers || began.elapsed() > grace {
            link.flush();
            crate::os::leave_at_once(OVERDUE_EXITCODE);
        }
    }
}
