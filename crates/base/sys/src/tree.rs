//! Trees that somebody else may change, or mount things into, while they are walked. Each step is one name in an open
//! directory, resolved by the kernel: never through a link, never across a mount. So a walk stays in the tree it began in,
//! and removing stops where something is mounted, whoever mounted it and when.

use crate::path::{self, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, c_string, open_at, unlink_at};
use nix::dir::{Dir, OwningIter};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How deep a walk goes: each level is an open directory. Paths of 4,096 bytes can be twice as deep, and are refused.
const DEEPEST: usize = 1024;

/// How deep removing goes before it lifts what lies below to the top.
const LIFT: usize = 128;

/// How often a directory that was empty a moment ago and isn't now is emptied again.
const AGAIN: usize = 8;

const STAY: u64 = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;

/// Something in a tree: a name in an open directory, and what it was when it was looked at.
pub struct Found<'a> {
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
    pub stat: FileStat,
}

impl Found<'_> {
    pub fn is_dir(&self) -> bool {
        kind(&self.stat) == libc::S_IFDIR
    }

    pub fn is_link(&self) -> bool {
        kind(&self.stat) == libc::S_IFLNK
    }

    /// The thing itself (a link, not what it points to), to change its owner or mode. `None` when it has gone, or something
    /// is mounted over it.
    pub fn handle(&self) -> io::Result<Option<Handle>> {
        match open_at(self.dir, self.name, libc::O_PATH | libc::O_NOFOLLOW, 0, STAY) {
            Ok(fd) => {
                let stat = fstat(&fd)?;
                Ok(Some(Handle { fd, stat }))
            }
            Err(e) if gone_or_covered(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// One file, directory or link, whatever its name comes to mean.
pub struct Handle {
    fd: OwnedFd,
    pub stat: FileStat,
}

impl Handle {
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    pub fn is_dir(&self) -> bool {
        kind(&self.stat) == libc::S_IFDIR
    }

    pub fn is_link(&self) -> bool {
        kind(&self.stat) == libc::S_IFLNK
    }

    pub fn set_group(&self, group: u32) -> io::Result<()> {
        let group = Some(nix::unistd::Gid::from_raw(group));
        nix::unistd::fchownat(&self.fd, c"", None, group, AtFlags::AT_EMPTY_PATH).map_err(io::Error::from)
    }

    /// An extended attribute, if it has it.
    pub fn xattr(&self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        path::followed_xattr(&self.by_fd(), name)
    }

    pub fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        path::set_followed_xattr(&self.by_fd(), name, value)
    }

    /// A path that leads to just this thing, also to a link.
    fn by_fd(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Not for links: they have no mode.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.by_fd(), std::fs::Permissions::from_mode(mode))
    }
}

/// The directory, file or other thing at a path; a link in the last part is not followed.
pub fn handle(path: &Path) -> io::Result<Handle> {
    let fd = nix::fcntl::open(
        path,
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let stat = fstat(&fd)?;
    Ok(Handle { fd, stat })
}

struct Level {
    entries: OwningIter,
    name: CString,
    stat: FileStat,
}

/// The directory that entries are read from.
fn dir_of(entries: &OwningIter) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the iterator's, which lives as long as what is returned.
    unsafe { BorrowedFd::borrow_raw(entries.as_raw_fd()) }
}

/// Calls `see` for everything below `root`, what is in a directory before the directory itself. What vanishes meanwhile is
/// left out, and so is what other things are mounted on.
pub fn visit(root: &Path, see: &mut dyn FnMut(&Found) -> io::Result<()>) -> io::Result<()> {
    let root = nix::fcntl::open(
        root,
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let mut stack = vec![level(root, CString::default())?];
    while let Some(top) = stack.last_mut() {
        let Some(entry) = top.entries.next() else {
            let done = stack.pop();
            if let (Some(done), Some(parent)) = (done, stack.last()) {
                let dir = dir_of(&parent.entries);
                let name = OsStr::from_bytes(done.name.to_bytes());
                see(&Found {
                    dir,
                    name,
                    stat: done.stat,
                })?;
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let dir = dir_of(&top.entries);
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(nix::errno::Errno::ENOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let shown = OsStr::from_bytes(name.to_bytes());
        if kind(&stat) != libc::S_IFDIR {
            see(&Found { dir, name: shown, stat })?;
            continue;
        }
        match open_at(
            dir,
            shown,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            0,
            STAY,
        ) {
            Ok(inner) => {
                let inner = level(inner, name.to_owned())?;
                stack.push(inner);
            }
            Err(e) if gone_or_covered(&e) => {}
            Err(e) => return Err(e),
        }
        if stack.len() > DEEPEST {
            return Err(io::Error::other(format!("directories more than {DEEPEST} deep")));
        }
    }
    Ok(())
}

fn level(dir: OwnedFd, name: CString) -> io::Result<Level> {
    let stat = fstat(&dir)?;
    Ok(Level {
        entries: Dir::from_fd(dir)?.into_iter(),
        name,
        stat,
    })
}

/// Removes a file or a whole tree; nothing there is fine. Fails where something is mounted, and touches nothing below it.
pub fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let parent = match crate::path::Root::open(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    remove_at(parent.as_fd(), name, None, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::EXDEV | libc::EBUSY) => io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("something is mounted in {}", path.display()),
        ),
        _ => e,
    })
}

/// `top` is where directories too deep to go on are lifted to: it is emptied again afterwards.
fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, top: Option<BorrowedFd<'_>>, depth: usize) -> io::Result<()> {
    for _ in 0..AGAIN {
        match unlink_at(parent, name, false) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EISDIR) => {}
            Err(e) => return Err(e),
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = match open_at(parent, name, flags, 0, STAY) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // No directory any more.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => continue,
            Err(e) => return Err(e),
        };
        if let Some(top) = top.filter(|_| depth >= LIFT) {
            drop(dir);
            return lift(parent, name, top);
        }
        empty(&dir, top, depth)?;
        match unlink_at(parent, name, true) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST | libc::ENOTDIR)) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!(
        "{} is filled while it is removed",
        name.to_string_lossy()
    )))
}

fn empty(dir: &OwnedFd, top: Option<BorrowedFd<'_>>, depth: usize) -> io::Result<()> {
    // Names lifted into the directory while it was read may have been missed, so it is read until it is empty.
    loop {
        let names = names(dir)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove_at(dir.as_fd(), &name, Some(top.unwrap_or(dir.as_fd())), depth + 1)?;
        }
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    /// Names taken at a time, so that a directory of millions costs no more memory than this.
    const AT_A_TIME: usize = 4096;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let mut list = Dir::from_fd(open_at(dir.as_fd(), OsStr::new("."), flags, 0, STAY)?)?;
    let mut names = Vec::new();
    for entry in list.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsString::from_vec(name.to_vec()));
        }
        if names.len() == AT_A_TIME {
            break;
        }
    }
    Ok(names)
}

/// Moves a directory up to the top of the tree under a name of its own.
fn lift(parent: BorrowedFd<'_>, name: &OsStr, top: BorrowedFd<'_>) -> io::Result<()> {
    let from = c_string(name)?;
    for n in 0u64.. {
        let to = c_string(OsStr::new(&format!(".lifted-{n}")))?;
        // Onto an empty directory of this name it may go: that one is removed anyway.
        match nix::fcntl::renameat(parent, from.as_c_str(), top, to.as_c_str()) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::EEXIST | nix::errno::Errno::ENOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    unreachable!("there is always a free name")
}

fn kind(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// Whether a name no longer leads to what it led to in this tree: removed, made a link, or mounted over.
fn gone_or_covered(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-tree-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_walk_sees_links_and_not_what_they_point_to() {
        let dir = scratch("walk");
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("a/out")).unwrap();
        let mut seen = Vec::new();
        visit(&dir, &mut |f| {
            seen.push((f.name.to_string_lossy().into_owned(), f.is_dir(), f.is_link()));
            Ok(())
        })
        .unwrap();
        let at = |name: &str| seen.iter().position(|s| s.0 == name).unwrap();
        assert_eq!(seen.len(), 4);
        assert!(at("file") < at("b") && at("b") < at("a"), "the inner ones come first");
        assert!(seen[at("out")].2 && !seen[at("out")].1);
        remove(&dir).unwrap();
        assert!(!dir.exists() && Path::new("/etc").exists());
        remove(&dir).unwrap();
    }

    #[test]
    fn trees_deeper_than_paths_reach_are_removed() {
        let dir = scratch("deep");
        let mut at = crate::path::Root::open(&dir).unwrap().into_fd();
        for _ in 0..3000 {
            crate::path::make_dir_at(at.as_fd(), OsStr::new("d"), 0o755).unwrap();
            at = open_at(at.as_fd(), OsStr::new("d"), libc::O_PATH | libc::O_DIRECTORY, 0, STAY).unwrap();
        }
        drop(at);
        assert!(visit(&dir, &mut |_| Ok(())).is_err());
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn nothing_is_removed_through_a_mount() {
        let dir = scratch("mounted");
        let (tree, outside) = (dir.join("tree"), dir.join("outside"));
        std::fs::create_dir_all(tree.join("a/mnt")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("data"), "x").unwrap();
        // In a mount namespace that is this thread's alone.
        let done = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
            crate::mount::set_propagation(Path::new("/"), crate::mount::Propagation::Private).unwrap();
            // Of the same file system, so that no device number tells it apart.
            crate::mount::bind(&outside, &tree.join("a/mnt")).unwrap();
            let refused = remove(&tree).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy, "{refused}");
            let mut seen = 0;
            visit(&tree, &mut |_| {
                seen += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, 1, "what is mounted is not walked");
            assert!(outside.join("data").exists());
            crate::mount::unmount(&tree.join("a/mnt")).unwrap();
            remove(&tree).unwrap();
            assert!(!tree.exists() && outside.join("data").exists());
        });
        done.join().unwrap();
        remove(&dir).unwrap();
    }
}
