//! Which errors are a reason to run a task again: what a pool, or a view of it, says of its tasks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use polyloop_core::OnDeath;

use super::error::Error;

/// Says whether an error is worth another run.
#[derive(Clone)]
pub(crate) struct RetryOn(Arc<dyn Fn(&Error) -> bool + Send + Sync>);

impl RetryOn {
    pub(crate) fn new(is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_reason))
    }

    /// What it says; `None` of one that panics.
    pub(crate) fn is_reason(&self, error: &Error) -> Option<bool> {
        // Whatever it left half done is its own.
        catch_unwind(AssertUnwindSafe(|| (self.0)(error))).ok()
    }
}

/// What becomes of a task whose worker dies: deaths are the reason where nothing else is said.
pub(crate) fn on_death(retry_on: Option<&RetryOn>) -> OnDeath {
    if retry_on.is_some() { OnDeath::Judge } else { OnDeath::Again }
}
