//! `retry_on`: which errors are a reason to run a task again. What else there is to them is each kind's own.

use futures_util::StreamExt;
use polyloop::Error;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::Marks;
use crate::tasks::{Kind, Task};

over_each_kind! {
    a_task_that_fails_runs_again_where_that_is_a_reason_and_as_often_as_it_may,
    what_is_said_on_the_builder_is_said_of_all_tasks,
    a_death_is_no_reason_where_it_is_not_said_to_be_one,
    nobody_is_asked_about_what_kills_its_workers_whenever_it_runs_alone,
    each_item_of_a_map_is_judged,
}

fn failures<P: WorkerPool>(error: &Error) -> bool {
    P::told_by_task(error).is_some()
}

fn deaths(error: &Error) -> bool {
    matches!(error, Error::WorkerDied(_))
}

fn fail_first(times: u64, marks: &Marks, starts: &str) -> Task {
    Task::FailFirst { times, starts: marks.at(starts) }
}

fn die_first(times: u64, marks: &Marks, starts: &str) -> Task {
    Task::DieFirst { times, starts: marks.at(starts) }
}

async fn a_task_that_fails_runs_again_where_that_is_a_reason_and_as_often_as_it_may<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await.retries(2), Marks::new());
    assert!(pool.apply(fail_first(1, &marks, "final")).await.is_err_and(|error| failures::<P>(&error)));
    assert_eq!(marks.count("final"), 1, "the death of its worker is the only reason where nobody says otherwise");
    let stubborn = pool.retry_on(failures::<P>);
    assert_eq!(stubborn.apply(fail_first(2, &marks, "applied")).await.unwrap(), 3);
    assert_eq!(stubborn.spawn(fail_first(2, &marks, "spawned")).await.unwrap(), 3);
    let failed = stubborn.apply(fail_first(9, &marks, "failed")).await.unwrap_err();
    assert_eq!(P::told_by_task(&failed), Some("too early"), "{failed:?}");
    assert_eq!(marks.count("failed"), 3);
    assert_eq!((pool.stats().retried, pool.stats().failed, pool.stats().unfinished), (6, 2, 0));
    assert!(stubborn.retries(0).apply(fail_first(1, &marks, "never")).await.is_err());
    assert_eq!(marks.count("never"), 1);
}

async fn what_is_said_on_the_builder_is_said_of_all_tasks<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).retries(1).retry_on(failures::<P>).start().await, Marks::new());
    assert_eq!(pool.apply(fail_first(1, &marks, "starts")).await.unwrap(), 2);
}

async fn a_death_is_no_reason_where_it_is_not_said_to_be_one<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await.retries(2), Marks::new());
    let died = pool.retry_on(failures::<P>).apply(die_first(1, &marks, "final")).await;
    assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.attempt == 1), "{died:?}");
    assert_eq!(marks.count("final"), 1);
    assert_eq!(pool.retry_on(deaths).apply(die_first(2, &marks, "again")).await.unwrap(), 3);
    assert_eq!(pool.stats().retried, 2);
}

async fn nobody_is_asked_about_what_kills_its_workers_whenever_it_runs_alone<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).retries(9).retry_on(|_| true).start().await, Marks::new());
    let died = pool.apply(die_first(99, &marks, "starts")).await;
    assert!(matches!(&died, Err(Error::PoisonTask(death)) if death.attempt == 3), "{died:?}");
    assert_eq!(marks.count("starts"), 3);
}

async fn each_item_of_a_map_is_judged<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(2).await.retries(1).retry_on(failures::<P>), Marks::new());
    for kind in [Kind::Plain, Kind::Async] {
        let starts = |n: u64| format!("{kind:?} {n}");
        let items = (0..20).map(|n| fail_first(n % 3, &marks, &starts(n)));
        let results: Vec<Result<u64, Error>> = pool.map(kind, items).collect().await;
        for (n, result) in (0..).zip(results) {
            match n % 3 {
                2 => assert!(failures::<P>(&result.unwrap_err()), "{n}"),
                failures => assert_eq!(result.unwrap(), failures + 1, "{n}"),
            }
            assert_eq!(marks.count(&starts(n)) as u64, (n % 3 + 1).min(2), "{n}");
        }
    }
}
