//! Unpacks the archive of a layer into a directory.
//!
//! The directory is a mounted overlay of the layers below and the new one, so removing a file there leaves the mark
//! that overlayfs itself uses, and links and parents resolve as they will in a container. Every path is resolved by the
//! kernel inside that directory: an archive cannot name anything outside of it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use keelson_sys::path::{Root, set_xattr};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use tar::{Archive, Entry, EntryType};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR: &str = "SCHILY.xattr.";

/// How often an archive may say the same directory again before we stop believing it; also the bound of entries.
const MAX_ENTRIES: usize = 4_000_000;

/// Unpacks an uncompressed archive. Returns the bytes that files took.
pub fn unpack(archive: impl Read, target: &Path) -> io::Result<u64> {
    let mut unpacker = Unpacker {
        root: Root::open(target)?,
        made: HashSet::new(),
        directories: Vec::new(),
        size: 0,
        parent: None,
    };
    let mut archive = Archive::new(archive);
    for (count, entry) in archive.entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a layer with too many files",
            ));
        }
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        unpacker
            .entry(&mut entry, &path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    }
    unpacker.finish()
}

struct Unpacker {
    root: Root,
    /// What this layer made, which its own opaque marks must not remove.
    made: HashSet<PathBuf>,
    /// Times of directories, set at the end because files made in them change them.
    directories: Vec<(PathBuf, TimeSpec)>,
    size: u64,
    /// The directory of the last entry, open: most entries follow one in the same directory.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> io::Result<()> {
        let path = normal(path)?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let Some(name) = path.file_name() else {
            return self.root_attributes(entry);
        };
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        if name.as_bytes() == OPAQUE {
            return self.make_opaque(&directory);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = directory.join(OsStr::from_bytes(hidden));
            let parent = self.open_parent(&directory)?;
            return match hidden.file_name().filter(|n| !n.is_empty()) {
                Some(name) if normal(&hidden)? == hidden => remove(&place(&parent, name)),
                _ => Err(invalid("a whiteout without name")),
            };
        }
        let parent = self.open_parent(&directory)?;
        let target = place(&parent, name);
        let made_directory = self.make(entry, kind, &target, &path)?;
        if kind != EntryType::Link {
            self.attributes(entry, kind, &target)?;
            let time = time(entry);
            if made_directory {
                self.directories.push((path.clone(), time));
            } else {
                utimensat(
                    nix::fcntl::AT_FDCWD,
                    &target,
                    &time,
                    &time,
                    UtimensatFlags::NoFollowSymlink,
                )?;
            }
        }
        self.parent = Some((directory, parent));
        self.made.insert(path);
        Ok(())
    }

    /// Makes the file; `Ok(true)`: it is a directory.
    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        target: &Path,
        path: &Path,
    ) -> io::Result<bool> {
        if kind.is_dir() {
            match std::fs::symlink_metadata(target) {
                Ok(m) if m.is_dir() => {}
                Ok(_) => {
                    remove(target)?;
                    std::fs::create_dir(target)?;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir(target)?,
                Err(e) => return Err(e),
            }
            return Ok(true);
        }
        if self.parent.as_ref().is_some_and(|(p, _)| p.starts_with(path)) {
            self.parent = None;
        }
        remove(target)?;
        match kind {
            EntryType::Symlink => {
                let to = entry.link_name()?.ok_or_else(|| invalid("a link without target"))?;
                std::os::unix::fs::symlink(to, target)?;
            }
            EntryType::Link => {
                let to = entry.link_name()?.ok_or_else(|| invalid("a link without target"))?;
                let to = normal(&to)?;
                let name = to.file_name().ok_or_else(|| invalid("a link to the root"))?;
                let parent = self.root.open_in(
                    to.parent().unwrap_or(Path::new("")),
                    nix::libc::O_PATH | nix::libc::O_DIRECTORY,
                    0,
                )?;
                std::fs::hard_link(place(&parent, name), target)?;
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let number = |n: io::Result<Option<u32>>| n.map(|n| u64::from(n.unwrap_or(0)));
                let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
                let flag = if kind == EntryType::Char {
                    SFlag::S_IFCHR
                } else {
                    SFlag::S_IFBLK
                };
                mknod(
                    target,
                    flag,
                    Mode::from_bits_truncate(0o600),
                    nix::sys::stat::makedev(major, minor),
                )?;
            }
            EntryType::Fifo => mknod(target, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = File::options().write(true).create_new(true).open(target)?;
                self.size += io::copy(entry, &mut file)?;
            }
            other => {
                return Err(invalid(&format!(
                    "an entry of unknown kind {:?}",
                    other.as_byte() as char
                )));
            }
        }
        Ok(false)
    }

    fn attributes<R: Read>(&self, entry: &mut Entry<'_, R>, kind: EntryType, target: &Path) -> io::Result<()> {
        let (uid, gid) = (number(entry.header().uid()?)?, number(entry.header().gid()?)?);
        std::os::unix::fs::lchown(target, Some(uid), Some(gid))?;
        let mode = entry.header().mode()? & 0o7777;
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                if let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix(XATTR)) {
                    match set_xattr(target, OsStr::new(name), extension.value_bytes()) {
                        // A file system without them, or a name that only its owner may set: upstream ignores both.
                        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::EPERM)) => {}
                        done => done?,
                    }
                }
            }
        }
        if kind != EntryType::Symlink {
            // After the owner, whose change clears the set-user-ID bits.
            std::fs::set_permissions(target, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// `./` in an archive: the layer's own root.
    fn root_attributes<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        if !entry.header().entry_type().is_dir() {
            return Err(invalid("the root is no directory"));
        }
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", self.root.as_fd().as_raw_fd()));
        self.attributes(entry, EntryType::Directory, &root)?;
        self.directories.push((PathBuf::new(), time(entry)));
        Ok(())
    }

    fn open_parent(&mut self, directory: &Path) -> io::Result<OwnedFd> {
        match self.parent.take() {
            Some((path, fd)) if path == directory => Ok(fd),
            _ => self.root.make_dirs(directory, 0o755),
        }
    }

    /// Hides what the layers below have in a directory.
    fn make_opaque(&mut self, directory: &Path) -> io::Result<()> {
        let parent = self.open_parent(directory)?;
        for child in std::fs::read_dir(format!("/proc/self/fd/{}", parent.as_raw_fd()))? {
            let name = child?.file_name();
            let path = directory.join(&name);
            if !self.made.iter().any(|made| made.starts_with(&path)) {
                remove(&place(&parent, &name))?;
            }
        }
        Ok(())
    }

    fn finish(self) -> io::Result<u64> {
        for (path, time) in self.directories.iter().rev() {
            match self.root.open_in(path, nix::libc::O_RDONLY | nix::libc::O_DIRECTORY, 0) {
                Ok(dir) => nix::sys::stat::futimens(dir.as_fd(), time, time)?,
                // A later entry replaced it.
                Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.size)
    }
}

/// The path of a name in an open directory; the kernel starts at the descriptor, whatever its path is now.
fn place(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name)
}

/// Removes whatever is there; nothing is fine. Does not follow links.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => Ok(()),
        done => done,
    }
}

/// The path without root, `.` and empty parts; `..` is refused.
fn normal(path: &Path) -> io::Result<PathBuf> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(Ok(name)),
            Component::ParentDir => Some(Err(invalid("a path with .. in it"))),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn time<R: Read>(entry: &Entry<'_, R>) -> TimeSpec {
    TimeSpec::new(entry.header().mtime().unwrap_or(0).try_into().unwrap_or(0), 0)
}

fn number(id: u64) -> io::Result<u32> {
    id.try_into().map_err(|_| invalid("an owner beyond 32 bits"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
