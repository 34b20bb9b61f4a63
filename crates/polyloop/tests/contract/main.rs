//! The contract of a pool, as the table of behaviour in the documents says it: each test is written once, and runs over
//! workers that are this program and over Python interpreters. Those are what `POLYLOOP_TEST_PYTHON` names, an
//! interpreter that has the package: `make test` sees to both.
#![expect(clippy::unwrap_used, reason = "tests")]

mod pool;
#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "it is other programs', too")]
mod rig;
mod tasks;

mod alone;
mod buffers;
mod calls;
mod cancels;
mod deaths;
mod ends;
mod events;
mod maps;
mod retries;
mod staff;
mod starts;

polyloop::init_before_main!();
