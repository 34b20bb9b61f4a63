//! Items that end in their first step need no Task, if nothing looks for it. Making one is most of what a short item
//! costs.
//!
//! A coroutine's first step runs in a context of its own and with no Task. If it suspends, or if something asks for the
//! current task, it gets a real Task that is from then on what a plain one would be:
//!
//! - Whoever looks up the current task looks into a dictionary by the loop, and so asks for the loop's hash. The loop's
//!   class is replaced by an equal subclass whose hash makes the Task first. A lookup by an extension that keeps the
//!   hash would be missed; none does, as the loop's own Tasks go the same way. `polyloop._lazy` does the same for
//!   whoever lists all tasks.
//! - The Task is made of a [`FirstEnd`], a coroutine that ends its first step as the item's did, and the Task's field
//!   for its coroutine is then set to the item's. Where that field is was found by making a Task and looking.
//!
//! Where any of this can't be had, [`LazyTasks::on`] gives `None`, and each item gets a Task at once. CPython 3.14 keeps
//! its current tasks elsewhere.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use pyo3::{ffi, intern};

use crate::task::{Started, Step, TaskMaker, in_own_context, unless_done};

thread_local! {
    /// The item whose first step runs on this thread, if it has no Task. Never used after that step.
    static RUNNING: Cell<*const Running<'static>> = const { Cell::new(ptr::null()) };
}

/// Starts items whose Tasks are made when they are needed.
pub(crate) struct LazyTasks {
    enter_task: Py<PyAny>,
    leave_task: Py<PyAny>,
    coroutine_field: CoroutineField,
}

/// How a step of a coroutine ended.
enum End {
    Yielded(Py<PyAny>),
    Returned(Py<PyAny>),
    Raised(PyErr),
}

/// A Task that has not run its first step.
struct Made {
    task: Py<PyAny>,
    step: Step,
    first_end: Py<FirstEnd>,
}

struct Running<'a> {
    lazy: &'a LazyTasks,
    maker: &'a TaskMaker,
    coroutine: *mut ffi::PyObject,
    context: *mut ffi::PyObject,
    making: Cell<bool>,
    made: RefCell<Option<Made>>,
}

impl LazyTasks {
    /// Prepares a loop, if loop and interpreter allow it.
    pub(crate) fn on(event_loop: &Bound<'_, PyAny>, maker: &TaskMaker) -> PyResult<Option<Self>> {
        let py = event_loop.py();
        let version = py.version_info();
        if !((3, 11)..(3, 14)).contains(&(version.major, version.minor)) || !has_gil(py)? {
            return Ok(None);
        }
        let Some(coroutine_field) = CoroutineField::find(py, maker)? else { return Ok(None) };
        if !watch_lookups(event_loop)? {
            return Ok(None);
        }
        py.import(intern!(py, "polyloop._lazy"))?.call_method0(intern!(py, "show_running"))?;
        let tasks = py.import(intern!(py, "asyncio.tasks"))?;
        Ok(Some(Self {
            enter_task: tasks.getattr(intern!(py, "_enter_task"))?.unbind(),
            leave_task: tasks.getattr(intern!(py, "_leave_task"))?.unbind(),
            coroutine_field,
        }))
    }

    /// Runs the first step of `coroutine`.
    pub(crate) fn start<'py>(
        &self,
        maker: &TaskMaker,
        coroutine: &Bound<'py, PyAny>,
        suspends: &AtomicBool,
    ) -> PyResult<Started<'py>> {
        let py = coroutine.py();
        let ((end, made), context) = in_own_context(py, |context| {
            let running = Running {
                lazy: self,
                maker,
                coroutine: coroutine.as_ptr(),
                context: context.as_ptr(),
                making: Cell::new(false),
                made: RefCell::new(None),
            };
            let before = RUNNING.replace(ptr::from_ref(&running).cast());
            let end = send_none(coroutine);
            RUNNING.set(before);
            (end, running.made.into_inner())
        })?;
        let made = match (made, end) {
            (None, End::Returned(value)) => return Ok(Started::Ended(Ok(value.into_bound(py)))),
            (None, End::Raised(error)) => return Ok(Started::Ended(Err(error))),
            (None, end @ End::Yielded(_)) => (self.make(maker, coroutine, &context)?, end),
            (Some(made), end) => {
                self.leave_task.bind(py).call1((&maker.event_loop, &made.task))?;
                (made, end)
            }
        };
        let (Made { task, step, first_end }, end) = made;
        if matches!(end, End::Yielded(_)) {
            suspends.store(true, Ordering::Relaxed);
        }
        let task = task.into_bound(py);
        first_end.get().set(end, &task, coroutine);
        self.coroutine_field.swap(&task, coroutine, first_end.bind(py).as_any())?;
        let ran = step.run(py);
        self.coroutine_field.swap(&task, first_end.bind(py).as_any(), coroutine)?;
        first_end.get().clear();
        unless_done(&task, ran)?;
        Ok(Started::Task(task))
    }

    /// Has a Task call `leave` in place of its next step.
    pub(crate) fn abandon(&self, task: &Bound<'_, PyAny>, leave: &Py<PyAny>) -> PyResult<()> {
        let abandoned = Bound::new(task.py(), Abandoned { leave: leave.clone_ref(task.py()) })?;
        // Not dropped: the coroutine would be closed, and that is its Task's business, in the other process.
        std::mem::forget(self.coroutine_field.replace(task, abandoned.into_any()));
        Ok(())
    }

    /// A Task that will go on with `coroutine`, whose first step is under way or just over.
    fn make<'py>(
        &self,
        maker: &TaskMaker,
        coroutine: &Bound<'py, PyAny>,
        context: &Bound<'py, PyAny>,
    ) -> PyResult<Made> {
        let py = coroutine.py();
        let first_end = Bound::new(py, FirstEnd::default())?;
        let (task, step) = maker.make(first_end.as_any(), Some(context))?;
        self.coroutine_field.swap(&task, first_end.as_any(), coroutine)?;
        Ok(Made { task: task.unbind(), step, first_end: first_end.unbind() })
    }
}

impl Running<'_> {
    /// Somebody looks for the current task of `event_loop`.
    fn appear(&self, py: Python<'_>, event_loop: *mut ffi::PyObject) -> PyResult<()> {
        if event_loop != self.maker.event_loop.as_ptr() || self.made.borrow().is_some() || self.making.replace(true) {
            return Ok(());
        }
        // SAFETY: both are kept alive by whoever runs the step, and it has not ended.
        let (coroutine, context) =
            unsafe { (Bound::from_borrowed_ptr(py, self.coroutine), Bound::from_borrowed_ptr(py, self.context)) };
        let made = self.lazy.make(self.maker, &coroutine, &context).and_then(|made| {
            self.lazy.enter_task.bind(py).call1((&self.maker.event_loop, &made.task))?;
            Ok(made)
        });
        self.making.set(false);
        *self.made.borrow_mut() = Some(made?);
        Ok(())
    }
}

/// Whether one thread at a time runs Python, which all here relies on.
fn has_gil(py: Python<'_>) -> PyResult<bool> {
    match py.import(intern!(py, "sys"))?.getattr_opt(intern!(py, "_is_gil_enabled"))? {
        Some(is_enabled) => is_enabled.call0()?.is_truthy(),
        None => Ok(true),
    }
}

/// Runs a coroutine to its next suspension, or its end.
fn send_none(coroutine: &Bound<'_, PyAny>) -> End {
    let py = coroutine.py();
    let mut result = ptr::null_mut();
    // SAFETY: the interpreter is attached, and all three are what it asks for. The result is a new reference, or null
    // with an exception set.
    unsafe {
        match ffi::PyIter_Send(coroutine.as_ptr(), ffi::Py_None(), &raw mut result) {
            ffi::PySendResult::PYGEN_NEXT => End::Yielded(Bound::from_owned_ptr(py, result).unbind()),
            ffi::PySendResult::PYGEN_RETURN => End::Returned(Bound::from_owned_ptr(py, result).unbind()),
            ffi::PySendResult::PYGEN_ERROR => End::Raised(PyErr::fetch(py)),
        }
    }
}

/// Where a Task keeps its coroutine, in bytes from its start.
struct CoroutineField(usize);

impl CoroutineField {
    /// Makes a Task and looks where its coroutine is. `None` if there is not exactly one such place, or if another
    /// coroutine that is put there is not the Task's.
    fn find(py: Python<'_>, maker: &TaskMaker) -> PyResult<Option<Self>> {
        let first_end = Bound::new(py, FirstEnd::default())?.into_any();
        let Ok((task, step)) = maker.make(&first_end, None) else { return Ok(None) };
        let size: usize = task.get_type().getattr(intern!(py, "__basicsize__"))?.extract()?;
        let word = size_of::<usize>();
        let places: Vec<usize> = (size_of::<ffi::PyObject>()..=size - word)
            .step_by(word)
            .filter(|place| {
                // SAFETY: within the object, and aligned as its start is.
                unsafe { task.as_ptr().byte_add(*place).cast::<*mut ffi::PyObject>().read() == first_end.as_ptr() }
            })
            .collect();
        let field = match places[..] {
            [place] => {
                let field = Self(place);
                let other = Bound::new(py, FirstEnd::default())?.into_any();
                field.swap(&task, &first_end, &other)?;
                let seen = task.call_method0(intern!(py, "get_coro"))?.is(&other);
                field.swap(&task, &other, &first_end)?;
                seen.then_some(field)
            }
            _ => None,
        };
        // The Task ends, so that nobody complains of it.
        first_end.cast::<FirstEnd>()?.get().set(End::Returned(py.None()), &task, &first_end);
        step.run(py)?;
        Ok(field)
    }

    /// Puts `new` where `old` is.
    fn swap(&self, task: &Bound<'_, PyAny>, old: &Bound<'_, PyAny>, new: &Bound<'_, PyAny>) -> PyResult<()> {
        let was = self.replace(task, new.clone());
        if was.is(old) {
            return Ok(());
        }
        self.replace(task, was);
        Err(PyRuntimeError::new_err("a task has another coroutine than it was made of"))
    }

    /// Puts `new` there, and gives what was there before.
    fn replace<'py>(&self, task: &Bound<'py, PyAny>, new: Bound<'py, PyAny>) -> Bound<'py, PyAny> {
        // SAFETY: `find` saw that this is the field of the coroutine in objects of this class, which owns a reference.
        unsafe {
            let field = task.as_ptr().byte_add(self.0).cast::<*mut ffi::PyObject>();
            Bound::from_owned_ptr(task.py(), field.replace(new.into_ptr()))
        }
    }
}

/// Gives the loop a class whose hash notices who looks for the current task. Says whether it could.
fn watch_lookups(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = event_loop.py();
    let class = event_loop.get_type();
    // SAFETY: types live as long as their objects, and these fields are set when a type is made.
    let plain = unsafe {
        let hash = (*class.as_type_ptr()).tp_hash;
        hash.is_some() && hash.map(|hash| hash as usize) == ffi::PyBaseObject_Type.tp_hash.map(|hash| hash as usize)
    };
    if !plain {
        return Ok(false);
    }
    let namespace = PyDict::new(py);
    namespace.set_item("__slots__", PyTuple::empty(py))?;
    for name in ["__module__", "__qualname__", "__doc__"] {
        namespace.set_item(name, class.getattr(name)?)?;
    }
    let watched = class.get_type().call1((class.name()?, (&class,), namespace));
    let Ok(watched) = watched.and_then(|watched| Ok(watched.cast_into::<pyo3::types::PyType>()?)) else {
        return Ok(false);
    };
    // SAFETY: a class made a line above that has no object yet, and the function is what the field asks for.
    unsafe {
        (*watched.as_type_ptr()).tp_hash = Some(hash_of_loop);
        ffi::PyType_Modified(watched.as_type_ptr());
    }
    Ok(event_loop.setattr(intern!(py, "__class__"), watched).is_ok())
}

/// The hash of every object, and word of it to the item that runs without a Task.
unsafe extern "C" fn hash_of_loop(event_loop: *mut ffi::PyObject) -> ffi::Py_hash_t {
    let running = RUNNING.get();
    if !running.is_null() {
        // SAFETY: whoever asks for a hash has the interpreter; what runs is on this thread's stack, below this call.
        let (py, running) = unsafe { (Python::assume_attached(), &*running) };
        if let Err(error) = running.appear(py, event_loop) {
            error.restore(py);
            return -1;
        }
    }
    // SAFETY: `object` has a hash, and takes any object.
    unsafe { ffi::PyBaseObject_Type.tp_hash.map_or(-1, |hash| hash(event_loop)) }
}

/// A coroutine that leaves the process in place of any step.
#[pyclass(frozen, module = "polyloop._core")]
struct Abandoned {
    leave: Py<PyAny>,
}

#[pymethods]
impl Abandoned {
    fn send(&self, py: Python<'_>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.leave.call0(py)
    }

    #[pyo3(signature = (*_error))]
    fn throw(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        self.leave.call0(py)
    }

    fn close(&self) {}

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }
}

/// A coroutine whose one step ends as another's has, and that looks like the other.
#[pyclass(frozen, module = "polyloop._core")]
#[derive(Default)]
struct FirstEnd {
    end: Mutex<Option<(End, Py<PyAny>)>>,
    coroutine: Mutex<Option<Py<PyAny>>>,
}

impl FirstEnd {
    fn set(&self, end: End, task: &Bound<'_, PyAny>, coroutine: &Bound<'_, PyAny>) {
        *self.lock() = Some((end, task.clone().unbind()));
        *self.lock_coroutine() = Some(coroutine.clone().unbind());
    }

    fn clear(&self) {
        let dropped = (self.lock().take(), self.lock_coroutine().take());
        drop(dropped);
    }

    fn lock_coroutine(&self) -> std::sync::MutexGuard<'_, Option<Py<PyAny>>> {
        self.coroutine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(End, Py<PyAny>)>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl FirstEnd {
    fn send(&self, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let end = self.lock().take();
        match end {
            Some((End::Yielded(value), _)) => Ok(value),
            Some((End::Returned(value), _)) => Err(PyStopIteration::new_err((value,))),
            Some((End::Raised(error), _)) => Err(error),
            None => Err(PyRuntimeError::new_err("the first step of this item is over")),
        }
    }

    /// The item has cancelled its own Task during its first step. That is to count after the step, not before it, so
    /// the Task is asked once more, and its count of requests put right.
    #[pyo3(signature = (*_error))]
    fn throw(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        let task = self.lock().as_ref().map(|(_, task)| task.clone_ref(py));
        if let Some(task) = task {
            let message = task.getattr(py, intern!(py, "_cancel_message"))?;
            task.call_method1(py, intern!(py, "cancel"), (message,))?;
            task.call_method0(py, intern!(py, "uncancel"))?;
        }
        self.send(py.None().bind(py))
    }

    fn close(&self) {}

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// A Task that is unhappy with how the step ended shows its coroutine.
    fn __getattr__(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<Py<PyAny>> {
        let coroutine = self.lock_coroutine().as_ref().map(|coroutine| coroutine.clone_ref(py));
        match coroutine {
            Some(coroutine) if coroutine.bind(py).get_type().is_subclass_of::<Self>()? => Err(no_attribute(name)),
            Some(coroutine) => coroutine.getattr(py, name),
            None => Err(no_attribute(name)),
        }
    }
}

fn no_attribute(name: &Bound<'_, PyString>) -> PyErr {
    PyAttributeError::new_err(name.clone().unbind())
}
