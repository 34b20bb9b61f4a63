//! What a worker process does about its parent: it ends when the parent does, whatever it is doing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use thiserror::Error;

use crate::os;

/// A worker could not tie its life to its parent's.
#[derive(Debug, Error)]
pub enum ParentDeathError {
    /// The parent was gone already.
    #[error("the parent process {0} is gone")]
    Orphan(u32),
    /// The operating system refused.
    #[error("can't tie this process to its parent: {0}")]
    Os(#[from] io::Error),
}

/// Ties this process to its parent: it is killed when the parent ends in any way, also while it is blocked in native
/// code, holds an interpreter's lock, or is stopped.
///
/// `lifeline` is the reading end of a pipe whose other end only the parent has; `None` under fork, where siblings
/// would hold it too. A direct child is also killed with the thread that started it, so that thread must last.
///
/// # Errors
/// [`ParentDeathError`] when the parent is gone already, or the system refuses.
pub fn die_with_parent(lifeline: Option<OwnedFd>, parent: u32, direct_child: bool) -> Result<(), ParentDeathError> {
    if direct_child {
        os::kill_with_starter()?;
        // It may have ended before the line above.
        if os::parent() != Some(parent) {
            return Err(ParentDeathError::Orphan(parent));
        }
    }
    if let Some(lifeline) = lifeline {
        os::kill_on_hangup(lifeline.as_fd())?;
        if os::has_ended(lifeline.as_fd()) {
            return Err(ParentDeathError::Orphan(parent));
        }
        // Held for the life of the process: closing it would end the watch.
        std::mem::forget(lifeline);
    }
    Ok(())
}
