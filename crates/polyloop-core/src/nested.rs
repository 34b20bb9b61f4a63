//! Calls that tasks make of the pool that runs them: what is written of them, and how many a worker may have.
//!
//! ```text
//!  task --Ask--> Nest (its worker's account) --Submit frame--> manager: Conduct, then a task like any other
//!   ^             its caller gives its place back                                          |
//!   `------------ answered: it has its place again <--Answer, in pieces--- its outcome <---'
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use smallvec::SmallVec;
use thiserror::Error;

use crate::frame::{Large, split_large, write_large};
use crate::id::{NestedId, TaskId, WorkerId};
use crate::payload::Payload;
use crate::supervise::{Exit, StartError};
use crate::task::{Loss, Outcome};

/// Calls of one worker's tasks that may be unanswered.
pub const NESTED_MAX: usize = 1 << 16;
/// Tasks of one worker that may wait for calls of their own: each has given its place to another.
pub const WAITING_MAX: u32 = 4096;

/// Why a task may not make another call now.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TooMany {
    /// Of the worker's tasks.
    #[error("{WAITING_MAX} tasks of this worker wait for tasks of their own, and no more may")]
    Waiting,
    /// Of their calls.
    #[error("{NESTED_MAX} calls of this worker's tasks are unanswered, and no more may be")]
    Calls,
    /// Of their calls' bytes.
    #[error("the unanswered calls of this worker's tasks may have {0} bytes, and no more")]
    Bytes(u64),
}

/// A call as its worker puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// It is not cancelled with its caller: which task that is, is a guess.
    pub is_loose: bool,
    /// How many times it may be run again.
    pub retries: u32,
    /// Whether the death of its worker is a reason to.
    pub retry_deaths: bool,
    /// Which run of it this is, from 1.
    pub attempt: u32,
    /// How long a run may take.
    pub timeout: Option<Duration>,
    /// The function, as the host's codec wrote it.
    pub function: &'a [u8],
    /// The arguments, as the host's codec wrote them.
    pub arguments: &'a [u8],
}

const LOOSE: u32 = 1;
const RETRY_DEATHS: u32 = 2;

impl<'a> Ask<'a> {
    /// As bytes.
    pub fn write(&self) -> Vec<u8> {
        let flag = |holds, flag| if holds { flag } else { 0 };
        let flags = flag(self.is_loose, LOOSE) | flag(self.retry_deaths, RETRY_DEATHS);
        // As in `Terms`: none is 0, and the shortest is a microsecond.
        let micros = |timeout: Duration| u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX).max(1);
        let words = [flags, self.retries, self.attempt, 0].map(u32::to_le_bytes);
        let lengths = [self.timeout.map_or(0, micros), self.function.len() as u64].map(u64::to_le_bytes);
        [words.as_flattened(), lengths.as_flattened(), self.function, self.arguments].concat()
    }

    /// From bytes that a worker wrote, or `None` where the lengths do not fit.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (words, rest) = bytes.split_first_chunk::<16>()?;
        let (lengths, rest) = rest.split_first_chunk::<16>()?;
        let &[flags, retries, attempt, _] = words.as_chunks::<4>().0.first_chunk::<4>()?;
        let &[micros, len] = lengths.as_chunks::<8>().0.first_chunk::<2>()?;
        let (micros, len) = (u64::from_le_bytes(micros), usize::try_from(u64::from_le_bytes(len)).ok()?);
        let (function, arguments) = rest.split_at_checked(len)?;
        let flags = u32::from_le_bytes(flags);
        Some(Self {
            is_loose: flags & LOOSE != 0,
            retries: u32::from_le_bytes(retries),
            retry_deaths: flags & RETRY_DEATHS != 0,
            attempt: u32::from_le_bytes(attempt),
            timeout: (micros > 0).then(|| Duration::from_micros(micros)),
            function,
            arguments,
        })
    }
}

/// The calls of one worker's tasks that are unanswered, as the worker knows them.
#[derive(Debug, Default)]
pub struct Nest {
    asked: BTreeMap<NestedId, Asked>,
    bytes: u64,
    /// Tasks with unanswered calls, and how many.
    waiting: BTreeMap<TaskId, u32>,
    last: u32,
}

#[derive(Debug)]
struct Asked {
    /// Whoever may wait for it: one, where that is known.
    callers: SmallVec<[TaskId; 1]>,
    bytes: u64,
}

impl Nest {
    /// Whether nothing is unanswered.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Tasks that may wait for an answer.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// A call of one of these tasks: its number, with which it counts as unanswered.
    ///
    /// # Errors
    /// [`TooMany`]: nothing has changed.
    pub fn ask(&mut self, callers: &[TaskId], bytes: u64, bytes_max: u64) -> Result<NestedId, TooMany> {
        let new = callers.iter().filter(|caller| !self.waiting.contains_key(caller)).count() as u32;
        if new > 0 && self.waiting() + new > WAITING_MAX {
            return Err(TooMany::Waiting);
        }
        if self.asked.len() >= NESTED_MAX {
            return Err(TooMany::Calls);
        }
        if self.bytes.saturating_add(bytes) > bytes_max {
            return Err(TooMany::Bytes(bytes_max));
        }
        while self.asked.contains_key(&NestedId(self.last)) {
            self.last = self.last.wrapping_add(1);
        }
        let number = NestedId(self.last);
        self.last = self.last.wrapping_add(1);
        callers.iter().for_each(|caller| *self.waiting.entry(*caller).or_default() += 1);
        self.bytes += bytes;
        self.asked.insert(number, Asked { callers: SmallVec::from_slice(callers), bytes });
        Ok(number)
    }

    /// The answer to a call has come. Says whether anybody had asked.
    pub fn answered(&mut self, number: NestedId) -> bool {
        let Some(Asked { callers, bytes }) = self.asked.remove(&number) else { return false };
        self.bytes -= bytes;
        for caller in callers {
            // One that has ended waits for nothing.
            if let Some(calls) = self.waiting.get_mut(&caller) {
                *calls -= 1;
                if *calls == 0 {
                    self.waiting.remove(&caller);
                }
            }
        }
        true
    }

    /// A task has ended: whatever it has asked for, it waits no more.
    pub fn ended(&mut self, task: TaskId) {
        self.waiting.remove(&task);
    }
}

/// What an answer says besides its bytes.
const VALUE: u64 = 0;
const RAISED: u64 = 1;
const CANCELLED: u64 = 2;
const TIMED_OUT: u64 = 3;
const REJECTED: u64 = 4;
const LOST: u64 = 5;
const TERMINATED: u64 = 6;
const NO_WORKERS_RAISED: u64 = 7;
const NO_WORKERS_EXITED: u64 = 8;
const NO_WORKERS_REFUSED: u64 = 9;

/// An answer as bytes. `apart` are the large parts of its payload, where they are not in a block.
pub fn write_answer(outcome: &Outcome, apart: &[u8]) -> Vec<u8> {
    let (words, bytes): (SmallVec<[u64; 8]>, &[u8]) = match outcome {
        Outcome::Value(value) => (SmallVec::from_slice(&[VALUE]), value),
        Outcome::Raised(error) => (SmallVec::from_slice(&[RAISED]), error),
        Outcome::Rejected(reason) => (SmallVec::from_slice(&[REJECTED]), reason),
        Outcome::Cancelled => (SmallVec::from_slice(&[CANCELLED]), &[]),
        Outcome::TimedOut => (SmallVec::from_slice(&[TIMED_OUT]), &[]),
        Outcome::Terminated => (SmallVec::from_slice(&[TERMINATED]), &[]),
        Outcome::NoWorkers(StartError::Raised(error)) => (SmallVec::from_slice(&[NO_WORKERS_RAISED]), error),
        Outcome::NoWorkers(StartError::Refused(why)) => (SmallVec::from_slice(&[NO_WORKERS_REFUSED]), why.as_bytes()),
        Outcome::NoWorkers(StartError::Exited(exit)) => {
            let [kind, code] = exit_words(*exit);
            (SmallVec::from_slice(&[NO_WORKERS_EXITED, kind, code]), &[])
        }
        Outcome::Lost(Loss { worker, pid, exit, attempt, poison }) => {
            let [kind, code] = exit_words(*exit);
            let worker = u64::from(worker.seat) << 32 | u64::from(worker.generation);
            let pid = pid.map_or(u64::MAX, u64::from);
            (SmallVec::from_slice(&[LOST, kind, code, worker, pid, (*attempt).into(), (*poison).into()]), &[])
        }
    };
    let head: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    write_large(Large { function: &head, arguments: bytes, apart })
}

/// An answer, and the large parts of its payload that came with it; or `None` where it makes no sense.
pub fn split_answer(bytes: &[u8]) -> Option<(Outcome, &[u8])> {
    let Large { function: head, arguments: bytes, apart } = split_large(bytes)?;
    let words: SmallVec<[u64; 8]> = head.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let payload = || Payload::from_slice(bytes);
    let outcome = match *words.as_slice() {
        [VALUE] => Outcome::Value(payload()),
        [RAISED] => Outcome::Raised(payload()),
        [REJECTED] => Outcome::Rejected(payload()),
        [CANCELLED] => Outcome::Cancelled,
        [TIMED_OUT] => Outcome::TimedOut,
        [TERMINATED] => Outcome::Terminated,
        [NO_WORKERS_RAISED] => Outcome::NoWorkers(StartError::Raised(bytes.into())),
        [NO_WORKERS_REFUSED] => Outcome::NoWorkers(StartError::Refused(String::from_utf8_lossy(bytes).into())),
        [NO_WORKERS_EXITED, kind, code] => Outcome::NoWorkers(StartError::Exited(exit_of(kind, code)?)),
        [LOST, kind, code, worker, pid, attempt, poison] => Outcome::Lost(Loss {
            worker: WorkerId { seat: (worker >> 32) as u16, generation: worker as u32 },
            pid: u32::try_from(pid).ok(),
            exit: exit_of(kind, code)?,
            attempt: attempt as u32,
            poison: poison != 0,
        }),
        _ => return None,
    };
    Some((outcome, apart))
}

fn exit_words(exit: Exit) -> [u64; 2] {
    match exit {
        Exit::Code(code) => [0, u64::from(code.cast_unsigned())],
        Exit::Signal(signal) => [1, u64::from(signal.cast_unsigned())],
        Exit::OutOfMemory => [2, 0],
        Exit::Unknown => [3, 0],
    }
}

fn exit_of(kind: u64, code: u64) -> Option<Exit> {
    let code = (code as u32).cast_signed();
    Some(match kind {
        0 => Exit::Code(code),
        1 => Exit::Signal(code),
        2 => Exit::OutOfMemory,
        3 => Exit::Unknown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 100;

    fn task(index: u32) -> TaskId {
        TaskId { index, generation: 1 }
    }

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let ask = Ask {
            is_loose: true,
            retries: 3,
            retry_deaths: true,
            attempt: 2,
            timeout: Some(Duration::from_millis(5)),
            function: b"f",
            arguments: b"xyz",
        };
        let bytes = ask.write();
        assert_eq!(Ask::parse(&bytes), Some(ask));
        assert!((0..bytes.len() - ask.arguments.len()).all(|len| Ask::parse(&bytes[..len]).is_none()));
        let plain = Ask { is_loose: false, retry_deaths: false, timeout: None, ..ask };
        assert_eq!(Ask::parse(&plain.write()), Some(plain));
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let exits = [Exit::Code(-3), Exit::Signal(9), Exit::OutOfMemory, Exit::Unknown];
        let worker = WorkerId { seat: 3, generation: 9 };
        let lost = |exit| Outcome::Lost(Loss { worker, pid: Some(17), exit, attempt: 2, poison: true });
        let outcomes = exits.into_iter().flat_map(|exit| [lost(exit), Outcome::NoWorkers(StartError::Exited(exit))]);
        let payload = || Payload::from_slice(b"bytes");
        let others = [
            Outcome::Value(payload()),
            Outcome::Raised(payload()),
            Outcome::Rejected(payload()),
            Outcome::Cancelled,
            Outcome::TimedOut,
            Outcome::Terminated,
            Outcome::NoWorkers(StartError::Raised((*b"error").into())),
            Outcome::NoWorkers(StartError::Refused("no".into())),
        ];
        for outcome in outcomes.chain(others) {
            let bytes = write_answer(&outcome, b"apart");
            assert_eq!(split_answer(&bytes), Some((outcome, &b"apart"[..])));
        }
        assert_eq!(split_answer(&write_large(Large { function: b"nonsense", arguments: &[], apart: &[] })), None);
    }

    #[test]
    fn a_task_waits_from_its_first_call_to_its_last_answer() {
        let mut nest = Nest::default();
        let first = nest.ask(&[task(1)], 1, MAX).unwrap();
        let second = nest.ask(&[task(1)], 1, MAX).unwrap();
        nest.ask(&[task(2)], 1, MAX).unwrap();
        assert_eq!(nest.waiting(), 2);
        assert!(nest.answered(first) && !nest.answered(first));
        assert_eq!(nest.waiting(), 2);
        assert!(nest.answered(second));
        assert_eq!(nest.waiting(), 1);
        nest.ended(task(2));
        assert_eq!((nest.waiting(), nest.is_empty()), (0, false));
    }

    #[test]
    fn what_may_be_unanswered_is_bounded_in_calls_tasks_and_bytes() {
        let mut nest = Nest::default();
        let calls: Vec<_> = (0..WAITING_MAX).map(|index| nest.ask(&[task(index)], 0, MAX).unwrap()).collect();
        assert_eq!(nest.ask(&[task(WAITING_MAX)], 0, MAX), Err(TooMany::Waiting));
        nest.answered(calls[0]);
        assert!(nest.ask(&[task(WAITING_MAX)], MAX, MAX).is_ok());
        assert_eq!(nest.ask(&[task(1)], 1, MAX), Err(TooMany::Bytes(MAX)));
        while nest.asked.len() < NESTED_MAX {
            nest.ask(&[task(1)], 0, MAX).unwrap();
        }
        assert_eq!(nest.ask(&[task(1)], 0, MAX), Err(TooMany::Calls));
    }
}
