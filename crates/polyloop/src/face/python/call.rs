//! A call of a Python function: its arguments, one after the other, and how it is run.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{self, Arguments};
use super::terms;
use crate::face::call::{Apply, TaskHandle};
use crate::face::error::Error;
use crate::face::manager::{Manager, Options};

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
}

impl<R: DeserializeOwned> IntoFuture for PyCall<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Apply<R>;

    fn into_future(self) -> Apply<R> {
        let Self { manager, function, options, arguments, unsent, .. } = self;
        let terms = terms(&manager, function, options);
        let arguments = unsent.map_or_else(|| arguments.into_message()?.into_payload(&manager, &mut Vec::new()), Err);
        Apply::new(manager, terms, arguments, message::read)
    }
}
