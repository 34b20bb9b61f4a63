//! The one thread that starts workers, for all pools of the process: the kernel kills a worker when the thread that
//! started it ends, so this one lasts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::io::Errno;

use super::host::Orders;
use super::log::Listener;
use super::program::Program;
use crate::driver::StartOrder;
use crate::{os, signals};

/// Bytes of a refusal at most.
const REFUSAL_MAX: usize = 4096;

type Job = Box<dyn FnOnce() + Send>;

/// Has a job done on the starter thread, after those before it.
pub(crate) fn submit(job: Job) {
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        let work = move || jobs.into_iter().for_each(|job| job());
        // Without it no worker starts, and with it no other thread has to be counted on.
        let thread = std::thread::Builder::new().name("polyloop-starter".into()).spawn(work);
        drop(thread.expect("the system has a thread for the starter"));
        sender
    });
    // It ends with the process.
    let _ = starter.send(job);
}

/// Knows how a worker of a pool is started, and what one that is not this program has to tell.
pub(crate) trait Recruiter: Send + Sync {
    /// Starts one, on the starter thread, in a pool of which this listener hears.
    fn start(&self, order: StartOrder, listener: &Listener) -> io::Result<Recruit>;

    /// Tells what a worker has logged, and how many records of its log were dropped before.
    fn log(&self, _listener: &Listener, _pid: Option<u32>, _dropped: u64, _record: &[u8]) {
        // Those that are this program log by themselves.
    }

    /// Tells that the loop of a worker is blocked, for how long so far.
    fn blocked(&self, listener: &Listener, pid: Option<u32>, blocked: Duration) {
        listener.blocked(pid, blocked, None);
    }
}

/// A process that is to be a worker.
pub(crate) struct Recruit {
    pub(crate) child: Child,
    /// Where it says why it can't be a worker, if it does.
    pub(crate) socket: Option<OwnedFd>,
}

/// Why a process could not be a worker, as it has said before it ended.
pub(crate) fn refusal(socket: &OwnedFd) -> Option<String> {
    let mut words = [0; REFUSAL_MAX];
    let read = match rustix::io::read(socket, &mut words) {
        // Of one that has not taken its orders a reset is reported first.
        Err(Errno::CONNRESET) => rustix::io::read(socket, &mut words),
        read => read,
    };
    let len = read.ok().filter(|len| *len > 0)?;
    Some(String::from_utf8_lossy(&words[..len]).into_owned())
}

/// Workers that are this program.
pub(crate) struct SameProgram {
    pub(crate) program: &'static Program,
    /// The name of the lifespan's entry; 0 for none.
    pub(crate) lifespan: u64,
}

impl Recruiter for SameProgram {
    /// With the working directory and the environment that this process has now.
    fn start(&self, order: StartOrder, _: &Listener) -> io::Result<Recruit> {
        let (ours, theirs) = os::socket_pair()?;
        let Self { program, lifespan } = *self;
        let orders = Orders { fingerprint: program.fingerprint(), parent: std::process::id(), lifespan };
        os::send(ours.as_fd(), &orders.to_numbers(), &[order.socket.as_fd(), order.lifeline.as_fd()])?;
        let mut command = program.command();
        command.stdin(Stdio::from(theirs));
        // Ctrl-C is this process's business, also while a worker starts.
        let child = signals::without_interrupt(|| command.spawn())?;
        Ok(Recruit { child, socket: None })
    }
}
