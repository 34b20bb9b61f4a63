//! The items that a worker runs: an event loop on virtual time.

use std::time::Duration;

use polyloop_core::{
    Cause, Exit, Large, Moment, OVERDUE_EXITCODE, Reply, ResultFrame, Stop, TaskId, Terms, split_large,
};
use polyloop_shm::LeaseIndex;

use super::calls::Calling;
use super::streams::Giving;
use super::{Op, Pause, Process};
use crate::ledger::reply_bytes;
use crate::sabotage::Sabotage;
use crate::scenario::Behaviour;
use crate::site::Site;

/// How a process ends that an item ends.
const EXIT: Exit = Exit::Code(7);
/// How a worker leaves whose item ignored its cancellation.
const GRACE_EXIT: Exit = Exit::Code(77);
/// How long an item takes, at most, to give in to its cancellation.
const CANCEL_MICROS_MAX: u64 = 200;

/// How long it takes at most until a loop that turns has heard of a cancellation, where nothing is slow.
const CANCEL_MAX: Duration = Duration::from_millis(1);

/// What a claim was for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    pub(super) task: TaskId,
    pub(super) token: usize,
    pub(super) terms: Terms,
}

/// An item that was claimed and has not ended.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) task: TaskId,
    pub(super) token: usize,
    lease: LeaseIndex,
    timeout: Option<Duration>,
    /// When it began to run.
    since: Moment,
    pub(super) state: JobState,
    pub(super) giving: Giving,
}

#[derive(Debug)]
pub(super) enum JobState {
    /// Its bytes are on their way.
    Fetching(Vec<u8>),
    /// It has its bytes; its turn comes.
    Loaded,
    /// It gives its next value, and runs out of time.
    Giving { next: Moment, expires: Moment },
    /// It ends by itself then.
    Running(Moment),
    /// It waits for answers.
    Calling(Calling),
    /// It ends then, cancelled.
    Cancelled(Moment),
    /// It runs out of time then, and gives in.
    Expires(Moment),
    /// It was cancelled and goes on; its worker leaves then.
    Stubborn(Moment),
    /// It ran out of time and goes on; its worker says so and leaves then.
    Ignores(Moment),
}

impl Job {
    /// When something happens to it.
    pub(super) fn due(&self) -> Option<Moment> {
        match self.state {
            JobState::Fetching(_) | JobState::Loaded => None,
            JobState::Giving { next, expires } => Some(next.min(expires)),
            JobState::Calling(ref calling) => Some(calling.due()),
            JobState::Running(at)
            | JobState::Cancelled(at)
            | JobState::Expires(at)
            | JobState::Stubborn(at)
            | JobState::Ignores(at) => Some(at),
        }
    }
}

impl Job {
    /// When it runs out of time.
    fn expires(&self, site: &Site) -> Moment {
        match self.timeout {
            Some(_) if site.sabotages(Sabotage::DeadlineNotKept) => Moment::MAX,
            Some(timeout) if site.sabotages(Sabotage::DeadlineTooEarly) => self.since + timeout / 2,
            Some(timeout) => self.since + timeout,
            None => Moment::MAX,
        }
    }
}

impl Process {
    /// Begins an item, or fetches what it needs.
    pub(super) fn start(&mut self, claimed: Claimed, lease: LeaseIndex) {
        let Claimed { task, token, terms } = claimed;
        let state = if terms.large { JobState::Fetching(Vec::new()) } else { JobState::Loaded };
        self.jobs.push(Job {
            task,
            token,
            lease,
            timeout: terms.timeout,
            since: Moment::MAX,
            state,
            giving: Giving::default(),
        });
        if terms.large {
            self.send(&ResultFrame::Fetch(task), None);
            self.next([Op::Publish, Op::Tell]);
        } else {
            self.next([Op::Run(task)]);
        }
    }

    /// Takes in bytes of an item that was fetched, and runs it after the last.
    pub(super) fn fetched(&mut self, site: &mut Site, task: TaskId, bytes: &[u8], last: bool) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.task == task) else { return };
        let JobState::Fetching(whole) = &mut job.state else { return };
        whole.extend_from_slice(bytes);
        if last {
            let (token, whole) = (job.token, std::mem::take(whole));
            job.state = JobState::Loaded;
            match split_large(&whole) {
                Some(Large { function, arguments, .. }) => self.check_bytes(site, token, function, arguments),
                None => site.ledger.violate(format!("task {token} was fetched as {} bytes of nonsense", whole.len())),
            }
            self.next([Op::Publish, Op::Tell, Op::Run(task)]);
        }
    }

    pub(super) fn check_bytes(&self, site: &mut Site, token: usize, function: &[u8], arguments: &[u8]) {
        let plan = &site.scenario.tasks[token];
        let intact = plan.function == function && plan.arguments == arguments;
        site.ledger.demand(intact, || format!("task {token} arrived with other bytes"));
    }

    pub(super) fn run(&mut self, site: &mut Site, task: TaskId) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.task == task) else { return };
        site.ledger.runs(job.token, self.index);
        job.since = site.now;
        if site.scenario.tasks[job.token].stream.is_some() {
            job.state = JobState::Giving { next: site.now, expires: job.expires(site) };
            return self.next([Op::EndDue]);
        }
        self.proceed(site, task);
    }

    /// Has an item do what it is there for.
    pub(super) fn proceed(&mut self, site: &mut Site, task: TaskId) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.task == task) else { return };
        let behaviour = site.scenario.tasks[job.token].behaviour;
        let (ends, pause) = match behaviour {
            Behaviour::Return | Behaviour::Raise | Behaviour::Reject | Behaviour::ReturnLarge(_) => (site.now, None),
            Behaviour::Sleep(time) => (site.now + time, None),
            Behaviour::Call(_) | Behaviour::Forever | Behaviour::Stubborn => (Moment::MAX, None),
            Behaviour::Block(time) => (site.now + time, Some(Pause::Busy(site.now + time))),
            Behaviour::Hang => (Moment::MAX, Some(Pause::Busy(Moment::MAX))),
            Behaviour::Exit => return self.exit(site, EXIT),
        };
        let expires = job.expires(site);
        if let Behaviour::Call(count) = behaviour {
            return self.call(site, task, count, expires);
        }
        let stubborn = behaviour == Behaviour::Stubborn;
        job.state = match expires < ends {
            true if stubborn => JobState::Ignores(expires + site.scenario.pool.grace),
            true => JobState::Expires(expires),
            false => JobState::Running(ends),
        };
        // What blocks is interrupted in time.
        self.pause = pause.map(|pause| Pause::Busy(pause.until().min(expires)));
        self.next([Op::EndDue]);
    }

    /// Ends one item that is due, then the next.
    pub(super) fn end_due(&mut self, site: &mut Site) {
        let due = |job: &Job| job.due().is_some_and(|at| at <= site.now);
        let Some(at) = self.jobs.iter().position(due) else { return };
        match self.jobs[at].state {
            JobState::Stubborn(_) => return self.exit(site, GRACE_EXIT),
            JobState::Giving { expires, .. } if expires > site.now => return self.give(site, at),
            JobState::Giving { expires, .. } => self.jobs[at].state = JobState::Expires(expires),
            _ => (),
        }
        if !self.withdraws(site, at) {
            return;
        }
        let leaves = matches!(self.jobs[at].state, JobState::Ignores(_));
        if leaves {
            if self.core.retire() {
                self.retires(site, Cause::Overdue);
            }
            self.next([Op::Publish, Op::Publish, Op::Tell, Op::Quit(Exit::Code(OVERDUE_EXITCODE))]);
        } else {
            self.next([Op::Publish, Op::EndDue]);
        }
        self.end(site, at);
    }

    pub(super) fn cancel(&mut self, site: &mut Site, task: TaskId) {
        if let Some(at) = self.jobs.iter().position(|job| job.task == task) {
            self.cancel_at(site, at);
        }
    }

    pub(super) fn stop(&mut self, site: &mut Site, stop: Stop) {
        self.core.stop(stop);
        if stop == Stop::Now {
            (0..self.jobs.len()).rev().for_each(|at| self.cancel_at(site, at));
        }
    }

    fn cancel_at(&mut self, site: &mut Site, at: usize) {
        let job = &mut self.jobs[at];
        match job.state {
            JobState::Fetching(_) | JobState::Loaded => {
                job.state = JobState::Cancelled(site.now);
                self.end(site, at);
            }
            JobState::Running(ends) if ends > site.now => {
                let stubborn = site.scenario.tasks[job.token].behaviour == Behaviour::Stubborn;
                job.state = if stubborn {
                    JobState::Stubborn(site.now + site.scenario.pool.grace)
                } else {
                    JobState::Cancelled(site.now + site.rng.micros(0..=CANCEL_MICROS_MAX))
                };
            }
            JobState::Giving { .. } | JobState::Calling(_) => {
                job.state = JobState::Cancelled(site.now + site.rng.micros(0..=CANCEL_MICROS_MAX));
            }
            JobState::Expires(ends) if ends > site.now => {
                job.state = JobState::Cancelled(site.now + site.rng.micros(0..=CANCEL_MICROS_MAX));
            }
            JobState::Running(_)
            | JobState::Cancelled(_)
            | JobState::Expires(_)
            | JobState::Stubborn(_)
            | JobState::Ignores(_) => (),
        }
    }

    /// It holds more memory than it may.
    fn outgrow(&mut self, site: &mut Site) {
        let goes_on = site.sabotages(Sabotage::RetiredTakesMore);
        if if goes_on { !site.ledger.is_retiring(self.index) } else { self.core.retire() } {
            self.retires(site, Cause::Memory);
            site.ledger.count("workers too large");
        }
    }

    /// A task that goes on although its time, and the grace after it, are over, or although it heeds cancellation and
    /// was cancelled.
    pub(crate) fn overstays(&self, site: &Site) -> Option<usize> {
        let grace = site.scenario.pool.grace;
        let overstays = |job: &&Job| {
            let overdue = job.timeout.is_some_and(|timeout| job.since.saturating_add(timeout + grace) < site.now);
            let goes_on = matches!(job.state, JobState::Running(_) | JobState::Giving { .. });
            overdue || goes_on && site.ledger.was_cancelled_before(job.token, site.now.saturating_sub(CANCEL_MAX))
        };
        self.jobs.iter().find(overstays).map(|job| job.token)
    }

    /// Replies for an item and forgets it.
    fn end(&mut self, site: &mut Site, at: usize) {
        let Job { task, token, lease, state, timeout, since, .. } = self.jobs.remove(at);
        site.ledger.ended(token);
        if matches!(state, JobState::Expires(_) | JobState::Ignores(_)) {
            let ran = site.now.saturating_sub(since);
            let in_time = timeout.is_some_and(|timeout| ran >= timeout);
            site.ledger.demand(in_time, || format!("task {token} ran out of time after {ran:?} of {timeout:?}"));
        }
        let behaviour = site.scenario.tasks[token].behaviour;
        let bytes = reply_bytes(token, behaviour);
        let reply = match behaviour {
            _ if matches!(state, JobState::Cancelled(_)) => Reply::Cancelled,
            _ if matches!(state, JobState::Expires(_) | JobState::Ignores(_)) => Reply::TimedOut,
            Behaviour::Raise => Reply::Raised(&bytes),
            Behaviour::Reject => Reply::Rejected(&bytes),
            _ => Reply::Value(&bytes),
        };
        self.reply(site, task, token, lease, reply);
        self.core.finished(task);
        if site.rng.once_in(site.scenario.habits.grows) {
            self.outgrow(site);
        }
    }
}
