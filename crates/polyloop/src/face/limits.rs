//! What the system sets limits to, and whether they allow a pool: descriptors, and the size of files.

use std::io;

use rustix::process::{Resource, getrlimit};

use super::error::Error;
use crate::driver::DriverError;

const FDS_PER_WORKER: u64 = 6;
/// And what is open for a moment while a process is being started.
const FDS_PER_POOL: u64 = 16;

const TOO_FEW_DESCRIPTORS: Error = Error::Config(
    "this process may not have as many file descriptors as a pool of so many processes needs: use fewer processes, or raise \
     the limit (ulimit -n)",
);
/// Shared memory is a file to the operating system.
const TOO_SMALL_FILES: &str =
    "a pool's shared memory is larger than the files that this process may write: raise the limit (ulimit -f)";

/// Refuses a pool that would run out of file descriptors half-way.
pub(crate) fn check_descriptors(processes: u16) -> Result<(), Error> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // Without its list of them, the process is taken for one that has none.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64);
    let needed = FDS_PER_WORKER * u64::from(processes) + FDS_PER_POOL;
    if open + needed > limit { Err(TOO_FEW_DESCRIPTORS) } else { Ok(()) }
}

/// Why a pool could not be made, in words that name the limit where one is the reason.
pub(crate) fn explain(error: DriverError) -> Error {
    match error {
        DriverError::Config(problem) => Error::Config(problem),
        DriverError::Os(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Error::Os(io::Error::new(error.kind(), TOO_SMALL_FILES))
        }
        DriverError::Os(error) => Error::Os(error),
    }
}
