//! How long work in many small steps may keep a loop.

use std::time::{Duration, Instant};

/// Steps that follow each other within this time are quick.
const QUICK: Duration = Duration::from_micros(20);
/// Quick steps between two looks at the clock.
const STRIDE_MAX: u32 = 16;

/// Time for steps. Looks at the clock often while they take long, and less often while they do not.
pub(crate) struct TimeBudget {
    limit: Duration,
    started: Instant,
    looked: Instant,
    stride: u32,
    left: u32,
}

impl TimeBudget {
    /// So much time, from now on.
    pub(crate) fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { limit, started: now, looked: now, stride: 1, left: 1 }
    }

    /// After each step: whether the time is over.
    pub(crate) fn is_spent(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        let now = Instant::now();
        self.stride = if now - self.looked < QUICK { (self.stride * 2).min(STRIDE_MAX) } else { 1 };
        (self.looked, self.left) = (now, self.stride);
        now - self.started > self.limit
    }
}
