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
    /// A worker that runs something claims items that are to run alone.
    SuspectBesideOthers,
    /// A worker claims further items beside one that is to run alone.
    OthersBesideSuspect,
    /// A worker that left because of a task that ran out of time is taken for one that died.
    OverdueCountsAsAlone,
    /// The manager does not say that a task is poison.
    PoisonUntold,
    /// The client has what failed run again without counting it.
    RetriesUncounted,
    /// Workers do not look at the time that an item may take.
    DeadlineNotKept,
    /// Workers end items before their time.
    DeadlineTooEarly,
    /// The manager does not tell a worker to cancel.
    CancelUntold,
    /// The manager takes an item that a worker has for one that it took back.
    RetractedAnyway,
    /// A worker that says it retires goes on claiming.
    RetiredTakesMore,
    /// The manager does not tell a worker to leave that has its successor.
    StopUntold,
    /// The manager does not tell a worker that values of its stream were taken.
    CreditUntold,
    /// Workers give values of a stream without credit.
    CreditIgnored,
    /// A value of a stream is lost where the ring is full.
    ValueLost,
    /// The manager does not tell a worker what came of a call that one of its tasks made.
    AnswerUntold,
    /// A task that waits for calls of its own keeps its place.
    CallerKeepsPlace,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 26] = [
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
        Self::SuspectBesideOthers,
        Self::OthersBesideSuspect,
        Self::OverdueCountsAsAlone,
        Self::PoisonUntold,
        Self::RetriesUncounted,
        Self::DeadlineNotKept,
        Self::DeadlineTooEarly,
        Self::CancelUntold,
        Self::RetractedAnyway,
        Self::RetiredTakesMore,
        Self::StopUntold,
        Self::CreditUntold,
        Self::CreditIgnored,
        Self::ValueLost,
        Self::AnswerUntold,
        Self::CallerKeepsPlace,
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
