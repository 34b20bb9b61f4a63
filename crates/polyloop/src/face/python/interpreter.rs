//! Python interpreters as workers: how one is run, and what it is told.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use polyloop_core::HOPELESS_EXIT;
use serde::Serialize;

use super::message::write_orders;
use super::stacks::Stacks;
use crate::driver::{PROTOCOL, StartOrder};
use crate::face::log::Listener;
use crate::face::starter::{Recruit, Recruiter};
use crate::{os, signals};

/// What the interpreter runs: it looks for the package, and leaves the rest to that.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// The package must be of the same version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Workers that are interpreters of this kind.
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    pub(super) orders: Orders,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) current_dir: Option<PathBuf>,
    pub(super) forward_logs: bool,
    pub(super) stacks: Stacks,
}

/// What a worker is told, as `polyloop._rust_worker` reads it.
#[derive(Clone, Serialize)]
pub(super) struct Orders {
    pub(super) parent: u32,
    pub(super) module_path: Vec<String>,
    pub(super) preload: Vec<String>,
    pub(super) initializer: Option<String>,
    pub(super) lifespan: Option<String>,
    pub(super) loop_initializer: Option<String>,
    pub(super) concurrency: u32,
    pub(super) grace_s: f64,
    /// The least level of records that it sends, as Python counts; `None` if it sends none. For each worker anew.
    pub(super) log_level: Option<i64>,
}

impl Recruiter for Interpreter {
    /// With the working directory and the environment that this process has now, as far as nothing else was said.
    fn start(&self, order: StartOrder, listener: &Listener) -> io::Result<Recruit> {
        let (ours, theirs) = os::socket_pair()?;
        let (mut orders, log_level) = (Vec::new(), self.log_level(listener));
        write_orders(&Orders { log_level, ..self.orders.clone() }, &mut orders).map_err(io::Error::other)?;
        let fds = [order.socket.as_fd(), order.lifeline.as_fd(), self.stacks.as_fd()];
        os::send_bytes(ours.as_fd(), &orders, &fds)?;
        let mut command = Command::new(&self.path);
        command.args(["-c", BOOTSTRAP, VERSION, &PROTOCOL.to_string(), &HOPELESS_EXIT.to_string()]);
        command.envs(self.env.iter().map(|(name, value)| (name, value))).stdin(Stdio::from(theirs));
        if let Some(directory) = &self.current_dir {
            command.current_dir(directory);
        }
        // Ctrl-C is this process's business, also while an interpreter starts.
        let child = signals::without_interrupt(|| command.spawn()).map_err(|error| self.explain(&error))?;
        Ok(Recruit { child, socket: Some(ours) })
    }

    #[cfg(feature = "tracing")]
    fn log(&self, listener: &Listener, pid: Option<u32>, dropped: u64, record: &[u8]) {
        super::record::tell(listener, pid, dropped, record);
    }

    /// As soon as it is known where.
    fn blocked(&self, listener: &Listener, pid: Option<u32>, blocked: Duration) {
        let Some(number) = pid else { return listener.blocked(pid, blocked, None) };
        let listener = listener.clone();
        self.stacks.ask(number, Box::new(move |stack| listener.blocked(pid, blocked, stack)));
    }
}

impl Interpreter {
    #[cfg(feature = "tracing")]
    fn log_level(&self, listener: &Listener) -> Option<i64> {
        if self.forward_logs { super::record::least_level(listener) } else { None }
    }

    /// Nobody hears of what workers log, whether it is to be forwarded or not.
    #[cfg(not(feature = "tracing"))]
    fn log_level(&self, _: &Listener) -> Option<i64> {
        let _ = self.forward_logs;
        None
    }

    fn explain(&self, error: &io::Error) -> io::Error {
        let (path, directory) = (self.path.display(), self.current_dir.as_deref().filter(|path| !path.is_dir()));
        let message = match directory {
            Some(directory) => format!("{} is no directory to run {path} in: {error}", directory.display()),
            None => format!(
                "{path} can't be run: {error}. Name a Python interpreter, or the virtual environment, where polyloop is \
                 installed (`pip install polyloop=={VERSION}`)"
            ),
        };
        io::Error::new(error.kind(), message)
    }
}
