//! Reading the workers' result rings: frames in, the core's inputs out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use polyloop_core::{
    BlockFrame, ControlFrame, Input, Large, Outcome, Payload, Reply, ResultFrame, TaskId, WorkerId, write_large,
};

use super::Driver;
use crate::blocks::Lease;
use crate::link::Pieces;

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
                Ok(Some(Some(Read::Block(frame)))) => self.block_frame(worker, frame)?,
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
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let Some((submission, _)) = self.pool.terms_of(task) else {
            // It has ended meanwhile for its caller.
            return self.urge(worker, ControlFrame::Cancel(task));
        };
        let mut apart = Vec::new();
        if let Some(lease) = submission.arguments.luggage().and_then(|luggage| luggage.get::<Lease>()) {
            match self.lender.pass(lease, worker, seat.socket.as_fd()) {
                Ok(()) => seat.send(ControlFrame::Block(lease.frame(task)))?,
                Err(_) => apart = lease.read(),
            }
        }
        let (function, arguments) = (&submission.function, &submission.arguments);
        seat.send_large(task, write_large(Large { function, arguments, apart: &apart }).into())
    }
}

enum Read {
    Input(Input),
    Fetch(TaskId),
    Block(BlockFrame),
}

/// What a worker's frame means to the core; `None` for a piece of something that is still to come.
fn input(worker: WorkerId, frame: ResultFrame<'_>, pieces: &mut BTreeMap<TaskId, Pieces>) -> Option<Read> {
    Some(Read::Input(match frame {
        ResultFrame::Reply { task, reply } => {
            let mut whole = |bytes: &[u8]| match pieces.remove(&task) {
                None => Payload::from_slice(bytes),
                Some(pieces) => pieces.whole(bytes),
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
            pieces.entry(task).or_default().bytes.extend_from_slice(bytes);
            return None;
        }
        ResultFrame::Ready => Input::Ready(worker),
        ResultFrame::Failed(error) => Input::Failed { worker, error: error.to_vec() },
        ResultFrame::Retiring(cause) => Input::Retiring { worker, cause },
        ResultFrame::Fetch(task) => return Some(Read::Fetch(task)),
        ResultFrame::Block(frame) => return Some(Read::Block(frame)),
    }))
}
