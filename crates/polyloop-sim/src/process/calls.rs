//! Calls that a worker's items make of the pool.

use std::collections::BTreeSet;

use polyloop_core::{Ask, Moment, NestedId, ResultFrame, TaskId, split_answer};

use super::items::JobState;
use super::{Op, Process};
use crate::sabotage::Sabotage;
use crate::site::Site;

/// How long an item waits for the answer to a call that would never come, at most.
const PATIENCE_MICROS_MAX: u64 = 20_000;

/// An item's unanswered calls.
#[derive(Debug)]
pub(super) struct Calling {
    unanswered: BTreeSet<NestedId>,
    /// Calls that would never end: they are withdrawn then.
    withdraws: Vec<(Moment, NestedId)>,
    expires: Moment,
}

impl Calling {
    /// When something happens that is no answer.
    pub(super) fn due(&self) -> Moment {
        self.withdraws.iter().map(|(at, _)| *at).fold(self.expires, Moment::min)
    }
}

impl Process {
    /// An item makes so many calls, and waits.
    pub(super) fn call(&mut self, site: &mut Site, task: TaskId, count: u64, expires: Moment) {
        let Some(at) = self.jobs.iter().position(|job| job.task == task) else { return };
        let mut calling = Calling { unanswered: BTreeSet::new(), withdraws: Vec::new(), expires };
        for _ in 0..count {
            let token = site.new_call(self.jobs[at].token, self.index);
            let plan = &site.scenario.tasks[token];
            let ask = Ask {
                is_loose: false,
                retries: plan.retries,
                retry_deaths: plan.retry_deaths,
                attempt: 1,
                timeout: plan.timeout,
                function: &plan.function,
                arguments: &plan.arguments,
            };
            let (bytes, endless) = (ask.write(), plan.behaviour.is_endless());
            let callers: &[TaskId] = if site.sabotages(Sabotage::CallerKeepsPlace) { &[] } else { &[task] };
            let Ok(number) = self.core.ask(callers, bytes.len() as u64, u64::MAX) else {
                return site.ledger.violate("a call too many, of a few".into());
            };
            if endless {
                calling.withdraws.push((site.now + site.rng.micros(0..=PATIENCE_MICROS_MAX), number));
            }
            calling.unanswered.insert(number);
            self.asked.insert(number, (token, Vec::new()));
            self.submit(task, number, &bytes);
        }
        self.jobs[at].state = JobState::Calling(calling);
        self.next([Op::Publish, Op::Tell, Op::EndDue]);
    }

    /// Queues a whole call, in pieces where it is large.
    fn submit(&mut self, task: TaskId, number: NestedId, bytes: &[u8]) {
        let piece = self.results.max_payload() - 2 * size_of::<u64>();
        let (pieces, rest) = bytes.split_at(bytes.len().saturating_sub(1) / piece * piece);
        for bytes in pieces.chunks(piece) {
            self.send(&ResultFrame::Piece { task, bytes }, None);
        }
        self.send(&ResultFrame::Submit { task, number, bytes: rest }, None);
    }

    /// Withdraws calls of the item that is due, where that is why. Says whether it is due for another reason.
    pub(super) fn withdraws(&mut self, site: &mut Site, at: usize) -> bool {
        let now = site.now;
        let JobState::Calling(calling) = &mut self.jobs[at].state else { return true };
        let due: Vec<_> = calling.withdraws.extract_if(.., |(at, _)| *at <= now).map(|(_, number)| number).collect();
        let expires = calling.expires <= now;
        for number in due {
            if let Some((token, _)) = self.asked.get(&number) {
                site.ledger.cancelled(*token, now);
                self.send(&ResultFrame::Withdraw(number), None);
            }
        }
        if expires {
            self.jobs[at].state = JobState::Expires(now);
        } else {
            self.next([Op::Publish, Op::Tell, Op::EndDue]);
        }
        expires
    }

    /// Takes in bytes of an answer. The item whose last one it is goes on.
    pub(super) fn answer_bytes(&mut self, site: &mut Site, task: TaskId, bytes: &[u8], last: bool) {
        let number = NestedId::from_task(task).unwrap_or(NestedId(0));
        let Some((_, whole)) = self.asked.get_mut(&number) else {
            return site.ledger.violate(format!("{} is answered what it has not asked", self.worker));
        };
        whole.extend_from_slice(bytes);
        if !last {
            return;
        }
        let (_, whole) = self.asked.remove(&number).unwrap_or_default();
        site.ledger.demand(split_answer(&whole).is_some(), || "an answer that makes no sense".into());
        site.ledger.count("calls answered");
        self.core.answered(number);
        for job in &mut self.jobs {
            if let JobState::Calling(calling) = &mut job.state
                && calling.unanswered.remove(&number)
                && calling.unanswered.is_empty()
            {
                job.state = JobState::Running(site.now);
            }
        }
    }
}
