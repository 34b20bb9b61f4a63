//! The manager's side of one worker's memory.

use std::collections::VecDeque;

use polyloop_core::{Conduct, ControlFrame, Load, MAX_REPLY, QueueIndex, TaskId, WorkerId};
use polyloop_shm::{LeaseReader, RingReader, RingWriter, Ringer, Status, Words};

use crate::site::{Own, Site};

pub(crate) struct Seat {
    pub(crate) worker: WorkerId,
    pub(crate) queue: QueueIndex,
    /// Known once it has been asked for.
    pub(crate) process: usize,
    pub(crate) results: RingReader,
    pub(crate) control: RingWriter,
    /// Control frames that wait for room, in order.
    pub(crate) outgoing: VecDeque<(u32, Vec<u8>)>,
    /// A frame was put into the ring, and the worker not told.
    pub(crate) owes_ring: bool,
    pub(crate) leases: LeaseReader,
    pub(crate) ringer: Ringer,
    status: Words,
    pub(crate) conduct: Conduct,
    /// It said that it is ready, or that it has taken its last item, or it was told to leave.
    pub(crate) ready: bool,
    pub(crate) retiring: bool,
    pub(crate) stopping: bool,
}

impl Seat {
    pub(crate) fn new(site: &Site, worker: WorkerId, queue: QueueIndex, process: usize, own: &Own) -> Self {
        let at = usize::from(worker.seat);
        Self {
            worker,
            queue,
            process,
            results: RingReader::new(own.results.clone()),
            control: RingWriter::new(own.control.clone()),
            outgoing: VecDeque::new(),
            owes_ring: false,
            leases: LeaseReader::new(own.leases.clone()),
            ringer: Ringer::new(site.shared.epochs[at].clone()),
            status: site.shared.statuses[at].clone(),
            conduct: Conduct::new(worker, site.scenario.worker.concurrency, MAX_REPLY),
            ready: false,
            retiring: false,
            stopping: false,
        }
    }

    pub(crate) fn send(&mut self, frame: ControlFrame<'_>) {
        let mut bytes = Vec::new();
        let kind = frame.write(&mut bytes);
        self.outgoing.push_back((kind, bytes));
    }

    /// Bytes of a fetched task, in records that fit.
    pub(crate) fn send_large(&mut self, task: TaskId, bytes: &[u8]) {
        let piece = self.control.max_payload() - size_of::<u64>();
        let pieces = bytes.chunks(piece);
        let count = pieces.len();
        for (at, bytes) in pieces.enumerate() {
            self.send(ControlFrame::Bytes { task, bytes, last: at + 1 == count });
        }
    }

    pub(crate) fn load(&self) -> Load {
        let Status { in_flight, room, .. } = Status::read(&self.status);
        Load { can_ring: self.ringer.can_ring(), in_flight, room: if self.ready { room } else { 0 } }
    }
}
