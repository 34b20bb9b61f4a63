//! A pool of real processes under test: drives a [`Driver`] from a plain poll loop and checks what every test of
//! this crate relies on, above all that each task ends exactly once and with its own answer.
//!
//! The driver is drained only when its descriptor is readable. A wake-up that is lost stays lost, and the watchdog
//! ends the test.
#![expect(clippy::unwrap_used, reason = "the rig serves tests only")]

pub(crate) mod journal;
#[path = "../process.rs"]
mod process;
pub(crate) mod work;
pub(crate) mod worker;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyloop::{
    CallId, Driver, DriverConfig, Event, Exit, Luggage, MAX_REPLY, Memory, OnDeath, Outcome, Payload, QueueIndex,
    Report, Stage, StartOrder, State, Submission, TaskId, WorkerId,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use journal::Journal;
use work::{Work, arguments, content, read, value};
use worker::{PARENT, ROLE};

pub(crate) use process::{process_state, send_signal};

/// How long anything awaited may take before the test counts as stuck.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(20);

pub(crate) const SHAPE: DriverConfig = DriverConfig {
    processes: 2,
    queues: 1,
    concurrency: 1,
    max_tasks: 0,
    max_memory: 0,
    max_reply: MAX_REPLY,
    max_age: None,
    overlap: true,
    block_warning: None,
    grace: Duration::from_secs(5),
};

/// What a started process is to be.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    /// For `POLYLOOP_INJECT`.
    pub(crate) inject: Option<String>,
}

impl Role {
    pub(crate) const HEALTHY: Self = Self { name: "serve", inject: None };

    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, inject: None }
    }
}

/// When the driver is told that a process runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Starts {
    /// At once, as of a child.
    AtOnce,
    /// At once, as of a process that somebody else has started.
    Foreign,
    /// By [`Rig::report_started`].
    Later,
}

struct Tracked {
    id: TaskId,
    work: Work,
    answer: Vec<u8>,
    outcome: Option<Outcome>,
    /// Values that have come, of a stream.
    values: u64,
    /// It was cancelled: more may come, or may not.
    left: bool,
}

/// What a rig has been told, beside outcomes.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) reports: Vec<Report>,
    pub(crate) garbage: Vec<(WorkerId, String)>,
    pub(crate) closed: bool,
    /// How each process ended.
    pub(crate) exits: Vec<(u32, Exit)>,
}

impl News {
    /// Workers that died, tasks they left that ran again, and tasks they took with them.
    pub(crate) fn deaths(&self) -> (usize, usize, usize) {
        self.reports.iter().fold((0, 0, 0), |(deaths, again, gone), report| match report {
            Report::Died { retried, lost, .. } => (deaths + 1, again + retried, gone + lost),
            _ => (deaths, again, gone),
        })
    }
}

pub(crate) struct Rig {
    pub(crate) driver: Driver,
    pub(crate) news: News,
    starts: Starts,
    label: String,
    roles: Box<dyn FnMut(usize) -> Role>,
    started: usize,
    /// In the order they were started.
    children: Vec<(WorkerId, Child)>,
    tasks: Vec<Tracked>,
    journal: Journal,
}

impl Rig {
    /// A pool whose processes take the roles that `roles` gives to the first, second, ... start. `label` says in a
    /// failure what was being tried.
    pub(crate) fn new(label: &str, config: DriverConfig, roles: impl FnMut(usize) -> Role + 'static) -> Self {
        Self::starting(Starts::AtOnce, label, config, roles)
    }

    pub(crate) fn starting(
        starts: Starts,
        label: &str,
        config: DriverConfig,
        roles: impl FnMut(usize) -> Role + 'static,
    ) -> Self {
        let mut rig = Self {
            driver: Driver::new(config).unwrap(),
            news: News::default(),
            starts,
            label: label.to_owned(),
            roles: Box::new(roles),
            started: 0,
            children: Vec::new(),
            tasks: Vec::new(),
            journal: Journal::new(),
        };
        rig.take_events();
        rig
    }

    pub(crate) fn healthy(label: &str, config: DriverConfig) -> Self {
        Self::new(label, config, |_| Role::HEALTHY)
    }

    /// Submits a task. It goes out with [`Self::flush`].
    pub(crate) fn submit(&mut self, work: Work, padding: usize, retries: u32) -> u64 {
        let token = self.tasks.len() as u64;
        let arguments = arguments(token, padding);
        let answer = work.answer(&arguments);
        let luggage = if let Work::Mirror(len) = work { Some(self.luggage(token, len)) } else { None };
        let submission = Submission {
            call: CallId::SINGLES,
            queue: QueueIndex(0),
            function: work.to_bytes().into(),
            arguments: Payload::from_vec(arguments).with(luggage),
            retries,
            on_death: OnDeath::Again,
            is_stream: matches!(work, Work::Stream(_)),
            judged: false,
            attempt: 1,
            timeout: None,
            token,
        };
        let id = self.driver.submit(submission).unwrap();
        self.tasks.push(Tracked { id, work, answer, outcome: None, values: 0, left: false });
        token
    }

    fn luggage(&mut self, token: u64, len: usize) -> Luggage {
        let lease = self.driver.take_block(len).unwrap();
        lease.fill([(0, &content(token, len)[..])]).unwrap();
        Luggage::new(lease)
    }

    /// Submits small tasks that are not run again, and sends them out.
    pub(crate) fn submit_many(&mut self, count: usize, work: Work) {
        for _ in 0..count {
            self.submit(work, 0, 0);
        }
        self.flush();
    }

    /// Has workers run small tasks until all are started, and reads nothing of what comes back.
    pub(crate) fn run_unread(&mut self, count: usize) {
        self.submit_many(count, Work::Echo);
        let until = Instant::now() + WATCHDOG;
        while self.journal.len() < self.tasks.len() {
            assert!(Instant::now() < until, "{}: stuck while nobody reads\n{}", self.label, self.describe());
            std::thread::sleep(Duration::from_millis(1));
            // Posts what waits.
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        self.driver.flush().unwrap();
        self.take_events();
    }

    pub(crate) fn terminate(&mut self) {
        self.driver.terminate().unwrap();
        self.take_events();
    }

    pub(crate) fn cancel(&mut self, token: u64) {
        self.tasks[token as usize].left = true;
        self.driver.cancel(self.tasks[token as usize].id).unwrap();
        self.take_events();
    }

    /// Drives the pool until `done`, or fails the test when nothing comes of it.
    pub(crate) fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + WATCHDOG;
        self.take_events();
        while !done(self) {
            self.turn(until.saturating_duration_since(Instant::now()));
            // Also where the descriptor is readable again and again and nothing comes of it.
            if Instant::now() >= until && !done(self) {
                panic!("{}: stuck, waiting until {what}\n{}", self.label, self.describe());
            }
        }
    }

    /// Waits up to so long for the driver's descriptor, and drains if it is readable. Says whether it was.
    pub(crate) fn turn(&mut self, timeout: Duration) -> bool {
        let readable = worker::wait(self.driver.as_fd(), Some(timeout));
        if readable {
            self.driver.drain().unwrap();
            self.take_events();
        }
        readable
    }

    pub(crate) fn wait_all_ready(&mut self) {
        self.wait("all workers are ready", |rig| rig.driver.state() == State::Running && rig.is_full());
    }

    pub(crate) fn wait_all_done(&mut self, what: &str) {
        self.wait(what, |rig| rig.unfinished().is_empty());
        assert_eq!(self.driver.unfinished(), 0, "{}", self.label);
    }

    /// Closes the pool, waits for its end, and for the end of every process.
    pub(crate) fn close(mut self) -> News {
        self.driver.close().unwrap();
        self.wait("the pool is closed", |rig| rig.news.closed);
        assert!(self.children.is_empty(), "{}: closed while a process runs", self.label);
        std::mem::take(&mut self.news)
    }

    pub(crate) fn unfinished(&self) -> Vec<u64> {
        let waits = |(token, task): (u64, &Tracked)| task.outcome.is_none().then_some(token);
        (0..).zip(&self.tasks).filter_map(waits).collect()
    }

    pub(crate) fn outcome(&self, token: u64) -> Option<&Outcome> {
        self.tasks[token as usize].outcome.as_ref()
    }

    /// Whether this task was cancelled by the test.
    pub(crate) fn was_left(&self, token: u64) -> bool {
        self.tasks[token as usize].left
    }

    /// Values of a stream that have come.
    pub(crate) fn values(&self, token: u64) -> u64 {
        self.tasks[token as usize].values
    }

    pub(crate) fn submitted(&self) -> usize {
        self.tasks.len()
    }

    /// The tokens of the tasks that went with their workers.
    pub(crate) fn lost(&self) -> Vec<u64> {
        let lost = |(token, task): (u64, &Tracked)| matches!(task.outcome, Some(Outcome::Lost(_))).then_some(token);
        (0..).zip(&self.tasks).filter_map(lost).collect()
    }

    /// The processes that started each task, as they wrote themselves.
    pub(crate) fn starts(&self) -> BTreeMap<u64, Vec<u32>> {
        self.journal.starts()
    }

    /// The processes that run, in the order they were started.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(|(_, child)| child.id()).collect()
    }

    /// Whether this process ended by SIGKILL.
    pub(crate) fn was_killed(&self, pid: u32) -> bool {
        self.news.exits.contains(&(pid, Exit::Signal(Signal::KILL.as_raw())))
    }

    pub(crate) fn is_alive(&self, pid: u32) -> bool {
        self.children.iter().any(|(_, child)| child.id() == pid)
    }

    /// Tells the driver of all processes, and from now on of each at once.
    pub(crate) fn report_started(&mut self) {
        self.starts = Starts::AtOnce;
        for (worker, child) in &self.children {
            report(&mut self.driver, *worker, child, true);
        }
        self.take_events();
    }

    fn is_full(&self) -> bool {
        self.driver.workers().all(|worker| worker.stage == Stage::Ready)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.driver.next_event() {
            match event {
                Event::Start(order) => self.start(order),
                Event::Reap(worker) => self.reap(worker),
                Event::Judge { task, token, outcome, .. } => {
                    self.assert_number(task, token);
                    if self.driver.settled(task) {
                        self.deliver(token, outcome);
                    }
                }
                Event::Deliver { task, token, outcome, .. } => {
                    self.assert_number(task, token);
                    self.deliver(token, outcome);
                }
                Event::Returned(values) => {
                    for (_, token, bytes) in values.iter() {
                        self.deliver(token, Outcome::Value(Payload::from_slice(bytes)));
                    }
                }
                Event::Yield { task, token, value } => {
                    self.assert_number(task, token);
                    self.yielded(token, &value);
                    self.driver.taken(task).unwrap();
                }
                Event::Log { .. } => panic!("{}: a worker that has no log", self.label),
                Event::Report(report) => self.news.reports.push(report),
                Event::Up | Event::GaveUp(_) => (),
                Event::Blocked { worker, .. } => panic!("{}: nobody asked whether {worker} is blocked", self.label),
                Event::Garbage { worker, problem } => self.news.garbage.push((worker, problem)),
                Event::Closed => {
                    assert!(!self.news.closed, "{}: closed twice", self.label);
                    self.news.closed = true;
                }
            }
        }
    }

    fn start(&mut self, order: StartOrder) {
        let role = (self.roles)(self.started);
        self.started += 1;
        let mut command = myself(role.name);
        command.stdin(Stdio::from(order.socket)).stdout(Stdio::from(order.lifeline));
        command.env(journal::PATH, self.journal.path()).env_remove("POLYLOOP_INJECT");
        command.envs(role.inject.map(|plan| ("POLYLOOP_INJECT", plan)));
        let child = command.spawn().unwrap();
        match self.starts {
            Starts::AtOnce => report(&mut self.driver, order.worker, &child, true),
            Starts::Foreign => report(&mut self.driver, order.worker, &child, false),
            Starts::Later => (),
        }
        self.children.push((order.worker, child));
    }

    fn reap(&mut self, worker: WorkerId) {
        let at = self.children.iter().position(|(id, _)| *id == worker).unwrap();
        let (_, mut child) = self.children.remove(at);
        let exit = exit_of(child.wait().unwrap());
        self.news.exits.push((child.id(), exit));
        self.driver.exited(worker, exit).unwrap();
    }

    fn assert_number(&self, task: TaskId, token: u64) {
        assert_eq!(task, self.tasks[token as usize].id, "{}: task {token} under another's number", self.label);
    }

    /// The next value of a stream: in order, once, and before its end.
    fn yielded(&mut self, token: u64, given: &[u8]) {
        let label = &self.label;
        let task = &mut self.tasks[token as usize];
        assert!(task.outcome.is_none(), "{label}: a value of stream {token} after its end");
        let is_next = task.left || given == value(token, task.values);
        assert!(is_next, "{label}: value {} of stream {token} is another, or not whole", task.values);
        task.values += 1;
    }

    fn deliver(&mut self, token: u64, outcome: Outcome) {
        let label = &self.label;
        let task = &mut self.tasks[token as usize];
        if let (Work::Stream(values), Outcome::Value(_)) = (task.work, &outcome) {
            let whole = task.left || task.values == values;
            assert!(whole, "{label}: stream {token} ended after {} of {values} values", task.values);
        }
        assert!(task.outcome.is_none(), "{label}: task {token} ended twice: {:?}, {outcome:?}", task.outcome);
        if let Outcome::Value(value) = &outcome {
            assert!(value[..] == task.answer[..], "{label}: task {token} got another's answer, or not all of it");
        }
        task.outcome = Some(match (task.work, outcome) {
            (Work::Mirror(len), Outcome::Value(value)) => {
                let memory = value.luggage().and_then(|luggage| luggage.get::<Arc<Memory>>()).unwrap();
                let whole = read(memory, len).iter().map(|byte| !byte).eq(content(token, len));
                assert!(whole, "{label}: the block of task {token} holds another's answer, or not all of it");
                Outcome::Value(Payload::from_slice(&value))
            }
            (_, outcome) => outcome,
        });
    }

    fn describe(&self) -> String {
        let states = self.pids().into_iter().map(|pid| format!("{pid}: {:?}", process_state(pid)));
        let starts = self.starts();
        let waiting = self.unfinished();
        let waiting: Vec<_> = waiting.iter().map(|token| (token, starts.get(token))).take(20).collect();
        format!(
            "processes {:?}\npool {:?}, deadline {:?}\n{} of {} tasks wait; the first, with who started them: {waiting:?}\n{:?}",
            states.collect::<Vec<_>>(),
            self.driver.state(),
            self.driver.deadline().map(|at| at.saturating_duration_since(Instant::now())),
            self.unfinished().len(),
            self.tasks.len(),
            self.news.reports,
        )
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.driver.abandon();
        for (_, child) in &mut self.children {
            // One that never said hello and was never reported is known to us alone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn report(driver: &mut Driver, worker: WorkerId, child: &Child, direct_child: bool) {
    let sentinel = process_handle(child.id());
    driver.started(worker, child.id(), direct_child, sentinel.as_fd()).unwrap();
}

/// Readable once a process has ended, also one that is no child of this one.
pub(crate) fn process_handle(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}

/// This program once more, to play `role`: see `worker_process` in each test program.
pub(crate) fn myself(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker_process", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(PARENT, std::process::id().to_string());
    command
}

pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    status.signal().map(Exit::Signal).or(status.code().map(Exit::Code)).unwrap_or(Exit::Unknown)
}

/// Blocks that this process has mapped.
pub(crate) fn mapped_blocks() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:polyloop-block").count()
}

pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
