//! Maps over an input.

use futures_util::{StreamExt, TryStreamExt};
use polyloop::{Buffer, Error};

use crate::python::{pool, run};
use crate::rig::{Marks, until};

#[test]
fn a_map_gives_its_results_in_order_and_unordered_ones_with_their_index() {
    run(|| async {
        let py = pool(2).await;
        let all: Vec<u64> = py.map::<u64, _>("tasks:same", 0..3000).try_collect().await.unwrap();
        assert_eq!(all, (0..3000).collect::<Vec<_>>());
        let all: Vec<(usize, u64)> = py
            .map::<u64, _>("tasks:same", 0..3000)
            .unordered()
            .map(|(index, result)| (index, result.unwrap()))
            .collect()
            .await;
        assert!(all.iter().all(|(index, value)| *index as u64 == *value));
        assert_eq!(all.len(), 3000);
        let powers: Vec<u64> = py.starmap::<u64, _>("builtins:pow", [(2, 3), (3, 2)]).try_collect().await.unwrap();
        assert_eq!(powers, [8, 9]);
    });
}

#[test]
fn of_an_endless_input_what_is_taken_is_run_and_a_failed_item_is_but_one() {
    run(|| async {
        let py = pool(1).await;
        let some: Vec<u64> = py.map::<u64, _>("tasks:same", 0..).take(10).try_collect().await.unwrap();
        assert_eq!(some.len(), 10);
        let results: Vec<Result<i64, Error>> = py.map("builtins:int", ["1", "x", "3"]).collect().await;
        assert!(matches!(results[..], [Ok(1), Err(Error::Python(_)), Ok(3)]), "{results:?}");
        let results: Vec<Result<i64, Error>> = py.starmap("builtins:pow", [1, 2]).collect().await;
        assert!(results.iter().all(|result| matches!(result, Err(Error::Unsendable(_)))), "{results:?}");
        let results: Vec<Result<i64, Error>> = py.map("nonsense", [1, 2]).collect().await;
        assert!(matches!(results[..], [Err(Error::Config(_))]), "{results:?}");
    });
}

#[test]
fn a_map_that_is_dropped_cancels_what_runs() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let items = std::iter::repeat_n((marks.at("begun"), marks.at("ended")), 3);
        let mut map = py.starmap::<(), _>("tasks:wait_for_ever", items);
        tokio::select! {
            _ = map.next() => panic!(),
            () = until(|| marks.count("begun") == 3) => (),
        }
        drop(map);
        until(|| marks.count("ended") == 3).await;
        until(|| py.stats().unfinished == 0).await;
    });
}

#[test]
fn a_map_of_many_large_items_gives_each() {
    run(|| async {
        let py = pool(2).await;
        let items = (0..300u32).map(|n| Buffer::from(vec![n as u8; 100_000]));
        let mut results = py.map::<Buffer, _>("tasks:same", items);
        let mut n = 0u32;
        while let Some(result) = results.next().await {
            let buffer = result.unwrap();
            assert!(buffer.len() == 100_000 && buffer.iter().all(|byte| *byte == n as u8), "{n}");
            n += 1;
        }
        assert_eq!(n, 300);
    });
}
