//! Devices in containers: which nodes there are and which may be used.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keelson_cri::v1;
use keelson_sys::cgroup::{DeviceKind, DeviceRule};
use keelson_sys::path::Root;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{UnlinkatFlags, fchownat, unlinkat};
use serde_json::{Value, json};

use super::mounts::{self, Bind};

/// A device node to make in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of "r", "w" and "m".
    pub access: String,
}

impl Device {
    pub fn at(host: &Path, container: &Path, access: &str) -> io::Result<Option<Device>> {
        let meta = std::fs::metadata(host)?;
        let kind = match meta.file_type() {
            t if t.is_char_device() => DeviceKind::Char,
            t if t.is_block_device() => DeviceKind::Block,
            _ => return Ok(None),
        };
        Ok(Some(Device {
            path: container.to_path_buf(),
            kind,
            major: nix::sys::stat::major(meta.rdev()) as u32,
            minor: nix::sys::stat::minor(meta.rdev()) as u32,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            access: access.to_owned(),
        }))
    }

    pub fn spec(&self) -> Value {
        json!({
            "path": self.path, "type": letter(self.kind), "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }

    /// As the kernel knows it.
    fn node(&self) -> SFlag {
        match self.kind {
            DeviceKind::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFCHR,
        }
    }

    fn number(&self) -> u64 {
        makedev(self.major.into(), self.minor.into())
    }

    fn rule(&self) -> DeviceRule {
        rule(true, self.kind, Some(self.major), Some(self.minor), &self.access)
    }
}

/// The devices that a configuration names; a directory stands for all devices below it.
pub fn requested(devices: &[v1::Device]) -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    for device in devices {
        let host = std::fs::canonicalize(&device.host_path)
            .map_err(|e| io::Error::new(e.kind(), format!("device {}: {e}", device.host_path)))?;
        let container = mounts::clean(&device.container_path);
        if host.is_dir() {
            below(&host, &container, &device.permissions, &mut found)?;
        } else {
            let one = Device::at(&host, &container, &device.permissions)?;
            found.push(one.ok_or_else(|| io::Error::other(format!("{} is no device", device.host_path)))?);
        }
    }
    Ok(found)
}

/// Those that `libcontainer` makes, and those that it doesn't: it makes devices in /dev only.
pub fn apart(devices: Vec<Device>) -> (Vec<Device>, Vec<Device>) {
    devices
        .into_iter()
        .partition(|d| mounts::clean(&d.path.to_string_lossy()).starts_with("/dev"))
}

/// Makes a device in a container: in its root file system, in the place of a file that the image has there, or in the volume that is mounted
/// over the place.
pub fn place(root: &Root, device: &Device, binds: &[Bind]) -> Result<(), String> {
    let path = mounts::clean(&device.path.to_string_lossy());
    let shown = path.display();
    let failed = |e: io::Error| format!("cannot make the device {shown}: {e}");
    if let Some(bind) = over(&path, binds).map_err(|target| covered(&path, target))? {
        return place_below(bind, &path, device).map_err(failed);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("no device can be at {shown}"));
    };
    let parent = root.make_dirs_of(parent, 0o755, None).map_err(failed)?;
    // A link of the image may lead below a mount.
    let real = inside(root, &parent).map_err(failed)?.join(name);
    if let Some(bind) = over(&real, binds).map_err(|target| covered(&path, target))? {
        return place_below(bind, &real, device).map_err(failed);
    }
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(e) if e != Errno::ENOENT => Err(failed(e.into())),
        _ => make(parent.as_fd(), name, device).map_err(failed),
    }
}

fn covered(path: &Path, target: &str) -> String {
    let shown = path.display();
    format!("the device {shown} would lie below the mount at {target:?}: one of them needs another path")
}

/// Makes a device in a volume, where it stays. What is there is somebody's: only a device gives way, which may be what the volume's last
/// container had there.
fn place_below(bind: &Bind, path: &Path, device: &Device) -> io::Result<()> {
    let below = path
        .strip_prefix(mounts::clean(&bind.target))
        .map_err(io::Error::other)?;
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else {
        return Err(io::Error::other("a volume is mounted there"));
    };
    if bind.read_only {
        return Err(Errno::EROFS.into());
    }
    let parent = Root::open(&bind.source)?.make_dirs_of(parent, 0o755, None)?;
    match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => {}
        Err(other) => return Err(other.into()),
        Ok(found) => {
            let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
            if kind != SFlag::S_IFBLK && kind != SFlag::S_IFCHR {
                return Err(io::Error::other("the volume has something else there"));
            }
            if (kind, found.st_rdev) == (device.node(), device.number()) {
                return Ok(());
            }
            unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?;
        }
    }
    make(parent.as_fd(), name, device)
}

/// Makes the node. In a volume others may exchange it at any time: its owner and mode are set on what was made, whatever has its name then.
fn make(parent: BorrowedFd<'_>, name: &OsStr, device: &Device) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(device.mode);
    mknodat(parent, name, device.node(), mode, device.number())?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let node = openat(parent, name, flags, Mode::empty())?;
    let made = fstat(&node)?;
    let kind = SFlag::from_bits_truncate(made.st_mode) & SFlag::S_IFMT;
    if (kind, made.st_rdev) != (device.node(), device.number()) {
        return Err(io::Error::other("somebody exchanged it"));
    }
    let (user, group) = (Some(device.uid.into()), Some(device.gid.into()));
    fchownat(&node, "", user, group, AtFlags::AT_EMPTY_PATH)?;
    // What the umask took.
    let of_node = format!("/proc/self/fd/{}", node.as_raw_fd());
    std::fs::set_permissions(of_node, std::fs::Permissions::from_mode(device.mode))
}

/// The mount that a place in a container lies below, the innermost; an error where everybody has one that nothing is put in.
fn over<'a>(path: &Path, binds: &'a [Bind]) -> Result<Option<&'a Bind>, &'static str> {
    let below = |target: &str| path.starts_with(mounts::clean(target));
    let depth = |target: &str| mounts::clean(target).components().count();
    let bind = binds.iter().filter(|b| below(&b.target));
    let bind = bind.max_by_key(|b| depth(&b.target));
    let everybodys = ["/dev", "/proc", "/sys"].into_iter().find(|target| below(target));
    match (bind, everybodys) {
        (None, Some(target)) => Err(target),
        (bind, _) => Ok(bind),
    }
}

/// Where an open directory is in a container.
fn inside(root: &Root, dir: &OwnedFd) -> io::Result<PathBuf> {
    let path = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (root, dir) = (path(root.as_fd())?, path(dir.as_fd())?);
    let below = dir.strip_prefix(&root).map_err(io::Error::other)?;
    Ok(Path::new("/").join(below))
}

/// Every device of the host, for privileged containers.
pub fn of_host() -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    below(Path::new("/dev"), Path::new("/dev"), "rwm", &mut found)?;
    Ok(found)
}

fn below(host: &Path, container: &Path, access: &str, found: &mut Vec<Device>) -> io::Result<()> {
    // What has mounts of its own in a container, or names the host's terminal.
    const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
    for entry in std::fs::read_dir(host)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|s| name == *s) {
                below(&entry.path(), &container.join(&name), access, found)?;
            }
        } else if !kind.is_symlink() && name != "console" {
            match Device::at(&entry.path(), &container.join(&name), access) {
                // Devices come and go.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                device => found.extend(device?),
            }
        }
    }
    Ok(())
}

/// What may be used: what every container may, and its own devices; everything if privileged.
pub fn rules(devices: &[Device], privileged: bool) -> Vec<DeviceRule> {
    if privileged {
        return vec![DeviceRule::all(true)];
    }
    let char = |major, minor: Option<u32>| rule(true, DeviceKind::Char, Some(major), minor, "rwm");
    let mut rules = vec![
        DeviceRule::all(false),
        rule(true, DeviceKind::Char, None, None, "m"),
        rule(true, DeviceKind::Block, None, None, "m"),
    ];
    // null, random, full, tty, zero, urandom; then terminals and their multiplexer.
    rules.extend([(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9)].map(|(major, minor)| char(major, Some(minor))));
    rules.extend([char(136, None), char(5, Some(2))]);
    rules.extend(devices.iter().map(Device::rule));
    rules
}

/// The rules as external runtimes take them.
pub fn rules_spec(rules: &[DeviceRule]) -> Value {
    let one = |r: &DeviceRule| {
        let access: String = [(r.read, 'r'), (r.write, 'w'), (r.mknod, 'm')]
            .iter()
            .filter_map(|(on, letter)| on.then_some(*letter))
            .collect();
        let mut value = json!({"allow": r.allow, "type": letter(r.kind), "access": access});
        if let Some(major) = r.major {
            value["major"] = json!(major);
        }
        if let Some(minor) = r.minor {
            value["minor"] = json!(minor);
        }
        value
    };
    rules.iter().map(one).collect()
}

fn rule(allow: bool, kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    let has = |letter| access.contains(letter);
    DeviceRule {
        allow,
        kind,
        major,
        minor,
        read: has('r'),
        write: has('w'),
        mknod: has('m'),
    }
}

fn letter(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::All => "a",
        DeviceKind::Block => "b",
        DeviceKind::Char => "c",
    }
}

/// A rule as it is kept until the container starts.
pub fn to_line(r: &DeviceRule) -> super::create::DeviceLine {
    let access = [(r.read, 'r'), (r.write, 'w'), (r.mknod, 'm')]
        .iter()
        .filter_map(|(on, l)| on.then_some(*l))
        .collect();
    (r.allow, letter(r.kind).to_owned(), r.major, r.minor, access)
}

pub fn from_line((allow, kind, major, minor, access): &super::create::DeviceLine) -> DeviceRule {
    let kind = match kind.as_str() {
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        _ => DeviceKind::All,
    };
    rule(*allow, kind, *major, *minor, access)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str) -> Device {
        Device {
            path: path.into(),
            kind: DeviceKind::Char,
            major: 1,
            minor: 5,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        }
    }

    #[test]
    fn a_device_that_a_mount_would_cover_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dev")).unwrap();
        std::os::unix::fs::symlink("/dev", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (path, over) in [
            ("/proc/disk", "\"/proc\""),
            ("/sys/fs/disk", "\"/sys\""),
            ("/link/disk", "\"/dev\""),
        ] {
            let error = place(&root, &device(path), &[]).unwrap_err();
            assert!(error.contains(&format!("below the mount at {over}")), "{path}: {error}");
        }
    }

    /// Needs root, as whoever makes devices.
    #[test]
    fn a_device_below_a_volume_is_made_in_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (image, outer, inner) = (dir.path().join("i"), dir.path().join("o"), dir.path().join("n"));
        for made in [&image, &outer, &inner, &image.join("data")] {
            std::fs::create_dir(made).unwrap();
        }
        std::os::unix::fs::symlink("data", image.join("other")).unwrap();
        let root = Root::open(&image).unwrap();
        let bind = |target: &str, source: &Path, read_only| Bind {
            target: target.into(),
            source: source.into(),
            read_only,
            ..Bind::default()
        };
        let binds = [
            bind("/data/", &outer, false),
            bind("/data/inner", &inner, false),
            bind("/ro", &inner, true),
        ];
        let number = |path: &Path| std::fs::symlink_metadata(path).unwrap().rdev();
        let zero = makedev(1, 5);
        for (path, made) in [
            ("/data/disk", outer.join("disk")),
            ("/opt/../data/a/b", outer.join("a/b")),
            ("/other/linked", outer.join("linked")),
            ("/data/inner/deep", inner.join("deep")),
            ("/database", image.join("database")),
        ] {
            place(&root, &device(path), &binds).unwrap();
            assert_eq!(number(&made), zero, "{path}");
            assert_eq!(std::fs::metadata(&made).unwrap().mode() & 0o7777, 0o666);
        }
        assert!(std::fs::read_dir(image.join("data")).unwrap().next().is_none());
        // Again: it stays; another device takes its place; a file of the volume's is nobody's to remove.
        place(&root, &device("/data/disk"), &binds).unwrap();
        let null = Device {
            minor: 3,
            ..device("/data/disk")
        };
        place(&root, &null, &binds).unwrap();
        assert_eq!(number(&outer.join("disk")), makedev(1, 3));
        std::fs::write(outer.join("file"), "precious").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", outer.join("away")).unwrap();
        for (path, why) in [
            ("/data/file", "something else"),
            ("/data/away", "something else"),
            ("/data", "mounted there"),
            ("/ro/disk", "Read-only"),
        ] {
            let error = place(&root, &device(path), &binds).unwrap_err();
            assert!(error.contains(why), "{path}: {error}");
        }
        assert_eq!(std::fs::read(outer.join("file")).unwrap(), b"precious");
    }

    #[test]
    fn paths_are_told_apart_by_what_they_mean() {
        let (by_library, by_us) = apart(vec![
            device("/opt/../dev/a"),
            device("/dev/../opt/b"),
            device("/device/c"),
        ]);
        assert_eq!((by_library.len(), by_us.len()), (1, 2));
        let asked = v1::Device {
            container_path: "/opt/../dev//null".into(),
            host_path: "/dev/null".into(),
            permissions: "r".into(),
        };
        assert_eq!(requested(&[asked]).unwrap()[0].path, Path::new("/dev/null"));
    }
}
