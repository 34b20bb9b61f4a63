//! What these tests have in common: pools of the interpreter that is to be tested.

use std::future::Future;
use std::path::PathBuf;

use polyloop::{PythonBuilder, PythonPool, Stage};

use crate::rig;

const INTERPRETER: &str = "POLYLOOP_TEST_PYTHON";

/// The interpreter to be tested. `None` where nobody says which, which is a fault where everything is to be tested.
pub(crate) fn interpreter() -> Option<PathBuf> {
    let path = std::env::var_os(INTERPRETER).map(PathBuf::from);
    assert!(path.is_some() || std::env::var_os("CI").is_none(), "{INTERPRETER} must name a Python that has polyloop");
    if path.is_none() {
        eprintln!("skipped: {INTERPRETER} names no Python that has polyloop; `make test-rust` sets it");
    }
    path
}

/// Runs a test, if there is an interpreter to be tested: on one thread, then on several.
pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F) {
    if interpreter().is_some() {
        rig::run(test);
    }
}

/// A directory of the tests' own modules.
pub(crate) fn modules() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/tasks")
}

pub(crate) fn builder(processes: usize) -> PythonBuilder {
    PythonPool::builder().interpreter(interpreter().unwrap()).module_path(modules()).processes(processes)
}

pub(crate) async fn pool(processes: usize) -> PythonPool {
    builder(processes).build().await.unwrap()
}

pub(crate) fn pids(pool: &PythonPool) -> Vec<u32> {
    pool.stats().workers.iter().filter_map(|worker| worker.pid).collect()
}

/// Waits until so many workers take work.
pub(crate) async fn until_ready(pool: &PythonPool, workers: usize) {
    let is_ready = |worker: &&polyloop::WorkerStats| worker.stage == Stage::Ready;
    rig::until(|| pool.stats().workers.iter().filter(is_ready).count() == workers).await;
}
