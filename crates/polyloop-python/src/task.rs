//! Starting a coroutine as an `asyncio.Task` of its own whose first step runs at once, and hearing of its end.
//!
//! From CPython 3.12 on that is an eager task. On 3.11 the same is made by catching the first step that a new task
//! hands to its loop, and running it here, in the task's own context.

use std::sync::Mutex;

use polyloop::Job;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::worker::Worker;

/// How tasks are made on this loop and interpreter.
pub(crate) struct TaskStarter {
    event_loop: Py<PyAny>,
    task_class: Py<PyAny>,
    kwargs: Py<PyDict>,
    /// `None` where tasks can be made eager.
    first_step: Option<Py<FirstStep>>,
}

/// How the tasks of one turn are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The first step runs at once.
    Eager,
    /// The loop makes the task and runs its first step in its next round.
    Plain,
}

impl TaskStarter {
    pub(crate) fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = event_loop.py();
        let task_class = py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "Task"))?.unbind();
        let kwargs = PyDict::new(py);
        kwargs.set_item("loop", event_loop)?;
        let eager = py.version_info() >= (3, 12);
        if eager {
            kwargs.set_item("eager_start", true)?;
        }
        let first_step = if eager {
            None
        } else {
            let call_soon = event_loop.getattr(intern!(py, "call_soon"))?.unbind();
            Some(Py::new(py, FirstStep { call_soon, state: Mutex::new(Catch::Pass) })?)
        };
        Ok(Self { event_loop: event_loop.clone().unbind(), task_class, kwargs: kwargs.unbind(), first_step })
    }

    /// Prepares the loop for a turn. Tasks are started at once neither in debug mode nor with a task factory, which
    /// expect to see every task being made by the loop, nor on a loop whose methods can't be shadowed.
    pub(crate) fn begin_turn(&self, py: Python<'_>) -> PyResult<Start> {
        let event_loop = self.event_loop.bind(py);
        let debug = event_loop.call_method0(intern!(py, "get_debug"))?.is_truthy()?;
        if debug || !event_loop.call_method0(intern!(py, "get_task_factory"))?.is_none() {
            return Ok(Start::Plain);
        }
        let Some(first_step) = &self.first_step else { return Ok(Start::Eager) };
        let shadowed = event_loop.setattr(intern!(py, "call_soon"), first_step).is_ok();
        Ok(if shadowed { Start::Eager } else { Start::Plain })
    }

    /// Leaves the loop as it was before the turn.
    pub(crate) fn end_turn(&self, py: Python<'_>, start: Start) -> PyResult<()> {
        match (start, &self.first_step) {
            (Start::Eager, Some(_)) => self.event_loop.bind(py).delattr(intern!(py, "call_soon")),
            _ => Ok(()),
        }
    }

    /// Makes a task of `coroutine`. An error of its first step is the task's, but for the two that end a program.
    pub(crate) fn start<'py>(&self, coroutine: &Bound<'py, PyAny>, start: Start) -> PyResult<Bound<'py, PyAny>> {
        let py = coroutine.py();
        if start == Start::Plain {
            return self.event_loop.bind(py).call_method1(intern!(py, "create_task"), (coroutine,));
        }
        // In two steps, so that a task whose eager first step raises out of the second is still at hand.
        let task_class = self.task_class.bind(py);
        let task = task_class.call_method1(intern!(py, "__new__"), (task_class,))?;
        let init = || {
            let done = task.call_method(intern!(py, "__init__"), (coroutine,), Some(self.kwargs.bind(py)));
            done.map(drop)
        };
        let done = match &self.first_step {
            None => init(),
            Some(first_step) => first_step.get().run(py, &task, init),
        };
        match done {
            Ok(()) => Ok(task),
            // SystemExit and KeyboardInterrupt are the task's and are raised besides: once is enough.
            Err(_) if task.call_method0(intern!(py, "done"))?.is_truthy()? => Ok(task),
            Err(error) => Err(error),
        }
    }
}

/// What [`FirstStep`] does with a call.
enum Catch {
    /// Hands it on to the loop.
    Pass,
    /// Keeps it: a task is being made.
    Next,
    /// Has kept this callback and context.
    Caught(Py<PyAny>, Option<Py<PyAny>>),
}

/// Stands in for `loop.call_soon` during a turn: keeps what a new task hands to it, and passes on all else.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct FirstStep {
    call_soon: Py<PyAny>,
    state: Mutex<Catch>,
}

#[pymethods]
impl FirstStep {
    #[pyo3(signature = (callback, *args, context=None))]
    fn __call__(
        &self,
        py: Python<'_>,
        callback: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        {
            let mut state = self.lock();
            if matches!(*state, Catch::Next) {
                *state = Catch::Caught(callback, context);
                return Ok(py.None());
            }
        }
        self.pass(py, callback, args, context)
    }
}

impl FirstStep {
    /// Initialises a task and runs the first step that it hands to the loop.
    fn run<'py>(&self, py: Python<'py>, task: &Bound<'py, PyAny>, init: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
        *self.lock() = Catch::Next;
        let done = init();
        let caught = std::mem::replace(&mut *self.lock(), Catch::Pass);
        done?;
        let Catch::Caught(step, context) = caught else {
            return Err(PyRuntimeError::new_err("a new task did not hand its first step to its loop"));
        };
        // Making a task may run the garbage collector, and that anything: what was caught may be another's.
        if !step.bind(py).getattr(intern!(py, "__self__")).is_ok_and(|owner| owner.is(task)) {
            return self.pass(py, step, &PyTuple::empty(py), context).map(drop);
        }
        let done = match context {
            Some(context) => context.bind(py).call_method1(intern!(py, "run"), (step,)),
            None => step.bind(py).call0(),
        };
        done.map(drop)
    }

    fn pass(
        &self,
        py: Python<'_>,
        callback: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "context"), context)?;
        let mut all = vec![callback.into_bound(py)];
        all.extend(args.iter());
        self.call_soon.bind(py).call(PyTuple::new(py, all)?, Some(&kwargs)).map(Bound::unbind)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Catch> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Calls a function in a copy of the current context, so that what it sets there stays its own.
pub(crate) fn call_in_own_context<'py>(
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    // SAFETY: called with the interpreter attached; a new reference or null with an exception set.
    let context = unsafe { Bound::from_owned_ptr_or_err(py, pyo3::ffi::PyContext_CopyCurrent())? };
    // SAFETY: `context` is a context, copied a line above and not entered.
    if unsafe { pyo3::ffi::PyContext_Enter(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let result = function.call(args, kwargs);
    // SAFETY: entered above on this thread, and calls are nested properly.
    if unsafe { pyo3::ffi::PyContext_Exit(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    result
}

/// Called by a task that has ended.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct Done {
    worker: Py<Worker>,
    job: Job,
}

impl Done {
    pub(crate) fn new(worker: Py<Worker>, job: Job) -> Self {
        Self { worker, job }
    }
}

#[pymethods]
impl Done {
    fn __call__(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        self.worker.get().ended(self.job, task)
    }
}
