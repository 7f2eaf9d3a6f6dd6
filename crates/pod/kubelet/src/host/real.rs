//! The machine itself.

use super::{FileKind, FsStats, Host, Machine, Ownership, Payload, Usage};
use crate::managers::machine::Nodes;
use crate::resources::cgroup::CgroupLimits;
use keelson_cri::series::Group;
use keelson_follow::{Target, Watch};
use keelson_sys::cgroup::{Cgroups, Resources};
use keelson_sys::net::Carried;
use keelson_sys::open::OpenFiles;
use keelson_sys::{mount, path, tree};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;

/// How long a directory that can't be watched is left alone.
const WATCHED_AGAIN: Duration = Duration::from_secs(5);

pub struct RealHost {
    cgroups: Option<Cgroups>,
}

impl RealHost {
    /// Looks at the machine's cgroups once. Without any, pods run unconfined and that is said.
    pub fn new() -> Self {
        let cgroups = Cgroups::detect()
            .inspect_err(|e| tracing::warn!("no cgroups can be used, so pods run without limits: {e}"))
            .ok();
        RealHost { cgroups }
    }

    fn cgroups(&self) -> io::Result<&Cgroups> {
        self.cgroups
            .as_ref()
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "no cgroups"))
    }
}

impl Default for RealHost {
    fn default() -> Self {
        Self::new()
    }
}

fn resources(limits: &CgroupLimits) -> Resources {
    Resources {
        cpu_shares: limits.cpu_shares.map(|v| v as u64),
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period.map(|v| v as u64),
        memory_limit: limits.memory,
        pids_limit: limits.pids,
        unified: limits.unified.clone(),
        ..Resources::default()
    }
}

fn temp_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

/// The new content of a file, beside it.
fn write_beside(path: &Path, data: &[u8], mode: u32) -> io::Result<(PathBuf, std::fs::File)> {
    let temp = temp_name(path);
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&temp)?;
    file.write_all(data)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    Ok((temp, file))
}

impl Host for RealHost {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn machine(&self) -> io::Result<Machine> {
        Machine::read()
    }

    fn memory_nodes(&self) -> io::Result<Nodes> {
        Nodes::read(Path::new("/sys"))
    }

    fn power(&self) -> Option<crate::shutdown::Sources> {
        Some(crate::shutdown::Sources::of_machine())
    }

    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.unmount_below(path)?;
        tree::remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        let kind = match std::fs::metadata(path) {
            Ok(m) => m.file_type(),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_socket() {
            FileKind::Socket
        } else if kind.is_char_device() {
            FileKind::CharDevice
        } else if kind.is_block_device() {
            FileKind::BlockDevice
        } else {
            FileKind::Other
        }))
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(path)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        std::fs::File::open(path)?.take(limit).read_to_end(&mut data)?;
        Ok(data)
    }

    fn read_end(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(limit);
        file.seek(io::SeekFrom::Start(from))?;
        let mut data = Vec::new();
        file.take(limit).read_to_end(&mut data)?;
        Ok(data)
    }

    fn write(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        let (temp, _) = write_beside(path, data, mode)?;
        std::fs::rename(&temp, path)
    }

    fn write_through(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        let (temp, file) = write_beside(path, data, mode)?;
        file.sync_all()?;
        std::fs::rename(&temp, path)?;
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn write_in_place(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .open(path)?;
        file.write_all(data)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))
    }

    fn subordinate_ids(&self, user: &str) -> io::Result<Option<(String, String)>> {
        super::subids::of(user)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn link(&self, target: &Path, link: &Path) -> io::Result<()> {
        if let Some(dir) = link.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let fresh = temp_name(link);
        self.remove_file(&fresh)?;
        std::os::unix::fs::symlink(target, &fresh)?;
        std::fs::rename(&fresh, link)
    }

    fn listen(&self, path: &Path) -> io::Result<UnixListener> {
        if self.kind(path)? == Some(FileKind::Socket) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        let meta = std::fs::symlink_metadata(path)?;
        let changed = (meta.ctime() as u64).wrapping_mul(1_000_000_000);
        Ok((meta.ino(), changed.wrapping_add(meta.ctime_nsec() as u64)))
    }

    fn follow(&self, dir: &Path) -> io::Result<watch::Receiver<u64>> {
        let mut watch = Watch::new(vec![Target::Tree(dir.to_path_buf())])?;
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let changed = tokio::select! {
                    () = sender.closed() => return,
                    changed = watch.changed() => changed,
                };
                if let Err(e) = changed {
                    tracing::warn!("changes in a directory may have been missed: {e}");
                    tokio::time::sleep(WATCHED_AGAIN).await;
                }
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(receiver)
    }

    fn file_size(&self, path: &Path) -> io::Result<u64> {
        std::fs::metadata(path).map(|m| m.len())
    }

    fn write_payload(&self, dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
        crate::volumes::write_files(dir, payload, group)
    }

    fn set_ownership(&self, dir: &Path, ownership: Ownership, done: &AtomicU64) -> io::Result<()> {
        crate::volumes::apply_ownership(dir, ownership, done)
    }

    fn bind_sub_path(&self, volume: &Path, sub: &str, target: &Path) -> io::Result<()> {
        let root = path::Root::open(volume)?;
        let sub = Path::new(sub);
        let found = match root.open_in(sub, nix::libc::O_PATH, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mode = std::fs::metadata(volume)?.permissions().mode() & 0o7777;
                let made = root.make_dirs(sub, mode)?;
                // The umask must not take away what the volume's own mode grants.
                let by_fd = PathBuf::from(format!("/proc/self/fd/{}", made.as_raw_fd()));
                std::fs::set_permissions(by_fd, std::fs::Permissions::from_mode(mode))?;
                made
            }
            other => other?,
        };
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if std::fs::metadata(&source)?.is_dir() {
            std::fs::create_dir_all(target)?;
        } else if !target.exists() {
            std::fs::File::create(target)?;
        }
        mount::unmount(target)?;
        mount::bind(&source, target)
    }

    fn read_inside(&self, dir: &Path, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        path::Root::open(dir)?.read(Path::new(file), limit)
    }

    fn open_inside(&self, dir: &Path, path: &str) -> io::Result<std::fs::File> {
        let flags = nix::libc::O_RDONLY | nix::libc::O_NONBLOCK;
        path::Root::open(dir)?
            .open_in(Path::new(path), flags, 0)
            .map(Into::into)
    }

    fn list_inside(&self, dir: &Path, path: &str) -> io::Result<Vec<String>> {
        let opened = self.open_inside(dir, path)?;
        self.list_dir(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())))
    }

    fn journal(&self) -> Option<PathBuf> {
        let places = std::env::var_os("PATH")?;
        std::env::split_paths(&places)
            .map(|dir| dir.join("journalctl"))
            .find(|program| program.is_file())
    }

    fn mount_tmpfs(&self, path: &Path, size: Option<u64>) -> io::Result<()> {
        let size = size.map(|s| format!(",size={s}")).unwrap_or_default();
        let flags = nix::mount::MsFlags::empty();
        // Kernels before 6.4, and those of user namespaces, don't know how to keep a file system out of the swap.
        mount::tmpfs(path, flags, &format!("noswap{size}"))
            .or_else(|_| mount::tmpfs(path, flags, size.trim_start_matches(',')))
    }

    fn mount_huge_pages(&self, path: &Path, page: u64) -> io::Result<()> {
        mount::huge_pages(path, page)
    }

    fn mount_by_program(&self, kind: &str, source: &str, target: &Path, options: &[String]) -> io::Result<()> {
        super::program::mount(kind, source, target, options)
    }

    fn share(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        // One that isn't there yet will be made on the mount of what is above it.
        let mut there = path;
        let place = loop {
            match std::fs::canonicalize(there) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => match there.parent() {
                    Some(above) => there = above,
                    None => return Err(e),
                },
                other => break other?,
            }
        };
        match mount::mount_of(&place)? {
            Some(m) if !m.shared => {
                mount::set_shared(&m.target, true)?;
                Ok(Some(m.target))
            }
            _ => Ok(None),
        }
    }

    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        mount::is_mounted(path)
    }

    fn unmount(&self, path: &Path) -> io::Result<()> {
        mount::unmount(path)
    }

    fn unmount_below(&self, path: &Path) -> io::Result<()> {
        for target in mount::below(path)? {
            mount::unmount(&target)?;
        }
        Ok(())
    }

    fn create_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        let cgroups = self.cgroups()?;
        cgroups.create(path)?;
        cgroups.apply(path, &resources(limits))
    }

    fn update_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        self.cgroups()?.apply(path, &resources(limits))
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<()> {
        let Some(cgroups) = &self.cgroups else { return Ok(()) };
        if cgroups.exists(path) {
            cgroups.kill(path)?;
            cgroups.remove(path)?;
        }
        Ok(())
    }

    fn cgroup_usage(&self, path: &str) -> io::Result<Usage> {
        let u = self.cgroups()?.usage(path)?;
        Ok(Usage {
            cpu_nanos: u.cpu.total_nanos,
            memory: u.memory.usage,
            working_set: u.memory.working_set,
            rss: u.memory.rss,
            page_faults: u.memory.page_faults,
            major_page_faults: u.memory.major_page_faults,
            pids: u.pids,
            swap: u.memory.swap_usage,
        })
    }

    fn node_usage(&self) -> io::Result<Usage> {
        super::machine::usage()
    }

    fn pod_cgroups(&self, root: &str) -> io::Result<Vec<(String, String)>> {
        let Some(cgroups) = &self.cgroups else {
            return Ok(Vec::new());
        };
        let base = format!("{}/kubepods", root.trim_end_matches('/'));
        let mut found = Vec::new();
        for class in ["", "/burstable", "/besteffort"] {
            let parent = format!("{base}{class}");
            let dir = ["pids", "memory", "cpu"].iter().find_map(|c| cgroups.dir(c, &parent));
            let Some(dir) = dir else { continue };
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(uid) = name.strip_prefix("pod") {
                    found.push((format!("{parent}/{name}"), uid.to_owned()));
                }
            }
        }
        Ok(found)
    }

    fn unified_cgroups(&self) -> bool {
        self.cgroups
            .as_ref()
            .is_some_and(|c| c.version() == keelson_sys::cgroup::Version::V2)
    }

    fn cgroup_has(&self, path: &str, file: &str) -> bool {
        let cgroups = self.cgroups.as_ref().filter(|_| self.unified_cgroups());
        let dir = cgroups.and_then(|c| c.dir("memory", path));
        dir.is_some_and(|d| d.join(file).exists())
    }

    fn fs_stats(&self, path: &Path) -> io::Result<FsStats> {
        let s = nix::sys::statvfs::statvfs(path)?;
        let unit = s.fragment_size() as u64;
        Ok(FsStats {
            capacity: s.blocks() as u64 * unit,
            free: s.blocks_free() as u64 * unit,
            available: s.blocks_available() as u64 * unit,
            inodes: s.files() as u64,
            inodes_free: s.files_free() as u64,
        })
    }

    fn disk_usage(&self, path: &Path) -> io::Result<(u64, u64)> {
        let top = tree::handle(path)?;
        let (mut bytes, mut inodes) = (top.stat.st_blocks as u64 * 512, 1);
        if top.is_dir() {
            // Pods change the tree meanwhile: only what is in it counts, not what its links lead to.
            tree::visit(path, &mut |found| {
                bytes += found.stat.st_blocks as u64 * 512;
                inodes += 1;
                Ok(())
            })?;
        }
        Ok((bytes, inodes))
    }

    fn same_disk(&self, one: &Path, other: &Path) -> io::Result<bool> {
        if std::fs::metadata(one)?.dev() == std::fs::metadata(other)?.dev() {
            return Ok(true);
        }
        // Parts of a file system may have numbers of their own; their device is one.
        let device = self.device_of(one)?;
        Ok(device.starts_with("/dev/") && device == self.device_of(other)?)
    }

    fn device_of(&self, path: &Path) -> io::Result<String> {
        let place = std::fs::canonicalize(path)?;
        let mount = mount::mount_of(&place)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(mount.source)
    }

    fn carried(&self, pid: Option<i32>) -> io::Result<Vec<Carried>> {
        keelson_sys::net::carried(pid)
    }

    fn group(&self, path: &str) -> io::Result<Group> {
        Ok(Group {
            account: self.cgroups()?.account(path)?,
            seen: Some(std::time::SystemTime::now()),
            ..Group::default()
        })
    }

    fn open_files(&self, pids: &[i32]) -> OpenFiles {
        keelson_sys::open::open_files(pids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_from_either_end() {
        let path = std::env::temp_dir().join(format!("keelson-ends-{}", std::process::id()));
        let host = RealHost { cgroups: None };
        host.write(&path, b"abcdef", 0o600).unwrap();
        assert_eq!(host.read(&path, 4).unwrap(), b"abcd");
        assert_eq!(host.read_end(&path, 4).unwrap(), b"cdef");
        assert_eq!(host.read_end(&path, 40).unwrap(), b"abcdef");
        host.remove_file(&path).unwrap();
    }
}
