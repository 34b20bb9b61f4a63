//! One turn: does what the manager says, then starts items until there are none, no room, or the time is up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polyloop::{Control, Item, Job, Manner, Memory, Next, Reply, Stop, WorkerLink};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::functions::Function;
use super::{AGAIN, ASLEEP, DEFER, Host, NO_TASK, Remark, Running, Worker, cancel, lock};
use crate::apart::Inbox;
use crate::budget::TimeBudget;
use crate::codec::{Arguments, context_of};
use crate::errors;
use crate::map::MapCall;
use crate::port::StreamPort;
use crate::task::{Done, Level, Started, in_own_context, is_coroutine};

/// How long a turn may keep the loop from everything else.
const TURN_BUDGET: Duration = Duration::from_millis(1);

/// What the items of one turn use one after the other.
#[derive(Default)]
struct Desk {
    item: Item,
    /// The function of the last item, and its reference: most items run the same as the one before.
    function: Option<(Vec<u8>, Arc<Function>)>,
    /// What an item returned, as bytes.
    value: Vec<u8>,
    /// Whose that is, if it has not been sent.
    returned: Option<Job>,
    /// The large parts of the next item's arguments.
    apart: Option<Arc<Memory>>,
}

enum Called<'py> {
    Value(Bound<'py, PyAny>),
    Coroutine(Bound<'py, PyAny>),
}

impl Worker {
    /// Does what the manager says, and starts items until there are none, no room, or the time is up.
    pub(super) fn work(&self, slf: &Bound<'_, Self>) -> PyResult<u8> {
        let py = slf.py();
        let host = self.host()?;
        let level = host.tasks.level(py)?;
        let mut desk = Desk::default();
        self.cancel_overdue(py)?;
        self.obey(slf, host, &mut desk, level)?;
        self.start_items(slf, host, &mut desk, level)
    }

    fn obey(&self, slf: &Bound<'_, Self>, host: &Host, desk: &mut Desk, level: Level) -> PyResult<()> {
        let py = slf.py();
        let mut maps = self.calls.take_late();
        loop {
            let control = lock(&self.link).next_control(&mut desk.item).map_err(errors::worker)?;
            match control {
                None => break,
                Some(Control::Answer(number, outcome, apart)) => {
                    self.answered(py, number, *outcome, apart.as_ref(), &mut maps);
                }
                Some(Control::Start(job, apart)) => {
                    desk.apart = apart;
                    self.run(slf, host, job, desk, level)?;
                    self.send_returned(&mut lock(&self.link), desk);
                }
                Some(Control::Stop(Stop::Now)) => {
                    self.cancel_all(py)?;
                    self.stopping.store(true, Ordering::Relaxed);
                }
                Some(Control::Stop(Stop::WhenDone)) => (),
                Some(Control::Credit(task, values)) => {
                    let port = lock(&self.ports).get(&task).map(|port| port.clone_ref(py));
                    if let Some(port) = port {
                        port.get().credit(py, values);
                    }
                }
                Some(Control::Cancel(task)) => {
                    let task = lock(&self.running).get(&task).map(|running| running.task.clone_ref(py));
                    if let Some(task) = task {
                        cancel(task.bind(py))?;
                    }
                }
            }
        }
        maps.iter().try_for_each(|map| MapCall::go_on(map.bind(py)))
    }

    fn start_items(&self, slf: &Bound<'_, Self>, host: &Host, desk: &mut Desk, level: Level) -> PyResult<u8> {
        let mut budget = TimeBudget::new(TURN_BUDGET);
        loop {
            let next = {
                let mut link = lock(&self.link);
                self.send_returned(&mut link, desk);
                link.next_item(&mut desk.item).map_err(errors::worker)?
            };
            match next {
                Next::Start(job) => self.run(slf, host, job, desk, level)?,
                Next::Defer(_) => return Ok(DEFER),
                Next::Nothing => return Ok(ASLEEP),
            }
            if self.is_abandoned() || budget.is_spent() {
                self.send_returned(&mut lock(&self.link), desk);
                return Ok(AGAIN);
            }
        }
    }

    /// Sends what the last item returned. That waits for the next look at the link, which follows at once.
    fn send_returned(&self, link: &mut WorkerLink, desk: &mut Desk) {
        if let Some(job) = desk.returned.take()
            && !self.is_abandoned()
        {
            link.reply(job, Reply::Value(&desk.value));
        }
    }

    fn run(&self, slf: &Bound<'_, Self>, host: &Host, job: Job, desk: &mut Desk, level: Level) -> PyResult<()> {
        self.watch(job)?;
        self.current.store(job.task.to_bits(), Ordering::Relaxed);
        let context = context_of(&desk.item.arguments).map(|context| self.codec.loads(slf.py(), context));
        let begun = match context {
            None if !self.calls.marks() => self.begin(slf, host, job, desk, level),
            None => self.begin_in(slf, host, job, desk, level, None),
            Some(Ok(values)) => self.begin_in(slf, host, job, desk, level, Some(&values)),
            Some(Err(error)) => self.reply_error(slf.py(), job, &error),
        };
        self.current.store(NO_TASK, Ordering::Relaxed);
        begun?;
        // A process that this item forked goes no further: the loop shares what it waits for with the worker's.
        if self.is_ours() { Ok(()) } else { Err(PyRuntimeError::new_err("this process is not the worker")) }
    }

    /// Begins an item in a context in which the variables that came with it are set, and its number where items are marked.
    fn begin_in(
        &self,
        slf: &Bound<'_, Self>,
        host: &Host,
        job: Job,
        desk: &mut Desk,
        level: Level,
        values: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let caller = self.calls.marks().then(|| job.task.to_bits());
        let (begun, _) = in_own_context(py, |_| match enter(py, host, values, caller) {
            Ok(()) => self.begin(slf, host, job, desk, level),
            Err(error) => self.reply_error(py, job, &error),
        })?;
        begun
    }

    fn begin(&self, slf: &Bound<'_, Self>, host: &Host, job: Job, desk: &mut Desk, level: Level) -> PyResult<()> {
        let py = slf.py();
        let Desk { item, function, value: bytes, returned, apart } = desk;
        let apart = apart.take();
        let (manner, reference) = Manner::split(&item.function);
        if manner.name.is_some() || job.attempt > 1 {
            let remark = Remark { name: manner.name.map(str::to_owned), attempt: job.attempt };
            lock(&self.remarks).insert(job.task, remark);
            self.any_remarks.store(true, Ordering::Relaxed);
        }
        let function = match self.function(py, reference, function) {
            Err(error) if self.codec.is_not_importable(py, &error) => {
                let bytes = self.codec.dump_exception(py, &error)?;
                self.reply(job, Reply::Rejected(&bytes));
                return Ok(());
            }
            function => function,
        };
        let called = function.and_then(|function| {
            let arguments = self.codec.read_arguments(py, &item.arguments, Inbox::new(apart.as_ref(), job.kept))?;
            // What uses the memory keeps it, and no longer than that.
            drop(apart);
            let called = match manner.is_stream {
                true => self.open_port(slf, host, job, function, manner.in_thread, arguments)?,
                false => self.call(py, host, function, manner.in_thread, arguments)?,
            };
            Ok((called, function))
        });
        let (coroutine, function) = match called {
            Ok((Called::Value(value), _)) => return self.put_value(job, &value, bytes, returned),
            Ok((Called::Coroutine(coroutine), function)) => (coroutine, function),
            Err(error) if self.was_interrupted(py, host, job, &error)? => {
                self.reply(job, Reply::Cancelled);
                return Ok(());
            }
            Err(error) => return self.reply_error(py, job, &error),
        };
        match host.tasks.start(&coroutine, level, &function.suspends, manner.name) {
            Err(error) => {
                // It may not have begun, when a signal came first; then it is closed without a warning.
                coroutine.call_method0(intern!(py, "close"))?;
                self.reply_error(py, job, &error)
            }
            Ok(Started::Ended(Ok(value))) => self.put_value(job, &value, bytes, returned),
            Ok(Started::Ended(Err(error))) if error.matches(py, &host.cancelled_error)? => {
                self.reply(job, Reply::Cancelled);
                Ok(())
            }
            Ok(Started::Ended(Err(error))) => self.reply_error(py, job, &error),
            Ok(Started::Task(task)) if task.call_method0(intern!(py, "done"))?.is_truthy()? => self.report(job, &task),
            Ok(Started::Task(task)) => {
                let function = Arc::clone(function);
                lock(&self.running).insert(job.task, Running { task: task.clone().unbind(), function });
                let done = Done::new(slf.clone().unbind(), job);
                task.call_method1(intern!(py, "add_done_callback"), (done,))?;
                Ok(())
            }
        }
    }

    /// Sends what an item returned, or has it sent by whoever looks at the link next.
    fn put_value(
        &self,
        job: Job,
        value: &Bound<'_, PyAny>,
        bytes: &mut Vec<u8>,
        returned: &mut Option<Job>,
    ) -> PyResult<()> {
        if !self.write_returned(value, bytes) {
            return self.reply_value(job, value, bytes);
        }
        self.forget_ended(job);
        *returned = Some(job);
        Ok(())
    }

    /// Opens a stream: what gives its values.
    fn open_port<'py>(
        &self,
        slf: &Bound<'py, Self>,
        host: &Host,
        job: Job,
        function: &Function,
        in_thread: bool,
        arguments: Arguments<'py>,
    ) -> PyResult<Called<'py>> {
        let py = slf.py();
        let (args, kwargs) = arguments.into_parts(py)?;
        let port = Py::new(py, StreamPort::new(slf.clone().unbind(), job))?;
        lock(&self.ports).insert(job.task, port.clone_ref(py));
        self.any_ports.store(true, Ordering::Relaxed);
        host.produce.bind(py).call1((port, &function.call, args, kwargs, in_thread)).map(Called::Coroutine)
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        host: &Host,
        function: &Function,
        in_thread: bool,
        arguments: Arguments<'py>,
    ) -> PyResult<Called<'py>> {
        let call = function.call.bind(py);
        if function.is_async_generator {
            return Err(self.codec.refuse_async_generator(call));
        }
        if function.is_coroutine {
            return arguments.call(call).map(Called::Coroutine);
        }
        if in_thread {
            let (args, kwargs) = arguments.into_parts(py)?;
            return host.run_in_thread.bind(py).call1((call, args, kwargs)).map(Called::Coroutine);
        }
        self.in_native.store(function.is_native, Ordering::Relaxed);
        let called = in_own_context(py, |_| arguments.call(call));
        self.in_native.store(false, Ordering::Relaxed);
        let result = called?.0?;
        if is_coroutine(&result) {
            return Ok(Called::Coroutine(result));
        }
        if is_awaitable(&result) {
            return host.wait_for.bind(py).call1((result,)).map(Called::Coroutine);
        }
        Ok(Called::Value(result))
    }
}

/// Sets the variables that came with an item in the current context, and the one that says which item it is.
fn enter(py: Python<'_>, host: &Host, values: Option<&Bound<'_, PyAny>>, caller: Option<u64>) -> PyResult<()> {
    let set = intern!(py, "set");
    if let Some(caller) = caller {
        host.caller.call_method1(py, set, (caller,))?;
    }
    let values = values.map_or_else(|| Ok(HashMap::new()), |values| values.extract::<HashMap<usize, Py<PyAny>>>())?;
    for (at, value) in values {
        if let Some(variable) = host.contextvars.get(at) {
            variable.call_method1(py, set, (value,))?;
        }
    }
    Ok(())
}

fn is_awaitable(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object's type is live, and its table of asynchronous slots, if there is one, is never changed.
    unsafe {
        let slots = (*value.get_type_ptr()).tp_as_async;
        !slots.is_null() && (*slots).am_await.is_some()
    }
}
