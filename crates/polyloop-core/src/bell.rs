//! Whom to ring when work has been posted, and how the manager itself rests.
//!
//! A ring is a hint that may go to a worker that is stopped, or whose loop is busy although it said it sleeps. So
//! while items wait and a sleeper has not been rung, the manager looks again after [`RING_AGAIN`] and rings the
//! next one.

use std::time::Duration;

use crate::id::Moment;

/// How long posted items wait for those already rung before another sleeper is.
pub const RING_AGAIN: Duration = Duration::from_millis(1);

/// How long the manager naps while outcomes stream in: it looks by itself, and nobody needs to ring it. Within these
/// bounds, so long that each nap brings a good number of them: with more, workers have emptied what is posted, and wait;
/// with fewer, they wait for the processor that each look takes.
const NAP_MIN: Duration = Duration::from_micros(20);
const NAP_MAX: Duration = Duration::from_micros(200);
const FEW_OUTCOMES: usize = 64;
const MANY_OUTCOMES: usize = 256;

/// Outcomes in one look that make a stream by themselves.
const STREAM_OUTCOMES: usize = 16;
/// Looks with outcomes that follow each other within this time make a stream too.
const STREAM_GAP: Duration = Duration::from_millis(1);
/// Unfinished tasks that make napping worth it: with fewer, somebody waits for the very next outcome.
const STREAM_UNFINISHED: usize = 64;
/// Outcomes that a nap must bring, or it only made somebody wait.
const USEFUL_OUTCOMES: usize = 4;
/// Naps left out at most after useless ones.
const PENALTY_MAX: u32 = 256;

/// A worker as a candidate for a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// It sleeps, and we have not rung it since it fell asleep.
    pub can_ring: bool,
    /// Items it runs.
    pub in_flight: u32,
    /// Items it would take.
    pub room: u32,
}

/// Chooses whom to ring for `items` newly posted or still waiting items: those with nothing in flight first, one
/// for each item. Puts indices into `loads` into `chosen`.
pub fn whom_to_ring(loads: &[Load], items: usize, chosen: &mut Vec<usize>) {
    chosen.clear();
    let candidate = |index: &usize| loads[*index].can_ring && loads[*index].room > 0;
    chosen.extend((0..loads.len()).filter(candidate));
    chosen.sort_by_key(|&index| loads[index].in_flight);
    chosen.truncate(items);
}

/// How the manager rests after a look at its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Asleep: whoever has news rings.
    Sleep,
    /// It will look again after this time by itself.
    Nap(Duration),
}

/// Chooses how to rest, and learns from the naps it chose whether they are of use.
#[derive(Debug)]
pub struct Resting {
    last_outcomes: Option<Moment>,
    napped: bool,
    nap: Duration,
    penalty: u32,
    skip: u32,
}

impl Default for Resting {
    fn default() -> Self {
        Self { last_outcomes: None, napped: false, nap: NAP_MIN, penalty: 0, skip: 0 }
    }
}

impl Resting {
    /// After a look that brought so many outcomes: naps while they stream in faster than ringing for each would pay.
    pub fn after(&mut self, now: Moment, outcomes: usize, unfinished: usize) -> Rest {
        if std::mem::take(&mut self.napped) {
            let useful = outcomes >= USEFUL_OUTCOMES;
            self.penalty = if useful { 0 } else { (self.penalty * 2).clamp(1, PENALTY_MAX) };
            self.skip = self.penalty;
            self.nap = match outcomes {
                0..FEW_OUTCOMES => (self.nap * 2).min(NAP_MAX),
                FEW_OUTCOMES..=MANY_OUTCOMES => self.nap,
                _ => (self.nap / 2).max(NAP_MIN),
            };
        }
        let recently = self.last_outcomes.is_some_and(|last| now.saturating_sub(last) < STREAM_GAP);
        if outcomes == 0 || unfinished < STREAM_UNFINISHED {
            return Rest::Sleep;
        }
        self.last_outcomes = Some(now);
        if outcomes < STREAM_OUTCOMES && !recently {
            return Rest::Sleep;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Rest::Sleep;
        }
        self.napped = true;
        Rest::Nap(self.nap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_sleepers_are_rung_first_and_no_more_than_there_are_items() {
        let load = |can_ring, in_flight, room| Load { can_ring, in_flight, room };
        let loads = [load(true, 3, 5), load(false, 0, 9), load(true, 0, 9), load(true, 0, 0)];
        let mut chosen = Vec::new();
        whom_to_ring(&loads, 1, &mut chosen);
        assert_eq!(chosen, [2]);
        whom_to_ring(&loads, 9, &mut chosen);
        assert_eq!(chosen, [2, 0]);
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_single_caller_is_never_made_to_wait_for_a_nap() {
        let mut resting = Resting::default();
        for call in 1..100 {
            assert_eq!(resting.after(MS * call / 10, 1, 1), Rest::Sleep);
        }
    }

    #[test]
    fn it_naps_while_outcomes_stream_in() {
        let mut resting = Resting::default();
        assert_eq!(resting.after(MS, 1, 1000), Rest::Sleep, "the first");
        assert_eq!(resting.after(MS * 3 / 2, 1, 1000), Rest::Nap(NAP_MIN));
        assert_eq!(resting.after(MS * 2, 300, 1000), Rest::Nap(NAP_MIN));
        assert_eq!(resting.after(MS * 3, 0, 1000), Rest::Sleep);
    }

    #[test]
    fn naps_are_as_long_as_it_takes_for_a_good_number_of_outcomes() {
        let mut resting = Resting::default();
        let mut nap = |outcomes: usize| (1..9).map(|look| resting.after(MS * look / 2, outcomes, 1000)).last();
        assert_eq!(nap(5), Some(Rest::Nap(NAP_MAX)), "slow");
        assert_eq!(nap(1000), Some(Rest::Nap(NAP_MIN)), "quick");
        let before = nap(100);
        assert_eq!(nap(100), before, "right");
    }

    #[test]
    fn one_call_after_the_other_beside_many_long_tasks_hardly_ever_waits_for_a_nap() {
        let mut resting = Resting::default();
        let naps = (1..2000).filter(|call| matches!(resting.after(MS * *call / 10, 1, 100), Rest::Nap(_))).count();
        assert!(naps < 20, "{naps}");
    }
}
