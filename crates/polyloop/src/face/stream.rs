//! A stream under way: values that have come and were not taken, how it ended, and who waits for either. How many values
//! may come is the engine's account.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use futures_core::Stream;
use polyloop_core::{Outcome, Payload};

use super::call::{Read, Stage, Terms};
use super::error::Error;
use super::manager::Manager;

/// What comes of a stream.
pub(crate) enum Came {
    Value(Payload),
    End(Outcome),
}

/// Where what comes of a stream arrives.
#[derive(Default)]
pub(crate) struct StreamCell(Mutex<CellState>);

#[derive(Default)]
struct CellState {
    values: VecDeque<Payload>,
    end: Option<Outcome>,
    /// Nobody wants anything more of it but its end.
    left: bool,
    waiting: Option<Waker>,
}

impl StreamCell {
    pub(crate) fn put(&self, came: Came) {
        let mut state = self.lock();
        match came {
            Came::Value(_) if state.left => return,
            Came::Value(value) => state.values.push_back(value),
            Came::End(outcome) => state.end = Some(outcome),
        }
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// The next that has come, its end last and for ever.
    fn poll(&self, context: &mut Context<'_>) -> Poll<Came> {
        let mut state = self.lock();
        if let Some(value) = state.values.pop_front() {
            return Poll::Ready(Came::Value(value));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Came::End(end.clone()));
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.left = true;
        let unwanted = std::mem::take(&mut state.values);
        drop(state);
        drop(unwanted);
    }

    fn lock(&self) -> MutexGuard<'_, CellState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that has begun and not been left.
struct Open {
    manager: Arc<Manager>,
    terms: Terms,
    token: u64,
    cell: Arc<StreamCell>,
}

impl Open {
    fn submit(manager: Arc<Manager>, terms: Terms, arguments: Payload) -> Result<Self, Error> {
        let cell = Arc::default();
        let token = manager.open_stream(&terms, arguments, Arc::clone(&cell))?;
        Ok(Self { manager, terms, token, cell })
    }

    /// The next value, or how it ended.
    fn poll<R>(&self, context: &mut Context<'_>, read: Read<R>) -> Poll<Option<Result<R, Error>>> {
        Poll::Ready(match ready!(self.cell.poll(context)) {
            Came::Value(value) => {
                self.manager.taken(self.token);
                Some(read(&value))
            }
            Came::End(Outcome::Value(_)) => None,
            Came::End(outcome) => Some(Err(self.terms.error(outcome))),
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cell.leave();
        self.manager.cancel(self.token);
    }
}

/// What a function gives, value by value as it comes: see [`Pool::stream`](crate::Pool::stream).
///
/// The worker runs ahead by at most 64 values, or about 1 MiB of them: then what gives them is not polled until some are
/// taken, while its worker goes on with other tasks. As long as the stream is open it takes the place of one of these.
///
/// It begins when it is first polled. Values that have come are given before the error that ended it, which is the last
/// item. Dropped, it is dropped in its worker, too; [`Self::close`] waits for that.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use futures_util::{Stream, StreamExt, TryStreamExt, stream};
/// use polyloop::Pool;
///
/// fn countdown(from: u64) -> impl Stream<Item = u64> {
///     stream::iter((1..=from).rev())
/// }
///
/// let pool = Pool::builder().processes(1).build().await?;
/// let all: Vec<u64> = pool.stream(countdown, (3,)).try_collect().await?;
/// assert_eq!(all, [3, 2, 1]);
///
/// let mut numbers = pool.stream(countdown, (1_000_000_000,));
/// while let Some(n) = numbers.next().await {
///     if n? % 10 == 7 {
///         break; // and it is paused, and dropped there with `numbers`
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct TaskStream<R> {
    stage: Stage<Open>,
    read: Read<R>,
}

impl<R> TaskStream<R> {
    pub(crate) fn new(
        manager: Arc<Manager>,
        terms: Result<Terms, Error>,
        arguments: Result<Payload, Error>,
        read: Read<R>,
    ) -> Self {
        Self { stage: Stage::new(manager, terms, arguments), read }
    }

    /// Leaves the stream, and waits until it has been dropped in its worker, or for the pool's grace. How it ended there
    /// is nobody's.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// # let pool = polyloop::Pool::builder().processes(1).build().await?;
    /// use futures_util::{StreamExt, stream};
    ///
    /// let mut ones = pool.stream(|| stream::repeat(1), ());
    /// assert_eq!(ones.next().await.transpose()?, Some(1));
    /// ones.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(mut self) {
        if let Some(open) = self.stage.leave() {
            let cell = Arc::clone(&open.cell);
            drop(open);
            // It is given nothing but its end any more.
            poll_fn(|context| cell.poll(context).map(drop)).await;
        }
    }
}

impl<R> Stream for TaskStream<R> {
    type Item = Result<R, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let read = self.read;
        let next = match self.stage.begin(Open::submit) {
            Ok(open) => ready!(open.poll(context, read)),
            Err(error) => error.map(Err),
        };
        if !matches!(next, Some(Ok(_))) {
            self.stage = Stage::Over(None);
        }
        Poll::Ready(next)
    }
}
