//! The signals of a Rust worker: Ctrl-C is its parent's business, and SIGTERM has it take a last turn. And of the thread that
//! starts workers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

static BELL: AtomicI32 = AtomicI32::new(-1);
static TERMINATED: AtomicBool = AtomicBool::new(false);
/// How long after SIGTERM the process may live.
static GRACE_S: AtomicU32 = AtomicU32::new(1);

/// Has SIGTERM remembered and `bell` rung, SIGINT ignored, and writing to a closed pipe be an error. Whatever blocks the
/// process, it ends `grace` after SIGTERM, in whole seconds: the sender need not be the pool, which would see to that.
pub(crate) fn attend(bell: OwnedFd, grace: Duration) -> io::Result<()> {
    // Never 0, which would be never.
    let grace_s = grace.as_secs().saturating_add(1);
    GRACE_S.store(u32::try_from(grace_s).unwrap_or(u32::MAX), Ordering::Relaxed);
    BELL.store(bell.into_raw_fd(), Ordering::Relaxed);
    handle(libc::SIGTERM, terminate)?;
    // Not ignored outright, which a task's own children would inherit.
    handle(libc::SIGINT, nothing)?;
    // Whoever started this process has kept it out until here, where it does no harm.
    mask_interrupt(libc::SIG_UNBLOCK);
    // SAFETY: sets a disposition that runs no code. Rust's own, where `main` has begun.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether SIGTERM has come.
pub(crate) fn is_terminated() -> bool {
    TERMINATED.load(Ordering::Relaxed)
}

/// Does something while SIGINT is kept from this thread, and from processes that it starts, until they let it in.
pub(crate) fn without_interrupt<T>(act: impl FnOnce() -> T) -> T {
    let before = mask_interrupt(libc::SIG_BLOCK);
    let done = act();
    // SAFETY: touches no memory but the set on the stack.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    done
}

/// Blocks SIGINT for this thread, or unblocks it. Gives what was blocked before.
fn mask_interrupt(how: i32) -> libc::sigset_t {
    let (mut interrupt, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: fills in the sets on the stack before they are used; touches no other memory.
    unsafe {
        libc::sigemptyset(interrupt.as_mut_ptr());
        libc::sigaddset(interrupt.as_mut_ptr(), libc::SIGINT);
        libc::pthread_sigmask(how, interrupt.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

/// Ends this process as SIGTERM would have.
pub(crate) fn end_by_terminate() -> ! {
    // SAFETY: restores the default and lets the signal through; touches no memory but the set on the stack.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(libc::SIGTERM);
    }
    std::process::exit(128 + libc::SIGTERM)
}

fn handle(signal: i32, handler: extern "C" fn(i32)) -> io::Result<()> {
    // SAFETY: an all-zero action is a valid one; both handlers do only what a handler may.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn nothing(_signal: i32) {}

extern "C" fn terminate(_signal: i32) {
    TERMINATED.store(true, Ordering::Relaxed);
    let one = 1u64;
    // SAFETY: writes eight bytes from the stack to a descriptor that is never closed, and has SIGALRM sent, which ends the process; `errno` is put back, as the code
    // that this interrupts may be about to read it.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::alarm(GRACE_S.load(Ordering::Relaxed));
        libc::write(BELL.load(Ordering::Relaxed), std::ptr::from_ref(&one).cast(), size_of::<u64>());
        *errno = before;
    }
}
