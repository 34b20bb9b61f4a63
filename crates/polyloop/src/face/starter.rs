//! The one thread that starts workers, for all pools of the process: the kernel kills a worker when the thread that
//! started it ends, so this one lasts.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use super::host::Orders;
use super::program::Program;
use crate::driver::StartOrder;
use crate::os;

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

/// Starts a worker of this program: with the working directory and the environment that it has now.
pub(crate) fn start(program: &Program, lifespan: u64, order: StartOrder) -> io::Result<Child> {
    let (ours, theirs) = os::socket_pair()?;
    let orders = Orders { fingerprint: program.fingerprint(), parent: std::process::id(), lifespan };
    os::send(ours.as_fd(), &orders.to_numbers(), &[order.socket.as_fd(), order.lifeline.as_fd()])?;
    program.command().stdin(Stdio::from(theirs)).spawn()
}
