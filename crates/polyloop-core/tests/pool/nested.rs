//! Calls of the pool by its own tasks: who is told what comes of them, and what ends them.

use polyloop_core::{
    Ask, Exit, Input, Loss, NestedId, Outcome, Output, Payload, PoolConfig, State, Stop, Submission, TaskId, WorkerId,
};

use crate::stage::{CONFIG, FIRST, GRACE, Stage, task, value};

const SECOND: WorkerId = WorkerId { seat: 1, generation: 1 };
const NUMBER: NestedId = NestedId(7);
const CALL: Ask<'_> = Ask {
    is_loose: false,
    retries: 0,
    retry_deaths: true,
    attempt: 1,
    timeout: None,
    function: b"g",
    arguments: b"args",
};

/// Two workers, ready, and a task that the first has taken.
fn with_caller(submission: Submission) -> (Stage, TaskId) {
    let mut stage = Stage::new(PoolConfig { processes: 2, seats: 4, ..CONFIG });
    stage.is_ready(FIRST);
    stage.is_ready(SECOND);
    let caller = stage.submit(submission);
    stage.taken(caller, FIRST);
    stage.outputs.clear();
    (stage, caller)
}

fn ask(stage: &mut Stage, caller: TaskId, number: NestedId, ask: Ask<'_>) -> Option<TaskId> {
    let asked = stage.pool.ask(FIRST, caller, number, &Payload::from_vec(ask.write()));
    stage.collect();
    asked
}

fn call(stage: &mut Stage, caller: TaskId, number: NestedId) -> TaskId {
    ask(stage, caller, number, CALL).expect("it is accepted")
}

fn answers(stage: &Stage) -> Vec<(WorkerId, NestedId, Outcome)> {
    let answer = |output: &_| match output {
        Output::Answer { worker, number, outcome } => Some((*worker, *number, outcome.clone())),
        _ => None,
    };
    stage.outputs.iter().filter_map(answer).collect()
}

fn cancels(stage: &Stage) -> Vec<(WorkerId, TaskId)> {
    let cancel = |output: &_| match output {
        Output::Cancel { worker, task } => Some((*worker, *task)),
        _ => None,
    };
    stage.outputs.iter().filter_map(cancel).collect()
}

#[test]
fn what_comes_of_a_call_goes_to_the_worker_that_asked_and_to_nobody_else() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = call(&mut stage, caller, NUMBER);
    stage.taken(nested, SECOND);
    let raised = Outcome::Raised(Payload::from_slice(b"oh"));
    stage.outcome(SECOND, nested, raised.clone());
    assert_eq!(answers(&stage), [(FIRST, NUMBER, raised)]);
    assert_eq!(stage.delivered(), []);
    stage.outcome(FIRST, caller, value());
    assert_eq!(stage.delivered(), [(1, value())]);
    assert_eq!(stage.pool.unfinished(), 0);
}

#[test]
fn a_call_that_returns_among_many_is_told_apart() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = call(&mut stage, caller, NUMBER);
    stage.taken(nested, SECOND);
    let (of, token) = stage.pool.returned(SECOND, nested).unwrap();
    assert!(of.is_nested());
    assert_eq!(stage.pool.returned_nested(of, token), Some((FIRST, NUMBER)));
    let (of, _) = stage.pool.returned(FIRST, caller).unwrap();
    assert!(!of.is_nested());
    stage.pool.returned_all(stage.now);
    assert_eq!(stage.pool.unfinished(), 0);
}

#[test]
fn a_call_is_known_from_then_on_to_be_the_workers_that_makes_it() {
    let mut stage = Stage::ready();
    let caller = stage.submit(task(1));
    call(&mut stage, caller, NUMBER);
    stage.cancel(caller);
    assert_eq!(cancels(&stage), [(FIRST, caller)], "not taken back from the board");
}

#[test]
fn a_withdrawn_call_is_cancelled_and_answered_once() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = call(&mut stage, caller, NUMBER);
    stage.taken(nested, SECOND);
    for _ in 0..2 {
        stage.pool.withdraw(stage.now, FIRST, NUMBER);
        stage.pool.withdraw(stage.now, SECOND, NUMBER);
        stage.collect();
    }
    assert_eq!(cancels(&stage), [(SECOND, nested)]);
    stage.outcome(SECOND, nested, Outcome::Cancelled);
    stage.pool.withdraw(stage.now, FIRST, NUMBER);
    assert_eq!(answers(&stage), [(FIRST, NUMBER, Outcome::Cancelled)]);
}

#[test]
fn a_task_that_ends_by_itself_leaves_its_calls_to_go_on_and_any_other_takes_them_with_it() {
    let raised = Outcome::Raised(Payload::new());
    for (end, goes_on) in [(value(), true), (raised, true), (Outcome::Cancelled, false), (Outcome::TimedOut, false)] {
        let (mut stage, caller) = with_caller(task(1));
        let nested = call(&mut stage, caller, NUMBER);
        stage.taken(nested, SECOND);
        stage.outcome(FIRST, caller, end.clone());
        assert_eq!(cancels(&stage).is_empty(), goes_on, "{end:?}");
        assert_eq!(stage.pool.unfinished(), 1);
    }
}

#[test]
fn a_task_that_is_given_up_after_its_grace_takes_its_calls_with_it() {
    let (mut stage, caller) = with_caller(task(1));
    stage.cancel(caller);
    let nested = call(&mut stage, caller, NUMBER);
    stage.taken(nested, SECOND);
    assert_eq!(cancels(&stage), [(FIRST, caller)], "it may need the pool to clean up");
    stage.pass(GRACE);
    assert_eq!(cancels(&stage), [(FIRST, caller), (SECOND, nested)]);
    assert_eq!(ask(&mut stage, caller, NestedId(8), CALL), None);
    assert_eq!(answers(&stage), [(FIRST, NestedId(8), Outcome::Cancelled)]);
}

#[test]
fn a_loose_call_is_not_cancelled_with_its_caller() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = ask(&mut stage, caller, NUMBER, Ask { is_loose: true, ..CALL }).unwrap();
    stage.taken(nested, SECOND);
    stage.outcome(FIRST, caller, Outcome::Cancelled);
    assert_eq!(cancels(&stage), []);
    stage.outcome(SECOND, nested, value());
    assert_eq!(answers(&stage), [(FIRST, NUMBER, value())]);
}

#[test]
fn the_calls_of_a_dead_worker_are_cancelled_and_nobody_is_told() {
    let (mut stage, caller) = with_caller(Submission { retries: 2, ..task(1) });
    let running = call(&mut stage, caller, NUMBER);
    stage.taken(running, SECOND);
    let waiting = call(&mut stage, caller, NestedId(8));
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    assert_eq!(cancels(&stage), [(SECOND, running)]);
    stage.outcome(SECOND, running, Outcome::Cancelled);
    let taken_back = stage.outputs.iter().any(|o| matches!(o, Output::Retract { task, .. } if *task == waiting));
    assert!(taken_back);
    stage.handle(Input::Retracted(waiting));
    assert_eq!((answers(&stage), stage.pool.unfinished()), (vec![], 1), "the caller is to run again");
}

#[test]
fn each_death_counts_against_a_task_with_calls_and_against_a_call() {
    let (mut stage, caller) = with_caller(Submission { retries: 1, ..task(1) });
    let company = stage.submit(task(2));
    stage.taken(company, FIRST);
    call(&mut stage, caller, NUMBER);
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    let lost = |stage: &Stage| stage.delivered().into_iter().map(|(token, _)| token).collect::<Vec<_>>();
    assert_eq!(lost(&stage), [2]);
    let third = WorkerId { seat: 0, generation: 2 };
    stage.is_ready(third);
    stage.taken(caller, third);
    stage.pool.ask(third, caller, NUMBER, &Payload::from_vec(CALL.write()));
    stage.collect();
    stage.dies(third, Exit::Signal(9), |_| ());
    assert_eq!(lost(&stage), [2, 1], "it had one more run");
}

#[test]
fn a_call_whose_worker_dies_is_told_so_and_does_not_run_alone() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = ask(&mut stage, caller, NUMBER, Ask { retries: 1, ..CALL }).unwrap();
    let company = stage.submit(task(2));
    stage.taken(nested, SECOND);
    stage.taken(company, SECOND);
    stage.dies(SECOND, Exit::Signal(9), |_| ());
    assert_eq!(answers(&stage), []);
    assert!(!stage.pool.parcel_of(nested).unwrap().terms.alone);
    stage.taken(nested, FIRST);
    let fourth = WorkerId { seat: 1, generation: 2 };
    stage.is_ready(fourth);
    stage.dies(FIRST, Exit::Signal(9), |_| ());
    assert_eq!(answers(&stage), [], "its asker is gone, too");
    assert_eq!(stage.delivered().last().map(|(token, _)| *token), Some(1));
}

#[test]
fn a_loss_is_told_to_an_asker_that_lives() {
    let (mut stage, caller) = with_caller(task(1));
    let nested = call(&mut stage, caller, NUMBER);
    stage.taken(nested, SECOND);
    stage.dies(SECOND, Exit::Code(3), |_| ());
    let [(FIRST, NUMBER, Outcome::Lost(Loss { worker: SECOND, attempt: 1, exit: Exit::Code(3), .. }))] =
        answers(&stage)[..]
    else {
        panic!("{:?}", stage.outputs)
    };
}

#[test]
fn a_pool_that_closes_accepts_the_calls_of_its_tasks_and_waits_for_those_left_behind() {
    let (mut stage, caller) = with_caller(task(1));
    stage.close();
    assert!(stage.pool.submit(task(2)).is_err());
    let nested = call(&mut stage, caller, NUMBER);
    stage.outcome(FIRST, caller, value());
    assert_eq!(stage.pool.state(), State::Closing);
    let stops = |output: &Output| matches!(output, Output::Stop { stop: Stop::WhenDone, .. });
    assert_eq!(stage.count(stops), 0);
    stage.taken(nested, SECOND);
    stage.outcome(SECOND, nested, value());
    assert_eq!((stage.count(stops), answers(&stage).len()), (2, 1));
}

#[test]
fn a_terminated_pool_answers_every_call_also_those_that_come_later() {
    let (mut stage, caller) = with_caller(task(1));
    call(&mut stage, caller, NUMBER);
    stage.terminate();
    assert_eq!(ask(&mut stage, caller, NestedId(8), CALL), None);
    let terminated = |number| (FIRST, number, Outcome::Terminated);
    assert_eq!(answers(&stage), [terminated(NUMBER), terminated(NestedId(8))]);
    assert_eq!(stage.delivered(), [(1, Outcome::Terminated)]);
    let told = stage.reports().into_iter().filter(|report| *report == polyloop_core::Report::Terminated(1));
    assert_eq!(told.count(), 1, "of what the client has submitted");
}

#[test]
fn a_call_of_a_task_that_is_over_is_answered() {
    let (mut stage, caller) = with_caller(task(1));
    stage.outcome(FIRST, caller, value());
    assert_eq!(ask(&mut stage, caller, NUMBER, CALL), None);
    assert_eq!(answers(&stage), [(FIRST, NUMBER, Outcome::Cancelled)]);
}

#[test]
fn the_calls_of_one_task_leave_room_for_those_of_others() {
    let (mut stage, caller) = with_caller(task(1));
    for number in 0..100 {
        call(&mut stage, caller, NestedId(number));
    }
    let single = stage.submit(task(2));
    assert!(stage.board.iter().any(|slot| slot.tasks.contains(&single)), "it does not wait behind them");
}
