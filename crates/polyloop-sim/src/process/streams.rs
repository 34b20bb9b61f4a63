//! The items of a worker that are streams: their values, as far as there is credit for them.

use polyloop_core::{Flow, Moment, ResultFrame, TaskId};

use super::items::JobState;
use super::{Op, Process};
use crate::sabotage::Sabotage;
use crate::site::Site;
use crate::streams::value_bytes;

/// A stream under way.
#[derive(Debug, Default)]
pub(super) struct Giving {
    flow: Flow,
    given: usize,
}

impl Process {
    /// Gives the next value of a stream, or goes on to its end.
    pub(super) fn give(&mut self, site: &mut Site, at: usize) {
        let job = &mut self.jobs[at];
        let (task, token) = (job.task, job.token);
        let Some(plan) = site.scenario.tasks[token].stream else { return };
        if job.giving.given == plan.values {
            return self.proceed(site, task);
        }
        let bytes = value_bytes(token, job.giving.given, plan.bytes);
        job.giving.given += 1;
        job.giving.flow.give(bytes.len());
        let goes_on = job.giving.flow.admits() || site.sabotages(Sabotage::CreditIgnored);
        if let JobState::Giving { next, .. } = &mut job.state {
            *next = if goes_on { site.now + plan.pause } else { Moment::MAX };
        }
        if !goes_on {
            site.ledger.count("streams without credit");
        }
        if self.unpublished.is_empty() || !site.sabotages(Sabotage::ValueLost) {
            self.send_value(task, &bytes);
        }
        self.next([Op::Publish, Op::EndDue]);
    }

    /// More may be given of a stream, unless it has ended meanwhile.
    pub(super) fn credited(&mut self, site: &Site, task: TaskId, values: u32) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.task == task) else { return };
        job.giving.flow.credit(values);
        if let JobState::Giving { next, .. } = &mut job.state
            && job.giving.flow.admits()
        {
            *next = (*next).min(site.now);
        }
    }

    fn send_value(&mut self, task: TaskId, bytes: &[u8]) {
        let piece = self.results.max_payload() - size_of::<u64>();
        let (pieces, rest) = bytes.split_at((bytes.len() - 1) / piece * piece);
        for bytes in pieces.chunks(piece) {
            self.send(&ResultFrame::Piece { task, bytes }, None);
        }
        self.send(&ResultFrame::Yield { task, bytes: rest }, None);
    }
}
