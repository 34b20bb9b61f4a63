//! Workers that die, and what becomes of what they ran.

use std::time::Duration;

use polyloop::{Cause, Error, Exit, Stage};
use rustix::process::Signal;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::rig::process::{is_alive, send_signal};
use crate::rig::until;
use crate::tasks::{Kind, Task};

over_each_kind! {
    a_task_whose_worker_dies_says_how_and_the_pool_goes_on,
    a_killed_worker_fails_only_its_own_tasks,
    what_a_killed_worker_had_not_started_runs_elsewhere,
    with_retries_a_task_runs_again,
    what_kills_its_workers_whenever_it_runs_alone_is_poison_and_its_neighbours_are_not,
    workers_killed_while_idle_are_replaced,
    a_worker_that_gets_sigterm_cancels_what_it_runs_and_dies_of_it,
    a_worker_that_clings_and_gets_sigterm_is_gone_after_the_grace,
    ctrl_c_is_the_clients_business,
    a_stopped_worker_goes_on_where_it_was,
}

fn die_first(times: u64, marks: &Marks, starts: &str) -> Task {
    Task::DieFirst { times, starts: marks.at(starts) }
}

async fn a_task_whose_worker_dies_says_how_and_the_pool_goes_on<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(2).await, Marks::new());
    let died = pool.apply(die_first(9, &marks, "starts")).await;
    let Err(Error::WorkerDied(death)) = died else { panic!("{died:?}") };
    assert_eq!((death.exit, death.attempt), (Exit::Signal(9), 1));
    assert!(death.task.ends_with("perform") && death.pid.is_some_and(|pid| !is_alive(pid)), "{death:?}");
    assert!(death.to_string().contains("another process killed it"), "{death}");
    let left = pool.apply(Task::Exit(3)).await;
    let Err(Error::WorkerDied(death)) = left else { panic!("{left:?}") };
    assert_eq!(death.exit, Exit::Code(3));
    let left = pool.in_thread().apply(Task::Exit(0)).await;
    assert!(matches!(&left, Err(Error::WorkerDied(death)) if death.exit == Exit::Code(0)), "{left:?}");
    assert!(pool.apply(Task::Pid).await.is_ok());
    assert_eq!(pool.stats().restarts(Cause::Died), 3);
    assert_eq!(pool.stats().failed, 3);
}

async fn a_killed_worker_fails_only_its_own_tasks<P: WorkerPool>() {
    let (pool, marks) = (P::builder(2).concurrency(1).start().await, Marks::new());
    let survivor = pool.spawn(Task::Await { begun: marks.at("survivor"), until: marks.at("go on"), times: 1 });
    marks.until("survivor").await;
    assert!(matches!(pool.apply(die_first(9, &marks, "starts")).await, Err(Error::WorkerDied(_))));
    mark(&marks.at("go on"));
    assert!(survivor.await.is_ok());
}

async fn what_a_killed_worker_had_not_started_runs_elsewhere<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).concurrency(1).start().await, Marks::new());
    let task = pool.spawn(Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") });
    let queued: Vec<_> = (0..100).map(|n| pool.spawn(Task::Give(n))).collect();
    marks.until("begun").await;
    pool.pids().iter().for_each(|worker| send_signal(*worker, Signal::KILL));
    assert!(matches!(task.await, Err(Error::WorkerDied(_))));
    for (n, task) in (0..).zip(queued) {
        assert_eq!(task.await.unwrap(), n);
    }
    assert_eq!(pool.stats().retried, 0, "they had not started");
}

async fn with_retries_a_task_runs_again<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).retries(2).start().await, Marks::new());
    assert_eq!(pool.apply(die_first(2, &marks, "starts")).await.unwrap(), 3);
    assert_eq!(pool.stats().retried, 2);
    let died = pool.retries(0).apply(die_first(9, &marks, "more")).await;
    assert!(matches!(died, Err(Error::WorkerDied(death)) if death.attempt == 1));
    assert_eq!(marks.count("more"), 1);
    let died = pool.retries(1).apply(die_first(9, &marks, "yet more")).await;
    assert!(matches!(died, Err(Error::WorkerDied(death)) if death.attempt == 2));
}

async fn what_kills_its_workers_whenever_it_runs_alone_is_poison_and_its_neighbours_are_not<P: WorkerPool>() {
    const NEIGHBOURS: usize = 5;
    let (pool, marks) = (P::builder(1).retries(9).start().await, Marks::new());
    let starts: Vec<String> = (0..NEIGHBOURS).map(|n| format!("neighbour {n}")).collect();
    let neighbours: Vec<_> =
        starts.iter().map(|starts| pool.spawn(Task::WaitFirst { starts: marks.at(starts) })).collect();
    until(|| starts.iter().all(|starts| marks.count(starts) == 1)).await;
    let died = pool.apply(die_first(99, &marks, "starts")).await;
    let Err(Error::PoisonTask(death)) = &died else { panic!("{died:?}") };
    // Once beside the others, and three times alone.
    assert_eq!((marks.count("starts"), death.attempt), (4, 4));
    for task in neighbours {
        assert_eq!(task.await.unwrap(), 2);
    }
    let alone = pool.apply(die_first(99, &marks, "alone")).await;
    assert!(matches!(&alone, Err(Error::PoisonTask(death)) if death.attempt == 3), "{alone:?}");
    assert_eq!(marks.count("alone"), 3);
}

async fn workers_killed_while_idle_are_replaced<P: WorkerPool>() {
    let pool: P = pool(2).await;
    pool.until_ready(2).await;
    let before = pool.pids();
    before.iter().for_each(|pid| send_signal(*pid, Signal::KILL));
    pool.until_replaced(Cause::Died, 2).await;
    assert!(!before.contains(&pool.pid().await));
    assert_eq!(pool.stats().failed, 0);
}

async fn a_worker_that_gets_sigterm_cancels_what_it_runs_and_dies_of_it<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let task = pool.spawn(Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") });
    marks.until("begun").await;
    send_signal(pool.pids()[0], Signal::TERM);
    let died = task.await;
    assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.exit == Exit::Signal(15)), "{died:?}");
    assert_eq!(marks.count("ended"), 1);
}

async fn a_worker_that_clings_and_gets_sigterm_is_gone_after_the_grace<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).grace(Duration::ZERO).start().await, Marks::new());
    let task = pool.spawn(Task::Cling { begun: marks.at("begun") });
    marks.until("begun").await;
    send_signal(pool.pids()[0], Signal::TERM);
    let died = task.await;
    assert!(matches!(&died, Err(Error::WorkerDied(death)) if matches!(death.exit, Exit::Signal(_))), "{died:?}");
}

async fn ctrl_c_is_the_clients_business<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let worker = pool.pid().await;
    send_signal(worker, Signal::INT);
    let task = pool.spawn(Task::Await { begun: marks.at("begun"), until: marks.at("go on"), times: 1 });
    let blocks = pool.spawn(Task::Block { begun: marks.at("blocks"), until: marks.at("go on") });
    marks.until("begun").await;
    marks.until("blocks").await;
    send_signal(worker, Signal::INT);
    mark(&marks.at("go on"));
    assert!(task.await.is_ok() && blocks.await.is_ok());
    assert_eq!(pool.pid().await, worker);
    // Also while it starts.
    pool.resize(2).unwrap();
    until(|| pool.pids().len() == 2).await;
    let workers = pool.pids();
    while pool.stats().workers.iter().any(|worker| worker.stage != Stage::Ready) {
        workers.iter().for_each(|worker| send_signal(*worker, Signal::INT));
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.pids(), workers);
    assert_eq!(pool.stats().restarts(Cause::Died), 0);
}

async fn a_stopped_worker_goes_on_where_it_was<P: WorkerPool>() {
    let pool: P = pool(2).await;
    pool.until_ready(2).await;
    let workers = pool.pids();
    send_signal(workers[0], Signal::STOP);
    // Whatever it had claimed waits for it; the other goes on.
    let tasks = pool.map(Kind::Plain, (0..2_000).map(Task::Give));
    let sum = futures_util::TryStreamExt::try_fold(tasks, 0, async |sum, n| Ok(sum + n));
    let go_on = async {
        until(|| pool.stats().done > 0).await;
        send_signal(workers[0], Signal::CONT);
    };
    let (sum, ()) = tokio::join!(sum, go_on);
    assert_eq!(sum.unwrap(), 2_000 * 1_999 / 2);
    assert_eq!(pool.pids(), workers);
}
