//! Single calls: what comes of them, and what runs beside what.

use polyloop::Error;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::tasks::Task;

over_each_kind! {
    plain_functions_and_async_ones_run_in_a_worker_and_give_their_result,
    a_task_that_fails_says_why_and_its_worker_lives,
    a_worker_runs_as_many_async_tasks_at_once_as_it_may,
    plain_functions_run_beside_each_other_and_the_loop_where_that_is_asked_for,
    two_functions_that_block_run_on_two_workers,
    calls_can_be_made_from_any_thread,
    a_pool_says_in_numbers_how_it_does,
}

async fn plain_functions_and_async_ones_run_in_a_worker_and_give_their_result<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let worker = pool.pid().await;
    assert_ne!(worker, std::process::id());
    for number in [0, 1, u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(pool.apply(Task::Give(number)).await.unwrap(), number);
    }
    assert_eq!(pool.apply(later(Task::Pid)).await.unwrap(), u64::from(worker));
    assert_eq!(pool.in_thread().pid().await, worker);
    assert_eq!(pool.spawn(later(Task::Give(7))).await.unwrap(), 7);
}

fn later(task: Task) -> Task {
    Task::Later(Box::new(task))
}

async fn a_task_that_fails_says_why_and_its_worker_lives<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let worker = pool.pid().await;
    let fail = || Task::Fail("no luck".to_owned());
    for failed in [
        pool.apply(fail()).await,
        pool.apply(later(fail())).await,
        pool.in_thread().apply(fail()).await,
        pool.retries(3).spawn(fail()).await,
    ] {
        let error = failed.unwrap_err();
        assert_eq!(P::told_by_task(&error), Some("no luck"), "{error:?}");
    }
    assert_eq!(pool.pid().await, worker);
    let stats = pool.stats();
    assert_eq!((stats.failed, stats.retried), (4, 0), "it is no death of a worker");
}

async fn a_worker_runs_as_many_async_tasks_at_once_as_it_may<P: WorkerPool>() {
    for (pool, tasks) in [(P::builder(1), 16), (P::builder(1).concurrency(40), 40)] {
        let (pool, marks) = (pool.start().await, Marks::new());
        let meet = || Task::Await { begun: marks.at("here"), until: marks.at("here"), times: tasks };
        let met: Vec<_> = (0..tasks).map(|_| pool.spawn(meet())).collect();
        for task in met {
            task.await.unwrap();
        }
    }
}

/// Waits for `until`, having left `begun`.
fn block(marks: &Marks, begun: &str, until: &str) -> Task {
    Task::Block { begun: marks.at(begun), until: marks.at(until) }
}

async fn plain_functions_run_beside_each_other_and_the_loop_where_that_is_asked_for<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let threads = pool.in_thread();
    let (one, other) = (threads.spawn(block(&marks, "a", "b")), threads.spawn(block(&marks, "b", "a")));
    one.await.unwrap();
    other.await.unwrap();
    let beside = threads.spawn(block(&marks, "begun", "go on"));
    marks.until("begun").await;
    pool.apply(later(Task::Mark(marks.at("the loop is free")))).await.unwrap();
    mark(&marks.at("go on"));
    beside.await.unwrap();
}

async fn two_functions_that_block_run_on_two_workers<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(2).await, Marks::new());
    let (one, other) = (pool.spawn(block(&marks, "a", "b")), pool.spawn(block(&marks, "b", "a")));
    one.await.unwrap();
    other.await.unwrap();
}

async fn calls_can_be_made_from_any_thread<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let call = |pool: P, n| async move { pool.apply(Task::Give(n)).await };
    let calls: Vec<_> = (0..50).map(|n| tokio::spawn(call(pool.clone(), n))).collect();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), n);
    }
    // Also from one that has another runtime, or none.
    let task = std::thread::spawn({
        let pool = pool.clone();
        move || pool.spawn(Task::Give(50))
    });
    assert_eq!(task.join().unwrap().await.unwrap(), 50);
    let alone = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(pool.apply(Task::Give(51)))
    });
    let given = tokio::task::spawn_blocking(|| alone.join().unwrap()).await.unwrap();
    assert_eq!(given.unwrap(), 51);
}

async fn a_pool_says_in_numbers_how_it_does<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).concurrency(1).start().await, Marks::new());
    let worker = pool.pid().await;
    assert!(matches!(pool.apply(Task::Fail(String::new())).await, Err(error) if P::told_by_task(&error).is_some()));
    let task = pool.spawn(Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") });
    let queued = pool.spawn(Task::Pid);
    marks.until("begun").await;
    let stats = pool.stats();
    assert_eq!((stats.unfinished, stats.done, stats.failed, stats.retried), (2, 1, 1, 0));
    let [one] = &stats.workers[..] else { panic!("{stats:?}") };
    assert_eq!((one.pid, one.stage, one.in_flight, one.done), (Some(worker), polyloop::Stage::Ready, 1, 2));
    assert_eq!(stats.state, polyloop::State::Running);
    task.abort();
    assert!(matches!(task.await, Err(Error::TaskAborted)));
    assert_eq!(queued.await.unwrap(), u64::from(worker));
    assert_eq!(pool.stats().unfinished, 0);
}
