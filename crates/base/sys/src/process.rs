//! Processes: forking from a single-threaded program, pidfds, namespaces, signals, descriptors over sockets.
//!
//! It knows nothing of containers. Everything that forks refuses to do so in a program with several threads,
//! because a forked child of one may only call async-signal-safe functions.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// Where the child of [`fork`] becomes a child: of the caller or, as its sibling, of the caller's parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parent {
    Caller,
    CallersParent,
}

/// Number of threads of this process.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Runs `child` in a forked copy of this process and returns its pid; the copy ends with the returned status.
///
/// Fails with `EDEADLK` when this process has more than one thread: locks held by the others (the allocator's, to
/// begin with) would never be released in the copy.
pub fn fork(parent: Parent, namespaces: CloneFlags, child: impl FnOnce() -> i32) -> io::Result<i32> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    fork_single_threaded(parent, namespaces, child)
}

/// [`fork`] without looking at /proc: for a child of [`fork`], which has one thread by construction, after it has
/// entered a namespace where /proc is another's.
pub fn fork_single_threaded(parent: Parent, namespaces: CloneFlags, child: impl FnOnce() -> i32) -> io::Result<i32> {
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    let mut args = [namespaces.bits() as u32 as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    if parent == Parent::CallersParent {
        args[0] |= libc::CLONE_PARENT as u64;
        args[4] = 0;
    }
    // SAFETY: clone3 with a zeroed stack behaves like fork; `args` is a valid clone_args of 64 bytes. The process has
    // one thread (checked or promised by the caller), so the child may use everything the parent may.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), std::mem::size_of_val(&args)) };
    if pid == -1 && Errno::last() == Errno::ENOSYS {
        // What a container's filter answers, which cannot see this call's flags. The older one has the same meaning.
        // SAFETY: as above; no stack, no thread-local storage, nowhere to write ids to.
        pid = unsafe { libc::syscall(libc::SYS_clone, args[0] | args[4], 0, 0, 0, 0) };
    }
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(255);
            exit_now(status)
        }
        pid => Ok(pid as i32),
    }
}

/// Ends the process at once, without running exit handlers of the program it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// A descriptor that refers to a process, not to a number that may be reused.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; a returned descriptor is new and ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal through a pidfd.
pub fn pidfd_send_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the same information as kill(2).
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends any signal, real-time ones included; `pid` 0 and below are refused.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: plain system call.
    if unsafe { libc::kill(pid, signal) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Signals every process of the group that `leader` leads, or has led.
pub fn kill_group(leader: i32, signal: i32) -> io::Result<()> {
    if leader <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: plain system call.
    if unsafe { libc::kill(-leader, signal) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets how many files this process, and what comes of it, may have open: `soft`, which programs can raise to `hard`.
/// Where that takes a privilege that is lacking, the present hard limit is the bound.
pub fn set_file_limits(soft: u64, hard: u64) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, now) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, soft, hard) {
        Err(Errno::EPERM) => Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(now), hard.min(now))?),
        done => Ok(done?),
    }
}

/// Raises the soft limit of open files to the hard one, and returns it.
pub fn raise_file_limit() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Enters the namespaces named by `which` of the process behind a pidfd.
pub fn enter_namespaces(pidfd: BorrowedFd<'_>, which: CloneFlags) -> io::Result<()> {
    nix::sched::setns(pidfd, which).map_err(io::Error::from)
}

/// Orphans of descendants become children of this process.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    pub pid: i32,
    /// The exit status, or 128 + the signal's number.
    pub code: i32,
}

/// One ended child, if there is any; never waits.
pub fn reap() -> io::Result<Option<Ended>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        return match pid {
            0 => Ok(None),
            -1 => match Errno::last() {
                Errno::ECHILD => Ok(None),
                Errno::EINTR => continue,
                e => Err(e.into()),
            },
            pid if libc::WIFEXITED(status) => Ok(Some(Ended {
                pid,
                code: libc::WEXITSTATUS(status),
            })),
            pid if libc::WIFSIGNALED(status) => Ok(Some(Ended {
                pid,
                code: 128 + libc::WTERMSIG(status),
            })),
            _ => continue,
        };
    }
}

/// Whether a process is a child of this one, running or not reaped yet.
pub fn is_child(pid: i32) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: a zeroed siginfo_t is a valid place for the result.
    pid > 0
        && unsafe {
            let mut information: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid as libc::id_t, &mut information, flags) == 0
        }
}

/// Waits for one child to end.
pub fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        match unsafe { libc::waitpid(pid, &mut status, libc::__WALL) } {
            -1 if Errno::last() == Errno::EINTR => continue,
            -1 => return Err(io::Error::last_os_error()),
            _ if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status)),
            _ if libc::WIFSIGNALED(status) => return Ok(128 + libc::WTERMSIG(status)),
            _ => continue,
        }
    }
}

/// Replaces the program. Returns only when that fails.
pub fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both vectors are null-terminated arrays of valid C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Marks every descriptor from `first` on to be closed at exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: plain system call on our own descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Closes every descriptor from `first` on. For a program's very start, before it owns any.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: plain system call; the caller holds no object over these descriptors yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Closes every descriptor but these. For a forked child, whose copies of the parent's objects are never dropped.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep.into_iter().chain(std::iter::once(u32::MAX)) {
        if first < fd {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: plain system call; the caller gives up everything over these descriptors.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(fd.saturating_add(1));
    }
    Ok(())
}

/// Others of the same user cannot look into this process or trace it. What it forks inherits that; exec ends it.
pub fn make_undumpable() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(io::Error::from)
}

/// Children that end leave nothing to be reaped, also after an exec.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: an ignored signal runs no code of ours.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes `fd` the standard descriptor `target` (0, 1 or 2).
pub fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: standard descriptors are owned by the process as a whole, not by an object.
    let done = if fd.as_raw_fd() == target {
        // SAFETY: as above; only the close-on-exec flag is cleared.
        unsafe { libc::fcntl(target, libc::F_SETFD, 0) }
    } else {
        // SAFETY: as above.
        unsafe { libc::dup2(fd.as_raw_fd(), target) }
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets the real, effective and saved user and group; capabilities stay permitted.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.to_vec();
    // SAFETY: the raw system calls act on this thread alone, which is the only one; the arrays are valid.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0
            || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
            || libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The four capability sets of a process, as bit masks by capability number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// The number of the highest capability this kernel knows.
pub fn last_capability() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|s| s.trim().parse().ok())
        .unwrap_or(40)
}

/// Capabilities this process could be given at all.
pub fn own_bounding_set() -> u64 {
    (0..=last_capability().min(63)).fold(0, |set, cap| {
        // SAFETY: plain system call.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) } == 1 {
            set | 1 << cap
        } else {
            set
        }
    })
}

/// Sets all capability sets of this thread. Call after [`set_ids`].
pub fn set_capabilities(caps: &Capabilities, last: u32) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let word = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
    let sets = |c: &Capabilities| {
        [false, true].map(|high| {
            [
                word(c.effective, high),
                word(c.permitted, high),
                word(c.inheritable, high),
            ]
        })
    };
    // SAFETY: header and data have the layout of version 3 of the capability interface; prctl takes plain numbers.
    unsafe {
        let mut now = [[0u32; 3]; 2];
        if libc::syscall(libc::SYS_capget, &header, now.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        // Dropping from the bounding set needs CAP_SETPCAP in the effective set, which setresuid has emptied.
        let permitted = u64::from(now[0][1]) | u64::from(now[1][1]) << 32;
        let full = Capabilities {
            effective: permitted,
            permitted,
            inheritable: 0,
            bounding: 0,
            ambient: 0,
        };
        if libc::syscall(libc::SYS_capset, &header, sets(&full).as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        for cap in 0..=last.min(63) {
            if caps.bounding & 1 << cap == 0 && libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // A runtime without some capability cannot hand it on.
        let granted = Capabilities {
            effective: caps.effective & permitted,
            permitted: caps.permitted & permitted,
            inheritable: caps.inheritable & permitted,
            ..*caps
        };
        if libc::syscall(libc::SYS_capset, &header, sets(&granted).as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        for cap in 0..=last.min(63) {
            if caps.ambient & granted.permitted & granted.inheritable & 1 << cap != 0
                && libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0
            {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The program and its children can gain no privileges by exec any more.
pub fn set_no_new_privileges() -> io::Result<()> {
    nix::sys::prctl::set_no_new_privs().map_err(io::Error::from)
}

/// Sends bytes with descriptors over a unix socket.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let control = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(sent)
}

/// Most descriptors [`receive_with_fds`] takes in one message.
pub const MAX_FDS: usize = 4;

/// Receives bytes and the descriptors sent along, all close-on-exec.
pub fn receive_with_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// Reads a namespace file such as `/proc/<pid>/ns/net` into a descriptor.
pub fn open_namespace(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(path)?.into())
}

/// Runs `work` in the mount namespace of another process, for a program of one thread, and comes back.
pub fn in_mount_namespace<T>(of: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (own, root) = (std::fs::File::open("/proc/self/ns/mnt")?, std::fs::File::open("/")?);
    let directory = std::fs::File::open(".")?;
    nix::sched::setns(of, CloneFlags::CLONE_NEWNS)?;
    let result = work();
    nix::sched::setns(&own, CloneFlags::CLONE_NEWNS)?;
    // Entering a mount namespace makes its root the process's, which need not be what it was.
    nix::unistd::fchdir(&root)?;
    nix::unistd::chroot(".")?;
    nix::unistd::fchdir(&directory)?;
    result
}

/// Runs `work` in a thread of its own that has entered a network namespace, and returns its result.
pub fn in_network_namespace<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// Gives a process about to exec the signal handling a program expects: nothing blocked, nothing ignored.
pub fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    // SAFETY: default dispositions run no code of ours; unknown and fixed signals are refused harmlessly.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(io::Error::from)
}

/// Another descriptor for what the number `fd` refers to, if that is open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is only used for this call, which fails if it is not open.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Whether this process, what it forks and what it becomes by exec may get huge pages without asking for them.
pub fn allow_huge_pages(allow: bool) -> io::Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, libc::c_ulong::from(!allow), 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
