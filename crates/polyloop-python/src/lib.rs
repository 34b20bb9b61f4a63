//! The extension module `polyloop._core`: registration only.

mod apart;
mod apply;
mod budget;
mod call_port;
mod codec;
mod errors;
mod lazy;
mod manager;
mod map;
mod messagepack;
mod options;
mod pending;
mod port;
mod queue;
mod select;
mod stream;
mod submitter;
mod task;
mod thread;
mod worker;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    /// What a process exits with that finds itself started while it imports the program's main module.
    #[pymodule_export]
    const NO_MAIN_GUARD_EXITCODE: i32 = polyloop::HOPELESS_EXIT;

    /// Version of all that a worker and its pool must agree on.
    #[pymodule_export]
    const PROTOCOL: u64 = polyloop::PROTOCOL;

    /// Buffers of this many bytes and more travel apart from what they belong to.
    #[pymodule_export]
    const LARGE_BYTES: usize = polyloop::LARGE_BYTES;

    /// The largest record of a worker's log, in bytes.
    #[pymodule_export]
    const LOG_RECORD_BYTES: usize = polyloop::LOG_RECORD_BYTES;

    /// How many values of a stream may be under way.
    #[pymodule_export]
    const STREAM_VALUES: usize = polyloop::STREAM_VALUES;

    /// Bytes of values after which no other is given until some were taken.
    #[pymodule_export]
    const STREAM_BYTES: usize = polyloop::STREAM_BYTES;

    #[pymodule_export]
    use crate::apply::ApplyCall;
    #[pymodule_export]
    use crate::call_port::CallPort;
    #[pymodule_export]
    use crate::errors::die_with_parent;
    #[pymodule_export]
    use crate::manager::Manager;
    #[pymodule_export]
    use crate::map::MapCall;
    #[pymodule_export]
    use crate::messagepack::{read_message, write_message};
    #[pymodule_export]
    use crate::options::TaskOptions;
    #[pymodule_export]
    use crate::port::StreamPort;
    #[pymodule_export]
    use crate::queue::{Queue, QueueWatch};
    #[pymodule_export]
    use crate::select::Select;
    #[pymodule_export]
    use crate::stream::StreamCall;
    #[pymodule_export]
    use crate::task::Done;
    #[pymodule_export]
    use crate::thread::ThreadCall;
    #[pymodule_export]
    use crate::worker::Worker;
}
