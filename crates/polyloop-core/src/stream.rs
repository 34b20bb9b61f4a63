//! The values of a stream between the worker that gives them and the host that takes them: how many may be under way.
//!
//! ```text
//!  worker: gives while its Flow admits ──value──> ring ──> manager: Intake ──value──> host takes
//!          counts credit in            <──credit, in batches───────'
//! ```
//! Both sides keep the same account. The manager's is never behind in credit, so a worker that gives what its own
//! account forbids is known for it: credit is the bound of what is kept of a stream.

use std::collections::VecDeque;

use thiserror::Error;

use crate::id::TaskId;

/// Values of a stream that may be under way.
pub const STREAM_VALUES: usize = 64;
/// Bytes of them after which no other is given: one value may be larger.
pub const STREAM_BYTES: usize = 1 << 20;

/// Values that were given and not credited: the worker's account.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Flow {
    /// Whether another value may be given now.
    pub fn admits(&self) -> bool {
        self.sizes.len() < STREAM_VALUES && self.bytes < STREAM_BYTES
    }

    /// A value of so many bytes is given.
    pub fn give(&mut self, bytes: usize) {
        self.sizes.push_back(bytes);
        self.bytes += bytes;
    }

    /// The oldest so many values count no more. Credit for what was never given is for nothing.
    pub fn credit(&mut self, values: u32) {
        for _ in 0..values {
            let Some(bytes) = self.sizes.pop_front() else { return };
            self.bytes -= bytes;
        }
    }
}

/// Values that have arrived and are not credited: the manager's account.
#[derive(Clone, Debug, Default)]
pub struct Intake {
    flow: Flow,
    /// Those that the host has taken, and their bytes.
    taken: u32,
    taken_bytes: usize,
}

/// A worker gave a value that it could not give.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Unasked {
    /// Nobody asked for a stream.
    #[error("a value of task {0}, which is no stream")]
    NoStream(TaskId),
    /// More than it has credit for.
    #[error("a value of stream {0} without credit")]
    NoCredit(TaskId),
}

impl Intake {
    /// A value of so many bytes has arrived. Says whether there was credit for it.
    pub fn arrive(&mut self, bytes: usize) -> bool {
        let admitted = self.flow.admits();
        self.flow.give(bytes);
        admitted
    }

    /// The host has taken the next value. Returns the credit to be given for it and those before, if it is time: at half
    /// of what may be under way, so that the worker goes on before it has to wait, and need not be told of each.
    pub fn take(&mut self) -> Option<u32> {
        let bytes = *self.flow.sizes.get(self.taken as usize)?;
        self.taken += 1;
        self.taken_bytes += bytes;
        if (self.taken as usize) < STREAM_VALUES / 2 && self.taken_bytes < STREAM_BYTES / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.taken);
        self.taken_bytes = 0;
        self.flow.credit(credit);
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_worker_gives_as_many_values_as_may_be_under_way_and_then_waits() {
        let mut flow = Flow::default();
        let given = std::iter::repeat_with(|| flow.give(1)).take(STREAM_VALUES).count();
        assert_eq!((given, flow.admits()), (STREAM_VALUES, false));
        flow.credit(1);
        assert!(flow.admits());
    }

    #[test]
    fn a_large_value_travels_alone() {
        let mut flow = Flow::default();
        flow.give(10 * STREAM_BYTES);
        assert!(!flow.admits());
        let mut intake = Intake::default();
        assert!(intake.arrive(10 * STREAM_BYTES) && !intake.arrive(1));
        assert_eq!(intake.take(), Some(1), "at once, as the worker waits for it");
    }

    #[test]
    fn credit_for_what_was_never_given_is_for_nothing() {
        let mut flow = Flow::default();
        flow.give(1);
        flow.credit(u32::MAX);
        (0..STREAM_VALUES).for_each(|_| flow.give(1));
        assert!(!flow.admits());
        assert_eq!(Intake::default().take(), None);
    }

    proptest! {
        /// Credit that is on its way makes the worker's account the stricter one, and a host that has taken all there is
        /// never waits for a worker that waits for credit.
        #[test]
        fn neither_side_waits_for_the_other(sizes in proptest::collection::vec(0..STREAM_BYTES, 1..400), takes in proptest::collection::vec(any::<bool>(), 400)) {
            let (mut flow, mut intake, mut waiting, mut credits) = (Flow::default(), Intake::default(), 0, VecDeque::new());
            let mut prefers_taking = takes.into_iter().cycle();
            for size in sizes {
                while waiting > 0 && (!flow.admits() || prefers_taking.next() == Some(true)) {
                    credits.extend(intake.take());
                    waiting -= 1;
                }
                while !flow.admits() {
                    let credit = credits.pop_front();
                    prop_assert!(credit.is_some(), "the host waits for values, the worker for credit");
                    flow.credit(credit.unwrap());
                }
                flow.give(size);
                prop_assert!(intake.arrive(size));
                waiting += 1;
            }
        }
    }
}
