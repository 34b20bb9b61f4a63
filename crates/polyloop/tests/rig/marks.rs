//! Marks that tasks leave in files, by which a test sees what happens in a worker.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::until;

/// A place where tasks leave marks, gone with the test.
pub(crate) struct Marks(PathBuf);

impl Marks {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("polyloop-test-{}-{number}", std::process::id()));
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

    /// How many times this mark has been left.
    pub(crate) fn count(&self, name: &str) -> usize {
        count(&self.at(name))
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

/// Leaves a mark, once more.
pub(crate) fn mark(path: &Path) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(b".").unwrap();
}

/// How many times a mark has been left.
pub(crate) fn count(path: &Path) -> usize {
    std::fs::metadata(path).map_or(0, |file| file.len() as usize)
}

/// Leaves a mark when it goes.
pub(crate) struct MarkOnDrop(pub(crate) PathBuf);

impl Drop for MarkOnDrop {
    fn drop(&mut self) {
        mark(&self.0);
    }
}
