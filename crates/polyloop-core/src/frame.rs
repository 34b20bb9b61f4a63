//! The wire format: what goes through the rings between the manager and a worker.
//!
//! A record has a kind and a payload; most payloads begin with a task's number. What another process wrote is
//! parsed into an enum here, or refused.

use std::time::Duration;

use thiserror::Error;

use crate::blocks::BlockId;
use crate::id::{NestedId, TaskId};
use crate::stats::Cause;
use crate::worker::Stop;

/// How an item is to be run: goes with it in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Its function and arguments are not with it, and have to be fetched.
    pub large: bool,
    /// Nothing else may run in its worker meanwhile.
    pub alone: bool,
    /// Its arguments are to stay as they are: it may be run again.
    pub kept: bool,
    /// Which run of the task this is, from 1; counted up to 255.
    pub attempt: u8,
    /// How long it may run.
    pub timeout: Option<Duration>,
}

impl Terms {
    const LARGE: u64 = 1;
    const ALONE: u64 = 2;
    const KEPT: u64 = 4;
    const ATTEMPT_SHIFT: u32 = 8;
    /// Above this, microseconds; 0 for no timeout.
    const TIMEOUT_SHIFT: u32 = 16;

    /// As one word. A timeout is kept to the microsecond, and to 8 years.
    pub fn to_bits(self) -> u64 {
        let longest = u64::MAX >> Self::TIMEOUT_SHIFT;
        let micros = |timeout: Duration| u64::try_from(timeout.as_micros()).map_or(longest, |us| us.clamp(1, longest));
        let flag = |holds, flag| if holds { flag } else { 0 };
        self.timeout.map_or(0, micros) << Self::TIMEOUT_SHIFT
            | u64::from(self.attempt) << Self::ATTEMPT_SHIFT
            | flag(self.large, Self::LARGE)
            | flag(self.alone, Self::ALONE)
            | flag(self.kept, Self::KEPT)
    }

    /// From a word that another process wrote.
    pub fn from_bits(bits: u64) -> Self {
        let micros = bits >> Self::TIMEOUT_SHIFT;
        Self {
            large: bits & Self::LARGE != 0,
            alone: bits & Self::ALONE != 0,
            kept: bits & Self::KEPT != 0,
            attempt: (bits >> Self::ATTEMPT_SHIFT) as u8,
            timeout: (micros > 0).then(|| Duration::from_micros(micros)),
        }
    }
}

const VALUE: u32 = 1;
const RAISED: u32 = 2;
const CANCELLED: u32 = 3;
const REJECTED: u32 = 4;
const TIMED_OUT: u32 = 6;
const PIECE: u32 = 5;
const YIELD: u32 = 7;
const SUBMIT: u32 = 8;
const WITHDRAW: u32 = 9;
const READY: u32 = 16;
const FAILED: u32 = 17;
const RETIRING: u32 = 18;
const FETCH: u32 = 19;
const BLOCK: u32 = 20;
const RETURN: u32 = 21;
const FORGET: u32 = 22;
const LOG: u32 = 23;

const CANCEL: u32 = 32;
const STOP: u32 = 33;
const BYTES: u32 = 34;
const LAST_BYTES: u32 = 35;
const BLOCK_DOWN: u32 = 36;
const RETURN_DOWN: u32 = 37;
const FORGET_DOWN: u32 = 38;
const GIVE_BACK: u32 = 39;
const CREDIT: u32 = 40;

const TASK: usize = 8;

/// The largest record of a worker's log, in bytes.
pub const LOG_RECORD_BYTES: usize = 32 << 10;

/// A frame that no correct peer writes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// An unknown kind of record.
    #[error("a frame of unknown kind {0}")]
    Kind(u32),
    /// Too short for its kind.
    #[error("a frame of kind {kind} with only {len} bytes")]
    Short {
        /// The kind.
        kind: u32,
        /// Its length in bytes.
        len: usize,
    },
}

/// How an item ended in its worker. The bytes are the host's codec's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// It returned.
    Value(&'a [u8]),
    /// It raised.
    Raised(&'a [u8]),
    /// It was cancelled.
    Cancelled,
    /// It ran out of time.
    TimedOut,
    /// Its function could not be made.
    Rejected(&'a [u8]),
}

/// What either side says of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFrame {
    /// The large parts of what is about to come for this task are in this block of the sender's, from its start.
    Lent {
        /// Which task.
        task: TaskId,
        /// Which block.
        block: BlockId,
        /// How many bytes of it.
        bytes: u64,
    },
    /// The sender has no more use for this block of the receiver's.
    Returned {
        /// Which block.
        block: BlockId,
        /// Whether it may be written again: nobody else has got hold of it.
        reusable: bool,
    },
    /// The sender uses this block of its own no more.
    Forgotten(BlockId),
}

impl BlockFrame {
    /// Appends the payload; gives the place of the kind among the kinds of block frames.
    fn write(self, out: &mut Vec<u8>) -> u32 {
        let mut number = |number: u64| out.extend_from_slice(&number.to_le_bytes());
        match self {
            Self::Lent { task, block, bytes } => {
                [task.to_bits(), block.0, bytes].into_iter().for_each(number);
                0
            }
            Self::Returned { block, reusable } => {
                [block.0, u64::from(reusable)].into_iter().for_each(number);
                1
            }
            Self::Forgotten(block) => {
                number(block.0);
                2
            }
        }
    }

    fn parse(place: u32, kind: u32, payload: &[u8]) -> Result<Self, FrameError> {
        let number = |at: usize| {
            let word = payload.as_chunks::<8>().0.get(at).ok_or(FrameError::Short { kind, len: payload.len() })?;
            Ok(u64::from_le_bytes(*word))
        };
        Ok(match place {
            0 => Self::Lent { task: TaskId::from_bits(number(0)?), block: BlockId(number(1)?), bytes: number(2)? },
            1 => Self::Returned { block: BlockId(number(0)?), reusable: number(1)? != 0 },
            _ => Self::Forgotten(BlockId(number(0)?)),
        })
    }
}

impl<'a> Reply<'a> {
    /// The kind of a record that carries this, and the bytes that stand in it behind the task's.
    pub fn parts(&self) -> (u32, &'a [u8]) {
        match *self {
            Self::Value(bytes) => (VALUE, bytes),
            Self::Raised(bytes) => (RAISED, bytes),
            Self::Cancelled => (CANCELLED, &[]),
            Self::TimedOut => (TIMED_OUT, &[]),
            Self::Rejected(bytes) => (REJECTED, bytes),
        }
    }
}

/// From a worker to the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultFrame<'a> {
    /// An item ended; earlier pieces come before these bytes.
    Reply {
        /// Which task.
        task: TaskId,
        /// How.
        reply: Reply<'a>,
    },
    /// A value of an item that is a stream; earlier pieces come before these bytes.
    Yield {
        /// Which task.
        task: TaskId,
        /// The value, as the host's codec wrote it.
        bytes: &'a [u8],
    },
    /// A piece of a reply or a value too large for one record.
    Piece {
        /// Which task.
        task: TaskId,
        /// The next bytes.
        bytes: &'a [u8],
    },
    /// An item calls the pool; earlier pieces come before these bytes.
    Submit {
        /// Which task calls.
        task: TaskId,
        /// The call's number.
        number: NestedId,
        /// What, as [`Ask`](crate::Ask) writes it.
        bytes: &'a [u8],
    },
    /// Nobody wants this call's answer any more: it is to be cancelled.
    Withdraw(NestedId),
    /// The worker takes work.
    Ready,
    /// The worker could not be initialised.
    Failed(&'a [u8]),
    /// The worker claims nothing more, for this reason.
    Retiring(Cause),
    /// A record of the worker's log.
    Log {
        /// Records for which there was no room since the one before.
        dropped: u64,
        /// As the host wrote it; empty if only those are to be told.
        record: &'a [u8],
    },
    /// The worker has started a task whose bytes did not go into the slot, and needs them.
    Fetch(TaskId),
    /// Of blocks.
    Block(BlockFrame),
}

impl<'a> ResultFrame<'a> {
    /// The record's kind; its payload is left in `out`.
    pub fn write(&self, out: &mut Vec<u8>) -> u32 {
        out.clear();
        let mut with_task = |task: TaskId, kind, bytes: &[u8]| {
            out.extend_from_slice(&task.to_bits().to_le_bytes());
            out.extend_from_slice(bytes);
            kind
        };
        match *self {
            Self::Reply { task, reply } => {
                let (kind, bytes) = reply.parts();
                with_task(task, kind, bytes)
            }
            Self::Yield { task, bytes } => with_task(task, YIELD, bytes),
            Self::Piece { task, bytes } => with_task(task, PIECE, bytes),
            Self::Fetch(task) => with_task(task, FETCH, &[]),
            Self::Submit { task, number, bytes } => {
                out.extend_from_slice(&task.to_bits().to_le_bytes());
                out.extend_from_slice(&number.0.to_le_bytes());
                out.extend_from_slice(bytes);
                SUBMIT
            }
            Self::Withdraw(number) => with_task(number.to_task(), WITHDRAW, &[]),
            Self::Log { dropped, record } => {
                out.extend_from_slice(&dropped.to_le_bytes());
                out.extend_from_slice(record);
                LOG
            }
            Self::Ready => READY,
            Self::Retiring(cause) => {
                out.push(cause as u8);
                RETIRING
            }
            Self::Failed(bytes) => {
                out.extend_from_slice(bytes);
                FAILED
            }
            Self::Block(frame) => BLOCK + frame.write(out),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FrameError`] for what no correct worker writes.
    pub fn parse(kind: u32, payload: &'a [u8]) -> Result<Self, FrameError> {
        let reply = |reply: fn(&'a [u8]) -> Reply<'a>| {
            split_task(kind, payload).map(|(task, bytes)| Self::Reply { task, reply: reply(bytes) })
        };
        match kind {
            VALUE => reply(Reply::Value),
            RAISED => reply(Reply::Raised),
            CANCELLED => reply(|_| Reply::Cancelled),
            TIMED_OUT => reply(|_| Reply::TimedOut),
            REJECTED => reply(Reply::Rejected),
            YIELD => split_task(kind, payload).map(|(task, bytes)| Self::Yield { task, bytes }),
            PIECE => split_task(kind, payload).map(|(task, bytes)| Self::Piece { task, bytes }),
            FETCH => split_task(kind, payload).map(|(task, _)| Self::Fetch(task)),
            SUBMIT => {
                let (task, rest) = split_task(kind, payload)?;
                let (number, bytes) = rest.split_first_chunk().ok_or(FrameError::Short { kind, len: payload.len() })?;
                Ok(Self::Submit { task, number: NestedId(u32::from_le_bytes(*number)), bytes })
            }
            WITHDRAW => {
                let (number, _) = split_task(kind, payload)?;
                NestedId::from_task(number).map(Self::Withdraw).ok_or(FrameError::Kind(kind))
            }
            LOG => {
                let (dropped, record) =
                    payload.split_first_chunk().ok_or(FrameError::Short { kind, len: payload.len() })?;
                Ok(Self::Log { dropped: u64::from_le_bytes(*dropped), record })
            }
            READY => Ok(Self::Ready),
            RETIRING => {
                let cause = payload.first().and_then(|at| Cause::ALL.get(usize::from(*at)));
                cause.map(|cause| Self::Retiring(*cause)).ok_or(FrameError::Short { kind, len: payload.len() })
            }
            FAILED => Ok(Self::Failed(payload)),
            BLOCK | RETURN | FORGET => BlockFrame::parse(kind - BLOCK, kind, payload).map(Self::Block),
            _ => Err(FrameError::Kind(kind)),
        }
    }
}

/// From the manager to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFrame<'a> {
    /// Cancel a task, if it runs here.
    Cancel(TaskId),
    /// Stop.
    Stop(Stop),
    /// So many values of a stream have been taken: as many more may be given.
    Credit {
        /// Which task.
        task: TaskId,
        /// How many.
        values: u32,
    },
    /// Bytes of a task that was fetched, or of the answer to a call.
    Bytes {
        /// Which task, or, as [`NestedId::to_task`] writes it, which call.
        task: TaskId,
        /// The next bytes.
        bytes: &'a [u8],
        /// Whether they are the last.
        last: bool,
    },
    /// Of blocks.
    Block(BlockFrame),
    /// Give back the memory of every block that nobody uses.
    GiveBack,
}

impl<'a> ControlFrame<'a> {
    /// The record's kind; its payload is left in `out`.
    pub fn write(&self, out: &mut Vec<u8>) -> u32 {
        out.clear();
        match *self {
            Self::Cancel(task) => {
                out.extend_from_slice(&task.to_bits().to_le_bytes());
                CANCEL
            }
            Self::Stop(stop) => {
                out.push(u8::from(stop == Stop::Now));
                STOP
            }
            Self::Credit { task, values } => {
                out.extend_from_slice(&task.to_bits().to_le_bytes());
                out.extend_from_slice(&values.to_le_bytes());
                CREDIT
            }
            Self::Bytes { task, bytes, last } => {
                out.extend_from_slice(&task.to_bits().to_le_bytes());
                out.extend_from_slice(bytes);
                if last { LAST_BYTES } else { BYTES }
            }
            Self::Block(frame) => BLOCK_DOWN + frame.write(out),
            Self::GiveBack => GIVE_BACK,
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FrameError`] for what no correct manager writes.
    pub fn parse(kind: u32, payload: &'a [u8]) -> Result<Self, FrameError> {
        match kind {
            CANCEL => split_task(kind, payload).map(|(task, _)| Self::Cancel(task)),
            STOP => match payload {
                [0, ..] => Ok(Self::Stop(Stop::WhenDone)),
                [_, ..] => Ok(Self::Stop(Stop::Now)),
                [] => Err(FrameError::Short { kind, len: 0 }),
            },
            CREDIT => {
                let (task, values) = split_task(kind, payload)?;
                let values = values.first_chunk().ok_or(FrameError::Short { kind, len: payload.len() })?;
                Ok(Self::Credit { task, values: u32::from_le_bytes(*values) })
            }
            BYTES | LAST_BYTES => {
                split_task(kind, payload).map(|(task, bytes)| Self::Bytes { task, bytes, last: kind == LAST_BYTES })
            }
            BLOCK_DOWN | RETURN_DOWN | FORGET_DOWN => {
                BlockFrame::parse(kind - BLOCK_DOWN, kind, payload).map(Self::Block)
            }
            GIVE_BACK => Ok(Self::GiveBack),
            _ => Err(FrameError::Kind(kind)),
        }
    }
}

/// A fetched task in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large<'a> {
    /// The function.
    pub function: &'a [u8],
    /// The arguments.
    pub arguments: &'a [u8],
    /// The arguments' large parts, where they are not in a block.
    pub apart: &'a [u8],
}

/// A fetched task's bytes in one run: the lengths of the function and of the arguments, then all parts.
pub fn write_large(task: Large<'_>) -> Vec<u8> {
    let Large { function, arguments, apart } = task;
    let lengths = [function, arguments].map(|part| (part.len() as u64).to_le_bytes());
    [&lengths[0], &lengths[1], function, arguments, apart].concat()
}

/// The parts of a fetched task, or `None` where the lengths do not fit.
pub fn split_large(bytes: &[u8]) -> Option<Large<'_>> {
    let (lengths, rest) = bytes.split_first_chunk::<{ 2 * TASK }>()?;
    let [function, arguments] = [0, TASK].map(|at| lengths[at..].first_chunk().map(|len| u64::from_le_bytes(*len)));
    let (function, rest) = rest.split_at_checked(usize::try_from(function?).ok()?)?;
    let (arguments, apart) = rest.split_at_checked(usize::try_from(arguments?).ok()?)?;
    Some(Large { function, arguments, apart })
}

fn split_task(kind: u32, payload: &[u8]) -> Result<(TaskId, &[u8]), FrameError> {
    let (task, rest) = payload.split_first_chunk::<TASK>().ok_or(FrameError::Short { kind, len: payload.len() })?;
    Ok((TaskId::from_bits(u64::from_le_bytes(*task)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: TaskId = TaskId { index: 3, generation: 9 };

    #[test]
    fn result_frames_come_back_as_they_went_in() {
        let frames = [
            ResultFrame::Reply { task: T, reply: Reply::Value(b"v") },
            ResultFrame::Reply { task: T, reply: Reply::Raised(b"e") },
            ResultFrame::Reply { task: T, reply: Reply::Cancelled },
            ResultFrame::Reply { task: T, reply: Reply::Rejected(b"") },
            ResultFrame::Yield { task: T, bytes: b"y" },
            ResultFrame::Piece { task: T, bytes: b"p" },
            ResultFrame::Log { dropped: 3, record: b"r" },
            ResultFrame::Ready,
            ResultFrame::Failed(b"f"),
            ResultFrame::Retiring(Cause::Memory),
            ResultFrame::Fetch(T),
            ResultFrame::Block(BlockFrame::Lent { task: T, block: BlockId(1), bytes: 9 }),
            ResultFrame::Block(BlockFrame::Returned { block: BlockId(2), reusable: true }),
            ResultFrame::Block(BlockFrame::Forgotten(BlockId(3))),
        ];
        let mut out = Vec::new();
        for frame in frames {
            let kind = frame.write(&mut out);
            assert_eq!(ResultFrame::parse(kind, &out), Ok(frame));
        }
    }

    #[test]
    fn terms_come_back_as_they_went_in() {
        for timeout in [None, Some(Duration::from_micros(1)), Some(Duration::from_secs(86_400 * 365))] {
            for (large, alone) in [(false, false), (true, false), (false, true)] {
                let terms = Terms { large, alone, kept: !large, attempt: 255, timeout };
                assert_eq!(Terms::from_bits(terms.to_bits()), terms);
            }
        }
    }

    #[test]
    fn control_frames_come_back_as_they_went_in() {
        let frames = [
            ControlFrame::Cancel(T),
            ControlFrame::Stop(Stop::Now),
            ControlFrame::Stop(Stop::WhenDone),
            ControlFrame::Credit { task: T, values: 7 },
            ControlFrame::Bytes { task: T, bytes: b"abc", last: false },
            ControlFrame::Bytes { task: T, bytes: b"", last: true },
            ControlFrame::Block(BlockFrame::Lent { task: T, block: BlockId(1), bytes: 9 }),
            ControlFrame::Block(BlockFrame::Returned { block: BlockId(2), reusable: false }),
            ControlFrame::Block(BlockFrame::Forgotten(BlockId(3))),
            ControlFrame::GiveBack,
        ];
        let mut out = Vec::new();
        for frame in frames {
            let kind = frame.write(&mut out);
            assert_eq!(ControlFrame::parse(kind, &out), Ok(frame));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_parsed_but_never_a_panic(kind in 0u32..64, bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = ResultFrame::parse(kind, &bytes);
            let _ = ControlFrame::parse(kind, &bytes);
            let _ = split_large(&bytes);
        }

        #[test]
        fn a_large_task_splits_where_it_was_joined(parts in proptest::array::uniform3(proptest::collection::vec(any::<u8>(), 0..40))) {
            let task = Large { function: &parts[0], arguments: &parts[1], apart: &parts[2] };
            let bytes = write_large(task);
            prop_assert_eq!(split_large(&bytes), Some(task));
        }
    }
}
