//! Overlay mounts of any number of layers that the kernel can stack.
//!
//! The options of mount(2) must fit a page, which 36 bytes a layer fill after some hundred. Kernels from 6.7 on take one
//! layer a call (`fsconfig` with `lowerdir+`). Older ones are given links of one or two letters in a directory that
//! exists for the moment of the call: the kernel resolves names when it mounts and keeps what they led to.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};

/// The kernel stacks no more.
pub const MOST_LAYERS: usize = 500;

/// Option strings of mount(2) must fit a page.
const MAX_OPTIONS: usize = 4000;
/// Longest value that `fsconfig` takes, without the NUL.
const MAX_VALUE: usize = 255;

/// How the kernel is told of layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// One option string.
    Options,
    /// One call a layer: Linux 6.7.
    Calls,
    /// One option string of short links.
    Links,
}

/// Mounts an overlay of `lowers` (topmost first) at `target`; without `upper` (and its work directory) it is read-only.
/// A directory beside `target` may be made and removed again.
pub fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    overlay_labelled(lowers, upper, target, None)
}

/// [`overlay`] whose files have all this label for SELinux.
pub fn overlay_labelled(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    label: Option<&str>,
) -> io::Result<()> {
    if lowers.len() > MOST_LAYERS {
        return Err(invalid("more layers than the kernel can stack"));
    }
    if options(lowers.iter().map(PathBuf::as_path), upper, label)?.len() <= MAX_OPTIONS {
        return mount_by(Way::Options, lowers, upper, target, label);
    }
    match mount_by(Way::Calls, lowers, upper, target, label) {
        // A kernel without these calls, or without this option of them.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)) => {
            mount_by(Way::Links, lowers, upper, target, label)
        }
        done => done,
    }
}

/// [`overlay`] in one way only.
pub fn overlay_by(way: Way, lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path) -> io::Result<()> {
    mount_by(way, lowers, upper, target, None)
}

fn mount_by(
    way: Way,
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    target: &Path,
    label: Option<&str>,
) -> io::Result<()> {
    match way {
        Way::Options => {
            let options = options(lowers.iter().map(PathBuf::as_path), upper, label)?;
            if options.len() > MAX_OPTIONS {
                return Err(invalid("too many layers for one option string"));
            }
            by_options(&options, upper.is_none(), target)
        }
        Way::Calls => by_calls(lowers, upper, target, label),
        Way::Links => by_links(lowers, upper, target, label),
    }
}

fn options<'a>(
    lowers: impl Iterator<Item = &'a Path>,
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
) -> io::Result<Vec<u8>> {
    let mut options = b"lowerdir=".to_vec();
    for (i, lower) in lowers.enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend(escaped(lower)?);
    }
    if let Some((upper, work)) = upper {
        options.extend_from_slice(b",upperdir=");
        options.extend(escaped(upper)?);
        options.extend_from_slice(b",workdir=");
        options.extend(escaped(work)?);
    }
    if let Some(label) = label {
        // Categories have a comma between them.
        options.extend(format!(",context=\"{}\"", plain(label)?).into_bytes());
    }
    Ok(options)
}

/// A label in which nothing ends it.
fn plain(label: &str) -> io::Result<&str> {
    match label.contains(['"', '\\']) || label.chars().any(char::is_control) {
        true => Err(invalid("a label that no mount option can be")),
        false => Ok(label),
    }
}

fn escaped(path: &Path) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(path.as_os_str().len());
    for &b in path.as_os_str().as_bytes() {
        match b {
            b':' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b',' => return Err(invalid("a comma in an overlay path")),
            b => out.push(b),
        }
    }
    Ok(out)
}

fn by_options(options: &[u8], read_only: bool, target: &Path) -> io::Result<()> {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, read_only);
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options)).map_err(io::Error::from)
}

fn by_links(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path, label: Option<&str>) -> io::Result<()> {
    let mut name = target.as_os_str().to_owned();
    name.push(".links");
    let dir = PathBuf::from(name);
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => std::fs::create_dir(&dir)?,
    }
    let result = (|| {
        let link = |to: &Path, name: String| -> io::Result<PathBuf> {
            std::os::unix::fs::symlink(std::path::absolute(to)?, dir.join(&name))?;
            Ok(PathBuf::from(name))
        };
        let lowers = lowers
            .iter()
            .enumerate()
            .map(|(i, lower)| link(lower, format!("{i:x}")))
            .collect::<io::Result<Vec<_>>>()?;
        let upper = match upper {
            Some((upper, work)) => Some((link(upper, "u".to_owned())?, link(work, "w".to_owned())?)),
            None => None,
        };
        let upper = upper.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
        let options = options(lowers.iter().map(PathBuf::as_path), upper, label)?;
        let target = std::path::absolute(target)?;
        in_directory(&dir, || by_options(&options, upper.is_none(), &target))
    })();
    std::fs::remove_dir_all(&dir)?;
    result
}

/// Does something with another working directory: that of a thread is its own after unshare(CLONE_FS), and the thread
/// ends here.
fn in_directory(dir: &Path, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
                nix::unistd::chdir(dir)?;
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const MOUNT_ATTR_RDONLY: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

fn by_calls(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, target: &Path, label: Option<&str>) -> io::Result<()> {
    // SAFETY: the name is a C string; a returned descriptor is new and ours.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) })?;
    let context = context.as_fd();
    configure(context, FSCONFIG_SET_STRING, Some(c"source"), Some(c"overlay"))?;
    for lower in lowers {
        set_path(context, c"lowerdir+", lower, false)?;
    }
    if let Some((upper, work)) = upper {
        set_path(context, c"upperdir", upper, true)?;
        set_path(context, c"workdir", work, true)?;
    } else {
        configure(context, FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    }
    if let Some(label) = label {
        let value = c_string(plain(label)?.as_bytes())?;
        configure(context, FSCONFIG_SET_STRING, Some(c"context"), Some(&value))?;
    }
    configure(context, FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = if upper.is_none() { MOUNT_ATTR_RDONLY } else { 0 };
    // SAFETY: plain numbers; a returned descriptor is new and ours.
    let made = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) };
    let made = owned(made)?;
    let target = c_string(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are C strings.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            made.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if moved < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `unescaped`: the kernel takes escapes out of this option's value (it does not for single lower layers).
fn set_path(context: BorrowedFd<'_>, key: &CStr, path: &Path, unescaped: bool) -> io::Result<()> {
    let plain = path.as_os_str().as_bytes();
    let value = if unescaped { escaped(path)? } else { plain.to_vec() };
    if value.len() <= MAX_VALUE {
        return configure(context, FSCONFIG_SET_STRING, Some(key), Some(&c_string(&value)?));
    }
    // Too long a name: by descriptor, which the kernel follows like a link.
    let name = c_string(plain)?;
    // SAFETY: `name` is a C string; a returned descriptor is new and ours.
    let dir = owned(unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) }.into())?;
    let value = c_string(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes())?;
    configure(context, FSCONFIG_SET_STRING, Some(key), Some(&value))
}

fn configure(context: BorrowedFd<'_>, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let pointer = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are C strings or null, as the command wants them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped() {
        let lowers = [PathBuf::from("/a:b"), PathBuf::from("/c")];
        let with = |label| options(lowers.iter().map(PathBuf::as_path), None, label);
        assert_eq!(with(None).unwrap(), b"lowerdir=/a\\:b:/c");
        assert_eq!(
            with(Some("u:r:t:s0:c1,c2")).unwrap(),
            b"lowerdir=/a\\:b:/c,context=\"u:r:t:s0:c1,c2\""
        );
        assert!(with(Some("t\",suid")).is_err());
        assert!(escaped(Path::new("/a,b")).is_err());
    }
}
