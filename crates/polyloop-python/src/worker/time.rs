//! Items that are to end before they do by themselves: their time is up, or they are cancelled.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use polyloop::{Interrupt, Job, TaskId, Thread, Watchdog, WorkerLink};
use pyo3::intern;
use pyo3::prelude::*;

use super::{Host, Worker, cancel, lock};

/// Has the worker's thread look whether what it runs has run out of time.
struct Interrupter {
    link: Arc<Mutex<WorkerLink>>,
    overdue: Arc<Mutex<BTreeSet<TaskId>>>,
    thread: Thread,
}

impl Interrupt for Interrupter {
    fn interrupt(&self, task: TaskId) {
        lock(&self.overdue).insert(task);
        // A loop that turns hears the bell. One that is blocked hears nothing but the signal.
        if let Err(error) = lock(&self.link).ring_host() {
            eprintln!("polyloop: a worker can't ring its own bell: {error}");
        }
        // SAFETY: the worker's thread is the process's main one, and lives as long as the process.
        unsafe { self.thread.signal(polyloop::interrupt_signal()) };
    }

    fn is_interrupted(&self, task: TaskId) -> bool {
        !lock(&self.overdue).contains(&task)
    }
}

impl Worker {
    /// Cancels what has run out of time and waits for something.
    pub(super) fn cancel_overdue(&self, py: Python<'_>) -> PyResult<()> {
        if self.watchdog.get().is_none() {
            return Ok(());
        }
        let overdue: Vec<_> = lock(&self.overdue).iter().copied().collect();
        for id in overdue {
            let task = lock(&self.running).get(&id).map(|running| running.task.clone_ref(py));
            match task {
                Some(task) if self.mark_interrupted(id) => cancel(task.bind(py))?,
                Some(_) => (),
                // It ended while its time did.
                None => drop(lock(&self.overdue).remove(&id)),
            }
        }
        Ok(())
    }

    pub(super) fn mark_interrupted(&self, task: TaskId) -> bool {
        let is_overdue = lock(&self.overdue).remove(&task);
        if is_overdue {
            lock(&self.interrupted).insert(task);
        }
        is_overdue
    }

    /// The item whose Task the loop is running.
    pub(super) fn task_of_loop(&self, py: Python<'_>) -> PyResult<Option<TaskId>> {
        let asyncio = py.import(intern!(py, "asyncio"))?;
        let current = asyncio.call_method1(intern!(py, "current_task"), (&self.host()?.event_loop,))?;
        Ok(lock(&self.running).iter().find(|(_, running)| current.is(&running.task)).map(|(id, _)| *id))
    }

    /// Has the item's time counted from now.
    pub(super) fn watch(&self, job: Job) -> PyResult<()> {
        let Some(timeout) = job.timeout else { return Ok(()) };
        let watchdog = match self.watchdog.get() {
            Some(watchdog) => watchdog,
            None => {
                let (link, overdue) = (Arc::clone(&self.link), Arc::clone(&self.overdue));
                let interrupter = Interrupter { link: Arc::clone(&link), overdue, thread: Thread::current() };
                let grace = lock(&link).grace();
                let watchdog = Watchdog::start(link, grace, interrupter)?;
                self.watchdog.get_or_init(|| watchdog)
            }
        };
        watchdog.watch(job, timeout);
        Ok(())
    }

    /// The item has ended. Says whether its time was the reason.
    pub(super) fn forget_time(&self, job: Job) -> bool {
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.forget(job.task);
        }
        lock(&self.overdue).remove(&job.task);
        lock(&self.interrupted).remove(&job.task)
    }

    /// Whether this error of an item is there because it was interrupted.
    pub(super) fn was_interrupted(&self, py: Python<'_>, host: &Host, job: Job, error: &PyErr) -> PyResult<bool> {
        let is_cancelled = self.cancelled.load(Ordering::Relaxed) == job.task.to_bits();
        let was = is_cancelled || job.timeout.is_some() && lock(&self.interrupted).contains(&job.task);
        Ok(was && error.matches(py, &host.cancelled_error)?)
    }
}
