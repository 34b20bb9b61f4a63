//! The functions that references stand for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use polyloop::travels_by_name;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use super::{Worker, lock};

/// Functions remembered by their references.
const FUNCTIONS_MAX: usize = 256;

pub(super) struct Function {
    pub(super) call: Py<PyAny>,
    /// What a person calls it: "module:name" where it has both.
    pub(super) name: String,
    /// A coroutine function runs nothing when it is called.
    pub(super) is_coroutine: bool,
    /// Calling it gives what is to be iterated over, and runs nothing.
    pub(super) is_async_generator: bool,
    /// A plain function of native code: while it runs there is no frame of the user's.
    pub(super) is_native: bool,
    /// A coroutine of it was once not over after its first step.
    pub(super) suspends: AtomicBool,
}

impl Worker {
    /// The function a reference stands for, which is often that of the `last` item.
    pub(super) fn function<'a>(
        &self,
        py: Python<'_>,
        reference: &[u8],
        last: &'a mut Option<(Vec<u8>, Arc<Function>)>,
    ) -> PyResult<&'a Arc<Function>> {
        let loaded = match last.take() {
            Some(last) if last.0 == reference && is_remembered(reference) => last,
            _ => {
                let function = self.load_function(py, reference)?;
                let before = lock(&self.function_at_hand).replace(Arc::clone(&function));
                drop(before);
                (reference.to_vec(), function)
            }
        };
        Ok(&last.insert(loaded).1)
    }

    /// The function a reference stands for: remembered for all calls if it travels by name, else for its own call.
    fn load_function(&self, py: Python<'_>, reference: &[u8]) -> PyResult<Arc<Function>> {
        if let Some(function) = lock(&self.functions).get(reference) {
            return Ok(Arc::clone(function));
        }
        let call = self.codec.load_function(py, reference)?;
        let inspect = py.import(intern!(py, "inspect"))?;
        let is_coroutine = inspect.call_method1(intern!(py, "iscoroutinefunction"), (&call,))?.is_truthy()?;
        let is_async_generator = self.codec.is_async_generator(&call)?;
        let name = name_of(&call)?;
        let (is_native, suspends) = (is_native(&call)?, AtomicBool::new(false));
        let call = call.unbind();
        let function = Arc::new(Function { call, name, is_coroutine, is_async_generator, is_native, suspends });
        if is_remembered(reference) {
            self.remember(reference, Arc::clone(&function));
        }
        Ok(function)
    }

    fn remember(&self, reference: &[u8], function: Arc<Function>) {
        let forgotten = {
            let mut functions = lock(&self.functions);
            let full = functions.len() >= FUNCTIONS_MAX;
            let forgotten = if full { std::mem::take(&mut *functions) } else { HashMap::new() };
            functions.insert(reference.to_vec(), function);
            forgotten
        };
        // Not under the lock: a function may hold something that runs code as it goes.
        drop(forgotten);
    }
}

/// References by name mean the same for ever; by value they are remembered where they carry the number of a call.
fn is_remembered(reference: &[u8]) -> bool {
    travels_by_name(reference) || reference.get(1..9).is_some_and(|scope| scope != [0; 8])
}

/// "module:name" of a function that has both, else what it shows of itself.
fn name_of(function: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = function.py();
    let module = function.getattr_opt(intern!(py, "__module__"))?.and_then(|module| module.extract::<String>().ok());
    let name = function.getattr_opt(intern!(py, "__qualname__"))?.and_then(|name| name.extract::<String>().ok());
    match (module, name) {
        (Some(module), Some(name)) => Ok(format!("{module}:{name}")),
        (None, Some(name)) => Ok(name),
        (_, None) => function.repr()?.extract(),
    }
}

/// Whether this is a function of native code, or a partial of one.
fn is_native(call: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = call.py();
    let partial = py.import(intern!(py, "functools"))?.getattr(intern!(py, "partial"))?;
    let mut function = call.clone();
    while function.is_exact_instance(&partial) {
        function = function.getattr(intern!(py, "func"))?;
    }
    Ok(function.is_instance_of::<PyCFunction>())
}
