//! Python from Rust: pools whose workers are Python interpreters, each with an asyncio loop of its own.
//!
//! The workers are the installed package `polyloop` of an interpreter; nothing of Python is linked into the program.

mod builder;
mod call;
mod failure;
mod interpreter;
mod message;
#[cfg(feature = "tracing")]
mod record;
mod stacks;
mod wide;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::builder::PythonBuilder;
pub use self::call::PyCall;
pub use self::failure::PythonError;
use self::message::Message;
use super::call::Terms;
use super::error::Error;
use super::manager::{Manager, Options, Owner};
use super::map::Map;
use super::retry::RetryOn;
use super::stats::{Stats, stats};
use crate::manner::Manner;

/// Calls Python functions, coroutines and plain ones, in worker processes: Python interpreters, each with an asyncio
/// loop and a GIL of its own.
///
/// Functions are named as `"module:function"` and imported by the workers. Arguments and results travel by [serde]:
///
/// | Rust, by serde | Python |
/// |---|---|
/// | `None`, `()` | `None` |
/// | `bool` | `bool` |
/// | `i8` to `i128`, `u8` to `u128` | `int`; one that no integer type has is no result |
/// | `f32`, `f64` | `float`, also infinite and NaN |
/// | `char`, `String` | `str`, if it has no lone surrogates |
/// | bytes: of `serde_bytes`, of `bytes::Bytes` | `bytes` |
/// | [`Buffer`](crate::Buffer) | as an argument a `memoryview` that can't be written; as a result `bytes`, `bytearray`, `memoryview`, or a numpy array's bytes |
/// | `Vec`, tuples, sets, tuple structs | `list`; as a key of a `dict`, a `tuple`. As a result also `tuple`, `set` and `frozenset` |
/// | maps | `dict` |
/// | structs | `dict`, by the names of the fields |
/// | enums | `"Variant"`, `{"Variant": value}`, `{"Variant": [..]}`, `{"Variant": {..}}` |
/// | unit structs | `[]`, or `None` as a result |
///
/// What serde writes in one way for people and in another for machines, as dates, addresses and UUIDs, is text.
/// Subclasses travel as what they are derived from, numbers of numpy as numbers. Other objects are no results: the
/// caller gets [`Error::Remote`], which names the type.
///
/// An exception is [`Error::Python`]: unlike a `Result` that a Rust function returns, it is no part of what a function
/// gives, as a panic is none.
///
/// A handle, as [`Pool`](crate::Pool) is: clones are the same pool, and when the last one goes, the pool is terminated
/// and no process is left.
///
/// What workers log, and their warnings, are events in this program, with the feature `tracing`: see
/// [`forward_logs`](PythonBuilder::forward_logs). What they write to their standard output and error streams goes to the
/// program's.
///
/// ```no_run
/// use polyloop::{Error, PythonPool};
///
/// #[polyloop::main]
/// async fn main() -> Result<(), Error> {
///     let py = PythonPool::builder().venv(".venv").processes(4).build().await?;
///     let root: f64 = py.call("math:sqrt").arg(2.0).await?;
///     let vector: Vec<f32> = py.call("models:embed").arg("some text").kwarg("dim", 384).await?;
///     match py.call::<i64>("builtins:int").arg("x").await {
///         Err(Error::Python(error)) => assert_eq!(error.type_name, "ValueError"),
///         other => panic!("{other:?}"),
///     }
///     py.close().await
/// }
/// ```
#[derive(Clone)]
pub struct PythonPool {
    owner: Arc<Owner>,
    options: Options,
}

impl PythonPool {
    /// The shape of a pool to be.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), polyloop::Error> {
    /// let py = polyloop::PythonPool::builder().interpreter("/usr/bin/python3.12").build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> PythonBuilder {
        PythonBuilder::default()
    }

    fn new(owner: Owner, options: Options) -> Self {
        Self { owner: Arc::new(owner), options }
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Self {
        let mut pool = self.clone();
        change(&mut pool.options);
        pool
    }

    /// A call of a function, `"module:function"`: give it its arguments, then await it, or
    /// [`spawn`](PyCall::spawn) it.
    ///
    /// The errors it gives: [`Error::Python`] for what the function raises, which may be the `ImportError` of its
    /// import; [`Error::Remote`] for a result that has no counterpart in Rust, or is not of the type that is asked for;
    /// and those of [`Pool::apply`](crate::Pool::apply).
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let seconds: f64 = py.call("time:monotonic").await?;
    /// let rounded = py.call::<f64>("builtins:round").arg(2.718).kwarg("ndigits", 1).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn call<R: DeserializeOwned>(&self, function: impl Into<String>) -> PyCall<R> {
        PyCall::new(self.owner.manager(), function.into(), self.options.clone())
    }

    /// Calls a function with each item of an input, which may be endless: a stream of the results.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// let roots: Vec<_> = py.map::<f64, _>("math:sqrt", [1.0, 4.0, 9.0]).try_collect().await?;
    /// assert_eq!(roots, [1.0, 2.0, 3.0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<R, I>(&self, function: impl Into<String>, input: I) -> Map<I::IntoIter, R>
    where
        R: DeserializeOwned,
        I: IntoIterator<Item: Serialize>,
    {
        let terms = terms(&self.owner, function.into(), self.options.clone(), Verb::Call);
        let write = |manager: &Manager, item: I::Item, buffer: &mut Vec<u8>| {
            Message::of_argument(&item, buffer)?.into_payload(manager, buffer)
        };
        Map::new(self.owner.manager(), terms, input.into_iter(), write, message::read)
    }

    /// The same where each item is a tuple or an array of arguments.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// let powers: Vec<_> = py.starmap::<u64, _>("builtins:pow", [(2, 3), (3, 2)]).try_collect().await?;
    /// assert_eq!(powers, [8, 9]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn starmap<R, I>(&self, function: impl Into<String>, input: I) -> Map<I::IntoIter, R>
    where
        R: DeserializeOwned,
        I: IntoIterator<Item: Serialize>,
    {
        let terms = terms(&self.owner, function.into(), self.options.clone(), Verb::Call);
        let write = |manager: &Manager, item: I::Item, buffer: &mut Vec<u8>| {
            Message::of_arguments(&item, buffer)?.into_payload(manager, buffer)
        };
        Map::new(self.owner.manager(), terms, input.into_iter(), write, message::read)
    }

    /// This pool, where one run of a task may take so long, as by [`Pool::timeout`](crate::Pool::timeout). A function
    /// that blocks is interrupted: a `CancelledError` is raised where it stands. What does not end within the pool's
    /// grace goes with its worker.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// use std::time::Duration;
    ///
    /// let late = py.timeout(Duration::from_secs(1)).call::<()>("time:sleep").arg(60).await;
    /// assert!(matches!(late, Err(polyloop::Error::TaskTimeout { .. })));
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn timeout(&self, timeout: Duration) -> Self {
        self.with(|options| options.timeout = Some(timeout))
    }

    /// This pool, where a task whose worker dies is run again so many times, as by
    /// [`Pool::retries`](crate::Pool::retries).
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let pid: u32 = py.retries(2).call("os:getpid").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn retries(&self, retries: u32) -> Self {
        self.with(|options| options.retries = retries)
    }

    /// This pool, where a task runs again, as often as [`Self::retries`] says, if it has failed with an error of which
    /// `is_reason` says that it is one, as by [`Pool::retry_on`](crate::Pool::retry_on). Also asked about are exceptions,
    /// [`Error::Python`], of which [`PythonError::is_instance`] knows the classes.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// use polyloop::Error;
    ///
    /// let stubborn = py.retries(2).retry_on(|error| match error {
    ///     Error::WorkerDied(_) | Error::TaskTimeout { .. } => true,
    ///     Error::Python(error) => error.is_instance("ConnectionError"),
    ///     _ => false,
    /// });
    /// let page: String = stubborn.call("web:fetch").arg("https://example.org").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn retry_on(&self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.with(|options| options.retry_on = Some(RetryOn::new(is_reason)))
    }

    /// This pool, where plain functions run on threads of their workers beside their loops, as by
    /// [`Pool::in_thread`](crate::Pool::in_thread).
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let waited: () = py.in_thread().call("time:sleep").arg(0.1).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "gives the pool with this option"]
    pub fn in_thread(&self) -> Self {
        self.with(|options| options.in_thread = true)
    }

    /// Has so many workers from now on, at least 1, as by [`Pool::resize`](crate::Pool::resize).
    ///
    /// # Errors
    /// [`Error::Config`] for none, and for more than both 128 and what it was built with.
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```no_run
    /// # fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// py.resize(2)
    /// # }
    /// ```
    pub fn resize(&self, processes: usize) -> Result<(), Error> {
        self.owner.resize(processes)
    }

    /// The pool in numbers, as they are now.
    ///
    /// ```no_run
    /// # fn example(py: polyloop::PythonPool) {
    /// println!("{} tasks under way", py.stats().unfinished);
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.owner.with_driver(|driver| stats(driver))
    }

    /// Takes no new work, and waits until whatever was accepted has ended and all workers are gone, as
    /// [`Pool::close`](crate::Pool::close) does.
    ///
    /// # Errors
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// py.close().await
    /// # }
    /// ```
    pub async fn close(&self) -> Result<(), Error> {
        self.owner.close().await
    }

    /// Ends all tasks now, with [`Error::PoolTerminated`], and waits until all workers are gone: those that do not
    /// leave within the pool's grace are killed.
    ///
    /// # Errors
    /// [`Error::Os`] when the operating system refuses.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// py.terminate().await
    /// # }
    /// ```
    pub async fn terminate(&self) -> Result<(), Error> {
        self.owner.terminate().await
    }
}

const NOT_A_FUNCTION_NAME: Error = Error::Config("a Python function is named as \"module:function\"");

fn is_function_name(name: &str) -> bool {
    name.split_once(':').is_some_and(|(module, name)| !module.is_empty() && !name.is_empty() && !name.contains(':'))
}

/// What a function is called for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Call,
    Stream,
}

/// How a function is run, if this is the name of one.
fn terms(manager: &Manager, function: String, options: Options, verb: Verb) -> Result<Terms, Error> {
    if !is_function_name(&function) {
        return Err(NOT_A_FUNCTION_NAME);
    }
    let manner = Manner { name: None, in_thread: options.in_thread, is_stream: verb == Verb::Stream };
    let reference = manager.known(&manner.put_on(format!("n{function}").into_bytes().into()));
    Ok(Terms { function: reference, options, name: function.into(), failure: failure::read })
}
