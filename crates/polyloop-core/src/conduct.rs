//! What a worker may say, how often, and how much of it is kept: the bounds of one worker's frames. What breaks one was
//! written by no correct worker.
//!
//! A correct worker says once that it is ready or has failed, and once that it retires; it speaks of tasks that it holds, or
//! that have ended meanwhile; it fetches each large one once; and the pieces of a reply follow each other.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::event::Input;
use crate::frame::{BlockFrame, Reply, ResultFrame};
use crate::id::{NestedId, TaskId, WorkerId};
use crate::nested::{Ask, NESTED_MAX, WAITING_MAX};
use crate::payload::{Luggage, Payload};
use crate::task::Outcome;

/// Bytes that a reply may have where the host asks for nothing else: more than fits in memory a few times over, as a
/// reply has to, is an error of the task.
pub const MAX_REPLY: u64 = 4 << 30;

/// Control frames that may wait for a worker that does not read them, for each item it can run: a cancellation, what
/// was fetched, an order to stop, and some more for those that cross.
pub const CONTROL_WAITING_MAX: usize = 8;

/// What a worker has to do with a task that it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has taken it.
    Holds {
        /// Whether its bytes have to be fetched.
        large: bool,
    },
    /// There is no such task any more: it may have ended while the worker spoke. Nothing is kept of what it says.
    Over,
    /// It waits, or another worker has it.
    Stranger,
}

/// How a worker has broken a bound.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Breach {
    /// It speaks of a task that it does not hold.
    #[error("a frame for task {0}, which the worker does not hold")]
    NotHeld(TaskId),
    /// A piece, or a reply, of one task between those of another.
    #[error("a frame for task {0} between the pieces of another")]
    Interleaved(TaskId),
    /// A reply of more bytes than may be.
    #[error("a reply of more than {0} bytes")]
    TooLarge(u64),
    /// A task that came with all its bytes, or that was fetched before.
    #[error("task {0} is fetched without need")]
    NeedlessFetch(TaskId),
    /// More tasks than it can run.
    #[error("more than {0} tasks are fetched and not answered")]
    Fetches(usize),
    /// A call of the pool that can't be read.
    #[error("a call of task {0} that makes no sense")]
    Senseless(TaskId),
    /// The same number as another one that is unanswered.
    #[error("call {} is made again", .0.0)]
    AskedTwice(NestedId),
    /// More of them than may be unanswered.
    #[error("more than {0} calls are unanswered")]
    Calls(usize),
    /// What is said once in a life.
    #[error("what a worker says once, said again: {0}")]
    Repeated(&'static str),
}

/// What a frame means.
#[derive(Clone, Debug)]
pub enum Heard {
    /// This, to the pool.
    Input(Input),
    /// The worker waits for this task's bytes.
    Fetch(TaskId),
    /// A value of a stream.
    Yield {
        /// Which task.
        task: TaskId,
        /// As the worker's codec wrote it.
        value: Payload,
    },
    /// A task calls the pool.
    Submit {
        /// Which task.
        task: TaskId,
        /// The call's number.
        number: NestedId,
        /// What, as [`Ask`] writes it; whatever of it is left where the task is over.
        ask: Payload,
    },
    /// This call is to be cancelled.
    Withdraw(NestedId),
    /// A record of the worker's log.
    Log {
        /// Records that were dropped since the one before.
        dropped: u64,
        /// As the host wrote it; empty if only those are to be told.
        record: Vec<u8>,
    },
    /// Nothing yet: it is a piece of something.
    Piece,
    /// This, of blocks. Of one that was lent, [`Conduct::carry`] what is in it.
    Block(BlockFrame),
}

/// A reply that comes in pieces, as far as it has come.
#[derive(Debug)]
struct Partial {
    task: TaskId,
    bytes: Vec<u8>,
    /// The memory that its large parts are in.
    apart: Option<Luggage>,
}

/// What one worker has said so far, as far as that limits what it may still say.
#[derive(Debug)]
pub struct Conduct {
    worker: WorkerId,
    /// Items it can run.
    concurrency: usize,
    max_reply: u64,
    is_initialised: bool,
    is_retiring: bool,
    /// Tasks whose bytes it asked for, until it replies.
    fetched: BTreeSet<TaskId>,
    partial: Option<Partial>,
    /// Unanswered calls of its tasks, and their bytes.
    asked: BTreeMap<NestedId, u64>,
    asked_bytes: u64,
    /// Calls that they have made so far, as far as they count.
    calls: usize,
}

impl Conduct {
    /// A worker that has said nothing, runs so many items at most, and whose replies have so many bytes at most.
    pub fn new(worker: WorkerId, concurrency: u32, max_reply: u64) -> Self {
        Self {
            worker,
            concurrency: concurrency as usize,
            max_reply,
            is_initialised: false,
            is_retiring: false,
            fetched: BTreeSet::new(),
            partial: None,
            asked: BTreeMap::new(),
            asked_bytes: 0,
            calls: 0,
        }
    }

    /// What the worker's next frame means. `standing` is asked about the task it speaks of.
    ///
    /// # Errors
    /// [`Breach`]: nothing more that it says should be listened to.
    pub fn hear(&mut self, frame: ResultFrame<'_>, standing: impl FnOnce(TaskId) -> Standing) -> Result<Heard, Breach> {
        let worker = self.worker;
        match frame {
            ResultFrame::Reply { task, reply } => {
                let outcome = self.reply(task, reply, standing(task))?;
                Ok(Heard::Input(Input::Outcome { worker, task, outcome }))
            }
            ResultFrame::Yield { task, bytes } => self.value(task, bytes, standing(task)),
            ResultFrame::Submit { task, number, bytes } => self.ask(task, number, bytes, standing(task)),
            // It may have been answered meanwhile.
            ResultFrame::Withdraw(number) => Ok(Heard::Withdraw(number)),
            ResultFrame::Log { dropped, record } => Ok(Heard::Log { dropped, record: record.to_vec() }),
            ResultFrame::Piece { task, bytes } => self.piece(task, bytes, standing(task)),
            ResultFrame::Fetch(task) => self.fetch(task, standing(task)),
            ResultFrame::Block(frame) => {
                if let BlockFrame::Lent { task, .. } = frame {
                    self.check(task, standing(task))?;
                    self.partial(task);
                }
                Ok(Heard::Block(frame))
            }
            ResultFrame::Ready => {
                once(&mut self.is_initialised, "it is ready")?;
                Ok(Heard::Input(Input::Ready(worker)))
            }
            ResultFrame::Failed(error) => {
                once(&mut self.is_initialised, "it failed to start")?;
                Ok(Heard::Input(Input::Failed { worker, error: error.to_vec() }))
            }
            ResultFrame::Retiring(cause) => {
                once(&mut self.is_retiring, "it retires")?;
                Ok(Heard::Input(Input::Retiring { worker, cause }))
            }
        }
    }

    /// What a task returned, if a frame says so: the same as [`Self::hear`], but nothing is copied. `None` if the frame says
    /// something else, or is the last of several: then hear it.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub fn hear_value<'a>(
        &mut self,
        frame: &ResultFrame<'a>,
        standing: impl FnOnce(TaskId) -> Standing,
    ) -> Result<Option<(TaskId, &'a [u8])>, Breach> {
        let ResultFrame::Reply { task, reply: Reply::Value(bytes) } = *frame else { return Ok(None) };
        if self.partial.is_some() {
            return Ok(None);
        }
        self.check(task, standing(task))?;
        check_size(bytes.len(), self.max_reply)?;
        self.fetched.remove(&task);
        Ok(Some((task, bytes)))
    }

    /// The large parts of the reply that has begun are in this memory.
    pub fn carry(&mut self, apart: Luggage) {
        if let Some(partial) = &mut self.partial {
            partial.apart = Some(apart);
        }
    }

    /// Items that it can hold: besides those it can run, any that may have given its place to another as it called the
    /// pool.
    pub fn held_max(&self) -> usize {
        self.concurrency + self.calls
    }

    /// Bytes kept of replies that are not whole.
    pub fn kept_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.len())
    }

    /// The answer to a call is where the worker will find it.
    pub fn answered(&mut self, number: NestedId) {
        self.asked_bytes -= self.asked.remove(&number).unwrap_or_default();
    }

    fn reply(&mut self, task: TaskId, reply: Reply<'_>, standing: Standing) -> Result<Outcome, Breach> {
        self.check(task, standing)?;
        self.fetched.remove(&task);
        let (before, max) = (self.partial.take(), self.max_reply);
        Ok(match reply {
            Reply::Value(bytes) => Outcome::Value(whole(before, bytes, max)?),
            Reply::Raised(bytes) => Outcome::Raised(whole(before, bytes, max)?),
            Reply::Rejected(bytes) => Outcome::Rejected(whole(before, bytes, max)?),
            Reply::Cancelled => Outcome::Cancelled,
            Reply::TimedOut => Outcome::TimedOut,
        })
    }

    /// How many there may be is the pool's business, which keeps account of them.
    fn value(&mut self, task: TaskId, bytes: &[u8], standing: Standing) -> Result<Heard, Breach> {
        self.check(task, standing)?;
        let value = whole(self.partial.take(), bytes, self.max_reply)?;
        Ok(if standing == Standing::Over { Heard::Piece } else { Heard::Yield { task, value } })
    }

    /// A call of the pool. Of a task that is over it is heard too: it is to be answered.
    fn ask(&mut self, task: TaskId, number: NestedId, bytes: &[u8], standing: Standing) -> Result<Heard, Breach> {
        self.check(task, standing)?;
        let ask = whole(self.partial.take(), bytes, self.max_reply)?;
        if standing != Standing::Over && Ask::parse(&ask).is_none() {
            return Err(Breach::Senseless(task));
        }
        if self.asked.len() >= NESTED_MAX {
            return Err(Breach::Calls(NESTED_MAX));
        }
        let total = self.asked_bytes + ask.len() as u64;
        if total > self.max_reply {
            return Err(Breach::TooLarge(self.max_reply));
        }
        if self.asked.insert(number, ask.len() as u64).is_some() {
            return Err(Breach::AskedTwice(number));
        }
        self.asked_bytes = total;
        self.calls = (self.calls + 1).min(WAITING_MAX as usize);
        Ok(Heard::Submit { task, number, ask })
    }

    fn piece(&mut self, task: TaskId, bytes: &[u8], standing: Standing) -> Result<Heard, Breach> {
        self.check(task, standing)?;
        let max_reply = self.max_reply;
        let partial = self.partial(task);
        check_size(partial.bytes.len() + bytes.len(), max_reply)?;
        match standing {
            Standing::Over => partial.bytes = Vec::new(),
            _ => partial.bytes.extend_from_slice(bytes),
        }
        Ok(Heard::Piece)
    }

    fn partial(&mut self, task: TaskId) -> &mut Partial {
        self.partial.get_or_insert_with(|| Partial { task, bytes: Vec::new(), apart: None })
    }

    fn fetch(&mut self, task: TaskId, standing: Standing) -> Result<Heard, Breach> {
        self.check(task, standing)?;
        if standing == (Standing::Holds { large: false }) || self.fetched.contains(&task) {
            return Err(Breach::NeedlessFetch(task));
        }
        if self.fetched.len() >= self.held_max() {
            return Err(Breach::Fetches(self.held_max()));
        }
        self.fetched.insert(task);
        Ok(Heard::Fetch(task))
    }

    /// Whether it may speak of this task now.
    fn check(&self, task: TaskId, standing: Standing) -> Result<(), Breach> {
        if standing == Standing::Stranger {
            return Err(Breach::NotHeld(task));
        }
        let other = self.partial.as_ref().is_some_and(|partial| partial.task != task);
        if other { Err(Breach::Interleaved(task)) } else { Ok(()) }
    }
}

/// What comes in pieces, with its last.
fn whole(before: Option<Partial>, bytes: &[u8], max: u64) -> Result<Payload, Breach> {
    let (mut whole, apart) = before.map(|partial| (partial.bytes, partial.apart)).unwrap_or_default();
    check_size(whole.len() + bytes.len(), max)?;
    if whole.is_empty() {
        return Ok(Payload::from_slice(bytes).with(apart));
    }
    whole.extend_from_slice(bytes);
    Ok(Payload::from_vec(whole).with(apart))
}

fn check_size(bytes: usize, max: u64) -> Result<(), Breach> {
    if bytes as u64 > max { Err(Breach::TooLarge(max)) } else { Ok(()) }
}

fn once(said: &mut bool, what: &'static str) -> Result<(), Breach> {
    if std::mem::replace(said, true) { Err(Breach::Repeated(what)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockId;
    use crate::stats::Cause;

    const WORKER: WorkerId = WorkerId { seat: 0, generation: 1 };
    const HOLDS: Standing = Standing::Holds { large: true };
    const SMALL: Standing = Standing::Holds { large: false };
    const MAX: u64 = 10;

    fn task(index: u32) -> TaskId {
        TaskId { index, generation: 1 }
    }

    fn conduct() -> Conduct {
        Conduct::new(WORKER, 2, MAX)
    }

    fn piece(index: u32) -> ResultFrame<'static> {
        ResultFrame::Piece { task: task(index), bytes: b"abc" }
    }

    fn value(index: u32) -> ResultFrame<'static> {
        ResultFrame::Reply { task: task(index), reply: Reply::Value(b"xyz") }
    }

    #[test]
    fn pieces_and_the_reply_that_follows_are_one_value() {
        let mut conduct = conduct();
        for _ in 0..2 {
            assert!(matches!(conduct.hear(piece(1), |_| SMALL), Ok(Heard::Piece)));
        }
        let Ok(Heard::Input(Input::Outcome { outcome, .. })) = conduct.hear(value(1), |_| SMALL) else { panic!() };
        assert_eq!(outcome, Outcome::Value(Payload::from_slice(b"abcabcxyz")));
        assert_eq!(conduct.kept_bytes(), 0);
        assert!(conduct.hear(piece(2), |_| SMALL).is_ok(), "another one's turn");
    }

    #[test]
    fn a_value_in_one_frame_is_heard_in_place_under_the_same_rules() {
        let mut conduct = conduct();
        assert!(conduct.hear(ResultFrame::Fetch(task(1)), |_| HOLDS).is_ok());
        assert_eq!(conduct.hear_value(&piece(1), |_| HOLDS), Ok(None), "no value");
        assert_eq!(conduct.hear_value(&value(1), |_| HOLDS), Ok(Some((task(1), &b"xyz"[..]))));
        assert!(conduct.fetched.is_empty());
        assert_eq!(conduct.hear_value(&value(2), |_| Standing::Stranger), Err(Breach::NotHeld(task(2))));
        let long = ResultFrame::Reply { task: task(1), reply: Reply::Value(&[0; MAX as usize + 1]) };
        assert_eq!(conduct.hear_value(&long, |_| SMALL), Err(Breach::TooLarge(MAX)));
        assert!(conduct.hear(piece(1), |_| SMALL).is_ok());
        assert_eq!(conduct.hear_value(&value(1), |_| SMALL), Ok(None), "the last of several");
    }

    #[test]
    fn what_a_block_carries_goes_with_the_reply_that_follows_and_with_no_other() {
        let lent = |index| ResultFrame::Block(BlockFrame::Lent { task: task(index), block: BlockId(1), bytes: 5 });
        let mut conduct = conduct();
        assert!(matches!(conduct.hear(lent(1), |_| SMALL), Ok(Heard::Block(_))));
        let apart = Luggage::new(());
        conduct.carry(apart.clone());
        assert_eq!(conduct.hear(value(2), |_| SMALL).err(), Some(Breach::Interleaved(task(2))));
        let Ok(Heard::Input(Input::Outcome { outcome: Outcome::Value(value), .. })) = conduct.hear(value(1), |_| SMALL)
        else {
            panic!()
        };
        assert_eq!((&*value, value.luggage()), (&b"xyz"[..], Some(&apart)));
        assert_eq!(conduct.hear(lent(3), |_| Standing::Stranger).err(), Some(Breach::NotHeld(task(3))));
    }

    #[test]
    fn pieces_without_end_are_refused_at_the_largest_reply() {
        let mut conduct = conduct();
        let refused = (0..).find_map(|_| conduct.hear(piece(1), |_| SMALL).err());
        assert_eq!(refused, Some(Breach::TooLarge(MAX)));
        assert!(conduct.kept_bytes() as u64 <= MAX);
    }

    #[test]
    fn the_last_bytes_count_too() {
        let mut conduct = conduct();
        assert!((0..3).all(|_| conduct.hear(piece(1), |_| SMALL).is_ok()));
        assert_eq!(conduct.hear(value(1), |_| SMALL).err(), Some(Breach::TooLarge(MAX)));
    }

    #[test]
    fn pieces_of_several_replies_at_once_are_refused() {
        let mut conduct = conduct();
        assert!(conduct.hear(piece(1), |_| SMALL).is_ok());
        assert_eq!(conduct.hear(piece(2), |_| SMALL).err(), Some(Breach::Interleaved(task(2))));
        assert_eq!(conduct.hear(value(2), |_| SMALL).err(), Some(Breach::Interleaved(task(2))));
    }

    #[test]
    fn nothing_is_kept_of_what_is_said_of_a_task_that_is_over() {
        let mut conduct = conduct();
        assert!(conduct.hear(piece(1), |_| SMALL).is_ok());
        for _ in 0..1000 {
            assert!(conduct.hear(piece(1), |_| Standing::Over).is_ok());
            assert_eq!(conduct.kept_bytes(), 0);
        }
        assert!(conduct.hear(value(1), |_| Standing::Over).is_ok());
    }

    #[test]
    fn a_task_that_it_does_not_hold_is_none_of_its_business() {
        for frame in [piece(1), value(1), ResultFrame::Fetch(task(1))] {
            assert_eq!(conduct().hear(frame, |_| Standing::Stranger).err(), Some(Breach::NotHeld(task(1))));
        }
    }

    #[test]
    fn a_large_task_is_fetched_once_and_others_never() {
        let mut conduct = conduct();
        let fetch = |index| ResultFrame::Fetch(task(index));
        assert_eq!(conduct.hear(fetch(1), |_| SMALL).err(), Some(Breach::NeedlessFetch(task(1))));
        assert!(matches!(conduct.hear(fetch(1), |_| HOLDS), Ok(Heard::Fetch(_))));
        assert_eq!(conduct.hear(fetch(1), |_| HOLDS).err(), Some(Breach::NeedlessFetch(task(1))));
    }

    #[test]
    fn no_more_is_fetched_than_can_be_held_also_of_tasks_that_are_over() {
        let mut conduct = conduct();
        let fetch = |index| ResultFrame::Fetch(task(index));
        assert!(conduct.hear(fetch(1), |_| HOLDS).is_ok() && conduct.hear(fetch(2), |_| Standing::Over).is_ok());
        assert_eq!(conduct.hear(fetch(3), |_| Standing::Over).err(), Some(Breach::Fetches(2)));
        assert!(conduct.hear(value(1), |_| HOLDS).is_ok());
        assert!(conduct.hear(fetch(3), |_| Standing::Over).is_ok(), "one of them is answered");
    }

    #[test]
    fn what_is_said_once_is_not_said_twice() {
        let (ready, failed) = (ResultFrame::Ready, ResultFrame::Failed(b"no"));
        for (first, second) in [(ready, ready), (ready, failed), (failed, ready), (failed, failed)] {
            let mut conduct = conduct();
            assert!(conduct.hear(first, |_| SMALL).is_ok());
            assert!(matches!(conduct.hear(second, |_| SMALL), Err(Breach::Repeated(_))));
        }
        let retiring = ResultFrame::Retiring(Cause::Memory);
        let mut conduct = conduct();
        assert!(conduct.hear(retiring, |_| SMALL).is_ok());
        assert!(matches!(conduct.hear(retiring, |_| SMALL), Err(Breach::Repeated(_))));
    }

    #[test]
    fn a_value_of_a_stream_comes_whole_from_whoever_holds_it_and_nothing_is_kept_of_one_that_is_over() {
        let mut conduct = conduct();
        let value = |index| ResultFrame::Yield { task: task(index), bytes: b"xyz" };
        assert!(matches!(conduct.hear(piece(1), |_| SMALL), Ok(Heard::Piece)));
        let heard = conduct.hear(value(1), |_| SMALL);
        assert!(matches!(heard, Ok(Heard::Yield { ref value, .. }) if value[..] == *b"abcxyz"), "{heard:?}");
        assert!(matches!(conduct.hear(value(1), |_| Standing::Over), Ok(Heard::Piece)));
        assert_eq!(conduct.hear(value(1), |_| Standing::Stranger).unwrap_err(), Breach::NotHeld(task(1)));
        (0..3).for_each(|_| assert!(matches!(conduct.hear(piece(1), |_| SMALL), Ok(Heard::Piece))));
        assert_eq!(conduct.hear(value(2), |_| SMALL).unwrap_err(), Breach::Interleaved(task(2)));
        assert_eq!(conduct.hear(value(1), |_| SMALL).unwrap_err(), Breach::TooLarge(MAX));
    }

    #[test]
    fn a_log_is_no_business_of_any_task() {
        let mut conduct = conduct();
        assert!(matches!(conduct.hear(piece(1), |_| SMALL), Ok(Heard::Piece)));
        let log = ResultFrame::Log { dropped: 2, record: b"record" };
        let heard = conduct.hear(log, |_| Standing::Stranger);
        assert!(matches!(heard, Ok(Heard::Log { dropped: 2, ref record }) if record == b"record"), "{heard:?}");
        assert_eq!(conduct.kept_bytes(), 3);
    }

    fn call(index: u32, number: u32, bytes: &[u8]) -> ResultFrame<'_> {
        ResultFrame::Submit { task: task(index), number: NestedId(number), bytes }
    }

    #[test]
    fn calls_come_whole_from_whoever_holds_the_task_and_in_bounds() {
        let ask = Ask {
            is_loose: false,
            retries: 0,
            retry_deaths: false,
            attempt: 1,
            timeout: None,
            function: b"f",
            arguments: b"xyz",
        };
        let bytes = ask.write();
        let mut conduct = Conduct::new(WORKER, 2, 3 * bytes.len() as u64);
        let hear = |conduct: &mut Conduct, number| conduct.hear(call(1, number, &bytes), |_| SMALL);
        let (first, rest) = bytes.split_at(20);
        assert!(matches!(
            conduct.hear(ResultFrame::Piece { task: task(1), bytes: first }, |_| SMALL),
            Ok(Heard::Piece)
        ));
        let heard = conduct.hear(call(1, 1, rest), |_| SMALL);
        assert!(matches!(heard, Ok(Heard::Submit { ref ask, .. }) if ask[..] == bytes[..]), "{heard:?}");
        assert_eq!(hear(&mut conduct, 1).unwrap_err(), Breach::AskedTwice(NestedId(1)));
        assert_eq!(conduct.hear(call(1, 2, b"nonsense"), |_| SMALL).unwrap_err(), Breach::Senseless(task(1)));
        assert_eq!(conduct.hear(call(2, 2, &bytes), |_| Standing::Stranger).unwrap_err(), Breach::NotHeld(task(2)));
        assert!(hear(&mut conduct, 2).is_ok() && hear(&mut conduct, 3).is_ok());
        assert_eq!(hear(&mut conduct, 4).unwrap_err(), Breach::TooLarge(3 * bytes.len() as u64));
        assert_eq!(conduct.held_max(), 2 + 3);
        conduct.answered(NestedId(2));
        assert!(hear(&mut conduct, 4).is_ok());
        assert!(matches!(conduct.hear(ResultFrame::Withdraw(NestedId(99)), |_| SMALL), Ok(Heard::Withdraw(_))));
    }

    #[test]
    fn a_call_of_a_task_that_is_over_is_heard_although_nothing_is_kept_of_it() {
        let mut conduct = conduct();
        assert!(conduct.hear(piece(1), |_| Standing::Over).is_ok());
        let heard = conduct.hear(call(1, 1, b"rest"), |_| Standing::Over);
        assert!(matches!(heard, Ok(Heard::Submit { number: NestedId(1), .. })), "{heard:?}");
        assert_eq!(conduct.kept_bytes(), 0);
    }
}
