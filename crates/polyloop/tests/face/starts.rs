//! How workers start, what they find, and what if they don't start.

use std::path::PathBuf;
use std::time::Duration;

use polyloop::{Cause, Error, RemoteError, worker_state};
use rustix::process::Signal;

use crate::rig::marks::Marks;
use crate::rig::process::send_signal;
use crate::rig::{ROLE, myself, pids, run, until};
use crate::{builder, pid, pool};

#[test]
fn a_worker_has_its_programs_name_environment_and_directory_and_no_input() {
    run(|| async {
        let pool = pool(1).await;
        let look = || {
            let mut input = String::new();
            std::io::stdin().read_line(&mut input).unwrap();
            let name = std::fs::read_to_string("/proc/self/comm").unwrap();
            (name.trim().to_owned(), std::env::current_dir().unwrap(), std::env::vars_os().count(), input)
        };
        let (name, directory, variables, input) = pool.apply(look, ()).await.unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(program.file_name().unwrap().to_str().unwrap().starts_with(&name), "{name}");
        assert_eq!(directory, std::env::current_dir().unwrap());
        assert_eq!(variables, std::env::vars_os().count());
        assert_eq!(input, "");
    });
}

#[test]
fn a_lifespan_makes_what_the_tasks_of_a_worker_share() {
    run(|| async {
        let pool = builder(1).lifespan(async || Ok(pid()), async |_| ()).build().await.unwrap();
        let shared = || worker_state::<u32>().map(|state| *state == pid());
        assert_eq!(pool.apply(shared, ()).await.unwrap(), Some(true));
        assert_eq!(pool.in_thread().apply(shared, ()).await.unwrap(), Some(true));
        assert!(pool.apply(|| worker_state::<String>().is_none(), ()).await.unwrap());
        assert_eq!(worker_state::<u32>(), None);
    });
}

async fn fail() -> Result<(), RemoteError> {
    Err(RemoteError::new("no luck"))
}

async fn panic() -> Result<(), RemoteError> {
    panic!("no luck at all")
}

#[test]
fn a_pool_whose_lifespan_fails_fails_with_its_reason() {
    run(|| async {
        let failed = builder(2).lifespan(fail, async |_| ()).build().await.err();
        assert!(matches!(&failed, Some(Error::WorkerStart(reason)) if reason == "no luck"), "{failed:?}");
        let failed = builder(2).lifespan(panic, async |_| ()).build().await.err();
        assert!(matches!(&failed, Some(Error::WorkerStart(reason)) if reason.contains("no luck at all")), "{failed:?}");
    });
}

#[test]
fn a_pool_may_have_all_the_time_there_is() {
    run(|| async {
        let times = builder(1).grace(Duration::MAX).max_age(Duration::MAX).block_warning(Duration::MAX);
        let pool = times.timeout(Duration::MAX).build().await.unwrap();
        let task = pool.spawn(async || std::future::pending::<()>().await, ());
        assert!(pool.apply(pid, ()).await.is_ok());
        task.abort();
        assert!(matches!(task.await, Err(Error::TaskAborted)));
        pool.resize(2).unwrap();
        pool.resize(1).unwrap();
        pool.terminate().await.unwrap();
    });
}

/// In a process of its own, whose program's file is gone by now.
#[test]
fn deleted_program() {
    let Ok(role) = std::env::var(ROLE) else { return };
    std::fs::remove_file(role).unwrap();
    run(|| async {
        let pool = pool(1).await;
        send_signal(pids(&pool.stats())[0], Signal::KILL);
        until(|| pool.stats().restarts(Cause::Died) == 1).await;
        assert_ne!(pool.apply(pid, ()).await.unwrap(), pid());
    });
}

#[test]
fn a_program_whose_file_is_replaced_starts_the_workers_that_it_started_before() {
    let marks = Marks::new();
    for round in ["once", "again"] {
        let copy: PathBuf = marks.at(round);
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        // Another thread may be starting a process, which holds the new file open for writing until it has begun.
        let mut command = myself(&copy, "starts::deleted_program", copy.to_str().unwrap());
        let status = loop {
            match command.stdout(std::process::Stdio::null()).status() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => continue,
                status => break status.unwrap(),
            }
        };
        // The second runtime of the test finds the file gone, which is no matter for the program that runs.
        assert!(status.success() || !copy.exists(), "{status}");
        assert!(!copy.exists());
    }
}
