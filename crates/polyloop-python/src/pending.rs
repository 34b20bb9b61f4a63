//! Tasks that have not ended, and who waits for each.

use polyloop::{Submission, TaskId};
use pyo3::intern;
use pyo3::prelude::*;

use crate::map::MapCall;

/// Who waits for a task.
pub(crate) enum Target {
    /// A future.
    Future(Py<PyAny>),
    /// An item of a map.
    Item(Py<MapCall>, u64),
    /// A future that is set, to nothing, once the cancelled task has ended.
    Ended(Py<PyAny>),
}

/// A task that has not ended.
pub(crate) struct Pending {
    pub(crate) target: Target,
    /// The function, in case that its worker can't import it.
    pub(crate) function: Option<Py<PyAny>>,
    pub(crate) submission: Submission,
    pub(crate) task: Option<TaskId>,
    /// What the scheduler knows it by.
    pub(crate) scheduled_as: u64,
}

impl Pending {
    /// What a person calls the function: "module:name" where it travels by name.
    pub(crate) fn function_name(&self, py: Python<'_>) -> Option<String> {
        if let Some((b'n', name)) = self.submission.function.split_first() {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        let function = match (&self.target, &self.function) {
            (Target::Item(map, _), _) => map.get().function(py).clone(),
            (_, Some(function)) => function.bind(py).clone(),
            (_, None) => return None,
        };
        let name =
            function.getattr(intern!(py, "__qualname__")).or_else(|_| Ok::<_, PyErr>(function.repr()?.into_any()));
        name.and_then(|name| name.extract()).ok()
    }
}

/// A task that the pool did not take.
pub(crate) struct NotAccepted {
    pub(crate) pending: Pending,
    pub(crate) error: PyErr,
}

#[derive(Default)]
pub(crate) struct PendingTable {
    entries: Vec<Option<Pending>>,
    free: Vec<usize>,
}

impl PendingTable {
    pub(crate) fn insert(&mut self, pending: Pending) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = Some(pending);
                index
            }
            None => {
                self.entries.push(Some(pending));
                self.entries.len() - 1
            }
        }
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Pending> {
        self.entries.get_mut(index)?.as_mut()
    }

    pub(crate) fn remove(&mut self, index: usize) -> Option<Pending> {
        let pending = self.entries.get_mut(index)?.take()?;
        self.free.push(index);
        Some(pending)
    }
}
