//! The test worker: this program once more, as another process, with its socket and lifeline as input and output.
#![expect(clippy::unwrap_used, reason = "a worker of a test that fails shall say so and end")]

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use polyloop::{
    Control, Flow, Item, Job, Memory, Next, ParentDeathError, Reply, Rested, Stop, WorkerLink, die_with_parent,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::journal::Pen;
use super::work::{Work, content, read, token_of, value};

pub(crate) const ROLE: &str = "POLYLOOP_TEST_ROLE";
/// How a worker is tied to its parent, if not by all there is.
pub(crate) const TIE: &str = "POLYLOOP_TEST_TIE";
pub(crate) const PARENT: &str = "POLYLOOP_TEST_PARENT";

/// The socket that this process was started with.
pub(crate) fn socket() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}

/// Ties this process to the one that started it: by its lifeline, by the thread that started it, or by both.
pub(crate) fn tie_to_parent() {
    let lifeline = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let parent = std::env::var(PARENT).unwrap().parse().unwrap();
    let (lifeline, direct_child) = match std::env::var(TIE).as_deref() {
        Ok("lifeline") => (Some(lifeline), false),
        Ok("starter") => (None, true),
        _ => (Some(lifeline), true),
    };
    match die_with_parent(lifeline, parent, direct_child) {
        Err(ParentDeathError::Orphan(_)) => std::process::exit(1),
        other => other.unwrap(),
    }
}

/// The life of an ordinary worker.
pub(crate) fn serve() {
    tie_to_parent();
    let mut link = WorkerLink::connect(socket()).unwrap();
    link.ready().unwrap();
    Server { link, pen: Pen::from_env(), naps: Vec::new(), streams: Vec::new() }.run();
}

struct Running {
    due: Instant,
    job: Job,
    answer: Vec<u8>,
}

struct Stream {
    job: Job,
    token: u64,
    values: u64,
    given: u64,
    flow: Flow,
    answer: Vec<u8>,
}

struct Server {
    link: WorkerLink,
    pen: Pen,
    naps: Vec<Running>,
    streams: Vec<Stream>,
}

impl Server {
    fn run(mut self) {
        let mut item = Item::default();
        loop {
            self.link.begin_turn().unwrap();
            self.listen(&mut item);
            self.finish_naps();
            let deferred = self.take_items(&mut item);
            self.give();
            let rest = match self.link.end_turn(deferred.is_some()).unwrap() {
                Rested::Leave => return,
                Rested::Again => Some(Duration::ZERO),
                Rested::Asleep => None,
            };
            let nap = self.naps.iter().map(|nap| nap.due.saturating_duration_since(Instant::now())).min();
            wait(self.link.as_fd(), [rest, deferred, nap].into_iter().flatten().min());
        }
    }

    fn listen(&mut self, item: &mut Item) {
        while let Some(control) = self.link.next_control(item).unwrap() {
            match control {
                Control::Cancel(task) => self.cancel(|job| job.task == task),
                Control::Stop(Stop::Now) => self.cancel(|_| true),
                Control::Stop(Stop::WhenDone) | Control::Answer(..) => (),
                Control::Credit(task, values) => {
                    self.streams
                        .iter_mut()
                        .filter(|stream| stream.job.task == task)
                        .for_each(|it| it.flow.credit(values));
                }
                Control::Start(job, memory) => self.start(job, item, memory.as_deref()),
            }
        }
    }

    fn cancel(&mut self, which: impl Fn(Job) -> bool) {
        let (ended, running): (Vec<_>, _) = std::mem::take(&mut self.naps).into_iter().partition(|nap| which(nap.job));
        self.naps = running;
        let ended = ended.into_iter().map(|nap| nap.job);
        let left = self.streams.extract_if(.., |stream| which(stream.job)).map(|stream| stream.job);
        ended.chain(left).for_each(|job| self.link.reply(job, Reply::Cancelled));
    }

    fn take_items(&mut self, item: &mut Item) -> Option<Duration> {
        loop {
            match self.link.next_item(item).unwrap() {
                Next::Start(job) => self.start(job, item, None),
                Next::Defer(delay) => return Some(delay),
                Next::Nothing => return None,
            }
        }
    }

    fn start(&mut self, job: Job, item: &Item, memory: Option<&Memory>) {
        self.pen.started(token_of(&item.arguments));
        let Some(work) = Work::from_bytes(&item.function) else {
            return self.link.reply(job, Reply::Rejected(&item.function));
        };
        let answer = work.answer(&item.arguments);
        if let Some(nap) = work.nap() {
            return self.naps.push(Running { due: Instant::now() + nap, job, answer });
        }
        match work {
            Work::Block(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Work::Spin => loop {
                std::hint::spin_loop();
            },
            Work::Mirror(len) => {
                let received = read(memory.expect("it was sent with a block"), len);
                assert!(received == content(token_of(&item.arguments), len), "another's, or not whole");
                let lease = self.link.take_block(len).unwrap();
                lease.fill([(0, &received.iter().map(|byte| !byte).collect::<Vec<_>>()[..])]).unwrap();
                return self.link.reply_apart(job, &answer, lease).unwrap();
            }
            Work::Stream(values) => {
                let token = token_of(&item.arguments);
                return self.streams.push(Stream { job, token, values, given: 0, flow: Flow::default(), answer });
            }
            Work::Echo | Work::Big(_) | Work::Nap(_) => (),
        }
        self.link.reply(job, Reply::Value(&answer));
    }

    /// Gives what there is credit for, and ends the streams that have given all.
    fn give(&mut self) {
        for stream in &mut self.streams {
            while stream.given < stream.values && stream.flow.admits() {
                let value = value(stream.token, stream.given);
                stream.flow.give(value.len());
                stream.given += 1;
                self.link.give(stream.job, &value).unwrap();
            }
        }
        for over in self.streams.extract_if(.., |stream| stream.given == stream.values) {
            self.link.reply(over.job, Reply::Value(&over.answer));
        }
    }

    fn finish_naps(&mut self) {
        let now = Instant::now();
        let (over, running): (Vec<_>, _) = std::mem::take(&mut self.naps).into_iter().partition(|nap| nap.due <= now);
        self.naps = running;
        over.into_iter().for_each(|nap| self.link.reply(nap.job, Reply::Value(&nap.answer)));
    }
}

/// Waits until `fd` is readable, or so long. Says whether it is.
pub(crate) fn wait(fd: impl AsFd, timeout: Option<Duration>) -> bool {
    let timeout = timeout.map(|wait| Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos() as _ });
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, timeout.as_ref()), Ok(1))
}
