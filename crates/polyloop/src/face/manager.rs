//! The pool manager in the client: one task on the client's runtime watches the driver's descriptor, drains it, and
//! completes what has come back. No thread stands between a caller and its workers.

mod judge;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use polyloop_core::{
    CallId, Exit, HOPELESS_EXIT, Outcome, Payload, QueueIndex, Refused, State, Submission, TaskId, WorkerId,
};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::yield_now;

use self::judge::Trial;
use super::call::Terms;
use super::error::Error;
use super::limits;
use super::log::Listener;
use super::map::MapCell;
use super::pending::{Pending, PendingTable, Target};
use super::retry::{RetryOn, on_death};
use super::starter::{self, Recruit, Recruiter};
use super::stream::{Came, StreamCell};
use super::watched::Watched;
use crate::driver::{Driver, DriverConfig, Event, StartOrder, Values};
use crate::os;

/// Up to so many unfinished tasks, each submission goes out at once: its caller waits for nothing else. Those of a crowd
/// go out together, with the manager's next turn.
const FLUSHED_AT_ONCE: usize = 4;
/// News that are told in one turn: what a subscriber does with each takes its time.
const NEWS_PER_TURN: usize = 64;
/// References of functions that are remembered.
const REFERENCES_MAX: usize = 256;

/// How a task is run, as its pool or its call says.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) retries: u32,
    pub(crate) retry_on: Option<RetryOn>,
    pub(crate) timeout: Option<std::time::Duration>,
    pub(crate) in_thread: bool,
}

impl Options {
    /// Whether someone is asked about tasks that fail.
    pub(crate) fn is_judged(&self) -> bool {
        self.retry_on.is_some() && self.retries > 0
    }
}

/// What a pool is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    /// A worker has been ready, or there will be none.
    Started,
    Closed,
}

pub(crate) struct Manager {
    inner: Mutex<Inner>,
    recruiter: Arc<dyn Recruiter>,
    listener: Listener,
    /// A crowd's submissions wait for a turn.
    crowd: Notify,
    phase: watch::Sender<Phase>,
}

struct Inner {
    driver: Driver,
    pending: PendingTable,
    maps: HashMap<CallId, OpenMap>,
    recruits: BTreeMap<WorkerId, Recruit>,
    references: HashSet<Arc<[u8]>>,
    flush_due: bool,
    /// Why no worker could be started.
    failure: Option<Error>,
    /// Nobody drives any more.
    over: bool,
}

/// A map whose items have not all ended.
struct OpenMap {
    cell: Arc<MapCell>,
    judge: Option<Arc<Terms>>,
}

/// Who is to be told without the lock of what has come back. Dropped, it tells them: also when a turn fails, or ends by the
/// panic of a subscriber.
#[derive(Default)]
struct Deliveries {
    news: Vec<Event>,
    singles: Vec<(oneshot::Sender<Outcome>, Outcome)>,
    /// They have it already.
    maps: Vec<Waker>,
    streams: Vec<(Arc<StreamCell>, Came)>,
    /// Of calls that have ended: they hold what is the user's, and may do anything as they go.
    judges: Vec<Arc<Terms>>,
}

/// A task that was submitted by itself.
pub(crate) struct Ticket {
    pub(crate) token: u64,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// What all handles of a pool hold: the pool ends with it.
pub(crate) struct Owner(Arc<Manager>);

impl Owner {
    /// Starts a pool, and waits until a worker is ready.
    pub(crate) async fn start(config: DriverConfig, recruiter: Arc<dyn Recruiter>) -> Result<Self, Error> {
        let owner = Self(Manager::start(config, recruiter)?);
        owner.until(|phase| !matches!(phase, Phase::Starting)).await;
        match owner.take_failure() {
            Some(error) => Err(error),
            None => Ok(owner),
        }
    }

    pub(crate) fn manager(&self) -> Arc<Manager> {
        Arc::clone(&self.0)
    }
}

impl Deref for Owner {
    type Target = Manager;

    fn deref(&self) -> &Manager {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Where that fails, the pool's processes have ended, or end with this one.
        let _ = self.0.lock().drive(Driver::terminate);
    }
}

impl Manager {
    /// A pool that is driven on the current runtime from now on.
    fn start(config: DriverConfig, recruiter: Arc<dyn Recruiter>) -> Result<Arc<Self>, Error> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return Err(Error::Config("a pool is made on a tokio runtime, which drives it"));
        };
        limits::check_descriptors(config.processes)?;
        let driver = Driver::new(config).map_err(limits::explain)?;
        let fd = Watched::new(driver.as_fd().try_clone_to_owned()?)?;
        let inner = Inner {
            driver,
            pending: PendingTable::default(),
            maps: HashMap::new(),
            recruits: BTreeMap::new(),
            references: HashSet::new(),
            flush_due: false,
            failure: None,
            over: false,
        };
        let (crowd, phase) = (Notify::new(), watch::Sender::new(Phase::Starting));
        let (inner, listener) = (Mutex::new(inner), Listener::here());
        let manager = Arc::new(Self { inner, recruiter, listener, crowd, phase });
        // Its first events ask for workers.
        manager.lock().driver.call_again()?;
        runtime.spawn(drive(Driving(Arc::clone(&manager)), fd));
        Ok(manager)
    }

    /// The reference of a function, which its tasks share.
    pub(crate) fn known(&self, reference: &[u8]) -> Arc<[u8]> {
        let mut inner = self.lock();
        if let Some(known) = inner.references.get(reference) {
            return Arc::clone(known);
        }
        if inner.references.len() >= REFERENCES_MAX {
            inner.references.clear();
        }
        let reference = Arc::from(reference);
        inner.references.insert(Arc::clone(&reference));
        reference
    }

    pub(crate) fn submit(&self, terms: &Terms, arguments: Payload) -> Result<Ticket, Error> {
        let (sender, outcome) = oneshot::channel();
        let token = self.enter_call(terms, arguments, Target::Outcome(sender))?;
        Ok(Ticket { token, outcome })
    }

    /// Submits a call whose values go to `cell`. Returns its token.
    pub(crate) fn open_stream(&self, terms: &Terms, arguments: Payload, cell: Arc<StreamCell>) -> Result<u64, Error> {
        self.enter_call(terms, arguments, Target::Stream(cell))
    }

    fn enter_call(&self, terms: &Terms, arguments: Payload, target: Target) -> Result<u64, Error> {
        let judge = terms.judge();
        let mut inner = self.lock();
        inner.check_driven()?;
        let token = inner.pending.next_token();
        let mut submission = submission(CallId::SINGLES, terms, arguments, token);
        submission.is_stream = matches!(target, Target::Stream(_));
        let submitted = inner.driver.submit(submission);
        let task = submitted.map_err(|refused| inner.refusal(&refused))?;
        inner.pending.insert(Pending { target, judge, task });
        if inner.driver.unfinished() <= FLUSHED_AT_ONCE {
            inner.drive(Driver::flush)?;
        } else if !std::mem::replace(&mut inner.flush_due, true) {
            self.crowd.notify_one();
        }
        Ok(token)
    }

    /// Cancels a task whose outcome nobody waits for, or that is to end soon.
    pub(crate) fn cancel(&self, token: u64) {
        let mut inner = self.lock();
        if let Some(task) = inner.task_of(token) {
            // What can't be told is told by the next turn, or the pool has ended.
            let _ = inner.drive(|driver| driver.cancel(task));
        }
    }

    /// The next value of a stream has been taken.
    pub(crate) fn taken(&self, token: u64) {
        let mut inner = self.lock();
        if let Some(task) = inner.task_of(token) {
            // As for `cancel`.
            let _ = inner.drive(|driver| driver.taken(task));
        }
    }

    pub(crate) fn open_map(&self, terms: &Terms, cell: &Arc<MapCell>) -> Result<CallId, Error> {
        let judge = terms.judge();
        let mut inner = self.lock();
        inner.check_driven()?;
        let call = inner.driver.open_call(None).map_err(|refused| inner.refusal(&refused))?;
        inner.maps.insert(call, OpenMap { cell: Arc::clone(cell), judge });
        Ok(call)
    }

    /// Submits items of a map: those that follow each other from index `first`. All are accepted, or none.
    pub(crate) fn submit_items(
        &self,
        call: CallId,
        terms: &Terms,
        first: u64,
        items: impl IntoIterator<Item = Payload>,
    ) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.check_driven()?;
        let first = submission(call, terms, Payload::new(), first);
        inner.driver.submit_run(first, items).map_err(|refused| match refused {
            // A closed pool goes on with the maps it has: this one was terminated.
            Refused::Closed => Error::PoolTerminated,
            refused => inner.refusal(&refused),
        })
    }

    /// Gives the workers what was submitted.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.lock().drive(Driver::flush).map_err(Error::Os)
    }

    /// A map has no more input.
    pub(crate) fn end_call(&self, call: CallId) {
        // As for `cancel`.
        let _ = self.lock().drive(|driver| driver.end_call(call));
    }

    /// Nobody wants what is left of a map.
    pub(crate) fn forget_map(&self, call: CallId) {
        let mut inner = self.lock();
        inner.maps.remove(&call);
        let _ = inner.drive(|driver| driver.cancel_call(call));
    }

    /// Does something with the driver, whatever comes of it.
    pub(crate) fn with_driver<T>(&self, act: impl FnOnce(&mut Driver) -> T) -> T {
        act(&mut self.lock().driver)
    }

    /// Takes no new work, and waits until all has ended.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.end(Driver::close).await
    }

    /// Ends all now, and waits until it has ended.
    pub(crate) async fn terminate(&self) -> Result<(), Error> {
        self.end(Driver::terminate).await
    }

    async fn end(&self, begin: impl FnOnce(&mut Driver) -> io::Result<()>) -> Result<(), Error> {
        self.lock().drive(begin)?;
        self.until(|phase| matches!(phase, Phase::Closed)).await;
        Ok(())
    }

    pub(crate) fn resize(&self, processes: usize) -> Result<(), Error> {
        let mut inner = self.lock();
        let fits = |processes: &u16| (1..=inner.driver.processes_max()).contains(processes);
        let processes = u16::try_from(processes).ok().filter(fits);
        let processes = processes.ok_or(Error::Config("a pool can't have so many processes, or none"))?;
        Ok(inner.drive(|driver| driver.resize(processes).map(drop))?)
    }

    /// Waits until this is so of the pool.
    async fn until(&self, is_so: impl FnMut(&Phase) -> bool) {
        // The sender is in `self`.
        let _ = self.phase.subscribe().wait_for(is_so).await;
    }

    /// Why the pool has failed, if it has; for one to take.
    fn take_failure(&self) -> Option<Error> {
        self.lock().failure.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what has happened. Says whether all has ended.
    fn turn(self: &Arc<Self>) -> io::Result<bool> {
        // Before the lock, so that it goes after it.
        let mut deliveries = Deliveries::default();
        let mut inner = self.lock();
        inner.flush_due = false;
        inner.driver.drain()?;
        let (mut trials, mut has_settled, mut closed) = (Vec::new(), false, false);
        while let Some(event) = inner.driver.next_event() {
            match event {
                Event::Deliver { call, token, outcome, .. } => inner.deliver(call, token, outcome, &mut deliveries),
                Event::Returned(values) => inner.deliver_values(&values, &mut deliveries),
                Event::Judge { task, call, token, outcome } => match inner.judge_of(call, token, &outcome) {
                    Some(judge) => trials.push(Trial { task, call, token, outcome, judge }),
                    None => {
                        inner.settle(task, call, token, outcome, &mut deliveries);
                        has_settled = true;
                    }
                },
                Event::Yield { token, value, .. } => inner.yielded(token, value, &mut deliveries),
                Event::Start(order) => self.start_worker(order),
                Event::Reap(worker) => inner.reap(worker)?,
                Event::Report(_) | Event::Blocked { .. } | Event::Garbage { .. } | Event::Log { .. } => {
                    deliveries.news.push(event);
                }
                Event::GaveUp(error) => inner.failure = Some(Error::no_workers(&error)),
                Event::Up => (),
                Event::Closed => closed = true,
            }
            if deliveries.news.len() == NEWS_PER_TURN {
                inner.driver.call_again()?;
                break;
            }
        }
        if has_settled {
            inner.drive(Driver::flush)?;
        }
        let state = inner.driver.state();
        drop(inner);
        // First, so that whoever waits for a task finds told what it has logged.
        std::mem::take(&mut deliveries.news).iter().for_each(|news| self.tell(news));
        drop(deliveries);
        self.decide(&trials)?;
        match state {
            // Also before its first worker: there may be one yet.
            State::Starting | State::Degraded => (),
            _ if closed => self.enter(Phase::Closed),
            _ => self.enter(Phase::Started),
        }
        Ok(closed)
    }

    fn tell(&self, news: &Event) {
        let (recruiter, listener) = (&self.recruiter, &self.listener);
        match news {
            Event::Log { pid, dropped, record } => recruiter.log(listener, *pid, *dropped, record),
            Event::Blocked { pid, blocked, .. } => recruiter.blocked(listener, *pid, *blocked),
            news => listener.tell(news),
        }
    }

    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| std::mem::replace(phase, next) != next);
    }

    fn start_worker(self: &Arc<Self>, order: StartOrder) {
        let manager = Arc::clone(self);
        starter::submit(Box::new(move || {
            let worker = order.worker;
            let started = manager.recruiter.start(order, &manager.listener);
            // A pool that can't be told is about to end.
            let _ = manager.lock().started(worker, started);
        }));
    }

    /// Ends all at once: nobody drives any more.
    fn abandon(&self) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.over, true) {
            return;
        }
        inner.driver.abandon();
        let recruits = std::mem::take(&mut inner.recruits);
        let (pending, maps) = (std::mem::take(&mut inner.pending), std::mem::take(&mut inner.maps));
        drop(inner);
        for Pending { target, .. } in pending.into_all() {
            match target {
                Target::Outcome(sender) => drop(sender.send(Outcome::Terminated)),
                Target::Stream(cell) => cell.put(Came::End(Outcome::Terminated)),
            }
        }
        maps.into_values().for_each(|map| map.cell.end());
        for Recruit { mut child, .. } in recruits.into_values() {
            // It was killed, and if not it goes with its lifeline.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.enter(Phase::Closed);
    }
}

impl Inner {
    /// Does something with the driver; what comes of it is fetched by the turn that this calls.
    fn drive(&mut self, act: impl FnOnce(&mut Driver) -> io::Result<()>) -> io::Result<()> {
        if self.over {
            return Ok(());
        }
        act(&mut self.driver)?;
        if self.driver.has_events() { self.driver.call_again() } else { Ok(()) }
    }

    /// Nothing comes back from a pool whose runtime has ended.
    fn check_driven(&self) -> Result<(), Error> {
        if self.over && self.driver.state() != State::Closed { Err(Error::PoolTerminated) } else { Ok(()) }
    }

    fn refusal(&self, refused: &Refused) -> Error {
        match refused {
            Refused::Closed => Error::PoolClosed,
            Refused::NoWorkers(error) => Error::no_workers(error),
        }
    }

    fn deliver(&mut self, call: CallId, token: u64, outcome: Outcome, deliveries: &mut Deliveries) {
        if call == CallId::SINGLES {
            let Some(Pending { target, judge, .. }) = self.pending.remove(token) else { return };
            deliveries.judges.extend(judge);
            return match target {
                Target::Outcome(sender) => deliveries.singles.push((sender, outcome)),
                Target::Stream(cell) => deliveries.streams.push((cell, Came::End(outcome))),
            };
        }
        if let Some(map) = self.maps.get(&call) {
            deliveries.maps.extend(map.cell.deliver(std::iter::once((token, outcome))));
        }
    }

    /// The same for many at once.
    fn deliver_values(&mut self, values: &Values, deliveries: &mut Deliveries) {
        let value = |bytes| Outcome::Value(Payload::from_slice(bytes));
        let mut values = values.iter().peekable();
        while let Some((call, token, bytes)) = values.next() {
            let Some(map) = self.maps.get(&call) else {
                self.deliver(call, token, value(bytes), deliveries);
                continue;
            };
            // As far as they are of one map, they go to it together.
            let rest = std::iter::from_fn(|| values.next_if(|next| next.0 == call));
            let run = std::iter::once((call, token, bytes)).chain(rest);
            deliveries.maps.extend(map.cell.deliver(run.map(|(_, index, bytes)| (index, value(bytes)))));
        }
    }

    fn yielded(&mut self, token: u64, value: Payload, deliveries: &mut Deliveries) {
        if let Some(Pending { target: Target::Stream(cell), .. }) = self.pending.get_mut(token) {
            deliveries.streams.push((Arc::clone(cell), Came::Value(value)));
        }
    }

    /// The task of a call that has not ended.
    fn task_of(&mut self, token: u64) -> Option<TaskId> {
        self.pending.get_mut(token).map(|pending| pending.task)
    }

    fn started(&mut self, worker: WorkerId, started: io::Result<Recruit>) -> io::Result<()> {
        match started {
            Ok(Recruit { mut child, .. }) if self.over => {
                // As in `abandon`.
                let _ = child.kill();
                child.wait().map(drop)
            }
            Ok(recruit) => {
                let pid = recruit.child.id();
                let handle = os::process_handle(pid)?;
                self.recruits.insert(worker, recruit);
                self.drive(|driver| driver.started(worker, pid, true, handle.as_fd()))
            }
            Err(error) => self.drive(|driver| driver.not_started(worker, &error.to_string())),
        }
    }

    /// Collects the exit status of a process that has ended.
    fn reap(&mut self, worker: WorkerId) -> io::Result<()> {
        let Some(Recruit { mut child, socket }) = self.recruits.remove(&worker) else {
            return self.driver.exited(worker, Exit::Unknown);
        };
        let exit = match child.wait() {
            Ok(status) => status.signal().map(Exit::Signal).or(status.code().map(Exit::Code)),
            // Somebody else has collected it.
            Err(_) => None,
        };
        let is_hopeless = exit == Some(Exit::Code(HOPELESS_EXIT));
        match socket.filter(|_| is_hopeless).as_ref().and_then(starter::refusal) {
            Some(reason) => self.driver.not_started(worker, &reason),
            None => self.driver.exited(worker, exit.unwrap_or(Exit::Unknown)),
        }
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        for (sender, outcome) in self.singles.drain(..) {
            // Who does not wait any more has dropped the call.
            let _ = sender.send(outcome);
        }
        self.maps.drain(..).for_each(Waker::wake);
        self.streams.drain(..).for_each(|(cell, came)| cell.put(came));
    }
}

fn submission(call: CallId, terms: &Terms, arguments: Payload, token: u64) -> Submission {
    let Options { retries, ref retry_on, timeout, .. } = terms.options;
    Submission {
        call,
        queue: QueueIndex(0),
        function: Arc::clone(&terms.function),
        arguments,
        retries,
        on_death: on_death(retry_on.as_ref()),
        judged: terms.options.is_judged(),
        is_stream: false,
        attempt: 1,
        timeout,
        token,
    }
}

/// Held by the task that drives a pool: when its runtime ends, the pool does.
struct Driving(Arc<Manager>);

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

async fn drive(driving: Driving, fd: Watched) {
    let manager = &driving.0;
    loop {
        let mut crowd = pin!(manager.crowd.notified());
        let ready = poll_fn(|context| match fd.poll_ready(context) {
            Poll::Ready(ready) => Poll::Ready(ready.map(Some)),
            Poll::Pending => crowd.as_mut().poll(context).map(|()| Ok(None)),
        });
        let turned = match ready.await {
            Ok(ready) => manager.turn().map(|closed| (ready, closed)),
            Err(error) => Err(error),
        };
        match turned {
            Ok((_, true)) => return,
            // The runtime is told of a change only, so all that is there has to be seen.
            Ok((Some(mut ready), false)) if !os::is_readable(fd.as_fd()) => ready.clear_ready(),
            Ok((_, false)) => yield_now().await,
            Err(error) => return manager.listener.broken(&error),
        }
    }
}
