//! The engine's hot path without processes: `polyloop-paths <bulk|single> <items>`.
//!
//! Client and worker take turns on one thread, over the memory and the descriptors that two processes would share, so
//! that a run of the same arguments executes the same instructions. `benches/instructions.py` counts them; the
//! functions named `client_*` and `worker_*` are what it looks for. It measures no time.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use polyloop::{
    CallId, Driver, DriverConfig, Event, Item, MAX_REPLY, Next, OnDeath, Payload, QueueIndex, Reply, StartOrder,
    Submission, WorkerLink,
};
use rustix::io::dup;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// Items that a map keeps under way.
const WINDOW: u64 = 2048;
/// A function's reference, and the arguments of a no-op, as the Python face would send them.
const FUNCTION: &[u8] = b"rows.work:no_op";
const ARGUMENTS: &[u8] = &[7; 12];

const ALONE: DriverConfig = DriverConfig {
    processes: 1,
    queues: 1,
    concurrency: 16,
    max_tasks: 0,
    max_memory: 0,
    max_reply: MAX_REPLY,
    max_age: None,
    overlap: true,
    block_warning: None,
    grace: Duration::from_secs(5),
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let window = match arguments.first().map(String::as_str) {
        Some("bulk") => WINDOW,
        Some("single") => 1,
        _ => return usage(),
    };
    let Some(items) = arguments.get(1).and_then(|items| items.parse().ok()) else { return usage() };
    let mut both = Both::new();
    println!("{} items", both.run(items, window));
    // Without dropping the driver, which would kill its worker: this process.
    std::process::exit(0);
}

fn usage() -> ExitCode {
    eprintln!("usage: polyloop-paths <bulk|single> <items>");
    ExitCode::from(2)
}

/// A pool whose only worker is this process, too.
struct Both {
    driver: Driver,
    worker: WorkerLink,
    call: CallId,
    function: Arc<[u8]>,
    item: Item,
}

impl Both {
    fn new() -> Self {
        let mut driver = Driver::new(ALONE).expect("the shape is possible, and there is memory");
        let mut worker = join(&mut driver);
        worker.ready().expect("an eventfd takes a ring");
        let call = driver.open_call(None).expect("the pool is open");
        Self { driver, worker, call, function: FUNCTION.into(), item: Item::default() }
    }

    /// Runs so many items, at most `window` under way at once. Returns how many have ended.
    #[inline(never)]
    fn run(&mut self, items: u64, window: u64) -> u64 {
        let (mut submitted, mut ended) = (0, 0);
        while ended < items {
            let room = window.min(items - ended) - (submitted - ended);
            client_submits(self, submitted..submitted + room);
            submitted += room;
            worker_turns(self);
            ended += client_drains(self);
        }
        ended
    }
}

/// Has a worker of this process join the pool.
fn join(driver: &mut Driver) -> WorkerLink {
    let Some(Event::Start(StartOrder { worker, socket, .. })) = driver.next_event() else {
        panic!("a new pool asks for its worker first");
    };
    let handle = myself();
    driver.started(worker, std::process::id(), false, handle.as_fd()).expect("its handle can be watched");
    let joining = std::thread::spawn(move || WorkerLink::connect_as(socket, handle.as_fd()));
    while !joining.is_finished() {
        driver.drain().expect("the system refuses nothing");
        std::thread::yield_now();
    }
    joining.join().expect("it does not panic").expect("the manager is of the same version")
}

/// A handle of this process. Valgrind may know of none: there, whoever started this left one as its input.
fn myself() -> OwnedFd {
    pidfd_open(getpid(), PidfdFlags::empty()).or_else(|_| dup(std::io::stdin())).expect("there are descriptors")
}

/// Submit and post: a run of items, as a map does, or one, as an apply does.
#[inline(never)]
fn client_submits(both: &mut Both, tokens: std::ops::Range<u64>) {
    let count = (tokens.end - tokens.start) as usize;
    let first = Submission {
        call: both.call,
        queue: QueueIndex(0),
        function: Arc::clone(&both.function),
        arguments: Payload::from_slice(ARGUMENTS),
        retries: 0,
        on_death: OnDeath::Again,
        judged: false,
        is_stream: false,
        attempt: 1,
        timeout: None,
        token: tokens.start,
    };
    if count == 1 {
        both.driver.submit(first).expect("the pool is open");
    } else {
        let arguments = std::iter::repeat_with(|| Payload::from_slice(ARGUMENTS)).take(count);
        both.driver.submit_run(first, arguments).expect("the pool is open");
    }
    both.driver.flush().expect("the system refuses nothing");
}

/// Claim and reply, until the board is empty.
#[inline(never)]
fn worker_turns(both: &mut Both) {
    both.worker.begin_turn().expect("the system refuses nothing");
    while both.worker.next_control(&mut both.item).expect("the manager is sound").is_some() {}
    while let Next::Start(job) = both.worker.next_item(&mut both.item).expect("the manager is sound") {
        both.worker.reply(job, Reply::Value(&both.item.arguments));
    }
    both.worker.end_turn(false).expect("the system refuses nothing");
}

/// Drain and deliver.
#[inline(never)]
fn client_drains(both: &mut Both) -> u64 {
    both.driver.drain().expect("the system refuses nothing");
    let mut ended = 0;
    while let Some(event) = both.driver.next_event() {
        match event {
            Event::Returned(values) => ended += values.iter().filter(|(.., value)| !value.is_empty()).count() as u64,
            wrong @ (Event::Deliver { .. } | Event::Garbage { .. } | Event::Closed) => panic!("{wrong:?}"),
            _news => (),
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_goes_through_both_ends_once() {
        for (items, window) in [(5000, WINDOW), (50, 1)] {
            let mut both = Both::new();
            assert_eq!(both.run(items, window), items);
            // Dropped, the driver would kill its worker: this process.
            std::mem::forget(both);
        }
    }
}
