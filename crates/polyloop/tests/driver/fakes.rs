//! Processes that are no correct workers, and speak just enough of the protocol to be wrong in one respect.
#![expect(clippy::unwrap_used, reason = "a fake that fails shall say so and end")]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use polyloop::{Driver, DriverConfig, Event, Refused, StartError, State, TaskId, WorkerLink};
use polyloop_shm::Region;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::grip::{
    FAILED, FETCH, FORGOTTEN, Grip, LENT, PASS, PIECE, PROTOCOL, READY, REPLIES, RETIRING, RETURNED, SUBMIT, say_hello,
};
use crate::rig::worker::{PARENT, serve, socket, tie_to_parent};
use crate::rig::{SHAPE, process_handle};

/// Where a ring's records begin.
const RING_DATA: usize = 24;

pub(crate) fn play(role: &str) {
    match role {
        "serve" => serve(),
        "deaf to SIGTERM" => {
            // SAFETY: sets a disposition; nothing else runs in this process yet.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            serve();
        }
        "can't start" => {
            tie_to_parent();
            WorkerLink::connect(socket()).unwrap().failed(b"no luck").unwrap();
        }
        "leaves at once" => std::process::exit(7),
        "another version" => {
            tie_to_parent();
            let _socket = greet(PROTOCOL + 1, std::process::id());
            wait_to_be_killed();
        }
        "another's handle" => {
            tie_to_parent();
            let _socket = greet(PROTOCOL, std::env::var(PARENT).unwrap().parse().unwrap());
            wait_to_be_killed();
        }
        "few descriptors" => few_descriptors(),
        forgery => forge(forgery),
    }
}

fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}

fn greet(version: u64, process: u32) -> OwnedFd {
    let socket = socket();
    say_hello(&socket, version, std::process::id(), process_handle(process).as_fd());
    socket
}

/// A worker that is let in, and then does what `forgery` names.
fn forge(forgery: &str) {
    tie_to_parent();
    let mut grip = Grip::take(greet(PROTOCOL, std::process::id()));
    match forgery {
        "a block that was never passed" => grip.push_words(LENT, &[1, 77, 10]),
        "half a word of a block" => grip.push_words(LENT, &[1, 77]),
        "a block that was not lent to it" => grip.push_words(RETURNED, &[9, 1]),
        "a block that can shrink" => {
            let unsealed = memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&unsealed, 4096).unwrap();
            grip.send(&[PASS, 5], unsealed.as_fd());
            grip.push_words(LENT, &[1, 5, 10]);
        }
        "more than the block has" => {
            grip.send(&[PASS, 5], Region::create(512).unwrap().as_fd());
            grip.push_words(LENT, &[1, 5, 4097]);
        }
        "another message" => {
            grip.send(&[8, 5, 1], Region::create(512).unwrap().as_fd());
            grip.push_words(FORGOTTEN, &[5]);
        }
        "unknown kind" => grip.push_bytes(99, b"what is this"),
        "short frame" => grip.push_bytes(1, b"abc"),
        // The ring's first word is its tail.
        "tail out of range" => grip.scribble_ring(0, u64::MAX / 2),
        "record beyond the tail" => {
            // The header of the next record, then a tail that covers only that.
            grip.scribble_ring(RING_DATA + 1, 100_000 << 32 | 1);
            grip.scribble_ring(0, 2);
        }
        "ready twice" => grip.push_bytes(READY, &[]),
        "failed after all" => grip.push_bytes(FAILED, b"no luck"),
        "retires twice" => (0..2).for_each(|_| grip.push_bytes(RETIRING, &[0])),
        "fetches without end" => {
            let ended = |index: u64| TaskId::from_bits(9 << 32 | index);
            (0..9).for_each(|index| grip.push(FETCH, ended(index), &[], usize::MAX));
        }
        with_a_task => forge_with_a_task(&mut grip, with_a_task),
    }
    grip.ring();
    wait_to_be_killed();
}

fn forge_with_a_task(grip: &mut Grip, forgery: &str) {
    let takes =
        !matches!(forgery, "piece of a task not taken" | "outcome of a task not taken" | "call of a task not taken");
    let task = loop {
        grip.claim(takes, takes);
        if let Some(task) = grip.held() {
            break task;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut say = |kind| {
        grip.push(kind, task, b"some bytes", usize::MAX);
        grip.ring();
    };
    match forgery {
        "piece of a task not taken" => say(PIECE),
        "outcome of a task not taken" => say(REPLIES[0]),
        "pieces without end" => loop {
            say(PIECE);
        },
        "call of a task not taken" | "a call that can't be read" => say(SUBMIT),
        "fetched again" => (0..2).for_each(|_| say(FETCH)),
        other => panic!("no such role: {other}"),
    }
}

/// A client that may open far fewer descriptors than its workers need.
fn few_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), ..limits }).unwrap();
    let mut driver = Driver::new(DriverConfig { processes: 100, ..SHAPE }).unwrap();
    assert_eq!(driver.state(), State::Terminating);
    let refused = driver.open_call(None).unwrap_err();
    let Refused::NoWorkers(StartError::Refused(why)) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("descriptors"), "{why}");
    let mut closed = false;
    while let Some(event) = driver.next_event() {
        match event {
            Event::Start(order) => driver.not_started(order.worker, "too late").unwrap(),
            Event::Closed => closed = true,
            _ => (),
        }
    }
    assert!(closed, "nothing is left");
}
