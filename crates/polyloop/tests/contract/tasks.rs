//! What the tests of the contract have workers do. `tasks/tasks.py` does the same in Python.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use polyloop::{RemoteError, worker_state};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::rig::LOOK;
use crate::rig::marks::{MarkOnDrop, count, mark};
use crate::rig::process::send_signal;

/// A file that is there where workers can't start; it says how they fail.
pub(crate) const FAULT: &str = "POLYLOOP_TEST_FAULT";

/// What a task does. It gives a number, 0 where nothing else is said. What can be done only on a loop is for async
/// functions; any else is done by plain ones, if no [`Task::Later`] has an async one do it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Gives the number of its process.
    Pid,
    /// Gives this number.
    Give(u64),
    /// Leaves a mark.
    Mark(PathBuf),
    /// Panics, or raises an exception, that says this.
    Fail(String),
    /// Fails on the first so-many of its starts, each of which leaves a mark. Gives the number of this one.
    FailFirst { times: u64, starts: PathBuf },
    /// Ends its process with this exit code.
    Exit(i32),
    /// Kills its worker on the first so-many of its starts, each of which leaves a mark. Gives the number of this one.
    DieFirst { times: u64, starts: PathBuf },
    /// Holds so many bytes of memory for as long as its process lives.
    Hold(usize),
    /// Has blocks refused from now on: they are files in memory.
    AllowNoFiles,
    /// Leaves a mark, and keeps its thread until there is another.
    Block { begun: PathBuf, until: PathBuf },
    /// Has the lifespan of its worker leave a mark at its end.
    MarkAtExit(PathBuf),

    /// Does something after its loop has turned.
    Later(Box<Task>),
    /// Leaves a mark, and waits on its loop until another was left so many times.
    Await { begun: PathBuf, until: PathBuf, times: usize },
    /// Leaves a mark, waits for ever, and leaves another when it has to end.
    WaitForEver { begun: PathBuf, ended: PathBuf },
    /// Waits for ever on the first of its starts, each of which leaves a mark. Gives the number of this one.
    WaitFirst { starts: PathBuf },
    /// Leaves a mark, and does not end when it has to.
    Cling { begun: PathBuf },
}

/// What kind of function does it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Plain,
    Async,
}

impl Task {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Later(_)
            | Self::Await { .. }
            | Self::WaitForEver { .. }
            | Self::WaitFirst { .. }
            | Self::Cling { .. } => Kind::Async,
            _ => Kind::Plain,
        }
    }
}

pub(crate) fn perform(task: Task) -> u64 {
    match task {
        Task::Pid => return std::process::id().into(),
        Task::Give(number) => return number,
        Task::Mark(path) => mark(&path),
        Task::Fail(text) => panic!("{text}"),
        Task::FailFirst { times, starts } => {
            mark(&starts);
            let start = count(&starts) as u64;
            assert!(start > times, "too early");
            return start;
        }
        Task::Exit(code) => std::process::exit(code),
        Task::DieFirst { times, starts } => {
            mark(&starts);
            let start = count(&starts) as u64;
            if start <= times {
                send_signal(std::process::id(), Signal::KILL);
            }
            return start;
        }
        Task::Hold(bytes) => std::mem::forget(vec![1u8; bytes]),
        Task::AllowNoFiles => {
            let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Fsize) };
            setrlimit(Resource::Fsize, limit).unwrap();
        }
        Task::Block { begun, until } => {
            mark(&begun);
            while count(&until) == 0 {
                std::thread::sleep(LOOK);
            }
        }
        Task::MarkAtExit(path) => worker_state::<State>().unwrap().lock().unwrap().push(path),
        _ => unreachable!("it is for an async function"),
    }
    0
}

pub(crate) async fn perform_async(task: Task) -> u64 {
    match task {
        Task::Later(task) => {
            tokio::task::yield_now().await;
            return Box::pin(perform_async(*task)).await;
        }
        Task::Await { begun, until, times } => {
            mark(&begun);
            while count(&until) < times {
                tokio::time::sleep(LOOK).await;
            }
        }
        Task::WaitForEver { begun, ended } => {
            let _ended = MarkOnDrop(ended);
            mark(&begun);
            std::future::pending().await
        }
        Task::WaitFirst { starts } => {
            mark(&starts);
            let start = count(&starts) as u64;
            if start == 1 {
                std::future::pending().await
            }
            return start;
        }
        Task::Cling { begun } => {
            let _clinging = Clinging;
            mark(&begun);
            std::future::pending().await
        }
        task => return perform(task),
    }
    0
}

/// What can be dropped, but does not end.
struct Clinging;

impl Drop for Clinging {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

pub(crate) fn subtract(a: i64, b: i64) -> i64 {
    a - b
}

/// What travels there and back.
pub(crate) trait Value: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Value for T {}

pub(crate) fn echo<T: Value>(value: T) -> T {
    value
}

/// The marks that a worker leaves at its end.
type State = Mutex<Vec<PathBuf>>;

pub(crate) async fn enter() -> Result<State, RemoteError> {
    let fault = std::env::var_os(FAULT).and_then(|path| std::fs::read_to_string(path).ok());
    match fault.as_deref() {
        None => Ok(State::default()),
        Some("exit") => std::process::exit(3),
        Some(fault) => Err(RemoteError::new(fault)),
    }
}

pub(crate) async fn leave(state: Arc<State>) {
    state.lock().unwrap().iter().for_each(|path| mark(path));
}
