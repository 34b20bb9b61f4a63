//! Single calls: what is called, what comes of it, and what ends it.

use std::time::Duration;

use futures_util::StreamExt;
use polyloop::Error;

use crate::rig::marks::Marks;
use crate::rig::pids;
use crate::rig::python::run;
use crate::{builder, pool};

type Args = ((u8, String), std::collections::BTreeMap<String, i32>);

#[test]
fn coroutines_and_plain_functions_are_called_with_arguments_by_position_and_by_name() {
    run(|| async {
        let py = pool(1).await;
        for function in ["tasks:coroutine", "tasks:plain"] {
            let ((one, two), named): Args =
                py.call(function).arg(1).kwarg("x", -1).arg("two").kwarg("y", 5).await.unwrap();
            assert_eq!((one, two.as_str(), named["x"], named["y"]), (1, "two", -1, 5), "{function}");
            let (args, named): (Vec<u8>, std::collections::BTreeMap<String, u8>) = py.call(function).await.unwrap();
            assert!(args.is_empty() && named.is_empty());
        }
        assert_eq!(py.call::<f64>("math:sqrt").arg(2.25).await.unwrap(), 1.5);
        assert_eq!(py.call::<String>("os.path:join").arg("a").arg("b").await.unwrap(), "a/b");
        assert_eq!(py.call::<Vec<u8>>("tasks:Color.RED.encode").await.unwrap(), b"red");
    });
}

#[test]
fn an_exception_has_type_message_and_traceback_and_its_worker_lives() {
    run(|| async {
        let py = pool(1).await;
        let worker = pids(&py.stats());
        let Err(Error::Python(error)) = py.call::<()>("tasks:raise_custom").arg("what").await else { panic!() };
        assert_eq!((error.type_name.as_str(), error.message.as_str()), ("tasks.Custom", "what"));
        assert_eq!(error.to_string(), "tasks.Custom: what");
        for text in ["ValueError: invalid literal", "tasks.py", "in raise_custom", "tasks.Custom: what"] {
            assert!(error.traceback.contains(text), "{text}: {}", error.traceback);
        }
        assert!(!error.traceback.contains("_worker.py"), "{}", error.traceback);
        let Err(Error::Python(error)) = py.call::<()>("tasks:raise_speechless").await else { panic!() };
        assert_eq!(error.type_name, "tasks.Speechless");
        let Err(Error::Python(error)) = py.call::<()>("sys:exit").arg(3).await else { panic!() };
        assert_eq!((error.type_name.as_str(), error.message.as_str()), ("SystemExit", "3"));
        let Err(Error::Python(error)) = py.call::<()>("tasks:call_own_pool").await else { panic!() };
        assert_eq!(error.to_string(), "RuntimeError: the pool belongs to a Rust program: its tasks can't call it");
        assert_eq!(pids(&py.stats()), worker);
        assert_eq!(py.stats().failed, 4);
    });
}

#[test]
fn what_can_not_be_imported_or_called_is_an_import_error_or_a_type_error() {
    run(|| async {
        let py = pool(1).await;
        for (function, type_name, message) in [
            ("no_such_module:f", "ModuleNotFoundError", "No module named 'no_such_module'"),
            ("tasks:no_such_function", "ImportError", "cannot import name 'no_such_function' from 'tasks'"),
            ("tasks:Color.GREEN", "ImportError", "cannot import name 'Color.GREEN' from 'tasks'"),
            ("threading:current_thread().name", "ImportError", "cannot import name 'current_thread().name'"),
            ("tasks:not_callable", "TypeError", "expected a function"),
            ("tasks:async_generator", "TypeError", "async generator function"),
        ] {
            let Err(Error::Python(error)) = py.call::<()>(function).await else { panic!("{function}") };
            assert_eq!(error.type_name, type_name);
            assert!(error.message.contains(message), "{error}");
        }
        for name in ["", "tasks", "tasks:", ":f", "a:b:c"] {
            assert!(matches!(py.call::<()>(name).await, Err(Error::Config(_))), "{name}");
        }
        assert_eq!(py.call::<u8>("tasks:same").arg(1).await.unwrap(), 1);
    });
}

#[test]
fn a_call_has_options_of_its_own() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let late = py.call::<()>("tasks:block").arg(marks.at("late")).timeout(Duration::from_millis(50)).await;
        let Err(Error::TaskTimeout { task, timeout }) = late else { panic!("{late:?}") };
        assert_eq!((&*task, timeout), ("tasks:block", Duration::from_millis(50)));
        let starts: u32 = py.call("tasks:die_first").arg(1).arg(marks.at("starts")).retries(1).await.unwrap();
        assert_eq!(starts, 2);
        let died = py.retries(1).call::<u32>("tasks:die_first").arg(9).arg(marks.at("once")).retries(0).await;
        let Err(Error::WorkerDied(death)) = died else { panic!("{died:?}") };
        assert_eq!((&*death.task, death.attempt), ("tasks:die_first", 1));
        let main = py.call::<u64>("threading:get_ident").await.unwrap();
        assert_ne!(py.call::<u64>("threading:get_ident").in_thread().await.unwrap(), main);
        assert_ne!(py.in_thread().call::<u64>("threading:get_ident").await.unwrap(), main);
    });
}

#[test]
fn items_of_a_map_that_can_not_be_called_are_refused() {
    run(|| async {
        let py = pool(1).await;
        let results: Vec<Result<i64, Error>> = py.map("builtins:int", ["1", "x", "3"]).collect().await;
        assert!(matches!(results[..], [Ok(1), Err(Error::Python(_)), Ok(3)]), "{results:?}");
        let results: Vec<Result<i64, Error>> = py.starmap("builtins:pow", [1, 2]).collect().await;
        assert!(results.iter().all(|result| matches!(result, Err(Error::Unsendable(_)))), "{results:?}");
        let results: Vec<Result<i64, Error>> = py.map("nonsense", [1, 2]).collect().await;
        assert!(matches!(results[..], [Err(Error::Config(_))]), "{results:?}");
    });
}

#[test]
fn a_module_that_is_being_imported_when_a_tasks_time_is_up_is_imported_whole() {
    run(|| async {
        let marks = Marks::new();
        let py = builder(1).env("IMPORTED", marks.at("imported")).build().await.unwrap();
        let late = py.timeout(Duration::from_millis(50)).call::<()>("slow:block").await;
        assert!(matches!(late, Err(Error::TaskTimeout { .. })), "{late:?}");
        assert!(py.call::<bool>("slow:is_whole").await.unwrap());
        assert_eq!(marks.count("imported"), 1);
    });
}
