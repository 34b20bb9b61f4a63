//! Tasks that end before they are done: dropped, aborted, out of time.

use std::time::Duration;

use polyloop::{Cause, Error, TaskHandle};

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::tasks::Task;

over_each_kind! {
    a_call_that_is_dropped_cancels_its_task,
    a_call_that_is_dropped_or_aborted_while_it_is_queued_never_starts,
    a_call_does_nothing_before_it_is_polled,
    a_handle_that_is_dropped_leaves_its_task_to_run,
    an_aborted_task_has_ended_before_that_is_told,
    a_function_that_blocks_ends_when_it_is_aborted,
    a_task_that_clings_when_it_is_aborted_goes_with_its_worker,
    a_task_that_runs_out_of_time_is_cancelled_and_its_neighbours_go_on,
    a_function_that_blocks_ends_when_its_time_is_up,
    a_task_that_clings_when_its_time_is_up_goes_with_its_worker,
    a_task_has_all_its_time_however_long_it_is_queued,
}

/// Long enough for a task to begin.
const SHORT: Duration = Duration::from_millis(20);
/// More than any task needs that does not wait.
const LONG: Duration = Duration::from_millis(500);

fn wait_for_ever(marks: &Marks) -> Task {
    Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") }
}

/// Until nobody will ever leave the mark.
fn block(marks: &Marks) -> Task {
    Task::Block { begun: marks.at("begun"), until: marks.at("never") }
}

fn cling(marks: &Marks) -> Task {
    Task::Cling { begun: marks.at("begun") }
}

/// A pool of one worker that runs one task, which ends with the mark "go on".
async fn busy_pool<P: WorkerPool>(marks: &Marks) -> (P, TaskHandle<u64>) {
    let pool = P::builder(1).concurrency(1).start().await;
    let task = pool.spawn(Task::Await { begun: marks.at("busy"), until: marks.at("go on"), times: 1 });
    marks.until("busy").await;
    (pool, task)
}

async fn a_call_that_is_dropped_cancels_its_task<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let mut call = pool.apply(wait_for_ever(&marks));
    tokio::select! {
        _ = &mut call => panic!("it waits for ever"),
        () = marks.until("begun") => (),
    }
    assert_eq!(marks.count("ended"), 0);
    drop(call);
    marks.until("ended").await;
    pool.until_idle().await;
}

async fn a_call_that_is_dropped_or_aborted_while_it_is_queued_never_starts<P: WorkerPool>() {
    let marks = Marks::new();
    let (pool, busy) = busy_pool::<P>(&marks).await;
    let dropped = pool.apply(Task::Mark(marks.at("queued")));
    assert!(tokio::time::timeout(SHORT, dropped).await.is_err());
    let aborted = pool.spawn(Task::Mark(marks.at("queued")));
    aborted.abort();
    assert!(matches!(aborted.await, Err(Error::TaskAborted)), "nothing has to be waited for");
    mark(&marks.at("go on"));
    busy.await.unwrap();
    pool.pid().await;
    pool.close().await.unwrap();
    assert_eq!(marks.count("queued"), 0);
}

async fn a_call_does_nothing_before_it_is_polled<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    drop(pool.apply(Task::Mark(marks.at("begun"))));
    pool.close().await.unwrap();
    assert_eq!(marks.count("begun"), 0);
}

async fn a_handle_that_is_dropped_leaves_its_task_to_run<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    drop(pool.spawn(Task::Mark(marks.at("ran"))));
    marks.until("ran").await;
}

async fn an_aborted_task_has_ended_before_that_is_told<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let task = pool.spawn(wait_for_ever(&marks));
    marks.until("begun").await;
    assert!(!task.is_finished());
    task.abort();
    assert!(matches!(task.await, Err(Error::TaskAborted)));
    assert_eq!(marks.count("ended"), 1);
    let done = pool.spawn(Task::Pid);
    crate::rig::until(|| done.is_finished()).await;
    done.abort();
    assert!(done.await.is_ok());
}

async fn a_function_that_blocks_ends_when_it_is_aborted<P: WorkerPool>() {
    for in_thread in [false, true] {
        let (pool, marks) = (P::builder(1).grace(LONG).start().await, Marks::new());
        let worker = pool.pid().await;
        let task = if in_thread { pool.in_thread() } else { pool.clone() }.spawn(block(&marks));
        marks.until("begun").await;
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        pool.check_after_block(worker).await;
    }
}

async fn a_task_that_clings_when_it_is_aborted_goes_with_its_worker<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).grace(SHORT).start().await, Marks::new());
    let worker = pool.pid().await;
    let task = pool.spawn(cling(&marks));
    marks.until("begun").await;
    task.abort();
    assert!(matches!(task.await, Err(Error::TaskAborted)));
    // Whoever waited goes on before the worker is gone.
    pool.until_replaced(Cause::Overdue, 1).await;
    assert_ne!(pool.pid().await, worker);
}

async fn a_task_that_runs_out_of_time_is_cancelled_and_its_neighbours_go_on<P: WorkerPool>() {
    let (pool, marks, others) = (pool::<P>(1).await, Marks::new(), Marks::new());
    let neighbour = pool.spawn(wait_for_ever(&others));
    others.until("begun").await;
    let late = pool.timeout(SHORT).apply(wait_for_ever(&marks)).await;
    let Err(error @ Error::TaskTimeout { timeout: SHORT, .. }) = late else { panic!("{late:?}") };
    assert!(error.to_string().ends_with("perform_async ran longer than 20ms"), "{error}");
    // It need not have begun: its time runs from when its worker has taken it.
    assert_eq!((marks.count("ended"), others.count("ended")), (marks.count("begun"), 0));
    assert_eq!(pool.stats().failed, 1);
    neighbour.abort();
    assert!(matches!(neighbour.await, Err(Error::TaskAborted)));
    assert!(pool.timeout(Duration::from_secs(60)).apply(Task::Pid).await.is_ok());
}

async fn a_function_that_blocks_ends_when_its_time_is_up<P: WorkerPool>() {
    for in_thread in [false, true] {
        let (pool, marks) = (P::builder(1).timeout(LONG).grace(LONG).start().await, Marks::new());
        let worker = pool.pid().await;
        let late = if in_thread { pool.in_thread() } else { pool.clone() }.apply(block(&marks)).await;
        assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
        pool.check_after_block(worker).await;
    }
}

async fn a_task_that_clings_when_its_time_is_up_goes_with_its_worker<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).grace(SHORT).start().await, Marks::new());
    let worker = pool.pid().await;
    let late = pool.timeout(LONG).apply(cling(&marks)).await;
    assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
    pool.until_replaced(Cause::Overdue, 1).await;
    assert_ne!(pool.pid().await, worker);
}

async fn a_task_has_all_its_time_however_long_it_is_queued<P: WorkerPool>() {
    let marks = Marks::new();
    let (pool, busy) = busy_pool::<P>(&marks).await;
    let mut queued = pool.timeout(LONG).apply(Task::Give(1));
    assert!(tokio::time::timeout(LONG + SHORT, &mut queued).await.is_err());
    mark(&marks.at("go on"));
    busy.await.unwrap();
    assert_eq!(queued.await.unwrap(), 1);
}
