//! What a worker puts into its result ring.

use std::io;

use polyloop_core::{LOG_RECORD_BYTES, Reply, ResultFrame, TaskId};
use polyloop_shm::{LeaseIndex, Status};

use super::{Job, WorkerLink};
use crate::inject::step;

pub(super) struct Unpublished {
    kind: u32,
    payload: Vec<u8>,
    /// Cleared once this record is in the ring.
    lease: Option<LeaseIndex>,
}

impl WorkerLink {
    /// Publishes how an item ended; in a process that this worker forked, nothing happens. The manager is rung by the next call that starts or ends something.
    pub fn reply(&mut self, job: Job, reply: Reply<'_>) {
        if !self.is_ours() || self.given_up.contains(&job.task) {
            return;
        }
        // What it used is free before whoever waits for it submits more.
        self.settle_blocks();
        let task = job.task;
        let reply = match reply {
            Reply::Value(bytes) => Reply::Value(self.publish_pieces(task, bytes)),
            Reply::Raised(bytes) => Reply::Raised(self.publish_pieces(task, bytes)),
            Reply::Rejected(bytes) => Reply::Rejected(self.publish_pieces(task, bytes)),
            Reply::Cancelled | Reply::TimedOut => reply,
        };
        self.publish_reply(job, reply);
        // Its load is told by what comes next: the next item, or the end of the turn.
        self.core.finished(task);
    }

    /// Publishes a value of an item that is a stream, and has the manager look; in a process that this worker forked,
    /// nothing happens. The host counts them: it gives no more than it has credit for.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn give(&mut self, job: Job, value: &[u8]) -> io::Result<()> {
        if !self.is_ours() || self.given_up.contains(&job.task) {
            return Ok(());
        }
        let bytes = self.publish_pieces(job.task, value);
        self.publish(&ResultFrame::Yield { task: job.task, bytes }, None);
        step("given");
        // What was published must not wait for the next value, which may take its time.
        self.tell()
    }

    /// Publishes a record of the host's log, and has the manager look; in a process that this worker forked, nothing
    /// happens. It is in shared memory afterwards, or counted as dropped: half of the ring is kept free of logs.
    pub fn log(&mut self, record: &[u8]) {
        if !self.is_ours() {
            return;
        }
        if record.len() > LOG_RECORD_BYTES || !self.has_room_for_log(record.len()) {
            self.dropped_logs += 1;
            return;
        }
        let dropped = std::mem::take(&mut self.dropped_logs);
        self.publish(&ResultFrame::Log { dropped, record }, None);
        step("logged");
        // A manager that can't be rung is gone, and so will this process be.
        let _ = self.tell();
    }

    /// Publishes what waits, and has the manager look.
    pub fn flush(&mut self) {
        self.publish_waiting();
        // A manager that can't be rung is gone, and so will this process be.
        let _ = self.tell();
    }

    fn has_room_for_log(&mut self, bytes: usize) -> bool {
        self.unpublished.is_empty() && self.results.has_ample_room(size_of::<u64>() + bytes)
    }

    /// Tells the manager of records that were dropped, if there is room now.
    pub(super) fn tell_dropped(&mut self) {
        if self.dropped_logs > 0 && self.has_room_for_log(0) {
            let dropped = std::mem::take(&mut self.dropped_logs);
            self.publish(&ResultFrame::Log { dropped, record: &[] }, None);
        }
    }

    pub(super) fn publish_status(&mut self) {
        self.status.publish(Status { in_flight: self.core.in_flight(), room: self.core.room(), queue: self.queue });
    }

    /// Puts a reply into the ring as it is, or as any other frame if it has to wait for room.
    pub(super) fn publish_reply(&mut self, job: Job, reply: Reply<'_>) {
        let (kind, bytes) = reply.parts();
        step("publish");
        if self.unpublished.is_empty() && self.results.push_tagged(kind, job.task.to_bits(), bytes).is_ok() {
            step("published");
            self.leases.clear(job.lease);
            step("cleared");
            self.news = true;
        } else {
            self.publish(&ResultFrame::Reply { task: job.task, reply }, Some(job.lease));
        }
    }

    /// Puts a frame into the ring, or behind those that already wait for room.
    pub(super) fn publish(&mut self, frame: &ResultFrame<'_>, lease: Option<LeaseIndex>) {
        let mut payload = std::mem::take(&mut self.payload);
        let kind = frame.write(&mut payload);
        step("publish");
        if self.unpublished.is_empty() && self.results.push(kind, &payload).is_ok() {
            step("published");
            if let Some(lease) = lease {
                self.leases.clear(lease);
                step("cleared");
            }
        } else {
            self.unpublished.push_back(Unpublished { kind, payload: payload.clone(), lease });
            self.core.set_unpublished(self.unpublished.len());
            step("full");
        }
        self.news = true;
        self.payload = payload;
    }

    /// Publishes what is too large for one record, up to the last piece, which is given back.
    pub(super) fn publish_pieces<'a>(&mut self, task: TaskId, bytes: &'a [u8]) -> &'a [u8] {
        let piece = self.results.max_payload() - size_of::<u64>();
        let mut rest = bytes;
        while rest.len() > piece {
            let (bytes, after) = rest.split_at(piece);
            self.publish(&ResultFrame::Piece { task, bytes }, None);
            step("piece");
            rest = after;
        }
        rest
    }

    /// Puts what waits for room into the ring, as far as there is. Says whether any went in.
    pub(super) fn publish_waiting(&mut self) -> bool {
        let before = self.unpublished.len();
        while let Some(waiting) = self.unpublished.front() {
            step("waiting");
            if self.results.push(waiting.kind, &waiting.payload).is_err() {
                break;
            }
            step("waited");
            if let Some(lease) = waiting.lease {
                self.leases.clear(lease);
                step("waited-cleared");
            }
            self.unpublished.pop_front();
            self.news = true;
        }
        self.core.set_unpublished(self.unpublished.len());
        self.unpublished.len() < before
    }

    /// Rings the manager if something was published and it sleeps.
    pub(super) fn tell(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.news) && self.manager.must_ring() { self.ring_manager() } else { Ok(()) }
    }

    pub(super) fn ring_manager(&self) -> io::Result<()> {
        step("ring");
        self.manager_bell.ring()?;
        step("rung");
        Ok(())
    }
}
