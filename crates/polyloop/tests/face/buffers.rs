//! Large buffers: in place where there are blocks, and whole where there are none.

use std::time::Duration;

use polyloop::Buffer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::rig::{pool, run};

const LARGE: usize = 1 << 20;

/// Whether these bytes stand in memory that was received, by what the kernel says of this process.
fn is_in_place(buffer: &Buffer) -> bool {
    let address = buffer.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:polyloop")).any(|line| {
        let (start, end) = line.split_whitespace().next().and_then(|range| range.split_once('-')).unwrap_or_default();
        let at = |text| usize::from_str_radix(text, 16).unwrap_or_default();
        (at(start)..at(end)).contains(&address)
    })
}

fn ramp(len: usize) -> Buffer {
    (0..len).map(|n| n as u8).collect::<Vec<u8>>().into()
}

fn look(buffer: Buffer) -> (bool, usize, Buffer) {
    let sum = buffer.iter().map(|byte| usize::from(*byte)).sum();
    (is_in_place(&buffer), sum, buffer)
}

async fn look_later(buffer: Buffer) -> (bool, usize, Buffer) {
    tokio::time::sleep(Duration::from_millis(1)).await;
    look(buffer)
}

/// Has blocks refused from now on: they are files in memory.
fn allow_no_files() {
    let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Fsize) };
    setrlimit(Resource::Fsize, limit).unwrap();
}

#[test]
fn large_ones_stand_where_they_came_and_small_ones_are_copied() {
    run(|| async {
        let pool = pool(1).await;
        for len in [0, 1, 65_535, 65_536, LARGE] {
            let buffer = ramp(len);
            let sum: usize = buffer.iter().map(|byte| usize::from(*byte)).sum();
            let calls = [pool.spawn(look, (buffer.clone(),)), pool.in_thread().spawn(look, (buffer.clone(),)), {
                pool.spawn(look_later, (buffer.clone(),))
            }];
            for call in calls {
                let (was_in_place, summed, back) = call.await.unwrap();
                assert_eq!((was_in_place, summed), (len >= 65_536, sum), "{len}");
                assert_eq!(is_in_place(&back), len >= 65_536, "{len}");
                assert!(back == buffer && (back.as_ptr() as usize).is_multiple_of(if len < 65_536 { 1 } else { 64 }));
            }
        }
    });
}

#[derive(Serialize, Deserialize)]
struct Scene {
    name: String,
    layers: Vec<Option<Buffer>>,
    mask: Buffer,
}

#[test]
fn any_number_of_them_stand_anywhere_in_a_value() {
    run(|| async {
        let pool = pool(1).await;
        let turn = |scene: Scene| Scene {
            name: scene.name + "!",
            layers: scene.layers.into_iter().rev().chain([Some(scene.mask.clone())]).collect(),
            mask: ramp(3),
        };
        let layers = vec![Some(ramp(LARGE)), None, Some(ramp(100_000)), Some(ramp(7))];
        let scene = Scene { name: "scene".to_owned(), layers: layers.clone(), mask: ramp(200_000) };
        let turned = pool.apply(turn, (scene,)).await.unwrap();
        assert_eq!((turned.name.as_str(), &turned.mask), ("scene!", &ramp(3)));
        let expected: Vec<_> = layers.into_iter().rev().chain([Some(ramp(200_000))]).collect();
        assert_eq!(turned.layers, expected);
    });
}

#[test]
fn a_map_takes_and_gives_them_and_their_memory_is_used_again() {
    run(|| async {
        use futures_util::TryStreamExt;
        let pool = pool(2).await;
        let input = (0..400u32).map(|n| (n, ramp(100_000 + n as usize)));
        let mut results = pool.map(|(n, buffer): (u32, Buffer)| (n, buffer), input);
        let mut count = 0;
        while let Some((n, buffer)) = results.try_next().await.unwrap() {
            assert_eq!((n, &buffer), (count, &ramp(100_000 + count as usize)));
            count += 1;
        }
        assert_eq!(count, 400);
    });
}

#[test]
fn more_than_there_are_blocks_arrive_all_the_same() {
    run(|| async {
        let pool = pool(1).await;
        let calls: Vec<_> = (0..100u8).map(|n| pool.spawn(look, (Buffer::from(vec![n; 70_000]),))).collect();
        for (n, call) in (0..).zip(calls) {
            let (_, sum, back) = call.await.unwrap();
            assert_eq!((sum, back), (n * 70_000, Buffer::from(vec![n as u8; 70_000])));
        }
    });
}

#[test]
fn a_worker_that_may_have_no_blocks_sends_them_whole() {
    run(|| async {
        let pool = pool(1).await;
        pool.apply(allow_no_files, ()).await.unwrap();
        for pool in [pool.clone(), pool.in_thread()] {
            let (was_in_place, _, back) = pool.apply(look, (ramp(LARGE),)).await.unwrap();
            assert!(was_in_place && !is_in_place(&back) && back == ramp(LARGE));
        }
    });
}

#[test]
fn they_outlive_their_pool_and_its_workers() {
    run(|| async {
        let pool = pool(1).await;
        let (_, _, back) = pool.apply(look, (ramp(LARGE),)).await.unwrap();
        pool.terminate().await.unwrap();
        drop(pool);
        assert!(is_in_place(&back) && back == ramp(LARGE));
    });
}

#[test]
fn one_that_comes_in_place_is_passed_on_as_any_other() {
    run(|| async {
        let pool = pool(2).await;
        let mut buffer = ramp(LARGE);
        for _ in 0..5 {
            (_, _, buffer) = pool.apply(look, (buffer,)).await.unwrap();
        }
        assert_eq!(buffer, ramp(LARGE));
        let bytes = bytes::Bytes::from(buffer);
        assert_eq!(Buffer::from(bytes), ramp(LARGE));
    });
}

#[test]
fn long_texts_and_vectors_arrive_whole_with_buffers_among_them_or_without() {
    run(|| async {
        let pool = pool(1).await;
        let give = |text: String, numbers: Vec<f32>, buffer: Buffer| (buffer, numbers, text);
        for (blocks, len) in [(true, 10), (true, 300_000), (false, 300_000)] {
            if !blocks {
                pool.apply(allow_no_files, ()).await.unwrap();
            }
            let (text, numbers) = ("x".repeat(len), (0..len).map(|n| n as f32).collect::<Vec<_>>());
            for buffer in [ramp(5), ramp(LARGE)] {
                let back = pool.apply(give, (text.clone(), numbers.clone(), buffer.clone())).await.unwrap();
                assert!(back == (buffer, numbers.clone(), text.clone()), "{blocks} {len}");
            }
        }
    });
}
