//! The errors of a pool, named as in the Python face.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use polyloop_core::{Exit, Loss, StartError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(feature = "python")]
use super::python::PythonError;

/// Why a task has no result, or a pool could not be made.
///
/// What a task itself returns is not here: of a function that returns a `Result`, `pool.apply(..).await??` gives the
/// pool's error first, and then the task's own.
///
/// ```
/// use polyloop::Error;
///
/// fn is_worth_another_try(error: &Error) -> bool {
///     matches!(error, Error::WorkerDied(_) | Error::TaskTimeout { .. })
/// }
/// # assert!(!is_worth_another_try(&Error::PoolClosed));
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Work was given to a pool that accepts no more.
    #[error("the pool is closed")]
    PoolClosed,
    /// The pool was terminated, or dropped, while the task was queued or running.
    #[error("the pool was terminated before the task had ended")]
    PoolTerminated,
    /// One run of the task took longer than its timeout.
    #[error("{task} ran longer than {timeout:?}")]
    TaskTimeout {
        /// The function's name.
        task: Cow<'static, str>,
        /// How long a run might take.
        timeout: Duration,
    },
    /// The task was aborted.
    #[error("the task was aborted")]
    TaskAborted,
    /// The task panicked. Its worker lives on.
    #[error(transparent)]
    TaskPanicked(TaskPanicked),
    /// The Python function raised an exception. Its worker lives on.
    #[cfg(feature = "python")]
    #[error(transparent)]
    Python(PythonError),
    /// The worker process that ran the task ended before the task did.
    #[error("{0}")]
    WorkerDied(WorkerDied),
    /// The task killed its worker each time it ran alone, and is not tried again.
    #[error("{0}: it does so whenever it runs alone, and is not tried again")]
    PoisonTask(WorkerDied),
    /// Workers could not be started.
    #[error("workers can't be started: {0}")]
    WorkerStart(String),
    /// The arguments could not be written. Nothing was queued.
    #[error("{0}")]
    Unsendable(RemoteError),
    /// The result could not travel between processes.
    #[error("{0}")]
    Remote(RemoteError),
    /// This program has not called [`init`](crate::init), so it could not become a worker.
    #[error(
        "this program can't be its own worker: call polyloop::init() first in its main function, or write \
         #[polyloop::main], or polyloop::init_before_main!() where the main function is not yours, as in tests"
    )]
    NotInitialised,
    /// The function is not in the program's own file but in a library that it loads, where workers may not find it.
    #[error("{0} is in a shared library; a pool runs what is linked into the program itself")]
    NotInProgram(Cow<'static, str>),
    /// The pool's shape is impossible, or more than this process's limits allow.
    #[error("{0}")]
    Config(&'static str),
    /// The operating system refused.
    #[error("the operating system refused: {0}")]
    Os(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn lost(loss: Loss, task: Cow<'static, str>) -> Self {
        let died = WorkerDied { pid: loss.pid, exit: loss.exit, task, attempt: loss.attempt };
        if loss.poison { Self::PoisonTask(died) } else { Self::WorkerDied(died) }
    }

    pub(crate) fn no_workers(error: &StartError) -> Self {
        Self::WorkerStart(match error {
            StartError::Raised(message) => String::from_utf8_lossy(message).into_owned(),
            StartError::Exited(exit) => format!("they end before they are ready ({exit})"),
            StartError::Refused(reason) => reason.to_string(),
        })
    }
}

/// The end of the worker process that ran a task.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use polyloop::{Error, Exit, Pool};
///
/// let pool = Pool::builder().processes(1).build().await?;
/// let crashed = pool.apply(|| -> () { std::process::abort() }, ()).await;
/// let Err(Error::WorkerDied(death)) = crashed else { panic!() };
/// assert_eq!(death.exit, Exit::Signal(6));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerDied {
    /// The process, where it was known.
    pub pid: Option<u32>,
    /// How it ended.
    pub exit: Exit,
    /// The name of the function that it ran.
    pub task: Cow<'static, str>,
    /// Which run of the task this was, from 1.
    pub attempt: u32,
}

impl WorkerDied {
    /// What probably happened, in a few words, where the signal tells.
    ///
    /// ```
    /// # fn explain(death: polyloop::WorkerDied) {
    /// eprintln!("{death} ({})", death.hint().unwrap_or("nobody knows why"));
    /// # }
    /// ```
    pub fn hint(&self) -> Option<&'static str> {
        match self.exit {
            Exit::OutOfMemory => Some("the kernel killed it: its memory limit was reached"),
            Exit::Signal(libc::SIGKILL) => Some("another process killed it, or the kernel did"),
            Exit::Signal(libc::SIGSEGV | libc::SIGFPE) => Some("native code crashed"),
            Exit::Signal(libc::SIGBUS) => Some("native code crashed or a file it had mapped was cut short"),
            Exit::Signal(libc::SIGILL) => Some("native code was built for another CPU"),
            Exit::Signal(libc::SIGABRT) => Some("native code gave up"),
            Exit::Signal(libc::SIGXCPU) => Some("it used up its CPU time limit"),
            Exit::Signal(libc::SIGXFSZ) => Some("it hit the file size limit"),
            _ => None,
        }
    }
}

impl fmt::Display for WorkerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, exit, task, attempt } = self;
        match pid {
            Some(pid) => write!(f, "worker {pid} died ({exit}) while it ran {task} (attempt {attempt})")?,
            None => write!(f, "a worker died ({exit}) while it ran {task} (attempt {attempt})")?,
        }
        self.hint().map_or(Ok(()), |hint| write!(f, ": {hint}"))
    }
}

/// A panic of a task.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use polyloop::{Error, Pool};
///
/// let pool = Pool::builder().processes(1).build().await?;
/// let Err(Error::TaskPanicked(panic)) = pool.apply(|| -> u32 { panic!("no luck") }, ()).await else { panic!() };
/// assert_eq!(panic.message, "no luck");
/// assert!(panic.location.contains(":"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Error, Serialize, Deserialize)]
#[error("the task panicked at {location}: {message}")]
#[non_exhaustive]
pub struct TaskPanicked {
    /// What the panic said.
    pub message: String,
    /// File, line and column.
    pub location: String,
    /// The worker's stack at that moment.
    pub backtrace: String,
}

impl TaskPanicked {
    pub(crate) fn new(message: String, location: String, backtrace: String) -> Self {
        Self { message, location, backtrace }
    }
}

/// An error that can travel: for functions whose own errors can't, as most don't implement serde's traits. `?` makes one
/// of any error; it keeps the messages of its sources.
///
/// It is no `std::error::Error` itself, for the sake of that `?`. It turns into a `Box<dyn Error>`, and with the feature
/// `anyhow` into an `anyhow::Error`.
///
/// ```
/// use polyloop::RemoteError;
///
/// async fn length(path: String) -> Result<usize, RemoteError> {
///     Ok(std::fs::read_to_string(path)?.len())
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemoteError {
    /// The full name of the error's type.
    pub type_name: String,
    /// What it says.
    pub message: String,
    /// What its sources say, the nearest first.
    pub sources: Vec<String>,
}

impl RemoteError {
    /// An error that says this.
    ///
    /// ```
    /// use polyloop::RemoteError;
    ///
    /// fn half(n: u32) -> Result<u32, RemoteError> {
    ///     if n % 2 == 0 { Ok(n / 2) } else { Err(RemoteError::new("an odd number")) }
    /// }
    /// assert_eq!(half(3).unwrap_err().to_string(), "an odd number");
    /// ```
    pub fn new(message: impl fmt::Display) -> Self {
        Self { type_name: String::new(), message: message.to_string(), sources: Vec::new() }
    }

    pub(crate) fn unsendable<T: ?Sized>(what: &str, error: &dyn fmt::Display) -> Self {
        let type_name = std::any::type_name::<T>().to_owned();
        let message = format!("a value of {type_name} could not be {what}: {error}");
        Self { type_name, message, sources: Vec::new() }
    }
}

impl<E: std::error::Error> From<E> for RemoteError {
    fn from(error: E) -> Self {
        let mut sources = Vec::new();
        let mut source = error.source();
        while let Some(error) = source {
            sources.push(error.to_string());
            source = error.source();
        }
        Self { type_name: std::any::type_name::<E>().to_owned(), message: error.to_string(), sources }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.sources.iter().try_for_each(|source| write!(f, ": {source}"))
    }
}

impl fmt::Debug for RemoteError {
    /// As `main` shows an error that it returns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.type_name.is_empty() {
            write!(f, "{}: ", self.type_name)?;
        }
        write!(f, "{self}")
    }
}

/// A [`RemoteError`] as an error of the standard kind.
#[derive(Debug, Error)]
#[error("{0}")]
struct Standard(RemoteError);

impl From<RemoteError> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: RemoteError) -> Self {
        Box::new(Standard(error))
    }
}

impl From<RemoteError> for Box<dyn std::error::Error> {
    fn from(error: RemoteError) -> Self {
        Box::new(Standard(error))
    }
}

#[cfg(feature = "anyhow")]
impl From<RemoteError> for anyhow::Error {
    fn from(error: RemoteError) -> Self {
        Self::new(Standard(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_one_that_travels_with_what_its_sources_say() {
        let source = "x".parse::<u8>().unwrap_err();
        let error = RemoteError::from(std::io::Error::other(Standard(RemoteError::from(source))));
        assert!(error.type_name.ends_with("io::error::Error"), "{}", error.type_name);
        assert_eq!(error.to_string(), "invalid digit found in string");
        let error: Box<dyn std::error::Error> = error.into();
        assert_eq!(error.to_string(), "invalid digit found in string");
    }
}
