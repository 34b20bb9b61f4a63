//! What pools have in common when they are made, whatever their workers are.

use std::time::Duration;

use polyloop_core::MAX_REPLY;

use super::error::Error;
use super::manager::Options;
use crate::driver::DriverConfig;

/// Tasks that a worker runs at the same time, where nobody says otherwise.
const CONCURRENCY: u32 = 16;
/// How long a worker's loop may be blocked before that is told, where nobody says otherwise.
const BLOCK_WARNING: Duration = Duration::from_secs(1);
/// How long whoever is asked to end may take, where nobody says otherwise.
const GRACE: Duration = Duration::from_secs(5);

/// The shape of a pool.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) processes: Option<usize>,
    pub(crate) concurrency: u32,
    pub(crate) options: Options,
    pub(crate) grace: Duration,
    pub(crate) max_tasks: u64,
    pub(crate) max_memory: u64,
    pub(crate) max_age: Option<Duration>,
    pub(crate) block_warning: Option<Duration>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            processes: None,
            concurrency: CONCURRENCY,
            options: Options { retries: 0, retry_on: None, timeout: None, in_thread: false },
            grace: GRACE,
            max_tasks: 0,
            max_memory: 0,
            max_age: None,
            block_warning: Some(BLOCK_WARNING),
        }
    }
}

impl Shape {
    /// For the driver. What a lifespan holds may be there once only: then a worker is gone before its successor starts.
    pub(crate) fn config(&self, overlap: bool) -> Result<DriverConfig, Error> {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        let processes = self.processes.unwrap_or_else(cpus);
        Ok(DriverConfig {
            processes: u16::try_from(processes).map_err(|_| Error::Config("a pool can't have so many processes"))?,
            queues: 1,
            concurrency: self.concurrency,
            max_tasks: self.max_tasks,
            max_memory: self.max_memory,
            max_reply: MAX_REPLY,
            max_age: self.max_age,
            overlap,
            // Nobody would hear of it.
            block_warning: self.block_warning.filter(|limit| cfg!(feature = "tracing") && !limit.is_zero()),
            grace: self.grace,
        })
    }
}
