//! The results of a map: how far its input may be drawn, what has come back, in which order it is given, and when the
//! rest is given up. Who draws, and who runs the items, is not its concern.
//!
//! ```text
//!  input --begin--> outstanding --deliver--> in order of input | as they finish --take--> whoever asks
//! ```

use std::collections::VecDeque;

/// How results are asked for. Until somebody asks, an item that fails cancels nothing: it may be asked for outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Not at all yet.
    Nothing,
    /// Not at all, and the pool closes: all are to come back, as for [`Want::All`].
    Rest,
    /// All at once.
    All,
    /// One by one, in the order of the input.
    InOrder,
    /// One by one, in the order in which they come back.
    AsFinished,
}

/// What [`MapResults::take`] has.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Not there yet.
    Pending,
    /// What an item returned.
    Value(u64, T),
    /// What an item raised, where that is kept.
    Error(u64, T),
    /// The map has failed: see [`MapResults::failure`].
    Failed,
    /// There are no more.
    End,
}

/// Items that nobody wants any more, and with them the rest of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Those after this one.
    After(u64),
    /// All.
    All,
}

#[derive(Debug)]
enum Spot<T> {
    Waiting,
    Done(Result<T, T>),
}

/// The results of one map. `T` is a value or an error; values that nobody will get are left in [`Self::scraps`].
#[derive(Debug)]
pub struct MapResults<T> {
    window: usize,
    /// What the items need is scarce: no more of them than this are to be outstanding.
    scarce_window: Option<usize>,
    want: Want,
    keeps_errors: bool,
    /// Items drawn.
    drawn: u64,
    /// Items that have not come back.
    outstanding: usize,
    /// In order of the input, from the first that has not been taken. Not used for [`Want::AsFinished`].
    spots: VecDeque<Spot<T>>,
    taken: u64,
    /// In order of arrival, as long as nobody has asked.
    arrived: VecDeque<u64>,
    first_error: Option<u64>,
    /// For [`Want::AsFinished`].
    finished: VecDeque<(u64, Result<T, T>)>,
    input_ended: bool,
    input_failure: Option<T>,
    /// Whatever comes back now comes too late.
    over: bool,
    failure: Option<T>,
    cut: Option<Cut>,
    scraps: Vec<T>,
}

impl<T> MapResults<T> {
    /// For an input of which `window` items may be drawn ahead. An error that is kept stands in place of a value, else
    /// the first one is the end of the map.
    pub fn new(window: usize, keeps_errors: bool) -> Self {
        Self {
            window,
            scarce_window: None,
            want: Want::Nothing,
            keeps_errors,
            drawn: 0,
            outstanding: 0,
            spots: VecDeque::new(),
            taken: 0,
            arrived: VecDeque::new(),
            first_error: None,
            finished: VecDeque::new(),
            input_ended: false,
            input_failure: None,
            over: false,
            failure: None,
            cut: None,
            scraps: Vec::new(),
        }
    }

    /// How many more items may be drawn now.
    pub fn room(&self) -> usize {
        let fails_when_asked = self.want == Want::Nothing && self.first_error.is_some() && !self.keeps_errors;
        if self.input_ended || fails_when_asked {
            return 0;
        }
        let held = match self.want {
            Want::Nothing | Want::InOrder => self.spots.len(),
            Want::Rest | Want::All => self.outstanding,
            Want::AsFinished => self.outstanding + self.finished.len(),
        };
        let room = self.window.saturating_sub(held);
        self.scarce_window.map_or(room, |window| room.min(window.saturating_sub(self.outstanding)))
    }

    /// Whether what the items need is scarce, and how many of them may be outstanding even then.
    pub fn set_scarce(&mut self, window: Option<usize>) {
        self.scarce_window = window;
    }

    /// As was last said.
    pub fn is_scarce(&self) -> bool {
        self.scarce_window.is_some()
    }

    /// Whether a producer that waits for room should go on. It is not woken for each place.
    pub fn has_ample_room(&self) -> bool {
        self.room() * 2 >= self.window
    }

    /// Items that have come back, in whatever way.
    pub fn finished(&self) -> u64 {
        self.drawn - self.outstanding as u64
    }

    /// Items that have not come back.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether no more input is wanted, or there is none.
    pub fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Whether nothing will come back any more.
    pub fn is_complete(&self) -> bool {
        self.input_ended && self.outstanding == 0
    }

    /// What the map has ended with, if not well.
    pub fn failure(&self) -> Option<&T> {
        self.failure.as_ref()
    }

    /// Whether whoever waits can go on.
    pub fn has_news(&self) -> bool {
        let ready = match self.want {
            Want::Nothing | Want::Rest | Want::All => false,
            Want::InOrder if self.spots.is_empty() => self.input_ended,
            Want::InOrder => !matches!(self.spots.front(), Some(Spot::Waiting)),
            Want::AsFinished => !self.finished.is_empty(),
        };
        ready || self.failure.is_some() || self.is_complete()
    }

    /// What is to be cancelled, once.
    pub fn take_cut(&mut self) -> Option<Cut> {
        self.cut.take()
    }

    /// What nobody will get: for the caller to drop, where that may run anything.
    pub fn scraps(&mut self) -> Vec<T> {
        std::mem::take(&mut self.scraps)
    }

    /// So many items have been drawn. Gives the index of the first.
    pub fn begin(&mut self, count: usize) -> u64 {
        let first = self.drawn;
        self.drawn += count as u64;
        self.outstanding += count;
        if self.want != Want::AsFinished {
            self.spots.extend((0..count).map(|_| Spot::Waiting));
        }
        first
    }

    /// The last items that have been drawn do not run after all.
    pub fn withdraw(&mut self, count: usize) {
        self.drawn -= count as u64;
        self.outstanding -= count;
        self.spots.truncate(self.spots.len().saturating_sub(count));
    }

    /// No more input, because it is used up or because it failed. Says whether it was still wanted.
    pub fn end_input(&mut self, error: Option<T>) -> bool {
        if std::mem::replace(&mut self.input_ended, true) {
            self.scraps.extend(error);
            return false;
        }
        match error {
            Some(error) if matches!(self.want, Want::All | Want::Rest) => self.fail(error),
            error => self.input_failure = error,
        }
        true
    }

    /// An item has come back.
    pub fn deliver(&mut self, index: u64, result: Result<T, T>) {
        self.outstanding -= 1;
        if self.over {
            return self.scrap(result);
        }
        if self.want == Want::AsFinished {
            return self.finish(index, result);
        }
        let at = index.wrapping_sub(self.taken) as usize;
        let failed = result.is_err();
        match self.spots.get_mut(at) {
            Some(spot) => *spot = Spot::Done(result),
            None => return self.scrap(result),
        }
        match self.want {
            Want::Nothing => self.arrived.push_back(index),
            Want::Rest if !failed || self.keeps_errors => self.arrived.push_back(index),
            _ => (),
        }
        if failed {
            self.first_error.get_or_insert(index);
            self.item_failed(index);
        }
    }

    /// Asks for the results in this way from now on; whether errors are kept may be decided anew as well.
    pub fn ask(&mut self, want: Want, keeps_errors: bool) {
        self.want = want;
        self.keeps_errors = keeps_errors;
        if self.over {
            return;
        }
        match want {
            Want::Nothing => (),
            Want::Rest | Want::All => {
                if let Some(first) = self.first_error {
                    self.item_failed(first);
                }
                if !self.over
                    && let Some(error) = self.input_failure.take()
                {
                    self.fail(error);
                }
            }
            Want::InOrder => {
                if let Some(at) = self.spots.iter().position(|spot| matches!(spot, Spot::Done(Err(_)))) {
                    self.item_failed(self.taken + at as u64);
                }
            }
            Want::AsFinished => {
                let mut spots: VecDeque<_> = std::mem::take(&mut self.spots).into_iter().map(Some).collect();
                for index in std::mem::take(&mut self.arrived) {
                    if let Some(Some(Spot::Done(result))) = spots.get_mut(index as usize).map(Option::take) {
                        self.finish(index, result);
                    }
                }
            }
        }
        if want != Want::Rest {
            self.arrived = VecDeque::new();
        }
    }

    /// The next result, for whoever takes them one by one.
    pub fn take(&mut self) -> Next<T> {
        if self.failure.is_some() {
            return Next::Failed;
        }
        match self.want {
            Want::InOrder => self.take_in_order(),
            Want::AsFinished => match self.finished.pop_front() {
                Some((index, result)) => self.give(index, result),
                None if self.is_complete() => self.end(),
                None => Next::Pending,
            },
            Want::Nothing | Want::Rest | Want::All => Next::Pending,
        }
    }

    /// All results, in the order of the input, once they are complete.
    pub fn take_all(&mut self) -> Vec<T> {
        let spots = std::mem::take(&mut self.spots).into_iter();
        let done = spots.filter_map(|spot| match spot {
            Spot::Done(Ok(result) | Err(result)) => Some(result),
            Spot::Waiting => None,
        });
        done.collect()
    }

    /// Nobody wants any of it any more: whoever asks gets `error`. Says whether the map had not failed before.
    pub fn cancel(&mut self, error: T) -> bool {
        if self.failure.is_some() {
            self.scraps.push(error);
            return false;
        }
        self.fail(error);
        true
    }

    fn take_in_order(&mut self) -> Next<T> {
        match self.spots.pop_front() {
            None if self.input_ended => self.end(),
            None => Next::Pending,
            Some(Spot::Waiting) => {
                self.spots.push_front(Spot::Waiting);
                Next::Pending
            }
            Some(Spot::Done(result)) => {
                self.taken += 1;
                self.give(self.taken - 1, result)
            }
        }
    }

    fn give(&mut self, index: u64, result: Result<T, T>) -> Next<T> {
        match result {
            Ok(value) => Next::Value(index, value),
            Err(error) if self.keeps_errors => Next::Error(index, error),
            Err(error) => {
                self.failure = Some(error);
                Next::Failed
            }
        }
    }

    fn end(&mut self) -> Next<T> {
        self.failure = self.input_failure.take();
        if self.failure.is_some() { Next::Failed } else { Next::End }
    }

    fn finish(&mut self, index: u64, result: Result<T, T>) {
        if self.over {
            return self.scrap(result);
        }
        let ends_it = result.is_err() && !self.keeps_errors;
        self.finished.push_back((index, result));
        if ends_it {
            self.over = true;
            self.give_up(Cut::All);
        }
    }

    /// An item has failed whose place is kept in order.
    fn item_failed(&mut self, index: u64) {
        if self.keeps_errors {
            return;
        }
        let at = index.wrapping_sub(self.taken) as usize;
        match self.want {
            Want::Nothing | Want::AsFinished => (),
            Want::InOrder => {
                let after = self.spots.split_off(self.spots.len().min(at.saturating_add(1)));
                self.scrap_all(after);
                self.give_up(Cut::After(index));
            }
            Want::Rest | Want::All => match self.spots.get_mut(at).map(|spot| std::mem::replace(spot, Spot::Waiting)) {
                Some(Spot::Done(Err(error))) => self.fail(error),
                Some(spot) => self.spots[at] = spot,
                None => (),
            },
        }
    }

    /// Everybody who asks gets `error` from now on.
    fn fail(&mut self, error: T) {
        self.failure = Some(error);
        self.over = true;
        let spots = std::mem::take(&mut self.spots);
        self.scrap_all(spots);
        for (_, result) in std::mem::take(&mut self.finished) {
            self.scrap(result);
        }
        self.scraps.extend(self.input_failure.take());
        self.arrived = VecDeque::new();
        self.give_up(Cut::All);
    }

    fn give_up(&mut self, cut: Cut) {
        self.input_ended = true;
        self.scraps.extend(self.input_failure.take());
        self.cut = Some(cut);
    }

    fn scrap(&mut self, result: Result<T, T>) {
        let (Ok(scrap) | Err(scrap)) = result;
        self.scraps.push(scrap);
    }

    fn scrap_all(&mut self, spots: VecDeque<Spot<T>>) {
        for spot in spots {
            if let Spot::Done(result) = spot {
                self.scrap(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(items: u64, keeps_errors: bool) -> MapResults<&'static str> {
        let mut results = MapResults::new(8, keeps_errors);
        (0..items).for_each(|index| assert_eq!(results.begin(1), index));
        results
    }

    #[test]
    fn results_are_given_in_order_of_the_input() {
        let mut results = drawn(2, false);
        results.ask(Want::InOrder, false);
        results.end_input(None);
        results.deliver(1, Ok("b"));
        assert!(!results.has_news());
        assert_eq!(results.take(), Next::Pending);
        results.deliver(0, Ok("a"));
        assert_eq!(
            [results.take(), results.take(), results.take()],
            [Next::Value(0, "a"), Next::Value(1, "b"), Next::End]
        );
    }

    #[test]
    fn while_what_items_need_is_scarce_only_few_are_drawn_and_never_none() {
        let mut results = drawn(3, false);
        results.set_scarce(Some(2));
        assert_eq!((results.room(), results.is_scarce()), (0, true));
        results.deliver(0, Ok("a"));
        results.deliver(1, Ok("b"));
        assert_eq!(results.room(), 1);
        results.set_scarce(None);
        assert_eq!(results.room(), 5);
    }

    #[test]
    fn results_are_given_in_order_of_arrival_also_those_from_before_it_was_asked_for() {
        let mut results = drawn(4, false);
        results.deliver(2, Ok("c"));
        results.deliver(0, Err("a"));
        results.ask(Want::AsFinished, true);
        results.deliver(3, Ok("d"));
        assert_eq!(results.room(), 4, "one is outstanding, three have not been taken");
        results.end_input(None);
        assert_eq!(results.take(), Next::Value(2, "c"));
        assert_eq!(results.take(), Next::Error(0, "a"));
        assert_eq!(results.take(), Next::Value(3, "d"));
        assert_eq!(results.take(), Next::Pending);
        results.deliver(1, Ok("b"));
        assert_eq!([results.take(), results.take()], [Next::Value(1, "b"), Next::End]);
        assert_eq!(results.take_cut(), None);
    }

    #[test]
    fn in_order_a_failure_cuts_what_comes_after_it_and_a_nearer_one_cuts_more() {
        let mut results = drawn(5, false);
        results.ask(Want::InOrder, false);
        results.deliver(4, Ok("e"));
        results.deliver(3, Err("d"));
        assert_eq!(results.take_cut(), Some(Cut::After(3)));
        assert_eq!((results.scraps(), results.room()), (vec!["e"], 0));
        results.deliver(1, Err("b"));
        assert_eq!(results.take_cut(), Some(Cut::After(1)));
        results.deliver(2, Err("cancelled"));
        results.deliver(0, Ok("a"));
        assert_eq!([results.take(), results.take(), results.take()], [Next::Value(0, "a"), Next::Failed, Next::Failed]);
        assert_eq!(results.failure().copied(), Some("b"));
        assert!(results.is_complete());
    }

    #[test]
    fn wanted_all_the_first_failure_to_arrive_is_the_end() {
        let mut results = drawn(3, false);
        results.ask(Want::All, false);
        results.deliver(2, Err("c"));
        assert_eq!((results.take_cut(), results.failure().copied()), (Some(Cut::All), Some("c")));
        results.deliver(0, Err("a"));
        assert_eq!(results.failure().copied(), Some("c"));
        assert_eq!(results.scraps(), ["a"]);
        assert!(!results.is_complete(), "one has not come back");
    }

    #[test]
    fn until_somebody_asks_a_failure_stops_the_drawing_and_cancels_nothing() {
        let mut results = drawn(3, false);
        results.deliver(2, Err("c"));
        results.deliver(1, Err("b"));
        assert_eq!((results.take_cut(), results.room()), (None, 0));
        results.ask(Want::Rest, false);
        assert_eq!((results.take_cut(), results.failure().copied()), (Some(Cut::All), Some("c")));
    }

    #[test]
    fn as_finished_a_failure_comes_after_what_arrived_before_it_and_nothing_after_it() {
        let mut results = drawn(3, false);
        results.deliver(1, Ok("b"));
        results.deliver(0, Err("a"));
        results.deliver(2, Ok("c"));
        results.ask(Want::AsFinished, false);
        assert_eq!(results.take_cut(), Some(Cut::All));
        assert_eq!([results.take(), results.take()], [Next::Value(1, "b"), Next::Failed]);
        assert_eq!((results.failure().copied(), results.scraps()), (Some("a"), vec!["c"]));
    }

    #[test]
    fn an_input_that_fails_comes_last_unless_all_are_wanted() {
        for want in [Want::InOrder, Want::AsFinished] {
            let mut results = drawn(1, true);
            results.ask(want, true);
            assert!(results.end_input(Some("input")));
            results.deliver(0, Err("a"));
            assert_eq!([results.take(), results.take()], [Next::Error(0, "a"), Next::Failed]);
            assert_eq!((results.failure().copied(), results.take_cut()), (Some("input"), None));
        }
        let mut results = drawn(1, true);
        results.end_input(Some("input"));
        results.ask(Want::All, true);
        assert_eq!((results.failure().copied(), results.take_cut()), (Some("input"), Some(Cut::All)));
    }

    #[test]
    fn errors_that_are_kept_stand_in_place_of_values() {
        let mut results = drawn(3, true);
        results.ask(Want::All, true);
        results.end_input(None);
        results.deliver(2, Ok("c"));
        results.deliver(0, Ok("a"));
        results.deliver(1, Err("b"));
        assert!(results.is_complete());
        assert_eq!(results.take_all(), ["a", "b", "c"]);
    }

    #[test]
    fn cancelled_it_gives_nothing_but_that() {
        let mut results = drawn(2, true);
        results.deliver(0, Ok("a"));
        assert!(results.cancel("cancelled"));
        assert!(!results.cancel("again"));
        results.ask(Want::InOrder, true);
        assert_eq!((results.take(), results.take_cut()), (Next::Failed, Some(Cut::All)));
        results.deliver(1, Ok("b"));
        assert!(results.is_complete());
        assert_eq!(results.scraps(), ["a", "again", "b"]);
    }
}
