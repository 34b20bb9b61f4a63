//! This program's file, which its workers run too, and how a function is named to them: by the place of its [`Entry`] in
//! the program's read-only data, which is the same in every process that runs the same file.
//!
//! The only code that turns such a name into something to call. Nothing is called that is not an entry of this program.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use super::function::Entry;

/// Says to `init` that this process is to be a worker: its first argument. Not in the environment, which a task's own
/// children would inherit.
const MARK: &[u8] = b"--polyloop-worker";

/// The program that this process runs.
pub(crate) struct Program {
    /// Held since the start: its path may come to lead to another file.
    file: File,
    image: Image,
}

static PROGRAM: OnceLock<io::Result<Program>> = OnceLock::new();

/// Makes this program one whose pools can start it again as a worker. In a process that was started as one, runs the
/// worker and does not return.
///
/// Call it first in `main`, before the program reads its arguments, starts threads or opens anything: a worker gets no
/// further. [`#[polyloop::main]`](crate::main) does it, and [`init_before_main!`](crate::init_before_main) where the main
/// function is not yours, as in tests. Called again, it does nothing.
///
/// ```
/// polyloop::init();
/// // What follows does not run in workers.
/// ```
pub fn init() {
    let program = PROGRAM.get_or_init(Program::open);
    if is_worker() {
        super::host::serve(program.as_ref());
    }
}

/// The program, if it has called [`init`].
pub(crate) fn program() -> Option<&'static io::Result<Program>> {
    PROGRAM.get()
}

fn is_worker() -> bool {
    // Not from `std::env::args`, which not every C library has ready before `main`.
    std::fs::read("/proc/self/cmdline").is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(MARK))
}

impl Program {
    fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/exe")?, image: Image::of_this_process() })
    }

    /// A command that runs this program as a worker, under the name that this process has.
    pub(crate) fn command(&self) -> std::process::Command {
        use std::os::fd::AsRawFd;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::process::CommandExt;

        let mut command = std::process::Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(std::env::args_os().next().unwrap_or_else(|| "polyloop".into()));
        command.arg(std::ffi::OsStr::from_bytes(MARK));
        command
    }

    /// Differs between programs, and between builds of one.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.image.fingerprint
    }

    /// The name of an entry; `None` for one that is not in the program's own file, but in a library.
    pub(crate) fn name(&self, entry: &'static Entry) -> Option<u64> {
        let address = std::ptr::from_ref(entry) as usize;
        self.image.holds(address).then(|| address.wrapping_sub(self.image.base) as u64)
    }

    /// The entry with this name, if there is one.
    pub(crate) fn entry(&self, name: u64) -> Option<&'static Entry> {
        let address = self.image.base.wrapping_add(usize::try_from(name).ok()?);
        if !self.image.holds(address) {
            return None;
        }
        // SAFETY: the address is aligned and lies, with the size of an entry, in a part of this program's file that is
        // mapped for the life of the process and that nobody writes to; any bytes make a pair of numbers.
        let mark = unsafe { *(address as *const [u64; 2]) };
        // SAFETY: only entries begin with this mark. They are constants, so a reference to one is good for ever.
        (mark == Entry::MARK).then(|| unsafe { &*(address as *const Entry) })
    }
}

/// Where the program's file is mapped, and which parts of it are only read.
struct Image {
    base: usize,
    read_only: Vec<Range<usize>>,
    fingerprint: u64,
}

impl Image {
    fn of_this_process() -> Self {
        let mut image = Self { base: 0, read_only: Vec::new(), fingerprint: FNV_START };
        // SAFETY: the callback gets back the pointer to `image`, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(look_at_program), std::ptr::from_mut(&mut image).cast()) };
        image
    }

    /// Whether an entry may stand at this address.
    fn holds(&self, address: usize) -> bool {
        let fits = |part: &Range<usize>| {
            part.contains(&address) && address.checked_add(size_of::<Entry>()).is_some_and(|end| end <= part.end)
        };
        address.is_multiple_of(align_of::<Entry>()) && self.read_only.iter().any(fits)
    }

    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.fingerprint = (self.fingerprint ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// Takes in the first object of the process, which is its program, and ends the iteration.
unsafe extern "C" fn look_at_program(info: *mut libc::dl_phdr_info, _size: usize, image: *mut c_void) -> i32 {
    // SAFETY: the C library passes a valid description, and the pointer that `of_this_process` gave it.
    let (info, image) = unsafe { (&*info, &mut *image.cast::<Image>()) };
    // SAFETY: the description's table has that many rows.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    image.base = info.dlpi_addr as usize;
    for header in headers {
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        let part = start..start + header.p_memsz as usize;
        let is_loaded = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let is_readable = header.p_flags & libc::PF_R != 0;
        // Entries hold addresses, which are filled in at the start; after that their part is read-only.
        if is_readable && (is_loaded || header.p_type == libc::PT_GNU_RELRO) {
            image.read_only.push(part.clone());
        }
        if header.p_type == libc::PT_NOTE {
            // SAFETY: notes are part of the file and mapped; the linker's number of the build is one.
            image.mix(unsafe { std::slice::from_raw_parts(part.start as *const u8, part.len()) });
        }
        for number in [header.p_vaddr, header.p_memsz, header.p_filesz, u64::from(header.p_flags)] {
            image.mix(&number.to_le_bytes());
        }
    }
    1
}

/// Has a program whose main function is not yours - a test harness, a benchmark's - call [`init`] before it. Write it
/// once, at the top of the file that is compiled into the program: of each file in `tests/` and `benches/`, and for unit
/// tests of the library's `lib.rs`, under `#[cfg(test)]`.
///
/// ```
/// polyloop::init_before_main!();
///
/// # async fn test() -> Result<(), polyloop::Error> {
/// // In any test:
/// let pool = polyloop::Pool::builder().processes(1).build().await?;
/// assert_eq!(pool.apply(|n: u64| n + 1, (1,)).await?, 2);
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! init_before_main {
    () => {
        const _: () = {
            #[used]
            #[unsafe(link_section = ".init_array")]
            static INIT: extern "C" fn() = {
                extern "C" fn init() {
                    $crate::init();
                }
                init
            };
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_by_its_name_and_nothing_else_by_any() {
        let program = Program::open().unwrap();
        let entry = Entry::of::<_, (u32,), crate::face::kind::Plain>(|n: u32| n + 1);
        let name = program.name(entry).expect("it is in this program");
        assert!(std::ptr::eq(program.entry(name).unwrap(), entry));
        let step = align_of::<Entry>() as u64;
        for near in [name + 1, name.wrapping_sub(step), name + step, name + (1 << 40), 0, u64::MAX, u64::MAX - 7] {
            assert!(program.entry(near).is_none(), "{near:#x}");
        }
        let read_only = program.image.read_only.iter().flat_map(|part| part.clone().step_by(align_of::<Entry>()));
        let entries = read_only.filter(|address| program.entry((address - program.image.base) as u64).is_some());
        // Some stand in two of the parts, of which one lies in the other.
        assert!((1..100).contains(&entries.count()), "the entries of this program's tests");
    }
}
