//! `stream`: values of a Python generator as they come, its pauses, and its end from either side.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use polyloop::{Buffer, Error, Exit, PythonPool, STREAM_BYTES, STREAM_VALUES, State, TaskStream};

use crate::rig::marks::Marks;
use crate::rig::python::run;
use crate::rig::{pids, until, until_gone};
use crate::{builder, pool};

const FEW: [usize; 6] = [0, 1, STREAM_VALUES - 1, STREAM_VALUES, STREAM_VALUES + 1, 5 * STREAM_VALUES];

fn numbers(py: &PythonPool, count: usize) -> TaskStream<usize> {
    py.call("streams:numbers").arg(count).stream()
}

fn marked(
    py: &PythonPool,
    function: &str,
    first: usize,
    marks: [std::path::PathBuf; 2],
) -> TaskStream<serde_bytes::ByteBuf> {
    let [one, two] = marks;
    py.call(format!("streams:{function}")).arg(first).arg(one).arg(two).stream()
}

fn waiting(py: &PythonPool, function: &str, count: usize, marks: &Marks) -> TaskStream<usize> {
    py.call(format!("streams:{function}")).arg(count).arg(marks.at("waits")).arg(marks.at("closed")).stream()
}

/// Waits until a mark has been left so many times, and looks whether it stays so while the worker has other things to do.
async fn settles(py: &PythonPool, marks: &Marks, name: &str, count: usize) {
    until(|| marks.count(name) >= count).await;
    for _ in 0..20 {
        py.call::<()>("asyncio:sleep").arg(0).await.unwrap();
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
fn whatever_can_be_iterated_over_gives_its_values_in_order_and_all_of_them() {
    run(|| async {
        let py = pool(2).await;
        for function in ["numbers", "slow_numbers", "plain_numbers", "numbers_later", "listed_numbers", "instance"] {
            for count in FEW {
                let stream = py.call::<usize>(format!("streams:{function}")).arg(count).stream();
                let all: Vec<_> = stream.try_collect().await.unwrap();
                assert_eq!(all, (0..count).collect::<Vec<_>>(), "{function}");
            }
        }
        let threaded = py.in_thread().call::<usize>("streams:plain_numbers").arg(100).stream();
        assert_eq!(threaded.try_collect::<Vec<_>>().await.unwrap(), (0..100).collect::<Vec<_>>());
        let named: Vec<_> =
            py.call::<u8>("streams:numbers").arg(2).kwarg("first", 5).stream().try_collect().await.unwrap();
        assert_eq!(named, [5, 6]);
    });
}

#[test]
fn large_values_come_whole() {
    run(|| async {
        let py = pool(1).await;
        let size = 3 * STREAM_BYTES + 5;
        let blobs: Vec<_> = py.call::<Buffer>("streams:blobs").arg(5).arg(size).stream().try_collect().await.unwrap();
        assert_eq!(blobs.len(), 5);
        for (n, blob) in (0..).zip(blobs) {
            assert!(blob.len() == size && blob.iter().all(|byte| *byte == n), "{n}");
        }
    });
}

#[test]
fn the_generator_is_paused_while_nobody_takes_and_its_loop_goes_on() {
    for function in ["counted", "counted_plainly"] {
        for (size, ahead, batch) in [(1, STREAM_VALUES, STREAM_VALUES / 2), (2 * STREAM_BYTES, 1, 1)] {
            run(|| async {
                let (py, marks) = (pool(1).await, Marks::new());
                let mut values = marked(&py, function, size, [marks.at("given"), marks.at("closed")]);
                // Nothing is taken by asking whether there is something.
                assert!(values.next().now_or_never().is_none());
                settles(&py, &marks, "given", ahead).await;
                for _ in 0..batch - 1 {
                    assert_eq!(values.next().await.unwrap().unwrap().len(), size);
                }
                settles(&py, &marks, "given", ahead).await;
                values.next().await.unwrap().unwrap();
                settles(&py, &marks, "given", ahead + batch).await;
                drop(values);
                marks.until("closed").await;
            });
        }
    }
}

#[test]
fn a_stream_that_is_left_is_closed_in_its_worker_whether_it_waits_blocks_or_is_paused() {
    run(|| async {
        let py = pool(1).await;
        for function in ["then_waits", "then_blocks"] {
            for closes in [true, false] {
                let marks = Marks::new();
                let mut stream = waiting(&py, function, 1, &marks);
                assert_eq!(stream.next().await.unwrap().unwrap(), 0);
                marks.until("waits").await;
                if closes {
                    stream.close().await;
                    assert_eq!((marks.count("closed"), py.stats().unfinished), (1, 0));
                } else {
                    drop(stream);
                    marks.until("closed").await;
                }
            }
        }
        let marks = Marks::new();
        let mut paused = marked(&py, "counted", 1, [marks.at("given"), marks.at("closed")]);
        assert!(paused.next().await.unwrap().is_ok());
        settles(&py, &marks, "given", STREAM_VALUES).await;
        paused.close().await;
        assert_eq!((marks.count("closed"), py.stats().unfinished, py.stats().failed), (1, 0, 0));
    });
}

#[test]
fn a_consumer_that_is_aborted_half_way_takes_its_stream_with_it() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let taking = tokio::spawn(waiting(&py, "then_waits", 100, &marks).try_collect::<Vec<_>>());
        marks.until("waits").await;
        taking.abort();
        marks.until("closed").await;
        assert!(taking.await.unwrap_err().is_cancelled());
    });
}

#[test]
fn what_the_generator_raises_comes_after_its_values() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        for count in FEW {
            let stream = py.call::<usize>("streams:then_raises").arg(count).arg(marks.at("runs")).stream();
            let (values, error) = until_error(stream).await;
            assert_eq!(values, (0..count).collect::<Vec<_>>());
            let Error::Python(error) = error else { panic!("{error:?}") };
            assert!(error.is_instance("LookupError") && error.message == format!("('no more', {count})"), "{error}");
            assert!(error.traceback.contains("in then_raises"), "{}", error.traceback);
        }
    });
}

#[test]
fn what_gives_nothing_to_iterate_over_is_a_type_error_and_a_generator_is_for_stream_alone() {
    run(|| async {
        let py = pool(1).await;
        for (function, text) in [("a_number", "got int"), ("text", "got str")] {
            let (values, error) = until_error(py.call::<u8>(format!("streams:{function}")).stream()).await;
            let Error::Python(error) = error else { panic!("{error:?}") };
            assert!(values.is_empty() && error.type_name == "TypeError", "{error}");
            assert!(error.message.starts_with("a stream needs a generator") && error.message.contains(text), "{error}");
        }
        for function in ["streams:numbers", "streams:instance"] {
            for _ in 0..2 {
                let values: Vec<u8> = py.call::<u8>(function).arg(1).stream().try_collect().await.unwrap();
                assert_eq!(values, [0]);
                let Err(Error::Python(error)) = py.call::<u8>(function).arg(1).await else { panic!() };
                assert!(error.to_string().contains("is an async generator function"), "{error}");
            }
        }
        let (_, error) = until_error(py.call::<u8>("streams:missing").stream()).await;
        assert!(matches!(&error, Error::Python(error) if error.type_name == "ImportError"), "{error:?}");
        let (_, error) = until_error(py.call::<u8>("nonsense").stream()).await;
        assert!(matches!(error, Error::Config(_)), "{error:?}");
    });
}

#[test]
fn a_dead_worker_ends_it_after_what_it_gave_and_it_is_not_run_again() {
    run(|| async {
        let (py, marks) = (pool(1).await.retries(2), Marks::new());
        let dies =
            |count: usize, name: &str| py.call::<usize>("streams:dies_first").arg(count).arg(marks.at(name)).stream();
        let (values, error) = until_error(dies(40, "some")).await;
        assert_eq!((values, marks.count("some")), ((0..40).collect(), 1));
        let Error::WorkerDied(death) = error else { panic!("{error:?}") };
        assert_eq!((death.exit, death.attempt, &*death.task), (Exit::Signal(9), 1, "streams:dies_first"));
        assert_eq!((dies(0, "none").try_collect::<Vec<_>>().await.unwrap().len(), marks.count("none")), (0, 2));
        let again = py.retry_on(|error| matches!(error, Error::Python(_)));
        for (count, runs) in [(0, 3), (1, 1)] {
            let name = format!("raises-{count}");
            let stream = again.call::<usize>("streams:then_raises").arg(count).arg(marks.at(&name)).stream();
            let (values, _) = until_error(stream).await;
            assert_eq!((values.len(), marks.count(&name)), (count, runs));
        }
    });
}

#[test]
fn a_value_that_can_not_travel_ends_the_stream_and_closes_the_generator() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let stream = py.call::<u8>("streams:unsendable").arg(marks.at("unsendable")).stream();
        let (values, error) = until_error(stream).await;
        assert_eq!((values, marks.count("unsendable")), (vec![0], 1));
        let Error::Remote(error) = error else { panic!("{error:?}") };
        assert_eq!(error.type_name, "object");
        assert!(error.message.starts_with("a value of type object can't be sent to Rust"), "{error}");
        let (values, error) = until_error(py.call::<u8>("streams:mixed").arg(marks.at("mixed")).stream()).await;
        assert_eq!(values, [0]);
        assert!(matches!(&error, Error::Remote(_)), "{error:?}");
        marks.until("mixed").await;
    });
}

#[test]
fn a_timeout_is_for_the_whole_stream_also_while_nobody_takes() {
    run(|| async {
        let py = pool(1).await.timeout(Duration::from_millis(200));
        for function in ["then_waits", "then_blocks"] {
            let marks = Marks::new();
            let (values, error) = until_error(waiting(&py, function, 3, &marks)).await;
            assert_eq!((values.len(), marks.count("closed")), (3, 1));
            assert!(matches!(&error, Error::TaskTimeout { task, .. } if task.ends_with(function)), "{error:?}");
        }
        let marks = Marks::new();
        let mut paused = marked(&py, "counted", 1, [marks.at("given"), marks.at("closed")]);
        assert!(paused.next().await.unwrap().is_ok());
        marks.until("closed").await;
        let (values, error) = until_error(paused).await;
        assert_eq!(values.len(), STREAM_VALUES - 1);
        assert!(matches!(error, Error::TaskTimeout { .. }), "{error:?}");
    });
}

#[test]
fn many_streams_and_tasks_go_on_at_once() {
    run(|| async {
        let py = pool(2).await;
        let from = |first: usize| py.call::<usize>("streams:numbers").arg(300).kwarg("first", first).stream();
        let streams = futures_util::future::try_join_all((0..20).map(|first| from(first).try_collect::<Vec<_>>()));
        let map = py.map::<u32, _>("tasks:same", 0..1000).try_collect::<Vec<_>>();
        let (streams, map) = tokio::join!(streams, map);
        for (first, values) in (0..).zip(streams.unwrap()) {
            assert_eq!(values, (first..first + 300).collect::<Vec<_>>());
        }
        assert_eq!(map.unwrap().len(), 1000);
    });
}

#[test]
fn a_pool_that_closes_finishes_its_streams_and_one_that_is_terminated_ends_them() {
    run(|| async {
        let py = pool(1).await;
        let mut stream = numbers(&py, 3 * STREAM_VALUES);
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        let closing = tokio::spawn({
            let py = py.clone();
            async move { py.close().await }
        });
        until(|| py.stats().state == State::Closing).await;
        assert_eq!(py.stats().unfinished, 1);
        let (_, refused) = until_error(numbers(&py, 1)).await;
        assert!(matches!(refused, Error::PoolClosed), "{refused:?}");
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), (1..3 * STREAM_VALUES).collect::<Vec<_>>());
        closing.await.unwrap().unwrap();

        let (py, marks) = (pool(1).await, Marks::new());
        let mut stream = waiting(&py, "then_waits", 1, &marks);
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        marks.until("waits").await;
        let taking = tokio::spawn(until_error(stream));
        py.terminate().await.unwrap();
        let (_, error) = taking.await.unwrap();
        assert!(matches!(error, Error::PoolTerminated), "{error:?}");
        assert_eq!(marks.count("closed"), 1);
    });
}

#[test]
fn a_stream_is_one_task_in_its_workers_life() {
    run(|| async {
        let py = builder(1).max_tasks(1).build().await.unwrap();
        let before = pids(&py.stats());
        assert_eq!(numbers(&py, 3 * STREAM_VALUES).try_collect::<Vec<_>>().await.unwrap().len(), 3 * STREAM_VALUES);
        until_gone(&before).await;
        assert_eq!(numbers(&py, 3).try_collect::<Vec<_>>().await.unwrap(), [0, 1, 2]);
    });
}
