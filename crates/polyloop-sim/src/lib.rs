//! A seeded world on virtual time: the real pool, workers and queues on heap words, with faults, and checkers.
//!
//! ```text
//!   Scenario (from a seed) --> World: picks who steps next, injects faults, moves the clock
//!                                |-- Manager: pool, boards, seats; the client's calls happen on its loop
//!                                |-- Process 0..n: a worker with its items
//!                                `-- Site: what they share: memory, doorbells, the clock, the ledger of all tasks
//! ```
//! Each step of an actor has at most one effect that another can see, so that between any two of them it can be
//! interrupted, stopped or killed. What a run does depends on its seed alone.
#![forbid(unsafe_code)]

mod client;
mod ledger;
mod manager;
mod process;
mod rng;
mod sabotage;
mod scenario;
mod site;
mod streams;
mod sweep;
mod vigil;
mod world;

pub use sabotage::Sabotage;
pub use sweep::{Figures, sweep};
pub use world::{Failure, run};
