//! What is Python's own of a pool whose workers are Python interpreters: calls, values, exceptions, and the interpreter.
//! What it has in common with other pools is in `contract`. The interpreter is the one that `POLYLOOP_TEST_PYTHON` names,
//! which has the package: `make test` sees to both.
#![expect(clippy::unwrap_used, reason = "tests")]

mod blocked;
mod calls;
mod logs;
mod retries;
#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "it is other programs', too")]
mod rig;
mod starts;
mod streams;
mod values;

use polyloop::{PythonBuilder, PythonPool};

/// The tests' own modules.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/tasks");

fn builder(processes: usize) -> PythonBuilder {
    rig::python::builder(processes).module_path(MODULES)
}

async fn pool(processes: usize) -> PythonPool {
    builder(processes).build().await.unwrap()
}
