//! A worker's effects on shared memory: claiming, publishing, reading what it is told.

use polyloop_core::{Cause, ControlFrame, DEFER, NestedId, PeerView, Reply, ResultFrame, Stop, TaskId, Terms};
use polyloop_shm::{Claim, Item, LeaseIndex, Peer};

use super::items::Claimed;
use super::{Op, Process};
use crate::sabotage::Sabotage;
use crate::site::Site;

/// Replies that may wait for room in the result ring, for each item a worker can run.
const REPLIES_WAITING_MAX: usize = 1;

/// A frame that goes into the result ring as soon as there is room.
pub(super) struct Unpublished {
    kind: u32,
    payload: Vec<u8>,
    /// The lease to be cleared and the task that has ended, once this frame, its last, is in the ring.
    ends: Option<(LeaseIndex, usize)>,
}

impl Process {
    pub(super) fn control(&mut self, site: &mut Site) {
        if std::mem::take(&mut self.term) {
            self.stop(site, Stop::Now);
        }
        let mut payload = Vec::new();
        let record = match self.control.pop(&mut payload) {
            Ok(Some(record)) => record,
            Ok(None) => return self.next([Op::GiveRoom]),
            Err(corrupt) => return site.ledger.violate(format!("control ring of {}: {corrupt}", self.worker)),
        };
        self.next([Op::Control]);
        match ControlFrame::parse(record.kind, &payload) {
            Ok(ControlFrame::Cancel(task)) => self.cancel(site, task),
            Ok(ControlFrame::Stop(stop)) => self.stop(site, stop),
            Ok(ControlFrame::Credit { task, values }) => self.credited(site, task, values),
            Ok(ControlFrame::Bytes { task, bytes, last }) if NestedId::from_task(task).is_some() => {
                self.answer_bytes(site, task, bytes, last);
            }
            Ok(ControlFrame::Bytes { task, bytes, last }) => self.fetched(site, task, bytes, last),
            Ok(frame @ (ControlFrame::Block(_) | ControlFrame::GiveBack)) => {
                site.ledger.violate(format!("{} has no blocks, and is told {frame:?}", self.worker));
            }
            Err(error) => site.ledger.violate(format!("control ring of {}: {error}", self.worker)),
        }
    }

    /// Queues a frame for the result ring.
    pub(super) fn send(&mut self, frame: &ResultFrame<'_>, ends: Option<(LeaseIndex, usize)>) {
        let mut payload = Vec::new();
        let kind = frame.write(&mut payload);
        self.unpublished.push_back(Unpublished { kind, payload, ends });
        self.core.set_unpublished(self.unpublished.len());
    }

    /// Says that it claims nothing more.
    pub(super) fn retires(&mut self, site: &mut Site, cause: Cause) {
        site.ledger.retires(self.index);
        self.send(&ResultFrame::Retiring(cause), None);
    }

    /// Queues a whole reply, in pieces where it is large.
    pub(super) fn reply(&mut self, site: &mut Site, task: TaskId, token: usize, lease: LeaseIndex, reply: Reply<'_>) {
        let piece = self.results.max_payload() - size_of::<u64>();
        let cut = |bytes: &[u8]| bytes.len().saturating_sub(1) / piece * piece;
        let (Reply::Value(whole) | Reply::Raised(whole) | Reply::Rejected(whole)) = reply else {
            return self.send(&ResultFrame::Reply { task, reply }, Some((lease, token)));
        };
        let (pieces, rest) = whole.split_at(cut(whole));
        for bytes in pieces.chunks(piece) {
            self.send(&ResultFrame::Piece { task, bytes }, None);
        }
        let reply = match reply {
            Reply::Value(_) => Reply::Value(rest),
            Reply::Raised(_) => Reply::Raised(rest),
            Reply::Rejected(_) | Reply::Cancelled | Reply::TimedOut => Reply::Rejected(rest),
        };
        let frame = ResultFrame::Reply { task, reply };
        self.send(&frame, Some((lease, token)));
        let mut payload = Vec::new();
        self.last_reply = Some((frame.write(&mut payload), payload));
        let waiting = self.unpublished.iter().filter(|frame| frame.ends.is_some()).count();
        let bounded = waiting <= REPLIES_WAITING_MAX * site.scenario.leases() as usize;
        site.ledger.demand(bounded, || format!("{waiting} replies wait in {}", self.worker));
    }

    pub(super) fn publish(&mut self, site: &mut Site) {
        let Some(frame) = self.unpublished.front() else { return self.repeat_reply(site) };
        if self.results.push(frame.kind, &frame.payload).is_err() {
            return site.ledger.count("result rings full");
        }
        self.news = true;
        let ends = self.unpublished.pop_front().and_then(|frame| frame.ends);
        self.core.set_unpublished(self.unpublished.len());
        self.next([Op::Publish]);
        if site.scenario.habits.rings_each {
            self.next([Op::Tell]);
        }
        if let Some((lease, token)) = ends {
            site.ledger.published(token);
            self.next([Op::Clear(lease)]);
        }
    }

    /// A fault: an outcome is published once more.
    fn repeat_reply(&mut self, site: &mut Site) {
        if self.last_reply.is_some() && site.fails(site.scenario.faults.repeated_frame) {
            let Some((kind, payload)) = self.last_reply.take() else { return };
            self.news |= self.results.push(kind, &payload).is_ok();
        }
    }

    /// Whether there is an item to claim, and nobody better to claim it.
    pub(super) fn look(&mut self, site: &mut Site) {
        if self.core.room() == 0 || self.leases.room() == 0 {
            return;
        }
        // What was published must not wait for the next item, which may keep the loop busy.
        if self.news {
            return self.next([Op::Tell, Op::Look]);
        }
        let has_choice = !self.core.is_idle() && self.board.has_unclaimed(false);
        let queue = self.queue.0;
        let peers = self.peers.iter().map(|peer| view(queue, peer));
        if has_choice && self.core.defers(peers, |limit| self.board.unclaimed(limit)) {
            self.defers_until = Some(site.now + DEFER);
            return site.ledger.count("items left to a peer");
        }
        self.next([Op::Claim]);
    }

    pub(super) fn claim(&mut self, site: &Site) {
        let idle = self.core.is_idle() || site.sabotages(Sabotage::SuspectBesideOthers);
        if let Some(claim) = self.board.claim(idle) {
            self.next([Op::Read(claim)]);
        }
    }

    pub(super) fn read(&mut self, site: &mut Site, claim: Claim) {
        let mut item = Item::default();
        if self.board.read(&claim, &mut item).is_none() {
            return site.ledger.violate(format!("{} read an item that makes no sense", self.worker));
        }
        let token = site.ledger.token_of(item.task);
        let terms = Terms::from_bits(item.extra);
        let timeout = site.scenario.tasks[token].timeout;
        site.ledger.demand(terms.timeout == timeout, || format!("task {token} arrived with another timeout"));
        if !terms.large {
            self.check_bytes(site, token, &item.function, &item.arguments);
        }
        self.next([Op::Lease(claim, Claimed { task: TaskId::from_bits(item.task), token, terms })]);
    }

    pub(super) fn lease(&mut self, site: &mut Site, claim: Claim, claimed: Claimed) {
        let Some(lease) = self.leases.record(claimed.task.to_bits()) else {
            return site.ledger.violate(format!("{} has room for an item but not for its lease", self.worker));
        };
        if site.sabotages(Sabotage::StartedBeforeTaken) {
            return self.next([Op::Start(claimed, lease), Op::Take(claim, claimed)]);
        }
        self.next([Op::Take(claim, claimed), Op::Publish, Op::Tell, Op::Start(claimed, lease), Op::Look]);
    }

    pub(super) fn take(&mut self, site: &mut Site, claim: Claim, claimed: Claimed) {
        let empties = self.board.take(claim);
        site.ledger.taken(claimed.token, self.index, self.core.has_waiting());
        let alone = claimed.terms.alone && !site.sabotages(Sabotage::OthersBesideSuspect);
        if self.core.claimed(alone) {
            self.retires(site, Cause::Recycled);
        }
        self.news |= empties && !site.sabotages(Sabotage::RefillUntold);
    }

    pub(super) fn recheck_room(&mut self, site: &mut Site) {
        let before = self.unpublished.len();
        if before == 0 {
            return;
        }
        self.publish(site);
        if self.unpublished.len() < before {
            // The lease of what went in is cleared, then the rest of the turn begins again.
            let clear = self.ops.pop_front_if(|op| matches!(op, Op::Clear(_)));
            self.begin_turn();
            self.next(clear);
        }
    }
}

/// A peer that serves another queue takes none of ours.
fn view(queue: u16, peer: &Peer) -> PeerView {
    let status = peer.status();
    let room = if status.queue == queue { status.room } else { 0 };
    PeerView { state: peer.state(), in_flight: status.in_flight, room }
}
