//! Moving bytes and ringing bells: the manager's effects on shared memory.

use polyloop_core::{
    Ask, CONTROL_WAITING_MAX, ControlFrame, Dead, Exit, Heard, Input, Large, NestedId, OVERDUE_EXITCODE, Outcome,
    Payload, Place, QueueIndex, Rest, ResultFrame, State, TaskId, WorkerId, whom_to_ring, write_answer, write_large,
};
use polyloop_shm::{Phase, Reclaimed, SlotIndex};

use super::seat::Seat;
use super::{Manager, Op};
use crate::sabotage::Sabotage;
use crate::site::Site;

/// How a worker ends of which nothing is known.
const DIED: Exit = Exit::Code(1);

impl Manager {
    pub(super) fn read(&mut self, site: &mut Site, seat: u16, left: u32) {
        if left > 0 && self.read_one(site, seat) {
            self.next([Op::Read { seat, left: left - 1 }]);
        } else {
            self.next([Op::GiveRoom { seat }]);
        }
    }

    fn read_one(&mut self, site: &mut Site, index: u16) -> bool {
        let mut payload = Vec::new();
        let Some(seat) = self.seats.get_mut(&index) else { return false };
        let worker = seat.worker;
        let record = match seat.results.pop(&mut payload) {
            Ok(Some(record)) => record,
            Ok(None) => return false,
            Err(corrupt) => {
                site.ledger.violate(format!("{worker}: {corrupt}"));
                return false;
            }
        };
        match ResultFrame::parse(record.kind, &payload) {
            Ok(frame) => self.frame(site, worker, frame),
            Err(error) => site.ledger.violate(format!("{worker}: {error}")),
        }
        true
    }

    fn frame(&mut self, site: &mut Site, worker: WorkerId, frame: ResultFrame<'_>) {
        let Self { pool, boards, seats, .. } = self;
        let Some(seat) = seats.get_mut(&worker.seat) else { return };
        let taken_by = |place: Place| boards[usize::from(place.queue.0)].taken_by(SlotIndex(place.slot), place.index);
        let input = match seat.conduct.hear(frame, |task| pool.standing(worker, task, taken_by)) {
            Ok(Heard::Input(input)) => input,
            Ok(Heard::Yield { task, value }) => return self.yielded(site, worker, task, value),
            Ok(Heard::Log { .. }) => return site.ledger.violate(format!("{worker} has no log")),
            Ok(Heard::Fetch(task)) => {
                site.ledger.count("large tasks fetched");
                return self.fetch(worker, task);
            }
            Ok(Heard::Submit { task, number, ask }) => return self.asked(site, worker, task, number, &ask),
            Ok(Heard::Withdraw(number)) => {
                site.trace("pool", || format!("{worker} withdraws {number:?}"));
                return self.pool.withdraw(site.now, worker, number);
            }
            Ok(Heard::Piece) => return,
            Ok(Heard::Block(frame)) => {
                return site.ledger.violate(format!("{worker} has no blocks, and says {frame:?}"));
            }
            Err(breach) => return site.ledger.violate(format!("{worker}: {breach}")),
        };
        match input {
            // That of a stream keeps its place behind the values.
            Input::Outcome { task, outcome: outcome @ Outcome::Value(_), .. } if !is_stream(site, task) => {
                self.outcomes += 1;
                return self.returned(site, worker, task, &outcome);
            }
            Input::Outcome { .. } => self.outcomes += 1,
            Input::Ready(_) => seat.ready = true,
            Input::Retiring { .. } => seat.retiring = true,
            _ => (),
        }
        self.handle(site, input);
    }

    fn yielded(&mut self, site: &mut Site, worker: WorkerId, task: TaskId, value: Payload) {
        site.trace("pool", || format!("{task} gave {} bytes in {worker}", value.len()));
        let token = site.ledger.token_of(task.to_bits());
        site.ledger.gave(token);
        if let Err(unasked) = self.pool.yielded(worker, task, value) {
            site.ledger.violate(format!("{worker}: {unasked}"));
        }
    }

    fn returned(&mut self, site: &mut Site, worker: WorkerId, task: TaskId, outcome: &Outcome) {
        site.trace("pool", || format!("{task} returned in {worker}"));
        let told = self.pool.returned(worker, task);
        let is_nested = told.is_some_and(|(call, _)| call.is_nested());
        let asker = told.filter(|_| is_nested).and_then(|(call, token)| self.pool.returned_nested(call, token));
        self.pool.returned_all(site.now);
        if let Some((worker, number)) = asker {
            self.answer(site, worker, number, outcome);
        }
        if let Some((_, token)) = told.filter(|_| !is_nested) {
            // What the client submits from its callback is flushed with the rest of this turn: a slot is never freed between
            // a flush and what the pool says then, or what it says of the slot before would be done to the next.
            self.client.delivered(&mut self.pool, site, token as usize, outcome);
        }
    }

    /// A task calls the pool.
    fn asked(&mut self, site: &mut Site, worker: WorkerId, caller: TaskId, number: NestedId, ask: &Payload) {
        let Some(process) = self.seat(worker).map(|seat| seat.process) else { return };
        let id = self.pool.ask(worker, caller, number, ask);
        site.trace("pool", || format!("{caller} in {worker} calls for {id:?}"));
        if let (Some(id), Some(ask)) = (id, Ask::parse(ask)) {
            let token = ask.arguments.first_chunk().map_or(0, |token| u32::from_le_bytes(*token) as usize);
            self.asked.insert((worker, number), token);
            site.ledger.call_accepted(token, id, process);
        }
    }

    /// What came of a call, to the worker that asked.
    pub(super) fn answer(&mut self, site: &mut Site, worker: WorkerId, number: NestedId, outcome: &Outcome) {
        if let Some(token) = self.asked.remove(&(worker, number)) {
            site.ledger.delivered(token, outcome);
        }
        if site.sabotages(Sabotage::AnswerUntold) && site.rng.once_in(4) {
            return;
        }
        let Some(seat) = self.seat(worker) else { return };
        seat.send_large(number.to_task(), &write_answer(outcome, &[]));
        seat.conduct.answered(number);
        let seat = worker.seat;
        self.next([Op::Pump { seat }]);
    }

    fn fetch(&mut self, worker: WorkerId, task: TaskId) {
        let bytes = self
            .pool
            .parcel_of(task)
            .map(|parcel| write_large(Large { function: parcel.function, arguments: parcel.arguments, apart: &[] }));
        match (bytes, self.seat(worker)) {
            (Some(bytes), Some(seat)) => seat.send_large(task, &bytes),
            (None, Some(seat)) => seat.send(ControlFrame::Cancel(task)),
            (_, None) => (),
        }
    }

    pub(super) fn give_room(&mut self, site: &Site, index: u16) {
        let Some(seat) = self.seats.get_mut(&index) else { return };
        if seat.results.writer_waits() && !site.sabotages(Sabotage::RoomUntold) {
            let process = seat.process;
            self.next([Op::Ding { process }]);
        }
    }

    pub(super) fn last_words(&mut self, site: &mut Site, worker: WorkerId, exit: Exit) {
        let more = !site.sabotages(Sabotage::LastWordsUnread) && self.read_one(site, worker.seat);
        self.next([if more { Op::LastWords { worker, exit } } else { Op::Bury { worker, exit } }]);
    }

    pub(super) fn bury(&mut self, site: &mut Site, worker: WorkerId, exit: Exit) {
        let Some(seat) = self.seats.remove(&worker.seat) else { return };
        let (mut claimed, mut taken) = (Vec::new(), Vec::new());
        for (queue, board) in (0..).map(QueueIndex).zip(&self.boards) {
            for (slot, index, phase) in board.owned_by(worker.seat) {
                let place = Place { queue, slot: slot.0, index };
                if phase == Phase::Claimed && !site.sabotages(Sabotage::BoardUnscanned) {
                    board.bury(slot, index);
                    site.ledger.count("items buried unstarted");
                    claimed.push(place);
                } else if phase == Phase::Taken && !site.sabotages(Sabotage::BoardUnscanned) {
                    taken.push(place);
                }
            }
        }
        if site.sabotages(Sabotage::ClaimedCountsAsStarted) {
            taken.append(&mut claimed);
        }
        let open = matches!(self.pool.state(), State::Starting | State::Running | State::Degraded);
        if open && seat.ready && !seat.retiring && !seat.stopping {
            site.ledger.must_report(worker);
        }
        let leased = seat.leases.held();
        let overdue = exit == Exit::Code(OVERDUE_EXITCODE);
        let exit = if overdue && site.sabotages(Sabotage::OverdueCountsAsAlone) { DIED } else { exit };
        self.handle(site, Input::Exited(Dead { worker, exit, claimed, taken, leased }));
        let state = self.pool.state();
        let known = !open || seat.ready || seat.stopping || !matches!(state, State::Starting | State::Running);
        site.ledger.demand(known, || format!("{worker} failed to start, and the pool is {state:?}"));
    }

    pub(super) fn reclaim(&mut self, site: &mut Site, queue: u16, slot: u32) {
        if slot + 1 < site.scenario.pool.slots {
            self.next([Op::Reclaim { queue, slot: slot + 1 }]);
        }
        self.reclaim_one(site, queue, slot);
    }

    fn reclaim_one(&mut self, site: &mut Site, queue: u16, slot: u32) -> bool {
        let Some(Reclaimed { owners }) = self.boards[usize::from(queue)].reclaim(SlotIndex(slot)) else {
            return false;
        };
        self.handle(site, Input::Reclaimed { queue: QueueIndex(queue), slot, owners });
        true
    }

    /// Puts one waiting control frame into the ring; the worker is told after the last that fits. It rings back when
    /// it has made room for the others.
    pub(super) fn pump(&mut self, site: &mut Site, index: u16) {
        let Some(seat) = self.seats.get_mut(&index) else { return };
        let waiting = seat.outgoing.iter().filter(|(_, bytes)| bytes.len() <= size_of::<u64>()).count();
        let bounded = waiting <= CONTROL_WAITING_MAX * seat.conduct.held_max();
        site.ledger.demand(bounded, || format!("{waiting} control frames wait for one worker"));
        let sent = seat.outgoing.front().is_some_and(|(kind, bytes)| seat.control.push(*kind, bytes).is_ok());
        if sent {
            seat.outgoing.pop_front();
            seat.owes_ring = true;
            self.next([Op::Pump { seat: index }]);
            return;
        }
        if !seat.outgoing.is_empty() {
            site.ledger.count("control rings full");
        }
        if std::mem::take(&mut seat.owes_ring) {
            self.next([Op::Tell { seat: index }]);
        }
    }

    pub(super) fn tell(&mut self, index: u16) {
        let Some(seat) = self.seats.get_mut(&index) else { return };
        if seat.ringer.must_ring() {
            let process = seat.process;
            self.next([Op::Ding { process }]);
        }
    }

    pub(super) fn ring_for(&mut self, queue: u16, items: usize) {
        let seats: Vec<_> = self.seats.iter().filter(|(_, seat)| seat.queue.0 == queue).collect();
        let loads: Vec<_> = seats.iter().map(|(_, seat)| seat.load()).collect();
        let mut chosen = Vec::new();
        whom_to_ring(&loads, items, &mut chosen);
        let tells: Vec<_> = chosen.iter().map(|&at| Op::Tell { seat: *seats[at].0 }).collect();
        self.next(tells);
    }

    pub(super) fn rest(&mut self, site: &mut Site) {
        // A nap ends with the look that follows it; the client's calls leave it alone.
        if self.nap.is_none()
            && let Rest::Nap(nap) = self.resting.after(site.now, self.outcomes, self.pool.unfinished())
        {
            self.nap = Some(site.now + nap);
            site.ledger.count("naps");
        }
        if self.nap.is_some() {
            return self.next([Op::Watch, Op::Sleep]);
        }
        self.sleeper.announce();
        if site.sabotages(Sabotage::ManagerSleepsUnchecked) {
            return self.next([Op::Watch, Op::Sleep]);
        }
        self.next([Op::Recheck, Op::Watch, Op::Sleep]);
    }

    /// Looks at everything once more after the announcement; what is found begins another turn.
    pub(super) fn recheck(&mut self, site: &mut Site) {
        let unread = self.seats.values_mut().any(|seat| seat.results.is_ready());
        let freed = (0..self.boards.len() as u16).any(|queue| self.frees(site, queue));
        if unread || freed {
            self.begin_turn(site);
        }
    }

    /// Reclaims one slot that waiting tasks could use.
    fn frees(&mut self, site: &mut Site, queue: u16) -> bool {
        self.pool.has_waiting(QueueIndex(queue))
            && (0..site.scenario.pool.slots).any(|slot| self.reclaim_one(site, queue, slot))
    }

    /// While items wait that a sleeper not rung could take, rings one when it is time, and looks again.
    pub(super) fn watch(&mut self, site: &mut Site) {
        if site.sabotages(Sabotage::NoSecondRing) {
            return;
        }
        let due = self.look_again.is_some_and(|at| at <= site.now);
        let mut wanted = false;
        for queue in 0..self.boards.len() as u16 {
            let can_ring = |seat: &Seat| seat.queue.0 == queue && seat.load().can_ring && seat.load().room > 0;
            if self.boards[usize::from(queue)].has_unclaimed(true) && self.seats.values().any(can_ring) {
                wanted = true;
                if due {
                    site.ledger.count("second rings");
                    self.next([Op::RingFor { queue, items: 1 }]);
                }
            }
        }
        self.set_look_again(site, wanted);
    }
}

fn is_stream(site: &mut Site, task: TaskId) -> bool {
    let token = site.ledger.token_of(task.to_bits());
    site.scenario.tasks[token].stream.is_some()
}
