//! Large buffers, as the functions that get them see them.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use polyloop::Buffer;
use serde::{Deserialize, Serialize};

use crate::pool;
use crate::rig::buffers::{LARGE, is_in_place, ramp};
use crate::rig::marks::{Marks, mark};
use crate::rig::run;
use crate::tasks::block;

fn look(buffer: Buffer) -> (bool, usize, Buffer) {
    let sum = buffer.iter().map(|byte| usize::from(*byte)).sum();
    (is_in_place(&buffer), sum, buffer)
}

async fn look_later(buffer: Buffer) -> (bool, usize, Buffer) {
    tokio::time::sleep(Duration::from_millis(1)).await;
    look(buffer)
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
fn a_slow_item_of_a_map_does_not_keep_others_from_being_drawn() {
    run(|| async {
        let (pool, marks) = (pool(2).await, Marks::new());
        let input = (0..1000).map(|n| (n, Buffer::from(vec![0; 100_000]), marks.at("last")));
        let all: Vec<u64> = pool.starmap(first_waits, input).try_collect().await.unwrap();
        assert!(all.into_iter().eq(0..1000));
    });
}
