//! The engine of a pool: processes, descriptors, timers and shared memory around the decisions of the core.
//!
//! [`Driver`] is the client's side and runs under any event loop: it has one descriptor to watch, a [`Driver::drain`]
//! to call when it is readable, and a [`Driver::deadline`]. [`WorkerLink`] is the worker's side. How a worker
//! process is made, and what a function is, is up to the host.

mod blocks;
mod driver;
mod inject;
mod layout;
mod link;
mod memory;
mod os;
mod process;
mod queue;
mod watchdog;
mod worker;

pub use blocks::{BlockError, Lease, Memory, MemoryError};
pub use driver::{Driver, DriverConfig, DriverError, Event, StartOrder, Values};
pub use os::{READABLE, Thread, WRITABLE, forked_generation, interrupt_signal, part_from_parent, wait_for_events};
pub use polyloop_core::{
    Apart, CallId, Cause, Counts, Cut, DEFER, Exit, Flow, HOPELESS_EXIT, LOG_RECORD_BYTES, Loss, Luggage, MAX_REPLY,
    MapResults, Moment, NextResult, OVERDUE_EXITCODE, Outcome, Payload, QueueIndex, Refused, Reply, Report,
    STREAM_BYTES, STREAM_VALUES, Stage, StartError, State, Stop, Submission, TaskId, Value, ValueError, ValueReader,
    ValueWriter, Want, WorkerId, WorkerView, lay_apart,
};
pub use polyloop_shm::{Item, Side};
pub use process::{ParentDeathError, die_with_parent};
pub use queue::{Nap, QueueError, SharedQueue, Watch};
pub use watchdog::{Interrupt, Watchdog};
pub use worker::{CannotPass, ConnectError, Control, Job, Next, Rested, WorkerError, WorkerLink};
