//! The workers' logs on their way to the host: as many records as it takes, and a count of the others.

use polyloop_core::{LOG_RECORD_BYTES, WorkerId};

use super::{Driver, Event};

/// Records that may wait for the host.
const LOGS_WAITING_MAX: usize = 1024;

impl Driver {
    /// A worker has logged something.
    pub(super) fn log(&mut self, worker: WorkerId, dropped: u64, record: Vec<u8>) {
        let Some(seat) = self.link.get(worker) else { return };
        seat.dropped_logs = seat.dropped_logs.saturating_add(dropped);
        if self.logs_waiting >= LOGS_WAITING_MAX || record.len() > LOG_RECORD_BYTES {
            seat.dropped_logs = seat.dropped_logs.saturating_add(1);
            return;
        }
        let (pid, dropped) = (seat.pid, std::mem::take(&mut seat.dropped_logs));
        self.logs_waiting += 1;
        self.events.push_back(Event::Log { pid, dropped, record });
    }

    /// The host has fetched one. After the last it is told of those that were dropped meanwhile.
    pub(super) fn log_is_heard(&mut self) {
        self.logs_waiting -= 1;
        if self.logs_waiting == 0 {
            let seats: Vec<u16> = self.link.seats.keys().copied().collect();
            seats.into_iter().for_each(|seat| self.tell_dropped(seat));
        }
    }

    /// Tells the host of records of a worker that were dropped, if there are any.
    pub(super) fn tell_dropped(&mut self, seat: u16) {
        let Some(seat) = self.link.seats.get_mut(&seat).filter(|seat| seat.dropped_logs > 0) else { return };
        let (pid, dropped) = (seat.pid, std::mem::take(&mut seat.dropped_logs));
        self.logs_waiting += 1;
        self.events.push_back(Event::Log { pid, dropped, record: Vec::new() });
    }
}
