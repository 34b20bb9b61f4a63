//! Chance that can be repeated: a xorshift generator, seeded by the clock unless told.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) struct Dice {
    state: u64,
    pub(crate) seed: u64,
}

impl Dice {
    pub(crate) fn new() -> Self {
        let told = std::env::var("POLYLOOP_KILL_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
        let seed = told.unwrap_or_else(clock).max(1);
        Self { state: seed, seed }
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % end
    }
}

/// Rounds for each step.
pub(crate) fn rounds() -> u32 {
    std::env::var("POLYLOOP_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}
