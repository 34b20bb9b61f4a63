//! Calls that wait for their outcome, by a token that goes with each.

use polyloop_core::Outcome;
use tokio::sync::oneshot::Sender;

/// Who waits, by token. A token is used again after its outcome.
#[derive(Default)]
pub(crate) struct PendingTable {
    entries: Vec<Option<Sender<Outcome>>>,
    free: Vec<usize>,
}

impl PendingTable {
    pub(crate) fn insert(&mut self, sender: Sender<Outcome>) -> usize {
        match self.free.pop() {
            Some(token) => {
                self.entries[token] = Some(sender);
                token
            }
            None => {
                self.entries.push(Some(sender));
                self.entries.len() - 1
            }
        }
    }

    pub(crate) fn remove(&mut self, token: usize) -> Option<Sender<Outcome>> {
        let sender = self.entries.get_mut(token)?.take()?;
        self.free.push(token);
        Some(sender)
    }

    /// Whether someone still waits under this token.
    pub(crate) fn holds(&self, token: usize) -> bool {
        self.entries.get(token).is_some_and(Option::is_some)
    }
}
