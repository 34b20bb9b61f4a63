//! What the tests share: a runtime under a watchdog, marks that tasks leave, and functions to run.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use polyloop::{Builder, Pool, Stage};
use rustix::process::{Pid, Signal, kill_process};

/// How long a test may take.
const WATCHDOG: Duration = Duration::from_secs(60);
/// How often something is looked at that tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(2);

/// Runs a test on a runtime of its own: on one thread, then on several.
pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for mut builder in [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()] {
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(WATCHDOG, test()).await.expect("stuck") });
    }
}

pub(crate) fn builder(processes: usize) -> Builder {
    Pool::builder().processes(processes)
}

pub(crate) async fn pool(processes: usize) -> Pool {
    builder(processes).build().await.unwrap()
}

/// A place where tasks leave marks, gone with the test.
pub(crate) struct Marks(PathBuf);

impl Marks {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("polyloop-face-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                // Left by a process of this number that was killed.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => (),
                made => {
                    made.unwrap();
                    return Self(path);
                }
            }
        }
    }

    /// For a task to [`mark`].
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// How many times a task has left this mark.
    pub(crate) fn count(&self, name: &str) -> usize {
        std::fs::read(self.at(name)).map_or(0, |bytes| bytes.len())
    }

    pub(crate) async fn until(&self, name: &str) {
        until(|| self.count(name) > 0).await;
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Leaves a mark, once more.
pub(crate) fn mark(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(b".").unwrap();
}

/// Leaves a mark when it goes.
pub(crate) struct MarkOnDrop(pub(crate) PathBuf);

impl Drop for MarkOnDrop {
    fn drop(&mut self) {
        mark(&self.0);
    }
}

/// Leaves a mark, waits for ever, and leaves another when it is dropped.
pub(crate) async fn wait_for_ever(begun: PathBuf, dropped: PathBuf) {
    let _dropped = MarkOnDrop(dropped);
    mark(&begun);
    std::future::pending().await
}

/// Leaves a mark and keeps its worker's loop until there is another.
pub(crate) fn block(begun: PathBuf, until: PathBuf) {
    mark(&begun);
    while !until.exists() {
        std::thread::sleep(LOOK);
    }
}

pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// Ends its worker, if it leaves its mark for no more than the so-many-th time.
pub(crate) fn die_first(times: usize, begun: PathBuf) -> usize {
    mark(&begun);
    let starts = std::fs::read(&begun).unwrap().len();
    if starts <= times {
        send_signal(pid(), Signal::KILL);
    }
    starts
}

pub(crate) fn send_signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

pub(crate) fn pids(pool: &Pool) -> Vec<u32> {
    pool.stats().workers.iter().filter_map(|worker| worker.pid).collect()
}

/// Waits until so many workers take work.
pub(crate) async fn until_ready(pool: &Pool, workers: usize) {
    let is_ready = |worker: &&polyloop::WorkerStats| worker.stage == Stage::Ready;
    until(|| pool.stats().workers.iter().filter(is_ready).count() == workers).await;
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // One that waits to be collected is gone.
    !matches!(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()), Some('Z' | 'X'))
}

pub(crate) async fn until_gone(pids: &[u32]) {
    until(|| !pids.iter().any(|pid| is_alive(*pid))).await;
}

/// This program once more, to run the test of this name with `ROLE` set.
pub(crate) fn myself(program: &Path, test: &str, role: &str) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

pub(crate) const ROLE: &str = "POLYLOOP_FACE_ROLE";
