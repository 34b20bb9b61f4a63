//! What each fuzz target does with its bytes. `cargo test` of the main workspace includes the same files and gives them
//! random bytes for a moment; `make fuzz` lets libFuzzer search.

pub mod frames;
pub mod grip;
pub mod memory;
pub mod queue;
pub mod rogue;
