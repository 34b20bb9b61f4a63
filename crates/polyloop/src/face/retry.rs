//! Which errors are a reason to run a task again: what a pool, or a view of it, says of its tasks, asked outside of any
//! lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use polyloop_core::{CallId, OnDeath, Outcome, TaskId};

use super::call::Terms;
use super::error::Error;
use super::log;

/// Says whether an error is worth another run.
#[derive(Clone)]
pub(crate) struct RetryOn(Arc<dyn Fn(&Error) -> bool + Send + Sync>);

impl RetryOn {
    pub(crate) fn new(is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_reason))
    }

    /// One that panics has said no.
    fn is_reason(&self, error: &Error) -> bool {
        // Whatever it left half done is its own.
        catch_unwind(AssertUnwindSafe(|| (self.0)(error))).unwrap_or_else(|_| {
            log::undecided(error);
            false
        })
    }
}

/// What becomes of a task whose worker dies: deaths are the reason where nothing else is said.
pub(crate) fn on_death(retry_on: Option<&RetryOn>) -> OnDeath {
    if retry_on.is_some() { OnDeath::Judge } else { OnDeath::Again }
}

/// A task that has failed and may run again.
pub(crate) struct Trial {
    pub(crate) task: TaskId,
    pub(crate) call: CallId,
    pub(crate) token: u64,
    pub(crate) outcome: Outcome,
    pub(crate) judge: Arc<Terms>,
}

impl Trial {
    /// Whether it does. Runs the user's code.
    pub(crate) fn is_to_run_again(&self) -> bool {
        let Some(retry_on) = &self.judge.options.retry_on else { return false };
        retry_on.is_reason(&self.judge.error(self.outcome.clone()))
    }
}
