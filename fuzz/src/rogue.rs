//! A whole manager whose worker writes what it likes: into its ring, its leases, the board, its status, and as frames,
//! some of them as a correct worker would, so that the others come at every moment of its life.
//!
//! The worker is played by this process; the process that the manager may kill for it is one that only sleeps.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use polyloop::{
    CallId, Driver, DriverConfig, Event, Exit, OnDeath, Payload, QueueIndex, Stage as WorkerStage, State, Submission,
    TaskId, WorkerId,
};

use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use crate::grip::{FAILED, FETCH, Grip, PIECE, PROTOCOL, READY, REPLIES, RETIRING, SUBMIT, WITHDRAW, say_hello};

const TASKS: u64 = 4;
/// Items that the rogue may hold.
const CONCURRENCY: u32 = 2;
const MAX_REPLY: u64 = 200;
/// A task whose bytes are fetched.
const LARGE: usize = 40_000;
/// One reply, what the tasks that it may hold take on their way to it, and a few words for each of those.
const HELD_BYTES_MAX: usize = MAX_REPLY as usize + CONCURRENCY as usize * (LARGE + 1_000);
const ROUNDS_TO_END: usize = 1000;

/// Eleven bytes are one act, after one that says how its processes greet.
pub fn run(bytes: &[u8]) {
    let Some((&greeting, acts)) = bytes.split_first() else { return };
    let config = DriverConfig {
        processes: 1,
        queues: 1,
        concurrency: CONCURRENCY,
        max_tasks: 0,
        max_memory: 0,
        max_reply: MAX_REPLY,
        max_age: Some(Duration::from_secs(1000)),
        overlap: true,
        block_warning: None,
        grace: Duration::ZERO,
    };
    let mut stage = Stage {
        driver: Driver::new(config).expect("there is memory"),
        rogues: BTreeMap::new(),
        greeting,
        ends: [0; TASKS as usize],
        closed: false,
    };
    stage.turn();
    let tasks: Vec<TaskId> = (0..TASKS).filter_map(|token| stage.submit(token)).collect();
    stage.turn();
    if !tasks.is_empty() {
        acts.as_chunks::<11>().0.iter().for_each(|act| stage.act(act, &tasks));
    }
    stage.end(tasks.len());
}

/// How a process greets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hello {
    /// As a child of the manager's process.
    AsChild,
    /// As another's child, by a handle of its own.
    Foreign,
    /// With the handle of another process, which must not be killed.
    AnothersHandle,
    /// With something that is no handle.
    NoHandle,
}

impl Hello {
    fn from_bits(bits: u8) -> Self {
        [Self::AsChild, Self::Foreign, Self::AnothersHandle, Self::NoHandle][usize::from(bits & 3)]
    }

    fn is_correct(self) -> bool {
        matches!(self, Self::AsChild | Self::Foreign)
    }
}

/// A process in the place of a worker, and what it has got hold of, if it was let in.
struct Rogue {
    process: Child,
    grip: Option<Grip>,
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.process.kill().expect("it is ours, and has not been waited for");
        self.process.wait().expect("as above");
    }
}

/// A call of the pool as a correct worker makes it, of a number that may be taken.
fn call([number, rest @ ..]: [u8; 8]) -> Vec<u8> {
    let (head, function_len) = ([number % 4, 0, 0, 0], 1_u64.to_le_bytes());
    [&head[..], &[0; 24], &function_len, b"g", &rest].concat()
}

struct Stage {
    driver: Driver,
    rogues: BTreeMap<WorkerId, Rogue>,
    greeting: u8,
    ends: [u32; TASKS as usize],
    closed: bool,
}

impl Stage {
    /// `None` if no worker was let in and the pool has given up.
    fn submit(&mut self, token: u64) -> Option<TaskId> {
        let bytes = vec![7; if token == 3 { LARGE } else { 10 }];
        let submission = Submission {
            call: CallId::SINGLES,
            queue: QueueIndex(0),
            function: b"f"[..].into(),
            arguments: Payload::from_vec(bytes),
            retries: 1,
            on_death: OnDeath::Again,
            judged: true,
            is_stream: token == 2,
            attempt: 1,
            timeout: None,
            token,
        };
        let task = self.driver.submit(submission).ok();
        assert!(task.is_some() || self.driver.state() != State::Running, "the pool is open");
        task
    }

    fn act(&mut self, [what, at, more, value @ ..]: &[u8; 11], tasks: &[TaskId]) {
        let (at, number) = (usize::from(*at) << 8 | usize::from(*more), u64::from_le_bytes(*value));
        let task = tasks[at % tasks.len()];
        let Some(grip) = self.rogues.values_mut().find_map(|rogue| rogue.grip.as_mut()) else { return self.turn() };
        match what % 16 {
            // Most of a pool's or a seat's memory is payload: the words that matter stand at the front.
            0 => grip.scribble_own(at % 64, number),
            1 => grip.scribble_pool(at % 128, number),
            2 => grip.scribble_pool(at * 7, number),
            3 => grip.push(at as u32 >> 8 & 63, task, value, at),
            4 => grip.push((number % 24) as u32, task, value, usize::MAX),
            5 => self.driver.cancel(task).expect("the system refuses nothing"),
            6 => grip.claim(number & 1 == 0, number & 2 == 0),
            7 => (0..at % 8).for_each(|_| grip.push(PIECE, grip.held_or(task), &[*value; 5].concat(), usize::MAX)),
            8 if at % 5 == 0 => grip.push(SUBMIT, grip.held_or(task), &call(*value), usize::MAX),
            8 if at % 5 == 1 => grip.push(WITHDRAW, TaskId::from_bits(number % 4), &[], usize::MAX),
            8 => grip.push(REPLIES[at % REPLIES.len()], grip.held_or(task), value, usize::MAX),
            9 => (0..at % 4).for_each(|_| grip.push(FETCH, grip.held_or(task), &[], usize::MAX)),
            10 => grip.push([READY, FAILED, RETIRING][at % 3], task, value, at % 16),
            11 => grip.lease(at, task),
            12 => grip.mark(at, number),
            13 => self.die(),
            14 => {
                grip.ring();
                self.turn();
            }
            _ => self.turn(),
        }
    }

    fn die(&mut self) {
        if let Some(rogue) = self.rogues.values_mut().next() {
            rogue.process.kill().expect("it is ours, and has not been waited for");
        }
    }

    fn turn(&mut self) {
        self.driver.drain().expect("the system refuses nothing");
        assert!(self.driver.held_bytes() <= HELD_BYTES_MAX, "the manager keeps {} bytes", self.driver.held_bytes());
        while let Some(event) = self.driver.next_event() {
            match event {
                Event::Yield { task, .. } => self.driver.taken(task).expect("the system refuses nothing"),
                Event::Start(order) => self.start(order.worker, order.socket),
                Event::Reap(worker) => {
                    self.rogues.remove(&worker);
                    self.driver.exited(worker, Exit::Signal(9)).expect("it has exited");
                }
                Event::Returned(values) => values.iter().for_each(|(_, token, _)| self.ends[token as usize] += 1),
                Event::Deliver { token, .. } => self.ends[token as usize] += 1,
                Event::Judge { task, token, .. } => match token % 2 {
                    0 => drop(self.driver.again(task, None)),
                    _ => self.ends[token as usize] += u32::from(self.driver.settled(task)),
                },
                Event::Closed => self.closed = true,
                Event::Report(_) | Event::Log { .. } | Event::Blocked { .. } | Event::Garbage { .. } => (),
                Event::Up | Event::GaveUp(_) => (),
            }
        }
        assert!(self.ends.iter().all(|ends| *ends <= 1), "a task ended twice");
    }

    /// Each process greets as the next two bits say, and correctly when they are used up.
    fn start(&mut self, worker: WorkerId, socket: OwnedFd) {
        let hello = Hello::from_bits(self.greeting & 3);
        self.greeting >>= 2;
        let process = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("it is installed");
        let open = |pid| pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
        let (number, handle, myself) = (process.id(), open(Pid::from_child(&process)), open(getpid()));
        let shown = match hello {
            Hello::AsChild | Hello::Foreign => handle.as_fd(),
            Hello::AnothersHandle => myself.as_fd(),
            Hello::NoHandle => socket.as_fd(),
        };
        say_hello(&socket, PROTOCOL, number, shown);
        self.driver
            .started(worker, number, hello == Hello::AsChild, handle.as_fd())
            .expect("the system refuses nothing");
        self.driver.drain().expect("the system refuses nothing");
        let grip = hello.is_correct().then(|| Grip::take(socket));
        self.rogues.insert(worker, Rogue { process, grip });
        self.driver.drain().expect("the system refuses nothing");
        let waits = self.driver.workers().any(|view| view.id == worker && view.stage == WorkerStage::Starting);
        assert!(!waits || !hello.is_correct(), "its first words were not heard");
    }

    /// Whatever the rogue did, the pool ends, and every task once.
    fn end(mut self, tasks: usize) {
        self.driver.terminate().expect("the system refuses nothing");
        for _ in 0..ROUNDS_TO_END {
            self.turn();
            if self.closed {
                assert!(self.ends[..tasks].iter().all(|ends| *ends == 1), "a task has not ended");
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        panic!("the pool does not end");
    }
}
