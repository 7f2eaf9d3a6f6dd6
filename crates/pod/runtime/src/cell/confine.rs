//! How a cell locks itself in: a mount namespace of two directories, limits, capabilities, system calls. In this order,
//! because each step needs what a later one takes away.

use std::io;
use std::path::Path;

use keelson_sys::mount::{self, Propagation};
use keelson_sys::process::{self, Capabilities};
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::{MEMORY, Task};
use crate::images::TARGET;

const UPPER: &str = "/upper";

/// What a cell sees, by paths in its own root.
pub struct Inside {
    pub target: &'static Path,
    pub upper: Option<&'static Path>,
}

pub fn confine(task: &Task) -> io::Result<Inside> {
    process::close_from(3)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() as u32 != task.parent {
        return Err(io::Error::other("whoever started this cell is gone"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::unistd::setgroups(&[])?;
    let last_capability = process::last_capability();
    let memory = own_memory()? + MEMORY;
    let inside = enter(task)?;
    limit(task, memory)?;
    let kept = tar_capabilities();
    let capabilities = Capabilities {
        bounding: kept,
        effective: kept,
        permitted: kept,
        inheritable: 0,
        ambient: 0,
    };
    process::set_capabilities(&capabilities, last_capability)?;
    process::set_no_new_privileges()?;
    nix::sys::prctl::set_dumpable(false)?;
    filter().map_err(|e| io::Error::other(format!("cannot filter system calls: {e}")))?;
    Ok(inside)
}

/// Makes a root of nothing but the directory to fill and, to be looked at, the layer's own one.
fn enter(task: &Task) -> io::Result<Inside> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    mount::set_propagation(Path::new("/"), Propagation::Private)?;
    let (root, work) = (task.work.join("cell"), task.work.join("work"));
    std::fs::create_dir(&root)?;
    mount::tmpfs(
        &root,
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        "size=4k,nr_inodes=8,mode=755",
    )?;
    let below_root = |name: &str| root.join(name.trim_start_matches('/'));
    let target = below_root(TARGET);
    std::fs::create_dir(&target)?;
    if task.below.is_empty() {
        mount::bind(&task.upper, &target)?;
    } else {
        std::fs::create_dir(&work)?;
        mount::overlay(&task.below, Some((&task.upper, &work)), &target)?;
        let upper = below_root(UPPER);
        std::fs::create_dir(&upper)?;
        mount::bind_read_only(&task.upper, &upper)?;
    }
    // The old root ends up below the new one, where it is taken away.
    nix::unistd::chdir(&root)?;
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    mount::make_read_only(Path::new("/"))?;
    Ok(Inside {
        target: Path::new(TARGET),
        upper: (!task.below.is_empty()).then_some(Path::new(UPPER)),
    })
}

/// Bytes of address space that this program has mapped before it does anything.
fn own_memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self/statm cannot be read"))?;
    Ok(pages * 4096)
}

fn limit(task: &Task, memory: u64) -> io::Result<()> {
    let (computing, all) = task.seconds;
    for (resource, most) in [
        (Resource::RLIMIT_AS, memory),
        (Resource::RLIMIT_CPU, computing),
        (Resource::RLIMIT_NOFILE, 64),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, 1),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, most, most)?;
    }
    nix::unistd::alarm::set(u32::try_from(all).unwrap_or(u32::MAX));
    Ok(())
}

/// What making files for others takes: their owners, any permissions, devices, set-user-ID bits, file capabilities.
fn tar_capabilities() -> u64 {
    const CHOWN: u64 = 0;
    const DAC_OVERRIDE: u64 = 1;
    const FOWNER: u64 = 3;
    const FSETID: u64 = 4;
    const MKNOD: u64 = 27;
    const SETFCAP: u64 = 31;
    [CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP]
        .iter()
        .fold(0, |set, capability| set | 1 << capability)
}

/// Files of one tree, memory, and the end.
const ALLOWED: &[&str] = &[
    "read",
    "readv",
    "pread64",
    "write",
    "writev",
    "pwrite64",
    "lseek",
    "close",
    "ftruncate",
    "fcntl",
    "open",
    "openat",
    "openat2",
    "fstat",
    "stat",
    "lstat",
    "newfstatat",
    "fstatat64",
    "statx",
    "fstatfs",
    "getdents64",
    "getcwd",
    "fchdir",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "symlink",
    "symlinkat",
    "link",
    "linkat",
    "mknod",
    "mknodat",
    "lchown",
    "fchownat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "utimensat",
    "lsetxattr",
    "readlink",
    "readlinkat",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "futex",
    "sched_yield",
    "sched_getaffinity",
    "getrandom",
    "clock_gettime",
    "gettimeofday",
    "getpid",
    "gettid",
    "tgkill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "rseq",
    "exit",
    "exit_group",
];

/// Everything else does not exist here, so that libraries take the way they know for older kernels.
fn filter() -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    for name in ALLOWED {
        // Calls that this architecture never had cannot be made either.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Allow, call)?;
        }
    }
    filter.load()
}
