//! Workers that die, and what becomes of what they ran.

use std::time::Duration;

use polyloop::{Cause, Error, Exit};
use rustix::process::Signal;

use crate::rig::{
    Marks, block, builder, die_first, is_alive, pid, pids, pool, run, send_signal, until, until_ready, wait_for_ever,
};

#[test]
fn a_task_whose_worker_dies_says_how_and_the_pool_goes_on() {
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        let died = pool.apply(die_first, (9, marks.at("starts"))).await;
        let Err(Error::WorkerDied(death)) = died else { panic!("{died:?}") };
        assert_eq!((death.exit, death.attempt), (Exit::Signal(9), 1));
        assert!(death.task.ends_with("die_first") && death.pid.is_some_and(|pid| !is_alive(pid)), "{death:?}");
        assert!(death.to_string().contains("another process killed it"), "{death}");
        let left = pool.apply(|| -> () { std::process::exit(3) }, ()).await;
        let Err(Error::WorkerDied(death)) = left else { panic!("{left:?}") };
        assert_eq!(death.exit, Exit::Code(3));
        assert!(pool.apply(pid, ()).await.is_ok());
        assert_eq!(pool.stats().restarts(Cause::Died), 2);
    });
}

#[test]
fn a_killed_worker_fails_only_its_own_tasks() {
    run(|| async {
        let (pool, marks) = (builder(2).concurrency(1).build().await.unwrap(), Marks::new());
        let ends = marks.at("end");
        let wait = async |begun: std::path::PathBuf, end: std::path::PathBuf| {
            crate::rig::mark(&begun);
            while !end.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            pid()
        };
        let survivor = pool.spawn(wait, (marks.at("survivor"), ends.clone()));
        marks.until("survivor").await;
        assert!(matches!(pool.apply(die_first, (9, marks.at("starts"))).await, Err(Error::WorkerDied(_))));
        crate::rig::mark(&ends);
        assert!(survivor.await.is_ok());
    });
}

#[test]
fn with_retries_a_task_runs_again() {
    run(|| async {
        let (pool, marks) = (builder(1).retries(2).build().await.unwrap(), Marks::new());
        assert_eq!(pool.apply(die_first, (2, marks.at("starts"))).await.unwrap(), 3);
        assert_eq!(pool.stats().retried, 2);
        let died = pool.retries(0).apply(die_first, (9, marks.at("more"))).await;
        assert!(matches!(died, Err(Error::WorkerDied(death)) if death.attempt == 1));
        assert_eq!(marks.count("more"), 1);
    });
}

#[test]
fn what_kills_its_workers_whenever_it_runs_alone_is_poison() {
    run(|| async {
        let (pool, marks) = (builder(1).retries(9).build().await.unwrap(), Marks::new());
        let died = pool.apply(die_first, (99, marks.at("starts"))).await;
        assert!(matches!(&died, Err(Error::PoisonTask(death)) if death.attempt == 3), "{died:?}");
        assert_eq!(marks.count("starts"), 3);
    });
}

#[test]
fn workers_killed_while_idle_are_replaced() {
    run(|| async {
        let pool = pool(2).await;
        until_ready(&pool, 2).await;
        let before = pids(&pool);
        before.iter().for_each(|pid| send_signal(*pid, Signal::KILL));
        until(|| pool.stats().restarts(Cause::Died) == 2).await;
        assert!(!before.contains(&pool.apply(pid, ()).await.unwrap()));
    });
}

#[test]
fn a_worker_that_gets_sigterm_drops_what_it_runs_and_dies_of_it() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let task = pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")));
        marks.until("begun").await;
        send_signal(pids(&pool)[0], Signal::TERM);
        let died = task.await;
        assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.exit == Exit::Signal(15)), "{died:?}");
        assert_eq!(marks.count("dropped"), 1);
    });
}

#[test]
fn a_worker_that_blocks_and_gets_sigterm_is_gone_after_the_grace() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(Duration::ZERO).build().await.unwrap(), Marks::new());
        let task = pool.spawn(block, (marks.at("begun"), marks.at("never")));
        marks.until("begun").await;
        send_signal(pids(&pool)[0], Signal::TERM);
        let died = task.await;
        assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.exit == Exit::Signal(14)), "{died:?}");
    });
}

#[test]
fn ctrl_c_is_the_clients_business() {
    run(|| async {
        let pool = pool(1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        send_signal(worker, Signal::INT);
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
    });
}
