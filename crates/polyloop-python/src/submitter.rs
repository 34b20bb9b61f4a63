//! Who submits the items of a map: the manager in the client, or, for a task that maps over its own pool, its worker.

use polyloop::CallId;
use pyo3::prelude::*;

use crate::call_port::CallPort;
use crate::manager::{Manager, Prepared};
use crate::map::MapCall;

pub(crate) enum Submitter {
    Manager(Py<Manager>),
    Port(Py<CallPort>),
}

impl Submitter {
    /// Adds to a run what an item needs to be submitted. Says whether it holds memory of which there is not much. Runs the
    /// caller's code.
    pub(crate) fn prepare_item(
        &self,
        map: &MapCall,
        item: &Bound<'_, PyAny>,
        buffer: &mut Vec<u8>,
        run: &mut Vec<Prepared>,
    ) -> PyResult<bool> {
        match self {
            Self::Manager(manager) => manager.get().prepare_item(map, item, buffer, run),
            Self::Port(port) => port.get().prepare_item(map, item, buffer, run),
        }
    }

    /// Submits items of a map, from this index on. All are accepted, or none.
    pub(crate) fn submit_items(&self, map: &Bound<'_, MapCall>, first: u64, items: Vec<Prepared>) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().submit_items(map, first, items),
            Self::Port(port) => port.get().submit_items(map, first, items),
        }
    }

    /// How many items a map may have outstanding while memory for what is large is scarce.
    pub(crate) fn scarce_window(&self) -> Option<usize> {
        match self {
            Self::Manager(manager) => manager.get().scarce_window(),
            Self::Port(port) => port.get().scarce_window(),
        }
    }

    /// Has a map go on in the loop's next round.
    pub(crate) fn go_on_later(&self, map: &Bound<'_, MapCall>) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().go_on_later(map.clone().unbind()),
            Self::Port(port) => port.get().go_on_later(map),
        }
    }

    /// No more items come.
    pub(crate) fn end_call(&self, call: CallId) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().end_call(call),
            // What a task calls is not kept apart by maps.
            Self::Port(_) => Ok(()),
        }
    }

    /// Cancels all items of a map.
    pub(crate) fn cancel_map(&self, map: &Bound<'_, MapCall>) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().cancel_call(map.get().call),
            Self::Port(port) => port.get().cancel_items(map, |_| true),
        }
    }

    /// Cancels the items of a map after this one.
    pub(crate) fn cancel_after(&self, map: &Bound<'_, MapCall>, index: u64) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().cancel_after(map.get().call, index),
            Self::Port(port) => port.get().cancel_items(map, |other| other > index),
        }
    }

    /// Has what was submitted flushed before the loop waits again.
    pub(crate) fn schedule_flush(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Manager(manager) => manager.get().schedule_flush(py),
            Self::Port(port) => port.get().schedule_turn(py),
        }
    }
}
