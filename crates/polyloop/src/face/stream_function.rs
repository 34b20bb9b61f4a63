//! What a pool can run for a stream: functions, plain and async, whose result is a stream of values.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, Failure};
use super::function::{Entry, Role, function, kind};
use crate::blocks::Memory;

/// A function of which workers can give the values one by one: its result is a `Stream`, or a future of one. It is a
/// [`Function`](crate::Function) otherwise, and as with that you never implement it, nor name its parameters.
///
/// What is no stream does not compile. An iterator becomes one by `futures_util::stream::iter`.
///
/// ```compile_fail,E0277
/// # fn example(pool: &polyloop::Pool) {
/// let stream = pool.stream(|n: u32| n + 1, (1,));
/// # }
/// ```
///
/// ```
/// # use polyloop::{Pool, StreamFunction};
/// use futures_util::{Stream, StreamExt, stream};
///
/// async fn lines(path: String) -> impl Stream<Item = String> {
///     let text = std::fs::read_to_string(path).unwrap_or_default();
///     stream::iter(text.lines().map(str::to_owned).collect::<Vec<_>>())
/// }
///
/// async fn first<F, K>(pool: &Pool, function: F, path: String) -> Result<Option<String>, polyloop::Error>
/// where
///     F: StreamFunction<(String,), K, Item = String>,
/// {
///     pool.stream(function, (path,)).next().await.transpose()
/// }
///
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// # let pool = Pool::builder().processes(1).build().await?;
/// assert_eq!(first(&pool, lines, "Cargo.toml".to_owned()).await?.as_deref(), Some("[package]"));
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a pool can't run this function as a stream with these arguments",
    note = "its result is a `Stream`, or a future of one: an iterator becomes one by `futures_util::stream::iter`",
    note = "arguments come as a tuple, `(value,)` for one, and have the function's own types",
    note = "arguments and values must implement serde's Serialize and Deserialize, and own what they hold"
)]
pub trait StreamFunction<Args, Kind>: Copy + Send + Sync + 'static {
    /// What the caller gets, again and again.
    type Item: Serialize + DeserializeOwned + 'static;

    /// Begins the call.
    #[doc(hidden)]
    fn open(&self, args: Args) -> impl Stream<Item = Self::Item> + 'static;
}

macro_rules! stream_functions {
    ($($arg:ident $value:ident),*) => {
        impl<F, S, $($arg: 'static),*> StreamFunction<($($arg,)*), kind::Plain> for F
        where
            F: Fn($($arg),*) -> S + Copy + Send + Sync + 'static,
            S: Stream + 'static,
            S::Item: Serialize + DeserializeOwned + 'static,
        {
            type Item = S::Item;

            fn open(&self, ($($value,)*): ($($arg,)*)) -> impl Stream<Item = S::Item> + 'static {
                self($($value),*)
            }
        }

        impl<F, C, $($arg: 'static),*> StreamFunction<($($arg,)*), kind::Async> for F
        where
            F: Fn($($arg),*) -> C + Copy + Send + Sync + 'static,
            C: Future + 'static,
            C::Output: Stream + 'static,
            <C::Output as Stream>::Item: Serialize + DeserializeOwned + 'static,
        {
            type Item = <C::Output as Stream>::Item;

            fn open(&self, ($($value,)*): ($($arg,)*)) -> impl Stream<Item = Self::Item> + 'static {
                Later::Future(Box::pin(self($($value),*)))
            }
        }
    };
}

stream_functions!();
stream_functions!(A a);
stream_functions!(A a, B b);
stream_functions!(A a, B b, D d);
stream_functions!(A a, B b, D d, E e);
stream_functions!(A a, B b, D d, E e, G g);
stream_functions!(A a, B b, D d, E e, G g, H h);
stream_functions!(A a, B b, D d, E e, G g, H h, I i);
stream_functions!(A a, B b, D d, E e, G g, H h, I i, J j);

/// The stream that a future gives.
enum Later<C: Future> {
    Future(Pin<Box<C>>),
    Stream(Pin<Box<C::Output>>),
}

impl<C: Future<Output: Stream>> Stream for Later<C> {
    type Item = <C::Output as Stream>::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Self::Future(future) = &mut *self {
            let stream = ready!(future.as_mut().poll(context));
            *self = Self::Stream(Box::pin(stream));
        }
        match &mut *self {
            Self::Stream(stream) => stream.as_mut().poll_next(context),
            Self::Future(_) => Poll::Pending,
        }
    }
}

/// A stream in a worker, its values as bytes.
pub(crate) trait Values {
    /// Leaves the next value in `out`.
    fn poll_next(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Failure>>>;
}

/// A call whose values are wanted, in a worker.
pub(crate) type Opened = Result<Box<dyn Values>, Failure>;

/// A stream: called with its arguments as bytes, and the memory that their large buffers are in.
#[derive(Clone, Copy)]
pub(crate) struct StreamRole {
    pub(crate) open: fn(&[u8], Option<Arc<Memory>>) -> Opened,
}

impl Entry {
    /// The entry of a function whose values are wanted.
    pub(crate) fn of_stream<F, Args, Kind>(_function: F) -> &'static Self
    where
        F: StreamFunction<Args, Kind>,
        Args: DeserializeOwned,
    {
        StreamOf::<F, Args, Kind>::ENTRY
    }
}

struct StreamOf<F, Args, Kind>(PhantomData<(F, Args, Kind)>);

impl<F: StreamFunction<Args, Kind>, Args: DeserializeOwned, Kind> StreamOf<F, Args, Kind> {
    const ENTRY: &'static Entry = &Entry::new(Role::Stream(StreamRole { open: Self::open }));

    fn open(arguments: &[u8], memory: Option<Arc<Memory>>) -> Opened {
        let arguments =
            codec::read::<Args>(arguments, memory.as_ref()).map_err(|error| Failure::unreadable::<Args>(&error))?;
        Ok(Box::new(Writing(Box::pin(function::<F>().open(arguments)))))
    }
}

/// A stream whose values are written as they come, their large buffers behind them.
struct Writing<S>(Pin<Box<S>>);

impl<S: Stream<Item: Serialize>> Values for Writing<S> {
    fn poll_next(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Option<Result<(), Failure>>> {
        let next = ready!(self.0.as_mut().poll_next(context));
        Poll::Ready(next.map(|value| {
            let outbox = codec::write_result(&value, out)?;
            if !outbox.is_empty() {
                outbox.append_to(out);
            }
            Ok(())
        }))
    }
}
