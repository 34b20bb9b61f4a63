//! Every decision of a pool, and no effect: the pool manager and the worker's protocol as state machines.
//!
//! Time and events go in, actions come out; nothing here knows processes, memory, clocks, threads or Python. The
//! same code runs under asyncio, tokio, a thread and the simulator.
#![forbid(unsafe_code)]

mod bell;
mod blocks;
mod chunk;
mod conduct;
mod event;
mod frame;
mod hearing;
mod id;
mod map;
mod nested;
mod payload;
mod pool;
mod schedule;
mod stats;
mod stream;
mod supervise;
mod task;
mod value;
mod watch;
mod worker;

pub use bell::{Load, RING_AGAIN, Rest, Resting, whom_to_ring};
pub use blocks::{BLOCK_IDLE, BlockId, BlockTable, Discarded, NotLent, Taken};
pub use conduct::{Breach, CONTROL_WAITING_MAX, Conduct, Heard, MAX_REPLY, Standing};
pub use event::{Dead, Input, Output, Place, Refused, Report};
pub use frame::{
    BlockFrame, ControlFrame, FrameError, LOG_RECORD_BYTES, Large, Reply, ResultFrame, Terms, split_large, write_large,
};
pub use hearing::HearingWatch;
pub use id::{ALONE_LANE, CallId, Moment, NestedId, QueueIndex, TaskId, WorkerId};
pub use map::{Cut, MapResults, Next as NextResult, Want};
pub use nested::{Ask, NESTED_MAX, Nest, TooMany, WAITING_MAX, split_answer, write_answer};
pub use payload::{Luggage, Payload};
pub use pool::{Pool, PoolConfig};
pub use stats::{Cause, Counts};
pub use stream::{Flow, Intake, STREAM_BYTES, STREAM_VALUES, Unasked};
pub use supervise::{Exit, HOPELESS_EXIT, Stage, StartError, State, WorkerView};
pub use task::{Loss, OnDeath, Outcome, Parcel, Submission};
pub use value::{Apart, Value, ValueError, ValueReader, ValueWriter, lay_apart};
pub use watch::{Look, LoopWatch};
pub use worker::{DEFER, Leave, OVERDUE_EXITCODE, PeerView, Stop, Worker, WorkerConfig};
