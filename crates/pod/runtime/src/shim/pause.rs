//! The first process of a process namespace that containers share.
//!
//! Whoever has CAP_SYS_PTRACE in such a pod can follow `/proc/1/root`, `cwd`, `exe`, `fd` and `ns`, and trace it. So it
//! is nothing of this program but a few bytes of its own, in a read-only file system that has nothing else: it maps no
//! library, holds no descriptor, has no capability, and its system call filter lets it wait. Children that
//! it inherits are reaped by the kernel, since it ignores them.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use keelson_sys::mount;
use keelson_sys::process::{self, Capabilities};
use keelson_sys::seccomp;
use nix::sys::signal::Signal;

use super::protocol::ShimConfig;

const NAME: &str = "pause";
/// As upstream's pause containers.
const USER: u32 = 65_535;

/// `pause(2)` in a loop.
#[cfg(target_arch = "x86_64")]
const CODE: [u8; 9] = [0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
/// `ppoll(2)` of nothing without a time, in a loop.
#[cfg(target_arch = "aarch64")]
const CODE: [u8; 32] = [
    0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x04, 0x00, 0x80,
    0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xf9, 0xff, 0xff, 0x17,
];

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

#[cfg(target_arch = "x86_64")]
const WAIT: libc::c_long = libc::SYS_pause;
#[cfg(target_arch = "aarch64")]
const WAIT: libc::c_long = libc::SYS_ppoll;

/// To wait, to become the program, and to say why that failed.
const CALLS: [libc::c_long; 7] = [
    WAIT,
    libc::SYS_restart_syscall,
    libc::SYS_execve,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const LOADED_AT: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A whole program: ELF's header, one segment with all of the file, and the code behind.
fn program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |file: &mut Vec<u8>, list: &[u16]| list.iter().for_each(|n| file.extend(n.to_le_bytes()));
    let words = |file: &mut Vec<u8>, list: &[u32]| list.iter().for_each(|n| file.extend(n.to_le_bytes()));
    let longs = |file: &mut Vec<u8>, list: &[u64]| list.iter().for_each(|n| file.extend(n.to_le_bytes()));
    // An executable of version 1; entry point, program headers behind this header, no sections, no flags.
    halves(&mut file, &[2, MACHINE]);
    words(&mut file, &[1]);
    longs(&mut file, &[LOADED_AT + HEADERS, 64, 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 1, 64, 0, 0]);
    // To be loaded, read and executed; at, size in the file and in memory, alignment (the largest page there is).
    words(&mut file, &[1, 5]);
    let size = HEADERS + CODE.len() as u64;
    longs(&mut file, &[0, LOADED_AT, LOADED_AT, size, size, 0x1_0000]);
    file.extend(CODE);
    file
}

/// Exchanges the host's files for the program's own root.
pub fn leave_the_host() -> io::Result<()> {
    mount::enter_root_of_one(NAME, &program())
}

/// Becomes the program once the shim says so; the socket's end tells the shim that it has. Returns only on failure.
///
/// `last` is the number of the last capability, which only the host's /proc tells.
pub fn become_pause(shim: &mut UnixStream, config: &ShimConfig, last: u32) -> io::Result<std::convert::Infallible> {
    process::close_all_but(&[shim.as_raw_fd()])?;
    process::make_undumpable()?;
    let user = user(config);
    process::set_ids(user, user, &[])?;
    process::set_capabilities(&Capabilities::default(), last)?;
    process::set_no_new_privileges()?;
    process::ignore_children()?;
    // Behind the change of user, which would undo it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    shim.set_nonblocking(true)?;
    if matches!(shim.read(&mut [0]), Ok(0)) {
        return Err(io::Error::other("the shim is gone"));
    }
    shim.set_nonblocking(false)?;
    let path = std::ffi::CString::new(format!("/{NAME}"))?;
    seccomp::allow_only(&CALLS)?;
    Err(process::execve(&path, std::slice::from_ref(&path), &[]))
}

/// A user namespace need not have the usual one.
fn user(config: &ShimConfig) -> u32 {
    let has = |mappings: &[super::protocol::IdMapping]| {
        mappings
            .iter()
            .any(|m| m.container <= USER && USER - m.container < m.length)
    };
    let own = config.uid_mappings.is_empty() || (has(&config.uid_mappings) && has(&config.gid_mappings));
    if own { USER } else { 0 }
}

/// The shim's side of the last steps.
pub fn wait_for_pause(child: &mut UnixStream) -> io::Result<()> {
    child.write_all(b"!")?;
    let mut error = String::new();
    child.read_to_string(&mut error)?;
    if error.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "cannot start the first process of the pod: {error}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::protocol::IdMapping;

    #[test]
    fn the_program_is_small_and_whole() {
        let file = program();
        assert_eq!(file.len() as u64, HEADERS + CODE.len() as u64);
        // The entry point is the first byte of the code.
        let entry = u64::from_le_bytes(file[24..32].try_into().unwrap());
        assert_eq!(&file[(entry - LOADED_AT) as usize..], CODE);
    }

    #[test]
    fn a_user_that_is_not_mapped_is_not_taken() {
        let with = |length| ShimConfig {
            uid_mappings: vec![IdMapping {
                container: 0,
                host: 100_000,
                length,
            }],
            gid_mappings: vec![IdMapping {
                container: 0,
                host: 100_000,
                length,
            }],
            ..ShimConfig::default()
        };
        assert_eq!(user(&ShimConfig::default()), USER);
        assert_eq!((user(&with(65_536)), user(&with(65_535))), (USER, 0));
    }
}
