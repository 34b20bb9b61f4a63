//! Workers that start, or can't.

use std::path::{Path, PathBuf};

use polyloop::{Error, PythonPool};

use crate::rig::marks::Marks;
use crate::rig::process::send_signal;
use crate::rig::python::{interpreter, run};
use crate::rig::{pids, until, until_gone};
use crate::{MODULES, builder};

/// Why a pool of these workers can't be made.
async fn refusal(builder: polyloop::PythonBuilder) -> String {
    match builder.processes(1).build().await {
        Err(Error::WorkerStart(reason)) => reason,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it starts"),
    }
}

const INSTALL: &str = concat!("-m pip install polyloop==", env!("CARGO_PKG_VERSION"));

/// A directory with a package of this name.
fn package(marks: &Marks, name: &str, content: &str) -> PathBuf {
    let directory = marks.at("modules");
    std::fs::create_dir_all(directory.join(name)).unwrap();
    std::fs::write(directory.join(name).join("__init__.py"), content).unwrap();
    directory
}

#[test]
fn an_interpreter_without_the_package_is_told_what_to_install() {
    run(|| async {
        let marks = Marks::new();
        // Without its site directory, the interpreter has nothing that was installed.
        let script = marks.at("bare");
        let bare = format!("#!/bin/sh\nexec '{}' -S -E \"$@\"\n", interpreter().unwrap().display());
        std::fs::write(&script, bare).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let reason = refusal(PythonPool::builder().interpreter(&script)).await;
        assert!(reason.contains("has no polyloop: run") && reason.contains(INSTALL), "{reason}");
        // A name is said of it, of which there must be nothing in the way.
        let reason = refusal(PythonPool::builder().interpreter(&script).current_dir("/")).await;
        assert!(reason.contains("has no polyloop"), "{reason}");
    });
}

#[test]
fn a_package_of_another_version_is_told_what_to_install() {
    run(|| async {
        let marks = Marks::new();
        for (content, told) in [
            ("__version__ = '0.0.9'", "has polyloop 0.0.9, and this program needs "),
            ("", "has polyloop of an unknown version, and this program needs "),
            (
                concat!("__version__ = '", env!("CARGO_PKG_VERSION"), "'"),
                "has a polyloop that it can't import (cannot import name '_core' from 'polyloop'",
            ),
            ("import no_such_module", "has a polyloop that it can't import (No module named 'no_such_module')"),
        ] {
            let path = package(&marks, "polyloop", content);
            let reason =
                refusal(PythonPool::builder().interpreter(interpreter().unwrap()).env("PYTHONPATH", path)).await;
            assert!(reason.contains(told) && reason.contains(INSTALL), "{reason}");
        }
    });
}

#[test]
fn an_interpreter_that_is_not_there_or_none_is_named() {
    run(|| async {
        let reason = refusal(PythonPool::builder().venv("no/such/venv")).await;
        assert!(reason.contains("no/such/venv/bin/python can't be run") && reason.contains("pip install"), "{reason}");
        let reason = refusal(PythonPool::builder().interpreter("/bin/false")).await;
        assert!(reason.contains("exit code 1"), "{reason}");
        let reason = refusal(builder(1).current_dir("/no/such/directory")).await;
        assert!(reason.contains("/no/such/directory is no directory"), "{reason}");
    });
}

#[test]
fn workers_are_prepared_as_they_are_ordered_to_be() {
    run(|| async {
        let marks = Marks::new();
        let directory = marks.at("directory");
        std::fs::create_dir(&directory).unwrap();
        let path = package(&marks, "own", "from tasks import was_prepared");
        let py = builder(1)
            .module_path(path)
            .initializer("tasks:initialize")
            .lifespan("tasks:lifespan")
            .loop_initializer("asyncio:new_event_loop")
            .preload("own")
            .env("INITIALIZED", "yes")
            .env("LEFT", marks.at("left"))
            .current_dir(&directory)
            .build()
            .await
            .unwrap();
        let (initialized, state, cwd): (String, String, PathBuf) = py.call("own:was_prepared").await.unwrap();
        assert_eq!((initialized.as_str(), state.as_str()), ("yes", "state"));
        assert_eq!(cwd.canonicalize().unwrap(), directory.canonicalize().unwrap());
        assert!(py.call::<bool>("tasks:input_is_empty").await.unwrap());
        py.close().await.unwrap();
        assert_eq!(marks.count("left"), 1);
    });
}

#[test]
fn a_worker_that_can_not_be_prepared_says_why() {
    run(|| async {
        let reason = refusal(builder(1).initializer("tasks:initialize_badly")).await;
        assert!(reason.contains("RuntimeError: no luck") && reason.contains("in initialize_badly"), "{reason}");
        let reason = refusal(builder(1).preload("no_such_module")).await;
        assert!(reason.contains("No module named 'no_such_module'"), "{reason}");
        let reason = refusal(builder(1).initializer("tasks:nothing")).await;
        assert!(reason.contains("cannot import name 'nothing' from 'tasks'"), "{reason}");
        let refused = builder(1).initializer("tasks").build().await;
        assert!(matches!(refused.err(), Some(Error::Config(_))));
        assert!(matches!(builder(0).build().await.err(), Some(Error::Config(_))));
    });
}

#[test]
fn a_package_that_changes_while_a_pool_lives_is_told_in_place_of_a_worker() {
    run(|| async {
        let marks = Marks::new();
        let changed = package(&marks, "empty", "");
        let py = builder(1).env("PYTHONPATH", &changed).build().await.unwrap();
        let worker = pids(&py.stats());
        package(&marks, "polyloop", "__version__ = '0.0.9'");
        send_signal(worker[0], rustix::process::Signal::KILL);
        until_gone(&worker).await;
        until(|| py.stats().state == polyloop::State::Degraded).await;
        std::fs::remove_dir_all(changed.join("polyloop")).unwrap();
        // It is tried again, and again.
        assert_eq!(py.call::<u8>("tasks:same").arg(1).await.unwrap(), 1);
    });
}

#[test]
fn a_relative_path_of_an_interpreter_is_this_programs() {
    run(|| async {
        let absolute = interpreter().unwrap();
        let up: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
        let relative = up.join(absolute.strip_prefix("/").unwrap());
        let py = PythonPool::builder().interpreter(relative).current_dir("/").module_path(MODULES).processes(1);
        assert_eq!(py.build().await.unwrap().call::<PathBuf>("os:getcwd").await.unwrap(), Path::new("/"));
    });
}
