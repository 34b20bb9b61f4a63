//! Calls that items make of their pool: what was sent, who waits for it, and what has come of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use polyloop::{Ask, AskError, Lease, Memory, NestedId, Outcome, Payload, TaskId};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;

use super::{NO_TASK, Worker, lock};
use crate::apart::Inbox;
use crate::call_port::CallPort;
use crate::errors;
use crate::manager::{ItemResult, as_result, complete, name_of};
use crate::map::MapCall;
use crate::options::{TaskOptions, Verb};
use crate::pending::Target;
use crate::reference::travels_by_name;

/// Large items of a map that are outstanding while there is little memory for them.
const SCARCE_WINDOW: usize = 16;
const NOT_IN_A_TASK: &str = "only a task can call the pool that runs it: use current_worker().pool in a task, or in what a \
    task starts, not in an initializer or a lifespan, nor in a thread or a context of your own";
const TASK_HAS_ENDED: &str =
    "the task that this pool was taken in has ended, and what it left behind can't call the pool";

/// What a call is made of, and made again.
pub(crate) struct Errand {
    pub(crate) target: Target,
    pub(crate) function: Py<PyAny>,
    /// What makes its reference by value differ from those of others.
    pub(crate) scope: u64,
    pub(crate) reference: Arc<[u8]>,
    pub(crate) arguments: Payload,
    pub(crate) options: Py<TaskOptions>,
    /// The item that makes it; several where that is a guess.
    pub(crate) callers: Vec<TaskId>,
}

/// A call that has not been answered.
struct Asked {
    errand: Errand,
    /// Its number at the moment: another for each time that it is made.
    number: NestedId,
    /// How many times it may still be run again for what it raises.
    retries: u32,
    /// Which run of it this is, from 1.
    attempt: u32,
    is_withdrawn: bool,
}

#[derive(Default)]
struct Table {
    /// By token.
    asked: HashMap<u64, Asked>,
    tokens: HashMap<NestedId, u64>,
    last: u64,
}

/// The calls of a worker's items.
#[derive(Default)]
pub(super) struct Calls {
    table: Mutex<Table>,
    /// Maps that have drawn as long as they may in a turn, and go on in the next.
    late: Mutex<Vec<Py<MapCall>>>,
    any_late: AtomicBool,
    last_scope: AtomicU64,
    /// Whether items are begun with their numbers in a context variable, since something has called that did not know
    /// its own.
    marks: AtomicBool,
    /// Items that had begun before that.
    unmarked: Mutex<BTreeSet<TaskId>>,
}

impl Calls {
    pub(super) fn marks(&self) -> bool {
        self.marks.load(Ordering::Relaxed)
    }

    pub(super) fn take_late(&self) -> Vec<Py<MapCall>> {
        if !self.any_late.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.any_late.store(false, Ordering::Relaxed);
        std::mem::take(&mut *lock(&self.late))
    }
}

impl Table {
    fn insert(&mut self, token: u64, asked: Asked) {
        self.tokens.insert(asked.number, token);
        self.asked.insert(token, asked);
    }

    fn remove(&mut self, token: u64) -> Option<Asked> {
        let asked = self.asked.remove(&token)?;
        self.tokens.remove(&asked.number);
        Some(asked)
    }
}

impl Worker {
    /// The port for the calls of an item; of any that it may be, where that is not known.
    pub(super) fn port_for(
        slf: &Bound<'_, Self>,
        caller: Option<u64>,
        capture_context: Option<Py<PyAny>>,
    ) -> PyResult<CallPort> {
        let this = slf.get();
        let callers = caller.map_or_else(|| this.likely_callers(), |bits| vec![TaskId::from_bits(bits)]);
        if callers.is_empty() {
            return Err(PyRuntimeError::new_err(NOT_IN_A_TASK));
        }
        Ok(CallPort::new(slf.clone().unbind(), callers, capture_context))
    }

    /// The items that code may belong to that does not know its own: any that had begun before items knew it. From the
    /// first time on, all that begin do.
    fn likely_callers(&self) -> Vec<TaskId> {
        let running = self.running_items();
        let mut unmarked = lock(&self.calls.unmarked);
        if !self.calls.marks.swap(true, Ordering::Relaxed) {
            unmarked.extend(&running);
        }
        unmarked.retain(|item| running.contains(item));
        unmarked.iter().copied().collect()
    }

    fn runs(&self, item: TaskId) -> bool {
        self.current.load(Ordering::Relaxed) == item.to_bits() || lock(&self.running).contains_key(&item)
    }

    fn running_items(&self) -> BTreeSet<TaskId> {
        let mut items: BTreeSet<_> = lock(&self.running).keys().copied().collect();
        let current = self.current.load(Ordering::Relaxed);
        items.extend((current != NO_TASK).then(|| TaskId::from_bits(current)));
        items
    }

    /// Makes a call. What comes of it goes to its target. Returns a token for [`Self::withdraw`].
    pub(crate) fn ask(&self, py: Python<'_>, errand: Errand) -> PyResult<u64> {
        let (retries, attempt) = (errand.options.get().retries, 1);
        let number = self.send(&errand, retries, attempt)?;
        let token = {
            let mut table = lock(&self.calls.table);
            table.last += 1;
            let token = table.last;
            table.insert(token, Asked { errand, number, retries, attempt, is_withdrawn: false });
            token
        };
        self.schedule_turn(py)?;
        Ok(token)
    }

    fn send(&self, errand: &Errand, retries: u32, attempt: u32) -> PyResult<NestedId> {
        let callers: Vec<_> = errand.callers.iter().copied().filter(|caller| self.runs(*caller)).collect();
        if callers.is_empty() || self.is_abandoned() {
            return Err(PyRuntimeError::new_err(TASK_HAS_ENDED));
        }
        let TaskOptions { retry_deaths, timeout, .. } = *errand.options.get();
        let (function, arguments): (&[u8], &[u8]) = (&errand.reference, &errand.arguments);
        let ask =
            Ask { is_loose: errand.callers.len() > 1, retries, retry_deaths, attempt, timeout, function, arguments };
        let lease = errand.arguments.luggage().and_then(|luggage| luggage.get::<Lease>());
        lock(&self.link).ask(&callers, &ask, lease).map_err(refused)
    }

    /// Asks for a call to be cancelled whose outcome goes to this future, or from now on to another target. Says whether
    /// it had not ended.
    pub(crate) fn withdraw(&self, token: u64, future: &Bound<'_, PyAny>, target: Option<Target>) -> PyResult<bool> {
        let (number, before) = match lock(&self.calls.table).asked.get_mut(&token) {
            Some(asked) if matches!(&asked.errand.target, Target::Future(of, _) if of.is(future)) => {
                asked.is_withdrawn = true;
                (asked.number, target.map(|target| std::mem::replace(&mut asked.errand.target, target)))
            }
            _ => return Ok(false),
        };
        // Not under the lock: it may be the last to hold something that runs code as it goes.
        drop(before);
        lock(&self.link).withdraw(number);
        self.schedule_turn(future.py())?;
        Ok(true)
    }

    /// Asks for those calls to be cancelled whose targets are meant.
    pub(crate) fn withdraw_where(&self, py: Python<'_>, is_meant: impl Fn(&Target) -> bool) -> PyResult<()> {
        let mut numbers = Vec::new();
        for asked in lock(&self.calls.table).asked.values_mut().filter(|asked| is_meant(&asked.errand.target)) {
            asked.is_withdrawn = true;
            numbers.push(asked.number);
        }
        if numbers.is_empty() {
            return Ok(());
        }
        {
            let mut link = lock(&self.link);
            numbers.into_iter().for_each(|number| link.withdraw(number));
        }
        self.schedule_turn(py)
    }

    /// Has a map go on in the next turn.
    pub(crate) fn go_on_later(&self, map: &Bound<'_, MapCall>) -> PyResult<()> {
        lock(&self.calls.late).push(map.clone().unbind());
        self.calls.any_late.store(true, Ordering::Relaxed);
        self.schedule_turn(map.py())
    }

    /// Nobody wants to hear of this call any more.
    pub(crate) fn disown(&self, token: u64) {
        let disowned = lock(&self.calls.table).remove(token);
        if let Some(Asked { number, .. }) = &disowned {
            lock(&self.link).withdraw(*number);
        }
    }

    /// How many items a map may have outstanding while memory for what is large is scarce.
    pub(crate) fn scarce_window(&self) -> Option<usize> {
        lock(&self.link).is_scarce().then_some(SCARCE_WINDOW)
    }

    pub(crate) fn take_block(&self, bytes: usize) -> Option<Lease> {
        lock(&self.link).take_block(bytes)
    }

    pub(crate) fn reference_of(&self, function: &Bound<'_, PyAny>, scope: u64) -> PyResult<Arc<[u8]>> {
        Ok(self.codec.function_ref(function, scope, Verb::Call)?.into())
    }

    /// A number for a map of this worker's, which makes its function by value differ from those of all others of the pool.
    pub(crate) fn new_scope(&self) -> u64 {
        let process = u64::from(std::process::id()) << 32;
        process | (self.calls.last_scope.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// What came of a call. `maps` gets the map that it belongs to, which is to go on.
    pub(super) fn answered(
        &self,
        py: Python<'_>,
        number: NestedId,
        outcome: Outcome,
        apart: Option<&Arc<Memory>>,
        maps: &mut Vec<Py<MapCall>>,
    ) {
        let (token, mut asked) = {
            let mut table = lock(&self.calls.table);
            let Some(token) = table.tokens.get(&number).copied() else { return };
            let Some(asked) = table.remove(token) else { return };
            (token, asked)
        };
        let is_judged = matches!(outcome, Outcome::Raised(_) | Outcome::TimedOut);
        let result = match outcome {
            Outcome::Cancelled => None,
            Outcome::Rejected(_) if !asked.is_withdrawn && self.goes_by_value(py, &mut asked.errand) => {
                return self.ask_again(py, token, asked, maps);
            }
            outcome => Some(self.outcome(py, &asked.errand, outcome, apart)),
        };
        if is_judged
            && let Some(Err(error)) = &result
            && asked.retries > 0
            && !asked.is_withdrawn
            && asked.errand.options.get().is_reason(error.bind(py))
        {
            asked.retries -= 1;
            asked.attempt += 1;
            return self.ask_again(py, token, asked, maps);
        }
        settle(py, asked.errand.target, result, maps);
    }

    /// No answers come any more: whoever waits for one is told that it was cancelled.
    pub(super) fn cancel_calls(&self, py: Python<'_>) -> PyResult<()> {
        let Table { asked, .. } = std::mem::take(&mut *lock(&self.calls.table));
        let mut maps = Vec::new();
        for Asked { errand, .. } in asked.into_values() {
            settle(py, errand.target, None, &mut maps);
        }
        maps.iter().try_for_each(|map| MapCall::go_on(map.bind(py)))
    }

    /// Makes a call once more. Where that can't be, this is what comes of it.
    fn ask_again(&self, py: Python<'_>, token: u64, mut asked: Asked, maps: &mut Vec<Py<MapCall>>) {
        match self.send(&asked.errand, asked.retries, asked.attempt) {
            Ok(number) => {
                asked.number = number;
                lock(&self.calls.table).insert(token, asked);
            }
            Err(error) => settle(py, asked.errand.target, Some(Err(error.into_value(py).into_any())), maps),
        }
    }

    /// Has a function travel by value that a worker could not import. Says whether that is of use.
    fn goes_by_value(&self, py: Python<'_>, errand: &mut Errand) -> bool {
        if !travels_by_name(&errand.reference) {
            return false;
        }
        let Ok(reference) = self.codec.function_by_value(errand.function.bind(py), errand.scope) else { return false };
        errand.reference = errand.options.get().manner(Verb::Call).put_on(reference.into());
        true
    }

    /// The value of a call, or the exception that stands for everything else.
    fn outcome(&self, py: Python<'_>, errand: &Errand, outcome: Outcome, apart: Option<&Arc<Memory>>) -> ItemResult {
        if let Outcome::Value(bytes) = &outcome {
            let read = self.codec.read(py, bytes, Inbox::new(apart, false)).map(Bound::unbind);
            return read.map_err(|error| as_result(py, errors::unreadable(py, error)));
        }
        let options = errand.options.get();
        let name = options.name.clone().or_else(|| {
            let reference = self.reference_of(errand.function.bind(py), 0).ok()?;
            name_of(errand.function.bind(py), &reference)
        });
        Err(as_result(py, errors::exception_for(py, &self.codec, &outcome, name, options.timeout)))
    }
}

/// Gives a result to whoever waits for it; none if it was cancelled.
fn settle(py: Python<'_>, target: Target, result: Option<ItemResult>, maps: &mut Vec<Py<MapCall>>) {
    match (target, result) {
        (Target::Future(future, _), None) => complete(py, future.bind(py), intern!(py, "cancel"), None),
        (Target::Future(future, _), Some(Ok(value))) => {
            complete(py, future.bind(py), intern!(py, "set_result"), Some(value));
        }
        (Target::Future(future, _), Some(Err(error))) => {
            complete(py, future.bind(py), intern!(py, "set_exception"), Some(error));
        }
        (Target::Ended(future), _) => complete(py, future.bind(py), intern!(py, "set_result"), Some(py.None())),
        (Target::Item(map, index), result) => {
            let cancelled = || Err(as_result(py, crate::manager::cancelled(py)));
            map.get().deliver([(index, result.unwrap_or_else(cancelled))]);
            if !maps.iter().any(|touched| touched.is(&map)) {
                maps.push(map);
            }
        }
        // No call of a task has another.
        (Target::Apply(_) | Target::Stream(_), _) => (),
    }
}

fn refused(error: AskError) -> PyErr {
    match error {
        AskError::TooMany(reason) => errors::pool_full(&reason.to_string()),
        AskError::CannotPass => PyOSError::new_err(error.to_string()),
        AskError::Forked => PyRuntimeError::new_err(error.to_string()),
        AskError::Os(error) => error.into(),
    }
}
