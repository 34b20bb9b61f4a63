//! Single calls: a future that cancels its task when it is dropped, and a handle that does not.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use polyloop_core::{Outcome, Payload};

use super::error::Error;
use super::manager::{Manager, Options, Ticket};

/// What is run, and how.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) function: Arc<[u8]>,
    pub(crate) options: Options,
    /// The function's name.
    pub(crate) name: Cow<'static, str>,
    /// How its workers tell of failures.
    pub(crate) failure: fn(&[u8]) -> Error,
}

/// How a result is read.
pub(crate) type Read<R> = fn(&Payload) -> Result<R, Error>;

impl Terms {
    /// What an outcome is to the caller.
    pub(crate) fn result<R>(&self, outcome: Outcome, read: Read<R>) -> Result<R, Error> {
        match outcome {
            Outcome::Value(bytes) => read(&bytes),
            outcome => Err(self.error(outcome)),
        }
    }

    /// What an outcome that is no value is to the caller.
    pub(crate) fn error(&self, outcome: Outcome) -> Error {
        match outcome {
            Outcome::Value(_) => unreachable!("it is no error"),
            Outcome::Raised(bytes) => (self.failure)(&bytes),
            Outcome::Cancelled => Error::TaskAborted,
            Outcome::TimedOut => {
                let timeout = self.options.timeout.unwrap_or_default();
                Error::TaskTimeout { task: self.name.clone(), timeout }
            }
            Outcome::Rejected(_) => Error::NotInProgram(self.name.clone()),
            Outcome::Lost(loss) => Error::lost(loss, self.name.clone()),
            Outcome::Terminated => Error::PoolTerminated,
            Outcome::NoWorkers(error) => Error::no_workers(&error),
        }
    }

    /// The same for whoever judges its tasks, where someone does.
    pub(crate) fn judge(&self) -> Option<Arc<Self>> {
        self.options.is_judged().then(|| Arc::new(self.clone()))
    }
}

/// A call that is under way.
struct Waiting {
    manager: Arc<Manager>,
    terms: Terms,
    ticket: Ticket,
}

impl Waiting {
    fn submit(manager: Arc<Manager>, terms: Terms, arguments: Payload) -> Result<Self, Error> {
        let ticket = manager.submit(&terms, arguments)?;
        Ok(Self { manager, terms, ticket })
    }

    fn poll<R>(&mut self, context: &mut Context<'_>, read: Read<R>) -> Poll<Result<R, Error>> {
        // A sender that is gone went with its pool.
        let outcome = ready!(Pin::new(&mut self.ticket.outcome).poll(context)).unwrap_or(Outcome::Terminated);
        Poll::Ready(self.terms.result(outcome, read))
    }

    fn cancel(&self) {
        self.manager.cancel(self.ticket.token);
    }
}

/// Where a call is that begins when somebody asks for what comes of it.
pub(crate) enum Stage<T> {
    New {
        manager: Arc<Manager>,
        terms: Terms,
        arguments: Payload,
    },
    Open(T),
    /// Refused, which is told when asked; or over.
    Over(Option<Error>),
}

impl<T> Stage<T> {
    pub(crate) fn new(manager: Arc<Manager>, terms: Result<Terms, Error>, arguments: Result<Payload, Error>) -> Self {
        match terms.and_then(|terms| Ok((terms, arguments?))) {
            Ok((terms, arguments)) => Self::New { manager, terms, arguments },
            Err(error) => Self::Over(Some(error)),
        }
    }

    /// Begins, if it has not. Gives what is under way, or why nothing is, if that has not been told.
    pub(crate) fn begin(
        &mut self,
        submit: impl FnOnce(Arc<Manager>, Terms, Payload) -> Result<T, Error>,
    ) -> Result<&mut T, Option<Error>> {
        if let Self::New { .. } = self
            && let Self::New { manager, terms, arguments } = std::mem::replace(self, Self::Over(None))
        {
            *self = match submit(manager, terms, arguments) {
                Ok(open) => Self::Open(open),
                Err(error) => Self::Over(Some(error)),
            };
        }
        match self {
            Self::Open(open) => Ok(open),
            Self::Over(error) => Err(error.take()),
            Self::New { .. } => unreachable!("it has begun"),
        }
    }

    /// Is over. Gives what was under way.
    pub(crate) fn leave(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Over(None)) {
            Self::Open(open) => Some(open),
            Self::New { .. } | Self::Over(_) => None,
        }
    }
}

/// A call of [`Pool::apply`](crate::Pool::apply): the function's result, or the pool's error. It begins when it is first
/// polled, and dropped before its end it cancels the task: one that waits in a queue never starts, one that runs is dropped
/// in its worker.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use std::time::Duration;
/// use polyloop::Pool;
///
/// async fn forever() {
///     std::future::pending().await
/// }
///
/// let pool = Pool::builder().processes(1).build().await?;
/// let call = pool.apply(forever, ());
/// assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err()); // and `forever` is dropped, too
/// # Ok(())
/// # }
/// ```
#[must_use = "a call begins when it is awaited; `spawn` begins at once"]
pub struct Apply<R> {
    stage: Stage<Waiting>,
    read: Read<R>,
}

impl<R> Apply<R> {
    pub(crate) fn new(
        manager: Arc<Manager>,
        terms: Result<Terms, Error>,
        arguments: Result<Payload, Error>,
        read: Read<R>,
    ) -> Self {
        Self { stage: Stage::new(manager, terms, arguments), read }
    }

    /// Begins the call now, and goes on without its future.
    pub(crate) fn into_handle(mut self) -> TaskHandle<R> {
        let refused = self.stage.begin(Waiting::submit).err().flatten();
        TaskHandle { call: self.stage.leave().ok_or(refused), read: self.read }
    }
}

impl<R> Future for Apply<R> {
    type Output = Result<R, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let read = self.read;
        let result = match self.stage.begin(Waiting::submit) {
            Ok(waiting) => ready!(waiting.poll(context, read)),
            Err(error) => Err(error.expect("a future is not polled after its end")),
        };
        self.stage = Stage::Over(None);
        Poll::Ready(result)
    }
}

impl<R> Drop for Apply<R> {
    fn drop(&mut self) {
        if let Stage::Open(waiting) = &self.stage {
            waiting.cancel();
        }
    }
}

/// A task of [`Pool::spawn`](crate::Pool::spawn). Awaited, it gives the task's result. Dropped, it leaves the task to run
/// on, as tokio's `JoinHandle` does.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use polyloop::{Error, Pool};
///
/// async fn forever() {
///     std::future::pending().await
/// }
///
/// let pool = Pool::builder().processes(1).build().await?;
/// let (sum, endless) = (pool.spawn(|a: u8, b: u8| a + b, (1, 2)), pool.spawn(forever, ()));
/// assert_eq!(sum.await?, 3);
/// endless.abort();
/// assert!(matches!(endless.await, Err(Error::TaskAborted)));
/// # Ok(())
/// # }
/// ```
pub struct TaskHandle<R> {
    call: Result<Waiting, Option<Error>>,
    read: Read<R>,
}

impl<R> TaskHandle<R> {
    /// Has the task cancelled. Whoever awaits it gets [`Error::TaskAborted`] once its worker has let go of it, or its
    /// result if it was faster; a task that does not let go within the pool's grace goes with its worker.
    ///
    /// ```
    /// # async fn example(pool: polyloop::Pool) {
    /// let task = pool.spawn(|| 1, ());
    /// task.abort();
    /// # }
    /// ```
    pub fn abort(&self) {
        if let Ok(waiting) = &self.call {
            waiting.cancel();
        }
    }

    /// Whether the task has ended, so that awaiting it waits for nothing.
    ///
    /// ```
    /// # async fn example(pool: polyloop::Pool) {
    /// let task = pool.spawn(|| 1, ());
    /// println!("{}", task.is_finished());
    /// # }
    /// ```
    pub fn is_finished(&self) -> bool {
        self.call
            .as_ref()
            .map_or(true, |waiting| !waiting.ticket.outcome.is_empty() || waiting.ticket.outcome.is_terminated())
    }
}

impl<R> Future for TaskHandle<R> {
    type Output = Result<R, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let read = self.read;
        let result = match &mut self.call {
            Ok(waiting) => ready!(waiting.poll(context, read)),
            Err(error) => Err(error.take().expect("a future is not polled after its end")),
        };
        self.call = Err(None);
        Poll::Ready(result)
    }
}
