//! Python interpreters as workers: how one is run, and what it is told.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use polyloop_core::HOPELESS_EXIT;

use crate::driver::{PROTOCOL, StartOrder};
use crate::face::starter::{Recruit, Recruiter};
use crate::{os, signals};

/// What the interpreter runs: it looks for the package, and leaves the rest to that.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// The package must be of the same version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Workers that are interpreters of this kind.
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    /// For the package, as its `_rust_worker` reads them.
    pub(super) orders: Vec<u8>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) current_dir: Option<PathBuf>,
}

impl Recruiter for Interpreter {
    /// With the working directory and the environment that this process has now, as far as nothing else was said.
    fn start(&self, order: StartOrder) -> io::Result<Recruit> {
        let (ours, theirs) = os::socket_pair()?;
        os::send_bytes(ours.as_fd(), &self.orders, &[order.socket.as_fd(), order.lifeline.as_fd()])?;
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
}

impl Interpreter {
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
