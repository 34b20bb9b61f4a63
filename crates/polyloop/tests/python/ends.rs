//! Pools that end: closed, terminated, dropped, with their process.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use polyloop::{Error, State};

use crate::python::{builder, pids, pool, run, until_ready};
use crate::rig::{Marks, ROLE, myself, until, until_gone};

#[test]
fn a_pool_that_closes_finishes_what_it_accepted_and_takes_no_more() {
    run(|| async {
        let py = builder(2).max_tasks(30).build().await.unwrap();
        let tasks: Vec<_> = (0..100u32).map(|n| py.call::<u32>("tasks:same").arg(n).spawn()).collect();
        py.close().await.unwrap();
        for (n, task) in (0..).zip(tasks) {
            assert_eq!(task.await.unwrap(), n);
        }
        assert!(matches!(py.call::<u32>("tasks:same").arg(1).await, Err(Error::PoolClosed)));
        assert_eq!(py.stats().state, State::Closed);
        assert!(py.stats().workers.is_empty());
    });
}

#[test]
fn a_pool_that_is_dropped_or_terminated_leaves_no_process() {
    run(|| async {
        for is_dropped in [true, false] {
            let (py, marks) = (pool(2).await, Marks::new());
            until_ready(&py, 2).await;
            let workers = pids(&py);
            let task = py.call::<()>("tasks:wait_for_ever").arg(marks.at("begun")).arg(marks.at("ended")).spawn();
            marks.until("begun").await;
            if is_dropped {
                drop(py);
            } else {
                py.terminate().await.unwrap();
            }
            assert!(matches!(task.await, Err(Error::PoolTerminated)));
            until_gone(&workers).await;
            assert_eq!(marks.count("ended"), 1);
        }
    });
}

#[test]
fn a_pool_that_is_resized_has_so_many_workers() {
    run(|| async {
        let py = pool(1).await;
        py.resize(2).unwrap();
        until_ready(&py, 2).await;
        py.resize(1).unwrap();
        until(|| pids(&py).len() == 1).await;
        assert!(matches!(py.resize(0), Err(Error::Config(_))));
    });
}

/// In a process of its own: two workers, one idle, one that blocks; says who they are, and waits to be killed.
#[test]
fn parent_process() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    run(|| async {
        let (py, marks) = (pool(2).await, Marks::new());
        until_ready(&py, 2).await;
        drop(py.call::<()>("tasks:block").arg(marks.at("begun")).spawn());
        marks.until("begun").await;
        println!("workers: {:?}", pids(&py));
        std::future::pending().await
    });
}

#[test]
fn workers_end_with_a_parent_that_is_killed() {
    run(|| async {
        let program = std::env::current_exe().unwrap();
        let mut parent = myself(&program, "ends::parent_process", "parent").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
        let workers = lines.find_map(|line| Some(line.split_once("workers: [")?.1.trim_end_matches(']').to_owned()));
        let workers: Vec<u32> = workers.unwrap().split(", ").map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(workers.len(), 2);
        parent.kill().unwrap();
        parent.wait().unwrap();
        until_gone(&workers).await;
    });
}
