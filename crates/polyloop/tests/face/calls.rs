//! What can be a task, what its arguments and results can be, and how it fails by itself.

use std::fmt::Display;
use std::time::Duration;

use futures_util::TryStreamExt;
use polyloop::{Error, RemoteError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rig::run;
use crate::{pid, pool};

async fn add_later(a: u64, b: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(1)).await;
    a + b
}

fn show<T: Display>(value: T) -> String {
    format!("<{value}>")
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: f64,
    y: f64,
}

impl Point {
    fn mirrored(self) -> Self {
        Self { x: -self.x, y: self.y }
    }
}

#[test]
fn functions_async_ones_generic_ones_methods_and_closures_run_in_a_worker() {
    run(|| async {
        let pool = pool(1).await;
        assert_ne!(pool.apply(pid, ()).await.unwrap(), std::process::id());
        assert_eq!(pool.apply(add_later, (40, 2)).await.unwrap(), 42);
        assert_eq!(pool.apply(show::<u8>, (7,)).await.unwrap(), "<7>");
        assert_eq!(pool.apply(show::<String>, ("x".to_owned(),)).await.unwrap(), "<x>");
        assert_eq!(pool.apply(Point::mirrored, (Point { x: 1.0, y: 2.0 },)).await.unwrap(), Point { x: -1.0, y: 2.0 });
        assert_eq!(pool.apply(|a: i32, b: i32| a - b, (1, 3)).await.unwrap(), -2);
        assert_eq!(pool.apply(async |s: String| s.len(), ("four".to_owned(),)).await.unwrap(), 4);
        let many = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| [a, b, c, d, e, f, g, h];
        assert_eq!(pool.apply(many, (1, 2, 3, 4, 5, 6, 7, 8)).await.unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
    });
}

#[test]
fn a_pool_and_what_it_gives_may_go_to_other_threads() {
    fn is_send<T: Send>(_: &T) {}
    fn is_shared<T: Clone + Send + Sync>(_: &T) {}
    run(|| async {
        let pool = pool(1).await;
        is_shared(&pool);
        is_send(&pool.apply(add_later, (1, 2)));
        is_send(&pool.spawn(add_later, (1, 2)));
        is_send(&pool.starmap(add_later, [(1, 2)]).unordered());
        let elsewhere = pool.clone();
        let sum = tokio::spawn(async move { elsewhere.apply(add_later, (1, 2)).await });
        assert_eq!(sum.await.unwrap().unwrap(), 3);
    });
}

#[test]
fn what_a_task_spawns_runs_on_its_workers_loop() {
    run(|| async {
        let pool = pool(1).await;
        let spawns = async |n: u32| {
            let inner = tokio::spawn(async move {
                tokio::task::yield_now().await;
                n + 1
            });
            inner.await.unwrap_or_default()
        };
        assert_eq!(pool.apply(spawns, (1,)).await.unwrap(), 2);
    });
}

#[test]
fn an_error_of_the_task_is_the_tasks_own() {
    run(|| async {
        let pool = pool(1).await;
        let parse = |text: String| -> Result<u32, RemoteError> { Ok(text.parse()?) };
        assert_eq!(pool.apply(parse, ("5".to_owned(),)).await.unwrap().unwrap(), 5);
        let error = pool.apply(parse, ("five".to_owned(),)).await.unwrap().unwrap_err();
        assert_eq!(error.message, "invalid digit found in string");
        assert!(error.type_name.contains("ParseIntError"), "{}", error.type_name);
        let own: Result<u8, String> = pool.apply(|| Err("mine".to_owned()), ()).await.unwrap();
        assert_eq!(own, Err("mine".to_owned()));
        // They do not end a map.
        let items = ["1".to_owned(), "one".to_owned(), "2".to_owned()];
        let values: Vec<Result<u32, RemoteError>> = pool.map(parse, items).try_collect().await.unwrap();
        assert!(matches!(values[..], [Ok(1), Err(_), Ok(2)]), "{values:?}");
    });
}

#[test]
fn a_panic_is_told_with_message_place_and_stack_and_its_worker_lives() {
    run(|| async {
        let pool = pool(1).await;
        let worker = pool.apply(pid, ()).await.unwrap();
        let plain = pool.apply(|n: u8| -> u8 { panic!("at {n}") }, (1,)).await;
        let late = async |n: u8| -> u8 {
            tokio::task::yield_now().await;
            panic!("at {n}")
        };
        for failed in [plain, pool.apply(late, (1,)).await] {
            let Err(Error::TaskPanicked(panic)) = failed else { panic!("{failed:?}") };
            assert_eq!(panic.message, "at 1");
            assert!(panic.location.contains("calls.rs:"), "{}", panic.location);
            assert!(!panic.backtrace.is_empty());
        }
        let in_thread = pool.in_thread().apply(|| -> u8 { panic!("off the loop") }, ()).await;
        assert!(matches!(in_thread, Err(Error::TaskPanicked(panic)) if panic.message == "off the loop"));
        let odd = pool.apply(|| -> () { std::panic::panic_any(5) }, ()).await;
        assert!(matches!(odd, Err(Error::TaskPanicked(panic)) if panic.message.contains("no text")));
        assert_eq!(pool.apply(pid, ()).await.unwrap(), worker);
        assert_eq!(pool.stats().failed, 4);
    });
}

/// Can be written, or read, only where it says so.
struct Picky {
    write: bool,
    read: bool,
}

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.write {
            return Err(serde::ser::Error::custom("not me"));
        }
        serializer.serialize_bool(self.read)
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match bool::deserialize(deserializer)? {
            true => Ok(Self { write: true, read: true }),
            false => Err(serde::de::Error::custom("not there")),
        }
    }
}

#[test]
fn what_can_not_travel_is_an_error_that_names_its_type() {
    run(|| async {
        let pool = pool(1).await;
        let take = |_: Picky| ();
        let unsent = pool.apply(take, (Picky { write: false, read: true },)).await;
        assert!(matches!(&unsent, Err(Error::Unsendable(error)) if error.message.contains("Picky")), "{unsent:?}");
        assert_eq!(pool.stats().done + pool.stats().failed, 0, "nothing was queued");
        let unread = pool.apply(take, (Picky { write: true, read: false },)).await;
        assert!(matches!(&unread, Err(Error::Remote(error)) if error.message.contains("Picky")), "{unread:?}");
        let give = |write: bool, read: bool| Picky { write, read };
        for given in [(false, true), (true, false)] {
            let Err(Error::Remote(error)) = pool.apply(give, given).await else { panic!("{given:?}") };
            assert!(error.message.contains("Picky"), "{error:?}");
        }
        assert!(pool.apply(give, (true, true)).await.unwrap().read);
    });
}
