//! Tasks that end before they are done: dropped, aborted, out of time.

use std::time::Duration;

use polyloop::{Cause, Error};

use crate::rig::{Marks, block, builder, mark, pid, pool, run, until, wait_for_ever};

/// Long enough for a task to begin.
const SHORT: Duration = Duration::from_millis(20);

#[test]
fn a_call_that_is_dropped_drops_its_task() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let mut call = Box::pin(pool.apply(wait_for_ever, (marks.at("begun"), marks.at("dropped"))));
        tokio::select! {
            _ = &mut call => panic!("it waits for ever"),
            () = marks.until("begun") => (),
        }
        assert_eq!(marks.count("dropped"), 0);
        drop(call);
        marks.until("dropped").await;
        until(|| pool.stats().unfinished == 0).await;
    });
}

#[test]
fn a_call_that_is_dropped_while_it_waits_in_the_queue_never_starts() {
    run(|| async {
        let (pool, marks) = (builder(1).concurrency(1).build().await.unwrap(), Marks::new());
        let blocker = pool.spawn(block, (marks.at("begun"), marks.at("go on")));
        marks.until("begun").await;
        let queued = pool.apply(|path: std::path::PathBuf| mark(&path), (marks.at("queued"),));
        assert!(tokio::time::timeout(SHORT, queued).await.is_err());
        mark(&marks.at("go on"));
        blocker.await.unwrap();
        pool.apply(pid, ()).await.unwrap();
        pool.close().await.unwrap();
        assert_eq!(marks.count("queued"), 0);
    });
}

#[test]
fn a_call_does_nothing_before_it_is_polled() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        drop(pool.apply(|path: std::path::PathBuf| mark(&path), (marks.at("begun"),)));
        pool.close().await.unwrap();
        assert_eq!(marks.count("begun"), 0);
    });
}

#[test]
fn a_handle_that_is_dropped_leaves_its_task_to_run() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        drop(pool.spawn(|path: std::path::PathBuf| mark(&path), (marks.at("ran"),)));
        marks.until("ran").await;
    });
}

#[test]
fn an_aborted_task_is_dropped_and_says_so() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let task = pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")));
        marks.until("begun").await;
        assert!(!task.is_finished());
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        assert_eq!(marks.count("dropped"), 1, "it has gone before its end is told");
        let done = pool.spawn(pid, ());
        until(|| done.is_finished()).await;
        done.abort();
        assert!(done.await.is_ok());
    });
}

#[test]
fn a_task_that_blocks_and_is_aborted_ends_with_its_worker_after_the_grace() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(SHORT).build().await.unwrap(), Marks::new());
        let task = pool.spawn(block, (marks.at("begun"), marks.at("never")));
        marks.until("begun").await;
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        assert!(pool.apply(pid, ()).await.is_ok(), "another worker has taken its place");
        assert_eq!(pool.stats().restarts(Cause::Overdue), 1);
    });
}

#[test]
fn a_task_that_runs_out_of_time_is_dropped_and_its_neighbours_go_on() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let neighbour = pool.spawn(wait_for_ever, (marks.at("neighbour"), marks.at("neighbour dropped")));
        let call = pool.timeout(SHORT).apply(wait_for_ever, (marks.at("begun"), marks.at("dropped"))).await;
        let Err(error @ Error::TaskTimeout { timeout: SHORT, .. }) = call else { panic!("{call:?}") };
        assert!(error.to_string().contains("wait_for_ever ran longer than 20ms"), "{error}");
        assert_eq!((marks.count("dropped"), marks.count("neighbour dropped")), (1, 0));
        neighbour.abort();
        assert!(matches!(neighbour.await, Err(Error::TaskAborted)));
        assert!(pool.timeout(Duration::from_secs(60)).apply(pid, ()).await.is_ok());
    });
}

#[test]
fn a_function_that_blocks_and_runs_out_of_time_goes_with_its_worker() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(SHORT).build().await.unwrap(), Marks::new());
        for pool in [pool.timeout(SHORT), pool.timeout(SHORT).in_thread()] {
            let call = pool.apply(block, (marks.at("begun"), marks.at("never"))).await;
            assert!(matches!(call, Err(Error::TaskTimeout { .. })), "{call:?}");
        }
        assert!(pool.apply(pid, ()).await.is_ok(), "another worker has taken its place");
        until(|| pool.stats().restarts(Cause::Overdue) == 2).await;
    });
}
