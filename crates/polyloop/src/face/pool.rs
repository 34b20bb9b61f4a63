//! `Pool`: the verbs, and nothing that they decide.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::builder::Builder;
use super::call::{Apply, TaskHandle, Terms};
use super::codec::{self, Failure};
use super::error::Error;
use super::function::{Entry, Function};
use super::manager::{Manager, Options, Owner};
use super::map::Map;
use super::program::Program;
use super::reference::Reference;
use super::retry::RetryOn;
use super::stats::{Stats, stats};
use super::stream::TaskStream;
use super::stream_function::StreamFunction;

/// Runs functions on worker processes, each with a tokio runtime of its own.
///
/// A handle: clones are the same pool, and so are those with other options that [`Self::timeout`] and its kin give. When the
/// last one goes, the pool is terminated: what is pending ends with [`Error::PoolTerminated`], and no process is left.
/// [`Self::close`] lets it finish.
///
/// It is driven by a task on the runtime it was built on, whichever uses it, and ends with that.
///
/// ```
/// use polyloop::{Pool, RemoteError};
///
/// async fn word_count(path: String) -> Result<usize, RemoteError> {
///     Ok(std::fs::read_to_string(path)?.split_whitespace().count())
/// }
///
/// #[polyloop::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::builder().processes(2).build().await?;
///     let words = pool.apply(word_count, ("Cargo.toml".to_owned(),)).await??;
///     assert!(words > 10);
///     pool.close().await?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Pool {
    owner: Arc<Owner>,
    program: &'static Program,
    options: Options,
}

impl Pool {
    /// The shape of a pool to be.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// let pool = polyloop::Pool::builder().processes(1).retries(1).build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(owner: Owner, program: &'static Program, options: Options) -> Self {
        Self { owner: Arc::new(owner), program, options }
    }

    /// Calls a function in a worker: `function(arguments..)`, its arguments as a tuple. Awaited, it gives the result.
    ///
    /// The errors it gives: [`Error::WorkerDied`] and [`Error::PoisonTask`], [`Error::TaskPanicked`],
    /// [`Error::TaskTimeout`], [`Error::Unsendable`] and [`Error::Remote`], and those of a pool that has ended.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// async fn greet(name: String, times: usize) -> String {
    ///     format!("Hello, {name}! ").repeat(times)
    /// }
    /// assert_eq!(pool.apply(greet, ("you".to_owned(), 2)).await?, "Hello, you! Hello, you! ");
    /// assert_eq!(pool.apply(u32::count_ones, (7,)).await?, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply<F, Args, Kind>(&self, function: F, arguments: Args) -> Apply<F::Output>
    where
        F: Function<Args, Kind>,
        Args: Serialize + DeserializeOwned,
    {
        let terms = self.terms::<F>(Entry::of::<F, Args, Kind>(function));
        let arguments = codec::write_arguments(&self.owner, &arguments, &mut Vec::new());
        Apply::new(self.owner.manager(), terms, arguments, codec::read_result)
    }

    /// Calls a function in a worker at once, whether or not anyone waits for it.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// let task = pool.spawn(|n: u32| n + 1, (1,));
    /// // ... something else ...
    /// assert_eq!(task.await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn<F, Args, Kind>(&self, function: F, arguments: Args) -> TaskHandle<F::Output>
    where
        F: Function<Args, Kind>,
        Args: Serialize + DeserializeOwned,
    {
        self.apply(function, arguments).into_handle()
    }

    /// Calls a function with each item of an input, which may be endless: a stream of the results.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use futures_util::TryStreamExt;
    ///
    /// let lengths: Vec<usize> = pool.map(|s: String| s.len(), ["a".to_owned(), "bc".to_owned()]).try_collect().await?;
    /// assert_eq!(lengths, [1, 2]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<F, T, Kind, I>(&self, function: F, input: I) -> Map<I::IntoIter, F::Output>
    where
        F: Function<(T,), Kind>,
        T: Serialize + DeserializeOwned,
        I: IntoIterator<Item = T>,
    {
        let terms = self.terms::<F>(Entry::of::<F, (T,), Kind>(function));
        let write = |manager: &Manager, item, buffer: &mut _| codec::write_arguments(manager, &(item,), buffer);
        Map::new(self.owner.manager(), terms, input.into_iter(), write, codec::read_result)
    }

    /// The same where each item is a tuple of arguments.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use futures_util::TryStreamExt;
    ///
    /// let powers: Vec<u32> = pool.starmap(u32::pow, [(2, 3), (3, 2)]).try_collect().await?;
    /// assert_eq!(powers, [8, 9]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn starmap<F, Args, Kind, I>(&self, function: F, input: I) -> Map<I::IntoIter, F::Output>
    where
        F: Function<Args, Kind>,
        Args: Serialize + DeserializeOwned,
        I: IntoIterator<Item = Args>,
    {
        let terms = self.terms::<F>(Entry::of::<F, Args, Kind>(function));
        let write = |manager: &Manager, item, buffer: &mut _| codec::write_arguments(manager, &item, buffer);
        Map::new(self.owner.manager(), terms, input.into_iter(), write, codec::read_result)
    }

    /// Calls a function whose result is a `Stream`, or a future of one: what it gives, value by value as it comes, each as
    /// soon as it is there. What gives them is paused while nobody takes them, and dropped when either side leaves:
    /// see [`TaskStream`].
    ///
    /// The errors that end it are those of [`Self::apply`]; [`Error::Remote`] also for a value that can't travel. From its
    /// first value on it is not run again, whatever [`Self::retries`] says: no value is given twice.
    /// [`Self::timeout`] is for the whole stream, pauses included.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use futures_util::{Stream, TryStreamExt, stream};
    ///
    /// fn squares(count: u64) -> impl Stream<Item = u64> {
    ///     stream::iter((0..count).map(|n| n * n))
    /// }
    ///
    /// let mut squares = pool.stream(squares, (1000,));
    /// while let Some(square) = squares.try_next().await? {
    ///     println!("{square}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream<F, Args, Kind>(&self, function: F, arguments: Args) -> TaskStream<F::Item>
    where
        F: StreamFunction<Args, Kind>,
        Args: Serialize + DeserializeOwned,
    {
        let terms = self.terms::<F>(Entry::of_stream::<F, Args, Kind>(function));
        let arguments = codec::write_arguments(&self.owner, &arguments, &mut Vec::new());
        TaskStream::new(self.owner.manager(), terms, arguments, codec::read_result)
    }

    /// This pool, where one run of a task may take so long. Then the task is dropped and the caller gets
    /// [`Error::TaskTimeout`]; what does not let go within the pool's grace, as a function that blocks, goes with its
    /// worker, after the tasks beside it had as long to end. For a limit to a whole call, use `tokio::time::timeout`.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use std::time::Duration;
    ///
    /// async fn forever() {
    ///     std::future::pending().await
    /// }
    /// let result = pool.timeout(Duration::from_millis(10)).apply(forever, ()).await;
    /// assert!(matches!(result, Err(polyloop::Error::TaskTimeout { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn timeout(&self, timeout: Duration) -> Self {
        self.with(|options| options.timeout = Some(timeout))
    }

    /// This pool, where a task whose worker dies is run again so many times. It runs alone then, and only the deaths of
    /// workers that ran nothing else count; the third is [`Error::PoisonTask`]. For other reasons see [`Self::retry_on`].
    ///
    /// ```
    /// # async fn example(pool: polyloop::Pool) -> Result<u32, polyloop::Error> {
    /// pool.retries(2).apply(|| 1, ()).await
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn retries(&self, retries: u32) -> Self {
        self.with(|options| options.retries = retries)
    }

    /// This pool, where a task runs again, as often as [`Self::retries`] says, if it has failed with an error of which
    /// `is_reason` says that it is one. That replaces what holds where nobody says anything: the death of its worker.
    ///
    /// It is asked about [`Error::WorkerDied`], [`Error::TaskPanicked`], [`Error::TaskTimeout`] of one run, and
    /// [`Error::Remote`], as long as there are retries left. It is not asked where the pool knows better: about
    /// [`Error::PoisonTask`], about what was cancelled, about the end of the pool, and about a stream that has given a value.
    ///
    /// The task that drives the pool calls it, so it is to be quick. One that panics has said no.
    ///
    /// A function's own `Err` is a value to the pool, and nobody is asked about it. Have the function itself try again, or
    /// call it again; or make it a panic, if it is not to be more than that.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use polyloop::Error;
    ///
    /// let stubborn = pool.retries(2).retry_on(|error| matches!(error, Error::WorkerDied(_) | Error::TaskPanicked(_)));
    /// let failed = stubborn.apply(|| -> u32 { panic!("no luck") }, ()).await;
    /// assert!(matches!(failed, Err(Error::TaskPanicked(_))));
    /// assert_eq!(stubborn.stats().retried, 2);
    ///
    /// // A function's own error:
    /// fn fetch(attempt: u32) -> Result<String, String> {
    ///     if attempt < 3 { Err("not yet".to_owned()) } else { Ok("here".to_owned()) }
    /// }
    /// let mut attempt = 1;
    /// let fetched = loop {
    ///     match pool.apply(fetch, (attempt,)).await? {
    ///         Err(_) if attempt < 5 => attempt += 1,
    ///         result => break result,
    ///     }
    /// };
    /// assert_eq!(fetched.as_deref(), Ok("here"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn retry_on(&self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.with(|options| options.retry_on = Some(RetryOn::new(is_reason)))
    }

    /// This pool, where plain functions run on threads of their workers, as many at a time as a worker runs tasks, instead
    /// of one after the other on its loop: for those that block, so that async ones go on beside them.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// let name = |_: ()| std::thread::current().name().map(str::to_owned);
    /// assert_ne!(pool.in_thread().apply(name, ((),)).await?, pool.apply(name, ((),)).await?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn in_thread(&self) -> Self {
        self.with(|options| options.in_thread = true)
    }

    /// Has so many workers from now on, at least 1. New ones are started at once; those that are too many finish what they
    /// run and leave. Nothing happens to a pool that closes.
    ///
    /// # Errors
    /// [`Error::Config`] for none, and for more than both 128 and what it was built with.
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// pool.resize(2)?;
    /// assert_eq!(pool.stats().workers.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn resize(&self, processes: usize) -> Result<(), Error> {
        self.owner.resize(processes)
    }

    /// The pool in numbers, as they are now.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// pool.apply(|| (), ()).await?;
    /// assert_eq!(pool.stats().done, 1);
    /// assert_eq!(pool.stats().workers.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.owner.with_driver(|driver| stats(driver))
    }

    /// Takes no new work, and waits until whatever was accepted has ended and all workers are gone. A map that has been
    /// polled goes on as its results are taken.
    ///
    /// Dropped, it stops waiting and leaves the pool closing.
    ///
    /// # Errors
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// let task = pool.spawn(|| 1, ());
    /// pool.close().await?;
    /// assert_eq!(task.await?, 1);
    /// assert!(matches!(pool.apply(|| 1, ()).await, Err(polyloop::Error::PoolClosed)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(&self) -> Result<(), Error> {
        self.owner.close().await
    }

    /// Ends all tasks now, with [`Error::PoolTerminated`], and waits until all workers are gone: those that do not leave
    /// within the pool's grace are killed.
    ///
    /// # Errors
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// let task = pool.spawn(async || std::future::pending::<()>().await, ());
    /// pool.terminate().await?;
    /// assert!(matches!(task.await, Err(polyloop::Error::PoolTerminated)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn terminate(&self) -> Result<(), Error> {
        self.owner.terminate().await
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Self {
        let mut pool = self.clone();
        change(&mut pool.options);
        pool
    }

    fn terms<F>(&self, entry: &'static Entry) -> Result<Terms, Error> {
        let (name, options) = (std::any::type_name::<F>(), self.options.clone());
        let entry = self.program.name(entry);
        let entry = entry.ok_or(Error::NotInProgram(name.into()))?;
        let function = self.owner.known(&Reference { entry, in_thread: options.in_thread }.to_bytes());
        Ok(Terms { function, options, name: name.into(), failure: Failure::from_bytes })
    }
}
