//! Panics of tasks: caught, with where they happened, and told to the caller instead of to standard error.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::face::error::TaskPanicked;

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<TaskPanicked>> = const { RefCell::new(None) };
}

/// Has panics of tasks remembered. Those of other threads are told as before.
pub(super) fn attend() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if !IN_TASK.get() {
            return before(info);
        }
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::force_capture().to_string();
        LAST.set(Some(TaskPanicked::new(message(info.payload()), location, backtrace)));
    }));
}

/// Runs a part of a task.
pub(super) fn guard<T>(part: impl FnOnce() -> T) -> Result<T, TaskPanicked> {
    let outer = IN_TASK.replace(true);
    // What a panic leaves behind is the task's own, and dropped with it.
    let result = catch_unwind(AssertUnwindSafe(part));
    IN_TASK.set(outer);
    // A task may have set a hook of its own.
    let unknown = |payload: &(dyn Any + Send)| TaskPanicked::new(message(payload), String::new(), String::new());
    result.map_err(|payload| LAST.take().unwrap_or_else(|| unknown(&*payload)))
}

/// A future whose panics are caught.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, TaskPanicked> {
    let mut future = pin!(future);
    poll_fn(|context| match guard(|| future.as_mut().poll(context)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic with a value that is no text").to_owned()
}
