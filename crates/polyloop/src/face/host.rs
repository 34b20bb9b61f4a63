//! A worker process: from its first instruction in `init` to its last. What it runs, and when, is for its turns.

mod panics;
mod running;
mod streams;
mod turns;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use polyloop_core::HOPELESS_EXIT;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use self::turns::{Ending, Host};
use super::function::{Entry, LifespanRole, Role, State};
use super::program::Program;
use crate::process::die_with_parent;
use crate::worker::WorkerLink;
use crate::{os, signals};

/// What a worker exits with that can't go on. Its pool learns no more of it than that.
const BROKEN_EXITCODE: i32 = 70;

/// What a worker is told when it is started, through its standard input: these numbers, its socket and its lifeline.
pub(crate) struct Orders {
    /// Of the program that the pool runs in.
    pub(crate) fingerprint: u64,
    /// The pool's process.
    pub(crate) parent: u32,
    /// The name of the lifespan's entry; 0 for none.
    pub(crate) lifespan: u64,
}

impl Orders {
    pub(crate) fn to_numbers(&self) -> [u64; 3] {
        [self.fingerprint, self.parent.into(), self.lifespan]
    }

    fn from_numbers(numbers: &[u64]) -> Option<Self> {
        let &[fingerprint, parent, lifespan] = numbers else { return None };
        Some(Self { fingerprint, parent: u32::try_from(parent).ok()?, lifespan })
    }
}

static STATE: OnceLock<State> = OnceLock::new();

/// What this worker's [lifespan](crate::Builder::lifespan) made; `None` in a process that is no worker, in one that has no
/// lifespan, and for another type than it made.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use polyloop::{Pool, RemoteError, worker_state};
///
/// struct Model(u64);
///
/// async fn load() -> Result<Model, RemoteError> {
///     Ok(Model(40)) // A connection, a model, ...: once in each worker.
/// }
///
/// fn infer(n: u64) -> u64 {
///     worker_state::<Model>().unwrap().0 + n
/// }
///
/// let pool = Pool::builder().processes(1).lifespan(load, async |_| ()).build().await?;
/// assert_eq!(pool.apply(infer, (2,)).await?, 42);
/// # Ok(())
/// # }
/// ```
pub fn worker_state<S: Send + Sync + 'static>() -> Option<Arc<S>> {
    Arc::clone(STATE.get()?).downcast().ok()
}

/// The life of a worker.
pub(crate) fn serve(program: Result<&'static Program, &io::Error>) -> ! {
    let started = program.map_err(|error| Unfit(error.to_string())).and_then(start);
    match started {
        Ok((runtime, host, lifespan)) => run(&runtime, host, lifespan),
        Err(Unfit(reason)) => {
            eprintln!("polyloop: this process can't be a worker: {reason}");
            exit(HOPELESS_EXIT)
        }
    }
}

/// Why this program can't be a worker, whatever is tried.
struct Unfit(String);

impl<E: std::error::Error> From<E> for Unfit {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

fn start(program: &'static Program) -> Result<(Runtime, Host, Option<LifespanRole>), Unfit> {
    let socket = take_stdin()?;
    let (numbers, fds) = os::receive(socket.as_fd())?.ok_or_else(|| Unfit("no pool has started it".to_owned()))?;
    let orders = Orders::from_numbers(&numbers).filter(|orders| orders.fingerprint == program.fingerprint());
    let orders = orders.ok_or_else(|| Unfit("its pool belongs to another build of the program".to_owned()))?;
    let no_fds = |_| Unfit("its pool speaks another version of polyloop".to_owned());
    let [socket, lifeline] = <[OwnedFd; 2]>::try_from(fds).map_err(no_fds)?;
    if die_with_parent(Some(lifeline), orders.parent, true).is_err() {
        // Gone before this process had begun: there is nobody to tell.
        exit(1);
    }
    name_this_process();
    let lifespan = match program.entry(orders.lifespan).map(|entry: &Entry| entry.role) {
        Some(Role::Lifespan(lifespan)) => Some(lifespan),
        _ if orders.lifespan == 0 => None,
        Some(Role::Task(_) | Role::Stream(_)) | None => {
            return Err(Unfit("its lifespan is not in this program".to_owned()));
        }
    };
    let link = match WorkerLink::connect(socket) {
        Ok(link) => link,
        Err(crate::ConnectError::Gone) => exit(1),
        Err(error) => return Err(error.into()),
    };
    signals::attend(link.as_fd().try_clone_to_owned()?, link.grace())?;
    panics::attend();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok((runtime, Host::new(program, Arc::new(Mutex::new(link))), lifespan))
}

/// The socket that this process has for its standard input, which is empty from then on.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let empty = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(empty)?;
    Ok(socket)
}

/// A process that was started from a descriptor is named after its number.
fn name_this_process() {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or_default();
    if let Ok(name) = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name)) {
        // Another name is no reason to fail.
        let _ = rustix::thread::set_name(&name);
    }
}

fn run(runtime: &Runtime, host: Host, lifespan: Option<LifespanRole>) -> ! {
    let link = host.link();
    let local = LocalSet::new();
    let ending = local.block_on(runtime, async {
        if let Some(lifespan) = lifespan {
            match panics::caught((lifespan.enter)()).await {
                Ok(Ok(state)) => drop(STATE.set(state)),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(panic) => return Err(panic.to_string()),
            }
        }
        let ending = host.work().await;
        if let (Some(lifespan), Some(state)) = (lifespan, STATE.get())
            && let Err(panic) = panics::caught((lifespan.exit)(Arc::clone(state))).await
        {
            eprintln!("polyloop: the exit of a worker's lifespan: {panic}");
        }
        Ok(ending)
    });
    match ending {
        Ok(Ending::Done) => exit(0),
        Ok(Ending::Terminated) => signals::end_by_terminate(),
        Ok(Ending::Broken(error)) => {
            eprintln!("polyloop: worker {} lost its pool: {error}", std::process::id());
            exit(BROKEN_EXITCODE)
        }
        Err(reason) => {
            // A pool that can't be told is gone, and ends this process.
            let _ = link.lock().unwrap_or_else(PoisonError::into_inner).failed(reason.as_bytes());
            exit(1)
        }
    }
}
