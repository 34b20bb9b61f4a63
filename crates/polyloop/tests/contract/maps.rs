//! Maps: order, laziness, and what an item that fails or a reader that leaves means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use polyloop::Error;
use rustix::process::{Pid, Signal, kill_process};

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::marks::{Marks, mark};
use crate::rig::until;
use crate::tasks::{Kind, Task};

over_each_kind! {
    results_come_in_the_order_of_the_input,
    unordered_results_come_as_they_finish_with_their_index,
    each_item_may_be_a_tuple_of_arguments,
    input_is_drawn_as_room_appears_and_no_more_once_the_map_is_dropped,
    the_input_may_be_drawn_without_bounds,
    a_map_that_is_dropped_cancels_its_tasks,
    an_item_that_fails_is_but_one_unless_the_reader_stops_there,
    an_item_that_runs_out_of_time_is_but_one,
    a_map_outlives_its_workers,
    a_single_call_does_not_wait_behind_an_endless_map,
    maps_share_the_workers,
}

/// The first four items wait for a mark.
fn slow_first(marks: &Marks, n: u64) -> Task {
    match n {
        0..4 => Task::Await { begun: marks.at("begun"), until: marks.at("go on"), times: 1 },
        _ => Task::Give(n),
    }
}

/// What `slow_first` gives.
fn given(n: u64) -> u64 {
    if n < 4 { 0 } else { n }
}

async fn results_come_in_the_order_of_the_input<P: WorkerPool>() {
    let pool: P = pool(2).await;
    for kind in [Kind::Plain, Kind::Async] {
        let numbers: Vec<u64> = pool.map(kind, (0..5000).map(Task::Give)).try_collect().await.unwrap();
        assert!(numbers.into_iter().eq(0..5000));
        let none: Vec<u64> = pool.map(kind, []).try_collect().await.unwrap();
        assert_eq!(none, []);
    }
    // Also where later ones finish earlier.
    let marks = Marks::new();
    let mut map = pool.map(Kind::Async, (0..200).map(|n| slow_first(&marks, n)));
    tokio::select! {
        _ = map.next() => panic!("it waits"),
        () = until(|| pool.stats().done >= 10_000 + 196) => (),
    }
    mark(&marks.at("go on"));
    let numbers: Vec<u64> = map.try_collect().await.unwrap();
    assert!(numbers.into_iter().eq((0..200).map(given)));
}

async fn unordered_results_come_as_they_finish_with_their_index<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(2).await, Marks::new());
    let mut results = pool.map(Kind::Async, (0..100).map(|n| slow_first(&marks, n))).unordered();
    let mut seen = Vec::new();
    while let Some((index, result)) = results.next().await {
        assert_eq!(result.unwrap(), given(index as u64));
        seen.push(index);
        if seen.len() == 96 {
            assert!(seen.iter().all(|index| *index >= 4), "{seen:?}");
            mark(&marks.at("go on"));
        }
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..100));
}

async fn each_item_may_be_a_tuple_of_arguments<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let differences: Vec<i64> = pool.starmap((0..5).map(|n| (n, 2 * n))).try_collect().await.unwrap();
    assert_eq!(differences, [0, -1, -2, -3, -4]);
}

async fn input_is_drawn_as_room_appears_and_no_more_once_the_map_is_dropped<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let drawn = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&drawn);
    let input = (0..).inspect(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut map = pool.map(Kind::Plain, input.map(Task::Give)).buffer_size(10);
    tokio::task::yield_now().await;
    assert_eq!(drawn.load(Ordering::Relaxed), 0, "nobody has asked");
    for n in 0..100 {
        assert_eq!(map.next().await.unwrap().unwrap(), n);
        // What was taken at once from those that had come back, and as many again.
        assert!(drawn.load(Ordering::Relaxed) <= n + 1 + 20);
    }
    drop(map);
    let after = drawn.load(Ordering::Relaxed);
    pool.until_idle().await;
    assert_eq!(drawn.load(Ordering::Relaxed), after);
}

async fn the_input_may_be_drawn_without_bounds<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let map = pool.map(Kind::Plain, (0..5000).map(Task::Give)).buffer_size(usize::MAX);
    assert!(map.try_collect::<Vec<_>>().await.unwrap().into_iter().eq(0..5000));
}

async fn a_map_that_is_dropped_cancels_its_tasks<P: WorkerPool>() {
    let (pool, marks) = (P::builder(1).concurrency(4).start().await, Marks::new());
    let wait_for_ever = || Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") };
    let mut map = pool.map(Kind::Async, (0..100).map(|_| wait_for_ever()));
    tokio::select! {
        _ = map.next() => panic!("they wait for ever"),
        () = until(|| marks.count("begun") == 4) => (),
    }
    drop(map);
    pool.until_idle().await;
    until(|| marks.count("ended") == 4).await;
    assert_eq!(marks.count("begun"), 4, "no more than may run at a time");
}

async fn an_item_that_fails_is_but_one_unless_the_reader_stops_there<P: WorkerPool>() {
    let pool: P = pool(2).await;
    for kind in [Kind::Plain, Kind::Async] {
        let odd = |n: u64| if n == 3 { Task::Fail("three".to_owned()) } else { Task::Give(n) };
        let results: Vec<Result<u64, Error>> = pool.map(kind, (0..6).map(odd)).collect().await;
        let failed: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, false, false, true, false, false]);
        let stopped: Result<Vec<u64>, Error> = pool.map(kind, (0..).map(odd)).try_collect().await;
        let error = stopped.unwrap_err();
        assert_eq!(P::told_by_task(&error), Some("three"), "{error:?}");
        pool.until_idle().await;
    }
}

async fn an_item_that_runs_out_of_time_is_but_one<P: WorkerPool>() {
    let (pool, marks) = (pool::<P>(1).await, Marks::new());
    let wait_for_ever = Task::WaitForEver { begun: marks.at("begun"), ended: marks.at("ended") };
    let items = [Task::Give(1), wait_for_ever, Task::Give(3)];
    let time = std::time::Duration::from_millis(500);
    let results: Vec<Result<u64, Error>> = pool.timeout(time).map(Kind::Async, items).collect().await;
    assert!(matches!(results[..], [Ok(1), Err(Error::TaskTimeout { .. }), Ok(3)]), "{results:?}");
    assert_eq!(marks.count("ended"), 1);
}

async fn a_map_outlives_its_workers<P: WorkerPool>() {
    let pool = P::builder(2).retries(3).start().await;
    let work = |n| Task::Later(Box::new(Task::Give(n)));
    let mut map = pool.map(Kind::Async, (0..3000).map(work));
    let mut expected = 0;
    while let Some(n) = map.next().await {
        assert_eq!(n.unwrap(), expected);
        expected += 1;
        if expected % 1000 == 500 {
            let victim = pool.pids().first().and_then(|pid| Pid::from_raw(*pid as i32));
            // It may be gone already.
            let _ = victim.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
    assert_eq!(expected, 3000);
}

async fn a_single_call_does_not_wait_behind_an_endless_map<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let mut map = pool.map(Kind::Plain, (0..).map(Task::Give));
    let calls = async {
        for _ in 0..50 {
            pool.pid().await;
        }
    };
    let drain = async {
        while let Some(n) = map.next().await {
            n.unwrap();
        }
    };
    tokio::select! {
        () = calls => (),
        () = drain => panic!("it is endless"),
    }
}

async fn maps_share_the_workers<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let mut endless = pool.map(Kind::Plain, (0..).map(Task::Give));
    let finite = pool.map(Kind::Async, (0..1000).map(Task::Give)).try_collect::<Vec<u64>>();
    let drain = async {
        while let Some(n) = endless.next().await {
            n.unwrap();
        }
    };
    tokio::select! {
        numbers = finite => assert!(numbers.unwrap().into_iter().eq(0..1000)),
        () = drain => panic!("it is endless"),
    }
}
