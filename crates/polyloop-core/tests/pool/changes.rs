//! A pool that is made larger or smaller, or gets all its workers anew.

use polyloop_core::{Cause, Exit, Input, Output, PoolConfig, Stage as WorkerStage, StartError, State, Stop, WorkerId};

use crate::stage::{CONFIG, Stage, task, value};

const fn worker(seat: u16, generation: u32) -> WorkerId {
    WorkerId { seat, generation }
}

/// So many workers, all ready.
fn staff(processes: u16, overlap: bool) -> Stage {
    let mut stage = Stage::new(PoolConfig { processes, seats: 6, overlap, ..CONFIG });
    (0..processes).for_each(|seat| stage.is_ready(worker(seat, 1)));
    assert!(stage.pool.is_up());
    stage.outputs.clear();
    stage
}

fn started(stage: &mut Stage) -> Vec<WorkerId> {
    let start = |output: Output| match output {
        Output::Start { worker, .. } => Some(worker),
        _ => None,
    };
    std::mem::take(&mut stage.outputs).into_iter().filter_map(start).collect()
}

fn stopped(stage: &mut Stage) -> Vec<WorkerId> {
    let stop = |output: Output| match output {
        Output::Stop { worker, stop } => {
            assert_eq!(stop, Stop::WhenDone);
            Some(worker)
        }
        _ => None,
    };
    std::mem::take(&mut stage.outputs).into_iter().filter_map(stop).collect()
}

#[test]
fn a_larger_pool_starts_what_it_lacks_and_says_when_they_are_up() {
    let mut stage = staff(1, true);
    assert!(stage.pool.resize(stage.now, 3).is_empty());
    stage.collect();
    assert!(!stage.pool.is_up());
    assert_eq!(started(&mut stage), [worker(1, 1), worker(2, 1)]);
    stage.is_ready(worker(1, 1));
    let up = |stage: &Stage| stage.outputs.iter().any(|output| matches!(output, Output::Up));
    assert!(!up(&stage));
    stage.is_ready(worker(2, 1));
    assert!(up(&stage) && stage.pool.is_up());
}

#[test]
fn a_smaller_pool_loses_nothing_of_what_its_workers_run() {
    let mut stage = staff(3, true);
    let id = stage.submit(task(7));
    let busy = worker(2, 1);
    stage.taken(id, busy);
    let sent = stage.pool.resize(stage.now, 1);
    stage.collect();
    assert_eq!((sent.len(), sent.contains(&busy)), (2, true), "the youngest, in whatever order");
    assert_eq!(stopped(&mut stage), sent);
    stage.pass(stage.now + std::time::Duration::from_secs(3600));
    assert!(stage.outputs.iter().all(|output| !matches!(output, Output::Kill { .. })), "{:?}", stage.outputs);
    stage.outcome(busy, id, value());
    assert_eq!(stage.delivered(), [(7, value())]);
    sent.into_iter().for_each(|worker| stage.dies(worker, Exit::Code(0), |_| ()));
    assert!(stage.pool.is_up());
    assert_eq!(stage.pool.counts().restarts, [0; Cause::ALL.len()]);
    assert_eq!(stage.pool.workers().count(), 1);
}

#[test]
fn workers_that_are_being_started_are_the_first_to_go_and_no_fault() {
    let mut stage = staff(1, true);
    stage.pool.resize(stage.now, 3);
    stage.collect();
    stage.handle(Input::Started { worker: worker(1, 1), pid: 7 });
    let sent = stage.pool.resize(stage.now, 1);
    stage.collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(stopped(&mut stage), sent);
    let killed = |output: &Output| matches!(output, Output::Kill { .. });
    assert!(!stage.outputs.iter().any(killed), "it may have begun with a task, and not been heard");
    stage.handle(Input::NotStarted { worker: worker(2, 1), error: StartError::Refused("too late".into()) });
    stage.dies(worker(1, 1), Exit::Code(0), |_| ());
    assert_eq!((stage.pool.state(), stage.pool.workers().count()), (State::Running, 1));
}

#[test]
fn new_workers_come_one_after_the_other() {
    let mut stage = staff(2, true);
    assert_eq!(stage.pool.restart(stage.now), [worker(0, 1), worker(1, 1)]);
    stage.collect();
    assert_eq!(started(&mut stage), [worker(2, 1)]);
    stage.is_ready(worker(2, 1));
    assert_eq!(stopped(&mut stage), [worker(0, 1)]);
    assert_eq!(stage.pool.workers().count(), 4, "the next one's successor is on its way");
    stage.is_ready(worker(3, 1));
    assert_eq!(stopped(&mut stage), [worker(1, 1)]);
    assert!(stage.pool.is_up());
}

#[test]
fn where_they_must_not_overlap_the_old_one_goes_first() {
    let mut stage = staff(2, false);
    stage.pool.restart(stage.now);
    stage.collect();
    let stages = |stage: &Stage| stage.pool.workers().map(|worker| worker.stage).collect::<Vec<_>>();
    assert_eq!(stages(&stage), [WorkerStage::Retiring, WorkerStage::Ready]);
    assert_eq!(stopped(&mut stage), [worker(0, 1)]);
    stage.dies(worker(0, 1), Exit::Code(0), |_| ());
    assert_eq!(started(&mut stage), [worker(0, 2)]);
    stage.is_ready(worker(0, 2));
    assert_eq!(stopped(&mut stage), [worker(1, 1)]);
    stage.dies(worker(1, 1), Exit::Code(0), |_| ());
    stage.is_ready(worker(1, 2));
    assert_eq!(stage.pool.counts().restarts[Cause::Restarted as usize], 2);
    assert!(stage.pool.is_up() && stopped(&mut stage).is_empty());
}
