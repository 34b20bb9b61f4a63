//! Tasks that have not ended, and who waits for each.

use polyloop::TaskId;
use pyo3::prelude::*;

use crate::apply::ApplyCall;
use crate::map::MapCall;
use crate::options::TaskOptions;

/// Who waits for a task.
pub(crate) enum Target {
    /// The coroutine of an `apply`.
    Apply(Py<ApplyCall>),
    /// A future, and what must not be collected before it is done.
    #[expect(dead_code, reason = "kept, not used")]
    Future(Py<PyAny>, Option<Py<PyAny>>),
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
    pub(crate) task: Option<TaskId>,
    pub(crate) options: Py<TaskOptions>,
    /// What the scheduler knows it by.
    pub(crate) scheduled_as: u64,
}

impl Pending {
    /// The function.
    pub(crate) fn function<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match (&self.target, &self.function) {
            (Target::Item(map, _), _) => Some(map.get().function(py).clone()),
            (_, function) => function.as_ref().map(|function| function.bind(py).clone()),
        }
    }
}

/// Tasks that stand for themselves, by token. Those of maps need no entry: their token is the item's index.
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
        let pending = self.lift(index)?;
        self.free.push(index);
        Some(pending)
    }

    /// Takes an entry out whose place is kept for it.
    pub(crate) fn lift(&mut self, index: usize) -> Option<Pending> {
        self.entries.get_mut(index)?.take()
    }

    /// Puts a lifted entry back, or gives its place away.
    pub(crate) fn lower(&mut self, index: usize, pending: Option<Pending>) {
        match pending {
            Some(pending) => self.entries[index] = Some(pending),
            None => self.free.push(index),
        }
    }
}
