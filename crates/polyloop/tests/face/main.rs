//! The contract of a pool, with workers that are this program: what the table of behaviour in the documents says.
#![expect(clippy::unwrap_used, reason = "tests")]

mod calls;
mod cancels;
mod deaths;
mod ends;
mod events;
mod heard;
mod maps;
mod rig;
mod starts;

polyloop::init_before_main!();
