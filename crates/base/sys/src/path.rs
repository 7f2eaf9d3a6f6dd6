//! Files inside a directory that somebody else controls: every path is resolved by the kernel, confined to a root.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Links are followed as if the root were `/`.
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Nothing is followed that leads to another mount, one of the same file system included.
pub(crate) const RESOLVE_NO_XDEV: u64 = 0x01;
pub(crate) const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub(crate) const RESOLVE_BENEATH: u64 = 0x08;

/// A directory that paths are confined to.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        let name = c_string(path.as_os_str())?;
        // SAFETY: `name` is a C string; a returned descriptor is new and ours.
        let fd = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) };
        Ok(Root(owned(fd.into())?))
    }

    /// Opens `path` inside the root, following links inside it only.
    pub fn open_in(&self, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let name = if relative.as_os_str().is_empty() {
            c_string(OsStr::new("."))?
        } else {
            c_string(relative.as_os_str())?
        };
        openat2(
            self.0.as_fd(),
            &name,
            flags,
            mode,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )
    }

    /// Reads a file of at most `limit` bytes inside the root; only regular files.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let file = std::fs::File::from(self.open_in(path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Makes a directory and its missing parents inside the root, and opens it (as `O_PATH`).
    pub fn make_dirs(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        self.make_dirs_of(path, mode, None)
    }

    /// As [`Root::make_dirs`]; what is made belongs to `owner`, a user and a group.
    pub fn make_dirs_of(&self, path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
        if let Ok(dir) = self.open_in(path, libc::O_PATH | libc::O_DIRECTORY, 0) {
            return Ok(dir);
        }
        let mut walked = std::path::PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => {
                    let parent = self.open_in(&walked, libc::O_PATH | libc::O_DIRECTORY, 0)?;
                    match make_dir_at(parent.as_fd(), name, mode) {
                        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                        made => {
                            if let (Ok(()), Some((user, group))) = (made, owner) {
                                let (user, group) = (Some(user.into()), Some(group.into()));
                                let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
                                nix::unistd::fchownat(parent.as_fd(), Path::new(name), user, group, flags)?;
                            }
                            walked.push(name);
                        }
                    }
                }
                Component::ParentDir => {
                    walked.pop();
                }
                _ => {}
            }
        }
        self.open_in(&walked, libc::O_PATH | libc::O_DIRECTORY, 0)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// Opens a name in a directory, resolved as `resolve` says.
pub(crate) fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    openat2(dir, &c_string(name)?, flags, mode, resolve)
}

fn openat2(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: mode.into(),
        resolve,
    };
    loop {
        // SAFETY: `name` is a C string and `how` a valid open_how of the given size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                name.as_ptr(),
                &how,
                std::mem::size_of::<OpenHow>(),
            )
        };
        // EAGAIN: something was renamed meanwhile and the kernel could not be sure.
        if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
            continue;
        }
        return owned(fd);
    }
}

/// Removes a name from a directory: an empty directory's, or anything else's.
pub(crate) fn unlink_at(dir: BorrowedFd<'_>, name: &OsStr, is_dir: bool) -> io::Result<()> {
    let name = c_string(name)?;
    let flags = if is_dir { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: `name` is a C string.
    if unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets an extended attribute of the file itself, not of what a link points to. `path` must not be attacker-controlled
/// beyond its last part.
pub fn set_xattr(path: &Path, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_string(path.as_os_str())?, c_string(name)?);
    // SAFETY: both are C strings and `value` is valid for its length.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets an extended attribute of what a path of a descriptor leads to.
pub(crate) fn set_followed_xattr(path: &Path, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_string(path.as_os_str())?, c_string(name)?);
    // SAFETY: both are C strings and `value` is valid for its length.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An extended attribute of what a path of a descriptor leads to, if it has it.
pub(crate) fn followed_xattr(path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    read_xattr(path, name, libc::getxattr)
}

type GetXattr = unsafe extern "C" fn(*const libc::c_char, *const libc::c_char, *mut libc::c_void, usize) -> isize;

/// An extended attribute of the file itself, if it has it.
pub fn xattr(path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    read_xattr(path, name, libc::lgetxattr)
}

fn read_xattr(path: &Path, name: &OsStr, get: GetXattr) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c_string(path.as_os_str())?, c_string(name)?);
    // The kernel's own bound.
    let mut value = vec![0; 64 << 10];
    // SAFETY: both are C strings and `value` is valid for its length.
    let got = unsafe { get(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(got) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            e => Err(e),
        },
    }
}

/// Makes a directory in a directory.
pub fn make_dir_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is a C string.
    if unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_leave_the_root() {
        let dir = std::env::temp_dir().join(format!("keelson-root-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/passwd", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("abs")).unwrap();
        let root = Root::open(&dir).unwrap();
        assert_eq!(root.read(Path::new("/link"), 100).unwrap(), b"inside");
        assert_eq!(root.read(Path::new("abs/passwd"), 100).unwrap(), b"inside");
        root.make_dirs(Path::new("/abs/a/b"), 0o755).unwrap();
        assert!(dir.join("etc/a/b").is_dir());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
