//! The Python interpreter that is to be tested.

use std::future::Future;
use std::path::PathBuf;

use polyloop::{PythonBuilder, PythonPool};

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
        super::run(test);
    }
}

pub(crate) fn builder(processes: usize) -> PythonBuilder {
    PythonPool::builder().interpreter(interpreter().unwrap()).processes(processes)
}
