//! What takes a process of its own: this program once more, which plays a scene instead of a test. Its end, its limits and
//! its environment are nobody else's.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use polyloop::{Cause, Error, State};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::pool::{PoolBuilder, WorkerPool, over_each_kind, pool};
use crate::rig::buffers::{LARGE, ramp};
use crate::rig::heard::hear;
use crate::rig::marks::Marks;
use crate::rig::process::{process_state, send_signal};
use crate::rig::{self, ROLE, until, until_gone};
use crate::tasks::{FAULT, Kind, Task};

over_each_kind! {
    scene,
    workers_end_with_a_parent_that_is_killed,
    workers_end_with_a_parent_that_leaves,
    nothing_is_kept_in_dev_shm,
    a_pool_that_is_dropped_while_it_starts_leaves_no_process,
    a_pool_whose_workers_can_not_start_fails_with_their_reason,
    a_pool_whose_workers_can_not_start_any_more_goes_on_when_they_can,
    a_pool_that_has_too_few_descriptors_says_so,
    a_pool_whose_memory_is_larger_than_a_file_may_be_says_so,
}

/// What a process of its own does, on the kind of runtime that it was started from.
async fn scene<P: WorkerPool>() {
    if std::env::var(FLAVOR).is_ok_and(|wanted| wanted != flavor()) {
        return;
    }
    match std::env::var(ROLE).as_deref() {
        Err(_) => return,
        Ok("parent") => parent::<P>().await,
        Ok("without files") => without_files::<P>().await,
        Ok("impatient") => impatient::<P>().await,
        Ok("unfit") => unfit::<P>().await,
        Ok("degraded") => degraded::<P>().await,
        Ok("few descriptors") => few_descriptors::<P>().await,
        Ok("small files") => small_files::<P>().await,
        Ok(role) => panic!("{role}"),
    }
    println!("{PLAYED}");
}

/// On which kind of runtime a scene is to be played.
const FLAVOR: &str = "POLYLOOP_TEST_FLAVOR";

fn flavor() -> String {
    format!("{:?}", tokio::runtime::Handle::current().runtime_flavor())
}

/// A process that plays a scene.
fn player<P: WorkerPool>(role: &str) -> Command {
    let mut player = rig::myself(&std::env::current_exe().unwrap(), &format!("alone::{}::scene", P::MODULE), role);
    player.env(FLAVOR, flavor());
    player
}

/// What a process says that has played its scene to its end.
const PLAYED: &str = "played to the end";

/// Has a scene played. What goes wrong there goes wrong here.
fn play(mut player: Command) {
    let output = player.stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(PLAYED), "{}: {said}", output.status);
}

/// Three workers: one idle, one that blocks, one that is stopped. Says who they are, and waits to be killed.
async fn parent<P: WorkerPool>() {
    let (pool, marks) = (P::builder(3).concurrency(1).start().await, Marks::new());
    pool.until_ready(3).await;
    let workers = pool.pids();
    drop(pool.spawn(Task::Block { begun: marks.at("begun"), until: marks.at("never") }));
    marks.until("begun").await;
    let idle = pool.stats().workers.into_iter().find(|worker| worker.in_flight == 0).unwrap();
    send_signal(idle.pid.unwrap(), Signal::STOP);
    until(|| workers.iter().any(|worker| process_state(*worker) == Some('T'))).await;
    println!("workers: {workers:?}");
    let leave = std::env::var_os(LEAVE);
    drop(marks);
    if leave.is_some() {
        std::process::exit(0);
    }
    std::future::pending().await
}

/// Has a parent exit by itself, without a word to its pool.
const LEAVE: &str = "POLYLOOP_TEST_LEAVE";

/// A parent, and its workers.
fn start_parent<P: WorkerPool>(mut player: Command) -> (Child, Vec<u32>) {
    let mut parent = player.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let workers = lines.find_map(|line| Some(line.split_once("workers: [")?.1.trim_end_matches(']').to_owned()));
    let workers: Vec<u32> = workers.unwrap().split(", ").map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(workers.len(), 3);
    (parent, workers)
}

async fn workers_end_with_a_parent_that_is_killed<P: WorkerPool>() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let (mut parent, workers) = start_parent::<P>(player::<P>("parent"));
        send_signal(parent.id(), signal);
        assert_eq!(parent.wait().unwrap().signal(), Some(signal.as_raw()));
        until_gone(&workers).await;
    }
}

async fn workers_end_with_a_parent_that_leaves<P: WorkerPool>() {
    let mut player = player::<P>("parent");
    player.env(LEAVE, "");
    let (mut parent, workers) = start_parent::<P>(player);
    assert!(parent.wait().unwrap().success());
    until_gone(&workers).await;
}

async fn nothing_is_kept_in_dev_shm<P: WorkerPool>() {
    play(player::<P>("without files"));
}

/// Neither open nor mapped, so nothing can be left there however the program ends.
async fn without_files<P: WorkerPool>() {
    let pool: P = pool(2).await;
    pool.until_ready(2).await;
    let large = pool.echo_all((0..10).map(|_| ramp(LARGE)));
    let count = futures_util::StreamExt::count(large).await;
    assert_eq!(count, 10);
    for pid in pool.pids().into_iter().chain([std::process::id()]) {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let open = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let mapped = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(mapped.contains("memfd:polyloop"), "what is shared is seen here");
        assert!(!mapped.contains("/dev/shm") && !open.into_iter().any(|path| path.starts_with("/dev/shm")));
    }
}

async fn a_pool_that_is_dropped_while_it_starts_leaves_no_process<P: WorkerPool>() {
    play(player::<P>("impatient"));
}

/// Gives up at each moment of a pool's start.
async fn impatient<P: WorkerPool>() {
    for patience in 0..12 {
        // On a pool that has started, this is its end.
        let _ = tokio::time::timeout(Duration::from_millis(patience), P::builder(2).build()).await;
    }
    until(|| children().is_empty()).await;
}

/// The processes that this one has started and that have not been reaped.
fn children() -> Vec<u32> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).ok());
    let children = lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>());
    children.collect()
}

/// A process whose workers can't start as long as there is a file.
fn player_at_fault<P: WorkerPool>(role: &str, fault: &Path) -> Command {
    let mut player = player::<P>(role);
    player.env(FAULT, fault);
    player
}

fn fault() -> std::path::PathBuf {
    std::env::var_os(FAULT).unwrap().into()
}

async fn a_pool_whose_workers_can_not_start_fails_with_their_reason<P: WorkerPool>() {
    let marks = Marks::new();
    play(player_at_fault::<P>("unfit", &marks.at("fault")));
}

async fn unfit<P: WorkerPool>() {
    for (told, reason) in [("no luck", "no luck"), ("exit", "exit code 3")] {
        std::fs::write(fault(), told).unwrap();
        let Err(error) = P::builder(2).lifespan().build().await else { panic!("it starts") };
        assert!(matches!(&error, Error::WorkerStart(why) if why.contains(reason)), "{error:?}");
        until(|| children().is_empty()).await;
    }
    std::fs::remove_file(fault()).unwrap();
    assert!(P::builder(1).lifespan().build().await.is_ok());
}

async fn a_pool_whose_workers_can_not_start_any_more_goes_on_when_they_can<P: WorkerPool>() {
    let marks = Marks::new();
    play(player_at_fault::<P>("degraded", &marks.at("fault")));
}

async fn degraded<P: WorkerPool>() {
    let (heard, _guard) = hear(LevelFilter::WARN);
    let pool = P::builder(1).lifespan().start().await;
    let worker = pool.pid().await;
    std::fs::write(fault(), "no luck").unwrap();
    send_signal(worker, Signal::KILL);
    pool.until_state(State::Degraded).await;
    let told = heard.until("workers do not start").await;
    assert!(told.level == Level::WARN && told.get("error").contains("no luck"), "{told:?}");
    let task = pool.spawn(Task::Pid);
    let mut map = pool.map(Kind::Plain, [Task::Give(7)]);
    let item = tokio::time::timeout(Duration::from_millis(50), futures_util::StreamExt::next(&mut map)).await;
    assert!(item.is_err() && !task.is_finished(), "they wait for a worker");
    std::fs::remove_file(fault()).unwrap();
    assert_ne!(task.await.unwrap(), u64::from(worker));
    assert_eq!(futures_util::StreamExt::next(&mut map).await.unwrap().unwrap(), 7);
    pool.until_state(State::Running).await;
    assert_eq!(heard.until("workers start again").await.level, Level::WARN);
    assert_eq!(pool.stats().restarts(Cause::Died), 1);
    // One that closes while no worker starts ends what is left.
    std::fs::write(fault(), "no luck").unwrap();
    send_signal(pool.pids()[0], Signal::KILL);
    pool.until_state(State::Degraded).await;
    let task = pool.spawn(Task::Pid);
    pool.terminate().await.unwrap();
    assert!(matches!(task.await, Err(Error::PoolTerminated)));
    std::fs::remove_file(fault()).unwrap();
}

async fn a_pool_that_has_too_few_descriptors_says_so<P: WorkerPool>() {
    play(player::<P>("few descriptors"));
}

async fn few_descriptors<P: WorkerPool>() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
    let Err(error) = P::builder(100).build().await else { panic!("it starts") };
    assert!(matches!(&error, Error::Config(_)) && error.to_string().contains("ulimit -n"), "{error}");
    assert_eq!(children(), [], "it is told before any worker starts");
    assert_ne!(pool::<P>(1).await.pid().await, std::process::id());
}

async fn a_pool_whose_memory_is_larger_than_a_file_may_be_says_so<P: WorkerPool>() {
    play(player::<P>("small files"));
}

/// Memory that is shared is files.
async fn small_files<P: WorkerPool>() {
    setrlimit(Resource::Fsize, Rlimit { current: Some(4096), maximum: None }).unwrap();
    let Err(error) = P::builder(1).build().await else { panic!("it starts") };
    assert!(matches!(&error, Error::Os(_)) && error.to_string().contains("ulimit -f"), "{error}");
}
