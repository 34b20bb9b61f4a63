//! What the tests of pools share, whatever runs in their workers: a runtime under a watchdog, marks that tasks leave, and
//! this program once more. Those of the engine have a rig of their own, in `engine`.
#![expect(clippy::unwrap_used, reason = "the rig serves tests only")]

pub(crate) mod buffers;
pub(crate) mod heard;
pub(crate) mod marks;
pub(crate) mod process;
pub(crate) mod python;

use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use polyloop::{Stage, Stats, WorkerStats};

use self::process::is_alive;

/// How long a test may take.
const WATCHDOG: Duration = Duration::from_secs(60);
/// How often something is looked at that tells nobody when it changes.
pub(crate) const LOOK: Duration = Duration::from_millis(2);
/// What this program is to do instead of tests, as [`myself`] says.
pub(crate) const ROLE: &str = "POLYLOOP_TEST_ROLE";

/// Runs a test on a runtime of its own: on one thread, then on several.
pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for mut builder in [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()] {
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(WATCHDOG, test()).await.expect("stuck") });
    }
}

pub(crate) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The workers whose processes are known.
pub(crate) fn pids(stats: &Stats) -> Vec<u32> {
    stats.workers.iter().filter_map(|worker| worker.pid).collect()
}

/// Waits until so many workers take work.
pub(crate) async fn until_ready(stats: impl Fn() -> Stats, workers: usize) {
    let is_ready = |worker: &&WorkerStats| worker.stage == Stage::Ready;
    until(|| stats().workers.iter().filter(is_ready).count() == workers).await;
}

pub(crate) async fn until_gone(pids: &[u32]) {
    until(|| !pids.iter().any(|pid| is_alive(*pid))).await;
}

/// This program once more, to run the test of this name with [`ROLE`] set.
pub(crate) fn myself(program: &Path, test: &str, role: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}
