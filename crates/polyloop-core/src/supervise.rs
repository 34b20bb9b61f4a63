//! The workers as the manager sees them: seats, stages, restarts with backoff, and when to give up.

use std::cmp::Reverse;
use std::time::Duration;
use std::{fmt, sync::Arc};

use crate::id::{Moment, QueueIndex, WorkerId};
use crate::stats::Cause;

/// First wait after a start that failed; doubled with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between starts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Workers that may end without a word before the first healthy one, until the pool gives up.
const SILENT_STARTS_MAX: u32 = 3;

/// What a process exits with when its program can't run in a worker at all, whatever is tried. No sysexits.h or shell
/// gives this code a meaning.
pub const HOPELESS_EXIT: i32 = 83;

/// How a process ended.
///
/// ```
/// # use polyloop_core as polyloop;
/// use polyloop::Exit;
///
/// let how = |exit| match exit {
///     Exit::Code(0) => "as it wanted to",
///     Exit::OutOfMemory => "for want of memory",
///     _ => "otherwise",
/// };
/// assert_eq!(how(Exit::Signal(9)), "otherwise");
/// assert_eq!(Exit::Signal(9).to_string(), "signal 9");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel's SIGKILL, for want of memory.
    OutOfMemory,
    /// Nobody could tell.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// Why workers can't be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The worker's initialisation raised; the exception as the worker's codec wrote it.
    Raised(Arc<[u8]>),
    /// The process ended before it was ready, without a word.
    Exited(Exit),
    /// The operating system, or the process context, refused to start it.
    Refused(Arc<str>),
}

/// What a pool as a whole is doing.
///
/// ```
/// # use polyloop_core as polyloop;
/// use polyloop::State;
///
/// let needs_help = |state| state == State::Degraded;
/// assert!(needs_help(State::Degraded) && !needs_help(State::Running));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// No worker has been ready yet.
    Starting,
    /// As it should be.
    Running,
    /// Workers fail to start; the pool keeps trying.
    Degraded,
    /// Closed to new work, finishing what it has.
    Closing,
    /// Ending at once.
    Terminating,
    /// All workers are gone.
    Closed,
}

impl State {
    /// In one word, as the Python face has it.
    ///
    /// ```
    /// # use polyloop_core as polyloop;
    /// assert_eq!(polyloop::State::Degraded.name(), "degraded");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Closing => "closing",
            Self::Terminating => "terminating",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a worker is in its life.
///
/// ```
/// # use polyloop_core as polyloop;
/// use polyloop::Stage;
///
/// let takes_work = |stage| stage == Stage::Ready;
/// assert!(takes_work(Stage::Ready) && !takes_work(Stage::Retiring));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stage {
    /// Its process is being started or initialised.
    Starting,
    /// It takes work.
    Ready,
    /// It is about to be replaced; it leaves when what it runs is done.
    Retiring,
    /// It was told to leave.
    Stopping,
}

impl Stage {
    /// In one word, as the Python face has it.
    ///
    /// ```
    /// # use polyloop_core as polyloop;
    /// assert_eq!(polyloop::Stage::Retiring.name(), "retiring");
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Retiring => "retiring",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A worker as its manager knows it.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Which.
    pub id: WorkerId,
    /// The queue it serves.
    pub queue: QueueIndex,
    /// Its process, once known.
    pub pid: Option<u32>,
    /// Where it is in its life.
    pub stage: Stage,
    /// When its start was asked for.
    pub since: Moment,
    /// Tasks that have ended in it.
    pub done: u64,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) queue: QueueIndex,
    pub(crate) pid: Option<u32>,
    pub(crate) stage: Stage,
    pub(crate) error: Option<StartError>,
    pub(crate) since: Moment,
    pub(crate) done: u64,
    /// Why it is to be replaced, where it did not just die.
    pub(crate) leaves: Option<Cause>,
    /// It is told to leave when its successor is ready.
    pub(crate) waits_for_successor: bool,
}

impl Worker {
    fn new(id: WorkerId, queue: QueueIndex, since: Moment) -> Self {
        let (stage, pid, error, leaves) = (Stage::Starting, None, None, None);
        Self { id, queue, pid, stage, error, since, done: 0, leaves, waits_for_successor: false }
    }
}

/// All seats, and how starting has gone so far.
#[derive(Debug)]
pub(crate) struct Supervisor {
    seats: Vec<Option<Worker>>,
    generations: Vec<u32>,
    /// Workers wanted for each queue.
    targets: Vec<u16>,
    /// Whether a worker's successor may be started before it is gone.
    overlap: bool,
    failures: u32,
    ever_ready: bool,
    not_before: Moment,
}

/// What a failed start means for the pool.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GiveUp(StartError),
    TryAgain,
}

impl Supervisor {
    pub(crate) fn new(processes: u16, queues: u16, seats: u16, overlap: bool) -> Self {
        Self {
            seats: (0..seats).map(|_| None).collect(),
            generations: vec![0; usize::from(seats)],
            targets: spread(processes, queues),
            overlap,
            failures: 0,
            ever_ready: false,
            not_before: Moment::ZERO,
        }
    }

    /// Has so many workers wanted from now on.
    pub(crate) fn set_targets(&mut self, processes: u16) {
        self.targets = spread(processes, self.targets.len() as u16);
    }

    /// Workers that are too many, of each queue those that are to be replaced anyway, then the youngest.
    pub(crate) fn surplus(&self) -> Vec<WorkerId> {
        let of_queue = |(queue, target): (u16, &u16)| {
            let serves = |worker: &&Worker| worker.queue == QueueIndex(queue) && worker.stage <= Stage::Ready;
            let mut serving: Vec<_> = self.iter().filter(serves).collect();
            serving.sort_by_key(|worker| {
                (!worker.waits_for_successor, worker.stage, Reverse((worker.since, worker.id.seat)))
            });
            let too_many = serving.len().saturating_sub(usize::from(*target));
            serving.into_iter().take(too_many).map(|worker| worker.id).collect::<Vec<_>>()
        };
        (0..).zip(&self.targets).flat_map(of_queue).collect()
    }

    /// Whether each queue has as many workers that take work as it should.
    pub(crate) fn are_all_ready(&self) -> bool {
        let ready = |queue| self.iter().filter(|worker| worker.queue == queue && worker.stage == Stage::Ready).count();
        (0..).zip(&self.targets).all(|(queue, target)| ready(QueueIndex(queue)) >= usize::from(*target))
    }

    /// Seats a worker where one is wanted and may be started now. `wanted` says which queues have a use for one.
    pub(crate) fn start_next(&mut self, now: Moment, wanted: impl Fn(QueueIndex) -> bool) -> Option<WorkerId> {
        if now < self.not_before {
            return None;
        }
        let short = |queue: &QueueIndex| self.serving(*queue) < self.targets[usize::from(queue.0)] && wanted(*queue);
        let queue = (0..self.targets.len() as u16).map(QueueIndex).find(short)?;
        let seat = self.seats.iter().position(Option::is_none)?;
        self.generations[seat] += 1;
        let id = WorkerId { seat: seat as u16, generation: self.generations[seat] };
        self.seats[seat] = Some(Worker::new(id, queue, now));
        Some(id)
    }

    /// When a start that is being put off may be tried.
    pub(crate) fn next_start(&self, now: Moment) -> Option<Moment> {
        (now < self.not_before).then_some(self.not_before)
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.seats.get(usize::from(id.seat))?.as_ref().filter(|worker| worker.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.seats.get_mut(usize::from(id.seat))?.as_mut().filter(|worker| worker.id == id)
    }

    /// Who sits there now.
    pub(crate) fn seated(&self, seat: u16) -> Option<WorkerId> {
        self.seats.get(usize::from(seat))?.as_ref().map(|worker| worker.id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.seats.iter().flatten()
    }

    pub(crate) fn has_free_seat(&self) -> bool {
        self.seats.iter().any(Option::is_none)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seats.iter().all(Option::is_none)
    }

    pub(crate) fn ever_ready(&self) -> bool {
        self.ever_ready
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// A worker is healthy: forgives the failures. Says whether there were any.
    pub(crate) fn ready(&mut self, id: WorkerId) -> bool {
        self.ever_ready = true;
        if let Some(worker) = self.get_mut(id).filter(|worker| worker.stage == Stage::Starting) {
            worker.stage = Stage::Ready;
        }
        self.not_before = Moment::ZERO;
        std::mem::take(&mut self.failures) > 0
    }

    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        self.seats.get_mut(usize::from(id.seat))?.take_if(|worker| worker.id == id)
    }

    /// Counts a worker that ended before it was ready.
    pub(crate) fn failed(&mut self, now: Moment, error: StartError) -> Verdict {
        self.failures += 1;
        let silent = matches!(error, StartError::Exited(_));
        let hopeless = error == StartError::Exited(Exit::Code(HOPELESS_EXIT));
        if !self.ever_ready && (!silent || hopeless || self.failures >= SILENT_STARTS_MAX) {
            return Verdict::GiveUp(error);
        }
        let doublings = (self.failures - 1).min(16);
        self.not_before = now + (BACKOFF_FIRST * 2u32.pow(doublings)).min(BACKOFF_MAX);
        Verdict::TryAgain
    }

    fn serving(&self, queue: QueueIndex) -> u16 {
        let stays = |worker: &&Worker| match worker.stage {
            Stage::Starting | Stage::Ready => !worker.waits_for_successor,
            Stage::Retiring => !self.overlap,
            Stage::Stopping => false,
        };
        let serves = |worker: &&Worker| worker.queue == queue && stays(worker);
        self.iter().filter(serves).count() as u16
    }
}

/// How many workers each queue gets.
fn spread(processes: u16, queues: u16) -> Vec<u16> {
    (0..queues).map(|queue| processes / queues + u16::from(queue < processes % queues)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_spread_over_the_queues() {
        let mut supervisor = Supervisor::new(5, 2, 10, true);
        while supervisor.start_next(Moment::ZERO, |_| true).is_some() {}
        let of = |queue| supervisor.iter().filter(|worker| worker.queue == QueueIndex(queue)).count();
        assert_eq!((of(0), of(1)), (3, 2));
    }

    #[test]
    fn an_initialiser_that_raises_before_any_healthy_worker_ends_the_pool() {
        let mut supervisor = Supervisor::new(1, 1, 2, true);
        let error = StartError::Raised(Arc::from(*b"boom"));
        assert_eq!(supervisor.failed(Moment::ZERO, error.clone()), Verdict::GiveUp(error));
    }

    #[test]
    fn a_silent_death_before_any_healthy_worker_is_tried_again_a_few_times() {
        let mut supervisor = Supervisor::new(1, 1, 2, true);
        let error = StartError::Exited(Exit::Signal(9));
        assert_eq!(supervisor.failed(Moment::ZERO, error.clone()), Verdict::TryAgain);
        assert_eq!(supervisor.failed(Moment::ZERO, error.clone()), Verdict::TryAgain);
        assert_eq!(supervisor.failed(Moment::ZERO, error.clone()), Verdict::GiveUp(error));
    }

    #[test]
    fn a_program_that_cannot_run_in_a_worker_is_tried_once() {
        let mut supervisor = Supervisor::new(1, 1, 2, true);
        let error = StartError::Exited(Exit::Code(HOPELESS_EXIT));
        assert_eq!(supervisor.failed(Moment::ZERO, error.clone()), Verdict::GiveUp(error));
    }

    #[test]
    fn later_failures_back_off_for_ever_up_to_a_cap() {
        let mut supervisor = Supervisor::new(1, 1, 2, true);
        let id = supervisor.start_next(Moment::ZERO, |_| true).unwrap();
        assert!(!supervisor.ready(id));
        supervisor.remove(id);
        let mut waits = Vec::new();
        for _ in 0..40 {
            assert_eq!(supervisor.failed(Moment::ZERO, StartError::Exited(Exit::Code(1))), Verdict::TryAgain);
            waits.push(supervisor.next_start(Moment::ZERO).unwrap());
        }
        assert_eq!((waits[0], waits[1], waits[39]), (BACKOFF_FIRST, BACKOFF_FIRST * 2, BACKOFF_MAX));
        assert_eq!(supervisor.start_next(Moment::ZERO, |_| true), None);
        let again = supervisor.start_next(BACKOFF_MAX, |_| true).unwrap();
        assert!(supervisor.ready(again), "recovered");
    }
}
