//! A whole manager whose worker writes what it likes: into its ring, its leases, the board, and as frames.
//!
//! The worker is played by this process; the process that the manager may kill for it is one that only sleeps.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use polyloop::{CallId, Driver, DriverConfig, Event, Exit, Payload, QueueIndex, Submission, TaskId, WorkerId};
use polyloop_shm::{Region, RingWriter, ring_words};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const PROTOCOL: u64 = 1;
const READY: u32 = 16;
const LINE: usize = 8;
const TASKS: u64 = 4;
const ROUNDS_TO_END: usize = 1000;

/// What the rogue has got hold of.
struct Rogue {
    process: Child,
    pool: Region,
    own: Region,
    ring: RingWriter,
    bell: OwnedFd,
    _socket: OwnedFd,
}

impl Rogue {
    fn join(process: Child, socket: OwnedFd) -> Self {
        let (numbers, fds) = hear_welcome(&socket);
        let [leases, result_words] = [10, 11].map(|at| numbers[at] as usize);
        let [pool, own, _, bell] = <[OwnedFd; 4]>::try_from(fds).expect("a welcome has four");
        let [pool, own] = [pool, own].map(|fd| Region::attach(fd).expect("the manager seals its memory"));
        let start = leases.next_multiple_of(LINE);
        let mut ring = RingWriter::new(own.words().slice(start..start + ring_words(result_words)));
        ring.push(READY, &[]).expect("it is empty");
        Self { process, pool, own, ring, bell, _socket: socket }
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.process.kill().expect("it is ours, and has not been waited for");
        self.process.wait().expect("as above");
    }
}

/// Eleven bytes are one act.
pub fn run(bytes: &[u8]) {
    let config = DriverConfig {
        processes: 1,
        queues: 1,
        concurrency: 2,
        max_tasks: 0,
        max_memory: 0,
        max_age: None,
        overlap: true,
        block_warning: None,
        grace: Duration::ZERO,
    };
    let mut stage = Stage {
        driver: Driver::new(config).expect("there is memory"),
        rogues: BTreeMap::new(),
        ends: [0; TASKS as usize],
        closed: false,
    };
    stage.turn();
    let tasks: Vec<TaskId> = (0..TASKS).map(|token| stage.submit(token)).collect();
    stage.turn();
    for act in bytes.as_chunks::<11>().0 {
        stage.act(act, &tasks);
    }
    stage.end();
}

struct Stage {
    driver: Driver,
    rogues: BTreeMap<WorkerId, Rogue>,
    ends: [u32; TASKS as usize],
    closed: bool,
}

impl Stage {
    fn submit(&mut self, token: u64) -> TaskId {
        let bytes = vec![7; if token == 3 { 40_000 } else { 10 }];
        let submission = Submission {
            call: CallId::SINGLES,
            queue: QueueIndex(0),
            function: b"f"[..].into(),
            arguments: Payload::from_vec(bytes),
            retries: 1,
            retry_deaths: true,
            judged: true,
            is_stream: token == 2,
            attempt: 1,
            timeout: None,
            token,
        };
        self.driver.submit(submission).expect("the pool is open")
    }

    fn act(&mut self, [what, at, more, value @ ..]: &[u8; 11], tasks: &[TaskId]) {
        let (at, value) = (usize::from(*at) << 8 | usize::from(*more), u64::from_le_bytes(*value));
        let task = tasks[at % tasks.len()];
        let Some(rogue) = self.rogues.values_mut().next() else { return self.turn() };
        match what % 8 {
            // Most of a pool's or a seat's memory is payload: the words that matter stand at the front.
            0 => write(&rogue.own, at % 64, value),
            1 => write(&rogue.pool, at % 128, value),
            2 => write(&rogue.pool, at * 7, value),
            3 => {
                let payload = [&task.to_bits().to_le_bytes()[..], &value.to_le_bytes()].concat();
                let _ = rogue.ring.push(at as u32 >> 8 & 63, &payload[..at % (payload.len() + 1)]);
            }
            4 => {
                let payload = [&task.to_bits().to_le_bytes()[..], &value.to_le_bytes()].concat();
                let _ = rogue.ring.push((value % 24) as u32, &payload);
            }
            5 => self.driver.cancel(task).expect("the system refuses nothing"),
            6 => {
                rustix::io::write(&rogue.bell, &1u64.to_ne_bytes()).expect("an eventfd takes a ring");
                self.turn();
            }
            _ => self.turn(),
        }
    }

    fn turn(&mut self) {
        self.driver.drain().expect("the system refuses nothing");
        while let Some(event) = self.driver.next_event() {
            match event {
                Event::Yield { task, .. } => self.driver.taken(task).expect("the system refuses nothing"),
                Event::Start(order) => {
                    let worker = order.worker;
                    let process =
                        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("it is installed");
                    let number = process.id();
                    let handle = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).expect("it runs");
                    say_hello(&order.socket, number, &handle);
                    self.driver.started(worker, number, true, handle.as_fd()).expect("the system refuses nothing");
                    self.driver.drain().expect("the system refuses nothing");
                    self.rogues.insert(worker, Rogue::join(process, order.socket));
                }
                Event::Reap(worker) => {
                    self.rogues.remove(&worker);
                    self.driver.exited(worker, Exit::Signal(9)).expect("it has exited");
                }
                Event::Deliver { token, .. } => self.ends[token as usize] += 1,
                Event::Judge { task, token, .. } => match token % 2 {
                    0 => drop(self.driver.again(task, None)),
                    _ => self.ends[token as usize] += u32::from(self.driver.settled(task)),
                },
                Event::Closed => self.closed = true,
                Event::Report(_) | Event::Log { .. } | Event::Blocked { .. } | Event::Garbage { .. } => (),
            }
        }
        assert!(self.ends.iter().all(|ends| *ends <= 1), "a task ended twice");
    }

    /// Whatever the rogue did, the pool ends, and every task once.
    fn end(mut self) {
        self.driver.terminate().expect("the system refuses nothing");
        for _ in 0..ROUNDS_TO_END {
            self.turn();
            if self.closed {
                assert!(self.ends.iter().all(|ends| *ends == 1), "a task has not ended");
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        panic!("the pool does not end");
    }
}

fn write(region: &Region, at: usize, value: u64) {
    let words = region.words();
    words[at % words.len()].store(value, Relaxed);
}

fn say_hello(socket: &OwnedFd, number: u32, handle: &OwnedFd) {
    let bytes: Vec<u8> = [PROTOCOL, number.into()].iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [handle.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).expect("the manager listens");
}

/// What the manager answers: numbers, and descriptors of pool memory, own memory, own bell, manager's bell.
fn hear_welcome(socket: &OwnedFd) -> (Vec<u64>, Vec<OwnedFd>) {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .expect("the manager has answered");
    let rights = |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None };
    let fds = control.drain().filter_map(rights).flatten().collect();
    let words = bytes[..received.bytes].as_chunks().0;
    (words.iter().map(|word| u64::from_le_bytes(*word)).collect(), fds)
}
