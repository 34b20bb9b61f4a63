//! `retry_on`: which errors are a reason to run a Python task again.

use std::time::Duration;

use futures_util::StreamExt;
use polyloop::{Error, PythonError};

use crate::rig::marks::Marks;
use crate::rig::python::run;
use crate::{builder, pool};

fn raises(class: &'static str) -> impl Fn(&Error) -> bool + Send + Sync + 'static {
    move |error| matches!(error, Error::Python(error) if error.is_instance(class))
}

#[test]
fn an_exception_knows_the_classes_that_its_own_is_derived_from() {
    run(|| async {
        let py = pool(1).await;
        let raised = async |function: &str| -> PythonError {
            match py.call::<()>(function).await {
                Err(Error::Python(error)) => error,
                other => panic!("{other:?}"),
            }
        };
        let error = raised("tasks:raise_derived").await;
        assert_eq!(error.type_name, "tasks.Outer.Derived");
        assert_eq!(
            error.bases,
            ["ConnectionResetError", "ConnectionError", "OSError", "tasks.Custom", "Exception", "BaseException"]
        );
        for class in ["tasks.Outer.Derived", "tasks.Custom", "ConnectionError", "builtins.OSError", "BaseException"] {
            assert!(error.is_instance(class), "{class}");
        }
        for class in ["Derived", "Custom", "IOError", "tasks.OSError", "object", "TimeoutError"] {
            assert!(!error.is_instance(class), "{class}");
        }
        assert_eq!(raised("sys:exit").await.bases, ["BaseException"]);
    });
}

#[test]
fn a_task_that_raises_runs_again_where_that_is_a_reason_and_as_often_as_it_may() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let call = |times: u32, name: &str| py.call::<u32>("tasks:raise_first").arg(times).arg(marks.at(name));
        assert!(matches!(call(1, "final").retries(2).await, Err(Error::Python(_))));
        assert_eq!(marks.count("final"), 1, "the death of its worker is the only reason where nobody says otherwise");
        assert_eq!(call(2, "applied").retries(2).retry_on(raises("ConnectionError")).await.unwrap(), 3);
        assert_eq!(call(2, "spawned").retries(2).retry_on(raises("tasks.Custom")).spawn().await.unwrap(), 3);
        let failed = call(9, "failed").retries(2).retry_on(raises("OSError")).await;
        assert!(matches!(&failed, Err(Error::Python(error)) if error.message == "too early"), "{failed:?}");
        assert_eq!(marks.count("failed"), 3);
        assert!(call(1, "other").retries(2).retry_on(raises("ValueError")).await.is_err());
        assert_eq!((marks.count("other"), py.stats().retried), (1, 6));
    });
}

#[test]
fn each_item_of_a_map_is_judged() {
    run(|| async {
        let (py, marks) = (builder(2).retries(1).retry_on(raises("OSError")).build().await.unwrap(), Marks::new());
        let items = (0..100u32).map(|n| (n % 2, marks.at(&n.to_string())));
        let results: Vec<_> = py.starmap::<u32, _>("tasks:raise_first", items).collect().await;
        for (n, result) in (0..).zip(results) {
            assert_eq!(result.unwrap(), 1 + n % 2);
        }
        assert_eq!(py.stats().retried, 50);
    });
}

#[test]
fn deaths_and_timeouts_are_judged_too() {
    run(|| async {
        let (py, marks) = (pool(1).await.retries(1), Marks::new());
        let died = py.retry_on(raises("OSError")).call::<u32>("tasks:die_first").arg(1).arg(marks.at("final")).await;
        assert!(matches!(&died, Err(Error::WorkerDied(death)) if death.attempt == 1), "{died:?}");
        let again = py.retry_on(|error| matches!(error, Error::WorkerDied(_) | Error::TaskTimeout { .. }));
        assert_eq!(again.call::<u32>("tasks:die_first").arg(1).arg(marks.at("again")).await.unwrap(), 2);
        let late = again.timeout(Duration::from_millis(100)).call::<()>("tasks:block").arg(marks.at("late")).await;
        assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
        assert_eq!((marks.count("final"), marks.count("late")), (1, 2));
        let poison = py.retries(9).retry_on(|_| true).call::<()>("tasks:die").await;
        assert!(matches!(&poison, Err(Error::PoisonTask(death)) if death.attempt == 3), "{poison:?}");
    });
}

#[test]
fn a_task_of_which_the_predicate_panics_ends_with_its_own_error() {
    run(|| async {
        let (py, marks) = (pool(1).await.retries(3), Marks::new());
        let broken = py.retry_on(|_| panic!("the predicate's own"));
        let failed = broken.call::<u32>("tasks:raise_first").arg(9).arg(marks.at("begun")).await;
        assert!(matches!(&failed, Err(Error::Python(error)) if error.message == "too early"), "{failed:?}");
        assert_eq!(marks.count("begun"), 1);
        assert_eq!(py.call::<u8>("tasks:same").arg(1).await.unwrap(), 1);
    });
}
