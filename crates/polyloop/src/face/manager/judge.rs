//! Tasks that have failed and may run again: who judges them, and what becomes of them.

use std::io;
use std::sync::Arc;

use polyloop_core::{CallId, Outcome, TaskId};

use super::{Deliveries, Inner, Manager};
use crate::driver::Driver;
use crate::face::call::Terms;
use crate::face::log::Listener;

/// A task that has failed and may run again.
pub(super) struct Trial {
    pub(super) task: TaskId,
    pub(super) call: CallId,
    pub(super) token: u64,
    pub(super) outcome: Outcome,
    pub(super) judge: Arc<Terms>,
}

impl Trial {
    /// Whether it does. Runs the user's code.
    pub(super) fn is_to_run_again(&self, listener: &Listener) -> bool {
        let Some(retry_on) = &self.judge.options.retry_on else { return false };
        let error = self.judge.error(self.outcome.clone());
        retry_on.is_reason(&error).unwrap_or_else(|| {
            listener.undecided(&error);
            false
        })
    }
}

impl Manager {
    /// Has tasks run again that have failed, or lets them end, as their judges say. Runs the user's code.
    pub(super) fn decide(&self, trials: &[Trial]) -> io::Result<()> {
        if trials.is_empty() {
            return Ok(());
        }
        // Without the lock: it may ask its pool for something.
        let decided: Vec<_> = trials.iter().map(|trial| trial.is_to_run_again(&self.listener)).collect();
        let mut deliveries = Deliveries::default();
        let mut inner = self.lock();
        for (again, Trial { task, call, token, outcome, .. }) in decided.into_iter().zip(trials) {
            if again {
                inner.again(*task, *call, *token);
            } else {
                inner.settle(*task, *call, *token, outcome.clone(), &mut deliveries);
            }
        }
        inner.drive(Driver::flush)
    }
}

impl Inner {
    /// By what a task that has failed is judged. One whose worker does not know its function is judged by nobody.
    pub(super) fn judge_of(&mut self, call: CallId, token: u64, outcome: &Outcome) -> Option<Arc<Terms>> {
        match outcome {
            Outcome::Rejected(_) => None,
            _ if call == CallId::SINGLES => self.pending.get_mut(token)?.judge.clone(),
            _ => self.maps.get(&call)?.judge.clone(),
        }
    }

    /// Has a judged task run again, unless it was cancelled meanwhile.
    fn again(&mut self, task: TaskId, call: CallId, token: u64) {
        if let Some(task) = self.driver.again(task, None)
            && call == CallId::SINGLES
            && let Some(pending) = self.pending.get_mut(token)
        {
            pending.task = task;
        }
    }

    /// Lets a judged task end, unless it was cancelled meanwhile.
    pub(super) fn settle(
        &mut self,
        task: TaskId,
        call: CallId,
        token: u64,
        outcome: Outcome,
        deliveries: &mut Deliveries,
    ) {
        if self.driver.settled(task) {
            self.deliver(call, token, outcome, deliveries);
        }
    }
}
