//! The ledger: what really happened to each task and each process, and what must never have. Actors write down what
//! they do; the first entry that breaks a promise is the run's violation.

use std::collections::{BTreeMap, BTreeSet};

use polyloop_core::{Exit, Loss, Moment, OVERDUE_EXITCODE, Outcome, Report, TaskId, WorkerId};

use crate::scenario::{Behaviour, Plan, Scenario};

/// Workers that a task may kill while alone.
const POISON_DEATHS: u32 = 3;

#[derive(Clone, Debug, Default)]
struct Entry {
    accepted: bool,
    cancelled: bool,
    cancelled_at: Moment,
    /// Taken off the board before anybody had it.
    retracted: bool,
    /// Start marks.
    takes: u32,
    /// Its outcome is in a result ring.
    published: bool,
    running_in: Option<usize>,
    delivered: bool,
    retries: u32,
    retry_deaths: bool,
    has_timeout: bool,
    /// The process that has taken it and not published its outcome.
    taken_by: Option<usize>,
    /// Deaths of workers that ran nothing else, and of those that did.
    deaths_alone: u32,
    deaths_in_company: u32,
    /// Runs it was given for having raised, and for having been rejected.
    runs_again: u32,
    runs_free: u32,
    /// A value of it has come: it is not run again.
    has_given: bool,
    queue: usize,
    /// Of a call: the task that made it, and the process in which it did.
    caller: Option<usize>,
    asker: Option<usize>,
    /// Its asker is gone, and nobody is told what comes of it.
    orphaned: bool,
    /// It calls the pool.
    calls: bool,
}

impl Entry {
    /// Whether each death of its worker counts, and it need not be alone.
    fn is_involved(&self) -> bool {
        self.calls || self.caller.is_some()
    }

    /// A worker died while running it.
    fn is_suspect(&self) -> bool {
        self.deaths_alone + self.deaths_in_company > 0 && !self.is_involved()
    }

    fn runs_ended(&self) -> u32 {
        self.deaths_alone + self.deaths_in_company + self.runs_again + self.runs_free
    }
}

/// One worker process.
#[derive(Clone, Debug)]
struct Life {
    worker: WorkerId,
    takes: u64,
    alive: bool,
    /// It has said that it takes nothing more.
    retiring: bool,
    /// It left because it was done or told to.
    left: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    behaviours: Vec<Behaviour>,
    max_tasks: u64,
    tokens: BTreeMap<u64, usize>,
    lives: Vec<Life>,
    /// Start marks by queue.
    pub(crate) starts: Vec<u64>,
    /// Workers reported dead, workers that must have been, and those that tasks were lost with.
    reported: BTreeSet<WorkerId>,
    expected: BTreeSet<WorkerId>,
    bereaving: BTreeSet<WorkerId>,
    terminated: bool,
    pub(crate) closed: bool,
    pub(crate) violation: Option<String>,
    /// How often what happened, to see that a sweep reaches all of it.
    pub(crate) tally: BTreeMap<&'static str, u64>,
}

impl Ledger {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            entries: scenario.tasks.iter().map(entry_of).collect(),
            behaviours: scenario.tasks.iter().map(|plan| plan.behaviour).collect(),
            max_tasks: scenario.worker.max_tasks,
            tokens: BTreeMap::new(),
            lives: Vec::new(),
            starts: vec![0; scenario.pool.queues.into()],
            reported: BTreeSet::new(),
            expected: BTreeSet::new(),
            bereaving: BTreeSet::new(),
            terminated: false,
            closed: false,
            violation: None,
            tally: BTreeMap::new(),
        }
    }

    /// A task calls for another.
    pub(crate) fn calls(&mut self, plan: &Plan, caller: usize, asker: usize) {
        self.entries.push(Entry { caller: Some(caller), asker: Some(asker), ..entry_of(plan) });
        self.behaviours.push(plan.behaviour);
        self.count("calls made by tasks");
    }

    pub(crate) fn call_accepted(&mut self, token: usize, id: TaskId, asker: usize) {
        self.accepted(token, id);
        self.entries[token].orphaned = !self.lives[asker].alive;
    }

    /// Whether a call may have been cancelled because of a task that it was made for.
    fn is_forsaken(&self, token: usize) -> bool {
        let mut callers = std::iter::successors(self.entries[token].caller, |caller| self.entries[*caller].caller);
        let forsakes = |entry: &Entry| entry.cancelled || entry.has_timeout || entry.orphaned || entry.runs_ended() > 0;
        callers.any(|caller| forsakes(&self.entries[caller]))
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Notes a violation. The first one counts.
    pub(crate) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violate(what());
        }
    }

    pub(crate) fn accepted(&mut self, token: usize, id: TaskId) {
        self.entries[token].accepted = true;
        self.tokens.insert(id.to_bits(), token);
    }

    /// A caller no longer wants a task. Nobody asks once the pool is terminated.
    pub(crate) fn cancelled(&mut self, token: usize, now: Moment) {
        let entry = &mut self.entries[token];
        if !entry.cancelled && !self.terminated {
            (entry.cancelled, entry.cancelled_at) = (true, now);
        }
    }

    pub(crate) fn was_cancelled_before(&self, token: usize, at: Moment) -> bool {
        self.entries[token].cancelled && self.entries[token].cancelled_at < at
    }

    pub(crate) fn is_cancelled(&self, token: usize) -> bool {
        self.entries[token].cancelled
    }

    /// A value of a stream has come from its worker.
    pub(crate) fn gave(&mut self, token: usize) {
        self.entries[token].has_given = true;
    }

    /// The manager has a task back from the board: it never starts.
    pub(crate) fn retracted(&mut self, id: TaskId) {
        if let Some(token) = self.tokens.get(&id.to_bits()) {
            self.entries[*token].retracted = true;
        }
    }

    pub(crate) fn is_unfinished(&self, token: usize) -> bool {
        self.entries[token].accepted && !self.entries[token].delivered && !self.entries[token].orphaned
    }

    pub(crate) fn is_accepted(&self, token: usize) -> bool {
        self.entries[token].accepted
    }

    pub(crate) fn terminated(&mut self) {
        self.terminated = true;
    }

    /// Tasks that their callers still want.
    fn wanted(&self) -> usize {
        let wanted = |entry: &&Entry| entry.accepted && !entry.delivered && !entry.cancelled && entry.caller.is_none();
        self.entries.iter().filter(wanted).count()
    }

    /// The task that these bits from shared memory name.
    pub(crate) fn token_of(&mut self, bits: u64) -> usize {
        let token = self.tokens.get(&bits).copied();
        self.demand(token.is_some(), || format!("a worker got a task that was never submitted: {bits:#x}"));
        token.unwrap_or(0)
    }

    pub(crate) fn process(&mut self, worker: WorkerId) {
        self.lives.push(Life { worker, takes: 0, alive: true, retiring: false, left: false });
    }

    /// A worker has marked a task as started.
    pub(crate) fn taken(&mut self, token: usize, process: usize, others_wait: bool) {
        let life = &mut self.lives[process];
        life.takes += 1;
        let (worker, takes, max) = (life.worker, life.takes, self.max_tasks);
        self.demand(max == 0 || takes <= max || others_wait, || {
            format!("worker {worker} took its task {takes} of at most {max}")
        });
        let entry = &mut self.entries[token];
        entry.takes += 1;
        self.starts[entry.queue] += 1;
        entry.taken_by = Some(process);
        let (takes, retries, published) =
            (entry.takes, entry.retries + entry.deaths_in_company + entry.runs_free, entry.published);
        self.count(if takes == 1 { "tasks started" } else { "tasks started again" });
        self.demand(takes <= retries + 1, || format!("task {token} started {takes} times with {retries} retries"));
        let running = self.running_in(process);
        let in_company = running.len() > 1 && running.iter().any(|token| self.entries[*token].is_suspect());
        self.demand(!in_company, || format!("a suspect is not alone: tasks {running:?}"));
        let retracted = self.entries[token].retracted;
        self.demand(!retracted, || format!("task {token} started although it was taken back"));
        let retiring = self.lives[process].retiring;
        self.demand(!retiring || others_wait, || format!("worker {worker} took a task after it said that it retires"));
        self.demand(!published, || format!("task {token} started again although its outcome was in a ring"));
    }

    pub(crate) fn has_run_again(&self, token: usize) -> bool {
        self.entries[token].runs_free > 0
    }

    /// A task has another id from now on.
    pub(crate) fn is_known_by(&mut self, token: usize, id: TaskId) {
        self.tokens.insert(id.to_bits(), token);
    }

    /// A task that failed is to run again, which counts or does not.
    pub(crate) fn runs_again(&mut self, token: usize, id: TaskId, counts: bool) {
        self.is_known_by(token, id);
        let entry = &mut self.entries[token];
        entry.published = false;
        *(if counts { &mut entry.runs_again } else { &mut entry.runs_free }) += 1;
        self.count("tasks judged and run again");
    }

    fn running_in(&self, process: usize) -> Vec<usize> {
        (0..self.entries.len()).filter(|token| self.entries[*token].taken_by == Some(process)).collect()
    }

    /// A task's code begins to run.
    pub(crate) fn runs(&mut self, token: usize, process: usize) {
        let elsewhere = self.entries[token].running_in.filter(|other| self.lives[*other].alive);
        self.demand(elsewhere.is_none(), || format!("task {token} runs in two processes at the same time"));
        let (takes, starts) = (self.entries[token].takes, self.lives[process].takes);
        self.demand(takes > 0 && starts > 0, || format!("task {token} runs without a start mark"));
        self.entries[token].running_in = Some(process);
    }

    pub(crate) fn ended(&mut self, token: usize) {
        self.entries[token].running_in = None;
    }

    pub(crate) fn published(&mut self, token: usize) {
        self.entries[token].published = true;
        self.entries[token].taken_by = None;
    }

    pub(crate) fn died(&mut self, process: usize, exit: Exit) {
        self.lives[process].alive = false;
        self.count("processes ended");
        self.entries.iter_mut().filter(|entry| entry.asker == Some(process)).for_each(|entry| entry.orphaned = true);
        let running = self.running_in(process);
        for token in &running {
            let entry = &mut self.entries[*token];
            entry.taken_by = None;
            // One that leaves because of a task takes others with it that are not to blame.
            if running.len() == 1 && exit != Exit::Code(OVERDUE_EXITCODE) {
                entry.deaths_alone += 1;
            } else {
                entry.deaths_in_company += 1;
            }
        }
    }

    /// A worker says that it takes nothing more.
    pub(crate) fn retires(&mut self, process: usize) {
        self.lives[process].retiring = true;
    }

    pub(crate) fn is_retiring(&self, process: usize) -> bool {
        self.lives[process].retiring
    }

    /// A worker leaves of its own accord: told to, or after its last task.
    pub(crate) fn leaves(&mut self, process: usize, told: bool) {
        let life = &mut self.lives[process];
        life.left = true;
        let (worker, takes, max) = (life.worker, life.takes, self.max_tasks);
        let told = told || life.retiring;
        self.demand(told || takes >= max, || format!("worker {worker} left after {takes} tasks, not {max}"));
    }

    /// The manager has been told of a death that it must report.
    pub(crate) fn must_report(&mut self, worker: WorkerId) {
        self.expected.insert(worker);
    }

    pub(crate) fn report(&mut self, report: &Report) {
        self.demand(!self.closed, || format!("{report:?} after Closed"));
        match report {
            Report::Died { worker, .. } => {
                let new = self.reported.insert(*worker);
                self.demand(new, || format!("worker {worker} reported dead twice"));
                let left = self.lives.iter().any(|life| life.worker == *worker && life.left);
                self.demand(!left, || format!("worker {worker} reported dead although it left"));
            }
            Report::Terminated(count) => {
                let wanted = self.wanted();
                self.demand(*count == wanted, || format!("{count} terminated, but {wanted} were wanted"));
            }
            Report::Degraded(_) => self.count("pools degraded"),
            Report::Recovered => self.count("pools recovered"),
        }
    }

    pub(crate) fn delivered(&mut self, token: usize, outcome: &Outcome) {
        let entry = &mut self.entries[token];
        let again = std::mem::replace(&mut entry.delivered, true);
        let entry = entry.clone();
        self.demand(entry.accepted && !again, || format!("task {token} ended twice, now with {outcome:?}"));
        self.demand(!self.closed, || format!("task {token} ended after Closed"));
        self.count(kind(outcome));
        let possible = match outcome {
            Outcome::Value(_) | Outcome::Raised(_) | Outcome::Rejected(_) => {
                entry.published && is_outcome_of(token, self.behaviours[token], outcome)
            }
            Outcome::TimedOut => entry.published && entry.has_timeout,
            Outcome::Cancelled => entry.cancelled || self.is_forsaken(token),
            Outcome::Terminated => self.terminated,
            Outcome::NoWorkers(_) => true,
            Outcome::Lost(loss) => self.is_due(&entry, loss),
        };
        self.demand(possible, || format!("task {token} ended with {outcome:?}: {entry:?}"));
    }

    /// Whether a task may be given up: each start allowed to it was made, and none was invented.
    fn is_due(&mut self, entry: &Entry, loss: &Loss) -> bool {
        self.bereaving.insert(loss.worker);
        let used_up = !entry.retry_deaths
            || entry.has_given
            || entry.is_involved()
            || entry.retries == entry.runs_again
            || entry.deaths_alone + entry.runs_again > entry.retries;
        let poison = entry.deaths_alone == POISON_DEATHS;
        let as_found = !entry.published && entry.takes == entry.runs_ended();
        as_found && loss.attempt == entry.takes - entry.runs_free && loss.poison == poison && (used_up || poison)
    }

    /// What must hold when all is over.
    pub(crate) fn settle(&mut self) {
        let open: Vec<_> = (0..self.entries.len()).filter(|token| self.is_unfinished(*token)).collect();
        self.demand(open.is_empty(), || format!("the pool is closed and tasks {open:?} never ended"));
        let due = self.expected.union(&self.bereaving);
        let missing: Vec<_> = due.filter(|worker| !self.reported.contains(worker)).copied().collect();
        self.demand(missing.is_empty(), || format!("the death of {missing:?} was never reported"));
    }
}

fn entry_of(plan: &Plan) -> Entry {
    Entry {
        retries: plan.retries,
        retry_deaths: plan.retry_deaths,
        has_timeout: plan.timeout.is_some(),
        queue: plan.queue.into(),
        calls: matches!(plan.behaviour, Behaviour::Call(_)),
        ..Entry::default()
    }
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Value(_) => "outcomes: value",
        Outcome::Raised(_) => "outcomes: raised",
        Outcome::TimedOut => "outcomes: timed out",
        Outcome::Lost(loss) if loss.poison => "outcomes: poison",
        Outcome::Rejected(_) => "outcomes: rejected",
        Outcome::Cancelled => "outcomes: cancelled",
        Outcome::Lost(_) => "outcomes: lost with a worker",
        Outcome::Terminated => "outcomes: terminated",
        Outcome::NoWorkers(_) => "outcomes: no workers",
    }
}

/// The bytes that a task of this token returns or raises.
pub(crate) fn reply_bytes(token: usize, behaviour: Behaviour) -> Vec<u8> {
    let len = if let Behaviour::ReturnLarge(len) = behaviour { len } else { 4 };
    let mut bytes: Vec<u8> = (0..len).map(|at| (at + token) as u8).collect();
    bytes[..4].copy_from_slice(&(token as u32).to_le_bytes());
    bytes
}

fn is_outcome_of(token: usize, behaviour: Behaviour, outcome: &Outcome) -> bool {
    let expected = reply_bytes(token, behaviour);
    match (behaviour, outcome) {
        (Behaviour::Raise, Outcome::Raised(bytes)) | (Behaviour::Reject, Outcome::Rejected(bytes)) => {
            bytes[..] == expected[..]
        }
        (Behaviour::Raise | Behaviour::Reject, _) => false,
        (_, Outcome::Value(bytes)) => bytes[..] == expected[..],
        _ => false,
    }
}
