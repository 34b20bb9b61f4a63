//! How functions are sent: by name, remembered; or by value, taken anew for each call.

use std::collections::HashMap;
use std::sync::Arc;

use polyloop::TaskId;
use pyo3::intern;
use pyo3::prelude::*;

use super::{Manager, lock};
use crate::options::Verb;
use crate::pending::{Pending, Target};
use crate::reference::travels_by_name;

/// Functions whose references are remembered.
const REFERENCES_MAX: usize = 256;

/// What is known of a function that was sent before.
pub(super) enum Reference {
    ByName(Arc<[u8]>),
    /// Workers can't import it: it is taken as it is, anew for each call.
    ByValue,
}

/// By the function's address, and what it is sent for; the function is kept, so that no other has its address.
pub(super) type References = HashMap<(usize, Verb), (Py<PyAny>, Reference)>;

impl Manager {
    /// A function's reference; remembered where it is the same in every call.
    pub(super) fn reference(&self, function: &Bound<'_, PyAny>, scope: u64, verb: Verb) -> PyResult<Arc<[u8]>> {
        match lock(&self.references).get(&(function.as_ptr() as usize, verb)) {
            Some((_, Reference::ByName(reference))) => return Ok(Arc::clone(reference)),
            Some((_, Reference::ByValue)) => return Ok(self.codec.function_by_value(function, scope)?.into()),
            None => (),
        }
        let reference: Arc<[u8]> = self.codec.function_ref(function, scope, verb)?.into();
        if travels_by_name(&reference) {
            self.remember(function, verb, Reference::ByName(Arc::clone(&reference)));
        }
        Ok(reference)
    }

    /// Remembers a reference by the function itself, which is kept alive so that no other takes its address.
    fn remember(&self, function: &Bound<'_, PyAny>, verb: Verb, reference: Reference) {
        let forgotten = {
            let mut references = lock(&self.references);
            let full = references.len() >= REFERENCES_MAX;
            let forgotten = if full { std::mem::take(&mut *references) } else { HashMap::new() };
            references.insert((function.as_ptr() as usize, verb), (function.clone().unbind(), reference));
            forgotten
        };
        // Not under the lock: a function may be the last to hold something that uses this pool as it goes.
        drop(forgotten);
    }

    /// The function of a task by value, if its worker could not import it; taken once for all items of a map.
    pub(super) fn value_for(&self, py: Python<'_>, task: TaskId, pending: &Pending) -> Option<Arc<[u8]>> {
        if !travels_by_name(&lock(&self.driver).function_of(task)?) {
            return None;
        }
        let by_value = |function: &Bound<'_, PyAny>, scope| {
            self.remember(function, pending.target.verb(), Reference::ByValue);
            let reference = self.codec.function_by_value(function, scope).ok()?;
            Some(pending.options.get().manner(pending.target.verb()).put_on(reference.into()))
        };
        let Target::Item(map, _) = &pending.target else {
            return by_value(pending.function.as_ref()?.bind(py), 0);
        };
        let map = map.get();
        if travels_by_name(&map.reference()) {
            map.set_reference(by_value(map.function(py), map.scope)?);
        }
        Some(map.reference())
    }

    /// What a person calls a task: as its options do, or its function, "module:name" where it travels by name.
    pub(super) fn name(&self, py: Python<'_>, pending: &Pending) -> Option<String> {
        if let Some(name) = &pending.options.get().name {
            return Some(name.clone());
        }
        let function = pending.function(py)?;
        let reference = self.reference(&function, 0, pending.target.verb());
        name_of(&function, reference.as_deref().unwrap_or_default())
    }
}

/// What a person calls a function with this reference: "module:name" where it travels by name.
pub(crate) fn name_of(function: &Bound<'_, PyAny>, reference: &[u8]) -> Option<String> {
    let py = function.py();
    if let Some((b'n', name)) = reference.split_first() {
        return Some(String::from_utf8_lossy(name).into_owned());
    }
    let name = function.getattr(intern!(py, "__qualname__")).or_else(|_| Ok::<_, PyErr>(function.repr()?.into_any()));
    name.and_then(|name| name.extract()).ok()
}
