//! Queues between processes, for `polyloop.queue`: bytes in, bytes out.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polyloop::{Nap, SharedQueue, Side, Watch};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;

/// An item larger than this is copied without holding the interpreter.
const LONG_COPY_BYTES: usize = 64 << 10;

/// A queue, as this process sees it.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct Queue {
    shared: Arc<SharedQueue>,
}

/// What waits for a queue on an event loop: for items, or for room.
#[pyclass(frozen, module = "polyloop._core")]
pub(crate) struct QueueWatch {
    // One thread uses it: the loop's. The mutex is what makes that no matter of trust.
    watch: Mutex<Watch>,
}

fn side(for_room: bool) -> Side {
    if for_room { Side::Room } else { Side::Items }
}

#[pymethods]
impl Queue {
    #[new]
    fn new(limit: Option<u64>) -> PyResult<Self> {
        let shared = SharedQueue::create(limit).map_err(errors::queue)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The queue whose descriptors these are. They are taken over.
    #[staticmethod]
    fn attach(memory: RawFd, items: RawFd, room: Option<RawFd>) -> PyResult<Self> {
        let (memory, items) = (errors::owned(memory)?, errors::owned(items)?);
        let room = room.map(errors::owned).transpose()?;
        let shared = SharedQueue::attach(memory, items, room).map_err(errors::queue)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// This queue in a process that was forked from the one that has it.
    fn reborn(&self) -> PyResult<Self> {
        let shared = SharedQueue::reborn(Arc::clone(&self.shared)).map_err(errors::queue)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Memory, and the bells for items and for room.
    fn fds(&self) -> (RawFd, RawFd, Option<RawFd>) {
        let (memory, items, room) = self.shared.fds();
        (memory.as_raw_fd(), items.as_raw_fd(), room.map(|room| room.as_raw_fd()))
    }

    #[getter]
    fn limit(&self) -> Option<u64> {
        self.shared.limit()
    }

    #[getter]
    fn memory(&self) -> PyResult<u64> {
        self.shared.memory().map_err(errors::queue)
    }

    fn __len__(&self) -> PyResult<usize> {
        self.shared.len().map(|len| len as usize).map_err(errors::queue)
    }

    /// Whether the item was put; if not, the queue is full.
    fn put(&self, py: Python<'_>, item: &[u8]) -> PyResult<bool> {
        let put = || self.shared.put(item);
        let put = if item.len() > LONG_COPY_BYTES { py.detach(put) } else { put() };
        put.map_err(errors::queue)
    }

    /// The same, waiting for room for so many seconds, or as long as it takes.
    fn put_within(&self, py: Python<'_>, item: &[u8], timeout_s: Option<f64>) -> PyResult<bool> {
        let put = self.within(py, Side::Room, timeout_s, || self.put(py, item).map(|put| put.then_some(())))?;
        Ok(put.is_some())
    }

    /// The next item, or None where there is none.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        // Holding the interpreter all the time: another thread may hold it while it waits for this one's turn to end.
        let taken: Result<_, errors::Queue> = self
            .shared
            .take_into(|size, read| Ok(PyBytes::new_with(py, size, |bytes| read(bytes).map_err(errors::queue))?));
        taken.map_err(|error| error.0)
    }

    /// The same, waiting for an item for so many seconds, or as long as it takes.
    fn take_within<'py>(&self, py: Python<'py>, timeout_s: Option<f64>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.within(py, Side::Items, timeout_s, || self.take(py))
    }

    fn watch(&self, for_room: bool) -> PyResult<QueueWatch> {
        let watch = Watch::new(Arc::clone(&self.shared), side(for_room)).map_err(errors::queue)?;
        Ok(QueueWatch { watch: Mutex::new(watch) })
    }

    fn close(&self) -> PyResult<()> {
        self.shared.close().map_err(errors::queue)
    }
}

impl Queue {
    /// Tries until it succeeds or the time is over, asleep in between. Signals are handled meanwhile.
    fn within<T>(
        &self,
        py: Python<'_>,
        side: Side,
        timeout_s: Option<f64>,
        mut attempt: impl FnMut() -> PyResult<Option<T>>,
    ) -> PyResult<Option<T>> {
        // What is too far away to be a moment is never.
        let until = timeout_s.and_then(|timeout_s| {
            let timeout = Duration::try_from_secs_f64(timeout_s.max(0.0)).ok()?;
            Instant::now().checked_add(timeout)
        });
        if let Some(done) = attempt()? {
            return Ok(Some(done));
        }
        let mut watch = Watch::new(Arc::clone(&self.shared), side).map_err(errors::queue)?;
        loop {
            if let Nap::Sleep(most) = watch.nap().map_err(errors::queue)? {
                py.detach(|| watch.sleep(most, until)).map_err(errors::queue)?;
                py.check_signals()?;
            }
            if let Some(done) = attempt()? {
                return Ok(Some(done));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
        }
    }
}

#[pymethods]
impl QueueWatch {
    /// Readable once the bell has rung.
    fn fileno(&self) -> RawFd {
        self.lock().as_fd().as_raw_fd()
    }

    /// Makes the descriptor unreadable until the next ring.
    fn silence(&self) -> PyResult<()> {
        self.lock().silence().map_err(errors::queue)
    }

    /// Announces a nap: whether there is reason to try again instead, and after how many seconds at most, if any.
    fn nap(&self) -> PyResult<(bool, Option<f64>)> {
        match self.lock().nap().map_err(errors::queue)? {
            Nap::Not => Ok((true, None)),
            Nap::Sleep(most) => Ok((false, most.map(|most| most.as_secs_f64()))),
        }
    }
}

impl QueueWatch {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
