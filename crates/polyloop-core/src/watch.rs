//! Notices a worker whose loop is blocked: it runs something, and does not answer.
//!
//! A loop that merely waits answers when it is asked, which changes the worker's state; so does everything it does.

use std::time::Duration;

use crate::id::Moment;

/// What to do about a worker that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It does something, or has nothing to do.
    Fine,
    /// Ring it, whether it sleeps or not.
    Ask,
    /// It has not answered for so long. Said once for each time it is blocked.
    Blocked(Duration),
}

/// One worker as it was when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopWatch {
    state: u64,
    since: Moment,
    asked: bool,
    reported: bool,
}

impl LoopWatch {
    /// How often to look, for blocks longer than `limit` to be noticed.
    pub fn interval(limit: Duration) -> Duration {
        limit / 2
    }

    /// Looks at a worker. `state` changes whenever it does anything.
    pub fn look(&mut self, now: Moment, state: u64, in_flight: u32, limit: Duration) -> Look {
        if in_flight == 0 || state != self.state {
            *self = Self { state, since: now, ..Self::default() };
            return Look::Fine;
        }
        let blocked = now.saturating_sub(self.since);
        if !self.asked {
            self.asked = true;
            return Look::Ask;
        }
        if self.reported || blocked < limit {
            return Look::Fine;
        }
        self.reported = true;
        Look::Blocked(blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Looks every half second at a worker with these states.
    fn looks(states: &[u64], in_flight: u32) -> Vec<Look> {
        let mut watch = LoopWatch::default();
        let at = |index: u32| LoopWatch::interval(LIMIT) * index;
        (0..).zip(states).map(|(index, state)| watch.look(at(index), *state, in_flight, LIMIT)).collect()
    }

    #[test]
    fn a_loop_that_does_not_answer_is_blocked_and_that_is_said_once() {
        let blocked = Look::Blocked(LIMIT);
        assert_eq!(looks(&[7; 6], 1), [Look::Fine, Look::Ask, blocked, Look::Fine, Look::Fine, Look::Fine]);
    }

    #[test]
    fn a_loop_that_answers_is_never_blocked() {
        assert_eq!(looks(&[7, 7, 9, 9, 11, 11], 1), [Look::Fine, Look::Ask].repeat(3));
    }

    #[test]
    fn a_second_block_is_said_again() {
        let said = looks(&[7, 7, 7, 8, 8, 8], 1);
        assert_eq!(said.iter().filter(|look| matches!(look, Look::Blocked(_))).count(), 2);
    }

    #[test]
    fn a_worker_without_tasks_is_left_alone() {
        assert_eq!(looks(&[7; 5], 0), [Look::Fine; 5]);
    }
}
