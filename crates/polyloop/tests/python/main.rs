//! The contract of a pool, with workers that are Python interpreters. They are the interpreter that
//! `POLYLOOP_TEST_PYTHON` names, which has the package: `make test` sees to both.
#![expect(clippy::unwrap_used, reason = "tests")]

mod blocked;
mod calls;
mod deaths;
mod ends;
#[path = "../face/heard.rs"]
mod heard;
mod logs;
mod maps;
mod python;
mod retries;
#[path = "../face/rig.rs"]
#[expect(dead_code, reason = "it is another program's, too")]
mod rig;
mod starts;
mod streams;
mod values;
