//! Ways to break the protocol on purpose, to prove that the checkers notice.

use std::str::FromStr;

/// A step of the protocol that is left out or done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The undertaker does not look at the boards.
    BoardUnscanned,
    /// The undertaker does not read the dead worker's ring.
    LastWordsUnread,
    /// The undertaker takes items that were only claimed for started.
    ClaimedCountsAsStarted,
    /// The manager does not ring another sleeper when the one it rang does not come.
    NoSecondRing,
    /// Workers do not look at the queues again between announcing sleep and sleeping.
    WorkerSleepsUnchecked,
    /// The manager does not look at the rings again between announcing sleep and sleeping.
    ManagerSleepsUnchecked,
    /// Workers do not tell a sleeping manager that a slot is empty.
    RefillUntold,
    /// The manager does not tell a worker that its full ring has room.
    RoomUntold,
    /// Workers start an item before it is marked as taken.
    StartedBeforeTaken,
    /// A worker takes one item more than its life allows.
    OneTaskTooMany,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::BoardUnscanned,
        Self::LastWordsUnread,
        Self::ClaimedCountsAsStarted,
        Self::NoSecondRing,
        Self::WorkerSleepsUnchecked,
        Self::ManagerSleepsUnchecked,
        Self::RefillUntold,
        Self::RoomUntold,
        Self::StartedBeforeTaken,
        Self::OneTaskTooMany,
    ];
}

impl FromStr for Sabotage {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = Self::ALL.map(|sabotage| format!("{sabotage:?}"));
        let at = all.iter().position(|known| known == name);
        at.map(|at| Self::ALL[at]).ok_or_else(|| format!("no sabotage is called {name}; known: {}", all.join(" ")))
    }
}
