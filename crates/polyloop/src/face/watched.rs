//! A descriptor that tokio's runtime watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// Wakes whoever polls it when the descriptor becomes readable.
pub(crate) struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: it is this value's own until that ends: nobody closes it or puts another in its place.
        let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Whether something happened that nobody has cleared yet.
    pub(crate) fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<AsyncFdReadyGuard<'_, OwnedFd>>> {
        self.0.poll_read_ready(context)
    }

    /// The same, for someone who reads all there is whenever this is ready.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(context).map_ok(|mut ready| ready.clear_ready())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
