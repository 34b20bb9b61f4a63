//! What a pool can run: plain functions and async ones, generic ones, and closures that capture nothing. None of them is
//! data, so all that travels is which one it is.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::buffer::Outbox;
use super::codec::{self, Failure};
use super::error::RemoteError;
use super::stream_function::StreamRole;
use crate::blocks::Memory;

/// A function that workers can run: `fn`, `async fn`, generic or not, or a closure that captures nothing, of up to eight
/// arguments that serde can write and read. You never implement it, nor name its parameters: `Args` is the tuple of the
/// arguments, and `Kind` tells the plain from the async.
///
/// A closure that captures something is refused when the program is compiled: pass what it captures as an argument.
///
/// ```compile_fail,E0080
/// # fn example(pool: &polyloop::Pool, factor: u32) {
/// let call = pool.apply(move |n: u32| n * factor, (1,));
/// # }
/// # std::hint::black_box(example as fn(_, _));
/// ```
///
/// ```
/// # use polyloop::{Function, Pool};
/// async fn twice<F, K>(pool: &Pool, function: F) -> Result<(u32, u32), polyloop::Error>
/// where
///     F: Function<(u32,), K, Output = u32>,
/// {
///     Ok((pool.apply(function, (1,)).await?, pool.apply(function, (2,)).await?))
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a pool can't run this function with these arguments",
    note = "arguments come as a tuple, `(value,)` for one, and have the function's own types",
    note = "arguments and result must implement serde's Serialize and Deserialize, and own what they hold"
)]
pub trait Function<Args, Kind>: Copy + Send + Sync + 'static {
    /// What the caller gets.
    type Output: Serialize + DeserializeOwned + 'static;

    /// Whether it returns its result, not a future.
    #[doc(hidden)]
    const IS_PLAIN: bool;

    /// Begins the call.
    #[doc(hidden)]
    fn begin(&self, args: Args) -> Begun<Self::Output>;
}

/// What a call has come to.
#[doc(hidden)]
pub enum Begun<R> {
    /// Its result.
    Done(R),
    /// It waits for something.
    Suspended(Pin<Box<dyn Future<Output = R>>>),
}

/// The kinds of functions, which the compiler finds: see [`Function`].
pub mod kind {
    /// A function that returns its result.
    ///
    /// ```
    /// use polyloop::{Error, Function, Pool, kind};
    ///
    /// /// Has a worker run what would block this program's loop.
    /// async fn aside<F>(pool: &Pool, function: F) -> Result<F::Output, Error>
    /// where
    ///     F: Function<(), kind::Plain>,
    /// {
    ///     pool.in_thread().apply(function, ()).await
    /// }
    /// ```
    #[derive(Debug)]
    pub enum Plain {}
    /// A function that returns a future of its result.
    ///
    /// ```
    /// use polyloop::{Error, Function, Pool, kind};
    ///
    /// async fn twice<F>(pool: &Pool, function: F) -> Result<(F::Output, F::Output), Error>
    /// where
    ///     F: Function<(), kind::Async>,
    /// {
    ///     Ok((pool.apply(function, ()).await?, pool.apply(function, ()).await?))
    /// }
    /// ```
    #[derive(Debug)]
    pub enum Async {}
}

macro_rules! functions {
    ($($arg:ident $value:ident),*) => {
        impl<F, R, $($arg: 'static),*> Function<($($arg,)*), kind::Plain> for F
        where
            F: Fn($($arg),*) -> R + Copy + Send + Sync + 'static,
            R: Serialize + DeserializeOwned + 'static,
        {
            type Output = R;
            const IS_PLAIN: bool = true;

            #[inline]
            fn begin(&self, ($($value,)*): ($($arg,)*)) -> Begun<R> {
                Begun::Done(self($($value),*))
            }
        }

        impl<F, C, $($arg: 'static),*> Function<($($arg,)*), kind::Async> for F
        where
            F: Fn($($arg),*) -> C + Copy + Send + Sync + 'static,
            C: Future + 'static,
            C::Output: Serialize + DeserializeOwned + 'static,
        {
            type Output = C::Output;
            const IS_PLAIN: bool = false;

            #[inline]
            fn begin(&self, ($($value,)*): ($($arg,)*)) -> Begun<C::Output> {
                let mut future = Box::pin(self($($value),*));
                // Most end here. One that does not is polled again at once, as a task, whose waker then counts.
                match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => Begun::Done(result),
                    Poll::Pending => Begun::Suspended(future),
                }
            }
        }
    };
}

functions!();
functions!(A a);
functions!(A a, B b);
functions!(A a, B b, D d);
functions!(A a, B b, D d, E e);
functions!(A a, B b, D d, E e, G g);
functions!(A a, B b, D d, E e, G g, H h);
functions!(A a, B b, D d, E e, G g, H h, I i);
functions!(A a, B b, D d, E e, G g, H h, I i, J j);

/// A future in a worker, which has one thread for all of them.
pub(crate) type Suspended<T> = Pin<Box<dyn Future<Output = T>>>;

/// A result as it is sent: its bytes, and its large buffers.
#[derive(Default)]
pub(crate) struct Written<Bytes> {
    pub(crate) bytes: Bytes,
    pub(crate) outbox: Outbox,
}

/// A call in a worker, its result as bytes.
pub(crate) enum Called {
    Done(Result<Outbox, Failure>),
    Suspended(Suspended<Result<Written<Vec<u8>>, Failure>>),
}

/// What stands in the program for one function.
#[repr(C)]
pub(crate) struct Entry {
    mark: [u64; 2],
    pub(crate) role: Role,
}

/// What a function is for, and how it is called.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Task(TaskRole),
    Stream(StreamRole),
    Lifespan(LifespanRole),
}

/// Calls a function with its arguments as bytes, and the memory that came along, and leaves its result in `out`.
type Call = fn(arguments: &[u8], memory: Option<Arc<Memory>>, out: &mut Vec<u8>) -> Called;

/// A task.
#[derive(Clone, Copy)]
pub(crate) struct TaskRole {
    pub(crate) call: Call,
    /// Whether it may run on another thread than its worker's loop.
    pub(crate) is_plain: bool,
}

impl Entry {
    /// What every entry begins with, and nothing else in a program: a number drawn by lot.
    pub(crate) const MARK: [u64; 2] = [0x6d1f_83c2_a05e_97b4, 0xe92b_40d7_1c66_f385];

    pub(crate) const fn new(role: Role) -> Self {
        Self { mark: Self::MARK, role }
    }

    /// The entry of a function.
    pub(crate) fn of<F, Args, Kind>(_function: F) -> &'static Self
    where
        F: Function<Args, Kind>,
        Args: DeserializeOwned,
    {
        TaskOf::<F, Args, Kind>::ENTRY
    }

    /// The entry of a lifespan.
    pub(crate) fn of_lifespan<Enter, Entering, Exit, Exiting, S>(_enter: Enter, _exit: Exit) -> &'static Self
    where
        Enter: Fn() -> Entering + Copy + Send + Sync + 'static,
        Entering: Future<Output = Result<S, RemoteError>> + 'static,
        Exit: Fn(Arc<S>) -> Exiting + Copy + Send + Sync + 'static,
        Exiting: Future<Output = ()> + 'static,
        S: Send + Sync + 'static,
    {
        LifespanOf::<Enter, Entering, Exit, Exiting, S>::ENTRY
    }
}

/// A function that is no data, made out of nothing.
pub(crate) fn function<F: Copy + Send + Sync + 'static>() -> &'static F {
    const {
        assert!(
            size_of::<F>() == 0,
            "a pool runs functions, and closures that capture nothing: pass what this captures as an argument"
        );
    }
    // SAFETY: of no bytes, so a pointer to none is as good as any. It is inhabited, as a caller had one, and being
    // `Copy + Send + Sync + 'static` it may be had any number of times, by anyone, for ever.
    unsafe { NonNull::<F>::dangling().as_ref() }
}

struct TaskOf<F, Args, Kind>(PhantomData<(F, Args, Kind)>);

impl<F: Function<Args, Kind>, Args: DeserializeOwned, Kind> TaskOf<F, Args, Kind> {
    const ENTRY: &'static Entry = &Entry::new(Role::Task(TaskRole { call: Self::call, is_plain: F::IS_PLAIN }));

    fn call(arguments: &[u8], memory: Option<Arc<Memory>>, out: &mut Vec<u8>) -> Called {
        let arguments = match codec::read::<Args>(arguments, memory.as_ref()) {
            Ok(arguments) => arguments,
            Err(error) => return Called::Done(Err(Failure::unreadable::<Args>(&error))),
        };
        // The arguments hold of it what they need.
        drop(memory);
        match function::<F>().begin(arguments) {
            Begun::Done(result) => Called::Done(codec::write_result(&result, out)),
            Begun::Suspended(future) => Called::Suspended(Box::pin(async move {
                let (result, mut bytes) = (future.await, Vec::new());
                let outbox = codec::write_result(&result, &mut bytes)?;
                Ok(Written { bytes, outbox })
            })),
        }
    }
}

/// What the tasks of a worker share: what its lifespan made.
pub(crate) type State = Arc<dyn Any + Send + Sync>;

/// A lifespan: `enter` when a worker starts, `exit` when it ends.
#[derive(Clone, Copy)]
pub(crate) struct LifespanRole {
    pub(crate) enter: fn() -> Suspended<Result<State, RemoteError>>,
    pub(crate) exit: fn(State) -> Suspended<()>,
}

struct LifespanOf<Enter, Entering, Exit, Exiting, S>(PhantomData<(Enter, Entering, Exit, Exiting, S)>);

impl<Enter, Entering, Exit, Exiting, S> LifespanOf<Enter, Entering, Exit, Exiting, S>
where
    Enter: Fn() -> Entering + Copy + Send + Sync + 'static,
    Entering: Future<Output = Result<S, RemoteError>> + 'static,
    Exit: Fn(Arc<S>) -> Exiting + Copy + Send + Sync + 'static,
    Exiting: Future<Output = ()> + 'static,
    S: Send + Sync + 'static,
{
    const ENTRY: &'static Entry = &Entry::new(Role::Lifespan(LifespanRole { enter: Self::enter, exit: Self::exit }));

    fn enter() -> Suspended<Result<State, RemoteError>> {
        let entering = function::<Enter>()();
        Box::pin(async move { Ok(Arc::new(entering.await?) as State) })
    }

    fn exit(state: State) -> Suspended<()> {
        match state.downcast::<S>() {
            Ok(state) => Box::pin(function::<Exit>()(state)),
            Err(_) => unreachable!("`enter` made it"),
        }
    }
}
