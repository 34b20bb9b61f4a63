//! What becomes of tasks and of the pool when workers die, retire or fail to start.

use std::time::Duration;

use polyloop_core::{
    Cause, Exit, Input, Loss, OnDeath, Outcome, Output, PoolConfig, QueueIndex, Refused, Report, Stage as WorkerStage,
    Standing, StartError, State, Stop, Submission, TaskId, WorkerId, WorkerView,
};

use crate::stage::{CONFIG, FIRST, Stage, task, value};

const KILLED: Exit = Exit::Signal(9);
const SECOND: WorkerId = WorkerId { seat: 0, generation: 2 };

fn refused() -> StartError {
    StartError::Refused("no".into())
}

#[test]
fn a_task_claimed_but_not_started_runs_again_and_spends_no_retry() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    let place = stage.place(id);
    // The lease is recorded before the item is taken, so it is found in both places.
    stage.dies(FIRST, KILLED, |dead| {
        dead.claimed = vec![place];
        dead.leased = vec![id.to_bits()];
    });
    assert_eq!(stage.delivered(), []);
    assert_eq!(stage.board[1].tasks, [id], "on the board again");
    stage.is_ready(SECOND);
    stage.outcome(SECOND, id, value());
    assert_eq!(stage.delivered(), [(1, value())]);
    assert_eq!(
        stage.reports(),
        [Report::Died { worker: FIRST, pid: Some(100), exit: KILLED, retried: 0, lost: 0, judged: 0 }]
    );
}

#[test]
fn a_started_task_without_retries_is_lost_with_what_is_known_of_its_worker() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    let place = stage.place(id);
    stage.dies(FIRST, KILLED, |dead| dead.taken = vec![place]);
    let loss = Loss { worker: FIRST, pid: Some(100), exit: KILLED, attempt: 1, poison: false };
    assert_eq!(stage.delivered(), [(1, Outcome::Lost(loss))]);
}

#[test]
fn a_started_task_runs_again_as_often_as_its_retries_say() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { retries: 2, ..task(1) });
    for generation in 1..=3 {
        assert_eq!(stage.delivered(), []);
        let worker = WorkerId { seat: 0, generation };
        stage.is_ready(worker);
        stage.taken(id, worker);
        stage.dies(worker, KILLED, |_| ());
    }
    assert!(matches!(stage.delivered()[..], [(1, Outcome::Lost(Loss { attempt: 3, .. }))]));
}

/// Answers each question that was asked since it was last looked.
fn judge(stage: &mut Stage, again: bool) -> Option<TaskId> {
    let asked = stage.outputs.iter().find_map(|output| match output {
        Output::Judge { task, outcome: Outcome::Lost(loss), .. } => Some((*task, *loss)),
        _ => None,
    });
    let (id, loss) = asked.expect("the host was asked");
    assert!(!loss.poison);
    stage.outputs.retain(|output| !matches!(output, Output::Judge { .. }));
    let id = if again { stage.pool.again(id, None) } else { stage.pool.settled(stage.now, id).then_some(id) };
    stage.collect();
    id
}

#[test]
fn a_death_of_which_the_host_is_to_say_waits_for_its_word() {
    let mut stage = Stage::ready();
    let mut id = stage.submit(Submission { retries: 9, on_death: OnDeath::Judge, ..task(1) });
    for generation in 1..=2 {
        let worker = WorkerId { seat: 0, generation };
        stage.is_ready(worker);
        stage.taken(id, worker);
        stage.dies(worker, KILLED, |_| ());
        assert!(matches!(stage.reports().last(), Some(Report::Died { retried: 0, lost: 0, judged: 1, .. })));
        assert_eq!((stage.delivered(), stage.board.len()), (vec![], 0));
        id = judge(&mut stage, true).expect("it was there");
    }
    let third = WorkerId { seat: 0, generation: 3 };
    stage.is_ready(third);
    stage.taken(id, third);
    stage.dies(third, KILLED, |_| ());
    let poisoned = matches!(stage.delivered()[..], [(1, Outcome::Lost(Loss { attempt: 3, poison: true, .. }))]);
    assert!(poisoned, "nobody is asked about poison: {:?}", stage.delivered());
    assert_eq!(stage.pool.counts().retried, 2);
}

#[test]
fn a_death_that_the_host_leaves_at_ends_the_task_and_so_does_the_last_that_may_be() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { retries: 1, on_death: OnDeath::Judge, ..task(1) });
    stage.close();
    stage.taken(id, FIRST);
    stage.dies(FIRST, KILLED, |_| ());
    assert!(!stage.is_closed(), "it has not ended");
    let id = judge(&mut stage, true).expect("it was there");
    stage.is_ready(SECOND);
    stage.taken(id, SECOND);
    stage.dies(SECOND, KILLED, |_| ());
    assert!(matches!(stage.delivered()[..], [(1, Outcome::Lost(Loss { attempt: 2, .. }))]));
    assert!(stage.is_closed());

    let mut stage = Stage::ready();
    let id = stage.submit(Submission { retries: 1, on_death: OnDeath::Judge, ..task(1) });
    stage.close();
    stage.taken(id, FIRST);
    stage.dies(FIRST, KILLED, |_| ());
    assert!(judge(&mut stage, false).is_some());
    assert_eq!((stage.pool.unfinished(), stage.pool.counts().failed), (0, 1));
}

#[test]
fn the_death_of_a_worker_that_ran_more_takes_no_retry_of_a_judged_task() {
    let mut stage = Stage::ready();
    let judged = Submission { retries: 1, on_death: OnDeath::Judge, ..task(1) };
    let (id, other) = (stage.submit(judged), stage.submit(task(2)));
    stage.taken(id, FIRST);
    if stage.board.iter().any(|slot| slot.tasks.contains(&other)) {
        stage.taken(other, FIRST);
    }
    stage.dies(FIRST, KILLED, |_| ());
    let id = judge(&mut stage, true).expect("it was there");
    stage.is_ready(SECOND);
    stage.taken(id, SECOND);
    stage.dies(SECOND, KILLED, |_| ());
    assert!(judge(&mut stage, true).is_some(), "its one retry was left");
}

#[test]
fn a_task_found_on_the_board_and_in_a_lease_is_counted_once() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { retries: 1, ..task(1) });
    let place = stage.place(id);
    stage.dies(FIRST, KILLED, |dead| {
        dead.taken = vec![place];
        dead.leased = vec![id.to_bits(), id.to_bits()];
    });
    assert!(matches!(stage.reports()[..], [Report::Died { retried: 1, lost: 0, .. }]));
}

#[test]
fn a_lease_on_a_task_that_another_worker_has_or_nobody_costs_nothing() {
    let mut stage = Stage::new(PoolConfig { processes: 2, ..CONFIG });
    let other = WorkerId { seat: 1, generation: 1 };
    stage.is_ready(FIRST);
    stage.is_ready(other);
    let ended = stage.submit(task(1));
    stage.outcome(FIRST, ended, value());
    let foreign = stage.submit(task(2));
    stage.taken(foreign, other);
    stage.dies(FIRST, KILLED, |dead| {
        dead.leased = vec![ended.to_bits(), foreign.to_bits(), u64::MAX];
    });
    assert_eq!(stage.delivered(), [(1, value())]);
}

#[test]
fn a_cancelled_task_whose_worker_dies_is_cancelled_not_lost_and_not_retried() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { retries: 5, ..task(1) });
    stage.taken(id, FIRST);
    stage.cancel(id);
    stage.dies(FIRST, KILLED, |_| ());
    assert_eq!(stage.delivered(), [(1, Outcome::Cancelled)]);
}

#[test]
fn a_dead_worker_is_replaced_at_once_under_a_new_name() {
    let mut stage = Stage::ready();
    stage.dies(FIRST, KILLED, |_| ());
    assert_eq!(stage.started(), [SECOND]);
    stage.dies(FIRST, KILLED, |_| ());
    assert_eq!(stage.reports().len(), 1, "a second notice is no second death");
}

#[test]
fn a_retiring_workers_successor_starts_before_it_is_gone() {
    let mut stage = Stage::ready();
    stage.handle(Input::Retiring { worker: FIRST, cause: Cause::Recycled });
    let successor = WorkerId { seat: 1, generation: 1 };
    assert_eq!(stage.started(), [successor]);
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert_eq!(stage.started(), [successor], "its seat is not filled again");
    assert_eq!(stage.reports(), [], "it left as it should");
}

#[test]
fn an_initialiser_that_fails_before_any_worker_was_ready_ends_every_task_with_its_error() {
    let mut stage = Stage::new(CONFIG);
    stage.submit(task(1));
    stage.submit(task(2));
    stage.handle(Input::Started { worker: FIRST, pid: 100 });
    stage.handle(Input::Failed { worker: FIRST, error: b"boom".into() });
    assert_eq!(stage.delivered(), [], "its process is about to leave");
    stage.dies(FIRST, Exit::Code(1), |_| ());
    let error = StartError::Raised(b"boom"[..].into());
    let ended = Outcome::NoWorkers(error.clone());
    assert_eq!(stage.delivered(), [(1, ended.clone()), (2, ended)]);
    assert_eq!(stage.pool.submit(task(3)), Err(Refused::NoWorkers(error.clone())));
    assert_eq!(stage.pool.open_call(1, None), Err(Refused::NoWorkers(error)));
    assert!(stage.is_closed());
}

#[test]
fn start_failures_after_a_healthy_worker_degrade_the_pool_until_one_is_ready_again() {
    let mut stage = Stage::ready();
    stage.dies(FIRST, KILLED, |_| ());
    stage.outputs.clear();
    stage.handle(Input::NotStarted { worker: SECOND, error: refused() });
    assert_eq!(stage.reports(), [Report::Degraded(refused())]);
    assert_eq!(stage.pool.state(), State::Degraded);
    assert_eq!(stage.started(), [], "not at once");
    let at = stage.pool.poll_timeout().expect("it tries again");
    stage.pass(at);
    let [third] = stage.started()[..] else { panic!("one start: {:?}", stage.outputs) };
    stage.handle(Input::NotStarted { worker: third, error: refused() });
    assert_eq!(stage.reports().len(), 1, "one line for each change");
    let again = stage.pool.poll_timeout().unwrap() - stage.now;
    assert!(again > at, "the wait grows");
    stage.pass(again);
    let fourth = *stage.started().last().unwrap();
    stage.is_ready(fourth);
    assert_eq!(stage.reports().last(), Some(&Report::Recovered));
    assert_eq!(stage.pool.state(), State::Running);
}

#[test]
fn when_a_worker_is_ready_again_the_others_start_at_once() {
    let mut stage = Stage::new(PoolConfig { processes: 2, ..CONFIG });
    let other = WorkerId { seat: 1, generation: 1 };
    stage.handle(Input::NotStarted { worker: other, error: StartError::Exited(KILLED) });
    stage.outputs.clear();
    stage.is_ready(FIRST);
    assert_eq!(stage.started().len(), 1);
}

#[test]
fn tasks_wait_through_a_time_without_workers() {
    let mut stage = Stage::ready();
    stage.dies(FIRST, KILLED, |_| ());
    stage.handle(Input::NotStarted { worker: SECOND, error: refused() });
    let id = stage.submit(task(1));
    stage.pass(Duration::from_secs(60));
    let worker = *stage.started().last().unwrap();
    stage.is_ready(worker);
    stage.outcome(worker, id, value());
    assert_eq!(stage.delivered(), [(1, value())]);
    assert_eq!(stage.count(|o| matches!(o, Output::Kill { .. })), 0, "nobody is killed for it");
}

fn aging(processes: u16, seats: u16) -> Stage {
    Stage::new(PoolConfig { processes, seats, max_age: Some(Duration::from_secs(100)), ..CONFIG })
}

fn stopped(stage: &Stage) -> Vec<WorkerId> {
    let stop = |output: &Output| match output {
        Output::Stop { worker, stop: Stop::WhenDone } => Some(*worker),
        _ => None,
    };
    stage.outputs.iter().filter_map(stop).collect()
}

#[test]
fn a_worker_that_is_too_old_goes_on_until_its_successor_is_ready() {
    let mut stage = aging(1, 2);
    stage.is_ready(FIRST);
    stage.pass(Duration::from_secs(89));
    let successor = WorkerId { seat: 1, generation: 1 };
    assert_eq!(stage.started(), [FIRST], "at most a tenth too early");
    stage.pass(Duration::from_secs(11));
    assert_eq!((stage.started(), stopped(&stage)), (vec![FIRST, successor], vec![]));
    stage.is_ready(successor);
    assert_eq!(stopped(&stage), [FIRST]);
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert_eq!(stage.reports(), []);
    assert_eq!(stage.pool.counts().restarts[Cause::Age as usize], 1);
    stage.pass(Duration::from_secs(100));
    assert_eq!(stage.started().len(), 3, "the successor ages too");
}

#[test]
fn an_old_worker_whose_successor_fails_to_start_goes_on() {
    let mut stage = aging(1, 2);
    stage.is_ready(FIRST);
    stage.pass(Duration::from_secs(100));
    stage.handle(Input::NotStarted { worker: WorkerId { seat: 1, generation: 1 }, error: refused() });
    assert_eq!(stopped(&stage), []);
    stage.pass(Duration::from_secs(1));
    stage.is_ready(WorkerId { seat: 1, generation: 2 });
    assert_eq!(stopped(&stage), [FIRST]);
}

#[test]
fn an_old_worker_makes_room_where_there_is_no_seat_for_its_successor() {
    let mut stage = aging(1, 1);
    stage.is_ready(FIRST);
    stage.pass(Duration::from_secs(100));
    assert_eq!((stage.started(), stopped(&stage)), (vec![FIRST], vec![FIRST]));
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert_eq!(stage.started(), [FIRST, SECOND]);
}

#[test]
fn workers_of_the_same_start_do_not_age_at_the_same_moment() {
    let mut stage = aging(2, 4);
    stage.is_ready(FIRST);
    stage.is_ready(WorkerId { seat: 1, generation: 1 });
    let first = stage.pool.poll_timeout().unwrap();
    stage.pass(first);
    assert_eq!(stage.started().len(), 3);
}

#[test]
fn tasks_and_restarts_are_counted() {
    let mut stage = Stage::ready();
    for outcome in [value(), Outcome::Raised(Default::default())] {
        let id = stage.submit(task(1));
        stage.taken(id, FIRST);
        stage.outcome(FIRST, id, outcome);
    }
    let id = stage.submit(Submission { retries: 1, ..task(2) });
    let views: Vec<_> = stage.pool.workers().collect();
    assert!(matches!(views[..], [WorkerView { done: 2, stage: WorkerStage::Ready, .. }]));
    stage.taken(id, FIRST);
    stage.dies(FIRST, KILLED, |_| ());
    stage.is_ready(SECOND);
    stage.handle(Input::Garbage(SECOND));
    stage.taken(id, SECOND);
    stage.dies(SECOND, KILLED, |_| ());
    let counts = stage.pool.counts();
    assert_eq!((counts.done, counts.failed, counts.retried), (1, 2, 1));
    assert_eq!(counts.restarts, [1, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn without_overlap_a_successor_starts_when_its_predecessor_is_gone() {
    let mut stage = Stage::new(PoolConfig { overlap: false, ..CONFIG });
    stage.is_ready(FIRST);
    stage.outputs.clear();
    stage.handle(Input::Retiring { worker: FIRST, cause: Cause::Recycled });
    assert!(stage.outputs.is_empty(), "{:?}", stage.outputs);
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert!(matches!(stage.outputs[..], [Output::Start { .. }]), "{:?}", stage.outputs);
}

#[test]
fn without_overlap_an_old_worker_is_sent_away_at_once() {
    let max_age = Some(Duration::from_secs(100));
    let mut stage = Stage::new(PoolConfig { overlap: false, max_age, ..CONFIG });
    stage.is_ready(FIRST);
    stage.outputs.clear();
    stage.pass(Duration::from_secs(101));
    assert!(matches!(stage.outputs[..], [Output::Stop { worker: FIRST, stop: Stop::WhenDone }]), "{:?}", stage.outputs);
    stage.dies(FIRST, Exit::Code(0), |_| ());
    assert_eq!(stage.pool.counts().restarts[Cause::Age as usize], 1);
}

#[test]
fn a_lease_on_a_task_that_stands_on_the_board_for_others_is_a_lie() {
    let mut stage = Stage::ready();
    let id = stage.submit(task(1));
    stage.dies(FIRST, KILLED, |dead| dead.leased = vec![id.to_bits()]);
    assert_eq!(stage.delivered(), []);
    stage.is_ready(SECOND);
    stage.outcome(SECOND, id, value());
    assert_eq!(stage.delivered(), [(1, value())]);
}

#[test]
fn a_task_that_left_its_board_in_the_name_of_nobody_runs_again_or_ends() {
    for owner in [None, Some(7), Some(u16::MAX)] {
        let mut stage = Stage::ready();
        let (lost, retried) = (stage.submit(task(1)), stage.submit(Submission { retries: 1, ..task(2) }));
        let slots: Vec<_> = stage.board.drain(..).collect();
        for slot in slots {
            let owners = vec![owner; slot.tasks.len()];
            stage.handle(Input::Reclaimed { queue: QueueIndex(0), slot: slot.slot, owners });
        }
        assert!(matches!(stage.delivered()[..], [(1, Outcome::Lost(_))]), "{lost}: {:?}", stage.delivered());
        assert_eq!(stage.board[0].tasks, [retried], "on the board again");
    }
}

#[test]
fn only_the_worker_that_has_a_task_has_business_with_it() {
    let mut stage = Stage::new(PoolConfig { processes: 2, ..CONFIG });
    let other = WorkerId { seat: 1, generation: 1 };
    stage.is_ready(FIRST);
    stage.is_ready(other);
    let id = stage.submit(task(1));
    let standing = |stage: &Stage, worker, owner| stage.pool.standing(worker, id, |_| owner);
    let holds = Standing::Holds { large: false };
    assert_eq!(standing(&stage, FIRST, None), Standing::Stranger, "it waits on the board");
    assert_eq!(standing(&stage, FIRST, Some(FIRST.seat)), holds);
    assert_eq!(standing(&stage, other, Some(FIRST.seat)), Standing::Stranger);
    stage.taken(id, FIRST);
    assert_eq!(standing(&stage, FIRST, None), holds);
    assert_eq!(standing(&stage, other, None), Standing::Stranger);
    stage.outcome(FIRST, id, value());
    assert_eq!(standing(&stage, FIRST, None), Standing::Over);
    assert_eq!(standing(&stage, other, None), Standing::Over);
}

#[test]
fn a_neighbour_that_was_claimed_and_cancelled_is_no_company_for_a_task_that_kills_its_worker() {
    let mut stage = Stage::ready();
    let (kills, claimed) = (stage.submit(Submission { retries: 1, ..task(1) }), stage.submit(task(2)));
    let places = [stage.place(kills), stage.place(claimed)];
    stage.cancel(claimed);
    stage.handle(Input::Owned { task: claimed, seat: FIRST.seat });
    stage.dies(FIRST, KILLED, |dead| {
        dead.taken = vec![places[0]];
        dead.claimed = vec![places[1]];
    });
    assert_eq!(stage.delivered(), [(2, Outcome::Cancelled)]);
    stage.is_ready(SECOND);
    // The slot that it was lost in is free now, and so is the next, once it is taken there.
    (0..2).for_each(|_| stage.taken(kills, SECOND));
    stage.dies(SECOND, KILLED, |_| ());
    assert!(matches!(stage.delivered()[..], [_, (1, Outcome::Lost(Loss { attempt: 2, .. }))]), "its retry was used up");
}
