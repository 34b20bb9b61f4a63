//! The items of a worker that have begun and not ended: futures on its loop, and functions on threads of their own.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::panics::guard;
use super::turns::Items;
use crate::face::codec::Failure;
use crate::face::error::TaskPanicked;
use crate::face::function::{Suspended, Written};
use crate::worker::Job;

/// How an item went: panics are outside, and its own failures inside.
pub(super) type Went<Bytes> = Result<Result<Written<Bytes>, Failure>, TaskPanicked>;

/// An item on the loop. Dropped before its end, it was cancelled.
pub(super) struct Running {
    items: Rc<Items>,
    job: Job,
    future: Option<Suspended<Result<Written<Vec<u8>>, Failure>>>,
}

impl Running {
    pub(super) fn new(items: Rc<Items>, job: Job, future: Suspended<Result<Written<Vec<u8>>, Failure>>) -> Self {
        Self { items, job, future: Some(future) }
    }
}

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(future) = self.future.as_mut() else { return Poll::Ready(()) };
        let went = match guard(|| future.as_mut().poll(context)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => Ok(result),
            Err(panic) => Err(panic),
        };
        let future = self.future.take();
        // What it held goes before anyone hears of its end; a panic of that comes too late to be told.
        let _ = guard(|| drop(future));
        self.items.ended(self.job, went);
        Poll::Ready(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            match guard(|| drop(future)) {
                Ok(()) => self.items.cancelled(self.job),
                Err(panic) => self.items.ended(self.job, Err(panic)),
            }
        }
    }
}
