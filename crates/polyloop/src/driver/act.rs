//! The core's outputs, carried out.

use std::io;

use polyloop_core::{CallId, ControlFrame, Input, Output, Parcel, QueueIndex, Stop, TaskId, WorkerId};
use polyloop_shm::Retract;

use super::{Driver, Event};
use crate::link::entry;

impl Driver {
    /// Posts what waits, and carries out what the core says.
    pub(super) fn act(&mut self) -> io::Result<()> {
        self.settle_blocks()?;
        self.pool.flush();
        self.carry_out_all()?;
        for seat in self.link.seats.values_mut() {
            seat.pump()?;
        }
        for index in 0..self.posted.len() {
            let (queue, items) = (QueueIndex(index as u16), std::mem::take(&mut self.posted[index]));
            self.link.set_backlog(queue, self.pool.has_waiting(queue));
            if items > 0 {
                self.ring(queue, items)?;
            }
        }
        Ok(())
    }

    pub(super) fn carry_out_all(&mut self) -> io::Result<()> {
        while let Some(output) = self.pool.poll_output() {
            self.carry_out(output)?;
        }
        Ok(())
    }

    /// Frees the slots whose items have all left them. Says whether there were any.
    pub(super) fn reclaim(&mut self) -> bool {
        let now = self.now();
        let mut any = false;
        for queue in (0..self.config.queues).map(QueueIndex) {
            for (slot, owners) in self.link.reclaim(queue) {
                self.pool.handle(now, Input::Reclaimed { queue, slot, owners });
                any = true;
            }
        }
        any
    }

    fn carry_out(&mut self, output: Output) -> io::Result<()> {
        match output {
            Output::Start { worker, queue } => self.start(worker, queue)?,
            Output::Post { queue, call, lane, tasks } => {
                self.posted[usize::from(queue.0)] += tasks.len();
                self.post(queue, call, lane, tasks);
            }
            Output::Retract { task, place } => {
                let input = match self.link.retract(place) {
                    Retract::Retracted => Input::Retracted(task),
                    Retract::Owned(seat) => Input::Owned { task, seat },
                };
                let now = self.now();
                self.pool.handle(now, input);
            }
            Output::Cancel { worker, task } => self.urge(worker, ControlFrame::Cancel(task))?,
            Output::Credit { worker, task, values } => self.send(worker, ControlFrame::Credit { task, values })?,
            Output::Stop { worker, stop: Stop::Now } => self.urge(worker, ControlFrame::Stop(Stop::Now))?,
            Output::Stop { worker, stop } => self.send(worker, ControlFrame::Stop(stop))?,
            Output::Kill { worker, gently } => {
                if let Some(seat) = self.link.get(worker) {
                    seat.kill(gently)?;
                }
            }
            Output::Deliver { task, call, token, outcome } => {
                self.events.push_back(Event::Deliver { task, call, token, outcome });
            }
            Output::Answer { worker, number, outcome } => self.answer(worker, number, &outcome)?,
            Output::Yield { task, token, value } => self.events.push_back(Event::Yield { task, token, value }),
            Output::Judge { task, call, token, outcome } => {
                self.events.push_back(Event::Judge { task, call, token, outcome });
            }
            Output::Report(report) => self.events.push_back(Event::Report(report)),
            Output::Up => self.events.push_back(Event::Up),
            Output::GaveUp(error) => self.events.push_back(Event::GaveUp(error)),
            Output::Closed => {
                self.settle_blocks()?;
                self.give_back_all();
                self.events.push_back(Event::Closed);
            }
        }
        Ok(())
    }

    fn post(&mut self, queue: QueueIndex, call: CallId, lane: u16, tasks: Vec<TaskId>) {
        debug_assert!(self.link.free_slots(queue) > 0, "the core counts the slots");
        let (pool, link) = (&self.pool, &mut self.link);
        let entries = tasks.iter().filter_map(|task| {
            let Parcel { function, arguments, terms } = pool.parcel_of(*task)?;
            Some(entry(*task, function, arguments, terms))
        });
        if let Some(posted) = link.post(queue, lane, entries) {
            debug_assert_eq!(posted.count as usize, tasks.len(), "the core counts the bytes");
            self.pool.posted(queue, call, posted.slot.0, tasks);
        }
    }

    pub(super) fn send(&mut self, worker: WorkerId, frame: ControlFrame<'_>) -> io::Result<()> {
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        seat.send(frame)?;
        self.replace_if_deaf(worker)
    }
}
