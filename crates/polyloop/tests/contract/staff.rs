//! Workers that come and go: resized, recycled, grown too large or too old.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::TryStreamExt;
use polyloop::{Cause, Error};

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::rig::{until, until_gone};
use crate::tasks::{Kind, Task};

over_each_kind! {
    workers_are_replaced_after_exactly_so_many_tasks,
    workers_of_a_pool_that_closes_run_no_more_tasks_than_they_may,
    a_worker_that_holds_too_much_memory_is_replaced,
    a_worker_that_is_too_old_is_replaced,
    the_exit_of_a_lifespan_runs_when_a_worker_is_recycled_and_when_its_pool_closes,
    a_pool_that_is_resized_has_so_many_workers_and_loses_no_task,
    a_worker_that_is_too_many_finishes_what_it_runs,
    a_worker_has_no_more_descriptors_than_are_its_own,
}

async fn workers_are_replaced_after_exactly_so_many_tasks<P: WorkerPool>() {
    let pool = P::builder(1).max_tasks(3).start().await;
    let mut seen = Vec::new();
    for _ in 0..9 {
        seen.push(pool.pid().await);
    }
    assert!(seen.chunks(3).all(|life| life.iter().all(|pid| *pid == life[0])), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 3);
    pool.until_replaced(Cause::Recycled, 3).await;
}

async fn workers_of_a_pool_that_closes_run_no_more_tasks_than_they_may<P: WorkerPool>() {
    let pool = P::builder(2).max_tasks(20).start().await;
    let singles: Vec<_> = (0..40).map(|_| pool.spawn(Task::Pid)).collect();
    let mut map = pool.map(Kind::Async, (0..40).map(|_| Task::Pid));
    let mut pids = vec![map.try_next().await.unwrap().unwrap()];
    let (closed, rest) = tokio::join!(pool.close(), map.try_collect::<Vec<_>>());
    closed.unwrap();
    pids.extend(rest.unwrap());
    for task in singles {
        pids.push(task.await.unwrap());
    }
    let mut lives = BTreeMap::<u64, u32>::new();
    pids.iter().for_each(|pid| *lives.entry(*pid).or_default() += 1);
    assert_eq!(lives.values().sum::<u32>(), 80);
    assert!(lives.values().all(|tasks| *tasks <= 20), "{lives:?}");
    let short = lives.values().filter(|tasks| **tasks < 20).count();
    assert!(short <= 2, "only the last ones end before: {lives:?}");
}

/// Waits until the pool's only worker is another.
async fn until_another<P: WorkerPool>(pool: &P, worker: u32) {
    while pool.pid().await == worker {
        // It is seen now and then, after a task.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_worker_that_holds_too_much_memory_is_replaced<P: WorkerPool>() {
    let pool = P::builder(1).max_memory(64 << 20).start().await;
    let worker = pool.pid().await;
    pool.apply(Task::Hold(100 << 20)).await.unwrap();
    until_another(&pool, worker).await;
    pool.until_replaced(Cause::Memory, 1).await;
    assert_eq!(pool.stats().failed, 0);
}

async fn a_worker_that_is_too_old_is_replaced<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).max_age(Duration::from_millis(200)).start().await, Marks::new());
    let worker = pool.pid().await;
    let task = pool.spawn(Task::Await { begun: marks.at("begun"), until: marks.at("go on"), times: 1 });
    marks.until("begun").await;
    let (before, replaced) = (pool.stats().restarts(Cause::Age), |pool: &P| pool.stats().restarts(Cause::Age));
    until_another(&pool, worker).await;
    mark(&marks.at("go on"));
    assert!(task.await.is_ok(), "it finishes what it runs");
    until(|| replaced(&pool) > before).await;
    assert_eq!(pool.stats().failed, 0);
}

async fn the_exit_of_a_lifespan_runs_when_a_worker_is_recycled_and_when_its_pool_closes<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).max_tasks(2).lifespan().start().await, Marks::new());
    pool.apply(Task::MarkAtExit(marks.at("exit"))).await.unwrap();
    assert_eq!(marks.count("exit"), 0);
    pool.pid().await;
    marks.until("exit").await;
    pool.apply(Task::MarkAtExit(marks.at("exit"))).await.unwrap();
    pool.close().await.unwrap();
    assert_eq!(marks.count("exit"), 2);
    let pool = P::builder(1).lifespan().start().await;
    pool.apply(Task::MarkAtExit(marks.at("terminated"))).await.unwrap();
    pool.terminate().await.unwrap();
    assert_eq!(marks.count("terminated"), 1);
}

async fn a_pool_that_is_resized_has_so_many_workers_and_loses_no_task<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let tasks: Vec<_> = (0..500).map(|n| pool.spawn(Task::Later(Box::new(Task::Give(n))))).collect();
    pool.resize(3).unwrap();
    pool.until_ready(3).await;
    let before = pool.pids();
    pool.resize(1).unwrap();
    until(|| pool.pids().len() == 1).await;
    let left: Vec<u32> = before.into_iter().filter(|pid| !pool.pids().contains(pid)).collect();
    until_gone(&left).await;
    for (n, task) in (0..).zip(tasks) {
        assert_eq!(task.await.unwrap(), n);
    }
    for impossible in [0, 129, 1 << 20] {
        assert!(matches!(pool.resize(impossible), Err(Error::Config(_))));
    }
    pool.close().await.unwrap();
    pool.resize(2).unwrap();
    assert!(pool.stats().workers.is_empty());
}

async fn a_worker_that_is_too_many_finishes_what_it_runs<P: WorkerPool>() {
    let (pool, marks) = (P::builder(2).concurrency(1).start().await, Marks::new());
    pool.until_ready(2).await;
    let wait = || Task::Await { begun: marks.at("begun"), until: marks.at("go on"), times: 1 };
    let (one, other) = (pool.spawn(wait()), pool.spawn(wait()));
    until(|| marks.count("begun") == 2).await;
    pool.resize(1).unwrap();
    mark(&marks.at("go on"));
    assert!(one.await.is_ok() && other.await.is_ok());
    until(|| pool.pids().len() == 1).await;
    assert_eq!(pool.stats().failed, 0);
}

async fn a_worker_has_no_more_descriptors_than_are_its_own<P: WorkerPool>() {
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let pool: P = pool(1).await;
    let before = descriptors(pool.pid().await);
    let _others: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    pool.resize(2).unwrap();
    pool.until_ready(2).await;
    assert!(pool.pids().into_iter().all(|pid| descriptors(pid) < before + 25));
}
