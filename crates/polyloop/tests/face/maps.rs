//! Maps: order, laziness, and what an item that fails or a reader that leaves means.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use polyloop::{Buffer, Error, RemoteError};
use rustix::process::Signal;

use crate::rig::{Marks, block, builder, mark, pid, pool, run, send_signal, until, wait_for_ever};

/// The first numbers are slow.
async fn slow_first(n: u64) -> u64 {
    if n < 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    n * 2
}

#[test]
fn results_come_in_the_order_of_the_input() {
    run(|| async {
        let pool = pool(2).await;
        let doubled: Vec<u64> = pool.map(slow_first, 0..5000).try_collect().await.unwrap();
        assert!(doubled.iter().zip(0..).all(|(doubled, n)| *doubled == n * 2));
        assert_eq!(doubled.len(), 5000);
        let none: Vec<u64> = pool.map(slow_first, []).try_collect().await.unwrap();
        assert_eq!(none, []);
    });
}

#[test]
fn unordered_results_come_as_they_finish_with_their_index() {
    run(|| async {
        let pool = pool(2).await;
        let results: Vec<_> = pool.map(slow_first, 0..100).unordered().collect().await;
        let indices: Vec<usize> = results.iter().map(|(index, _)| *index).collect();
        assert_ne!(indices, (0..100).collect::<Vec<_>>(), "the slow ones come later");
        let mut sorted = indices.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert!(results.into_iter().all(|(index, result)| result.unwrap() == index as u64 * 2));
    });
}

#[test]
fn each_item_may_be_a_tuple_of_arguments() {
    run(|| async {
        let pool = pool(1).await;
        let powers: Vec<u64> = pool.starmap(u64::pow, (0..5).map(|n| (2, n))).try_collect().await.unwrap();
        assert_eq!(powers, [1, 2, 4, 8, 16]);
    });
}

#[test]
fn input_is_drawn_as_room_appears_and_no_more_once_the_map_is_dropped() {
    run(|| async {
        let pool = pool(2).await;
        let drawn = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&drawn);
        let mut map = pool
            .map(
                |n: u64| n,
                (0..).inspect(move |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                }),
            )
            .buffer_size(10);
        tokio::task::yield_now().await;
        assert_eq!(drawn.load(Ordering::Relaxed), 0, "nobody has asked");
        for n in 0..100 {
            assert_eq!(map.next().await.unwrap().unwrap(), n);
            // What was taken at once from those that had come back, and as many again.
            assert!(drawn.load(Ordering::Relaxed) <= n + 1 + 20);
        }
        drop(map);
        let after = drawn.load(Ordering::Relaxed);
        until(|| pool.stats().unfinished == 0).await;
        assert_eq!(drawn.load(Ordering::Relaxed), after);
    });
}

#[test]
fn the_input_may_be_drawn_without_bounds() {
    run(|| async {
        let pool = pool(1).await;
        let map = pool.map(|n: u64| n, 0..5000).buffer_size(usize::MAX);
        assert_eq!(map.try_collect::<Vec<_>>().await.unwrap(), (0..5000).collect::<Vec<_>>());
    });
}

/// The first waits for the last.
fn first_waits(n: u64, _: Buffer, last: PathBuf) -> u64 {
    match n {
        0 => block(last.with_extension("begun"), last),
        999 => mark(&last),
        _ => (),
    }
    n
}

#[test]
fn a_slow_item_does_not_keep_large_ones_from_being_drawn() {
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        let input = (0..1000).map(|n| (n, Buffer::from(vec![0; 100_000]), marks.at("last")));
        let all: Vec<u64> = pool.starmap(first_waits, input).try_collect().await.unwrap();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn a_map_that_is_dropped_drops_its_tasks() {
    run(|| async {
        let (pool, marks) = (builder(1).concurrency(4).build().await.unwrap(), Marks::new());
        let mut map = pool.starmap(wait_for_ever, (0..100).map(|_| (marks.at("begun"), marks.at("dropped"))));
        tokio::select! {
            _ = map.next() => panic!("they wait for ever"),
            () = until(|| marks.count("begun") == 4) => (),
        }
        drop(map);
        until(|| pool.stats().unfinished == 0).await;
        until(|| marks.count("dropped") == 4).await;
        assert_eq!(marks.count("begun"), 4);
    });
}

#[test]
fn an_item_that_fails_leaves_the_others_unless_the_reader_stops_there() {
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        let odd = |n: u64| if n == 3 { panic!("three") } else { n };
        let results: Vec<Result<u64, Error>> = pool.map(odd, 0..6).collect().await;
        let failed: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, false, false, true, false, false]);
        let stopped: Result<Vec<u64>, Error> = pool.map(odd, 0..).try_collect().await;
        assert!(matches!(stopped, Err(Error::TaskPanicked(panic)) if panic.message == "three"));
        until(|| pool.stats().unfinished == 0).await;
        // A task's own errors are values.
        let own = |n: u8| -> Result<u8, RemoteError> { Ok(10u8.checked_sub(n).ok_or(std::fmt::Error)?) };
        let values: Vec<Result<u8, RemoteError>> = pool.map(own, [9, 10, 11]).try_collect().await.unwrap();
        assert!(values[0].is_ok() && values[2].is_err());
        mark(&marks.at("end"));
    });
}

#[test]
fn a_map_outlives_its_workers() {
    run(|| async {
        let pool = builder(2).retries(3).build().await.unwrap();
        let work = async |n: u64| {
            tokio::time::sleep(Duration::from_micros(200)).await;
            if n % 500 == 250 && polyloop::worker_state::<()>().is_none() {
                tokio::task::yield_now().await;
            }
            n
        };
        let mut map = pool.map(work, 0..3000);
        let mut expected = 0;
        while let Some(n) = map.next().await {
            assert_eq!(n.unwrap(), expected);
            expected += 1;
            if expected % 1000 == 500 {
                let workers = crate::rig::pids(&pool);
                workers.iter().take(1).for_each(|pid| send_signal(*pid, Signal::KILL));
            }
        }
        assert_eq!(expected, 3000);
    });
}

#[test]
fn a_single_call_does_not_wait_behind_an_endless_map() {
    run(|| async {
        let pool = pool(1).await;
        let mut map = pool.map(|n: u64| n, 0..);
        let calls = async {
            for _ in 0..50 {
                pool.apply(pid, ()).await.unwrap();
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
    });
}
