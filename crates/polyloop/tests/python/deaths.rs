//! Workers that die.

use polyloop::{Cause, Error, Exit};
use rustix::process::Signal;

use crate::python::{pids, pool, run, until_ready};
use crate::rig::{Marks, send_signal, until};

#[test]
fn a_worker_that_is_killed_fails_its_tasks_and_another_takes_its_place() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let worker = pids(&py)[0];
        let task = py.call::<()>("tasks:wait_for_ever").arg(marks.at("begun")).arg(marks.at("ended")).spawn();
        marks.until("begun").await;
        send_signal(worker, Signal::KILL);
        let Err(Error::WorkerDied(death)) = task.await else { panic!() };
        assert_eq!((death.pid, death.exit, death.attempt), (Some(worker), Exit::Signal(9), 1));
        assert_eq!(death.task, "tasks:wait_for_ever");
        assert_ne!(py.call::<u32>("os:getpid").await.unwrap(), worker);
        until(|| py.stats().restarts(Cause::Died) == 1).await;
    });
}

#[test]
fn a_task_whose_worker_dies_is_run_again_as_often_as_it_may() {
    run(|| async {
        let (py, marks) = (pool(1).await, Marks::new());
        let starts = py.call("tasks:die_first").arg(1).arg(marks.at("begun")).retries(1).await;
        assert_eq!(starts.map_err(|error: Error| error.to_string()), Ok(2u32));
        assert_eq!(py.stats().retried, 1);
        let poison = py.retries(5).call::<()>("tasks:die").await;
        assert!(matches!(poison, Err(Error::PoisonTask(_))), "{poison:?}");
    });
}

#[test]
fn a_map_goes_on_while_its_workers_are_killed() {
    use futures_util::TryStreamExt;
    run(|| async {
        let py = pool(2).await.retries(10);
        until_ready(&py, 2).await;
        let killing = async {
            for _ in 0..3 {
                until(|| py.stats().workers.iter().any(|worker| worker.in_flight > 0)).await;
                if let Some(pid) = pids(&py).first() {
                    // It may be gone already.
                    let _ = rustix::process::kill_process(
                        rustix::process::Pid::from_raw(*pid as i32).unwrap(),
                        Signal::KILL,
                    );
                }
                tokio::task::yield_now().await;
            }
        };
        let all = py.map::<u64, _>("tasks:same", 0..5000).try_collect::<Vec<u64>>();
        let (all, ()) = tokio::join!(all, killing);
        assert_eq!(all.unwrap(), (0..5000).collect::<Vec<_>>());
    });
}
