//! Large values: in place where they can be, and whole in any case.

use bytes::Bytes;
use futures_util::TryStreamExt;
use polyloop::Buffer;
use serde_bytes::ByteBuf;

use crate::pool::{WorkerPool, over_each_kind, pool};
use crate::rig::buffers::{LARGE, is_in_place, ramp};
use crate::tasks::Task;

over_each_kind! {
    values_of_any_size_arrive_whole,
    large_buffers_stand_where_they_came_and_small_ones_are_copied,
    a_map_takes_and_gives_large_buffers_and_their_memory_is_used_again,
    more_large_buffers_than_there_are_blocks_arrive_all_the_same,
    a_worker_that_may_have_no_blocks_sends_large_buffers_whole,
    long_texts_and_vectors_arrive_whole_with_buffers_among_them_or_without,
    a_buffer_outlives_its_pool_and_becomes_bytes_without_a_copy,
    a_buffer_that_came_in_place_is_passed_on_as_any_other,
}

async fn values_of_any_size_arrive_whole<P: WorkerPool>() {
    let pool: P = pool(1).await;
    for len in [0, 1_000, 20_000, 300_000, 5_000_000] {
        let text: String = (0..len).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
        assert!(pool.echo(text.clone()).await.unwrap() == text, "{len}");
        let bytes = ByteBuf::from(text);
        assert!(pool.echo(bytes.clone()).await.unwrap() == bytes, "{len}");
        assert!(pool.in_thread().echo(ramp(len)).await.unwrap() == ramp(len), "{len}");
    }
    let numbers: Vec<u32> = (0..200_000).collect();
    assert!(pool.echo(numbers.clone()).await.unwrap() == numbers);
}

async fn large_buffers_stand_where_they_came_and_small_ones_are_copied<P: WorkerPool>() {
    let pool: P = pool(1).await;
    for len in [0, 1, 65_535, 65_536, LARGE] {
        let back = pool.echo(ramp(len)).await.unwrap();
        assert_eq!(is_in_place(&back), len >= 65_536, "{len}");
        assert!(back == ramp(len) && (back.as_ptr() as usize).is_multiple_of(if len < 65_536 { 1 } else { 64 }));
    }
}

async fn a_map_takes_and_gives_large_buffers_and_their_memory_is_used_again<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let mut results = pool.echo_all((0..400u32).map(|n| (n, ramp(100_000 + n as usize))));
    let mut count = 0;
    while let Some((n, buffer)) = results.try_next().await.unwrap() {
        assert!(n == count && buffer == ramp(100_000 + n as usize), "{n}");
        count += 1;
    }
    assert_eq!(count, 400);
}

async fn more_large_buffers_than_there_are_blocks_arrive_all_the_same<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let tasks: Vec<_> = (0..100u8).map(|n| pool.echo(Buffer::from(vec![n; 70_000]))).collect();
    let mut kept = Vec::new();
    for (n, task) in (0..).zip(tasks) {
        let back = task.await.unwrap();
        assert!(back == Buffer::from(vec![n; 70_000]), "{n}");
        kept.push(back);
    }
}

async fn a_worker_that_may_have_no_blocks_sends_large_buffers_whole<P: WorkerPool>() {
    let pool: P = pool(1).await;
    pool.apply(Task::AllowNoFiles).await.unwrap();
    for pool in [pool.clone(), pool.in_thread()] {
        let back = pool.echo(ramp(LARGE)).await.unwrap();
        assert!(!is_in_place(&back) && back == ramp(LARGE));
    }
}

async fn long_texts_and_vectors_arrive_whole_with_buffers_among_them_or_without<P: WorkerPool>() {
    let pool: P = pool(1).await;
    for (blocks, len) in [(true, 10), (true, 300_000), (false, 300_000)] {
        if !blocks {
            pool.apply(Task::AllowNoFiles).await.unwrap();
        }
        let numbers: Vec<f32> = (0..len).map(|n| n as f32).collect();
        for buffer in [ramp(5), ramp(LARGE)] {
            let value = ("x".repeat(len), numbers.clone(), buffer);
            assert!(pool.echo(value.clone()).await.unwrap() == value, "{blocks} {len}");
        }
    }
}

async fn a_buffer_outlives_its_pool_and_becomes_bytes_without_a_copy<P: WorkerPool>() {
    let pool: P = pool(1).await;
    let buffer = pool.echo(ramp(LARGE)).await.unwrap();
    let clone = buffer.clone();
    pool.terminate().await.unwrap();
    drop(pool);
    assert!(is_in_place(&buffer));
    let place = buffer.as_ptr();
    let bytes = Bytes::from(buffer);
    assert_eq!(bytes.as_ptr(), place);
    assert_eq!(Buffer::from(bytes.clone()).as_ptr(), place);
    assert_eq!(bytes.slice(1..9), clone[1..9]);
    drop(bytes);
    assert_eq!(clone, ramp(LARGE));
}

async fn a_buffer_that_came_in_place_is_passed_on_as_any_other<P: WorkerPool>() {
    let pool: P = pool(2).await;
    let mut buffer = ramp(LARGE);
    for _ in 0..5 {
        buffer = pool.echo(buffer).await.unwrap();
    }
    assert_eq!(buffer, ramp(LARGE));
}
