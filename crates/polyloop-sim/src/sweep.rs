//! Many seeds on several threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sabotage::Sabotage;
use crate::world::{Failure, Run, run_counted};

/// Failures that are listed; more of them tell nothing new.
const FAILURES_MAX: usize = 20;

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Figures {
    /// Seeds that were run.
    pub seeds: u64,
    /// Steps that all actors took.
    pub steps: u64,
    /// How often what happened.
    pub tally: BTreeMap<&'static str, u64>,
    /// How many seeds failed.
    pub failed: u64,
    /// The first failures by seed.
    pub failures: Vec<Failure>,
}

impl Figures {
    fn add(&mut self, run: Result<Run, Failure>) {
        self.seeds += 1;
        match run {
            Ok(Run { steps, tally }) => {
                self.steps += steps;
                for (what, times) in tally {
                    *self.tally.entry(what).or_default() += times;
                }
            }
            Err(failure) => {
                self.failed += 1;
                self.failures.push(failure);
                self.failures.sort_by_key(|failure| failure.seed);
                self.failures.truncate(FAILURES_MAX);
            }
        }
    }
}

/// Runs `count` seeds from `from` on so many threads, or fewer where that many fail that it is enough.
pub fn sweep(from: u64, count: u64, jobs: usize, sabotage: Option<Sabotage>) -> Figures {
    let next = AtomicU64::new(from);
    let figures = Mutex::new(Figures::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count {
                break;
            }
            let run = run_caught(seed, sabotage);
            let mut figures = figures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            figures.add(run);
            if figures.failures.len() == FAILURES_MAX {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    figures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A panic of the code under test is a failure of its seed, not of the sweep.
fn run_caught(seed: u64, sabotage: Option<Sabotage>) -> Result<Run, Failure> {
    catch_unwind(AssertUnwindSafe(|| run_counted(seed, sabotage, false))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Failure { seed, what: format!("a panic: {text}") })
    })
}
