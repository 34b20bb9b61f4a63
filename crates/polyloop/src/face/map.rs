//! A `map` under way: a stream that draws its input as room appears and gives what came of it, in the order of the input or
//! as it finishes. What is given when is decided by `MapResults` of the core.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::Stream;
use polyloop_core::{CallId, MapResults, NextResult, Outcome, Payload, Want};

use super::call::{Read, Terms};
use super::error::Error;
use super::manager::Manager;

/// Items drawn ahead of what has been taken, where nobody says otherwise.
const WINDOW: usize = 2048;
/// How long one look at the input may keep the caller's task.
const DRAW_BUDGET: Duration = Duration::from_millis(1);
/// Items drawn between two looks at the clock.
const DRAWS_PER_LOOK: usize = 16;

/// What an item has come to.
#[derive(Debug)]
enum Came {
    Back(Outcome),
    /// Its arguments could not be written.
    Unsent(Error),
}

/// Where a map's outcomes arrive.
pub(crate) struct MapCell(Mutex<CellState>);

struct CellState {
    results: MapResults<Came>,
    waiting: Option<Waker>,
    /// Whatever comes back may make room for more, though it is nobody's turn.
    wants_room: bool,
    /// The pool's runtime has ended: nothing comes back any more.
    over: bool,
}

impl MapCell {
    /// Outcomes have come back, by index. Gives whom to wake.
    pub(crate) fn deliver(&self, outcomes: impl Iterator<Item = (u64, Outcome)>) -> Option<Waker> {
        let mut state = self.lock();
        for (index, outcome) in outcomes {
            state.results.deliver(index, Ok(Came::Back(outcome)));
        }
        if state.results.has_news() || state.wants_room { state.waiting.take() } else { None }
    }

    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, CellState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an item's arguments, by way of a buffer.
type Write<T> = fn(&Manager, T, &mut Vec<u8>) -> Result<Payload, Error>;

enum Stage {
    /// Nobody has asked yet, so nothing has been drawn.
    New,
    Open(CallId),
    Over,
}

/// The results of [`Pool::map`](crate::Pool::map), as a stream in the order of the input: for each item its result, or why
/// there is none. Dropped, it cancels what has not ended; so does whatever stops at the first error.
///
/// Nothing happens before it is polled, and it draws its input while it is.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// use futures_util::{StreamExt, TryStreamExt};
/// use polyloop::Pool;
///
/// let pool = Pool::builder().processes(2).build().await?;
/// let squares: Vec<u64> = pool.map(|n: u64| n * n, 0..1000).try_collect().await?;
/// assert_eq!(squares[999], 998_001);
///
/// // Of an endless input, what is taken.
/// let first: Vec<_> = pool.map(|n: u64| n + 1, 0..).take(3).try_collect().await?;
/// assert_eq!(first, [1, 2, 3]);
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct Map<I: Iterator, R> {
    manager: Arc<Manager>,
    terms: Result<Terms, Option<Error>>,
    input: Option<I>,
    write: Write<I::Item>,
    buffer: Vec<u8>,
    /// Items hold memory of which there is not much.
    is_large: bool,
    window: usize,
    want: Want,
    stage: Stage,
    cell: Arc<MapCell>,
    ready: VecDeque<(u64, Came)>,
    /// Why the rest of the input is not run: given last.
    refused: Option<Error>,
    read: Read<R>,
}

/// Nothing in it is pinned.
impl<I: Iterator, R> Unpin for Map<I, R> {}

impl<I: Iterator, R> Map<I, R> {
    pub(crate) fn new(
        manager: Arc<Manager>,
        terms: Result<Terms, Error>,
        input: I,
        write: Write<I::Item>,
        read: Read<R>,
    ) -> Self {
        let state = CellState { results: MapResults::new(WINDOW, true), waiting: None, wants_room: false, over: false };
        Self {
            manager,
            terms: terms.map_err(Some),
            input: Some(input),
            write,
            buffer: Vec::new(),
            is_large: false,
            window: WINDOW,
            want: Want::InOrder,
            stage: Stage::New,
            cell: Arc::new(MapCell(Mutex::new(state))),
            ready: VecDeque::new(),
            refused: None,
            read,
        }
    }

    /// Draws at most so many items ahead of what has been taken, at least 1; 2,048 where nobody says otherwise.
    ///
    /// ```
    /// # async fn example(pool: polyloop::Pool) {
    /// let thumbnails = pool.map(|path: String| std::fs::read(path).unwrap_or_default(), ["a.png".to_owned()]);
    /// let thumbnails = thumbnails.buffer_size(16); // Results are large, and wait until they are taken.
    /// # }
    /// ```
    pub fn buffer_size(mut self, items: usize) -> Self {
        self.window = items.max(1);
        self
    }

    /// The results as they finish, each with the index of its item.
    ///
    /// ```
    /// # polyloop::init_before_main!();
    /// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
    /// # async fn run() -> Result<(), polyloop::Error> {
    /// use futures_util::StreamExt;
    /// use polyloop::Pool;
    ///
    /// let pool = Pool::builder().processes(2).build().await?;
    /// let mut results = pool.map(|n: u64| n * 10, 0..100).unordered();
    /// while let Some((index, result)) = results.next().await {
    ///     assert_eq!(result?, index as u64 * 10);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn unordered(mut self) -> Unordered<I, R> {
        self.want = Want::AsFinished;
        Unordered(self)
    }

    fn poll_came(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Result<Came, Error>)>> {
        loop {
            if let Some((index, came)) = self.ready.pop_front() {
                return Poll::Ready(Some((index, Ok(came))));
            }
            let call = match self.stage {
                Stage::Open(call) => call,
                Stage::New => match self.open() {
                    Ok(call) => call,
                    Err(error) => return Poll::Ready(Some((0, Err(error)))),
                },
                Stage::Over => return Poll::Ready(None),
            };
            let (room, outstanding, is_complete) = self.fetch(context);
            let may_draw = outstanding == 0 || room >= self.window.div_ceil(2) && !self.must_wait(outstanding);
            let drew = self.input.is_some() && may_draw && self.draw(call, room, outstanding, context);
            if !self.ready.is_empty() || drew {
                continue;
            }
            if !is_complete {
                return Poll::Pending;
            }
            self.end(call);
            let index = self.cell.lock().results.begin(1);
            return Poll::Ready(self.refused.take().map(|error| (index, Err(error))));
        }
    }

    fn open(&mut self) -> Result<CallId, Error> {
        self.stage = Stage::Over;
        let terms = match &mut self.terms {
            Ok(terms) => terms,
            Err(error) => return Err(error.take().unwrap_or(Error::PoolClosed)),
        };
        let mut state = self.cell.lock();
        state.results = MapResults::new(self.window, true);
        state.results.ask(self.want, true);
        drop(state);
        let call = self.manager.open_map(terms, &self.cell)?;
        self.stage = Stage::Open(call);
        Ok(call)
    }

    /// Whether what is under way must come back first, as the memory that large items are in is scarce.
    fn must_wait(&self, outstanding: usize) -> bool {
        self.is_large
            && self.manager.with_driver(|driver| driver.scarce_window()).is_some_and(|most| outstanding >= most)
    }

    /// Takes what has come back. Says how much room there is, how many items have not come back, and whether that was all.
    fn fetch(&mut self, context: &mut Context<'_>) -> (usize, usize, bool) {
        let mut state = self.cell.lock();
        while let NextResult::Value(index, came) | NextResult::Error(index, came) = state.results.take() {
            self.ready.push_back((index, came));
        }
        let outstanding = state.results.outstanding();
        if state.over {
            self.input = None;
            self.refused.get_or_insert(Error::PoolTerminated);
        } else if self.ready.is_empty() {
            state.waiting = Some(context.waker().clone());
            state.wants_room = self.is_large && self.input.is_some();
        }
        (state.results.room(), outstanding, state.over || state.results.is_complete())
    }

    /// Draws up to so many items and submits them. Says whether anything is to be looked at again at once.
    fn draw(&mut self, call: CallId, room: usize, outstanding: usize, context: &mut Context<'_>) -> bool {
        let Some(mut input) = self.input.take() else { return false };
        let (began, mut drawn, mut has_unsent, mut has_ended) = (Instant::now(), 0, false, false);
        // As far as they follow each other, items go together.
        let mut run = Vec::with_capacity(room.min(WINDOW));
        while drawn < room {
            let Some(item) = input.next() else {
                has_ended = true;
                break;
            };
            drawn += 1;
            match (self.write)(&self.manager, item, &mut self.buffer) {
                Ok(payload) => {
                    self.is_large = payload.luggage().is_some();
                    run.push(payload);
                }
                Err(error) => {
                    self.submit(call, &mut run);
                    let mut state = self.cell.lock();
                    let index = state.results.begin(1);
                    state.results.deliver(index, Ok(Came::Unsent(error)));
                    has_unsent = true;
                }
            }
            let is_late = drawn % DRAWS_PER_LOOK == 0 && began.elapsed() > DRAW_BUDGET;
            if is_late || self.must_wait(outstanding + drawn) {
                // The rest after the other tasks have had their turn, and with what has come back by then.
                context.waker().wake_by_ref();
                break;
            }
        }
        self.submit(call, &mut run);
        if let Err(error) = self.manager.flush() {
            self.refused.get_or_insert(error);
        }
        if self.refused.is_some() {
            self.cell.lock().results.end_input(None);
        } else if has_ended {
            self.cell.lock().results.end_input(None);
            self.manager.end_call(call);
        } else {
            self.input = Some(input);
        }
        has_unsent || self.input.is_none()
    }

    /// Submits items that follow each other. Those that can't be have their end, each; the input, its reason.
    fn submit(&mut self, call: CallId, run: &mut Vec<Payload>) {
        let Ok(terms) = &self.terms else { return };
        if run.is_empty() {
            return;
        }
        let count = run.len();
        let first = self.cell.lock().results.begin(count);
        if let Err(error) = self.manager.submit_items(call, terms, first, run.drain(..)) {
            let mut state = self.cell.lock();
            for index in first..first + count as u64 {
                state.results.deliver(index, Ok(Came::Unsent(Error::PoolTerminated)));
            }
            self.refused.get_or_insert(error);
        }
    }

    fn end(&mut self, call: CallId) {
        self.stage = Stage::Over;
        self.input = None;
        self.manager.forget_map(call);
    }
}

impl<I: Iterator, R> Map<I, R> {
    fn poll_result(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Result<R, Error>)>> {
        self.poll_came(context).map(|next| {
            let (index, came) = next?;
            let result = came.and_then(|came| match (came, &self.terms) {
                (Came::Back(outcome), Ok(terms)) => terms.result(outcome, self.read),
                (Came::Unsent(error), _) => Err(error),
                (Came::Back(_), Err(_)) => unreachable!("without terms nothing is submitted"),
            });
            Some((index, result))
        })
    }
}

impl<I: Iterator, R> Stream for Map<I, R> {
    type Item = Result<R, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_result(context).map(|next| next.map(|(_, result)| result))
    }
}

impl<I: Iterator, R> Drop for Map<I, R> {
    fn drop(&mut self) {
        if let Stage::Open(call) = self.stage {
            self.manager.forget_map(call);
        }
    }
}

/// The results of a [`Map`] as they finish, each with the index of its item: see [`Map::unordered`].
///
/// ```
/// # async fn example(pool: polyloop::Pool) {
/// use futures_util::StreamExt;
///
/// let results: polyloop::Unordered<_, u64> = pool.map(|n: u64| n, 0..10).unordered();
/// let failed = results.filter(|(_, result)| std::future::ready(result.is_err())).count().await;
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct Unordered<I: Iterator, R>(Map<I, R>);

impl<I: Iterator, R> Stream for Unordered<I, R> {
    type Item = (usize, Result<R, Error>);

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.get_mut().0.poll_result(context);
        next.map(|next| next.map(|(index, result)| (index as usize, result)))
    }
}
