//! What Python must do, as it is told.

use std::os::fd::IntoRawFd;

use polyloop::{Event, Report, WorkerId};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Manager;
use crate::errors;

pub(super) fn worker_key(worker: WorkerId) -> u64 {
    u64::from(worker.seat) << 32 | u64::from(worker.generation)
}

pub(super) fn worker_id(key: u64) -> WorkerId {
    WorkerId { seat: (key >> 32) as u16, generation: key as u32 }
}

impl Manager {
    pub(super) fn order<'py>(&self, py: Python<'py>, event: Event) -> PyResult<Bound<'py, PyAny>> {
        let order = match event {
            Event::Start(order) => {
                let (socket, lifeline) = (order.socket.into_raw_fd(), order.lifeline.into_raw_fd());
                let key = worker_key(order.worker);
                ("start", key, order.queue.0, socket, lifeline, order.our_ends).into_pyobject(py)?.into_any()
            }
            Event::Reap(worker) => ("reap", worker_key(worker)).into_pyobject(py)?.into_any(),
            Event::Garbage { worker, problem } => {
                ("garbage", worker_key(worker), problem).into_pyobject(py)?.into_any()
            }
            Event::Blocked { worker, pid, blocked } => {
                ("blocked", worker_key(worker), pid, blocked.as_secs_f64()).into_pyobject(py)?.into_any()
            }
            Event::Log { pid, dropped, record } => {
                ("log", pid, dropped, PyBytes::new(py, &record)).into_pyobject(py)?.into_any()
            }
            Event::Up => ("up",).into_pyobject(py)?.into_any(),
            Event::GaveUp(error) => {
                ("gave_up", errors::no_workers(py, &self.codec, &error)?).into_pyobject(py)?.into_any()
            }
            Event::Closed => ("closed",).into_pyobject(py)?.into_any(),
            Event::Report(Report::Died { worker, pid, exit, retried, lost, .. }) => {
                let exitcode = errors::exit_code(exit);
                ("died", worker_key(worker), pid, exitcode, retried, lost).into_pyobject(py)?.into_any()
            }
            Event::Report(Report::Degraded(error)) => {
                ("degraded", errors::no_workers(py, &self.codec, &error)?).into_pyobject(py)?.into_any()
            }
            Event::Report(Report::Recovered) => ("recovered",).into_pyobject(py)?.into_any(),
            Event::Report(Report::Terminated(count)) => ("terminated", count).into_pyobject(py)?.into_any(),
            Event::Returned(_) | Event::Deliver { .. } | Event::Yield { .. } | Event::Judge { .. } => {
                return Err(PyRuntimeError::new_err("an outcome is no order"));
            }
        };
        Ok(order)
    }
}
