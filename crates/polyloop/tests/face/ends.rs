//! Pools that end: closed, terminated, dropped, with their runtime, with their process.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use polyloop::{Cause, Error, Pool, State};

use crate::rig::{
    MarkOnDrop, Marks, ROLE, block, builder, mark, myself, pid, pids, pool, run, until, until_gone, until_ready,
    wait_for_ever,
};

#[test]
fn a_pool_that_closes_finishes_what_it_accepted_and_takes_no_more() {
    run(|| async {
        let pool = builder(2).max_tasks(5).build().await.unwrap();
        let tasks: Vec<_> = (0..200).map(|n| pool.spawn(|n: u32| n, (n,))).collect();
        pool.close().await.unwrap();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.await.unwrap(), n);
        }
        assert!(matches!(pool.apply(pid, ()).await, Err(Error::PoolClosed)));
        assert!(matches!(pool.spawn(pid, ()).await, Err(Error::PoolClosed)));
        let mut map = pool.map(|n: u32| n, 0..9);
        assert!(matches!(map.next().await, Some(Err(Error::PoolClosed))));
        assert!(map.next().await.is_none());
        assert_eq!(pool.stats().state, State::Closed);
        assert!(pool.stats().workers.is_empty());
        pool.close().await.unwrap();
        pool.terminate().await.unwrap();
    });
}

#[test]
fn a_map_under_way_goes_on_while_its_pool_closes() {
    run(|| async {
        let pool = pool(1).await;
        let mut map = pool.map(|n: u32| n, 0..10_000);
        assert_eq!(map.next().await.unwrap().unwrap(), 0);
        let (closed, rest) = tokio::join!(pool.close(), map.fold(1, async |n, item| n + u32::from(item.is_ok())));
        closed.unwrap();
        assert_eq!(rest, 10_000);
    });
}

#[test]
fn a_pool_that_is_terminated_ends_every_task_and_worker() {
    run(|| async {
        let (pool, marks) = (builder(1).concurrency(1).build().await.unwrap(), Marks::new());
        let workers = pids(&pool);
        let running = pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")));
        let queued = pool.spawn(pid, ());
        marks.until("begun").await;
        pool.terminate().await.unwrap();
        assert!(matches!(running.await, Err(Error::PoolTerminated)));
        assert!(matches!(queued.await, Err(Error::PoolTerminated)));
        assert_eq!(marks.count("dropped"), 1);
        until_gone(&workers).await;
        assert!(matches!(pool.apply(pid, ()).await, Err(Error::PoolClosed)));
    });
}

#[test]
fn a_pool_that_is_terminated_kills_what_does_not_end() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(Duration::from_millis(50)).build().await.unwrap(), Marks::new());
        let workers = pids(&pool);
        let task = pool.spawn(block, (marks.at("begun"), marks.at("never")));
        marks.until("begun").await;
        pool.terminate().await.unwrap();
        assert!(matches!(task.await, Err(Error::PoolTerminated)));
        until_gone(&workers).await;
    });
}

#[test]
fn a_pool_may_have_all_the_time_there_is() {
    run(|| async {
        let times = builder(1).grace(Duration::MAX).max_age(Duration::MAX).block_warning(Duration::MAX);
        let pool = times.timeout(Duration::MAX).build().await.unwrap();
        let task = pool.spawn(async || std::future::pending::<()>().await, ());
        assert!(pool.apply(pid, ()).await.is_ok());
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        pool.resize(2).unwrap();
        pool.resize(1).unwrap();
        pool.terminate().await.unwrap();
    });
}

#[test]
fn a_pool_whose_last_handle_is_dropped_leaves_no_process() {
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        until_ready(&pool, 2).await;
        let workers = pids(&pool);
        let task = pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")));
        marks.until("begun").await;
        let other = pool.timeout(Duration::from_secs(1));
        drop(pool);
        assert!(other.apply(pid, ()).await.is_ok(), "a clone is the same pool");
        drop(other);
        assert!(matches!(task.await, Err(Error::PoolTerminated)));
        until_gone(&workers).await;
        assert_eq!(marks.count("dropped"), 1);
    });
}

#[test]
fn a_pool_ends_with_its_runtime() {
    run(|| async {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let pool = runtime.spawn(pool(1)).await.unwrap();
        assert!(pool.apply(pid, ()).await.is_ok(), "another runtime may use it");
        let workers = pids(&pool);
        let marks = Marks::new();
        let mut map = pool.map(|n: u32| n, 0..);
        assert!(map.next().await.unwrap().is_ok());
        let task = pool.spawn(block, (marks.at("begun"), marks.at("never")));
        let other = pool.spawn(wait_for_ever, (marks.at("waits"), marks.at("dropped")));
        marks.until("begun").await;
        runtime.shutdown_background();
        assert!(matches!(task.await, Err(Error::PoolTerminated)));
        until(|| other.is_finished()).await;
        // What had come back is given, then the reason why there is no more: for each item that was about to go, or once.
        let rest: Vec<_> = map.skip_while(|item| std::future::ready(item.is_ok())).collect().await;
        assert!(
            !rest.is_empty() && rest.iter().all(|item| matches!(item, Err(Error::PoolTerminated))),
            "{}",
            rest.len()
        );
        until_gone(&workers).await;
        assert!(matches!(pool.apply(pid, ()).await, Err(Error::PoolTerminated | Error::PoolClosed)));
        pool.close().await.unwrap();
    });
}

#[test]
fn workers_are_replaced_after_exactly_so_many_tasks() {
    run(|| async {
        let pool = builder(1).max_tasks(3).build().await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..9 {
            seen.push(pool.apply(pid, ()).await.unwrap());
        }
        assert!(seen.chunks(3).all(|life| life.iter().all(|pid| *pid == life[0])), "{seen:?}");
        seen.dedup();
        assert_eq!(seen.len(), 3);
        until(|| pool.stats().restarts(Cause::Recycled) == 3).await;
    });
}

#[test]
fn a_worker_that_holds_too_much_memory_is_replaced() {
    run(|| async {
        let pool = builder(1).max_memory(64 << 20).build().await.unwrap();
        let before = pool.apply(pid, ()).await.unwrap();
        let leak = |bytes: usize| {
            std::mem::forget(vec![1u8; bytes]);
        };
        pool.apply(leak, (100 << 20,)).await.unwrap();
        loop {
            // A look at the memory costs time, so it is taken now and then.
            if pool.apply(pid, ()).await.unwrap() != before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        until(|| pool.stats().restarts(Cause::Memory) == 1).await;
    });
}

#[test]
fn a_pool_that_is_resized_has_so_many_workers_and_loses_no_task() {
    run(|| async {
        let pool = pool(1).await;
        let tasks: Vec<_> = (0..500).map(|n| pool.spawn(async |n: u64| n, (n,))).collect();
        pool.resize(3).unwrap();
        until_ready(&pool, 3).await;
        pool.resize(1).unwrap();
        until(|| pids(&pool).len() == 1).await;
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.await.unwrap(), n);
        }
        for impossible in [0, 129, 1 << 20] {
            assert!(matches!(pool.resize(impossible), Err(Error::Config(_))));
        }
        pool.close().await.unwrap();
        pool.resize(2).unwrap();
        assert!(pool.stats().workers.is_empty());
    });
}

/// In a process of its own: two workers, one idle, one that blocks; says who they are, and waits to be killed.
#[test]
fn parent_process() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        until_ready(&pool, 2).await;
        drop(pool.spawn(block, (marks.at("begun"), marks.at("never"))));
        marks.until("begun").await;
        let _left = MarkOnDrop(marks.at("ended"));
        println!("workers: {:?}", pids(&pool));
        std::future::pending().await
    });
}

#[test]
fn workers_end_with_a_parent_that_is_killed() {
    run(|| async {
        let program = std::env::current_exe().unwrap();
        let mut parent = myself(&program, "ends::parent_process", "parent").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
        let workers = lines.find_map(|line| Some(line.split_once("workers: [")?.1.trim_end_matches(']').to_owned()));
        let workers: Vec<u32> = workers.unwrap().split(", ").map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(workers.len(), 2);
        parent.kill().unwrap();
        parent.wait().unwrap();
        until_gone(&workers).await;
    });
}

#[test]
fn the_exit_of_a_lifespan_runs_when_a_worker_is_recycled_and_when_its_pool_closes() {
    run(|| async {
        let marks = Marks::new();
        // SAFETY: read by workers only; no other thread of this test reads the environment.
        let path = marks.at("exit");
        let pool: Pool = builder(1)
            .max_tasks(2)
            .lifespan(
                async || Ok(std::sync::Mutex::new(None::<MarkOnDrop>)),
                async |state| {
                    state.lock().unwrap().take();
                },
            )
            .build()
            .await
            .unwrap();
        let remember = |path: std::path::PathBuf| {
            let state = polyloop::worker_state::<std::sync::Mutex<Option<MarkOnDrop>>>().unwrap();
            *state.lock().unwrap() = Some(MarkOnDrop(path));
        };
        pool.apply(remember, (path.clone(),)).await.unwrap();
        assert_eq!(marks.count("exit"), 0);
        pool.apply(pid, ()).await.unwrap();
        marks.until("exit").await;
        pool.apply(remember, (path.clone(),)).await.unwrap();
        pool.close().await.unwrap();
        assert_eq!(marks.count("exit"), 2);
        mark(&path);
    });
}
