//! What a subscriber hears of a pool.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use polyloop::{Error, Pool, RemoteError, State};
use rustix::process::Signal;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::heard::{hear, hear_and};
use crate::rig::{
    Marks, block, builder, die_first, mark, pid, pids, pool, run, send_signal, until, until_gone, wait_for_ever,
};

/// A limit to blocks.
const BLOCK: Duration = Duration::from_millis(50);
/// How long an answer may take that comes at once.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_death_is_told_with_what_becomes_of_its_tasks() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let (pool, marks) = (pool(1).await, Marks::new());
        let worker = pids(&pool)[0];
        let begun = marks.at("lost");
        let lost = pool.spawn(wait_for_ever, (begun, marks.at("dropped")));
        marks.until("lost").await;
        assert_eq!(pool.retries(1).apply(die_first, (1, marks.at("again"))).await.unwrap(), 2);
        assert!(matches!(lost.await, Err(Error::WorkerDied(_))));
        let died = heard.until("a worker died").await;
        assert_eq!((died.level, died.number("pid")), (Level::WARN, worker.into()));
        assert_eq!((died.get("exit"), died.number("retried"), died.number("lost")), ("signal 9", 1, 1));
        assert_eq!(heard.all().len(), 1);
    });
}

#[test]
fn tasks_that_were_not_finished_are_told_at_a_terminate() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let (pool, marks) = (pool(1).await, Marks::new());
        let _tasks: Vec<_> =
            (0..2).map(|_| pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")))).collect();
        marks.until("begun").await;
        pool.terminate().await.unwrap();
        let told = heard.until("terminated").await;
        assert_eq!((told.level, told.number("unfinished")), (Level::WARN, 2));
    });
}

#[test]
fn a_subscriber_that_panics_ends_the_pool_and_all_that_waits_for_it() {
    run(|| async {
        let (_, _guard) = hear_and(LevelFilter::WARN, |_| panic!("as it is to"));
        let (pool, marks) = (pool(1).await, Marks::new());
        let worker = pids(&pool)[0];
        let mut values = pool.stream(|| stream::once(async { 1 }).chain(stream::pending()), ());
        assert_eq!(values.next().await.unwrap().unwrap(), 1);
        let task = pool.spawn(wait_for_ever, (marks.at("begun"), marks.at("dropped")));
        marks.until("begun").await;
        send_signal(worker, Signal::KILL);
        assert!(matches!(values.next().await, Some(Err(Error::WorkerDied(_)))));
        until(|| task.is_finished()).await;
        assert!(matches!(task.await, Err(Error::WorkerDied(_))));
        assert!(matches!(pool.apply(pid, ()).await, Err(Error::PoolTerminated)));
    });
}

/// As long as this is there, workers of this process's pools can't start. Named after the process, as workers know it.
fn no_start(parent: u32) -> PathBuf {
    std::env::temp_dir().join(format!("polyloop-no-start-{parent}"))
}

async fn start_unless_told_not_to() -> Result<(), RemoteError> {
    if no_start(std::os::unix::process::parent_id()).exists() { Err(RemoteError::new("no luck")) } else { Ok(()) }
}

#[test]
fn workers_that_do_not_start_and_then_do_are_told() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let pool = builder(1).lifespan(start_unless_told_not_to, async |_| ()).build().await.unwrap();
        let (worker, obstacle) = (pids(&pool), no_start(pid()));
        mark(&obstacle);
        send_signal(worker[0], Signal::KILL);
        until_gone(&worker).await;
        let told = heard.until("workers do not start").await;
        assert_eq!(told.level, Level::WARN);
        assert!(told.get("error").contains("no luck"), "{told:?}");
        until(|| pool.stats().state == State::Degraded).await;
        std::fs::remove_file(obstacle).unwrap();
        assert_eq!(heard.until("workers start again").await.level, Level::WARN);
    });
}

#[test]
fn a_worker_that_is_blocked_is_told_once_and_not_where_that_is_turned_off() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let of = |pool: &Pool| -> Vec<_> {
            let pid = u64::from(pids(pool)[0]);
            heard.all().into_iter().filter(|news| news.number("pid") == pid).collect()
        };
        for off in [None, Some(Duration::ZERO)] {
            let marks = Marks::new();
            let quiet = builder(1).block_warning(off).build().await.unwrap();
            let loud = builder(1).block_warning(BLOCK).build().await.unwrap();
            let tasks = [("quiet", &quiet), ("loud", &loud)]
                .map(|(begun, pool)| pool.spawn(block, (marks.at(begun), marks.at("end"))));
            marks.until("quiet").await;
            marks.until("loud").await;
            // Twice the limit and more, so that the other would have been told of, too, and this one a second time.
            let clock = builder(1).block_warning(4 * BLOCK).build().await.unwrap();
            let timed = clock.spawn(block, (marks.at("clock"), marks.at("end")));
            until(|| !of(&clock).is_empty()).await;
            mark(&marks.at("end"));
            for task in tasks.into_iter().chain([timed]) {
                task.await.unwrap();
            }
            let of_loud = of(&loud);
            assert_eq!(of_loud.len(), 1);
            assert!(of_loud[0].text().contains("blocked") && of_loud[0].number("blocked_ms") >= 50, "{of_loud:?}");
            assert_eq!((of_loud[0].level, of_loud[0].target.as_str()), (Level::WARN, "polyloop"));
            assert!(!of_loud[0].fields.contains_key("stack"), "nobody knows where a program is");
            assert!(of(&quiet).is_empty(), "{:?}", heard.all());
        }
    });
}

#[test]
fn a_subscriber_may_ask_the_pool_that_it_hears_of() {
    run(|| async {
        let asked = Arc::new(Mutex::new(None::<Pool>));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (pool_of_all, all_answers) = (Arc::clone(&asked), Arc::clone(&answers));
        let (heard, _guard) = hear_and(LevelFilter::WARN, move |_| {
            let Some(pool) = pool_of_all.lock().unwrap().clone() else { return };
            let (sender, answer) = channel();
            // Elsewhere, so that this does not wait for ever.
            std::thread::spawn(move || sender.send(pool.stats().workers.len()));
            all_answers.lock().unwrap().push(answer.recv_timeout(SOON));
        });
        let (pool, marks) = (pool(1).await, Marks::new());
        asked.lock().unwrap().replace(pool.clone());
        assert!(pool.apply(die_first, (1, marks.at("begun"))).await.is_err());
        heard.until("a worker died").await;
        until(|| !answers.lock().unwrap().is_empty()).await;
        assert!(answers.lock().unwrap().iter().all(Result::is_ok), "the pool was locked");
        asked.lock().unwrap().take();
    });
}

#[test]
fn a_subscriber_hears_of_the_pools_that_were_made_in_its_scope_only() {
    run(|| async {
        let (inner, marks) = (hear(LevelFilter::WARN), Marks::new());
        let pool = pool(1).await;
        let (heard, guard) = inner;
        drop(guard);
        let (others, _guard) = hear(LevelFilter::WARN);
        assert!(pool.apply(die_first, (1, marks.at("begun"))).await.is_err());
        heard.until("a worker died").await;
        assert!(others.all().is_empty(), "{:?}", others.all());
    });
}
