//! News of a pool for whoever operates the program: events of the target `polyloop`, with the feature `tracing`. What
//! they say and have is listed in the documentation of the crate.

use std::io;
use std::time::Duration;

#[cfg(feature = "tracing")]
pub(crate) use self::with_tracing::Listener;
#[cfg(not(feature = "tracing"))]
pub(crate) use self::without_tracing::Listener;
use crate::driver::Event;

impl Listener {
    /// Tells what the engine tells of its workers.
    pub(crate) fn tell(&self, news: &Event) {
        match news {
            Event::Report(report) => self.report(report),
            Event::Garbage { worker, problem } => self.garbage(*worker, problem),
            // What else there is has its own way, or is nobody's news.
            _ => (),
        }
    }
}

#[cfg(feature = "tracing")]
mod with_tracing {
    use polyloop_core::{Report, WorkerId};
    use tracing::subscriber::NoSubscriber;
    use tracing::{Dispatch, dispatcher, error, field, warn};

    use super::{Duration, io};
    use crate::face::error::Error;

    /// Who hears of a pool: the subscriber that was the current one where the pool was made, however it is driven; if
    /// there was none, the program's.
    #[derive(Clone)]
    pub(crate) struct Listener(Option<Dispatch>);

    impl Listener {
        /// The one that listens here and now.
        pub(crate) fn here() -> Self {
            Self(dispatcher::get_default(|dispatch| is_somebody(dispatch).then(|| dispatch.clone())))
        }

        /// Has it hear what this tells.
        pub(crate) fn hears<T>(&self, tell: impl FnOnce() -> T) -> T {
            match &self.0 {
                Some(dispatch) => dispatcher::with_default(dispatch, tell),
                None => tell(),
            }
        }

        /// What it might take at this moment: nothing more detailed.
        #[cfg(feature = "python")]
        pub(crate) fn level(&self) -> tracing::level_filters::LevelFilter {
            use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
            let is_heard = self.0.is_some() || dispatcher::get_default(is_somebody);
            if is_heard { LevelFilter::current().min(STATIC_MAX_LEVEL) } else { LevelFilter::OFF }
        }

        pub(super) fn report(&self, report: &Report) {
            self.hears(|| match report {
                Report::Died { pid, exit, retried, lost, judged, .. } => {
                    // Only where a pool has `retry_on` is there anything to judge.
                    let judged = (*judged > 0).then_some(judged);
                    warn!(target: "polyloop", pid, %exit, retried, lost, judged, "a worker died");
                }
                Report::Degraded(error) => {
                    let error = Error::no_workers(error);
                    warn!(target: "polyloop", %error, "workers do not start; trying again");
                }
                Report::Recovered => warn!(target: "polyloop", "workers start again"),
                Report::Terminated(unfinished) => {
                    warn!(target: "polyloop", unfinished, "terminated with unfinished tasks");
                }
            });
        }

        pub(super) fn garbage(&self, worker: WorkerId, problem: &str) {
            self.hears(|| {
                let text = "a worker wrote what no correct worker writes, and is replaced";
                warn!(target: "polyloop", %worker, problem, "{text}");
            });
        }

        /// The loop of a worker is blocked: for how long so far, and where, if it says so.
        pub(crate) fn blocked(&self, pid: Option<u32>, blocked: Duration, stack: Option<&str>) {
            let (blocked_ms, stack) = (blocked.as_millis() as u64, stack.map(field::display));
            self.hears(|| warn!(target: "polyloop", pid, blocked_ms, stack, "a worker is blocked by one call"));
        }

        /// A predicate has panicked that was to say whether this is worth another run.
        pub(crate) fn undecided(&self, error: &Error) {
            self.hears(|| warn!(target: "polyloop", %error, "`retry_on` panicked, so a task is not run again"));
        }

        pub(crate) fn broken(&self, error: &io::Error) {
            self.hears(|| error!(target: "polyloop", %error, "a pool can't be driven any more"));
        }
    }

    fn is_somebody(dispatch: &Dispatch) -> bool {
        !dispatch.is::<NoSubscriber>()
    }
}

#[cfg(not(feature = "tracing"))]
mod without_tracing {
    use polyloop_core::{Report, WorkerId};

    use super::{Duration, io};
    use crate::face::error::Error;

    /// Nobody hears of a pool.
    #[derive(Clone)]
    pub(crate) struct Listener;

    impl Listener {
        pub(crate) fn here() -> Self {
            Self
        }

        pub(super) fn report(&self, _: &Report) {}

        pub(super) fn garbage(&self, _: WorkerId, _: &str) {}

        pub(crate) fn blocked(&self, _: Option<u32>, _: Duration, _: Option<&str>) {}

        pub(crate) fn undecided(&self, _: &Error) {}

        pub(crate) fn broken(&self, _: &io::Error) {}
    }
}
