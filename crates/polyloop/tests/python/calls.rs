//! Single calls: what is called, what comes of it, and what ends it.

use std::time::Duration;

use polyloop::{Error, PythonPool};
use rustix::process::Signal;

use crate::python::{builder, pids, pool, run, until_ready};
use crate::rig::{Marks, send_signal, until};

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
        let worker = pids(&py);
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
        assert_eq!(pids(&py), worker);
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
fn a_call_that_is_dropped_cancels_its_coroutine() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let call = py.call::<()>("tasks:wait_for_ever").arg(marks.at("begun")).arg(marks.at("ended"));
        tokio::select! {
            _ = call => panic!(),
            () = marks.until("begun") => (),
        }
        marks.until("ended").await;
        until(|| py.stats().unfinished == 0).await;
    });
}

#[test]
fn a_task_runs_on_without_its_handle_and_ends_when_it_is_aborted() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        drop(py.call::<u64>("tasks:mark").arg(marks.at("detached")).spawn());
        marks.until("detached").await;
        let task = py.call::<()>("tasks:wait_for_ever").arg(marks.at("begun")).arg(marks.at("ended")).spawn();
        marks.until("begun").await;
        assert!(!task.is_finished());
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        assert_eq!(marks.count("ended"), 1);
    });
}

#[test]
fn a_plain_function_that_blocks_is_interrupted_when_its_time_is_up_or_nobody_waits() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let worker = pids(&py);
        let late = py.call::<()>("tasks:block").arg(marks.at("late")).timeout(Duration::from_millis(50)).await;
        let Err(Error::TaskTimeout { task, timeout }) = late else { panic!("{late:?}") };
        assert_eq!((&*task, timeout), ("tasks:block", Duration::from_millis(50)));
        let task = py.call::<()>("tasks:block").arg(marks.at("begun")).spawn();
        marks.until("begun").await;
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        assert_eq!(py.call::<u32>("os:getpid").await.unwrap(), worker[0], "the worker lives");
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

#[test]
fn plain_functions_run_beside_the_loop_where_that_is_wanted() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let name = "threading:current_thread().name";
        assert!(matches!(py.call::<String>(name).await, Err(Error::Python(_))), "an attribute is no expression");
        let main = py.call::<u64>("threading:get_ident").await.unwrap();
        assert_ne!(py.in_thread().call::<u64>("threading:get_ident").await.unwrap(), main);
        assert_ne!(py.call::<u64>("threading:get_ident").in_thread().await.unwrap(), main);
        let _task = py.in_thread().call::<()>("tasks:block").arg(marks.at("begun")).spawn();
        marks.until("begun").await;
        assert_eq!(py.call::<u64>("threading:get_ident").await.unwrap(), main, "the loop is free");
        py.terminate().await.unwrap();
    });
}

#[test]
fn ctrl_c_is_not_the_workers_business() {
    run(|| async {
        let py = pool(1).await;
        let worker = pids(&py)[0];
        send_signal(worker, Signal::INT);
        assert_eq!(py.call::<u32>("os:getpid").await.unwrap(), worker);
        py.resize(2).unwrap();
        // Also while they start.
        until(|| pids(&py).len() == 2).await;
        let workers = pids(&py);
        workers.iter().for_each(|worker| send_signal(*worker, Signal::INT));
        until_ready(&py, 2).await;
        assert_eq!(pids(&py), workers);
    });
}

#[test]
fn calls_can_be_made_from_any_thread() {
    run(|| async {
        let py = builder(2).build().await.unwrap();
        until_ready(&py, 2).await;
        let call = |py: PythonPool| async move { py.call::<u64>("tasks:same").arg(7).await.unwrap() };
        let calls: Vec<_> = (0..50).map(|_| tokio::spawn(call(py.clone()))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), 7);
        }
    });
}
