//! The client: submits, cancels, closes and terminates, on the manager's loop, and takes note of every outcome.

use std::collections::BTreeMap;

use polyloop_core::{CallId, OnDeath, Outcome, Payload, Pool, QueueIndex, Submission, TaskId};

use crate::sabotage::Sabotage;
use crate::scenario::{Action, CallPlan, Plan};
use crate::site::{Event, Site};
use crate::streams::{Look, Readings};

#[derive(Debug, Default)]
struct OpenCall {
    id: Option<CallId>,
    ended: bool,
    waiting: Vec<usize>,
    unfinished: usize,
}

#[derive(Debug)]
pub(crate) struct Client {
    calls: Vec<OpenCall>,
    ids: BTreeMap<usize, TaskId>,
    readings: Readings,
}

impl Client {
    pub(crate) fn new(site: &Site) -> Self {
        let plans = &site.scenario.tasks;
        let of = |call| {
            let tokens = (0..plans.len()).rev().filter(|token| plans[*token].call == Some(call));
            OpenCall { waiting: tokens.collect(), ..OpenCall::default() }
        };
        Self {
            calls: (0..site.scenario.calls.len()).map(of).collect(),
            ids: BTreeMap::new(),
            readings: Readings::default(),
        }
    }

    pub(crate) fn act(&mut self, pool: &mut Pool, site: &mut Site, action: Action) {
        site.trace("client", || format!("{action:?}"));
        match action {
            Action::Submit(token) => {
                self.submit(pool, site, token, CallId::SINGLES);
            }
            // It may have been cancelled before it was opened.
            Action::Open(call) if self.calls[call].ended => (),
            Action::Open(call) => {
                self.calls[call].id = pool.open_call(site.scenario.calls[call].weight, None).ok();
                self.refill(pool, site, call);
            }
            Action::Cancel(token) => self.cancel(pool, site, token),
            Action::CancelCall(call) => self.cancel_call(pool, site, call),
            Action::Take(token) => self.take(pool, site, token),
            Action::Close => pool.close(site.now),
            Action::Terminate => {
                site.ledger.terminated();
                pool.terminate(site.now);
            }
            Action::Resize(processes) => drop(pool.resize(site.now, processes)),
            Action::Restart => drop(pool.restart(site.now)),
        }
    }

    /// A task failed: has it run again, or lets it end.
    pub(crate) fn judge(&mut self, pool: &mut Pool, site: &mut Site, id: TaskId, token: usize, outcome: &Outcome) {
        if matches!(outcome, Outcome::Lost(_)) {
            // As it would be without being asked: the ledger holds it to the same.
            if let Some(id) = pool.again(id, None) {
                self.ids.insert(token, id);
                site.ledger.is_known_by(token, id);
            }
            return;
        }
        let rejected = matches!(outcome, Outcome::Rejected(_));
        let plan = &site.scenario.tasks[token];
        let free = rejected || site.sabotages(Sabotage::RetriesUncounted);
        let function = free.then(|| plan.function[..].into());
        if site.rng.once_in(2) && !(rejected && site.ledger.has_run_again(token)) {
            if let Some(id) = pool.again(id, function) {
                self.ids.insert(token, id);
                site.ledger.runs_again(token, id, !rejected);
            }
        } else if pool.settled(site.now, id) {
            self.delivered(pool, site, token, outcome);
        }
    }

    pub(crate) fn delivered(&mut self, pool: &mut Pool, site: &mut Site, token: usize, outcome: &Outcome) {
        site.trace("client", || format!("task {token} ended: {outcome:?}"));
        site.ledger.delivered(token, outcome);
        self.readings.ended(site, token, outcome);
        let Some(call) = site.scenario.tasks[token].call else { return };
        self.calls[call].unfinished -= 1;
        let failed = matches!(outcome, Outcome::Raised(_) | Outcome::Lost(_));
        if failed && site.scenario.calls[call].gives_up {
            self.cancel_call(pool, site, call);
        } else {
            self.refill(pool, site, call);
        }
    }

    /// A value of a stream has come.
    pub(crate) fn value(&mut self, site: &mut Site, token: usize, value: &[u8]) {
        self.readings.arrived(site, token, value);
    }

    fn take(&mut self, pool: &mut Pool, site: &mut Site, token: usize) {
        let look = self.readings.look(site, token);
        let (Look::Took(values) | Look::Left(values)) = look;
        for id in self.ids.get(&token).into_iter().cycle().take(values) {
            pool.taken(*id);
        }
        if matches!(look, Look::Left(_)) {
            self.cancel(pool, site, token);
        }
    }

    /// Submits a call's tasks up to its window, and ends it after the last.
    fn refill(&mut self, pool: &mut Pool, site: &mut Site, call: usize) {
        let Some(id) = self.calls[call].id else { return };
        let CallPlan { window, .. } = site.scenario.calls[call];
        while self.calls[call].unfinished < window {
            let Some(token) = self.calls[call].waiting.pop() else { break };
            if self.submit(pool, site, token, id) {
                self.calls[call].unfinished += 1;
            } else {
                self.calls[call].waiting.clear();
            }
        }
        if self.calls[call].waiting.is_empty() && !self.calls[call].ended {
            self.calls[call].ended = true;
            pool.end_call(site.now, id);
        }
    }

    fn submit(&mut self, pool: &mut Pool, site: &mut Site, token: usize, call: CallId) -> bool {
        let plan = &site.scenario.tasks[token];
        let submission = Submission {
            call,
            queue: QueueIndex(plan.queue),
            function: plan.function[..].into(),
            arguments: Payload::from_slice(&plan.arguments),
            retries: plan.retries,
            on_death: on_death(token, plan),
            is_stream: plan.stream.is_some(),
            judged: true,
            attempt: 1,
            timeout: plan.timeout,
            token: token as u64,
        };
        let endless = plan.behaviour.is_endless();
        let Ok(id) = pool.submit(submission) else { return false };
        self.ids.insert(token, id);
        site.ledger.accepted(token, id);
        if endless {
            let at = site.now + site.rng.micros(0..=20_000);
            site.schedule(at, Event::Action(Action::Cancel(token)));
        }
        true
    }

    fn cancel(&mut self, pool: &mut Pool, site: &mut Site, token: usize) {
        if let Some(id) = self.ids.get(&token) {
            site.ledger.cancelled(token, site.now);
            pool.cancel(site.now, *id);
        }
    }

    fn cancel_call(&mut self, pool: &mut Pool, site: &mut Site, call: usize) {
        self.calls[call].waiting.clear();
        self.calls[call].ended = true;
        let Some(id) = self.calls[call].id else { return };
        for (token, plan) in site.scenario.tasks.iter().enumerate() {
            if plan.call == Some(call) && site.ledger.is_accepted(token) {
                site.ledger.cancelled(token, site.now);
            }
        }
        pool.cancel_call(site.now, id);
    }
}

/// Whether a task whose worker dies runs again: half of those that do are asked for.
fn on_death(token: usize, plan: &Plan) -> OnDeath {
    if plan.retry_deaths && token % 2 == 1 { OnDeath::Judge } else { OnDeath::again_if(plan.retry_deaths) }
}
