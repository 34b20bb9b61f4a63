//! Where a worker is that is blocked.

use std::time::Duration;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::builder;
use crate::rig::heard::hear;
use crate::rig::marks::{Marks, mark};
use crate::rig::python::run;
use crate::rig::{pids, until};

const BLOCK: Duration = Duration::from_millis(100);

#[test]
fn a_blocked_worker_is_told_with_its_stack_as_far_as_that_is_the_users() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = builder(1).block_warning(BLOCK).build().await.unwrap();
        for round in 1..=2 {
            let marks = Marks::new();
            let task = py.call::<()>("logs:block_until").arg(marks.at("begun")).arg(marks.at("end")).spawn();
            marks.until("begun").await;
            until(|| heard.all().len() == round).await;
            let told = heard.until("a worker is blocked").await;
            mark(&marks.at("end"));
            task.await.unwrap();
            assert_eq!((told.level, told.number("pid")), (Level::WARN, pids(&py.stats())[0].into()));
            assert!(told.number("blocked_ms") >= 100);
            let stack = told.get("stack");
            assert!(stack.contains("logs.py\"") && stack.contains("in block_until"), "{stack}");
            assert!(!stack.contains("_worker.py"), "{stack}");
        }
    });
}

#[test]
fn a_worker_that_does_not_answer_is_told_without_a_stack_and_lives() {
    run(|| async {
        let (heard, _guard) = hear(LevelFilter::WARN);
        let py = builder(1).block_warning(BLOCK).build().await.unwrap();
        let (marks, worker) = (Marks::new(), pids(&py.stats()));
        let task = py.call::<()>("logs:stop_until").arg(marks.at("begun")).arg(marks.at("end")).spawn();
        let told = heard.until("a worker is blocked").await;
        assert!(!told.fields.contains_key("stack"), "{told:?}");
        mark(&marks.at("end"));
        task.await.unwrap();
        assert_eq!(pids(&py.stats()), worker);
    });
}
