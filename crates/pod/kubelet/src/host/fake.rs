//! A machine in memory: files are bytes in a map, mounts and cgroups are names in a set, the clock is tokio's.

use super::{FileKind, FsStats, Host, Machine, Ownership, Payload, Usage};
use crate::managers::machine::Nodes;
use crate::probes;
use crate::probes::check::Outcome;
use crate::resources::cgroup::CgroupLimits;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::series::Group;
use keelson_sys::net::Carried;
use keelson_sys::open::OpenFiles;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, Vec<u8>>,
    dirs: BTreeSet<PathBuf>,
    mounts: BTreeSet<PathBuf>,
    programs: Vec<String>,
    cgroups: BTreeMap<String, CgroupLimits>,
    owned: Vec<(PathBuf, Ownership)>,
    unreadable: BTreeSet<PathBuf>,
    /// Which write made each socket.
    written: BTreeMap<PathBuf, u64>,
    writes: u64,
    subordinate_ids: Option<(String, String)>,
    /// Other nodes of memory than one.
    nodes: Option<Nodes>,
}

/// Files of this name stand for sockets.
fn is_socket(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "sock")
}

/// The disk as it is at the moment.
type Disk = Box<dyn Fn() -> FsStats + Send + Sync>;

pub struct FakeHost {
    machine: Machine,
    epoch: jiff::Timestamp,
    start: tokio::time::Instant,
    state: Mutex<State>,
    usage: Mutex<Usage>,
    disk: Mutex<Disk>,
    /// Other disks, by where they are mounted.
    disks: Mutex<BTreeMap<PathBuf, Disk>>,
    /// Counts changes of sockets.
    changes: watch::Sender<u64>,
    /// Sockets are listened at, on the real machine.
    sockets: AtomicBool,
}

impl FakeHost {
    /// A machine whose clock shows `epoch` now and runs with tokio's.
    pub fn new(machine: Machine, epoch: jiff::Timestamp) -> Self {
        FakeHost {
            machine,
            epoch,
            start: tokio::time::Instant::now(),
            state: Mutex::default(),
            usage: Mutex::default(),
            disk: Mutex::new(Box::new(|| Self::disk_with(80))),
            disks: Mutex::default(),
            changes: watch::Sender::default(),
            sockets: AtomicBool::default(),
        }
    }

    /// From now on, and until it is said again, the disk gives errors where this directory is, and the kernel at this cgroup.
    pub fn spoil(&self, dir: &Path, spoiled: bool) {
        let unreadable = &mut self.state.lock().unreadable;
        match spoiled {
            true => unreadable.insert(dir.to_owned()),
            false => unreadable.remove(dir),
        };
    }

    /// From now on sockets are real ones: the kubelet's directory has to be, too.
    pub fn serve_sockets(&self) {
        self.sockets.store(true, Ordering::Relaxed);
    }

    /// What is said of the kubelet's subordinate users and groups.
    pub fn set_subordinate_ids(&self, uids: &str, gids: &str) {
        self.state.lock().subordinate_ids = Some((uids.to_owned(), gids.to_owned()));
    }

    /// The machine has these nodes of memory.
    pub fn set_memory_nodes(&self, nodes: Nodes) {
        self.state.lock().nodes = Some(nodes);
    }

    /// A machine of plain size.
    pub fn small(name: &str, epoch: jiff::Timestamp) -> Self {
        let machine = Machine {
            cpus: 4,
            memory: 8 << 30,
            hostname: name.to_owned(),
            machine_id: format!("fake-{name}"),
            system_uuid: format!("fake-{name}"),
            boot_id: format!("boot-{name}"),
            kernel: "6.1.0".into(),
            os_image: "Fake".into(),
            architecture: super::machine::architecture().into(),
            max_pids: 32768,
            ..Machine::default()
        };
        Self::new(machine, epoch)
    }

    /// A disk of which so many percent are left.
    pub fn disk_with(percent: u64) -> FsStats {
        FsStats {
            capacity: 100 << 30,
            free: percent << 30,
            available: percent << 30,
            inodes: 1 << 22,
            inodes_free: 1 << 21,
        }
    }

    /// How full the disk is from now on, asked whenever it is measured.
    pub fn set_disk(&self, disk: impl Fn() -> FsStats + Send + Sync + 'static) {
        *self.disk.lock() = Box::new(disk);
    }

    /// Another disk at a place, and how full it is.
    pub fn add_disk(&self, at: impl Into<PathBuf>, disk: impl Fn() -> FsStats + Send + Sync + 'static) {
        self.disks.lock().insert(at.into(), Box::new(disk));
    }

    /// What every cgroup uses from now on.
    pub fn set_usage(&self, usage: Usage) {
        *self.usage.lock() = usage;
    }

    /// The limits of a cgroup, if it exists.
    pub fn cgroup(&self, path: &str) -> Option<CgroupLimits> {
        self.state.lock().cgroups.get(path).cloned()
    }

    /// Whose the trees became, in order.
    pub fn owned(&self) -> Vec<(PathBuf, Ownership)> {
        self.state.lock().owned.clone()
    }

    /// What programs were asked to mount: kind, source and options. The server `down` never answers.
    pub fn mounted_by_programs(&self) -> Vec<String> {
        self.state.lock().programs.clone()
    }

    /// What is mounted, as a driver would do it that runs on this machine.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.state.lock().mounts.iter().cloned().collect()
    }

    /// What a driver does that takes a mount away.
    pub fn unmounted(&self, path: &Path) {
        let mut state = self.state.lock();
        state.mounts.remove(path);
        state.dirs.remove(path);
    }

    /// Mounts something, as a driver would do it that runs on this machine.
    pub fn mount(&self, path: &Path) {
        let mut state = self.state.lock();
        state.dirs.extend(path.ancestors().map(Path::to_path_buf));
        state.mounts.insert(path.to_owned());
    }

    fn missing(path: &Path) -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, format!("{}: not found", path.display()))
    }
}

impl Host for FakeHost {
    fn now(&self) -> jiff::Timestamp {
        let elapsed = self.start.elapsed();
        self.epoch + jiff::SignedDuration::new(elapsed.as_secs() as i64, elapsed.subsec_nanos() as i32)
    }

    fn memory_nodes(&self) -> io::Result<Nodes> {
        let nodes = self.state.lock().nodes.clone();
        let plain = || Nodes::plain(self.machine.cpus as u32, self.machine.memory);
        Ok(nodes.unwrap_or_else(plain))
    }

    fn machine(&self) -> io::Result<Machine> {
        Ok(self.machine.clone())
    }

    fn make_dir(&self, path: &Path, _mode: u32) -> io::Result<()> {
        self.state.lock().dirs.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.files.retain(|p, _| !p.starts_with(path));
        state.dirs.retain(|p| !p.starts_with(path));
        state.mounts.retain(|p| !p.starts_with(path));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inside = |p: &PathBuf| p != path && p.starts_with(path);
        if state.files.keys().any(inside) || state.dirs.iter().any(inside) {
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "not empty"));
        }
        if state.mounts.contains(path) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "mounted"));
        }
        state.dirs.remove(path);
        Ok(())
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if state.unreadable.contains(path) {
            return Err(io::Error::from(nix::Error::EIO));
        }
        if !state.dirs.contains(path) {
            return Err(Self::missing(path));
        }
        let names: BTreeSet<String> = state
            .files
            .keys()
            .chain(&state.dirs)
            .filter_map(|p| p.strip_prefix(path).ok()?.components().next())
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect();
        Ok(names.into_iter().collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        let state = self.state.lock();
        Ok(if state.files.contains_key(path) {
            Some(if is_socket(path) {
                FileKind::Socket
            } else {
                FileKind::File
            })
        } else {
            state.dirs.contains(path).then_some(FileKind::Directory)
        })
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let data = state.files.get(path).ok_or_else(|| Self::missing(path))?;
        Ok(data[..data.len().min(limit as usize)].to_vec())
    }

    fn read_end(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let all = self.read(path, u64::MAX)?;
        Ok(all[all.len().saturating_sub(limit as usize)..].to_vec())
    }

    fn subordinate_ids(&self, _: &str) -> io::Result<Option<(String, String)>> {
        Ok(self.state.lock().subordinate_ids.clone())
    }

    fn write(&self, path: &Path, data: &[u8], _mode: u32) -> io::Result<()> {
        let mut state = self.state.lock();
        state.dirs.extend(path.ancestors().skip(1).map(Path::to_path_buf));
        state.files.insert(path.to_owned(), data.to_vec());
        if is_socket(path) {
            state.writes += 1;
            let writes = state.writes;
            state.written.insert(path.to_owned(), writes);
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    fn write_in_place(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        self.write(path, data, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.dirs.contains(from) {
            let moved = |path: &PathBuf| path.strip_prefix(from).ok().map(|below| to.join(below));
            let files = std::mem::take(&mut state.files).into_iter();
            state.files = files.map(|(path, data)| (moved(&path).unwrap_or(path), data)).collect();
            let dirs = std::mem::take(&mut state.dirs).into_iter();
            state.dirs = dirs.map(|path| moved(&path).unwrap_or(path)).collect();
            return Ok(());
        }
        let data = state.files.remove(from).ok_or_else(|| Self::missing(from))?;
        state.files.insert(to.to_owned(), data);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.state.lock().files.remove(path);
        if is_socket(path) {
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    fn listen(&self, path: &Path) -> io::Result<UnixListener> {
        if !self.sockets.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn link(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.write(link, target.as_os_str().as_encoded_bytes(), 0o777)
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        let state = self.state.lock();
        let written = state.written.get(path).ok_or_else(|| Self::missing(path))?;
        Ok((0, *written))
    }

    fn follow(&self, _dir: &Path) -> io::Result<watch::Receiver<u64>> {
        Ok(self.changes.subscribe())
    }

    fn file_size(&self, path: &Path) -> io::Result<u64> {
        self.state
            .lock()
            .files
            .get(path)
            .map(|d| d.len() as u64)
            .ok_or_else(|| Self::missing(path))
    }

    fn write_payload(&self, dir: &Path, payload: &Payload, _group: Option<u32>) -> io::Result<bool> {
        let mut state = self.state.lock();
        let before: BTreeMap<PathBuf, Vec<u8>> = state
            .files
            .iter()
            .filter(|(p, _)| p.starts_with(dir))
            .map(|(p, d)| (p.clone(), d.clone()))
            .collect();
        let after: BTreeMap<PathBuf, Vec<u8>> = payload.iter().map(|(n, f)| (dir.join(n), f.data.clone())).collect();
        state.files.retain(|p, _| !p.starts_with(dir));
        let changed = before != after;
        state.files.extend(after);
        Ok(changed)
    }

    fn set_ownership(&self, dir: &Path, ownership: Ownership, _done: &AtomicU64) -> io::Result<()> {
        self.state.lock().owned.push((dir.to_owned(), ownership));
        Ok(())
    }

    fn bind_sub_path(&self, _volume: &Path, _sub: &str, target: &Path) -> io::Result<()> {
        self.state.lock().mounts.insert(target.to_owned());
        Ok(())
    }

    fn read_inside(&self, dir: &Path, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.read(&dir.join(path), limit)
    }

    fn open_inside(&self, dir: &Path, path: &str) -> io::Result<std::fs::File> {
        let data = self.read_inside(dir, path, u64::MAX)?;
        let mut file = std::fs::File::from(nix::sys::memfd::memfd_create(
            c"inside",
            nix::sys::memfd::MFdFlags::empty(),
        )?);
        io::Write::write_all(&mut file, &data)?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    fn list_inside(&self, dir: &Path, path: &str) -> io::Result<Vec<String>> {
        self.list_dir(&dir.join(path))
    }

    fn journal(&self) -> Option<PathBuf> {
        None
    }

    fn mount_tmpfs(&self, path: &Path, _size: Option<u64>) -> io::Result<()> {
        self.state.lock().mounts.insert(path.to_owned());
        Ok(())
    }

    fn mount_huge_pages(&self, path: &Path, _page: u64) -> io::Result<()> {
        self.state.lock().mounts.insert(path.to_owned());
        Ok(())
    }

    fn mount_by_program(&self, kind: &str, source: &str, target: &Path, options: &[String]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.programs.push(format!("{kind} {source} {}", options.join(",")));
        if source.starts_with("down:") {
            return Err(io::Error::other("mount failed: exit status 32"));
        }
        state.mounts.insert(target.to_owned());
        Ok(())
    }

    fn share(&self, _path: &Path) -> io::Result<Option<PathBuf>> {
        Ok(None)
    }

    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state.lock().mounts.contains(path))
    }

    fn unmount(&self, path: &Path) -> io::Result<()> {
        self.state.lock().mounts.remove(path);
        Ok(())
    }

    fn unmount_below(&self, path: &Path) -> io::Result<()> {
        self.state.lock().mounts.retain(|p| !p.starts_with(path));
        Ok(())
    }

    fn create_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.unreadable.contains(Path::new(path)) {
            return Err(io::Error::from(nix::Error::EBUSY));
        }
        state.cgroups.insert(path.to_owned(), limits.clone());
        Ok(())
    }

    /// What isn't said stays.
    fn update_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        let old = self.cgroup(path).unwrap_or_default();
        let new = limits.clone();
        let merged = CgroupLimits {
            cpu_shares: new.cpu_shares.or(old.cpu_shares),
            cpu_quota: new.cpu_quota.or(old.cpu_quota),
            cpu_period: new.cpu_period.or(old.cpu_period),
            memory: new.memory.or(old.memory),
            pids: new.pids.or(old.pids),
            unified: old.unified.into_iter().chain(new.unified).collect(),
        };
        self.create_cgroup(path, &merged)
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<()> {
        self.state.lock().cgroups.remove(path);
        Ok(())
    }

    fn cgroup_usage(&self, path: &str) -> io::Result<Usage> {
        if self.state.lock().unreadable.contains(Path::new(path)) {
            return Err(io::Error::from(nix::Error::EIO));
        }
        Ok(*self.usage.lock())
    }

    fn node_usage(&self) -> io::Result<Usage> {
        Ok(*self.usage.lock())
    }

    fn pod_cgroups(&self, root: &str) -> io::Result<Vec<(String, String)>> {
        let base = format!("{}/kubepods", root.trim_end_matches('/'));
        let state = self.state.lock();
        Ok(state
            .cgroups
            .keys()
            .filter(|p| p.starts_with(&base))
            .filter_map(|p| Some((p.clone(), p.rsplit('/').next()?.strip_prefix("pod")?.to_owned())))
            .collect())
    }

    fn unified_cgroups(&self) -> bool {
        true
    }

    fn cgroup_has(&self, path: &str, file: &str) -> bool {
        let state = self.state.lock();
        state.cgroups.contains_key(path) && !state.unreadable.contains(&Path::new(path).join(file))
    }

    fn has_network(&self) -> bool {
        false
    }

    fn probe(&self, kind: probes::Kind, pod: &Pod, since: Duration) -> Option<Outcome> {
        crate::fake::annotations::probe(kind, pod.metadata.annotations.as_ref()?, since)
    }

    fn fs_stats(&self, path: &Path) -> io::Result<FsStats> {
        let disks = self.disks.lock();
        match disks.iter().find(|(at, _)| path.starts_with(at)) {
            Some((_, disk)) => Ok(disk()),
            None => Ok((*self.disk.lock())()),
        }
    }

    fn same_disk(&self, one: &Path, other: &Path) -> io::Result<bool> {
        let disks = self.disks.lock();
        let of = |path: &Path| disks.keys().find(|at| path.starts_with(at));
        Ok(of(one) == of(other))
    }

    fn disk_usage(&self, path: &Path) -> io::Result<(u64, u64)> {
        let state = self.state.lock();
        let files = state.files.iter().filter(|(p, _)| p.starts_with(path));
        Ok(files.fold((0, 0), |(b, n), (_, d)| (b + d.len() as u64, n + 1)))
    }

    fn device_of(&self, _: &Path) -> io::Result<String> {
        Ok("/dev/fake".into())
    }

    fn carried(&self, _: Option<i32>) -> io::Result<Vec<Carried>> {
        let (name, received, sent) = ("eth0".into(), Default::default(), Default::default());
        Ok(vec![Carried { name, received, sent }])
    }

    fn open_files(&self, pids: &[i32]) -> OpenFiles {
        OpenFiles {
            files: 3 * pids.len() as u64,
            sockets: Some(pids.len() as u64),
            bound: Some(1024),
        }
    }

    fn group(&self, path: &str) -> io::Result<Group> {
        let usage = self.cgroup_usage(path)?;
        let mut group = Group {
            seen: Some(self.now().into()),
            ..Group::default()
        };
        group.account.processes = vec![7];
        group.account.cpu.quota = Some(50_000);
        group.account.cpu.throttled_periods = Some(3);
        group.account.cpu.total = Some(usage.cpu_nanos);
        group.account.memory.usage = Some(usage.memory);
        group.account.memory.working_set = Some(usage.working_set);
        group.account.memory.rss = Some(usage.rss);
        Ok(group)
    }
}
