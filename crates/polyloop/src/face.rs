//! The Rust API: pools on tokio, whose workers are the same program.

mod buffer;
mod builder;
mod call;
mod codec;
mod error;
mod function;
mod host;
mod limits;
mod log;
mod manager;
mod map;
mod pending;
mod pool;
mod program;
#[cfg(feature = "python")]
mod python;
mod reference;
mod retry;
mod shape;
mod starter;
mod stats;
mod stream;
mod stream_function;
mod watched;

pub use buffer::Buffer;
pub use builder::Builder;
pub use call::{Apply, TaskHandle};
pub use error::{Error, RemoteError, TaskPanicked, WorkerDied};
pub use function::{Begun, Function, kind};
pub use host::worker_state;
pub use map::{Map, Unordered};
pub use pool::Pool;
pub use program::init;
#[cfg(feature = "python")]
pub use python::{PyCall, PythonBuilder, PythonError, PythonPool};
pub use stats::{Stats, WorkerStats};
pub use stream::TaskStream;
pub use stream_function::StreamFunction;

/// What `#[polyloop::main]` makes calls to.
#[cfg(feature = "macros")]
pub mod private {
    use std::future::Future;

    use tokio::runtime::Builder;

    /// Runs a program on tokio's runtime of many threads.
    pub fn many_threads<T>(main: impl Future<Output = T>) -> T {
        run(&mut Builder::new_multi_thread(), main)
    }

    /// Runs a program on tokio's runtime of one thread.
    pub fn current_thread<T>(main: impl Future<Output = T>) -> T {
        run(&mut Builder::new_current_thread(), main)
    }

    fn run<T>(builder: &mut Builder, main: impl Future<Output = T>) -> T {
        builder.enable_all().build().expect("the system has threads and descriptors for the runtime").block_on(main)
    }
}
