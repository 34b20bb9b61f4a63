//! The contract of a pool, with workers that are this program: what the table of behaviour in the documents says.
#![expect(clippy::unwrap_used, reason = "tests")]

mod buffers;
mod calls;
mod cancels;
mod deaths;
mod ends;
mod events;
#[expect(dead_code, reason = "it is another program's, too")]
mod heard;
mod maps;
mod retries;
mod rig;
mod starts;
mod streams;

polyloop::init_before_main!();
