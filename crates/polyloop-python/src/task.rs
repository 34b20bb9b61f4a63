//! Starting a coroutine as an `asyncio.Task` of its own whose first step runs at once, and hearing of its end.
//!
//! From CPython 3.12 on that is an eager task. On 3.11 the same is made by catching the first step that a new task
//! hands to its loop, and running it here, in the task's own context. [`crate::lazy`] makes the Task only when needed.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use polyloop::Job;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::lazy::LazyTasks;
use crate::worker::Worker;

/// How tasks are started. Each is a fallback for the one before, and all look the same to what runs in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The loop makes the task and runs its first step in its next round.
    Plain,
    /// The first step runs at once.
    Eager,
    /// The first step runs at once, and no task is made if nothing needs it.
    Lazy,
}

impl FromStr for Level {
    type Err = PyErr;

    fn from_str(name: &str) -> PyResult<Self> {
        match name {
            "plain" => Ok(Self::Plain),
            "eager" => Ok(Self::Eager),
            "lazy" => Ok(Self::Lazy),
            _ => Err(PyValueError::new_err(format!("tasks can be 'lazy', 'eager' or 'plain', not '{name}'"))),
        }
    }
}

/// A coroutine after its first step.
pub(crate) enum Started<'py> {
    /// It has ended, and needed no task.
    Ended(PyResult<Bound<'py, PyAny>>),
    /// Its task, which may have ended too.
    Task(Bound<'py, PyAny>),
}

/// How tasks are made on this loop and interpreter.
pub(crate) struct TaskStarter {
    maker: TaskMaker,
    /// The most that this loop and interpreter allow, and the host wants.
    best: Level,
    lazy: Option<LazyTasks>,
}

impl TaskStarter {
    pub(crate) fn new(event_loop: &Bound<'_, PyAny>, wanted: Level) -> PyResult<Self> {
        let maker = TaskMaker::new(event_loop)?;
        let lazy = if wanted == Level::Lazy { LazyTasks::on(event_loop, &maker)? } else { None };
        let possible = match (&lazy, &maker.attributes) {
            (None, None) => Level::Plain,
            (None, Some(_)) => Level::Eager,
            (Some(_), _) => Level::Lazy,
        };
        Ok(Self { maker, best: wanted.min(possible), lazy })
    }

    /// How the tasks of a turn are started: plainly in debug mode and with a task factory, which expect to see every
    /// task being made by the loop.
    pub(crate) fn level(&self, py: Python<'_>) -> PyResult<Level> {
        let event_loop = self.maker.event_loop.bind(py);
        let debug = event_loop.call_method0(intern!(py, "get_debug"))?.is_truthy()?;
        let plain = debug || !event_loop.call_method0(intern!(py, "get_task_factory"))?.is_none();
        Ok(if plain { Level::Plain } else { self.best })
    }

    /// Runs the first step of `coroutine`. An error of that step is the task's, also the two that end a program.
    ///
    /// `suspends` is what is known of the function: it is set once a coroutine of it was not over after its first step.
    /// `name` is the task's, if it has one of its own: it shows in the task, which so has to be made.
    pub(crate) fn start<'py>(
        &self,
        coroutine: &Bound<'py, PyAny>,
        level: Level,
        suspends: &AtomicBool,
        name: Option<&str>,
    ) -> PyResult<Started<'py>> {
        let py = coroutine.py();
        match (level, &self.lazy) {
            (Level::Plain, _) => {
                let event_loop = self.maker.event_loop.bind(py);
                let task = event_loop.call_method1(intern!(py, "create_task"), (coroutine,))?;
                set_name(&task, name)?;
                Ok(Started::Task(task))
            }
            (Level::Lazy, Some(lazy))
                if !suspends.load(Ordering::Relaxed) && name.is_none() && is_coroutine(coroutine) =>
            {
                lazy.start(&self.maker, coroutine, suspends)
            }
            (Level::Eager | Level::Lazy, _) => self.start_eagerly(coroutine, name).map(Started::Task),
        }
    }

    /// In a forked process: has no task but the current one take another step. Those would `leave`.
    pub(crate) fn abandon_others(&self, py: Python<'_>, leave: &Py<PyAny>) -> PyResult<()> {
        let Some(lazy) = &self.lazy else { return Ok(()) };
        let asyncio = py.import(intern!(py, "asyncio"))?;
        let current = asyncio.call_method1(intern!(py, "current_task"), (&self.maker.event_loop,))?;
        for task in asyncio.call_method1(intern!(py, "all_tasks"), (&self.maker.event_loop,))?.try_iter()? {
            let task = task?;
            if !task.is(&current) && task.get_type().is(&self.maker.task_class) {
                lazy.abandon(&task, leave)?;
            }
        }
        Ok(())
    }

    fn start_eagerly<'py>(&self, coroutine: &Bound<'py, PyAny>, name: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        let py = coroutine.py();
        let (task, step) = self.maker.make(coroutine, None)?;
        set_name(&task, name)?;
        unless_done(&task, step.run(py))?;
        Ok(task)
    }
}

fn set_name(task: &Bound<'_, PyAny>, name: Option<&str>) -> PyResult<()> {
    name.map_or(Ok(()), |name| task.call_method1(intern!(task.py(), "set_name"), (name,)).map(drop))
}

/// SystemExit and KeyboardInterrupt are the task's and are raised besides by its step: once is enough.
pub(crate) fn unless_done(task: &Bound<'_, PyAny>, ran: PyResult<()>) -> PyResult<()> {
    match ran {
        Err(_) if task.call_method0(intern!(task.py(), "done"))?.is_truthy()? => Ok(()),
        ran => ran,
    }
}

pub(crate) fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: looks at the type of a live object.
    unsafe { pyo3::ffi::PyCoro_CheckExact(value.as_ptr()) != 0 }
}

/// Makes tasks whose first step is kept instead of being handed to the loop.
pub(crate) struct TaskMaker {
    pub(crate) event_loop: Py<PyAny>,
    task_class: Py<PyAny>,
    catcher: Py<Catcher>,
    /// The loop's own attributes; `None` where its methods can't be shadowed.
    attributes: Option<Py<PyDict>>,
}

/// The first step of a task, for its maker to run.
pub(crate) struct Step {
    callback: Py<PyAny>,
    context: Option<Py<PyAny>>,
}

impl Step {
    pub(crate) fn run(self, py: Python<'_>) -> PyResult<()> {
        match self.context {
            Some(context) => context.bind(py).call_method1(intern!(py, "run"), (self.callback,)).map(drop),
            None => self.callback.bind(py).call0().map(drop),
        }
    }
}

impl TaskMaker {
    fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = event_loop.py();
        let call_soon = event_loop.getattr(intern!(py, "call_soon"))?.unbind();
        let attributes = event_loop.getattr_opt(intern!(py, "__dict__"))?;
        Ok(Self {
            event_loop: event_loop.clone().unbind(),
            task_class: py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "Task"))?.unbind(),
            catcher: Py::new(py, Catcher { call_soon, state: Mutex::new(Catch::Pass) })?,
            attributes: attributes.and_then(|attributes| attributes.cast_into().ok()).map(Bound::unbind),
        })
    }

    fn new_task<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let class = self.task_class.bind(py);
        class.call_method1(intern!(py, "__new__"), (class,))
    }

    /// A task of `coroutine`, and its first step. Its context is a copy of the current one if none is given.
    pub(crate) fn make<'py>(
        &self,
        coroutine: &Bound<'py, PyAny>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Step)> {
        let py = coroutine.py();
        let not_caught = || PyRuntimeError::new_err("a new task did not hand its first step to its loop");
        let attributes = self.attributes.as_ref().ok_or_else(not_caught)?.bind(py);
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "loop"), &self.event_loop)?;
        if let Some(context) = context {
            kwargs.set_item(intern!(py, "context"), context)?;
        }
        let task = self.new_task(py)?;
        let catcher = self.catcher.get();
        *catcher.lock() = Catch::Next(task.clone().unbind());
        let call_soon = intern!(py, "call_soon");
        let shadowed = attributes.get_item(call_soon)?;
        attributes.set_item(call_soon, &self.catcher)?;
        let made = task.call_method(intern!(py, "__init__"), (coroutine,), Some(&kwargs));
        match shadowed {
            Some(of_user) => attributes.set_item(call_soon, of_user)?,
            None => attributes.del_item(call_soon)?,
        }
        let caught = std::mem::replace(&mut *catcher.lock(), Catch::Pass);
        made?;
        match caught {
            Catch::Caught(step) => Ok((task, step)),
            Catch::Next(_) | Catch::Pass => Err(not_caught()),
        }
    }
}

/// What [`Catcher`] does with a call.
enum Catch {
    /// Hands it on to the loop.
    Pass,
    /// Keeps it if it is of this task, which is being made.
    Next(Py<PyAny>),
    /// Has kept it.
    Caught(Step),
}

/// Stands in for `loop.call_soon` while a task is made: keeps what the task hands to it, and passes on all else, since
/// making a task may run the garbage collector, and that anything.
#[pyclass(frozen, module = "polyloop._core")]
struct Catcher {
    call_soon: Py<PyAny>,
    state: Mutex<Catch>,
}

#[pymethods]
impl Catcher {
    #[pyo3(signature = (callback, *args, context=None))]
    fn __call__(
        &self,
        py: Python<'_>,
        callback: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let owner = callback.bind(py).getattr_opt(intern!(py, "__self__"))?;
        {
            let mut state = self.lock();
            if matches!((&*state, &owner), (Catch::Next(task), Some(owner)) if owner.is(task)) {
                *state = Catch::Caught(Step { callback, context });
                return Ok(py.None());
            }
        }
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "context"), context)?;
        let mut all = vec![callback.into_bound(py)];
        all.extend(args.iter());
        self.call_soon.bind(py).call(PyTuple::new(py, all)?, Some(&kwargs)).map(Bound::unbind)
    }
}

impl Catcher {
    fn lock(&self) -> std::sync::MutexGuard<'_, Catch> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something in a copy of the current context, so that what it sets there stays its own. Gives that copy too.
pub(crate) fn in_own_context<'py, T>(
    py: Python<'py>,
    act: impl FnOnce(&Bound<'py, PyAny>) -> T,
) -> PyResult<(T, Bound<'py, PyAny>)> {
    // SAFETY: called with the interpreter attached; a new reference or null with an exception set.
    let context = unsafe { Bound::from_owned_ptr_or_err(py, pyo3::ffi::PyContext_CopyCurrent())? };
    // SAFETY: `context` is a context, copied a line above and not entered.
    if unsafe { pyo3::ffi::PyContext_Enter(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let done = act(&context);
    // SAFETY: entered above on this thread, and calls are nested properly.
    if unsafe { pyo3::ffi::PyContext_Exit(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    Ok((done, context))
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
