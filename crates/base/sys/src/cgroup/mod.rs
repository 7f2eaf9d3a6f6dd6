//! Control groups, version 1 (also hybrid) and version 2, behind one interface.
//!
//! A group is named by its path below the hierarchy's root, e.g. `/kubepods/besteffort/pod1/abc`; on version 1 the
//! same path is used in every hierarchy. Nothing here decides values: it writes what it is given.

mod account;
mod devices;
mod read;
mod v1;
mod v2;

pub use account::{Account, CpuAccount, DiskAccount, MemoryAccount, Pressure, device_name};
pub use devices::{DeviceKind, DeviceRule};
pub use read::{CpuUsage, MemoryUsage, Usage};

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const MOUNT: &str = "/sys/fs/cgroup";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V1,
    V2,
}

/// Limits to write; what is `None` is left as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub memory_limit: Option<i64>,
    /// Memory and swap together, as version 1 counts.
    pub memory_swap: Option<i64>,
    pub pids_limit: Option<i64>,
    /// Page size ("2MB") and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// Files of version 2 and what to write into them.
    pub unified: BTreeMap<String, String>,
}

/// The machine's hierarchies.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: Version,
    /// Version 1: controller names and where they are mounted. Version 2: one entry without name.
    hierarchies: Vec<(String, PathBuf)>,
}

impl Cgroups {
    pub fn detect() -> io::Result<Cgroups> {
        let mounts = crate::mount::list()?;
        if mounts
            .iter()
            .any(|m| m.target == Path::new(MOUNT) && m.fs_type == "cgroup2")
        {
            return Ok(Cgroups {
                version: Version::V2,
                hierarchies: vec![(String::new(), PathBuf::from(MOUNT))],
            });
        }
        let mut hierarchies: Vec<(String, PathBuf)> = Vec::new();
        for m in mounts
            .iter()
            .filter(|m| m.fs_type == "cgroup" && m.target.parent() == Some(Path::new(MOUNT)))
        {
            if let Some(name) = m.target.file_name().and_then(|n| n.to_str())
                && !hierarchies.iter().any(|(_, p)| *p == m.target)
            {
                hierarchies.push((name.to_owned(), m.target.clone()));
            }
        }
        if hierarchies.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no control groups are mounted at /sys/fs/cgroup (cgroup2, or one cgroup a controller)",
            ));
        }
        Ok(Cgroups {
            version: Version::V1,
            hierarchies,
        })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a controller such as "hugetlb" can be used.
    pub fn has_controller(&self, name: &str) -> bool {
        match self.version {
            Version::V1 => self.v1(name).is_some(),
            Version::V2 => std::fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|c| c == name)),
        }
    }

    /// The directory of a group in the hierarchy of a controller.
    pub fn dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let root = match self.version {
            Version::V1 => self.v1(controller)?,
            Version::V2 => Path::new(MOUNT),
        };
        Some(below(root, group))
    }

    /// The group's directories in all hierarchies, with the names that these are mounted under.
    pub fn directories(&self, group: &str) -> Vec<(String, PathBuf)> {
        self.hierarchies
            .iter()
            .map(|(name, root)| (name.clone(), below(root, group)))
            .collect()
    }

    pub fn exists(&self, group: &str) -> bool {
        self.dirs(group).any(|d| d.is_dir())
    }

    /// Makes a group and its missing parents in every hierarchy.
    pub fn create(&self, group: &str) -> io::Result<()> {
        match self.version {
            Version::V1 => v1::create(&self.hierarchies, group),
            Version::V2 => v2::create(Path::new(MOUNT), group),
        }
    }

    pub fn apply(&self, group: &str, resources: &Resources) -> io::Result<()> {
        match self.version {
            Version::V1 => v1::apply(self, group, resources),
            Version::V2 => v2::apply(&below(Path::new(MOUNT), group), resources),
        }
    }

    /// Which devices processes of the group may use: the last rule that matches decides, and nothing is allowed
    /// where none does.
    pub fn restrict_devices(&self, group: &str, rules: &[DeviceRule]) -> io::Result<()> {
        match self.version {
            Version::V1 => match self.dir("devices", group) {
                Some(dir) => devices::restrict_v1(&dir, rules),
                None => Ok(()),
            },
            Version::V2 => devices::restrict_v2(&below(Path::new(MOUNT), group), rules),
        }
    }

    /// Moves a process into the group in every hierarchy.
    pub fn attach(&self, group: &str, pid: i32) -> io::Result<()> {
        self.dirs(group)
            .try_for_each(|dir| write(&dir, "cgroup.procs", &pid.to_string()))
    }

    /// Moves `pid` to where `first`, a process of the group, is. The same place, until the group has groups in it that
    /// controllers are handed on to: then no process may be in the group itself.
    pub fn attach_beside(&self, group: &str, pid: i32, first: i32) -> io::Result<()> {
        match self.attach(group, pid) {
            Err(e) if self.version == Version::V2 && is_busy(&e) => {
                let text = std::fs::read_to_string(format!("/proc/{first}/cgroup"))?;
                let inner = inside(group, &text).ok_or(e)?;
                self.attach(inner, pid)
            }
            done => done,
        }
    }

    /// Processes in the group and the groups in it.
    pub fn processes(&self, group: &str) -> io::Result<Vec<i32>> {
        let dir = match self.version {
            Version::V1 => match ["pids", "memory", "cpu"].iter().find_map(|c| self.dir(c, group)) {
                Some(dir) => dir,
                None => return Ok(Vec::new()),
            },
            Version::V2 => below(Path::new(MOUNT), group),
        };
        let mut pids = Vec::new();
        collect_processes(&dir, &mut pids)?;
        Ok(pids)
    }

    /// Kills every process of the group, also those it is just forking.
    pub fn kill(&self, group: &str) -> io::Result<()> {
        if self.version == Version::V2 {
            match write(&below(Path::new(MOUNT), group), "cgroup.kill", "1") {
                // Before Linux 5.14.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        // A fork bomb can outrun one pass; each pass shrinks it as killed processes no longer fork.
        for _ in 0..100 {
            let pids = self.processes(group)?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match crate::process::kill(pid, libc::SIGKILL) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(io::Error::other(format!("processes of {group} outlive SIGKILL")))
    }

    /// Removes the group and the groups in it; none of them may hold processes. A missing group is fine.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        if group.trim_matches('/').is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the root group cannot be removed",
            ));
        }
        self.dirs(group).try_for_each(|dir| remove_tree(&dir))
    }

    /// How often the kernel killed a process of the group for want of memory.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = self
            .dir("memory", group)
            .and_then(|d| std::fs::read_to_string(d.join(file)).ok());
        text.and_then(|t| read::keyed(&t, "oom_kill")).unwrap_or(0)
    }

    /// What the group uses now.
    pub fn usage(&self, group: &str) -> io::Result<Usage> {
        read::usage(self, group)
    }

    /// All that the kernel counts of the group. Fails when there is none.
    pub fn account(&self, group: &str) -> io::Result<Account> {
        account::account(self, group)
    }

    fn v1(&self, controller: &str) -> Option<&Path> {
        self.hierarchies
            .iter()
            .find(|(name, _)| name.split(',').any(|part| part == controller))
            .map(|(_, path)| path.as_path())
    }

    fn dirs<'a>(&'a self, group: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.hierarchies.iter().map(move |(_, root)| below(root, group))
    }
}

/// The kernel's EBUSY, wherever it was worded.
fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

/// The group of a process by its /proc/<pid>/cgroup, if it is in `group`.
fn inside<'a>(group: &str, cgroups: &'a str) -> Option<&'a str> {
    let found = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Path::new(found).starts_with(group).then_some(found)
}

fn below(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    use std::io::Write;
    let path = dir.join(file);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| f.write_all(value.as_bytes()))
        .map_err(|e| io::Error::new(e.kind(), format!("writing {value:?} to {}: {e}", path.display())))
}

fn collect_processes(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.trim().parse::<i32>().ok())),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        // A threaded group has no list of processes.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    for child in children(dir)? {
        collect_processes(&child, pids)?;
    }
    Ok(())
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    // A group stays busy for a moment after its last process was reaped.
    let mut wait = Duration::from_millis(1);
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && wait < Duration::from_millis(600) => {
                std::thread::sleep(wait);
                wait *= 2;
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("removing {}: {e}", dir.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_inside_of_its_group_only() {
        assert_eq!(inside("/kubepods/c", "0::/kubepods/c/init\n"), Some("/kubepods/c/init"));
        assert_eq!(inside("/kubepods/c", "1:cpu:/x\n0::/kubepods/c\n"), Some("/kubepods/c"));
        assert_eq!(inside("/kubepods/c", "0::/kubepods/cd\n"), None);
        assert_eq!(inside("/kubepods/c", "0::/\n"), None);
        assert_eq!(inside("/kubepods/c", "1:cpu:/kubepods/c\n"), None);
    }

    #[test]
    fn busy_is_known_behind_our_words() {
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        let worded = io::Error::new(busy.kind(), format!("writing: {busy}"));
        assert!(is_busy(&busy) && is_busy(&worded));
        assert!(!is_busy(&io::ErrorKind::NotFound.into()));
    }
}
