//! Reading the workers' result rings: frames in, the core's inputs out.

use std::io;
use std::time::{Duration, Instant};

use polyloop_core::{ControlFrame, Heard, TaskId, WorkerId, write_large};

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
        let Some(worker) = self.link.seats.get(&index).map(|seat| seat.worker) else { return Ok(0) };
        while read < limit {
            match self.link.next_frame(index, &self.pool) {
                Ok(None) => break,
                Ok(Some(Heard::Input(input))) => self.pool.handle(now, input),
                Ok(Some(Heard::Fetch(task))) => self.fetch(worker, task)?,
                Ok(Some(Heard::Piece)) => (),
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
