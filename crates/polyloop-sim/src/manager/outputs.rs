//! Carrying out what the pool says.

use polyloop_core::{ControlFrame, Input, Outcome, Output, Parcel, QueueIndex, State, Stop, TaskId, WorkerId};
use polyloop_shm::{Entry, Retract, SlotIndex};

use super::seat::Seat;
use super::{Manager, Op};
use crate::sabotage::Sabotage;
use crate::site::{Order, Site};

impl Manager {
    pub(super) fn output(&mut self, site: &mut Site, output: Output) {
        site.trace("pool", || format!("-> {output:?}"));
        site.ledger.demand(!self.over, || "an output after Closed".into());
        match output {
            Output::Start { worker, queue } => self.start(site, worker, queue),
            Output::Post { queue, call, lane, tasks } => {
                let (count, offered) = (tasks.len(), self.post(site, queue, lane, &tasks));
                let Some((slot, put)) = offered else { return };
                site.ledger.demand(put == count, || format!("{put} of {count} tasks went into a slot"));
                self.posted[usize::from(queue.0)] += count;
                self.pool.posted(queue, call, slot.0, tasks);
            }
            Output::Retract { task, place } => {
                let board = &self.boards[usize::from(place.queue.0)];
                let anyway = site.sabotages(Sabotage::RetractedAnyway);
                let (input, what) = match board.retract(SlotIndex(place.slot), place.index) {
                    Retract::Owned(_) if anyway => (Input::Retracted(task), "cancelled off the board"),
                    Retract::Retracted => (Input::Retracted(task), "cancelled off the board"),
                    Retract::Owned(seat) => (Input::Owned { task, seat }, "cancelled too late for the board"),
                };
                site.ledger.count(what);
                if matches!(input, Input::Retracted(_)) {
                    site.ledger.retracted(task);
                }
                self.handle(site, input);
            }
            Output::Cancel { .. } if site.sabotages(Sabotage::CancelUntold) => (),
            Output::Cancel { worker, task } => self.send(worker, ControlFrame::Cancel(task)),
            Output::Stop { stop: Stop::WhenDone, .. } if self.keeps_on(site) => (),
            Output::Stop { worker, stop } => self.stop(worker, stop),
            Output::Kill { worker, gently } => {
                if let Some(seat) = self.seat(worker) {
                    let process = seat.process;
                    site.orders.push(Order::Signal { process, gently });
                }
            }
            Output::Yield { token, value, .. } => self.client.value(site, token as usize, &value),
            Output::Credit { .. } if site.sabotages(Sabotage::CreditUntold) => (),
            Output::Credit { worker, task, values } => self.send(worker, ControlFrame::Credit { task, values }),
            Output::Answer { worker, number, outcome } => self.answer(site, worker, number, &outcome),
            Output::Deliver { token, mut outcome, .. } => {
                if let (true, Outcome::Lost(loss)) = (site.sabotages(Sabotage::PoisonUntold), &mut outcome) {
                    loss.poison = false;
                }
                self.client.delivered(&mut self.pool, site, token as usize, &outcome);
                // What the client has submitted from its callback.
                self.next([Op::Flush]);
            }
            Output::Judge { task, token, outcome, .. } => {
                self.client.judge(&mut self.pool, site, task, token as usize, &outcome);
                self.next([Op::Flush]);
            }
            Output::Report(report) => site.ledger.report(&report),
            Output::Up => site.ledger.count("staffs complete"),
            Output::GaveUp(_) => site.ledger.count("pools given up"),
            Output::Closed => {
                site.ledger.closed = true;
                self.over = true;
            }
        }
    }

    fn keeps_on(&self, site: &Site) -> bool {
        site.sabotages(Sabotage::StopUntold) && self.pool.state() == State::Running
    }

    pub(super) fn seat(&mut self, worker: WorkerId) -> Option<&mut Seat> {
        self.seats.get_mut(&worker.seat).filter(|seat| seat.worker == worker)
    }

    pub(super) fn send(&mut self, worker: WorkerId, frame: ControlFrame<'_>) {
        if let Some(seat) = self.seat(worker) {
            seat.send(frame);
            let seat = worker.seat;
            self.next([Op::Pump { seat }]);
        }
    }

    fn start(&mut self, site: &mut Site, worker: WorkerId, queue: QueueIndex) {
        let own = site.own();
        let process = site.next_process();
        let seat = Seat::new(site, worker, queue, process, &own);
        let before = self.seats.insert(worker.seat, seat);
        site.ledger.demand(before.is_none(), || format!("{worker} was given a seat that is taken"));
        site.orders.push(Order::Start { worker, queue, own });
    }

    fn stop(&mut self, worker: WorkerId, stop: Stop) {
        if let Some(seat) = self.seat(worker) {
            seat.stopping = true;
        }
        self.send(worker, ControlFrame::Stop(stop));
    }

    fn post(&mut self, site: &mut Site, queue: QueueIndex, lane: u16, tasks: &[TaskId]) -> Option<(SlotIndex, usize)> {
        let pool = &self.pool;
        let entries = tasks.iter().filter_map(|id| {
            let Parcel { function, arguments, terms } = pool.parcel_of(*id)?;
            let (function, arguments): (&[u8], &[u8]) = if terms.large { (&[], &[]) } else { (function, arguments) };
            Some(Entry { task: id.to_bits(), function, arguments, extra: terms.to_bits() })
        });
        let entries: Vec<_> = entries.collect();
        let whole = entries.len() == tasks.len();
        site.ledger.demand(whole, || "a task to be posted has no bytes".into());
        if !whole {
            return None;
        }
        let posted = self.boards[usize::from(queue.0)].post(lane, entries);
        site.ledger.demand(posted.is_ok(), || "the pool posted more slots than the board has".into());
        posted.ok().map(|posted| (posted.slot, posted.count as usize))
    }
}
