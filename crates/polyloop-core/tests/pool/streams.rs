//! Streams: values on their way, credit for them, and what ends both.

use polyloop_core::{Exit, Input, Outcome, Output, Payload, STREAM_VALUES, Submission, TaskId, Unasked, WorkerId};

use crate::stage::{FIRST, Stage, task, value};

const SECOND: WorkerId = WorkerId { seat: 0, generation: 2 };

fn stream() -> Submission {
    Submission { is_stream: true, retries: 3, ..task(1) }
}

fn gives(stage: &mut Stage, worker: WorkerId, id: TaskId, value: &[u8]) -> Result<(), Unasked> {
    let given = stage.pool.yielded(worker, id, Payload::from_slice(value));
    stage.collect();
    given
}

fn takes(stage: &mut Stage, id: TaskId) {
    stage.pool.taken(id);
    stage.collect();
}

fn given(stage: &Stage) -> Vec<&[u8]> {
    let value = |output| if let &Output::Yield { ref value, token: 1, .. } = output { Some(&value[..]) } else { None };
    stage.outputs.iter().filter_map(value).collect()
}

fn credits(stage: &Stage) -> Vec<(WorkerId, u32)> {
    let credit = |output: &_| match *output {
        Output::Credit { worker, values, .. } => Some((worker, values)),
        _ => None,
    };
    stage.outputs.iter().filter_map(credit).collect()
}

#[test]
fn values_come_in_order_before_the_outcome_and_credit_goes_back_in_batches() {
    let mut stage = Stage::ready();
    let id = stage.submit(stream());
    for byte in 0..STREAM_VALUES as u8 {
        gives(&mut stage, FIRST, id, &[byte]).unwrap();
    }
    (0..STREAM_VALUES).for_each(|_| takes(&mut stage, id));
    let half = STREAM_VALUES as u32 / 2;
    assert_eq!(credits(&stage), [(FIRST, half), (FIRST, half)]);
    stage.outcome(FIRST, id, value());
    assert_eq!(given(&stage), (0..STREAM_VALUES as u8).map(|byte| [byte]).collect::<Vec<_>>());
    assert_eq!(stage.delivered(), [(1, value())]);
    takes(&mut stage, id);
}

#[test]
fn a_value_without_credit_and_a_value_of_no_stream_are_nonsense() {
    let mut stage = Stage::ready();
    let (id, plain) = (stage.submit(stream()), stage.submit(task(2)));
    (0..STREAM_VALUES).for_each(|_| gives(&mut stage, FIRST, id, b"v").unwrap());
    assert_eq!(gives(&mut stage, FIRST, id, b"v"), Err(Unasked::NoCredit(id)));
    assert_eq!(gives(&mut stage, FIRST, plain, b"v"), Err(Unasked::NoStream(plain)));
    assert_eq!(given(&stage).len(), STREAM_VALUES);
}

#[test]
fn a_stream_that_gave_a_value_is_not_run_again_and_one_that_gave_none_is() {
    for (values, attempts) in [(0, 2), (1, 1)] {
        let mut stage = Stage::ready();
        let id = stage.submit(Submission { retries: 1, ..stream() });
        (0..values).for_each(|_| gives(&mut stage, FIRST, id, b"v").unwrap());
        stage.taken(id, FIRST);
        stage.dies(FIRST, Exit::Signal(9), |_| ());
        if attempts == 2 {
            assert_eq!(stage.delivered(), []);
            stage.is_ready(SECOND);
            stage.taken(id, SECOND);
            gives(&mut stage, SECOND, id, b"v").unwrap();
            stage.dies(SECOND, Exit::Signal(9), |_| ());
        }
        let delivered = stage.delivered();
        assert!(matches!(delivered[..], [(1, Outcome::Lost(loss))] if loss.attempt == attempts), "{delivered:?}");
    }
}

#[test]
fn an_exception_after_a_value_is_not_for_the_host_to_judge() {
    let mut stage = Stage::ready();
    let id = stage.submit(Submission { judged: true, ..stream() });
    gives(&mut stage, FIRST, id, b"v").unwrap();
    let raised = Outcome::Raised(Payload::from_slice(b"e"));
    stage.outcome(FIRST, id, raised.clone());
    assert_eq!(stage.delivered(), [(1, raised)]);
}

#[test]
fn nothing_more_comes_of_a_stream_that_is_cancelled_or_over() {
    let mut stage = Stage::ready();
    let id = stage.submit(stream());
    gives(&mut stage, FIRST, id, b"v").unwrap();
    stage.cancel(id);
    assert!(stage.count(|output| matches!(output, Output::Cancel { worker: FIRST, .. })) == 1, "its worker is known");
    gives(&mut stage, FIRST, id, b"late").unwrap();
    stage.outcome(FIRST, id, Outcome::Cancelled);
    gives(&mut stage, FIRST, id, b"later").unwrap();
    assert_eq!((given(&stage), stage.delivered()), (vec![&b"v"[..]], vec![(1, Outcome::Cancelled)]));
}

#[test]
fn what_a_worker_says_of_a_stream_that_another_has_is_not_heard() {
    let mut stage = Stage::ready();
    let id = stage.submit(stream());
    stage.taken(id, FIRST);
    gives(&mut stage, SECOND, id, b"v").unwrap();
    assert_eq!(given(&stage), [] as [&[u8]; 0]);
    stage.handle(Input::Retiring { worker: FIRST, cause: polyloop_core::Cause::Age });
    gives(&mut stage, FIRST, id, b"v").unwrap();
    assert_eq!(given(&stage), [b"v"]);
}
