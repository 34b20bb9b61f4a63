//! Notices a worker that does not hear what it is told to cancel: what it runs blocks it, and must be interrupted.
//!
//! A worker counts what it has dealt with, so one look says whether anything is left. While nothing is, nobody looks.

use std::time::Duration;

use crate::id::Moment;

/// How long a worker may take to deal with a cancel before it is interrupted. A loop that turns is faster, also where it
/// computes a little between two turns: a coroutine does not expect to be cancelled there.
const INTERRUPT_AFTER: Duration = Duration::from_millis(50);
/// The longest wait between two interruptions; each is twice as long as the one before.
const INTERRUPT_AGAIN_MAX: Duration = Duration::from_millis(400);

/// What one worker was told, and when it is to be interrupted if it does not hear.
#[derive(Clone, Copy, Debug, Default)]
pub struct HearingWatch {
    told: u64,
    /// How many of them have had their time to be heard, once it is `at`.
    expected: u64,
    at: Option<Moment>,
    wait: Duration,
}

impl HearingWatch {
    /// The worker has been told to cancel something.
    pub fn told(&mut self, now: Moment) {
        self.told += 1;
        if self.at.is_none() {
            self.expect(now);
        }
    }

    /// When to look, if at all.
    pub fn at(&self) -> Option<Moment> {
        self.at
    }

    /// Looks at a worker that has dealt with so much since its start. Says whether to interrupt it.
    pub fn look(&mut self, now: Moment, heard: u64) -> bool {
        if self.at.is_none_or(|at| now < at) {
            return false;
        }
        if heard >= self.told {
            self.at = None;
            return false;
        }
        if heard >= self.expected {
            self.expect(now);
            return false;
        }
        self.at = Some(now + self.wait);
        self.wait = (self.wait * 2).min(INTERRUPT_AGAIN_MAX);
        true
    }

    /// Gives everything said so far its time.
    fn expect(&mut self, now: Moment) {
        self.expected = self.told;
        self.wait = INTERRUPT_AFTER * 2;
        self.at = Some(now + INTERRUPT_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::ZERO;
    const MS: Duration = Duration::from_millis(1);

    /// Looks each millisecond up to this one, and says at which the worker was interrupted.
    fn interruptions(watch: &mut HearingWatch, until: u32, heard: impl Fn(u32) -> u64) -> Vec<u32> {
        (0..until).filter(|ms| watch.look(MS * *ms, heard(*ms))).collect()
    }

    #[test]
    fn a_worker_that_hears_is_not_interrupted_and_then_not_looked_at() {
        let mut watch = HearingWatch::default();
        assert_eq!(watch.at(), None);
        watch.told(START);
        assert_eq!(interruptions(&mut watch, 200, |ms| u64::from(ms > 5)), []);
        assert_eq!(watch.at(), None);
    }

    #[test]
    fn one_that_does_not_is_interrupted_until_it_does_at_growing_intervals() {
        let mut watch = HearingWatch::default();
        watch.told(START);
        assert_eq!(interruptions(&mut watch, 2000, |ms| u64::from(ms > 1300)), [50, 150, 350, 750, 1150]);
        assert_eq!(watch.at(), None);
    }

    #[test]
    fn what_it_was_told_later_gets_its_own_time() {
        let mut watch = HearingWatch::default();
        watch.told(START);
        watch.told(START);
        assert!(!watch.look(MS * 49, 1));
        watch.told(MS * 49);
        assert!(!watch.look(MS * 50, 2), "the first two were heard");
        assert_eq!(watch.at(), Some(MS * 100));
        assert!(watch.look(MS * 100, 2));
    }

    #[test]
    fn a_count_that_no_correct_worker_gives_ends_the_looking() {
        let mut watch = HearingWatch::default();
        watch.told(START);
        assert!(!watch.look(MS * 50, u64::MAX));
        assert_eq!(watch.at(), None);
    }
}
