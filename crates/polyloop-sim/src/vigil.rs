//! What must hold whenever nobody has anything to do: no work waits beside a worker that could do it, and no news
//! waits for a manager that sleeps.

use std::collections::BTreeMap;
use std::time::Duration;

use polyloop_core::{Moment, QueueIndex, Stage, WorkerView};
use polyloop_shm::{BoardWriter, Phase, SlotIndex};

use crate::manager::Manager;
use crate::process::{Life, Process};
use crate::site::Site;

/// How long no work of a queue is taken beside a free worker: a few rounds of ringing another one, or of leaving it to
/// a peer.
const HUNGER_MAX: Duration = Duration::from_millis(15);

/// Since when each process has been free while work waited, and how much of its queue was started by then.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    hungry: BTreeMap<usize, (Moment, u64)>,
}

impl Vigil {
    /// Looks around before the clock moves on to `next`.
    pub(crate) fn look(&mut self, site: &mut Site, manager: &mut Manager, processes: &[Process], next: Moment) {
        self.hunger(site, manager, processes, next);
        if !manager.rests(site) {
            return;
        }
        if !site.scenario.faults.slows() {
            stays(site, manager, processes);
        }
        for seat in manager.seats.values_mut() {
            let settled = processes.get(seat.process).is_some_and(|process| process.is_settled(site));
            let unread = settled && seat.results.is_ready();
            site.ledger.demand(!unread, || format!("the manager sleeps beside a frame of {}", seat.worker));
        }
        let calm = manager.seats.values().all(|seat| {
            let process = processes.get(seat.process);
            process.is_none_or(|process| process.life == Life::Unborn || process.is_settled(site))
        });
        for (queue, board) in (0..).map(QueueIndex).zip(&manager.boards) {
            let refills = calm && manager.pool.has_waiting(queue) && has_empty_slot(site, board);
            site.ledger.demand(!refills, || format!("the manager sleeps beside an empty slot of queue {}", queue.0));
        }
    }

    fn hunger(&mut self, site: &mut Site, manager: &Manager, processes: &[Process], next: Moment) {
        let stalled = manager.stalled_until > site.now;
        for (index, process) in processes.iter().enumerate() {
            let board = &manager.boards[usize::from(process.queue.0)];
            if stalled || !process.is_free(site) || !board.has_unclaimed(process.is_idle()) {
                self.hungry.remove(&index);
                continue;
            }
            let starts = site.ledger.starts[usize::from(process.queue.0)];
            let hunger = self.hungry.entry(index).or_insert((site.now, starts));
            if hunger.1 != starts {
                *hunger = (site.now, starts);
            }
            let since = hunger.0;
            let long = next.saturating_sub(since) > HUNGER_MAX;
            site.ledger.demand(!long, || format!("worker {} sleeps beside work", process.worker));
        }
    }
}

/// Whether a task goes on that should have ended, or a worker is there that should have left.
fn stays(site: &mut Site, manager: &Manager, processes: &[Process]) {
    for process in processes {
        if !process.is_calm(site) {
            continue;
        }
        let task = process.overstays(site);
        site.ledger.demand(task.is_none(), || format!("task {task:?} goes on, and its time is over"));
        let retires = |view: &WorkerView| view.id == process.worker && view.stage == Stage::Retiring;
        let stays = process.is_idle() && manager.pool.workers().any(|view| retires(&view));
        site.ledger.demand(!stays, || format!("worker {} was to leave, and stays", process.worker));
    }
}

/// Whether a slot could be filled again: every item of it has left the board.
fn has_empty_slot(site: &Site, board: &BoardWriter) -> bool {
    let claimed = |slot: SlotIndex| {
        let on_it = |(at, _, phase): &(SlotIndex, u32, Phase)| *at == slot && *phase == Phase::Claimed;
        (0..site.scenario.pool.seats).any(|seat| board.owned_by(seat).iter().any(on_it))
    };
    board.posted_slots().any(|slot| board.is_exhausted(slot) && !claimed(slot))
}
