//! Reading the workers' result rings: frames in, the core's inputs out.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use polyloop_core::{CallId, ControlFrame, Input, Outcome, Payload, Reply, ResultFrame, TaskId, WorkerId, write_large};

use super::{Driver, Event};

/// Room that is made for each value.
const SMALL_VALUE_BYTES: usize = 16;
/// How long one drain may hold the host's loop.
const DRAIN_BUDGET: Duration = Duration::from_millis(2);
/// Records read between two looks at the clock.
const RECORDS_PER_LOOK: usize = 64;
/// Values are given to the host in batches that end beyond this many bytes, so that none takes long to read.
const VALUES_BYTES: usize = 16 * 1024;

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

    /// Reads a share of what one worker has written. Says how many frames that was.
    pub(super) fn read_worker(&mut self, index: u16, limit: usize) -> io::Result<usize> {
        let (mut read, now) = (0, self.now());
        while read < limit {
            let Self { link, pool, .. } = self;
            let Some(seat) = link.seats.get_mut(&index) else { break };
            let (worker, mut values) = (seat.worker, Values::default());
            let other = loop {
                let read_one = seat.next_frame(|frame, pieces| match frame {
                    ResultFrame::Reply { task, reply: Reply::Value(bytes) } if pieces.is_empty() => {
                        if let Some((call, token)) = pool.returned(worker, task) {
                            values.push(call, token, bytes);
                        }
                        Read::Value
                    }
                    frame => input(worker, frame, pieces),
                });
                read += usize::from(!matches!(read_one, Ok(None)));
                match read_one {
                    Ok(Some(Read::Value)) if read < limit && values.bytes.len() < VALUES_BYTES => (),
                    other => break other,
                }
            };
            // What came before the other is told before it.
            if !values.is_empty() {
                self.events.push_back(Event::Returned(values));
            }
            match other {
                Ok(None) => break,
                Ok(Some(Read::Input(input))) => {
                    self.pool.handle(now, input);
                    self.carry_out_all()?;
                }
                Ok(Some(Read::Fetch(task))) => self.fetch(worker, task)?,
                Ok(Some(Read::Value | Read::Piece)) => (),
                Err(error) => self.garbage(worker, &error.to_string())?,
            }
        }
        self.pool.returned_all(now);
        if let Some(seat) = self.link.seats.get_mut(&index) {
            seat.give_room()?;
        }
        Ok(read)
    }

    pub(super) fn fetch(&mut self, worker: WorkerId, task: TaskId) -> io::Result<()> {
        let bytes = self.pool.parcel_of(task).map(|parcel| write_large(parcel.function, parcel.arguments));
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        match bytes {
            Some(bytes) => seat.send_large(task, bytes.into()),
            // It has ended meanwhile for its caller.
            None => seat.send(ControlFrame::Cancel(task)),
        }
    }
}

/// What tasks have returned, many at once: the bytes of one after the other.
#[derive(Debug, Default)]
pub struct Values {
    bytes: Vec<u8>,
    ends: Vec<(CallId, u64, usize)>,
}

impl Values {
    /// The call, the token and the value, as the worker's codec wrote it, of each.
    pub fn iter(&self) -> impl Iterator<Item = (CallId, u64, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(.., end)| *end));
        self.ends.iter().zip(starts).map(|((call, token, end), start)| (*call, *token, &self.bytes[start..*end]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn push(&mut self, call: CallId, token: u64, bytes: &[u8]) {
        if self.is_empty() {
            self.bytes.reserve(RECORDS_PER_LOOK * SMALL_VALUE_BYTES);
            self.ends.reserve(RECORDS_PER_LOOK);
        }
        self.bytes.extend_from_slice(bytes);
        self.ends.push((call, token, self.bytes.len()));
    }
}

enum Read {
    /// It has been given to the core.
    Value,
    /// Of something that is still to come.
    Piece,
    Input(Input),
    Fetch(TaskId),
}

/// What a worker's frame means to the core.
fn input(worker: WorkerId, frame: ResultFrame<'_>, pieces: &mut BTreeMap<TaskId, Vec<u8>>) -> Read {
    Read::Input(match frame {
        ResultFrame::Reply { task, reply } => {
            let mut whole = |bytes: &[u8]| match pieces.remove(&task) {
                None => Payload::from_slice(bytes),
                Some(mut whole) => {
                    whole.extend_from_slice(bytes);
                    Payload::from_vec(whole)
                }
            };
            let outcome = match reply {
                Reply::Value(bytes) => Outcome::Value(whole(bytes)),
                Reply::Raised(bytes) => Outcome::Raised(whole(bytes)),
                Reply::Rejected(bytes) => Outcome::Rejected(whole(bytes)),
                Reply::Cancelled => Outcome::Cancelled,
                Reply::TimedOut => Outcome::TimedOut,
            };
            Input::Outcome { worker, task, outcome }
        }
        ResultFrame::Piece { task, bytes } => {
            pieces.entry(task).or_default().extend_from_slice(bytes);
            return Read::Piece;
        }
        ResultFrame::Ready => Input::Ready(worker),
        ResultFrame::Failed(error) => Input::Failed { worker, error: error.to_vec() },
        ResultFrame::Retiring(cause) => Input::Retiring { worker, cause },
        ResultFrame::Fetch(task) => return Read::Fetch(task),
    })
}
