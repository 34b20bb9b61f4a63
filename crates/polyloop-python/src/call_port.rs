//! Where a task's calls of its own pool leave the worker. What comes back is the worker's business: see `worker/calls`.

use polyloop::{CallId, Luggage, Payload, TaskId};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::apart::write_apart;
use crate::codec::write_context;
use crate::manager::Prepared;
use crate::map::{MapCall, Opening};
use crate::options::{TaskOptions, Verb};
use crate::pending::Target;
use crate::submitter::Submitter;
use crate::worker::{Errand, Worker};

/// The calls of one task. Has the methods of `Manager` that whoever calls a pool needs.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct CallPort {
    worker: Py<Worker>,
    /// The task; several where that is a guess.
    callers: Vec<TaskId>,
    capture_context: Option<Py<PyAny>>,
}

impl CallPort {
    pub(crate) fn new(worker: Py<Worker>, callers: Vec<TaskId>, capture_context: Option<Py<PyAny>>) -> Self {
        Self { worker, callers, capture_context }
    }

    pub(crate) fn prepare_item(
        &self,
        map: &MapCall,
        item: &Bound<'_, PyAny>,
        buffer: &mut Vec<u8>,
        run: &mut Vec<Prepared>,
    ) -> PyResult<bool> {
        buffer.clear();
        let args = map.arguments(item)?;
        let arguments = self.write(item.py(), buffer, map.context.as_deref(), &args, None)?;
        let is_large = arguments.luggage().is_some();
        run.push(Prepared::new(arguments));
        Ok(is_large)
    }

    pub(crate) fn submit_items(&self, map: &Bound<'_, MapCall>, first: u64, items: Vec<Prepared>) -> PyResult<()> {
        let (this, py, worker) = (map.get(), map.py(), self.worker.get());
        let mut tokens = Vec::with_capacity(items.len());
        for (index, item) in (first..).zip(items) {
            let errand = Errand {
                target: Target::Item(map.clone().unbind(), index),
                function: this.function(py).clone().unbind(),
                scope: this.scope,
                reference: this.reference(),
                arguments: item.into_arguments(),
                options: this.options.clone_ref(py),
                callers: self.callers.clone(),
            };
            match worker.ask(py, errand) {
                Ok(token) => tokens.push(token),
                Err(error) => {
                    tokens.iter().for_each(|token| worker.disown(*token));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn cancel_items(&self, map: &Bound<'_, MapCall>, is_meant: impl Fn(u64) -> bool) -> PyResult<()> {
        let is_meant = |target: &Target| matches!(target, Target::Item(of, index) if of.is(map) && is_meant(*index));
        self.worker.get().withdraw_where(map.py(), is_meant)
    }

    pub(crate) fn scarce_window(&self) -> Option<usize> {
        self.worker.get().scarce_window()
    }

    pub(crate) fn go_on_later(&self, map: &Bound<'_, MapCall>) -> PyResult<()> {
        self.worker.get().go_on_later(map)
    }

    pub(crate) fn schedule_turn(&self, py: Python<'_>) -> PyResult<()> {
        self.worker.get().schedule_turn(py)
    }

    fn context(&self, py: Python<'_>) -> PyResult<Option<Vec<u8>>> {
        self.capture_context.as_ref().map_or(Ok(None), |capture| capture.call0(py)?.extract(py))
    }

    /// Arguments as bytes, what of them is large in a block where there is one.
    fn write(
        &self,
        py: Python<'_>,
        bytes: &mut Vec<u8>,
        context: Option<&[u8]>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Payload> {
        let worker = self.worker.get();
        let write = |bytes: &mut _, apart: &mut _| {
            write_context(context, bytes);
            worker.codec().write_arguments(args, kwargs, bytes, apart)
        };
        let lease = write_apart(py, bytes, |len| worker.take_block(len), write)?;
        Ok(Payload::from_vec(std::mem::take(bytes)).with(lease.map(Luggage::new)))
    }

    fn enter(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        target: Target,
    ) -> PyResult<u64> {
        let (py, worker) = (func.py(), self.worker.get());
        let reference = options.get().manner(Verb::Call).put_on(worker.reference_of(func, 0)?);
        let arguments = self.write(py, &mut Vec::new(), self.context(py)?.as_deref(), args, kwargs)?;
        let (function, callers) = (func.clone().unbind(), self.callers.clone());
        worker.ask(py, Errand { target, function, scope: 0, reference, arguments, options, callers })
    }
}

#[pymethods]
impl CallPort {
    /// Whether this process is the worker, not one that it forked.
    #[getter]
    fn is_ours(&self) -> bool {
        self.worker.get().is_ours()
    }

    /// Submit `func(*args, **kwargs)`; `future` gets what comes of it, and `keeps` is kept alive until then. Returns a
    /// token for `cancel` and `request_cancel`.
    #[pyo3(signature = (func, args, kwargs, options, future, keeps = None))]
    fn submit(
        &self,
        func: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        options: Py<TaskOptions>,
        future: Py<PyAny>,
        keeps: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        self.enter(func, args, kwargs, options, Target::Future(future, keeps))
    }

    /// Submit `func(*args, **kwargs)`. Await the future that this returns for what comes of it.
    fn apply<'py>(
        &self,
        func: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: Py<TaskOptions>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = func.py();
        let future = self.worker.get().create_future(py)?.into_bound(py);
        let target = Target::Future(future.clone().unbind(), None);
        let token = self.enter(func, args, kwargs, options, target)?;
        future.setattr(intern!(py, "_token"), token)?;
        Ok(future)
    }

    /// Open a map of `func` over what `source` (an iterator) gives, or over what is pushed if it is None.
    #[expect(clippy::too_many_arguments, reason = "a map has that many sides")]
    #[pyo3(signature = (func, source, star, options, window, chunk, keeps_errors))]
    fn open_map(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        source: Option<Py<PyAny>>,
        star: bool,
        options: Py<TaskOptions>,
        window: usize,
        chunk: Option<u32>,
        keeps_errors: bool,
    ) -> PyResult<Py<MapCall>> {
        // What one post carries is for the manager to say, which gets the items one by one.
        let _ = chunk;
        let (this, py) = (slf.get(), slf.py());
        let worker = this.worker.get();
        let scope = worker.new_scope();
        let reference = options.get().manner(Verb::Call).put_on(worker.reference_of(func, scope)?);
        let (function, context, call) = (func.clone().unbind(), this.context(py)?, CallId::SINGLES);
        let opening = Opening { function, reference, scope, call, options, context, star, window, keeps_errors };
        Py::new(py, MapCall::new(Submitter::Port(slf.clone().unbind()), opening, source))
    }

    /// Cancel a call of `apply`; `ended` is set once it has ended. False if it has ended already.
    fn cancel(&self, call: &Bound<'_, PyAny>, ended: Py<PyAny>) -> PyResult<bool> {
        let token = call.getattr(intern!(call.py(), "_token"))?.extract()?;
        self.worker.get().withdraw(token, call, Some(Target::Ended(ended)))
    }

    /// Ask for a call to be cancelled; `future` gets what comes of it all the same. False if it has ended already.
    fn request_cancel(&self, token: u64, future: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.worker.get().withdraw(token, future, None)
    }
}
