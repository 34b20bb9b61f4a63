//! A pool in numbers.

use std::time::Duration;

use polyloop_core::{Cause, Stage, State};

use crate::driver::Driver;

/// A pool in numbers: see [`Pool::stats`](crate::Pool::stats).
///
/// ```
/// # fn example(pool: polyloop::Pool) {
/// use polyloop::Cause;
///
/// let stats = pool.stats();
/// println!("{:?}: {} waiting or running, {} deaths", stats.state, stats.unfinished, stats.restarts(Cause::Died));
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// What the pool as a whole is doing.
    pub state: State,
    /// Tasks that wait or run.
    pub unfinished: usize,
    /// Tasks that returned.
    pub done: u64,
    /// Tasks that panicked, ran out of time, or were lost with their worker.
    pub failed: u64,
    /// Times that a task was run again.
    pub retried: u64,
    /// The workers that have a process or are about to.
    pub workers: Vec<WorkerStats>,
    restarts: [u64; Cause::ALL.len()],
}

impl Stats {
    /// Workers that were replaced for this reason.
    ///
    /// ```
    /// # fn example(stats: polyloop::Stats) {
    /// let recycled = stats.restarts(polyloop::Cause::Recycled);
    /// # }
    /// ```
    pub fn restarts(&self, cause: Cause) -> u64 {
        self.restarts[cause as usize]
    }
}

/// A worker in numbers.
///
/// ```
/// # fn example(stats: polyloop::Stats) {
/// for worker in &stats.workers {
///     println!("{:?}: {} running, {} done in {:?}", worker.pid, worker.in_flight, worker.done, worker.age);
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its process, once known.
    pub pid: Option<u32>,
    /// Where it is in its life.
    pub stage: Stage,
    /// Tasks that it runs.
    pub in_flight: u32,
    /// Tasks that have ended in it.
    pub done: u64,
    /// The time since its start was asked for.
    pub age: Duration,
}

pub(crate) fn stats(driver: &Driver) -> Stats {
    let (counts, age) = (driver.counts(), driver.age());
    let worker = |(view, in_flight): (polyloop_core::WorkerView, u32)| WorkerStats {
        pid: view.pid,
        stage: view.stage,
        in_flight,
        done: view.done,
        age: age.saturating_sub(view.since),
    };
    Stats {
        state: driver.state(),
        unfinished: driver.unfinished(),
        done: counts.done,
        failed: counts.failed,
        retried: counts.retried,
        workers: driver.loads().into_iter().map(worker).collect(),
        restarts: counts.restarts,
    }
}
