//! A pool with a board of paper: posts are carried out at once, everything else that comes out is kept for the test.

use std::sync::Arc;
use std::time::Duration;

use polyloop_core::{
    CallId, Dead, Exit, Input, Moment, OnDeath, Outcome, Output, Payload, Place, Pool, PoolConfig, QueueIndex, Report,
    Submission, TaskId, WorkerId,
};

pub(crate) const GRACE: Duration = Duration::from_secs(5);

pub(crate) const CONFIG: PoolConfig = PoolConfig {
    processes: 1,
    queues: 1,
    seats: 2,
    slots: 4,
    slot_items: 2,
    concurrency: 4,
    slot_bytes: 64,
    inline_bytes: 32,
    grace: GRACE,
    max_age: None,
    overlap: true,
};

pub(crate) const FIRST: WorkerId = WorkerId { seat: 0, generation: 1 };

pub(crate) fn task(token: u64) -> Submission {
    Submission {
        call: CallId::SINGLES,
        queue: QueueIndex(0),
        function: Arc::from(*b"f"),
        arguments: Payload::from_slice(b"args"),
        retries: 0,
        on_death: OnDeath::Again,
        judged: false,
        is_stream: false,
        attempt: 1,
        timeout: None,
        token,
    }
}

pub(crate) fn value() -> Outcome {
    Outcome::Value(Payload::from_slice(b"v"))
}

/// What became of a submission on the board.
#[derive(Clone, Debug)]
pub(crate) struct PostedSlot {
    pub(crate) slot: u32,
    pub(crate) tasks: Vec<TaskId>,
}

pub(crate) struct Stage {
    pub(crate) pool: Pool,
    pub(crate) now: Moment,
    pub(crate) board: Vec<PostedSlot>,
    /// Everything that came out, but for posts.
    pub(crate) outputs: Vec<Output>,
}

impl Stage {
    pub(crate) fn new(config: PoolConfig) -> Self {
        let mut stage = Self { pool: Pool::new(config), now: Moment::ZERO, board: Vec::new(), outputs: Vec::new() };
        stage.collect();
        stage
    }

    /// One worker, ready.
    pub(crate) fn ready() -> Self {
        let mut stage = Self::new(CONFIG);
        stage.is_ready(FIRST);
        stage.outputs.clear();
        stage
    }

    pub(crate) fn is_ready(&mut self, worker: WorkerId) {
        self.handle(Input::Started { worker, pid: 100 });
        self.handle(Input::Ready(worker));
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.pool.handle(self.now, input);
        self.collect();
    }

    pub(crate) fn submit(&mut self, submission: Submission) -> TaskId {
        let id = self.pool.submit(submission).expect("the pool is open");
        self.collect();
        id
    }

    pub(crate) fn cancel(&mut self, id: TaskId) {
        self.pool.cancel(self.now, id);
        self.collect();
    }

    pub(crate) fn close(&mut self) {
        self.pool.close(self.now);
        self.collect();
    }

    pub(crate) fn terminate(&mut self) {
        self.pool.terminate(self.now);
        self.collect();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.handle(Input::Timeout);
    }

    /// The worker takes every item of the slot that carries `id`, and the manager frees the slot.
    pub(crate) fn taken(&mut self, id: TaskId, worker: WorkerId) {
        let at = self.board.iter().position(|slot| slot.tasks.contains(&id));
        let PostedSlot { slot, tasks } = self.board.remove(at.expect("it is on the board"));
        self.handle(Input::Reclaimed { queue: QueueIndex(0), slot, owners: vec![Some(worker.seat); tasks.len()] });
    }

    pub(crate) fn outcome(&mut self, worker: WorkerId, task: TaskId, outcome: Outcome) {
        self.handle(Input::Outcome { worker, task, outcome });
    }

    pub(crate) fn place(&self, id: TaskId) -> Place {
        let found = self.board.iter().find_map(|slot| {
            let index = slot.tasks.iter().position(|task| *task == id)?;
            Some((slot.slot, index as u32))
        });
        let (slot, index) = found.expect("it is on the board");
        Place { queue: QueueIndex(0), slot, index }
    }

    /// The worker's process ends, with nothing in its hands but what `dead` adds.
    pub(crate) fn dies(&mut self, worker: WorkerId, exit: Exit, dead: impl FnOnce(&mut Dead)) {
        let mut report = Dead { worker, exit, claimed: Vec::new(), taken: Vec::new(), leased: Vec::new() };
        dead(&mut report);
        self.handle(Input::Exited(report));
    }

    pub(crate) fn delivered(&self) -> Vec<(u64, Outcome)> {
        let deliver = |output: &Output| match output {
            Output::Deliver { token, outcome, .. } => Some((*token, outcome.clone())),
            _ => None,
        };
        self.outputs.iter().filter_map(deliver).collect()
    }

    pub(crate) fn reports(&self) -> Vec<Report> {
        let report = |output: &Output| match output {
            Output::Report(report) => Some(report.clone()),
            _ => None,
        };
        self.outputs.iter().filter_map(report).collect()
    }

    pub(crate) fn started(&self) -> Vec<WorkerId> {
        let start = |output: &Output| match output {
            Output::Start { worker, .. } => Some(*worker),
            _ => None,
        };
        self.outputs.iter().filter_map(start).collect()
    }

    pub(crate) fn count(&self, what: impl Fn(&Output) -> bool) -> usize {
        self.outputs.iter().filter(|output| what(output)).count()
    }

    pub(crate) fn is_closed(&self) -> bool {
        let closed = self.count(|output| matches!(output, Output::Closed));
        assert!(closed <= 1, "closed twice");
        if closed == 1 {
            let last = self.outputs.last();
            assert!(matches!(last, Some(Output::Closed)), "{last:?} after it");
        }
        closed == 1
    }

    /// Posts what waits and takes down what the pool says.
    pub(crate) fn collect(&mut self) {
        self.pool.flush();
        while let Some(output) = self.pool.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        let Output::Post { queue, call, tasks, .. } = output else {
            return self.outputs.push(output);
        };
        let taken = |slot: &u32| !self.board.iter().any(|posted| posted.slot == *slot);
        let slot = (0..).find(taken).expect("the pool counts the slots");
        assert!(slot < CONFIG.slots, "the pool counts the slots");
        self.pool.posted(queue, call, slot, tasks.clone());
        self.board.push(PostedSlot { slot, tasks });
    }
}
