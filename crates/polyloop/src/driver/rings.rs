//! Reading the workers' result rings: frames in, the core's inputs out.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use polyloop_core::{ControlFrame, Input, Outcome, Payload, Reply, ResultFrame, TaskId, WorkerId, write_large};

use super::Driver;

/// How long one drain may hold the host's loop.
const DRAIN_BUDGET: Duration = Duration::from_millis(2);
/// Records read between two looks at the clock.
const RECORDS_PER_LOOK: usize = 64;

impl Driver {
    /// Reads all rings, one share of each in turn, until they are empty or the time is up.
    pub(super) fn read_rings(&mut self) -> io::Result<usize> {
        let started = Instant::now();
        let mut outcomes = 0;
        loop {
            let mut read = 0;
            let seats: Vec<u16> = self.link.seats.keys().copied().collect();
            for seat in seats {
                read += self.read_worker(seat, RECORDS_PER_LOOK)?;
            }
            outcomes += read;
            if read == 0 {
                return Ok(outcomes);
            }
            if started.elapsed() > DRAIN_BUDGET {
                // More waits: be called again as soon as the host's loop has had its turn.
                self.link.bell.ring()?;
                return Ok(outcomes);
            }
        }
    }

    pub(super) fn read_worker(&mut self, index: u16, limit: usize) -> io::Result<usize> {
        let (mut read, now) = (0, self.now());
        while read < limit {
            let Some(seat) = self.link.seats.get_mut(&index) else { return Ok(read) };
            let worker = seat.worker;
            let mut pieces = std::mem::take(&mut seat.pieces);
            let frame = seat.next_frame(|frame| input(worker, frame, &mut pieces));
            seat.pieces = pieces;
            match frame {
                Ok(None) => break,
                Ok(Some(Some(Read::Input(input)))) => self.pool.handle(now, input),
                Ok(Some(Some(Read::Fetch(task)))) => self.fetch(worker, task)?,
                Ok(Some(Some(Read::Log(dropped, record)))) => self.log(worker, dropped, record),
                Ok(Some(Some(Read::Yield(task, value)))) => {
                    if let Err(unasked) = self.pool.yielded(worker, task, value) {
                        self.garbage(worker, &unasked.to_string())?;
                    }
                }
                Ok(Some(None)) => (),
                Err(error) => self.garbage(worker, &error.to_string())?,
            }
            read += 1;
        }
        if let Some(seat) = self.link.seats.get_mut(&index) {
            seat.give_room()?;
        }
        Ok(read)
    }

    pub(super) fn fetch(&mut self, worker: WorkerId, task: TaskId) -> io::Result<()> {
        let bytes = self.pool.terms_of(task).map(|(task, _)| write_large(&task.function, &task.arguments));
        match bytes {
            Some(bytes) => self.link.get(worker).map_or(Ok(()), |seat| seat.send_large(task, bytes.into())),
            // It has ended meanwhile for its caller.
            None => self.urge(worker, ControlFrame::Cancel(task)),
        }
    }
}

enum Read {
    Input(Input),
    Fetch(TaskId),
    Yield(TaskId, Payload),
    Log(u64, Vec<u8>),
}

/// What a worker's frame means to the core; `None` for a piece of something that is still to come.
fn input(worker: WorkerId, frame: ResultFrame<'_>, pieces: &mut BTreeMap<TaskId, Vec<u8>>) -> Option<Read> {
    let mut whole = |task, bytes: &[u8]| match pieces.remove(&task) {
        None => Payload::from_slice(bytes),
        Some(mut whole) => {
            whole.extend_from_slice(bytes);
            Payload::from_vec(whole)
        }
    };
    Some(Read::Input(match frame {
        ResultFrame::Reply { task, reply } => {
            let outcome = match reply {
                Reply::Value(bytes) => Outcome::Value(whole(task, bytes)),
                Reply::Raised(bytes) => Outcome::Raised(whole(task, bytes)),
                Reply::Rejected(bytes) => Outcome::Rejected(whole(task, bytes)),
                Reply::Cancelled => Outcome::Cancelled,
                Reply::TimedOut => Outcome::TimedOut,
            };
            Input::Outcome { worker, task, outcome }
        }
        ResultFrame::Yield { task, bytes } => return Some(Read::Yield(task, whole(task, bytes))),
        ResultFrame::Piece { task, bytes } => {
            pieces.entry(task).or_default().extend_from_slice(bytes);
            return None;
        }
        ResultFrame::Log { dropped, record } => return Some(Read::Log(dropped, record.to_vec())),
        ResultFrame::Ready => Input::Ready(worker),
        ResultFrame::Failed(error) => Input::Failed { worker, error: error.to_vec() },
        ResultFrame::Retiring(cause) => Input::Retiring { worker, cause },
        ResultFrame::Fetch(task) => return Some(Read::Fetch(task)),
    }))
}
