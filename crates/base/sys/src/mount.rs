//! Mounts: overlays ([`overlay`]), binds, temporary file systems, propagation; and the list of what is mounted.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

mod overlay;

pub use overlay::{MOST_LAYERS, Way, overlay, overlay_by, overlay_labelled};

/// A temporary file system.
pub fn tmpfs(target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some("shm"), target, Some("tmpfs"), flags, Some(options)).map_err(io::Error::from)
}

/// Memory in pages of `page` bytes, as a file system.
pub fn huge_pages(target: &Path, page: u64) -> io::Result<()> {
    let options = format!("pagesize={page}");
    mount(
        Some("nodev"),
        target,
        Some("hugetlbfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(io::Error::from)
}

/// Makes `source` (a file or a directory with what is mounted in it) appear at `target`.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(io::Error::from)
}

/// As [`bind`], and read-only. What else the source's mount forbids (set-user-id, devices, programs) stays forbidden.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    bind(source, target)?;
    make_read_only(target)
}

/// Makes one mount read-only, and changes nothing else of it.
pub fn make_read_only(target: &Path) -> io::Result<()> {
    // A remount sets all flags anew: those that stand have to be said again.
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | standing(target)?;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(io::Error::from)
}

/// The flags of the mount that `path` lies on, as far as they are the mount's own and not its file system's.
fn standing(path: &Path) -> io::Result<MsFlags> {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let found = statvfs(path)?.flags();
    let all = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let stand = all.into_iter().filter(|(there, _)| found.contains(*there));
    Ok(stand.fold(MsFlags::empty(), |flags, (_, flag)| flags | flag))
}

/// Leaves everything that is mounted for a read-only root with nothing but one executable file in it. For a process
/// that is alone in its mount namespace; the file can be executed and not read, so what it becomes cannot be traced by
/// those who run as it does.
pub fn enter_root_of_one(name: &str, program: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    // Any directory serves that is sure to exist: what it was goes with the rest.
    let root = Path::new("/proc");
    set_propagation(Path::new("/"), Propagation::Private)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("none"),
        root,
        Some("tmpfs"),
        flags,
        Some("mode=0555,size=64k,nr_inodes=8"),
    )?;
    nix::unistd::chdir(root)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(name)?;
    std::io::Write::write_all(&mut file, program)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o111))?;
    drop(file);
    mount(
        None::<&str>,
        ".",
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags,
        Some("mode=0555,size=64k,nr_inodes=8"),
    )?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/").map_err(io::Error::from)
}

/// How mounts made below a mount point spread between namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// Sets the propagation of a mount and of all mounts in it.
pub fn set_propagation(target: &Path, propagation: Propagation) -> io::Result<()> {
    let flag = match propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::Slave => MsFlags::MS_SLAVE,
        Propagation::Shared => MsFlags::MS_SHARED,
    };
    mount(None::<&str>, target, None::<&str>, flag | MsFlags::MS_REC, None::<&str>).map_err(io::Error::from)
}

/// Makes one mount shared, or private again, and nothing that is mounted in it.
pub fn set_shared(target: &Path, shared: bool) -> io::Result<()> {
    let flag = if shared {
        MsFlags::MS_SHARED
    } else {
        MsFlags::MS_PRIVATE
    };
    mount(None::<&str>, target, None::<&str>, flag, None::<&str>).map_err(io::Error::from)
}

/// Unmounts everything stacked at `target`; nothing there is fine.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub target: PathBuf,
    pub fs_type: String,
    /// The device, or what the file system says in its place.
    pub source: String,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    pub shared: bool,
    pub slave: bool,
}

/// Everything mounted in this mount namespace.
pub fn list() -> io::Result<Vec<MountPoint>> {
    Ok(std::fs::read("/proc/self/mountinfo")?
        .split(|b| *b == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// Whether something is mounted at exactly this place. The kernel is asked about the place itself: neither links on the way
/// to it nor the spelling of the path matter, and nothing is waited for that a dead server would have to say.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is a C string and `found` room for what the kernel writes.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            name.as_ptr(),
            flags,
            libc::STATX_TYPE,
            found.as_mut_ptr(),
        )
    };
    if done < 0 {
        return match io::Error::last_os_error() {
            e if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            e => Err(e),
        };
    }
    // SAFETY: zeroed, and then written by the kernel.
    let found = unsafe { found.assume_init() };
    let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    if found.stx_attributes_mask & root != 0 {
        return Ok(found.stx_attributes & root != 0);
    }
    // Kernels before 5.8 don't say.
    let place = real(path)?;
    Ok(list()?.iter().any(|m| m.target == place))
}

/// The path as the list of mounts has it: no links but for the last part.
fn real(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(std::fs::canonicalize(parent)?.join(name)),
        _ => Ok(path.to_owned()),
    }
}

/// Mount points at or below `dir`, the innermost first.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = match real(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found: Vec<PathBuf> = list()?
        .into_iter()
        .map(|m| m.target)
        .filter(|t| t.starts_with(&dir))
        .collect();
    found.sort_by_key(|t| std::cmp::Reverse(t.components().count()));
    Ok(found)
}

/// The mount that `path` lies on.
pub fn mount_of(path: &Path) -> io::Result<Option<MountPoint>> {
    // The last of equally long targets covers the ones before it.
    Ok(list()?
        .into_iter()
        .filter(|m| path.starts_with(&m.target))
        .max_by_key(|m| m.target.components().count()))
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|b| *b == b' ');
    let root = unescape(fields.nth(3)?);
    let target = unescape(fields.next()?);
    let _options = fields.next()?;
    let (mut shared, mut slave) = (false, false);
    for field in fields.by_ref() {
        match field {
            b"-" => break,
            f if f.starts_with(b"shared:") => shared = true,
            f if f.starts_with(b"master:") => slave = true,
            _ => {}
        }
    }
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    Some(MountPoint {
        target,
        fs_type,
        source,
        root,
        shared,
        slave,
    })
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let octal = (b == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_mountinfo_line() {
        let m = parse_line(b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:2 master:1 - ext3 /dev/root rw").unwrap();
        assert_eq!(m.target, Path::new("/mnt 2"));
        assert_eq!((m.fs_type.as_str(), m.shared, m.slave), ("ext3", true, true));
        assert_eq!(m.root, Path::new("/mnt1"));
        assert!(parse_line(b"").is_none());
    }

    #[test]
    fn what_a_mount_forbids_stays_forbidden_read_only() {
        let dir = std::env::temp_dir().join(format!("keelson-sys-{}-flags", std::process::id()));
        let (source, target) = (dir.join("source"), dir.join("target"));
        std::fs::create_dir_all(&source).unwrap();
        std::fs::create_dir_all(&target).unwrap();
        // In a mount namespace that is this thread's alone.
        let done = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
            set_propagation(Path::new("/"), Propagation::Private).unwrap();
            let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
            tmpfs(&source, strict, "size=64k").unwrap();
            bind_read_only(&source, &target).unwrap();
            assert_eq!(standing(&target).unwrap(), strict);
            let refused = std::fs::write(target.join("file"), "x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(source.join("file"), "x").expect("the source stays as it is");
        });
        done.join().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
