//! A system call filter that is a plain list: what is not on it fails with `EPERM`.
//!
//! For processes of ours that need a handful of calls. It allocates nothing after the filter is in force, so that the
//! list need not hold what an allocator does. Filters of containers are another matter: they come from profiles.

use std::io;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in the kernel's `seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Most calls a list may have: jumps of a filter are of one byte.
const MAX_CALLS: usize = 200;

/// From now on this process, what it forks and what it becomes by exec can make these calls and no others. Needs
/// no-new-privileges, or CAP_SYS_ADMIN.
pub fn allow_only(calls: &[libc::c_long]) -> io::Result<()> {
    if calls.len() > MAX_CALLS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut program = program(calls);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` describes `program`, which outlives the call; the kernel copies it.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Freeing could be a call that is no longer allowed.
    std::mem::forget(program);
    Ok(())
}

fn program(calls: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let step = |code: u32, k: u32, jt: usize, jf: usize| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut program = vec![
        step(load, ARCH, 0, 0),
        // To the refusal, behind the load and the comparisons.
        step(equal, ARCHITECTURE, 0, calls.len() + 1),
        step(load, NUMBER, 0, 0),
    ];
    for (done, call) in calls.iter().enumerate() {
        program.push(step(equal, *call as u32, calls.len() - done, 0));
    }
    program.push(step(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0));
    program.push(step(answer, libc::SECCOMP_RET_ALLOW, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers, by following it as the kernel does.
    fn follow(program: &[libc::sock_filter], arch: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    value = if step.k == ARCH { arch } else { number };
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if value == step.k { step.jt } else { step.jf });
                }
                _ => return step.k,
            }
        }
    }

    #[test]
    fn only_the_list_passes() {
        let program = program(&[libc::SYS_execve, libc::SYS_exit_group]);
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for call in [libc::SYS_execve, libc::SYS_exit_group] {
            assert_eq!(follow(&program, ARCHITECTURE, call as u32), libc::SECCOMP_RET_ALLOW);
            assert_eq!(follow(&program, ARCHITECTURE ^ 1, call as u32), refused);
        }
        assert_eq!(follow(&program, ARCHITECTURE, libc::SYS_openat as u32), refused);
        // The second set of numbers that x86-64 has.
        let other = libc::SYS_execve as u32 | 0x4000_0000;
        assert_eq!(follow(&program, ARCHITECTURE, other), refused);
    }

    #[test]
    fn the_kernel_takes_and_keeps_it() {
        // Filters are a thread's own; these are what its end takes.
        let ending = [
            libc::SYS_futex,
            libc::SYS_munmap,
            libc::SYS_madvise,
            libc::SYS_mprotect,
            libc::SYS_mmap,
            libc::SYS_brk,
            libc::SYS_rt_sigprocmask,
            libc::SYS_sigaltstack,
            libc::SYS_set_robust_list,
            libc::SYS_exit,
        ];
        let thread = std::thread::spawn(move || {
            crate::process::set_no_new_privileges().unwrap();
            let mut allowed = ending.to_vec();
            allowed.push(libc::SYS_getpid);
            allow_only(&allowed).unwrap();
            // SAFETY: calls without arguments.
            unsafe { (libc::syscall(libc::SYS_getpid), libc::syscall(libc::SYS_getppid)) }
        });
        let (passes, refused) = thread.join().unwrap();
        assert!(passes > 0 && refused == -1, "{passes} {refused}");
    }
}
