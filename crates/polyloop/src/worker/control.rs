//! What the manager says to a worker: in turns of the host's loop, and while an item blocks that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyloop_core::{ControlFrame, NestedId, Outcome, Reply, Stop, TaskId, split_large};
use polyloop_shm::Item;

use super::{Control, Fetching, Job, WorkerError, WorkerLink};
use crate::blocks::Memory;
use crate::inject::step;

/// What the manager has said, whole.
pub(super) enum Said {
    Cancel(TaskId),
    Stop(Stop),
    Credit(TaskId, u32),
    Start(Job, Item, Option<Arc<Memory>>),
    Answer(NestedId, Box<Outcome>, Option<Arc<Memory>>),
}

impl Fetching {
    /// The item, now that all of its bytes have come.
    fn whole(self) -> Option<Said> {
        let Self { job, bytes, apart } = self;
        let large = split_large(&bytes)?;
        let mut item = Item::default();
        item.load(large.function, large.arguments);
        let streamed = (!large.apart.is_empty()).then(|| Arc::new(Memory::heap(large.apart)));
        Some(Said::Start(job, item, apart.or(streamed)))
    }
}

impl WorkerLink {
    /// What the manager has said, one thing at a time. The bytes of [`Control::Start`] are left in `item`.
    ///
    /// # Errors
    /// [`WorkerError`] when the manager can't be understood: leave.
    pub fn next_control(&mut self, item: &mut Item) -> Result<Option<Control>, WorkerError> {
        self.check_ours()?;
        let said = match self.overheard.pop_front() {
            Some(said) => Some(said?),
            None => self.listen()?,
        };
        Ok(Some(match said {
            None => return Ok(None),
            Some(Said::Cancel(task)) => {
                self.count_heard();
                Control::Cancel(task)
            }
            Some(Said::Stop(stop)) => {
                if stop == Stop::Now {
                    self.count_heard();
                }
                self.core.stop(stop);
                Control::Stop(stop)
            }
            Some(Said::Credit(task, values)) => Control::Credit(task, values),
            Some(Said::Answer(number, outcome, apart)) => Control::Answer(number, outcome, apart),
            Some(Said::Start(job, large, apart)) => {
                *item = large;
                // What was published must not wait for this item, which may block.
                self.tell()?;
                Control::Start(job, apart)
            }
        }))
    }

    /// Whether the manager has said to cancel this item, for a host whose loop the item blocks. Says yes once: then
    /// the host interrupts it. Whatever else was said is kept for [`Self::next_control`].
    pub fn overhears_cancel(&mut self, task: TaskId) -> bool {
        if !self.is_ours() {
            return false;
        }
        while !matches!(self.overheard.back(), Some(Err(_))) {
            let Some(said) = self.listen().transpose() else { break };
            self.overheard.push_back(said);
        }
        // Some of it may have been answered. A manager that can't be rung is gone, and so will this process be.
        let _ = self.tell();
        let is_meant = |said: &Result<Said, _>| matches!(said, Ok(Said::Cancel(meant)) if *meant == task);
        let Some(at) = self.overheard.iter().position(is_meant) else { return false };
        self.overheard.remove(at);
        self.count_heard();
        true
    }

    /// Takes in what the manager says, up to the next thing that is of use to the host.
    fn listen(&mut self) -> Result<Option<Said>, WorkerError> {
        while let Some(record) = self.control.pop(&mut self.payload)? {
            step("control");
            if self.control.writer_waits() {
                step("room");
                self.manager_bell.ring()?;
            }
            match ControlFrame::parse(record.kind, &self.payload)? {
                ControlFrame::Cancel(task) => match self.fetching.remove(&task) {
                    Some(Fetching { job, .. }) => {
                        self.count_heard();
                        self.reply(job, Reply::Cancelled);
                    }
                    None => return Ok(Some(Said::Cancel(task))),
                },
                ControlFrame::Stop(stop) => return Ok(Some(Said::Stop(stop))),
                ControlFrame::Credit { task, values } => return Ok(Some(Said::Credit(task, values))),
                ControlFrame::Block(frame) => self.block_frame(frame)?,
                ControlFrame::GiveBack => self.give_back_free(),
                ControlFrame::Bytes { task, bytes, last } => {
                    if let Some(number) = NestedId::from_task(task) {
                        self.answers.get_mut(&number).ok_or(WorkerError::Task)?.extend(bytes);
                        match last {
                            true => return self.whole_answer(number).map(Some),
                            false => continue,
                        }
                    }
                    let Some(fetching) = self.fetching.get_mut(&task) else { continue };
                    fetching.bytes.extend_from_slice(bytes);
                    step("bytes");
                    if let Some(fetching) = last.then(|| self.fetching.remove(&task)).flatten() {
                        return fetching.whole().map(Some).ok_or(WorkerError::Task);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Counts as having heard whatever the manager may say: the process is about to end.
    pub fn abandon(&mut self) {
        if self.is_ours() {
            self.heard[0].store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// One more urgent word has been dealt with.
    fn count_heard(&self) {
        // A count that only this process writes, and that publishes nothing.
        self.heard[0].store(self.heard[0].load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }
}
