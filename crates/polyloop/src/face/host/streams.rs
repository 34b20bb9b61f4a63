//! A stream in its worker: values go out, and what gives them is not polled while there is no credit.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use polyloop_core::Flow;

use super::turns::Items;
use crate::face::codec::Failure;
use crate::face::function::Written;
use crate::face::stream_function::Values;
use crate::worker::Job;

/// How long a stream that never waits may keep the loop from everything else.
const TURN: Duration = Duration::from_millis(1);

/// Where the values of one stream leave its worker.
pub(super) struct Port {
    items: Rc<Items>,
    job: Job,
    flow: RefCell<Flow>,
    /// What gives them, while it waits for credit.
    waiting: Cell<Option<Waker>>,
}

impl Port {
    pub(super) fn new(items: Rc<Items>, job: Job) -> Self {
        Self { items, job, flow: RefCell::default(), waiting: Cell::new(None) }
    }

    /// So many values have been taken.
    pub(super) fn credit(&self, values: u32) {
        let mut flow = self.flow.borrow_mut();
        flow.credit(values);
        if flow.admits()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
    }

    /// Whether another value may be given now.
    fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        if self.flow.borrow().admits() {
            return Poll::Ready(());
        }
        self.waiting.set(Some(context.waker().clone()));
        Poll::Pending
    }

    fn give(&self, value: &[u8]) -> Result<(), Failure> {
        self.items.give(self.job, value)?;
        self.flow.borrow_mut().give(value.len());
        Ok(())
    }
}

/// Gives all that a stream has. Dropped, it drops that.
pub(super) async fn produce(port: Rc<Port>, mut values: Box<dyn Values>) -> Result<Written<Vec<u8>>, Failure> {
    let mut out = Vec::new();
    poll_fn(|context| {
        let began = Instant::now();
        loop {
            ready!(port.poll_room(context));
            match ready!(values.poll_next(context, &mut out)) {
                Some(written) => written.and_then(|()| port.give(&out))?,
                None => return Poll::Ready(Ok(Written::default())),
            }
            if began.elapsed() > TURN {
                // The next after the other tasks have had their turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await
}
