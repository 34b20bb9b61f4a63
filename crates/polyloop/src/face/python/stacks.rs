//! Where a blocked worker is: it is asked by a signal, and its stack comes back through a memory file.
//!
//! The answer needs neither the worker's loop nor its interpreter, as `polyloop._stacks` says, which does the same for pools
//! of Python programs. All workers of a pool share the file, so one is asked after the other, by a thread that lives
//! from the first question to the pool's end: a runtime need not have a clock.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

use crate::os;

/// Nothing says where an answer ends: it is whole when it has not grown between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOOKS_MAX: usize = 50;
/// Bytes of a stack that are told.
const STACK_MAX: u64 = 64 << 10;
/// In a stack: where the frames of the package's own begin.
const OWN_FRAMES: &str = "polyloop/_worker.py\"";

type Tell = Box<dyn FnOnce(Option<&str>) + Send>;

/// Asks the workers of one pool for their stacks.
pub(super) struct Stacks {
    file: Arc<File>,
    questions: OnceLock<Option<Sender<(u32, Tell)>>>,
}

impl Stacks {
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create("polyloop-stacks", MemfdFlags::CLOEXEC)?;
        fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self { file: Arc::new(file.into()), questions: OnceLock::new() })
    }

    /// Tells the stack of a worker soon, or that it does not say.
    pub(super) fn ask(&self, pid: u32, tell: Tell) {
        let questions = self.questions.get_or_init(|| {
            let (sender, questions) = channel();
            let file = Arc::clone(&self.file);
            let thread = thread::Builder::new().name("polyloop-stacks".into());
            thread.spawn(move || answer(&file, &questions)).ok().map(|_| sender)
        });
        match questions {
            // It ends with its sender.
            Some(questions) => drop(questions.send((pid, tell))),
            None => tell(None),
        }
    }
}

impl AsFd for Stacks {
    /// For the workers to write to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn answer(file: &File, questions: &Receiver<(u32, Tell)>) {
    for (pid, tell) in questions {
        // A worker that is gone, or an answer that can't be had: what matters is told without it.
        tell(stack(file, pid).ok().flatten().as_deref());
    }
}

fn stack(file: &File, pid: u32) -> io::Result<Option<String>> {
    file.set_len(0)?;
    let worker = os::process_handle(pid)?;
    if !would_answer(pid)? {
        return Ok(None);
    }
    os::ask_for_stack(worker.as_fd())?;
    let mut len = 0;
    for _ in 0..LOOKS_MAX {
        thread::sleep(LOOK_AGAIN);
        let before = std::mem::replace(&mut len, file.metadata()?.len());
        if len > 0 && len == before {
            break;
        }
    }
    let mut bytes = vec![0; len.min(STACK_MAX) as usize];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(frames_of_user(&String::from_utf8_lossy(&bytes[..read])))
}

/// The frames before those of the package's own, innermost first.
fn frames_of_user(stack: &str) -> Option<String> {
    let end = stack.find(OWN_FRAMES).map_or(stack.len(), |at| stack[..at].rfind('\n').unwrap_or(0));
    Some(stack[..end].trim_end().to_owned()).filter(|stack| !stack.is_empty())
}

/// Whether a process is a child of this one, and has a handler for the question: that would kill it otherwise.
fn would_answer(pid: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_child = field("PPid:").is_some_and(|parent| parent.parse() == Ok(std::process::id()));
    let caught = field("SigCgt:").and_then(|signals| u64::from_str_radix(signals, 16).ok()).unwrap_or_default();
    Ok(is_child && caught >> (os::stack_signal() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_ends_where_the_packages_own_frames_begin() {
        let stack = concat!(
            "Stack (most recent call first):\n",
            "  File \"/app/slow.py\", line 7 in block\n",
            "  File \"/lib/polyloop/_worker.py\", line 246 in take\n",
            "  File \"/lib/asyncio/events.py\", line 84 in _run\n",
        );
        let expected = "Stack (most recent call first):\n  File \"/app/slow.py\", line 7 in block";
        assert_eq!(frames_of_user(stack).as_deref(), Some(expected));
        assert_eq!(frames_of_user(expected).as_deref(), Some(expected));
        assert_eq!(frames_of_user(""), None);
    }

    #[test]
    fn a_process_that_would_die_of_the_question_is_not_asked() {
        // Not a child of this process; and then one that has no handler.
        assert!(!would_answer(std::process::id()).unwrap());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!would_answer(child.id()).unwrap());
        assert!(stack(&Stacks::new().unwrap().file, child.id()).unwrap().is_none());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
