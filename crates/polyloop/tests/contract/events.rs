//! What a subscriber hears of a pool. What it hears of workers that do not start is in `alone`.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polyloop::Error;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::heard::{hear, hear_and};
use crate::rig::marks::{Marks, mark};
use crate::rig::until;
use crate::tasks::Task;

over_each_kind! {
    a_death_is_told_with_what_becomes_of_its_tasks,
    tasks_that_were_not_finished_are_told_at_a_terminate,
    a_worker_that_is_blocked_is_told_once_and_not_where_that_is_turned_off,
    a_subscriber_may_ask_the_pool_that_it_hears_of,
    a_subscriber_hears_of_the_pools_that_were_made_in_its_scope_only,
}

/// A limit to blocks.
const BLOCK: Duration = Duration::from_millis(50);
/// How long an answer may take that comes at once.
const SOON: Duration = Duration::from_secs(30);

fn die_first(marks: &Marks) -> Task {
    Task::DieFirst { times: 1, starts: marks.at("starts") }
}

fn wait_for_ever(marks: &Marks) -> Task {
    Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") }
}

async fn a_death_is_told_with_what_becomes_of_its_tasks<P: WorkerPool>() {
    let (heard, _guard) = hear(LevelFilter::WARN);
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let worker = pool.pid().await;
    let lost = pool.spawn(wait_for_ever(&marks));
    marks.until("begun").await;
    assert_eq!(pool.retries(1).apply(die_first(&marks)).await.unwrap(), 2);
    assert!(matches!(lost.await, Err(Error::WorkerDied(_))));
    let died = heard.until("a worker died").await;
    assert_eq!((died.level, died.number("pid")), (Level::WARN, worker.into()));
    assert_eq!((died.get("exit"), died.number("retried"), died.number("lost")), ("signal 9", 1, 1));
    assert_eq!(heard.all().len(), 1);
}

async fn tasks_that_were_not_finished_are_told_at_a_terminate<P: WorkerPool>() {
    let (heard, _guard) = hear(LevelFilter::WARN);
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let _tasks = [pool.spawn(wait_for_ever(&marks)), pool.spawn(wait_for_ever(&marks))];
    marks.until("begun").await;
    pool.terminate().await.unwrap();
    let told = heard.until("terminated").await;
    assert_eq!((told.level, told.number("unfinished")), (Level::WARN, 2));
}

async fn a_worker_that_is_blocked_is_told_once_and_not_where_that_is_turned_off<P: WorkerPool>() {
    let (heard, _guard) = hear(LevelFilter::WARN);
    let block = |marks: &Marks, begun| Task::Block { begun: marks.at(begun), until: marks.at("end") };
    for off in [None, Some(Duration::ZERO)] {
        let marks = Marks::new();
        let quiet = P::builder(1).block_warning(off).start().await;
        let loud = P::builder(1).block_warning(BLOCK).start().await;
        // Twice the limit and more, so that the other would have been told of, too, and this one a second time.
        let clock = P::builder(1).block_warning(4 * BLOCK).start().await;
        let of = |pool: &P| -> Vec<_> {
            let pid = u64::from(pool.pids()[0]);
            heard.all().into_iter().filter(|news| news.number("pid") == pid).collect()
        };
        let tasks = [("quiet", &quiet), ("loud", &loud)].map(|(begun, pool)| pool.spawn(block(&marks, begun)));
        marks.until("quiet").await;
        marks.until("loud").await;
        let timed = clock.spawn(block(&marks, "clock"));
        until(|| !of(&clock).is_empty()).await;
        mark(&marks.at("end"));
        for task in tasks.into_iter().chain([timed]) {
            task.await.unwrap();
        }
        let of_loud = of(&loud);
        assert_eq!(of_loud.len(), 1);
        assert!(of_loud[0].text().contains("blocked") && of_loud[0].number("blocked_ms") >= 50, "{of_loud:?}");
        assert_eq!((of_loud[0].level, of_loud[0].target.as_str()), (Level::WARN, "polyloop"));
        assert_eq!(of_loud[0].fields.contains_key("stack"), P::TELLS_STACKS, "{of_loud:?}");
        assert!(of(&quiet).is_empty(), "{:?}", heard.all());
    }
}

async fn a_subscriber_may_ask_the_pool_that_it_hears_of<P: WorkerPool>() {
    let asked = Arc::new(Mutex::new(None::<P>));
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (pool_of_all, all_answers) = (Arc::clone(&asked), Arc::clone(&answers));
    let (heard, _guard) = hear_and(LevelFilter::WARN, move |_| {
        let Some(pool) = pool_of_all.lock().unwrap().clone() else { return };
        let (sender, answer) = channel();
        // Elsewhere, so that this does not wait for ever.
        std::thread::spawn(move || sender.send(pool.stats().workers.len()));
        all_answers.lock().unwrap().push(answer.recv_timeout(SOON));
    });
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    asked.lock().unwrap().replace(pool.clone());
    assert!(pool.apply(die_first(&marks)).await.is_err());
    heard.until("a worker died").await;
    until(|| !answers.lock().unwrap().is_empty()).await;
    assert!(answers.lock().unwrap().iter().all(Result::is_ok), "the pool was locked");
    asked.lock().unwrap().take();
}

async fn a_subscriber_hears_of_the_pools_that_were_made_in_its_scope_only<P: WorkerPool>() {
    let (inner, marks) = (hear(LevelFilter::WARN), Marks::new());
    let pool: P = pool(1).await;
    let (heard, guard) = inner;
    drop(guard);
    let (others, _guard) = hear(LevelFilter::WARN);
    assert!(pool.apply(die_first(&marks)).await.is_err());
    heard.until("a worker died").await;
    assert!(others.all().is_empty(), "{:?}", others.all());
}
