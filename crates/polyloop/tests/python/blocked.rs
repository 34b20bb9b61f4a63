//! Where a worker is that is blocked.

use std::time::Duration;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::builder;
use crate::rig::heard::{News, hear};
use crate::rig::marks::{Marks, mark};
use crate::rig::python::run;
use crate::rig::{pids, until};

const BLOCK: Duration = Duration::from_millis(100);

#[test]
fn a_blocked_worker_is_told_with_its_stack_as_far_as_that_is_the_users() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = builder(1).preload("logs").block_warning(BLOCK).build().await.unwrap();
        // On a busy machine a worker may be blocked by less than that.
        let is_expected = |news: &&News| news.fields.get("stack").is_some_and(|stack| stack.contains("in block_until"));
        for round in 0..2 {
            let marks = Marks::new();
            let task = py.call::<()>("logs:block_until").arg(marks.at("begun")).arg(marks.at("end")).spawn();
            marks.until("begun").await;
            until(|| heard.of("polyloop").iter().filter(is_expected).count() > round).await;
            let told = heard.of("polyloop").iter().rfind(is_expected).unwrap().clone();
            assert!(told.text().starts_with("a worker is blocked"), "{told:?}");
            mark(&marks.at("end"));
            task.await.unwrap();
            assert_eq!((told.level, told.number("pid")), (Level::WARN, pids(&py.stats())[0].into()));
            assert!(told.number("blocked_ms") >= 100);
            let stack = told.get("stack");
            assert!(stack.contains("logs.py\""), "{stack}");
            assert!(!stack.contains("_worker.py"), "{stack}");
        }
    });
}

#[test]
fn a_worker_that_does_not_answer_is_told_without_a_stack_and_lives() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = builder(1).preload("logs").block_warning(BLOCK).build().await.unwrap();
        let (marks, worker) = (Marks::new(), pids(&py.stats()));
        let task = py.call::<()>("logs:stop_until").arg(marks.at("begun")).arg(marks.at("end")).spawn();
        marks.until("begun").await;
        let is_expected =
            |news: &News| news.text().starts_with("a worker is blocked") && !news.fields.contains_key("stack");
        until(|| heard.of("polyloop").iter().any(is_expected)).await;
        mark(&marks.at("end"));
        task.await.unwrap();
        assert_eq!(pids(&py.stats()), worker);
    });
}
