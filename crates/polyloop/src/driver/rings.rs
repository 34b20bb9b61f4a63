//! Reading the workers' result rings: frames in, the core's inputs out.

use std::io;
use std::time::{Duration, Instant};

use std::sync::Arc;

use polyloop_core::{CallId, ControlFrame, Heard, Large, Parcel, Payload, TaskId, WorkerId, write_large};

use super::nested::{copied, pass_on};
use super::{Driver, Event};
use crate::blocks::{Lease, Memory};
use crate::link::Said;

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
        let Some(worker) = self.link.seats.get(&index).map(|seat| seat.worker) else { return Ok(0) };
        while read < limit {
            let mut values = Values::default();
            let other = loop {
                let said = self.link.next_frame(index, &self.pool);
                read += usize::from(!matches!(said, Ok(None)));
                match said {
                    Ok(Some(Said::Value(task, bytes))) => {
                        match self.pool.returned(worker, task) {
                            Some((call, token)) if call.is_nested() => {
                                let value = Payload::from_slice(bytes);
                                self.answer_value(call, token, value)?;
                            }
                            Some((call, token)) => values.push(call, token, bytes),
                            None => (),
                        }
                        if read >= limit || values.bytes.len() >= VALUES_BYTES {
                            break Ok(Some(Heard::Piece));
                        }
                    }
                    Ok(Some(Said::Other(heard))) => break Ok(Some(heard)),
                    Ok(None) => break Ok(None),
                    Err(garbage) => break Err(garbage),
                }
            };
            // What came before the other is told before it.
            if !values.is_empty() {
                self.events.push_back(Event::Returned(values));
            }
            match other {
                Ok(None) => break,
                Ok(Some(Heard::Input(input))) => {
                    self.pool.handle(now, input);
                    self.carry_out_all()?;
                }
                Ok(Some(Heard::Yield { task, value })) => {
                    if let Err(unasked) = self.pool.yielded(worker, task, value) {
                        self.garbage(worker, &unasked.to_string())?;
                    }
                    self.carry_out_all()?;
                }
                Ok(Some(Heard::Submit { task, number, ask })) => {
                    self.pool.ask(worker, task, number, &ask);
                    self.carry_out_all()?;
                }
                Ok(Some(Heard::Withdraw(number))) => {
                    self.pool.withdraw(now, worker, number);
                    self.carry_out_all()?;
                }
                Ok(Some(Heard::Log { dropped, record })) => self.log(worker, dropped, record),
                Ok(Some(Heard::Fetch(task))) => self.fetch(worker, task)?,
                Ok(Some(Heard::Block(frame))) => self.block_frame(worker, frame)?,
                Ok(Some(Heard::Piece)) => (),
                Err(error) => self.garbage(worker, &error.to_string())?,
            }
        }
        self.pool.returned_all(now);
        if let Some(seat) = self.link.seats.get_mut(&index) {
            if read > 0 {
                seat.has_spoken();
            }
            seat.give_room()?;
        }
        Ok(read)
    }

    pub(super) fn fetch(&mut self, worker: WorkerId, task: TaskId) -> io::Result<()> {
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let Some(Parcel { function, arguments, .. }) = self.pool.parcel_of(task) else {
            // It has ended meanwhile for its caller.
            return self.urge(worker, ControlFrame::Cancel(task));
        };
        let mut apart = Vec::new();
        if let Some(luggage) = arguments.luggage() {
            let now = self.origin.elapsed();
            if let Some(memory) = luggage.get::<Arc<Memory>>() {
                // Another worker's, who called the pool: what it has lent is lent to no third.
                let lease = copied(memory, |bytes| self.lender.take(now, bytes));
                apart = pass_on(&mut self.lender, seat, task, lease.as_ref())?.unwrap_or_else(|| memory.read());
            } else if let Some(lease) = luggage.get::<Lease>() {
                apart = pass_on(&mut self.lender, seat, task, Some(lease))?.unwrap_or_else(|| lease.read());
            }
        }
        seat.send_large(task, write_large(Large { function, arguments, apart: &apart }).into())
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
