//! A call of a Python function: its arguments, one after the other, and how it is run.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use polyloop_core::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{self, Arguments};
use super::{Verb, terms};
use crate::face::call::{Apply, TaskHandle, Terms};
use crate::face::error::Error;
use crate::face::manager::{Manager, Options};
use crate::face::retry::RetryOn;
use crate::face::stream::TaskStream;

/// A call of [`PythonPool::call`](crate::PythonPool::call) to be. Awaited, it gives the function's result, or why there
/// is none; dropped before its end, it cancels the task.
///
/// ```no_run
/// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
/// use std::time::Duration;
///
/// let call = py.call("models:embed").arg("some text").kwarg("dim", 384);
/// let vector: Vec<f32> = call.timeout(Duration::from_secs(5)).retries(1).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a call begins when it is awaited; `spawn` begins at once"]
pub struct PyCall<R> {
    manager: Arc<Manager>,
    function: String,
    options: Options,
    arguments: Arguments,
    /// Why they can't be sent.
    unsent: Option<Error>,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> PyCall<R> {
    pub(super) fn new(manager: Arc<Manager>, function: String, options: Options) -> Self {
        Self { manager, function, options, arguments: Arguments::default(), unsent: None, result: PhantomData }
    }

    /// The next argument by position.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let power: u64 = py.call("builtins:pow").arg(2).arg(10).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn arg(mut self, value: impl Serialize) -> Self {
        self.unsent = self.unsent.or(self.arguments.push(&value).err());
        self
    }

    /// An argument by name.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let sorted: Vec<i32> = py.call("builtins:sorted").arg([3, 1, 2]).kwarg("reverse", true).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn kwarg(mut self, name: &str, value: impl Serialize) -> Self {
        self.unsent = self.unsent.or(self.arguments.name(name, &value).err());
        self
    }

    /// How long one run may take, instead of what the pool says.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// let call = py.call::<()>("time:sleep").arg(60).timeout(std::time::Duration::from_secs(1));
    /// # }
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// How many times the task is run again if its worker dies, instead of what the pool says.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// let call = py.call::<u32>("os:getpid").retries(2);
    /// # }
    /// ```
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// For which errors the task is run again, instead of what the pool says, as by
    /// [`PythonPool::retry_on`](crate::PythonPool::retry_on).
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// use polyloop::Error;
    ///
    /// let call = py.call::<String>("web:fetch").arg("https://example.org").retries(2);
    /// let call = call.retry_on(|error| matches!(error, Error::Python(error) if error.is_instance("ConnectionError")));
    /// # }
    /// ```
    pub fn retry_on(mut self, is_reason: impl Fn(&Error) -> bool + Send + Sync + 'static) -> Self {
        self.options.retry_on = Some(RetryOn::new(is_reason));
        self
    }

    /// Has a plain function run on a thread of its worker, beside the loop.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) {
    /// let call = py.call::<()>("time:sleep").arg(1).in_thread();
    /// # }
    /// ```
    pub fn in_thread(mut self) -> Self {
        self.options.in_thread = true;
        self
    }

    /// Begins the call at once, whether or not anyone waits for it.
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// let task = py.call::<f64>("math:sqrt").arg(2).spawn();
    /// // ... something else ...
    /// let root = task.await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn(self) -> TaskHandle<R> {
        self.into_future().into_handle()
    }

    /// What the function yields, value by value: an async generator, a plain one, or whatever else it returns that can be
    /// iterated over. It is paused while nobody takes its values, and closed when either side leaves: see [`TaskStream`].
    ///
    /// The errors that end it are those of [`PythonPool::call`](crate::PythonPool::call), an [`Error::Python`] that is a
    /// `TypeError` where there is nothing to iterate over. From its first value on it is not run again, whatever
    /// [`Self::retries`] says, and [`Self::timeout`] is for all of it. A plain generator runs on its worker's loop from
    /// value to value, or on threads with [`Self::in_thread`].
    ///
    /// ```no_run
    /// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// let mut tokens = py.call::<String>("models:generate").arg("Once upon a time").stream();
    /// while let Some(token) = tokens.try_next().await? {
    ///     print!("{token}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(self) -> TaskStream<R> {
        let (manager, terms, arguments) = self.into_parts(Verb::Stream);
        TaskStream::new(manager, terms, arguments, message::read)
    }

    fn into_parts(self, verb: Verb) -> (Arc<Manager>, Result<Terms, Error>, Result<Payload, Error>) {
        let Self { manager, function, options, arguments, unsent, .. } = self;
        let terms = terms(&manager, function, options, verb);
        let arguments = unsent.map_or_else(|| arguments.into_message()?.into_payload(&manager, &mut Vec::new()), Err);
        (manager, terms, arguments)
    }
}

impl<R: DeserializeOwned> IntoFuture for PyCall<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Apply<R>;

    fn into_future(self) -> Apply<R> {
        let (manager, terms, arguments) = self.into_parts(Verb::Call);
        Apply::new(manager, terms, arguments, message::read)
    }
}
