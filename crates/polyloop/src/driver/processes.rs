//! Worker processes as the driver sees them: started, greeted, dead, or beyond understanding.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use polyloop_core::{Dead, Exit, Input, QueueIndex, StartError, WorkerId};

use super::{DEATH, Driver, Event, PROTOCOL, RECORDS_MAX, SOCKET, StartOrder, token};
use crate::link::NewSeat;
use crate::os;

impl Driver {
    /// A worker's process runs. `direct_child` says whether it is a child of this process; `sentinel` becomes
    /// readable when it ends.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn started(
        &mut self,
        worker: WorkerId,
        pid: u32,
        direct_child: bool,
        sentinel: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if let Some(seat) = self.link.get(worker) {
            seat.pid = Some(pid);
            // Another's child may be gone, and its number another's, before we could ask for its handle.
            seat.handle = if direct_child { os::process_handle(pid).ok() } else { seat.handle.take() };
            if seat.handle.is_none() {
                seat.sentinel = Some(sentinel.try_clone_to_owned()?);
            }
            if let Some(watched) = seat.handle.as_ref().or(seat.sentinel.as_ref()) {
                self.poller.add(watched, token(DEATH, worker))?;
            }
            // Greeted no sooner: whoever hears of a task that runs there can ask which process it is.
            self.poller.add(&seat.socket, token(SOCKET, worker))?;
        }
        self.tell(Input::Started { worker, pid })
    }

    /// A worker's process could not be started, for this reason.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn not_started(&mut self, worker: WorkerId, reason: &str) -> io::Result<()> {
        self.link.seats.remove(&worker.seat);
        self.tell(Input::NotStarted { worker, error: StartError::Refused(reason.into()) })
    }

    /// A worker's process has ended like this: the answer to [`Event::Reap`].
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn exited(&mut self, worker: WorkerId, exit: Exit) -> io::Result<()> {
        // Its last words count: an outcome in the ring is an outcome. There are no more of them than fit, even if somebody
        // that it gave its memory to writes on.
        self.read_worker(worker.seat, RECORDS_MAX)?;
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let leased = seat.leased();
        let (claimed, taken) = self.link.bury(worker.seat);
        self.link.seats.remove(&worker.seat);
        let now = self.now();
        self.lender.forget_peer(now, worker);
        self.tell(Input::Exited(Dead { worker, exit, claimed, taken, leased }))
    }

    /// A worker has said hello, or hung up.
    pub(super) fn hello(&mut self, worker: WorkerId) -> io::Result<()> {
        let Some(seat) = self.link.seats.get_mut(&worker.seat).filter(|seat| seat.worker == worker) else {
            return Ok(());
        };
        let message = match os::receive(seat.socket.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) | Ok(None) => None,
            Ok(message) => message,
        };
        // One hello, and nothing more is read here: a worker's end is known by its handle.
        self.poller.remove(&seat.socket)?;
        let Some((numbers, fds)) = message else { return Ok(()) };
        let (Some([PROTOCOL, _pid]), Some(handle)) = (numbers.first_chunk().copied(), fds.into_iter().next()) else {
            return self.garbage(worker, "a hello of another version of polyloop");
        };
        if seat.handle.is_none() {
            match os::process_of(handle.as_fd()) {
                Ok(Some(process)) if Some(process) == seat.pid => self.watch_by(worker, handle)?,
                // It is gone already, which its sentinel tells as well.
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(_) => return self.garbage(worker, "a hello with the handle of another process"),
            }
        }
        self.welcome(worker);
        Ok(())
    }

    /// Watches a worker by a handle of its own from now on.
    fn watch_by(&mut self, worker: WorkerId, handle: OwnedFd) -> io::Result<()> {
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        let sentinel = seat.sentinel.take();
        let handle = seat.handle.insert(handle);
        if let Some(sentinel) = sentinel {
            self.poller.remove(&sentinel)?;
            self.poller.add(handle, token(DEATH, worker))?;
        }
        Ok(())
    }

    fn welcome(&mut self, worker: WorkerId) {
        let Some(seat) = self.link.seats.get(&worker.seat) else { return };
        let config = self.config;
        let grace_micros = u64::try_from(config.grace.as_micros()).unwrap_or(u64::MAX);
        let mut welcome = vec![PROTOCOL, worker.seat.into(), seat.queue.0.into()];
        welcome.extend([
            config.concurrency.into(),
            config.max_tasks,
            config.max_memory,
            grace_micros,
            config.max_reply,
        ]);
        welcome.extend(self.link.layout.to_fields());
        let [region, bell] = seat.fds();
        let fds = [self.link.region.as_fd(), region, bell, self.link.bell.as_fd()];
        // A worker that is gone by now is told by its handle.
        let _ = os::send(seat.socket.as_fd(), &welcome, &fds);
    }

    pub(super) fn death(&mut self, worker: WorkerId) -> io::Result<()> {
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        if seat.gone {
            return Ok(());
        }
        seat.gone = true;
        let seat = &self.link.seats[&worker.seat];
        if let Some(watched) = seat.handle.as_ref().or(seat.sentinel.as_ref()) {
            self.poller.remove(watched)?;
        }
        self.events.push_back(Event::Reap(worker));
        Ok(())
    }

    /// Replaces a worker that can't be understood.
    pub(super) fn garbage(&mut self, worker: WorkerId, problem: &str) -> io::Result<()> {
        let Some(seat) = self.link.get(worker) else { return Ok(()) };
        seat.mute = true;
        seat.kill(false)?;
        let now = self.now();
        self.pool.handle(now, Input::Garbage(worker));
        self.events.push_back(Event::Garbage { worker, problem: problem.to_owned() });
        Ok(())
    }

    pub(super) fn start(&mut self, worker: WorkerId, queue: QueueIndex) -> io::Result<()> {
        match self.link.seat(worker, queue, &self.returns) {
            Ok(NewSeat { socket, lifeline }) => {
                let seat = &self.link.seats[&worker.seat];
                let our_ends = [seat.socket.as_raw_fd(), seat.lifeline.as_raw_fd()];
                self.events.push_back(Event::Start(StartOrder { worker, queue, socket, lifeline, our_ends }));
            }
            Err(error) => {
                let error = StartError::Refused(format!("no memory or descriptors for a worker: {error}").into());
                let now = self.now();
                self.pool.handle(now, Input::NotStarted { worker, error });
            }
        }
        Ok(())
    }
}
