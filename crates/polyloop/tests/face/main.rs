//! What is Rust's own of a pool whose workers are this program: what can be a task, how it panics, what travels, and what
//! workers are made of. What it has in common with other pools is in `contract`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod buffers;
mod calls;
mod retries;
#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "it is other programs', too")]
mod rig;
mod starts;
mod streams;
mod tasks;

use polyloop::{Builder, Pool};

polyloop::init_before_main!();

fn builder(processes: usize) -> Builder {
    Pool::builder().processes(processes)
}

async fn pool(processes: usize) -> Pool {
    builder(processes).build().await.unwrap()
}

fn pid() -> u32 {
    std::process::id()
}
