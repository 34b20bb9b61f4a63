//! Functions that more than one file of these tests has workers run.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::pid;
use crate::rig::LOOK;
use crate::rig::marks::{MarkOnDrop, count, mark};
use crate::rig::process::send_signal;

/// Leaves a mark, waits for ever, and leaves another when it is dropped.
pub(crate) async fn wait_for_ever(begun: PathBuf, dropped: PathBuf) {
    let _dropped = MarkOnDrop(dropped);
    mark(&begun);
    std::future::pending().await
}

/// Leaves a mark and keeps its worker's loop until there is another.
pub(crate) fn block(begun: PathBuf, until: PathBuf) {
    mark(&begun);
    while !until.exists() {
        std::thread::sleep(LOOK);
    }
}

/// Ends its worker, if it leaves its mark for no more than the so-many-th time.
pub(crate) fn die_first(times: usize, begun: PathBuf) -> usize {
    mark(&begun);
    let starts = count(&begun);
    if starts <= times {
        send_signal(pid(), Signal::KILL);
    }
    starts
}
