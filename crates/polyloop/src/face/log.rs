//! News of the workers for whoever operates the program: events of the target `polyloop`, with the feature `tracing`.

use std::io;
use std::time::Duration;

use polyloop_core::{Report, WorkerId};

use super::error::Error;

#[cfg(feature = "tracing")]
macro_rules! warn {
    ($($told:tt)*) => { tracing::warn!(target: "polyloop", $($told)*) };
}

#[cfg(not(feature = "tracing"))]
macro_rules! warn {
    ($text:literal $(, $value:expr)* $(,)?) => {{ $(let _ = &$value;)* }};
}

pub(crate) fn report(report: &Report) {
    match report {
        Report::Died { pid, exit, retried, lost, judged, .. } => {
            let pid = pid.unwrap_or_default();
            match judged {
                0 => warn!("worker {} died ({}); of its tasks {} to be run again, {} lost", pid, exit, retried, lost),
                _ => warn!(
                    "worker {} died ({}); of its tasks {} to be run again, {} lost, {} to be judged",
                    pid, exit, retried, lost, judged
                ),
            }
        }
        Report::Degraded(error) => {
            let error = Error::no_workers(error);
            warn!("{}; trying again", error);
        }
        Report::Recovered => warn!("workers start again"),
        Report::Terminated(tasks) => warn!("terminated with {} tasks unfinished", tasks),
    }
}

pub(crate) fn blocked(pid: Option<u32>, blocked: Duration) {
    let pid = pid.unwrap_or_default();
    warn!("the event loop of worker {} has been blocked for {:?}", pid, blocked);
}

pub(crate) fn undecided(error: &Error) {
    warn!("`retry_on` panicked, so a task is not run again: {}", error);
}

pub(crate) fn garbage(worker: WorkerId, problem: &str) {
    warn!("worker {} wrote what no correct worker writes, and is replaced: {}", worker, problem);
}

pub(crate) fn broken(error: &io::Error) {
    warn!("a pool can't be driven any more: {}", error);
}
