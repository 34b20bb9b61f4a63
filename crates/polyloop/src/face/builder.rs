//! The shape of a pool, and its start.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::error::{Error, RemoteError};
use super::function::Entry;
use super::manager::Owner;
use super::pool::Pool;
use super::program::program;
use super::retry::RetryOn;
use super::shape::Shape;
use super::starter::SameProgram;

/// The shape of a [`Pool`] to be.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use std::time::Duration;
/// use polyloop::Pool;
///
/// let pool = Pool::builder()
///     .processes(2)
///     .concurrency(64)
///     .timeout(Duration::from_secs(30))
///     .retries(1)
///     .max_tasks(10_000)
///     .max_memory(512 << 20)
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "`build` makes the pool"]
pub struct Builder {
    shape: Shape,
    lifespan: Option<&'static Entry>,
}

impl Builder {
    /// Worker processes, at least 1; where nobody says otherwise, as many as the CPUs that this process may use.
    ///
    /// ```
    /// let two = polyloop::Pool::builder().processes(2);
    /// ```
    pub fn processes(mut self, processes: usize) -> Self {
        self.shape.processes = Some(processes);
        self
    }

    /// Tasks that a worker runs at the same time, at least 1; 16 where nobody says otherwise.
    ///
    /// ```
    /// let one_after_the_other = polyloop::Pool::builder().concurrency(1);
    /// ```
    pub fn concurrency(mut self, tasks: u32) -> Self {
        self.shape.concurrency = tasks;
        self
    }

    /// How many times a task whose worker dies is run again, as by [`Pool::retries`]; never, where nobody says otherwise.
    ///
    /// ```
    /// let stubborn = polyloop::Pool::builder().retries(2);
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        self.shape.options.retries = retries;
        self
    }

    /// For which errors a task is run again, as by [`Pool::retry_on`]; for the death of its worker, where nobody says
    /// otherwise.
    ///
    /// ```
    /// use polyloop::{Error, Pool};
    ///
    /// let patient = Pool::builder().retries(2).retry_on(|error| matches!(error, Error::TaskTimeout { .. }));
    /// ```
    pub fn retry_on(mut self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.shape.options.retry_on = Some(RetryOn::new(is_reason));
        self
    }

    /// How long one run of a task may take, as by [`Pool::timeout`]; for ever, where nobody says otherwise.
    ///
    /// ```
    /// let strict = polyloop::Pool::builder().timeout(std::time::Duration::from_secs(1));
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.shape.options.timeout = Some(timeout);
        self
    }

    /// How long whoever is asked to end, a task or a worker, may take before it is ended; 5 s where nobody says otherwise.
    ///
    /// ```
    /// let impatient = polyloop::Pool::builder().grace(std::time::Duration::from_millis(500));
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.shape.grace = grace;
        self
    }

    /// Tasks that a worker runs before another takes its place, exactly; no limit where nobody says otherwise.
    ///
    /// ```
    /// let fresh_for_each = polyloop::Pool::builder().max_tasks(1).concurrency(1);
    /// ```
    pub fn max_tasks(mut self, tasks: u64) -> Self {
        self.shape.max_tasks = tasks;
        self
    }

    /// Bytes of memory of its own, not shared pages, that a worker may hold. One found to hold more, after a task, at most
    /// every 100 ms, finishes what it runs, and another takes its place.
    ///
    /// ```
    /// let for_leaky_libraries = polyloop::Pool::builder().max_memory(1 << 30);
    /// ```
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.shape.max_memory = bytes;
        self
    }

    /// How old a worker may become before another takes its place, or up to a tenth less.
    ///
    /// ```
    /// let renewed = polyloop::Pool::builder().max_age(std::time::Duration::from_secs(3600));
    /// ```
    pub fn max_age(mut self, age: Duration) -> Self {
        self.shape.max_age = Some(age);
        self
    }

    /// How long the loop of a worker may be blocked by one call before an event of level WARN says so, once, with the
    /// feature `tracing`; never for `None` and for zero; after 1 s where nobody says otherwise. A plain function that is not
    /// run [`in_thread`](Pool::in_thread) blocks the loop while it runs.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let strict = polyloop::Pool::builder().block_warning(Duration::from_millis(100));
    /// let calm = polyloop::Pool::builder().block_warning(None);
    /// ```
    pub fn block_warning(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.shape.block_warning = limit.into();
        self
    }

    /// What a worker does once at its start, before its first task, and once at its end, unless it is killed: both are
    /// async functions, or closures that capture nothing. Tasks reach what `enter` made by
    /// [`worker_state`](crate::worker_state). If `enter` fails before any worker has been ready, the pool does.
    ///
    /// ```
    /// # async fn example() -> Result<polyloop::Pool, polyloop::Error> {
    /// use std::sync::Arc;
    /// use polyloop::{Pool, RemoteError};
    ///
    /// struct Client(std::net::TcpStream);
    ///
    /// async fn connect() -> Result<Client, RemoteError> {
    ///     Ok(Client(std::net::TcpStream::connect("localhost:80")?))
    /// }
    ///
    /// async fn disconnect(client: Arc<Client>) {
    ///     let _ = client.0.shutdown(std::net::Shutdown::Both);
    /// }
    ///
    /// Pool::builder().lifespan(connect, disconnect).build().await
    /// # }
    /// ```
    pub fn lifespan<Enter, Entering, Exit, Exiting, S>(mut self, enter: Enter, exit: Exit) -> Self
    where
        Enter: Fn() -> Entering + Copy + Send + Sync + 'static,
        Entering: Future<Output = Result<S, RemoteError>> + 'static,
        Exit: Fn(Arc<S>) -> Exiting + Copy + Send + Sync + 'static,
        Exiting: Future<Output = ()> + 'static,
        S: Send + Sync + 'static,
    {
        self.lifespan = Some(Entry::of_lifespan(enter, exit));
        self
    }

    /// Starts the workers, and waits until one is ready.
    ///
    /// # Errors
    /// [`Error::NotInitialised`] where [`init`](crate::init) has not been called; [`Error::Config`] for an impossible
    /// shape, and for one that takes more file descriptors than this process may have; [`Error::WorkerStart`] where workers
    /// do not start; [`Error::Os`] when the operating system refuses.
    ///
    /// # Panics
    /// On a runtime whose I/O driver is not enabled.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()) }
    /// # async fn run() {
    /// use polyloop::{Error, Pool, RemoteError};
    ///
    /// async fn fail() -> Result<(), RemoteError> {
    ///     Err(RemoteError::new("no luck"))
    /// }
    /// let failed = Pool::builder().lifespan(fail, async |_| ()).build().await.err();
    /// assert!(matches!(&failed, Some(Error::WorkerStart(reason)) if reason == "no luck"), "{failed:?}");
    /// # }
    /// ```
    pub async fn build(self) -> Result<Pool, Error> {
        let program = match program() {
            None => return Err(Error::NotInitialised),
            Some(Ok(program)) => program,
            Some(Err(error)) => return Err(Error::Os(std::io::Error::new(error.kind(), error.to_string()))),
        };
        let lifespan = match self.lifespan {
            None => 0,
            Some(entry) => program.name(entry).ok_or(Error::NotInProgram("the lifespan".into()))?,
        };
        let config = self.shape.config(self.lifespan.is_none())?;
        let owner = Owner::start(config, Arc::new(SameProgram { program, lifespan })).await?;
        Ok(Pool::new(owner, program, self.shape.options))
    }
}
