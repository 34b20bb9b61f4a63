//! The operating system's part of the engine: polling, timers, sockets that pass descriptors, and signals.
//! With its namesake in the memory crate, the only code to give a second body for another system.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use polyloop_shm::BLOCK_NAME;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// Descriptors that one message carries at most.
const FDS_MAX: usize = 8;
/// Bytes that one message carries at most.
const MESSAGE_MAX: usize = 256;

/// A set of descriptors to wait on, itself a descriptor to wait on.
pub(crate) struct Poller {
    fd: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// That reports each ring of a bell once, though the bell is never silenced.
    pub(crate) fn of_rings(bell: impl AsFd) -> io::Result<Self> {
        let poller = Self::new()?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&poller.fd, bell, epoll::EventData::new_u64(0), flags)?;
        Ok(poller)
    }

    /// Waits for a ring, for ever or within `timeout`. A signal ends it too.
    pub(crate) fn hear(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 1];
        let timeout =
            timeout.map(|timeout| Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ });
        match epoll::wait(&self.fd, &mut events[..], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.fd, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.fd, fd)?)
    }

    /// The tokens of what is readable now, or within `timeout`.
    pub(crate) fn ready(&self, timeout: Duration, tokens: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
        let (ready, _) = match epoll::wait(&self.fd, &mut events[..], Some(&timeout)) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        tokens.extend(ready.iter().map(|event| event.data.u64()));
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Flags of [`wait_for_events`]: a descriptor can be read.
pub const READABLE: u32 = epoll::EventFlags::IN.bits();
/// A descriptor can be written.
pub const WRITABLE: u32 = epoll::EventFlags::OUT.bits();

/// What a host's own set of descriptors has to tell, within `timeout` or whenever it comes: descriptors and flags, where
/// the host gave each descriptor itself as its data.
///
/// # Errors
/// When the operating system refuses, or a signal came.
pub fn wait_for_events(epoll: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<Vec<(RawFd, u32)>> {
    let mut events = [MaybeUninit::<epoll::Event>::uninit(); 64];
    let timeout = timeout.and_then(|timeout| {
        let tv_sec = i64::try_from(timeout.as_secs()).ok()?;
        Some(Timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() })
    });
    let (ready, _) = epoll::wait(epoll, &mut events[..], timeout.as_ref())?;
    let event = |event: &epoll::Event| {
        let flags = event.flags;
        (event.data.u64() as u32 as RawFd, flags.bits())
    };
    Ok(ready.iter().map(event).collect())
}

/// A descriptor that becomes readable at a moment.
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { fd: timerfd_create(TimerfdClockId::Monotonic, flags)? })
    }

    /// Readable once after `delay`, or never.
    pub(crate) fn set(&self, delay: Option<Duration>) -> io::Result<()> {
        // All zeros would disarm it.
        let delay = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
        let value = Timespec { tv_sec: delay.as_secs() as _, tv_nsec: delay.subsec_nanos() as _ };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        Ok(())
    }

    pub(crate) fn silence(&self) -> io::Result<()> {
        match rustix::io::read(&self.fd, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Two connected sockets that keep message boundaries and pass descriptors: the manager's, which never blocks, and
/// the worker's.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (manager, worker) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&manager, true)?;
    Ok((manager, worker))
}

/// A pipe, its reading end first.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Sends numbers and descriptors as one message, and waits for nothing.
pub(crate) fn send(socket: BorrowedFd<'_>, numbers: &[u64], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    send_bytes(socket, &bytes, fds)
}

/// The same with any bytes.
pub(crate) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// A message: numbers, and descriptors, as far as this process may have more of them.
type Message = (Vec<u64>, Vec<OwnedFd>);

/// Receives one message; `None` when the peer is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC)
}

/// The same without waiting.
pub(crate) fn receive_now(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
}

fn receive_with(socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            // A reset is reported once, and before what the peer had sent.
            Err(Errno::INTR | Errno::CONNRESET) => (),
            other => break other?.bytes,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received == 0 {
        return Ok(None);
    }
    let numbers = bytes[..received].as_chunks().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    Ok(Some((numbers, fds)))
}

/// A handle on a process that is a child of this one, or this one.
pub(crate) fn process_handle(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The process that a handle is of, by its number here; `None` if it is gone and its number, too.
///
/// # Errors
/// When this is no handle of a process, or of one that has no number here.
pub(crate) fn process_of(handle: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    // The first has a number for each namespace, ours last; without namespaces there is the second alone.
    let numbers = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    let number = numbers("NSpid:").or_else(|| numbers("Pid:")).and_then(|numbers| numbers.split_whitespace().last());
    match number.and_then(|number| number.parse::<i64>().ok()) {
        Some(-1) => Ok(None),
        Some(number @ 1..) => u32::try_from(number).map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
        Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether a process handle says that its process has ended.
pub(crate) fn has_ended(handle: BorrowedFd<'_>) -> bool {
    is_readable(handle)
}

/// Whether there is something to read.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}

/// Asks a process to end, or ends it. A process that is gone already is no error.
pub(crate) fn kill(handle: BorrowedFd<'_>, gently: bool) -> io::Result<()> {
    match pidfd_send_signal(handle, if gently { Signal::TERM } else { Signal::KILL }) {
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Interrupts what a worker's process does. It may be gone, or have too many signals waiting: one is enough.
pub(crate) fn interrupt(handle: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: one of the signals that the C library leaves to programs.
    let signal = unsafe { Signal::from_raw_unchecked(interrupt_signal()) };
    match pidfd_send_signal(handle, signal) {
        Err(Errno::SRCH | Errno::AGAIN) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Asks a Python worker for its stack, likewise. `polyloop._stacks` has it answer.
#[cfg(feature = "python")]
pub(crate) fn ask_for_stack(handle: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as for `interrupt`.
    let signal = unsafe { Signal::from_raw_unchecked(stack_signal()) };
    Ok(pidfd_send_signal(handle, signal)?)
}

/// The signal of [`ask_for_stack`].
#[cfg(feature = "python")]
pub(crate) fn stack_signal() -> i32 {
    libc::SIGRTMIN() + 3
}

/// The same for a process known only by its number.
pub(crate) fn kill_number(pid: u32, gently: bool) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::kill_process(pid, if gently { Signal::TERM } else { Signal::KILL }) {
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The signal that interrupts what a worker's thread waits for or computes.
pub fn interrupt_signal() -> i32 {
    libc::SIGRTMIN() + 1
}

/// Has a process that does not handle [`interrupt_signal`] ignore it: by default, it would end.
pub(crate) fn survive_interrupts() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the first call fills in `action`; the second sets a disposition that runs no code.
    unsafe {
        if libc::sigaction(interrupt_signal(), std::ptr::null(), action.as_mut_ptr()) == -1 {
            return Err(io::Error::last_os_error());
        }
        if action.assume_init().sa_sigaction == libc::SIG_DFL
            && libc::signal(interrupt_signal(), libc::SIG_IGN) == libc::SIG_ERR
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A thread that can be signalled.
#[derive(Clone, Copy, Debug)]
pub struct Thread(libc::pthread_t);

impl Thread {
    /// The one that calls this.
    pub fn current() -> Self {
        // SAFETY: touches no memory.
        Self(unsafe { libc::pthread_self() })
    }

    /// Interrupts what it waits for, as the signal's handler says.
    ///
    /// # Safety
    /// The thread must not have ended.
    pub unsafe fn signal(self, signal: i32) {
        // SAFETY: the caller knows that the thread lives. A signal that can't be sent interrupts nothing.
        unsafe { libc::pthread_kill(self.0, signal) };
    }
}

/// Ends the process here and now: nothing is flushed, no handler runs.
pub(crate) fn leave_at_once(code: i32) -> ! {
    // SAFETY: touches no memory.
    unsafe { libc::_exit(code) }
}

#[cfg(feature = "inject")]
pub(crate) fn signal_self(signal: i32) {
    // To this thread, so that it goes no further: another might take what is sent to the process.
    // SAFETY: sends a signal; touches no memory.
    unsafe { libc::raise(signal) };
}

/// Makes the kernel kill this process when the other end of `pipe` is closed: also while it is blocked in native
/// code, or stopped.
pub(crate) fn kill_on_hangup(pipe: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let fd = pipe.as_raw_fd();
    let check = |result: i32| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: fcntl on a descriptor that the caller keeps open; none of these commands touches memory.
    unsafe {
        check(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()))?;
        check(libc::fcntl(fd, F_SETSIG, libc::SIGKILL))?;
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// `fcntl`'s command to choose the signal of `O_ASYNC`; Linux only, and missing from the bindings.
const F_SETSIG: i32 = 10;

/// Makes the kernel kill this process when the thread that started it ends.
pub(crate) fn kill_with_starter() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The process that started this one.
pub(crate) fn parent() -> Option<u32> {
    rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32)
}

/// Gives this process sets to wait on of its own in place of those that it shares with the one it was forked from: what
/// it did to a shared one, or heard from it, would be done to its parent, or be missed there.
///
/// # Errors
/// When the operating system refuses.
pub fn part_from_parent() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_epoll = std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]");
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<RawFd>().ok());
        if let (true, Some(number)) = (is_epoll, number) {
            let own = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            // SAFETY: only lent, to be replaced: it stays open under its number.
            let mut shared = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
            rustix::io::dup3(own, &mut shared, rustix::io::DupFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

static FORKED: AtomicU32 = AtomicU32::new(0);
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many times this process has been forked from the one that first asked: what belongs to another generation
/// must not be touched. Costs one load.
pub fn forked_generation() -> u32 {
    watch_forks();
    FORKED.load(Ordering::Relaxed)
}

/// How many times this process has begun to fork a child since somebody first asked. A child that runs another program
/// at once may not count.
pub(crate) fn forks() -> u32 {
    watch_forks();
    FORKS.load(Ordering::SeqCst)
}

fn watch_forks() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        extern "C" fn before() {
            FORKS.fetch_add(1, Ordering::SeqCst);
        }
        extern "C" fn in_child() {
            FORKED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handlers only increment an atomic, which is allowed around a fork of any process.
        unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
    });
}

/// Closes what a forked process has of its parent's blocks: it would keep their memory when everybody else has let go.
///
/// # Errors
/// When the operating system refuses.
pub(crate) fn close_inherited_blocks() -> io::Result<()> {
    let name = format!("/memfd:{} (deleted)", BLOCK_NAME.to_string_lossy());
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_block = std::fs::read_link(&path).is_ok_and(|target| target.as_os_str() == name.as_str());
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<RawFd>().ok());
        if let (true, Some(number)) = (is_block, number) {
            // SAFETY: nobody in this process uses it: its owner is a copy of the parent's, which does not close it.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    Ok(())
}
