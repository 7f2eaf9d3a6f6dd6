//! Unpacks the archive of a layer into a directory.
//!
//! The directory is an overlay of the layers below and the new one, so removing a file there leaves the mark that
//! overlayfs itself uses, and links and parents resolve as they will in a container. Every path is resolved by the
//! kernel inside that directory: an archive cannot name anything outside of it. What it makes of odd archives is what
//! containerd's `pkg/archive` makes of them, but for one thing: marks of removal hide only what lower layers have, as the
//! specification says, wherever in the archive they stand.
//!
//! Changes the working directory of the process: this runs in a cell ([`crate::cell`]) only.

mod archive;
mod extended;
mod frames;
mod marks;

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use keelson_sys::path::{Root, set_xattr};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::digest::Digesting;
pub use archive::{Archive, Kind, Source};
use archive::{Entry, Streamed, invalid};
use marks::Marks;
pub use marks::TARGET;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs kept for itself and some archives still have.
const AUFS: &[u8] = b".wh..wh.";

const BUFFER: usize = 256 << 10;
/// Paths of directories kept until their times are set.
const MAX_KEPT: usize = 64 << 20;
/// A layer may become so many times as large as it was, once it is larger than [`SMALL`]. gzip cannot reach half of it.
const MAX_RATIO: u64 = 2000;
const SMALL: u64 = 1 << 30;

/// What a layer may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the archive when the compression is off, which no sum of its files exceeds.
    pub bytes: u64,
    /// Entries, of which each may be a file.
    pub files: u64,
}

/// What was in an archive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unpacked {
    /// Bytes that files took.
    pub size: u64,
    /// Digest of the archive as it came.
    pub digest: String,
    /// Digest of the uncompressed archive.
    pub diff_id: String,
}

/// Unpacks an archive, compressed or not, into `target`. `upper`: where that is an overlay, its topmost directory.
pub fn unpack(archive: impl Read, target: Root, upper: Option<Root>, limits: Limits) -> io::Result<Unpacked> {
    let mut compressed = BufReader::with_capacity(BUFFER, Digesting::new(archive));
    let size;
    let diff_id;
    {
        let plain = frames::plain(&mut compressed)?;
        let mut plain = BufReader::with_capacity(BUFFER, Digesting::new(Bounded::new(plain, limits.bytes)));
        size = Unpacker {
            marks: Marks::new(upper),
            root: target,
            directories: Vec::new(),
            kept: 0,
            size: 0,
            parent: None,
        }
        .all(Archive::new(Streamed(&mut plain)), limits)?;
        // Both digests cover what follows the archive's end, too.
        io::copy(&mut plain, &mut io::sink())?;
        diff_id = plain.into_inner().finish()?;
    }
    io::copy(&mut compressed, &mut io::sink())?;
    Ok(Unpacked {
        size,
        digest: compressed.into_inner().finish()?,
        diff_id,
    })
}

/// How many bytes a layer may have, given what it has as an archive and what the disk has.
pub fn most_bytes(compressed: u64, free: u64) -> u64 {
    free.min(compressed.saturating_mul(MAX_RATIO).max(SMALL))
}

/// Ends with an error where a layer becomes too large.
struct Bounded<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R> Bounded<R> {
    fn new(inner: R, most: u64) -> Self {
        Bounded {
            inner,
            left: most,
            most,
        }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            invalid(&format!(
                "the layer is larger than the {} bytes that its archive's size and the disk's free space allow",
                self.most
            ))
        })?;
        Ok(n)
    }
}

struct Unpacker {
    root: Root,
    marks: Marks,
    /// Times of directories, set at the end because files made in them change them.
    directories: Vec<(PathBuf, [TimeSpec; 2])>,
    kept: usize,
    size: u64,
    /// The directory of the last entry, which is the working directory: most entries follow one in the same directory.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker {
    fn all<S: Source>(mut self, mut archive: Archive<S>, limits: Limits) -> io::Result<u64> {
        let mut count = 0;
        while let Some(entry) = archive.next_entry()? {
            count += 1;
            if count > limits.files {
                return Err(invalid(&format!("a layer of more than {} files", limits.files)));
            }
            let name = entry.path.clone();
            self.entry(&mut archive, entry)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", name.display())))?;
        }
        self.finish()
    }

    fn entry<S: Source>(&mut self, archive: &mut Archive<S>, entry: Entry) -> io::Result<()> {
        let path = normal(&entry.path);
        // The layer's own root keeps the attributes that it has.
        let (Some(name), false) = (path.file_name(), entry.kind == Kind::Global) else {
            return Ok(());
        };
        let directory = path.parent().unwrap_or(Path::new(""));
        if name.as_bytes() == OPAQUE {
            self.go_to(directory)?;
            return self.marks.hide_all();
        }
        let is_of_aufs = |part: Component<'_>| part.as_os_str().as_bytes().starts_with(AUFS);
        if path.components().any(is_of_aufs) {
            return Ok(());
        }
        self.go_to(directory)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(invalid("a mark of removal without name"));
            }
            return self.marks.hide(OsStr::from_bytes(hidden));
        }
        let name = Path::new(name);
        self.make(archive, &entry, name, &path)?;
        self.attributes(&entry, name)?;
        let times = times(&entry);
        if entry.kind == Kind::Directory {
            self.kept += path.as_os_str().len() + size_of::<(PathBuf, [TimeSpec; 2])>();
            if self.kept > MAX_KEPT {
                return Err(invalid("a layer with too many directories"));
            }
            self.directories.push((path, times));
            return Ok(());
        }
        Ok(utimensat(
            AT_FDCWD,
            name,
            &times[0],
            &times[1],
            UtimensatFlags::NoFollowSymlink,
        )?)
    }

    /// Makes the file in the working directory.
    fn make<S: Source>(&mut self, archive: &mut Archive<S>, entry: &Entry, name: &Path, path: &Path) -> io::Result<()> {
        if entry.kind == Kind::Directory {
            match std::fs::symlink_metadata(name) {
                Ok(m) if m.is_dir() => return Ok(()),
                Ok(_) => remove(name)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            return std::fs::create_dir(name);
        }
        remove(name)?;
        match entry.kind {
            Kind::Symlink => std::os::unix::fs::symlink(&entry.link, name),
            Kind::Link => self.link(&entry.link, name, path),
            Kind::Char | Kind::Block => {
                let flag = if entry.kind == Kind::Char {
                    SFlag::S_IFCHR
                } else {
                    SFlag::S_IFBLK
                };
                let device = nix::sys::stat::makedev(entry.device.0, entry.device.1);
                Ok(mknod(name, flag, Mode::from_bits_truncate(0o600), device)?)
            }
            Kind::Fifo => Ok(mknod(name, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)?),
            Kind::File => {
                let mut file = File::options().write(true).create_new(true).open(name)?;
                self.size += write(archive, entry, &mut file)?;
                Ok(())
            }
            Kind::Other(kind) => Err(invalid(&format!("an entry of unknown kind {:?}", kind as char))),
            Kind::Directory | Kind::Global => Ok(()),
        }
    }

    /// A hard link to what this layer or one below has.
    fn link(&mut self, to: &Path, name: &Path, path: &Path) -> io::Result<()> {
        let to = normal(to);
        let target = to.file_name().ok_or_else(|| invalid("a link to the root"))?;
        let parent = self.root.open_in(
            to.parent().unwrap_or(Path::new("")),
            libc::O_PATH | libc::O_DIRECTORY,
            0,
        )?;
        nix::unistd::fchdir(&parent)?;
        let noted = self.marks.note_copy_of(target);
        // Back to where the link is to be.
        self.parent = None;
        self.go_to(path.parent().unwrap_or(Path::new("")))?;
        noted?;
        Ok(nix::unistd::linkat(&parent, target, AT_FDCWD, name, AtFlags::empty())?)
    }

    fn attributes(&self, entry: &Entry, name: &Path) -> io::Result<()> {
        let owner = |id: i64| u32::try_from(id).map_err(|_| invalid("an owner beyond 32 bits"));
        std::os::unix::fs::lchown(name, Some(owner(entry.uid)?), Some(owner(entry.gid)?))?;
        let is_symlink = match entry.kind {
            Kind::Link => std::fs::symlink_metadata(name)?.is_symlink(),
            kind => kind == Kind::Symlink,
        };
        for (key, value) in &entry.xattrs {
            match set_xattr(name, OsStr::from_bytes(key), value) {
                Err(e) if is_ignored(&e, key) => {}
                done => done.map_err(|e| {
                    io::Error::new(e.kind(), format!("attribute {}: {e}", String::from_utf8_lossy(key)))
                })?,
            }
        }
        if is_symlink {
            return Ok(());
        }
        // After the owner, whose change clears the set-user-ID bits.
        std::fs::set_permissions(name, Permissions::from_mode(entry.mode))
    }

    /// Makes the directory, where it is missing, and the working directory.
    fn go_to(&mut self, directory: &Path) -> io::Result<()> {
        if self.parent.as_ref().is_some_and(|(path, _)| path == directory) {
            return Ok(());
        }
        self.parent = None;
        let fd = self.root.make_dirs(directory, 0o755)?;
        nix::unistd::fchdir(&fd)?;
        self.parent = Some((directory.to_path_buf(), fd));
        Ok(())
    }

    fn finish(self) -> io::Result<u64> {
        for (path, [accessed, modified]) in self.directories.iter().rev() {
            match self.root.open_in(path, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
                Ok(dir) => nix::sys::stat::futimens(dir.as_fd(), accessed, modified)?,
                // A later entry replaced it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.size)
    }
}

/// Writes a file's content where it belongs; returns how many bytes that took.
fn write<S: Source>(archive: &mut Archive<S>, entry: &Entry, file: &mut File) -> io::Result<u64> {
    let Some(extents) = &entry.extents else {
        return io::copy(archive, file);
    };
    let mut written = 0;
    for extent in extents {
        file.seek(SeekFrom::Start(extent.offset))?;
        let copied = io::copy(&mut archive.by_ref().take(extent.length), file)?;
        if copied < extent.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        written += copied;
    }
    file.set_len(entry.size)?;
    Ok(written)
}

/// Attributes that are left out where they cannot be set: on file systems without any, those of users on anything but
/// files and directories, and those of the kernel's other parts (a cell may only set file capabilities).
fn is_ignored(error: &io::Error, name: &[u8]) -> bool {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => true,
        Some(libc::EPERM) => {
            name.starts_with(b"user.")
                || name.starts_with(b"trusted.")
                || (name.starts_with(b"security.") && name != b"security.capability")
        }
        _ => false,
    }
}

/// Removes whatever is there; nothing is fine. Does not follow links.
fn remove(name: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(name) {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(name),
        Ok(_) => std::fs::remove_file(name),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(()),
        done => done,
    }
}

/// The path below the root, without `.` and `..`; the root is its own parent.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// When it was last read and changed. Times that other runtimes cannot set (before 1970, after April 2262) are 1970.
fn times(entry: &Entry) -> [TimeSpec; 2] {
    const LATEST: (i64, u32) = (i64::MAX / 1_000_000_000, (i64::MAX % 1_000_000_000) as u32);
    let bound = |(seconds, nanoseconds): (i64, u32)| {
        if seconds < 0 || (seconds, nanoseconds) > LATEST {
            TimeSpec::new(0, 0)
        } else {
            TimeSpec::new(seconds, nanoseconds.into())
        }
    };
    let accessed = entry.accessed.unwrap_or(entry.modified).max(entry.modified);
    [bound(accessed), bound(entry.modified)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, below) in [
            ("./g/../h", "h"),
            ("/abs", "abs"),
            ("../../x", "x"),
            ("a/../../b/.", "b"),
            ("./", ""),
            ("a//b", "a/b"),
        ] {
            assert_eq!(normal(Path::new(path)), Path::new(below), "{path}");
        }
    }
}
