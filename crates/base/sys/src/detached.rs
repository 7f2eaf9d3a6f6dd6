//! Mounts that are nowhere yet, known by descriptor; and programs that run from such a one.
//!
//! A mount in no mount namespace cannot be found, changed or unmounted by path. It goes when nobody holds it any more.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const OPEN_TREE_CLONE: u32 = 1;

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// /proc of this process's process namespace.
pub fn proc() -> io::Result<OwnedFd> {
    mount(c"proc", &[], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
}

/// What is mounted at `path`, without what is mounted in it.
pub fn clone_of(path: &CStr) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    // SAFETY: plain system call with a valid string; a returned descriptor is new and ours.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// What is at `path`, with what is mounted in it: its own mount, of which nobody else knows. A link is refused, since it
/// would be followed by somebody else, somewhere else.
pub fn tree_of(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_RECURSIVE as u32 | libc::AT_SYMLINK_NOFOLLOW as u32;
    // SAFETY: plain system call with a valid string; a returned descriptor is new and ours.
    let tree = descriptor(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) })?;
    match is_link(&tree)? {
        true => Err(io::Error::from_raw_os_error(libc::ELOOP)),
        false => Ok(tree),
    }
}

fn is_link(fd: &OwnedFd) -> io::Result<bool> {
    let kind = nix::sys::stat::fstat(fd)?.st_mode & libc::S_IFMT;
    Ok(kind == libc::S_IFLNK)
}

/// Shows a mount's files to the users of a user namespace: who owns one by its number on the disk is the same number
/// inside of the namespace. What is mounted in it stays as it is. For a mount that is nowhere yet.
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        users: u64,
    }
    let attributes = Attributes {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        users: users.as_raw_fd() as u64,
    };
    // SAFETY: plain system call; `attributes` is a valid mount_attr of the given size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            std::mem::size_of::<Attributes>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A new temporary file system.
pub fn tmpfs() -> io::Result<OwnedFd> {
    mount(c"tmpfs", &[(c"mode", c"0755")], 0)
}

/// /sys of this process's network namespace.
pub fn sys() -> io::Result<OwnedFd> {
    mount(c"sysfs", &[], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
}

/// Mounts it at a path after all.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: plain system call with valid strings.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: plain system call with a valid string; a returned descriptor is new and ours.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let configure = |command: u32, key: *const libc::c_char, value: *const libc::c_char| -> io::Result<()> {
        // SAFETY: key and value are valid strings, or null where the command takes none.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    for (key, value) in options {
        configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    // SAFETY: plain system call on our descriptor; a returned one is new and ours.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to the caller, who gives it up.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

/// A program to execute by `/proc/self/fd/<it>` whose file nobody can change through the processes that run it, not
/// even by `/proc/<pid>/exe` with all capabilities.
///
/// It is the file itself on a read-only overlay, so that its text is in memory once, whoever runs it. Where the kernel
/// or the file system refuses that, or the file has been replaced meanwhile, it is a sealed copy in memory.
/// `empty` is a directory without anything in it.
pub fn sealed_program(program: &Path, empty: &Path) -> io::Result<OwnedFd> {
    match on_an_overlay(program, empty) {
        Ok(sealed) => Ok(sealed),
        Err(error) => {
            tracing::info!(%error, "the program is copied to memory for its pods: it cannot be shared read-only");
            in_memory(program)
        }
    }
}

fn on_an_overlay(program: &Path, empty: &Path) -> io::Result<OwnedFd> {
    let path = program.canonicalize()?;
    let is_same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    if !is_same(&std::fs::metadata(program)?, &std::fs::metadata(&path)?) {
        return Err(io::Error::other("its file has been replaced"));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it has no name"));
    };
    let lower = [dir.as_os_str().as_bytes(), b":", empty.as_os_str().as_bytes()].concat();
    if lower.iter().filter(|b| matches!(b, b':' | b'\\' | b',')).count() > 1 {
        return Err(io::Error::other("its path has signs that overlays give a meaning"));
    }
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    let overlay = mount(c"overlay", &[(c"lowerdir", &CString::new(lower)?)], attributes)?;
    let name = CString::new(name.as_bytes())?;
    let flags = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: plain system call with a valid string; a returned descriptor is new and ours.
    let opened = unsafe { libc::openat(overlay.as_raw_fd(), name.as_ptr(), flags) };
    descriptor(opened.into())
}

fn in_memory(program: &Path) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let create = |flags: u32| {
        // SAFETY: plain system call with a valid string; a returned descriptor is new and ours.
        descriptor(unsafe { libc::syscall(libc::SYS_memfd_create, c"keelson".as_ptr(), flags) })
    };
    // Kernels before 6.3 do not know the flag, and need none.
    let mut copy: File = create(flags | libc::MFD_EXEC).or_else(|_| create(flags))?.into();
    let mut from = File::open(program)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => copy.write_all(&buffer[..n])?,
        }
    }
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: the command takes a plain number.
    if unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // What is open for writing cannot be executed.
    let read_only = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(format!("/proc/self/fd/{}", copy.as_fd().as_raw_fd()))?;
    Ok(read_only.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_in_memory_runs_and_cannot_be_written() {
        let sealed = in_memory(Path::new("/bin/true")).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        assert!(std::process::Command::new(&path).status().unwrap().success());
        let error = File::options()
            .write(true)
            .open(&path)
            .and_then(|mut f| f.write_all(b"x"));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_program_that_was_replaced_is_not_taken_for_the_new_one() {
        let dir = std::env::temp_dir().join(format!("keelson-sealed-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("empty")).unwrap();
        std::fs::copy("/bin/true", dir.join("program")).unwrap();
        let running = File::open(dir.join("program")).unwrap();
        let by_descriptor = format!("/proc/self/fd/{}", running.as_raw_fd());
        std::fs::copy("/bin/false", dir.join("new")).unwrap();
        std::fs::rename(dir.join("new"), dir.join("program")).unwrap();
        let sealed = sealed_program(Path::new(&by_descriptor), &dir.join("empty")).unwrap();
        let status = std::process::Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd())).status();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(status.unwrap().success());
    }
}
