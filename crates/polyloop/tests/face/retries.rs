//! `retry_on`: which errors are a reason to run a task again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use polyloop::{Error, Exit, Pool, RemoteError};
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::rig::heard::hear;
use crate::rig::marks::{Marks, mark};
use crate::rig::{pids, run, until, until_gone};
use crate::tasks::{block, die_first, wait_for_ever};
use crate::{builder, pool};

/// How many times a mark has been left, this time included.
fn starts(begun: &PathBuf) -> usize {
    mark(begun);
    std::fs::read(begun).unwrap().len()
}

/// Panics, if it leaves its mark for no more than the so-many-th time.
fn panic_first(times: usize, begun: PathBuf) -> usize {
    let starts = starts(&begun);
    assert!(starts > times, "too early");
    starts
}

async fn wait_first(times: usize, begun: PathBuf) -> usize {
    let starts = starts(&begun);
    if starts <= times {
        std::future::pending::<()>().await;
    }
    starts
}

fn panics(error: &Error) -> bool {
    matches!(error, Error::TaskPanicked(_))
}

fn deaths(error: &Error) -> bool {
    matches!(error, Error::WorkerDied(_))
}

fn anything(_: &Error) -> bool {
    true
}

#[test]
fn it_is_asked_about_each_death_as_it_was() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let (pool, marks) = (pool(1).await.retries(5), Marks::new());
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        let picky = pool.retry_on(move |error| {
            let Error::WorkerDied(death) = error else { return false };
            told.lock().unwrap().push((death.exit, death.attempt));
            death.exit == Exit::Signal(9)
        });
        let leave = |begun: PathBuf| -> () {
            let starts = starts(&begun);
            die_first(1, begun.with_extension("deaths"));
            std::process::exit(starts as i32)
        };
        let died = picky.apply(leave, (marks.at("begun"),)).await;
        assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.exit == Exit::Code(2)), "{died:?}");
        assert_eq!(*asked.lock().unwrap(), [(Exit::Signal(9), 1), (Exit::Code(2), 2)]);
        let told = heard.until("a worker died").await;
        assert_eq!((told.number("judged"), told.number("retried"), told.number("lost")), (1, 0, 0));
    });
}

#[test]
fn a_task_that_ran_out_of_time_runs_again_with_all_of_it() {
    run(|| async {
        let (pool, marks) = (pool(1).await.timeout(Duration::from_millis(100)).retries(2), Marks::new());
        let late = pool.apply(wait_first, (9, marks.at("final"))).await;
        assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
        assert_eq!(marks.count("final"), 1);
        let patient =
            pool.retry_on(|error| matches!(error, Error::TaskTimeout { timeout, .. } if timeout.as_millis() == 100));
        assert_eq!(patient.apply(wait_first, (2, marks.at("again"))).await.unwrap(), 3);
        assert!(matches!(patient.apply(wait_first, (9, marks.at("late"))).await, Err(Error::TaskTimeout { .. })));
        assert_eq!(marks.count("late"), 3);
    });
}

#[test]
fn a_function_that_blocks_past_its_time_runs_again_in_another_worker() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(Duration::from_millis(50)).build().await.unwrap(), Marks::new());
        let patient = pool.timeout(Duration::from_millis(50)).retries(1).retry_on(anything);
        let late = patient.apply(block, (marks.at("begun"), marks.at("never"))).await;
        assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
        assert_eq!(marks.count("begun"), 2);
    });
}

#[test]
fn each_item_of_a_map_is_judged() {
    run(|| async {
        let (pool, marks) = (pool(2).await.retries(1), Marks::new());
        let begun = marks.at("begun");
        let items = (0..200u32).map(|n| (n, begun.with_extension(n.to_string())));
        let even = |n: u32, begun: PathBuf| {
            let starts = starts(&begun);
            assert!(n.is_multiple_of(2) || starts > 1, "odd");
            (n, starts)
        };
        let results: Vec<_> = pool.retry_on(panics).starmap(even, items).collect().await;
        for (n, result) in (0..).zip(results) {
            assert_eq!(result.unwrap(), (n, 1 + n as usize % 2));
        }
        assert_eq!(pool.stats().retried, 100);
        let failed: Vec<_> = pool.retry_on(|_| false).map(|n: u32| assert_ne!(n, 3), 0..5).collect().await;
        assert_eq!(failed.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, true, false, true]);
    });
}

#[test]
fn items_of_workers_that_die_run_again_as_is_said_of_their_map() {
    run(|| async {
        let (pool, marks) = (builder(2).concurrency(1).build().await.unwrap().retries(2), Marks::new());
        let begun = marks.at("begun");
        let items = || (0..20u32).map(|n| (usize::from(n == 7), begun.with_extension(n.to_string())));
        let results: Vec<_> = pool.retry_on(deaths).starmap(die_first, items()).collect().await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        std::fs::remove_file(begun.with_extension("7")).unwrap();
        let results: Vec<_> = pool.retry_on(panics).starmap(die_first, items()).collect().await;
        let died = |result: &Result<usize, Error>| matches!(result, Err(Error::WorkerDied(_)));
        assert_eq!(results.iter().map(died).collect::<Vec<_>>(), (0..20).map(|n| n == 7).collect::<Vec<_>>());
    });
}

#[test]
fn a_functions_own_error_is_nobodys_to_judge() {
    run(|| async {
        let (pool, marks) = (pool(1).await.retries(3).retry_on(anything), Marks::new());
        let fail = |begun: PathBuf| -> Result<(), RemoteError> {
            mark(&begun);
            Err(RemoteError::new("its own"))
        };
        assert!(pool.apply(fail, (marks.at("begun"),)).await.unwrap().is_err());
        assert_eq!(marks.count("begun"), 1);
    });
}

#[test]
fn a_predicate_that_panics_has_said_no_and_the_pool_goes_on() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let (pool, marks) = (pool(1).await.retries(3), Marks::new());
        let broken = pool.retry_on(|_| panic!("the predicate's own"));
        let failed = broken.apply(panic_first, (9, marks.at("begun"))).await;
        assert!(matches!(&failed, Err(Error::TaskPanicked(panic)) if panic.message == "too early"), "{failed:?}");
        assert_eq!(marks.count("begun"), 1);
        let told = heard.until("`retry_on` panicked").await;
        assert!(told.level == Level::WARN && told.get("error").ends_with("too early"), "{told:?}");
        assert_eq!(pool.apply(|| 1, ()).await.unwrap(), 1);
    });
}

#[test]
fn a_predicate_may_use_its_pool() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let same: Arc<std::sync::OnceLock<Pool>> = Arc::default();
        same.set(pool.clone()).ok().unwrap();
        let (asked, others) = (Arc::clone(&same), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&others);
        let curious = pool.retries(1).retry_on(move |_| {
            let pool = asked.get().unwrap();
            seen.fetch_add(pool.stats().unfinished, Ordering::Relaxed);
            drop(pool.spawn(|| (), ()));
            true
        });
        assert_eq!(curious.apply(panic_first, (1, marks.at("begun"))).await.unwrap(), 2);
        assert_eq!(others.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_predicate_may_have_the_last_handle_of_its_pool() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let (workers, own) = (pids(&pool.stats()), pool.clone());
        let curious = pool.retries(1).retry_on(move |_| own.stats().unfinished == 1);
        drop(curious.spawn(block, (marks.at("begun"), marks.at("go"))));
        drop((curious, pool));
        marks.until("begun").await;
        mark(&marks.at("go"));
        until_gone(&workers).await;
    });
}

#[test]
fn an_abort_ends_a_task_that_runs_again_and_is_nobodys_to_judge() {
    run(|| async {
        let (pool, marks) = (pool(1).await.retries(5).retry_on(anything), Marks::new());
        let again = async |first: PathBuf, begun: PathBuf, dropped: PathBuf| {
            assert!(starts(&first) > 1, "too early");
            wait_for_ever(begun, dropped).await;
        };
        let task = pool.spawn(again, (marks.at("first"), marks.at("begun"), marks.at("dropped")));
        marks.until("begun").await;
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        assert_eq!((marks.count("first"), marks.count("dropped")), (2, 1));
        assert_eq!(pool.stats().unfinished, 0);
    });
}

#[test]
fn a_pool_that_closes_waits_for_what_runs_again_and_one_that_is_terminated_does_not() {
    run(|| async {
        let (pool, marks) = (pool(1).await.retries(1).retry_on(anything), Marks::new());
        let late = |begun: PathBuf, go: PathBuf| {
            let starts = starts(&begun);
            block(begun.with_extension("blocks"), go);
            assert!(starts > 1, "too early");
            starts
        };
        let task = pool.spawn(late, (marks.at("begun"), marks.at("go")));
        marks.until("begun").await;
        let closing = tokio::spawn({
            let pool = pool.clone();
            async move { pool.close().await }
        });
        until(|| pool.stats().state == polyloop::State::Closing).await;
        mark(&marks.at("go"));
        closing.await.unwrap().unwrap();
        assert_eq!(task.await.unwrap(), 2);

        let pool = builder(1).build().await.unwrap().retries(100_000_000).retry_on(anything);
        let task = pool.spawn(panic_first, (usize::MAX, marks.at("endless")));
        until(|| pool.stats().retried > 2).await;
        pool.terminate().await.unwrap();
        assert!(matches!(task.await, Err(Error::PoolTerminated)));
    });
}
