//! Processes that are no correct workers, and speak just enough of the protocol to be wrong in one respect.
#![expect(clippy::unwrap_used, reason = "a fake that fails shall say so and end")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use polyloop::{Driver, DriverConfig, Event, Refused, StartError, State, WorkerLink};
use polyloop_shm::{Region, RingWriter, ring_words};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::rig::worker::{serve, socket, tie_to_parent};
use crate::rig::{SHAPE, process_handle};

const PROTOCOL: u64 = 2;
/// A kind of record that says "ready".
const READY: u32 = 16;
const LINE: usize = 8;
/// Kinds of records about blocks, and of the message that passes one.
const LENT: u32 = 20;
const RETURNED: u32 = 21;
const FORGOTTEN: u32 = 22;
const PASS: u64 = 2;

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
            say_hello(PROTOCOL + 1);
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

fn say_hello(version: u64) -> OwnedFd {
    let (socket, handle) = (socket(), process_handle(std::process::id()));
    send(&socket, &[version, u64::from(std::process::id())], handle);
    socket
}

fn send(socket: &OwnedFd, numbers: &[u64], fd: impl AsFd) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// What the manager answers: numbers, and descriptors of pool memory, own memory, own bell, manager's bell.
fn hear_welcome(socket: &OwnedFd) -> (Vec<u64>, Vec<OwnedFd>) {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None };
    let fds = control.drain().filter_map(rights).flatten().collect();
    let words = bytes[..received.bytes].as_chunks().0;
    (words.iter().map(|word| u64::from_le_bytes(*word)).collect(), fds)
}

/// A worker that says it is ready, and then writes into its result ring what `forgery` names.
fn forge(forgery: &str) {
    tie_to_parent();
    let socket = say_hello(PROTOCOL);
    let (numbers, fds) = hear_welcome(&socket);
    let [leases, result_words] = [12, 13].map(|at| numbers[at] as usize);
    let region = Region::attach(fds[1].try_clone().unwrap()).unwrap();
    let start = leases.next_multiple_of(LINE);
    let words = region.words().slice(start..start + ring_words(result_words));
    let mut ring = RingWriter::new(words.clone());
    ring.push(READY, &[]).unwrap();
    let words_of = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    match forgery {
        "a block that was never passed" => ring.push(LENT, &words_of(&[1, 77, 10])).unwrap(),
        "half a word of a block" => ring.push(LENT, &words_of(&[1, 77])).unwrap(),
        "a block that was not lent to it" => ring.push(RETURNED, &words_of(&[9, 1])).unwrap(),
        "a block that can shrink" => {
            let unsealed = memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&unsealed, 4096).unwrap();
            send(&socket, &[PASS, 5], &unsealed);
            ring.push(LENT, &words_of(&[1, 5, 10])).unwrap();
        }
        "more than the block has" => {
            send(&socket, &[PASS, 5], Region::create(512).unwrap());
            ring.push(LENT, &words_of(&[1, 5, 4097])).unwrap();
        }
        "another message" => {
            send(&socket, &[8, 5, 1], Region::create(512).unwrap());
            ring.push(FORGOTTEN, &words_of(&[5])).unwrap();
        }
        "unknown kind" => ring.push(99, b"what is this").unwrap(),
        "short frame" => ring.push(1, b"abc").unwrap(),
        // The ring's first word is its tail.
        "tail out of range" => words[0].store(u64::MAX / 2, std::sync::atomic::Ordering::Release),
        "record beyond the tail" => {
            // The header of the next record, then a tail that covers only that.
            let data = words.len() - result_words;
            words[data + 1].store(100_000 << 32 | 1, std::sync::atomic::Ordering::Relaxed);
            words[0].store(2, std::sync::atomic::Ordering::Release);
        }
        other => panic!("no such role: {other}"),
    }
    rustix::io::write(&fds[3], &1u64.to_ne_bytes()).unwrap();
    wait_to_be_killed();
}

/// A client that may open far fewer descriptors than its workers need.
fn few_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(40), ..limits }).unwrap();
    let mut driver = Driver::new(DriverConfig { processes: 100, ..SHAPE }).unwrap();
    assert_eq!(driver.state(), State::Terminating);
    let refused = driver.open_call().unwrap_err();
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
