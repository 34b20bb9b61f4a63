//! Calls that wait for what comes of them, by a token that goes with each.

use std::sync::Arc;

use polyloop_core::{Outcome, TaskId};
use tokio::sync::oneshot::Sender;

use super::call::Terms;
use super::stream::StreamCell;

/// Who waits, and for what.
pub(crate) enum Target {
    /// For how a task ends.
    Outcome(Sender<Outcome>),
    /// Also for what it gives before.
    Stream(Arc<StreamCell>),
}

/// A call that has not ended.
pub(crate) struct Pending {
    pub(crate) target: Target,
    /// By which its task is to be judged, where that is so.
    pub(crate) judge: Option<Arc<Terms>>,
    /// Its task, which has another number each time it runs again.
    pub(crate) task: TaskId,
}

#[derive(Default)]
struct Seat {
    /// How many have had it.
    generation: u32,
    pending: Option<Pending>,
}

/// Who waits, by token. No two calls have the same one.
#[derive(Default)]
pub(crate) struct PendingTable {
    seats: Vec<Seat>,
    free: Vec<u32>,
}

impl PendingTable {
    /// The token of the next call that is put in.
    pub(crate) fn next_token(&mut self) -> u64 {
        let index = self.free.last().copied().unwrap_or(self.seats.len() as u32);
        let generation = self.seats.get(index as usize).map_or(0, |seat| seat.generation);
        u64::from(generation) << 32 | u64::from(index)
    }

    /// Puts one in, under the token that was said before.
    pub(crate) fn insert(&mut self, pending: Pending) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::default());
            self.seats.len() as u32 - 1
        });
        self.seats[index as usize].pending = Some(pending);
    }

    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut Pending> {
        self.seat(token)?.pending.as_mut()
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<Pending> {
        let seat = self.seat(token)?;
        let pending = seat.pending.take()?;
        seat.generation = seat.generation.wrapping_add(1);
        self.free.push(token as u32);
        Some(pending)
    }

    pub(crate) fn into_all(self) -> impl Iterator<Item = Pending> {
        self.seats.into_iter().filter_map(|seat| seat.pending)
    }

    fn seat(&mut self, token: u64) -> Option<&mut Seat> {
        let generation = (token >> 32) as u32;
        self.seats.get_mut(token as u32 as usize).filter(|seat| seat.generation == generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        let task = TaskId::from_bits(1);
        Pending { target: Target::Outcome(tokio::sync::oneshot::channel().0), judge: None, task }
    }

    #[test]
    fn the_token_of_a_call_that_has_ended_is_nobody_elses() {
        let mut table = PendingTable::default();
        let first = table.next_token();
        table.insert(pending());
        let second = table.next_token();
        table.insert(pending());
        assert!(table.remove(first).is_some() && table.remove(first).is_none());
        let third = table.next_token();
        table.insert(pending());
        assert!(table.get_mut(first).is_none() && table.get_mut(second).is_some() && table.get_mut(third).is_some());
        assert_eq!((table.seats.len(), table.into_all().count()), (2, 2));
    }
}
