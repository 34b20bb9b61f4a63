//! Queues whose putters and getters are killed and stopped at every step, beside others that go on.
//!
//! What a victim has put, or got, it writes into a journal once the call has returned. So what is missing at the end is
//! at most the one item that it was about to get when it was killed, and only where it had already taken it.
#![expect(clippy::unwrap_used, reason = "a test, or the victim of one, that fails shall say so and end")]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use polyloop::{Nap, QueueError, SharedQueue, Side, Watch};
use rustix::process::Signal;

use crate::dice::{Dice, rounds};
use crate::rig::journal::{Journal, PATH, Pen};
use crate::rig::{WATCHDOG, myself, process_state, send_signal};
use crate::steps::alone;

const FDS: &str = "POLYLOOP_TEST_QUEUE";
/// Items that a victim puts.
const ITEMS: u64 = 6;
/// Items that a victim may get.
const STOCK: u64 = 12;
/// The last item: who gets it is done.
const END: u64 = u64::MAX;
const LARGE: usize = 200_000;
/// Long enough for another to fall asleep, mostly; nothing depends on it.
const BREATH: Duration = Duration::from_millis(2);

const PUT_STEPS: [&str; 6] = ["put-placed", "put-written", "put-begun", "ring", "rung", "put-pushed"];
const TAKE_STEPS: [&str; 10] = [
    "take-found",
    "take-read",
    "take-begun",
    "ring",
    "rung",
    "take-passed",
    "nap-announced",
    "nap-looked",
    "nap-sleep",
    "nap-woken",
];

fn item(token: u64) -> Vec<u8> {
    let mut bytes = token.to_le_bytes().to_vec();
    if token % 3 == 2 {
        bytes.resize(LARGE, token as u8);
    }
    bytes
}

fn token(bytes: &[u8]) -> u64 {
    let token = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == item(token), "a torn item");
    token
}

/// A view of the queue of its own, as another process would have.
fn peer(queue: &SharedQueue) -> Arc<SharedQueue> {
    let (memory, items, room) = queue.fds();
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    Arc::new(SharedQueue::attach(own(memory), own(items), room.map(own)).unwrap())
}

fn wait_and<T>(
    queue: &Arc<SharedQueue>,
    side: Side,
    mut attempt: impl FnMut() -> Result<Option<T>, QueueError>,
) -> Option<T> {
    let mut watch: Option<Watch> = None;
    loop {
        match attempt() {
            Ok(Some(done)) => return Some(done),
            Ok(None) => (),
            Err(QueueError::Closed) => return None,
            Err(error) => panic!("{error}"),
        }
        let napped = match &mut watch {
            Some(watch) => watch.nap(),
            none => Watch::new(Arc::clone(queue), side).and_then(|watch| none.insert(watch).nap()),
        };
        match napped {
            Ok(Nap::Not) => (),
            Ok(Nap::Sleep(most)) => watch.as_ref().unwrap().sleep(most, None).unwrap(),
            Err(QueueError::Closed) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn get(queue: &Arc<SharedQueue>) -> Option<u64> {
    wait_and(queue, Side::Items, || queue.take()).map(|bytes| token(&bytes))
}

fn put(queue: &Arc<SharedQueue>, token: u64) -> bool {
    let bytes = item(token);
    wait_and(queue, Side::Room, || queue.put(&bytes).map(|put| put.then_some(()))).is_some()
}

/// The victim's life.
pub(crate) fn victim(role: &str) {
    let fds = std::env::var(FDS).unwrap();
    // SAFETY: inherited from the test for this purpose.
    let mut fds = fds.split(',').map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) });
    let queue = Arc::new(SharedQueue::attach(fds.next().unwrap(), fds.next().unwrap(), fds.next()).unwrap());
    let mut pen = Pen::from_env();
    if role == "queue-put" {
        for token in 0..ITEMS {
            while !queue.is_empty().unwrap() {
                std::thread::yield_now();
            }
            std::thread::sleep(BREATH);
            assert!(put(&queue, token));
            pen.started(token);
        }
    } else {
        while let Some(token) = get(&queue).filter(|token| *token != END) {
            pen.started(token);
        }
    }
}

/// The victim and what it says.
struct Victim {
    child: Child,
    journal: Journal,
}

impl Victim {
    fn new(queue: &SharedQueue, role: &str, step: &str, nth: u64, signal: Signal) -> Self {
        let journal = Journal::new();
        let (memory, items, room) = queue.fds();
        // Copies that a program keeps which is started now.
        let fds: Vec<OwnedFd> =
            [Some(memory), Some(items), room].iter().flatten().map(|fd| rustix::io::dup(fd).unwrap()).collect();
        let numbers: Vec<String> = fds.iter().map(|fd| fd.as_fd().as_raw_fd().to_string()).collect();
        let child = myself(role)
            .env(FDS, numbers.join(","))
            .env(PATH, journal.path())
            .env("POLYLOOP_INJECT", format!("{step}:{nth}:{}", signal.as_raw()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, journal }
    }

    fn told(&self) -> Vec<u64> {
        self.journal.starts().into_keys().collect()
    }

    /// Whether it is stopped; if not, it has ended.
    fn has_stopped(&mut self, label: &str) -> bool {
        let pid = self.child.id();
        wait(label, || matches!(process_state(pid), Some('T' | 'Z')));
        process_state(pid) == Some('T')
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread that gets whatever comes, until the end or until its view of the queue is closed.
struct Getter {
    got: Arc<Mutex<Vec<u64>>>,
    queue: Arc<SharedQueue>,
    thread: Option<JoinHandle<()>>,
}

impl Getter {
    fn new(queue: &SharedQueue) -> Self {
        let (queue, got) = (peer(queue), Arc::new(Mutex::new(Vec::new())));
        let (from, into) = (Arc::clone(&queue), Arc::clone(&got));
        let thread = std::thread::spawn(move || {
            while let Some(token) = get(&from) {
                into.lock().unwrap().push(token);
            }
        });
        Self { got, queue, thread: Some(thread) }
    }

    fn got(&self) -> Vec<u64> {
        self.got.lock().unwrap().clone()
    }
}

impl Drop for Getter {
    fn drop(&mut self) {
        self.queue.close().unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the getter failed");
    }
}

fn wait(label: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WATCHDOG, "stuck: {label}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn queue(dice: &mut Dice) -> SharedQueue {
    SharedQueue::create((dice.below(2) == 0).then_some(2)).unwrap()
}

fn rounds_per_step() -> u32 {
    rounds().div_ceil(4)
}

#[test]
fn what_a_killed_putter_had_put_is_got_by_those_who_sleep() {
    let _alone = alone();
    let mut dice = Dice::new();
    for (step, round) in PUT_STEPS.iter().flat_map(|step| (0..rounds_per_step()).map(move |round| (*step, round))) {
        let nth = 1 + dice.below(3);
        let label = format!("SIGKILL at {step} #{nth}, round {round}, seed {}", dice.seed);
        let queue = queue(&mut dice);
        let getter = Getter::new(&queue);
        let mut victim = Victim::new(&queue, "queue-put", step, nth, Signal::KILL);
        let killed = !victim.child.wait().unwrap().success();
        // Nobody rings any more but for what the victim left undone.
        wait(&label, || queue.is_empty().unwrap());
        assert!(put(&peer(&queue), END));
        wait(&label, || getter.got().last() == Some(&END));
        let (told, mut got) = (victim.told(), getter.got());
        got.pop();
        let begun = told.len() as u64;
        assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>(), "{label}");
        match step {
            "put-placed" | "put-written" | "put-begun" => assert_eq!(got, told, "{label}"),
            "put-pushed" => assert_eq!(got.len() as u64, begun + 1, "{label}"),
            _ => assert!([begun, begun + 1].contains(&(got.len() as u64)), "{label}: {told:?} {got:?}"),
        }
        assert!(killed, "{label}: the step is never passed");
    }
}

#[test]
fn of_what_a_killed_getter_was_about_to_get_nothing_is_lost_and_those_who_wait_for_room_go_on() {
    let _alone = alone();
    let mut dice = Dice::new();
    for (step, round) in TAKE_STEPS.iter().flat_map(|step| (0..rounds_per_step()).map(move |round| (*step, round))) {
        let nth = 1 + dice.below(3);
        let label = format!("SIGKILL at {step} #{nth}, round {round}, seed {}", dice.seed);
        let queue = SharedQueue::create(Some(2)).unwrap();
        let mut victim = Victim::new(&queue, "queue-get", step, nth, Signal::KILL);
        let putter = {
            let queue = peer(&queue);
            std::thread::spawn(move || {
                for token in 0..STOCK {
                    if token < STOCK / 2 {
                        std::thread::sleep(BREATH);
                    }
                    assert!(put(&queue, token));
                }
                put(&queue, END)
            })
        };
        let killed = !victim.child.wait().unwrap().success();
        // Nobody gets, and nobody rings: where there is room, the putter must find out.
        wait(&label, || queue.len().unwrap() == 2 || putter.is_finished());
        let getter = Getter::new(&queue);
        if killed {
            wait(&label, || getter.got().last() == Some(&END));
        }
        assert!(putter.join().unwrap());
        let (told, got) = (victim.told(), getter.got());
        let all: Vec<u64> = told.iter().chain(got.iter().filter(|token| **token != END)).copied().collect();
        let missing: Vec<u64> = (0..STOCK).filter(|token| !all.contains(token)).collect();
        assert!(all.is_sorted_by(|a, b| a < b), "{label}: {told:?} {got:?}");
        let may_miss = killed && matches!(step, "take-passed" | "ring" | "rung");
        assert!(missing.is_empty() || may_miss && missing == [told.len() as u64], "{label}: {missing:?}");
        assert!(step != "take-passed" || !killed || missing.len() == 1, "{label}: {missing:?}");
    }
}

#[test]
fn nobody_waits_for_a_stopped_putter_or_getter() {
    let _alone = alone();
    let mut dice = Dice::new();
    let puts = PUT_STEPS.iter().map(|step| ("queue-put", *step));
    let takes = TAKE_STEPS.iter().map(|step| ("queue-get", *step));
    for (role, step) in puts.chain(takes) {
        for round in 0..rounds_per_step() {
            let nth = 1 + dice.below(3);
            let label = format!("SIGSTOP of a {role} at {step} #{nth}, round {round}, seed {}", dice.seed);
            let queue = if role == "queue-put" { queue(&mut dice) } else { SharedQueue::create(Some(STOCK)).unwrap() };
            let mut victim = Victim::new(&queue, role, step, nth, Signal::STOP);
            let healthy = peer(&queue);
            if role == "queue-get" {
                // So many that it passes the step, and so slowly that it sleeps.
                for token in 100..104 {
                    assert!(put(&healthy, token));
                    std::thread::sleep(BREATH);
                }
            }
            let getter = Getter::new(&queue);
            let stopped = match role {
                "queue-put" => victim.has_stopped(&label),
                _ => process_state(victim.child.id()) == Some('T'),
            };
            for token in 0..4 {
                assert!(put(&healthy, 200 + token));
                std::thread::sleep(BREATH / 2);
            }
            // The victim gets nothing while it is stopped; what it has not taken is for the others.
            if stopped {
                wait(&label, || queue.is_empty().unwrap());
                send_signal(victim.child.id(), Signal::CONT);
            }
            finish(&label, role, &healthy, &getter, &mut victim);
        }
    }
}

/// Lets the victim come to its end, and checks that each item was got once.
fn finish(label: &str, role: &str, healthy: &Arc<SharedQueue>, getter: &Getter, victim: &mut Victim) {
    let pid = victim.child.id();
    if role == "queue-put" {
        wait(label, || process_state(pid) == Some('Z'));
        wait(label, || getter.got().len() as u64 == ITEMS + 4);
        let mut got = getter.got();
        got.sort_unstable();
        assert_eq!(got, (0..ITEMS).chain(200..204).collect::<Vec<_>>(), "{label}");
        return;
    }
    wait(label, || getter.got().len() + victim.told().len() >= 8);
    // It may get to the step only now.
    if process_state(pid) == Some('T') {
        send_signal(pid, Signal::CONT);
    }
    let mut got: Vec<u64> = getter.got().into_iter().chain(victim.told()).collect();
    got.sort_unstable();
    assert_eq!(got, (100..104).chain(200..204).collect::<Vec<_>>(), "{label}");
    assert!(put(healthy, 300), "{label}");
}
