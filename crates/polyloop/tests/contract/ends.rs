//! Pools that end: closed, terminated, dropped, with their runtime.

use std::time::Duration;

use futures_util::StreamExt;
use polyloop::{Error, State};

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::rig::{until, until_gone};
use crate::tasks::{Kind, Task};

over_each_kind! {
    a_pool_that_closes_finishes_what_it_accepted_and_takes_no_more,
    a_map_under_way_goes_on_while_its_pool_closes,
    a_pool_goes_on_closing_when_nobody_waits_for_it,
    a_pool_that_closes_runs_again_what_its_workers_lose,
    a_pool_that_is_terminated_ends_every_task_and_worker,
    a_pool_that_is_terminated_while_it_closes_ends_what_is_left,
    a_pool_that_is_terminated_kills_what_does_not_end,
    a_pool_whose_last_handle_is_dropped_leaves_no_process,
    a_pool_ends_with_its_runtime,
}

/// Short enough to be waited for.
const SHORT: Duration = Duration::from_millis(50);

fn wait_for_ever(marks: &Marks) -> Task {
    Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") }
}

async fn a_pool_that_closes_finishes_what_it_accepted_and_takes_no_more<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let workers = pool.pids();
    let tasks: Vec<_> = (0..200).map(|n| pool.spawn(Task::Give(n))).collect();
    pool.close().await.unwrap();
    for (n, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap(), n);
    }
    until_gone(&workers).await;
    assert!(matches!(pool.apply(Task::Pid).await, Err(Error::PoolClosed)));
    assert!(matches!(pool.spawn(Task::Pid).await, Err(Error::PoolClosed)));
    let mut map = pool.map(Kind::Plain, (0..9).map(Task::Give));
    assert!(matches!(map.next().await, Some(Err(Error::PoolClosed))));
    assert!(map.next().await.is_none());
    assert_eq!(pool.stats().state, State::Closed);
    assert!(pool.stats().workers.is_empty());
    pool.close().await.unwrap();
    pool.terminate().await.unwrap();
}

async fn a_map_under_way_goes_on_while_its_pool_closes<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let mut map = pool.map(Kind::Plain, (0..10_000).map(Task::Give));
    assert_eq!(map.next().await.unwrap().unwrap(), 0);
    let (closed, rest) = tokio::join!(pool.close(), map.fold(1, async |n, item| n + u32::from(item.is_ok())));
    closed.unwrap();
    assert_eq!(rest, 10_000);
}

async fn a_pool_goes_on_closing_when_nobody_waits_for_it<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let task = pool.spawn(Task::Await { begun: marks.at("begun"), until: marks.at("go on"), times: 1 });
    marks.until("begun").await;
    assert!(tokio::time::timeout(SHORT, pool.close()).await.is_err());
    assert_eq!(pool.stats().state, State::Closing);
    assert!(matches!(pool.apply(Task::Pid).await, Err(Error::PoolClosed)));
    mark(&marks.at("go on"));
    assert!(task.await.is_ok());
    pool.until_state(State::Closed).await;
}

async fn a_pool_that_closes_runs_again_what_its_workers_lose<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).concurrency(1).retries(2).start().await, Marks::new());
    let task = pool.spawn(Task::DieFirst { times: 2, starts: marks.at("starts") });
    let queued = pool.spawn(Task::Give(1));
    pool.close().await.unwrap();
    assert_eq!((task.await.unwrap(), queued.await.unwrap()), (3, 1));
}

async fn a_pool_that_is_terminated_ends_every_task_and_worker<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).concurrency(1).start().await, Marks::new());
    let workers = pool.pids();
    let running = pool.spawn(wait_for_ever(&marks));
    marks.until("begun").await;
    let queued = pool.spawn(Task::Mark(marks.at("queued")));
    let mut map = pool.map(Kind::Plain, (0..).map(Task::Give));
    let item = tokio::time::timeout(SHORT, map.next()).await;
    assert!(item.is_err(), "it is queued too");
    pool.terminate().await.unwrap();
    assert!(matches!(running.await, Err(Error::PoolTerminated)));
    assert!(matches!(queued.await, Err(Error::PoolTerminated)));
    assert!(matches!(map.next().await, Some(Err(Error::PoolTerminated))));
    assert_eq!((marks.count("ended"), marks.count("queued")), (1, 0));
    until_gone(&workers).await;
    assert!(matches!(pool.apply(Task::Pid).await, Err(Error::PoolClosed)));
    assert_eq!((pool.stats().state, pool.stats().unfinished), (State::Closed, 0));
}

async fn a_pool_that_is_terminated_while_it_closes_ends_what_is_left<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let task = pool.spawn(wait_for_ever(&marks));
    marks.until("begun").await;
    let terminate = async {
        pool.until_state(State::Closing).await;
        pool.terminate().await
    };
    let (closed, terminated) = tokio::join!(pool.close(), terminate);
    closed.and(terminated).unwrap();
    assert!(matches!(task.await, Err(Error::PoolTerminated)));
    assert_eq!(marks.count("ended"), 1);
}

async fn a_pool_that_is_terminated_kills_what_does_not_end<P: WorkerPool>() {
    let marks = Marks::new();
    let cling = Task::Cling { begun: marks.at("clings") };
    let block = Task::Block { begun: marks.at("blocks"), until: marks.at("never") };
    for (task, begun) in [(cling, "clings"), (block, "blocks")] {
        let pool = P::builder(1).grace(SHORT).start().await;
        let workers = pool.pids();
        let task = pool.spawn(task);
        marks.until(begun).await;
        pool.terminate().await.unwrap();
        assert!(matches!(task.await, Err(Error::PoolTerminated)));
        until_gone(&workers).await;
    }
}

async fn a_pool_whose_last_handle_is_dropped_leaves_no_process<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(2).await, Marks::new());
    pool.until_ready(2).await;
    let workers = pool.pids();
    let task = pool.spawn(wait_for_ever(&marks));
    marks.until("begun").await;
    let other = pool.timeout(Duration::from_secs(60));
    drop(pool);
    assert!(other.apply(Task::Pid).await.is_ok(), "a clone is the same pool");
    drop(other);
    assert!(matches!(task.await, Err(Error::PoolTerminated)));
    until_gone(&workers).await;
    assert_eq!(marks.count("ended"), 1);
}

async fn a_pool_ends_with_its_runtime<P: WorkerPool>() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, built) = tokio::sync::oneshot::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(sender.send(runtime.block_on(pool::<P>(1))).is_ok())).join().unwrap();
    });
    let (pool, marks) = (built.await.unwrap(), Marks::new());
    assert!(pool.apply(Task::Pid).await.is_ok(), "another runtime may use it");
    let workers = pool.pids();
    let mut map = pool.map(Kind::Plain, (0..).map(Task::Give));
    assert!(map.next().await.unwrap().is_ok());
    let task = pool.spawn(Task::Block { begun: marks.at("begun"), until: marks.at("never") });
    let other = pool.spawn(Task::Give(1));
    marks.until("begun").await;
    runtime.shutdown_background();
    assert!(matches!(task.await, Err(Error::PoolTerminated)));
    until(|| other.is_finished()).await;
    // What had come back is given, then the reason why there is no more: for each item that was about to go, or once.
    let rest: Vec<_> = map.skip_while(|item| std::future::ready(item.is_ok())).collect().await;
    let is_over = |item: &Result<u64, Error>| matches!(item, Err(Error::PoolTerminated));
    assert!(!rest.is_empty() && rest.iter().all(is_over), "{}", rest.len());
    until_gone(&workers).await;
    assert!(matches!(pool.apply(Task::Pid).await, Err(Error::PoolTerminated | Error::PoolClosed)));
    pool.close().await.unwrap();
}
