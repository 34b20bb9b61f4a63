//! Async and plain functions on a pool of worker processes, each with a tokio runtime of its own.
//!
//! A task that crashes, leaks or never ends takes its worker with it, not the program: what else that worker ran is run
//! again or told, another takes its place, and no process outlives the program. Tasks are ordinary functions, called with
//! ordinary arguments; the same program is its own worker.
//!
//! ```
//! use futures_util::TryStreamExt;
//! use polyloop::{Error, Pool};
//!
//! async fn double(n: u64) -> u64 {
//!     n * 2
//! }
//!
//! #[polyloop::main]
//! async fn main() -> Result<(), Error> {
//!     let pool = Pool::builder().processes(2).retries(1).build().await?;
//!     assert_eq!(pool.apply(double, (21,)).await?, 42);
//!     let all: Vec<u64> = pool.map(double, 0..1000).try_collect().await?;
//!     assert_eq!(all[999], 1998);
//!     let crashed = pool.apply(|| -> () { std::process::abort() }, ()).await;
//!     assert!(matches!(crashed, Err(Error::WorkerDied(_))));
//!     pool.close().await
//! }
//! ```
//!
//! # What can be a task
//!
//! Anything of which only its identity has to travel: a `fn`, an `async fn`, a method, a generic function with its types
//! given, a closure that captures nothing. Arguments and results travel by [serde], in postcard's format. Functions whose
//! errors serde does not know return [`RemoteError`]. See [`Function`].
//!
//! A function that returns a `Stream` gives its values one by one: [`Pool::stream`].
//!
//! # Where tasks run
//!
//! A worker's runtime has one thread. Many async tasks share it ([`Builder::concurrency`]); a plain function has it for
//! itself, so that one that computes keeps its worker from taking more and idle workers get the rest. Plain functions that
//! wait rather than compute run beside the others with [`Pool::in_thread`].
//!
//! # Features
//!
//! - `macros` (default): `#[polyloop::main]`.
//! - `python`: `PythonPool`, whose workers are Python interpreters, and which calls Python functions. Nothing of Python is
//!   linked into the program.
//! - `bytes`: [`Buffer`]s made of `bytes::Bytes`, and turned into them, without a copy.
//! - `tracing`: what befalls workers, and what those of a `PythonPool` log, as [events](#events).
//! - `anyhow`: `?` on a [`RemoteError`] in functions that return an `anyhow::Error`.
//!
//! # Events
//!
//! With the feature `tracing`, whoever operates the program hears of what no call tells, as events of the target `polyloop`:
//!
//! | level | message | fields | when |
//! |---|---|---|---|
//! | WARN | `a worker died` | `pid`, `exit` (as "exit code 1", "signal 9"), `retried`, `lost`, `judged` | of the tasks that it ran, so many run again, so many ended with [`Error::WorkerDied`] or [`Error::PoisonTask`], and of so many [`Pool::retry_on`] is to say |
//! | WARN | `` `retry_on` panicked, so a task is not run again `` | `error` | the task ended with that error |
//! | WARN | `workers do not start; trying again` | `error` | after a pool had workers that did |
//! | WARN | `workers start again` | | after that |
//! | WARN | `a worker is blocked by one call` | `pid`, `blocked_ms`, `stack` (of Python) | once for each time: [`Builder::block_warning`] |
//! | WARN | `a worker wrote what no correct worker writes, and is replaced` | `worker`, `problem` | its memory is damaged |
//! | WARN | `terminated with unfinished tasks` | `unfinished` | a pool was terminated, or its last handle dropped |
//! | WARN | `a worker logged more than there was room for` | `pid`, `dropped` | so many records of a Python worker are missing here |
//! | WARN | `a worker sent a log record that can't be read` | `pid`, `error` | by a Python worker |
//! | ERROR | `a pool can't be driven any more` | `error` | the operating system refuses what the pool lives from |
//!
//! What Python workers log themselves are events of their loggers' names: see `PythonBuilder::forward_logs`. Workers of a [`Pool`]
//! are this program, and have a subscriber of their own where the program gives them one, in a
//! [lifespan](Builder::lifespan) or before [`init`].
//!
//! The subscriber that hears of a pool is the current one where the pool is built, else the program's. It is told while
//! nothing of the pool is locked, so it may ask the pool; the pool goes on when it returns, and ends if
//! it panics.
//!
//! Linux 5.3 or later. In a forked child of the program its pools can't be used.

mod blocks;
mod driver;
#[cfg(feature = "tokio")]
mod face;
mod inject;
mod layout;
mod link;
mod manner;
mod memory;
mod message;
mod os;
mod process;
mod queue;
#[cfg(feature = "tokio")]
mod signals;
mod watchdog;
mod worker;

#[cfg(all(feature = "tokio", feature = "macros"))]
#[doc(hidden)]
pub use face::private as __private;
#[cfg(feature = "tokio")]
pub use face::{
    Apply, Begun, Buffer, Builder, Error, Function, Map, Pool, RemoteError, Stats, StreamFunction, TaskHandle,
    TaskPanicked, TaskStream, Unordered, WorkerDied, WorkerStats, init, kind, worker_state,
};
#[cfg(feature = "python")]
pub use face::{PyCall, PythonBuilder, PythonError, PythonPool};
#[cfg(feature = "macros")]
pub use polyloop_macros::main;

// What says how a pool and its workers are.
pub use polyloop_core::{Cause, Exit, Stage, State};

// The engine, for the Python extension and the tests of this workspace: no promise is made of it.
#[doc(hidden)]
pub use blocks::{BlockError, Lease, Memory, MemoryError};
#[doc(hidden)]
pub use driver::{Driver, DriverConfig, DriverError, Event, PROTOCOL, StartOrder, Values};
#[doc(hidden)]
pub use manner::{Manner, travels_by_name};
#[doc(hidden)]
pub use message::{EXT_APART, EXT_INT, EXT_VIEW, LARGE_BYTES, Span, WideInt};
#[doc(hidden)]
pub use os::{READABLE, Thread, WRITABLE, forked_generation, interrupt_signal, part_from_parent, wait_for_events};
#[doc(hidden)]
pub use polyloop_core::{
    Apart, Ask, CallId, Counts, Cut, DEFER, Flow, HOPELESS_EXIT, LOG_RECORD_BYTES, Loss, Luggage, MAX_REPLY,
    MapResults, Moment, NestedId, NextResult, OVERDUE_EXITCODE, OnDeath, Outcome, Payload, QueueIndex, Refused, Reply,
    Report, STREAM_BYTES, STREAM_VALUES, StartError, Stop, Submission, TaskId, TooMany, Value, ValueError, ValueReader,
    ValueWriter, Want, WorkerId, WorkerView, lay_apart,
};
#[doc(hidden)]
pub use polyloop_shm::{Item, Side};
#[doc(hidden)]
pub use process::{ParentDeathError, die_with_parent};
#[doc(hidden)]
pub use queue::{Nap, QueueError, SharedQueue, Watch};
#[doc(hidden)]
pub use watchdog::{Interrupt, Watchdog};
#[doc(hidden)]
pub use worker::{AskError, CannotPass, ConnectError, Control, Job, Next, Rested, WorkerError, WorkerLink};
