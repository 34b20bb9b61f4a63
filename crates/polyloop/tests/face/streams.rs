//! `stream`: values of a worker's stream as they come, its pauses, and its end from either side.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use polyloop::{Buffer, Error, Exit, Pool, RemoteError, STREAM_BYTES, STREAM_VALUES, State, TaskStream};
use rustix::process::Signal;
use tracing::level_filters::LevelFilter;

use crate::rig::heard::hear_and;
use crate::rig::marks::{MarkOnDrop, Marks, mark};
use crate::rig::process::send_signal;
use crate::rig::{pids, run, until, until_gone};
use crate::tasks::block;
use crate::{builder, pid, pool};

const FEW: [usize; 6] = [0, 1, STREAM_VALUES - 1, STREAM_VALUES, STREAM_VALUES + 1, 5 * STREAM_VALUES];

fn numbers(count: usize) -> impl Stream<Item = usize> {
    stream::iter(0..count)
}

fn slow_numbers(count: usize) -> impl Stream<Item = usize> {
    stream::iter(0..count).then(async |n| {
        tokio::task::yield_now().await;
        n
    })
}

async fn numbers_later(count: usize) -> impl Stream<Item = usize> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    numbers(count)
}

/// Leaves a mark for each value before it gives it, and another when it is dropped.
fn counted(size: usize, given: PathBuf, dropped: PathBuf) -> impl Stream<Item = Vec<u8>> {
    let dropped = MarkOnDrop(dropped);
    stream::repeat_with(move || {
        let _ = &dropped;
        mark(&given);
        vec![7; size]
    })
}

/// Gives so many values, leaves a mark, and waits for ever; leaves another mark when it is dropped.
fn then_waits(count: usize, waits: PathBuf, dropped: PathBuf) -> impl Stream<Item = usize> {
    let dropped = MarkOnDrop(dropped);
    numbers(count).chain(stream::poll_fn(move |_| {
        let _ = &dropped;
        mark(&waits);
        Poll::Pending
    }))
}

/// Gives so many values, and then what this does.
fn then(count: usize, end: fn()) -> impl Stream<Item = usize> {
    numbers(count).chain(stream::poll_fn(move |_| {
        end();
        Poll::Ready(None)
    }))
}

fn then_panics(count: usize) -> impl Stream<Item = usize> {
    then(count, || panic!("no more"))
}

fn then_dies(count: usize) -> impl Stream<Item = usize> {
    then(count, || send_signal(pid(), Signal::KILL))
}

/// Waits until a mark has been left so many times, and looks whether it stays so while the worker has other things to do.
async fn settles(pool: &Pool, marks: &Marks, name: &str, count: usize) {
    until(|| marks.count(name) >= count).await;
    for _ in 0..20 {
        pool.apply(async || tokio::task::yield_now().await, ()).await.unwrap();
        assert_eq!(marks.count(name), count, "it gives while nobody takes");
    }
}

/// All values up to the error that ends the stream.
async fn until_error<R>(mut stream: TaskStream<R>) -> (Vec<R>, Error) {
    let mut values = Vec::new();
    loop {
        match stream.next().await.expect("it ends with an error") {
            Ok(value) => values.push(value),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error is the last item");
                return (values, error);
            }
        }
    }
}

#[test]
fn values_come_in_order_and_all_of_them() {
    run(|| async {
        let pool = pool(2).await;
        for count in FEW {
            let all: Vec<_> = (0..count).collect();
            assert_eq!(pool.stream(numbers, (count,)).try_collect::<Vec<_>>().await.unwrap(), all);
            assert_eq!(pool.stream(slow_numbers, (count,)).try_collect::<Vec<_>>().await.unwrap(), all);
            assert_eq!(pool.stream(numbers_later, (count,)).try_collect::<Vec<_>>().await.unwrap(), all);
        }
        assert_eq!(pool.stats().done, 3 * FEW.len() as u64);
    });
}

#[test]
fn a_streams_values_may_be_results_of_its_own_and_its_end_is_for_ever() {
    run(|| async {
        let pool = pool(1).await;
        let some = |_: ()| stream::iter([Ok(1), Err(RemoteError::new("its own")), Ok(2)]);
        let mut values = pool.stream(some, ((),));
        let next: Option<Result<Result<u32, RemoteError>, Error>> = values.next().await;
        assert_eq!(next.unwrap().unwrap().unwrap(), 1);
        assert!(values.next().await.unwrap().unwrap().is_err());
        assert_eq!(values.next().await.unwrap().unwrap().unwrap(), 2);
        for _ in 0..3 {
            assert!(values.next().await.is_none());
        }
    });
}

#[test]
fn nothing_begins_before_it_is_polled() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        drop(pool.stream(counted, (1, marks.at("given"), marks.at("dropped"))));
        pool.stream(counted, (1, marks.at("given"), marks.at("dropped"))).close().await;
        assert_eq!(pool.stats().unfinished, 0);
        pool.close().await.unwrap();
        assert_eq!((marks.count("given"), marks.count("dropped")), (0, 0));
        let refused = pool.stream(numbers, (1,)).next().await;
        assert!(matches!(refused, Some(Err(Error::PoolClosed))), "{refused:?}");
    });
}

#[test]
fn large_values_come_whole() {
    run(|| async {
        let pool = pool(1).await;
        let size = 3 * STREAM_BYTES + 5;
        let blobs = |size: usize| stream::iter((0..5u8).map(move |n| vec![n; size]));
        let blobs: Vec<Vec<u8>> = pool.stream(blobs, (size,)).try_collect().await.unwrap();
        assert_eq!(blobs.len(), 5);
        for (n, blob) in (0..).zip(blobs) {
            assert!(blob.len() == size && blob.iter().all(|byte| *byte == n), "{n}");
        }
    });
}

#[test]
fn large_buffers_are_arguments_and_values_like_others() {
    run(|| async {
        let pool = pool(1).await;
        let halves = |whole: Buffer| {
            let (first, second) = whole.split_at(whole.len() / 2);
            stream::iter([first, second].map(|half| (half.len(), Buffer::from(half.to_vec()))))
        };
        let whole: Vec<u8> = (0..2 * STREAM_BYTES).map(|n| (n % 251) as u8).collect();
        let halves: Vec<_> = pool.stream(halves, (Buffer::from(whole.clone()),)).try_collect().await.unwrap();
        assert!(halves.iter().all(|(len, half)| *len == STREAM_BYTES && half.len() == STREAM_BYTES));
        assert!([&*halves[0].1, &*halves[1].1].concat() == whole);
    });
}

#[test]
fn what_gives_is_paused_while_nobody_takes_and_its_loop_goes_on() {
    for (size, ahead, batch) in
        [(1, STREAM_VALUES, STREAM_VALUES / 2), (STREAM_BYTES / 3, 3, 2), (2 * STREAM_BYTES, 1, 1)]
    {
        run(|| async {
            let pool = pool(1).await;
            let (mut values, marks) = loop {
                let marks = Marks::new();
                let mut values = pool.stream(counted, (size, marks.at("given"), marks.at("dropped")));
                // Nothing is taken by asking whether there is something, unless there is.
                if values.next().now_or_never().is_none() {
                    break (values, marks);
                }
            };
            settles(&pool, &marks, "given", ahead).await;
            for _ in 0..batch - 1 {
                assert_eq!(values.next().await.unwrap().unwrap().len(), size);
            }
            settles(&pool, &marks, "given", ahead).await;
            values.next().await.unwrap().unwrap();
            settles(&pool, &marks, "given", ahead + batch).await;
            drop(values);
            marks.until("dropped").await;
        });
    }
}

/// Leaves a mark and waits for another; then says who gives, again and again, and takes more time for it than one may
/// have at once.
fn toils(name: String, said: PathBuf, begun: PathBuf, go: PathBuf) -> impl Stream<Item = ()> {
    mark(&begun);
    stream::poll_fn(move |context| {
        if !go.exists() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        std::fs::OpenOptions::new().create(true).append(true).open(&said).unwrap().write_all(name.as_bytes()).unwrap();
        Poll::Ready(Some(()))
    })
}

#[test]
fn a_stream_that_never_waits_leaves_its_worker_time_for_others() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let of = |name: &str| (name.to_owned(), marks.at("said"), marks.at("begun"), marks.at("go"));
        let mut streams = ["a", "b"].map(|name| pool.stream(toils, of(name)));
        for stream in &mut streams {
            assert!(stream.next().now_or_never().is_none());
        }
        until(|| marks.count("begun") == 2).await;
        mark(&marks.at("go"));
        until(|| marks.count("said") == 2 * STREAM_VALUES).await;
        let said = std::fs::read(marks.at("said")).unwrap();
        let turns = said.chunk_by(|one, next| one == next).count();
        assert!(turns > STREAM_VALUES, "{}", String::from_utf8_lossy(&said));
    });
}

#[test]
fn a_stream_that_is_dropped_is_dropped_in_its_worker_whether_it_waits_or_is_paused() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let mut paused = pool.stream(counted, (1, marks.at("given"), marks.at("paused")));
        assert!(paused.next().await.unwrap().is_ok());
        settles(&pool, &marks, "given", STREAM_VALUES).await;
        drop(paused);
        marks.until("paused").await;
        let mut waiting = pool.stream(then_waits, (1, marks.at("waits"), marks.at("waiting")));
        assert_eq!(waiting.next().await.unwrap().unwrap(), 0);
        marks.until("waits").await;
        drop(waiting);
        marks.until("waiting").await;
        until(|| pool.stats().unfinished == 0).await;
        assert_eq!((pool.stats().workers.len(), pool.stats().failed), (1, 0));
    });
}

#[test]
fn who_closes_a_stream_waits_until_it_is_dropped_in_its_worker() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let mut paused = pool.stream(counted, (1, marks.at("given"), marks.at("paused")));
        assert!(paused.next().await.unwrap().is_ok());
        paused.close().await;
        assert_eq!((marks.count("paused"), pool.stats().unfinished), (1, 0));
        let mut waiting = pool.stream(then_waits, (1, marks.at("waits"), marks.at("waiting")));
        assert_eq!(waiting.next().await.unwrap().unwrap(), 0);
        marks.until("waits").await;
        waiting.close().await;
        assert_eq!(marks.count("waiting"), 1);
        let mut ended = pool.stream(numbers, (1,));
        assert!(ended.next().await.is_some() && ended.next().await.is_none());
        ended.close().await;
    });
}

#[test]
fn a_consumer_that_is_aborted_half_way_takes_its_stream_with_it() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let stream = pool.stream(then_waits, (100, marks.at("waits"), marks.at("dropped")));
        let taking = tokio::spawn(stream.try_collect::<Vec<_>>());
        marks.until("waits").await;
        taking.abort();
        marks.until("dropped").await;
        assert!(taking.await.unwrap_err().is_cancelled());
        assert_eq!(pool.apply(|| 1, ()).await.unwrap(), 1);
    });
}

#[test]
fn a_panic_ends_it_after_the_values_before() {
    run(|| async {
        let pool = pool(1).await;
        for count in FEW {
            let (values, error) = until_error(pool.stream(then_panics, (count,))).await;
            assert_eq!(values, (0..count).collect::<Vec<_>>());
            assert!(matches!(&error, Error::TaskPanicked(panic) if panic.message == "no more"), "{error:?}");
        }
        let at_once = |_: ()| -> stream::Empty<u8> { panic!("not even one") };
        let (values, error) = until_error(pool.stream(at_once, ((),))).await;
        assert!(values.is_empty() && error.to_string().ends_with("not even one"), "{error}");
        assert_eq!(pool.stats().workers.len(), 1);
        assert_eq!(pool.stats().failed, FEW.len() as u64 + 1);
    });
}

#[test]
fn a_dead_worker_ends_it_after_what_it_gave() {
    run(|| async {
        let pool = pool(1).await;
        let (values, error) = until_error(pool.stream(then_dies, (40,))).await;
        assert_eq!(values, (0..40).collect::<Vec<_>>());
        let Error::WorkerDied(death) = error else { panic!("{error:?}") };
        assert_eq!((death.exit, death.attempt), (Exit::Signal(9), 1));
        assert!(death.task.ends_with("then_dies"), "{death}");
        assert_eq!(pool.stream(numbers, (3,)).try_collect::<Vec<_>>().await.unwrap(), [0, 1, 2]);
    });
}

fn dies_once_after(count: usize, runs: PathBuf) -> impl Stream<Item = usize> {
    mark(&runs);
    let is_first = std::fs::read(&runs).unwrap().len() == 1;
    numbers(count).chain(stream::poll_fn(move |_| {
        if is_first {
            send_signal(pid(), Signal::KILL);
        }
        Poll::Ready(None)
    }))
}

fn panics_after(count: usize, runs: PathBuf) -> impl Stream<Item = usize> {
    mark(&runs);
    then_panics(count)
}

#[test]
fn a_stream_that_gave_values_is_not_run_again_whatever_the_reason() {
    run(|| async {
        let (pool, marks) = (pool(1).await.retries(2), Marks::new());
        let again = pool.retry_on(|error| matches!(error, Error::WorkerDied(_) | Error::TaskPanicked(_)));
        for pool in [&pool, &again] {
            let name = |kind| format!("{kind}-{}", std::ptr::eq(pool, &again));
            let none: Vec<_> = pool.stream(dies_once_after, (0, marks.at(&name("none")))).try_collect().await.unwrap();
            assert_eq!((none.len(), marks.count(&name("none"))), (0, 2));
            let (values, error) = until_error(pool.stream(dies_once_after, (1, marks.at(&name("one"))))).await;
            assert_eq!((values, marks.count(&name("one"))), (vec![0], 1));
            assert!(matches!(error, Error::WorkerDied(_)), "{error:?}");
        }
        for (count, runs) in [(0, 3), (1, 1)] {
            let name = format!("panics-{count}");
            let (values, _) = until_error(again.stream(panics_after, (count, marks.at(&name)))).await;
            assert_eq!((values.len(), marks.count(&name)), (count, runs));
        }
        drop(pool.stream(then_waits, (0, marks.at("waits"), marks.at("dropped"))).next().now_or_never());
        until(|| pool.stats().unfinished == 0).await;
    });
}

#[test]
fn a_stream_that_runs_again_is_dropped_where_it_runs() {
    run(|| async {
        let (pool, marks) = (pool(1).await.retries(2).retry_on(|_| true), Marks::new());
        let later = |first: PathBuf, waits: PathBuf, dropped: PathBuf| {
            mark(&first);
            assert!(std::fs::read(&first).unwrap().len() > 1, "too early");
            then_waits(1, waits, dropped)
        };
        let mut stream = pool.stream(later, (marks.at("first"), marks.at("waits"), marks.at("dropped")));
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        marks.until("waits").await;
        stream.close().await;
        assert_eq!((marks.count("first"), marks.count("dropped"), pool.stats().unfinished), (2, 1, 0));
    });
}

#[test]
fn a_timeout_is_for_the_whole_stream_also_while_nobody_takes() {
    run(|| async {
        let (pool, marks) = (pool(1).await.timeout(Duration::from_millis(200)), Marks::new());
        let (values, error) = until_error(pool.stream(then_waits, (3, marks.at("waits"), marks.at("waiting")))).await;
        assert_eq!((values.len(), marks.count("waiting")), (3, 1));
        assert!(matches!(&error, Error::TaskTimeout { task, .. } if task.ends_with("then_waits")), "{error:?}");
        let mut paused = pool.stream(counted, (1, marks.at("given"), marks.at("paused")));
        assert!(paused.next().await.unwrap().is_ok());
        marks.until("paused").await;
        let (values, error) = until_error(paused).await;
        assert_eq!(values.len(), STREAM_VALUES - 1);
        assert!(matches!(error, Error::TaskTimeout { .. }), "{error:?}");
    });
}

#[test]
fn a_stream_that_does_not_let_go_goes_with_its_worker() {
    run(|| async {
        let (pool, marks) = (builder(1).grace(Duration::from_millis(100)).build().await.unwrap(), Marks::new());
        let before = pids(&pool.stats());
        let blocks = |begun: PathBuf| {
            stream::once(std::future::ready(1)).chain(stream::poll_fn(move |_| {
                block(begun.clone(), begun.with_extension("never"));
                Poll::Ready(None)
            }))
        };
        let mut stream = pool.stream(blocks, (marks.at("begun"),));
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        marks.until("begun").await;
        stream.close().await;
        until_gone(&before).await;
        assert_eq!(pool.apply(|| 1, ()).await.unwrap(), 1);
    });
}

/// A value that can't be written, and one that can't be read.
#[derive(Debug)]
struct Odd(u8);

impl serde::Serialize for Odd {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            1 => Err(serde::ser::Error::custom("stays here")),
            n => serializer.serialize_u8(n),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            2 => Err(serde::de::Error::custom("stays away")),
            n => Ok(Self(n)),
        }
    }
}

#[test]
fn a_value_that_can_not_travel_ends_the_stream() {
    run(|| async {
        let (pool, marks) = (pool(1).await, Marks::new());
        let odd = |kind: u8, dropped: PathBuf| {
            let dropped = MarkOnDrop(dropped);
            stream::iter([0, kind]).chain(stream::pending()).map(move |n| {
                let _ = &dropped;
                Odd(n)
            })
        };
        for (kind, text) in [(1, "could not be written"), (2, "could not be read")] {
            let name = format!("dropped-{kind}");
            let (values, error) = until_error(pool.stream(odd, (kind, marks.at(&name)))).await;
            assert_eq!(values.len(), 1);
            assert!(matches!(&error, Error::Remote(error) if error.to_string().contains(text)), "{error:?}");
            marks.until(&name).await;
        }
        let unsent = pool.stream(|_: Odd| numbers(1), (Odd(1),)).next().await;
        assert!(matches!(unsent, Some(Err(Error::Unsendable(_)))), "{unsent:?}");
        let (_, error) = until_error(pool.stream(|_: Odd| numbers(1), (Odd(2),))).await;
        assert!(matches!(error, Error::Remote(_)), "{error:?}");
    });
}

#[test]
fn many_streams_and_tasks_go_on_at_once() {
    run(|| async {
        let pool = pool(2).await;
        let from = |first: usize| stream::iter(first..first + 300);
        let streams = (0..30).map(|first| pool.stream(from, (first,)).try_collect::<Vec<_>>());
        let streams = futures_util::future::try_join_all(streams);
        let map = pool.map(|n: u32| n + 1, 0..1000).try_collect::<Vec<_>>();
        let (streams, map) = tokio::join!(streams, map);
        for (first, values) in (0..).zip(streams.unwrap()) {
            assert_eq!(values, (first..first + 300).collect::<Vec<_>>());
        }
        assert_eq!(map.unwrap().len(), 1000);
        // Two of one worker, taken in turns.
        let (mut evens, mut odds) = (pool.stream(numbers, (500,)), pool.stream(numbers, (500,)));
        for n in 0..500 {
            assert_eq!((evens.next().await.unwrap().unwrap(), odds.next().await.unwrap().unwrap()), (n, n));
        }
    });
}

#[test]
fn a_stream_is_one_task_in_its_workers_life() {
    run(|| async {
        let pool = builder(1).max_tasks(1).build().await.unwrap();
        let pids = || stream::repeat_with(pid).take(3 * STREAM_VALUES);
        let mut first: Vec<_> = pool.stream(pids, ()).try_collect().await.unwrap();
        let mut second: Vec<_> = pool.stream(pids, ()).try_collect().await.unwrap();
        first.dedup();
        second.dedup();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second);
    });
}

#[test]
fn a_pool_that_closes_finishes_the_streams_it_has() {
    run(|| async {
        let pool = pool(1).await;
        let mut stream = pool.stream(numbers, (3 * STREAM_VALUES,));
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        let closing = tokio::spawn({
            let pool = pool.clone();
            async move { pool.close().await }
        });
        until(|| pool.stats().state == State::Closing).await;
        assert_eq!(pool.stats().unfinished, 1);
        let rest: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(rest, (1..3 * STREAM_VALUES).collect::<Vec<_>>());
        closing.await.unwrap().unwrap();
    });
}

#[test]
fn a_pool_that_is_terminated_or_dropped_ends_its_streams() {
    run(|| async {
        for is_dropped in [true, false] {
            let (pool, marks) = (pool(1).await, Marks::new());
            let mut stream = pool.stream(then_waits, (3, marks.at("waits"), marks.at("dropped")));
            for n in 0..3 {
                assert_eq!(stream.next().await.unwrap().unwrap(), n);
            }
            marks.until("waits").await;
            let taking = tokio::spawn(until_error(stream));
            if is_dropped {
                drop(pool);
            } else {
                pool.terminate().await.unwrap();
            }
            let (values, error) = taking.await.unwrap();
            assert!(values.is_empty());
            assert!(matches!(error, Error::PoolTerminated), "{error:?}");
            marks.until("dropped").await;
        }
    });
}

#[test]
fn a_stream_ends_with_the_runtime_that_drove_its_pool() {
    let marks = Marks::new();
    let driving = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let pool = driving.block_on(pool(1));
    let taking = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut stream = pool.stream(then_waits, (1, marks.at("waits"), marks.at("dropped")));
    assert_eq!(taking.block_on(stream.next()).unwrap().unwrap(), 0);
    drop(driving);
    taking.block_on(async {
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("stuck");
        assert!(matches!(ended, Some(Err(Error::PoolTerminated))), "{ended:?}");
        stream.close().await;
    });
}

/// Asked again after its end it panics, as some streams do.
struct Once(bool);

impl Stream for Once {
    type Item = u8;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
        assert!(!self.0, "asked after its end");
        self.0 = true;
        Poll::Ready(None)
    }
}

#[test]
fn a_stream_is_not_asked_after_its_end() {
    run(|| async {
        let pool = pool(1).await;
        assert!(pool.stream(|| Once(false), ()).next().await.is_none());
        // Nor is a future of one polled again.
        let later = || -> Pin<Box<dyn Future<Output = Once>>> { Box::pin(async { Once(false) }) };
        assert!(pool.stream(later, ()).next().await.is_none());
    });
}

#[test]
fn a_stream_ends_also_where_a_subscriber_panics() {
    run(|| async {
        let (_, _guard) = hear_and(LevelFilter::WARN, |_| panic!("as it is to"));
        let pool = pool(1).await;
        let mut values = pool.stream(|| stream::once(async { pid() }).chain(stream::pending()), ());
        let worker = values.next().await.unwrap().unwrap();
        send_signal(worker, Signal::KILL);
        assert!(matches!(values.next().await, Some(Err(Error::WorkerDied(_)))));
        assert!(values.next().await.is_none());
        assert!(matches!(pool.apply(pid, ()).await, Err(Error::PoolTerminated)));
    });
}
