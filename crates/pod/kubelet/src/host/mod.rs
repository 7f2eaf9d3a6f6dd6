//! All that the kubelet touches of the machine itself, behind one trait: files, mounts, cgroups and facts.
//! `real` is the machine; `fake` keeps it in memory, so that hundreds of nodes run in one process in virtual time.

pub mod fake;
pub mod machine;
mod program;
pub mod real;
mod subids;

use crate::managers::machine::Nodes;
use crate::probes;
use crate::probes::check::Outcome;
use crate::resources::cgroup::CgroupLimits;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::series::Group;
use keelson_sys::net::Carried;
use keelson_sys::open::OpenFiles;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;

pub use machine::Machine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    Socket,
    CharDevice,
    BlockDevice,
    Other,
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStats {
    pub capacity: u64,
    /// What is not in use; part of it may be kept for root.
    pub free: u64,
    /// What others than root can have.
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Memory, CPU and processes of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory: u64,
    pub working_set: u64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub pids: u64,
    /// `None`: there is nothing to swap to.
    pub swap: Option<u64>,
}

/// One file of a volume that the kubelet writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayloadFile {
    pub data: Vec<u8>,
    pub mode: u32,
    pub user: Option<u32>,
}

/// Content of a volume made of files, by relative path.
pub type Payload = BTreeMap<String, PayloadFile>;

/// Who shall own a volume's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    pub group: u32,
    pub read_only: bool,
    /// Leave a tree alone whose root already fits.
    pub only_if_root_differs: bool,
}

pub trait Host: Send + Sync + 'static {
    fn now(&self) -> jiff::Timestamp;
    fn machine(&self) -> io::Result<Machine>;

    /// Makes a directory with its parents and gives it exactly this mode.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Removes a tree; what is mounted in it is unmounted first. Fails, and removes nothing of what is mounted, where the
    /// kernel says that something is mounted still.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory; one that is missing is fine.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    /// What `path` is, links followed; `None` when nothing is there.
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>>;
    /// The path without links.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// The last bytes of a file.
    fn read_end(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// Writes a whole file in place of the old one.
    fn write(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()>;
    /// The same, and a machine that loses its power finds the old one or the new one: for files without which the node doesn't start.
    fn write_through(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        self.write(path, data, mode)
    }
    /// Rewrites a file without giving it a new inode: what is bind-mounted stays the same file.
    fn write_in_place(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes a link, in place of one that is there.
    fn link(&self, target: &Path, link: &Path) -> io::Result<()>;
    /// Listens at a socket that only root may use, in place of one that is there. Fails where there are none.
    fn listen(&self, path: &Path) -> io::Result<UnixListener>;
    /// What tells a file from another that had its name before.
    fn identity(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Tells of changes in a directory and below it.
    fn follow(&self, dir: &Path) -> io::Result<watch::Receiver<u64>>;
    fn file_size(&self, path: &Path) -> io::Result<u64>;

    /// Brings a directory to exactly this content in one step. Returns whether anything changed.
    fn write_payload(&self, dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool>;
    /// Changes the owners of a whole tree, counting the files in `done` meanwhile.
    fn set_ownership(&self, dir: &Path, ownership: Ownership, done: &AtomicU64) -> io::Result<()>;
    /// A path below `volume` that is safe to mount: resolved inside the volume, made as a directory if missing,
    /// and held by a bind mount at `target`.
    fn bind_sub_path(&self, volume: &Path, sub: &str, target: &Path) -> io::Result<()>;
    /// Reads a file inside a directory that a pod controls.
    fn read_inside(&self, dir: &Path, path: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// Opens a file or a directory inside a directory that others write to.
    fn open_inside(&self, dir: &Path, path: &str) -> io::Result<std::fs::File>;
    /// The names in a directory inside such a directory, sorted.
    fn list_inside(&self, dir: &Path, path: &str) -> io::Result<Vec<String>>;
    /// The program that reads the machine's journal.
    fn journal(&self) -> Option<PathBuf>;

    /// A file system in memory that isn't swapped out, where the kernel can.
    fn mount_tmpfs(&self, path: &Path, size: Option<u64>) -> io::Result<()>;
    /// Memory in pages of this size, as a file system.
    fn mount_huge_pages(&self, path: &Path, page: u64) -> io::Result<()>;
    /// A file system that a program of its own mounts, as mount(8) finds it; `source` in that program's words. The error has its output.
    fn mount_by_program(&self, kind: &str, source: &str, target: &Path, options: &[String]) -> io::Result<()>;
    /// Has mounts made at a path seen by containers that have it, where they weren't. Returns the mount that was changed for
    /// that.
    fn share(&self, path: &Path) -> io::Result<Option<PathBuf>>;
    /// Whether something is mounted at exactly this place, as the kernel has it.
    fn is_mounted(&self, path: &Path) -> io::Result<bool>;
    fn unmount(&self, path: &Path) -> io::Result<()>;
    /// Unmounts everything at and below a path, the innermost first.
    fn unmount_below(&self, path: &Path) -> io::Result<()>;

    fn create_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()>;
    fn update_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<()>;
    fn remove_cgroup(&self, path: &str) -> io::Result<()>;
    fn cgroup_usage(&self, path: &str) -> io::Result<Usage>;
    /// What the whole machine uses.
    fn node_usage(&self) -> io::Result<Usage>;
    /// The pod cgroups there are, as (path, pod uid).
    fn pod_cgroups(&self, root: &str) -> io::Result<Vec<(String, String)>>;
    /// Whether cgroups are of version 2.
    fn unified_cgroups(&self) -> bool;
    /// Whether the kernel has this file for a cgroup of version 2.
    fn cgroup_has(&self, path: &str, file: &str) -> bool;

    /// What getsubids(1) says of a user's subordinate users, and groups; `None` where there is no such user or program.
    fn subordinate_ids(&self, user: &str) -> io::Result<Option<(String, String)>>;

    /// The machine's nodes of memory, with their CPUs.
    fn memory_nodes(&self) -> io::Result<Nodes>;
    /// Where the machine says that it stops; `None`: nowhere.
    fn power(&self) -> Option<crate::shutdown::Sources> {
        None
    }

    /// Whether pods can be reached over the network; otherwise network probes count as good.
    fn has_network(&self) -> bool {
        true
    }

    /// How a probe ends on a machine whose containers are made up, so long after its container's start; `None`: it has to be made.
    fn probe(&self, _kind: probes::Kind, _pod: &Pod, _since: Duration) -> Option<Outcome> {
        None
    }

    fn fs_stats(&self, path: &Path) -> io::Result<FsStats>;
    /// Bytes and inodes a tree uses.
    fn disk_usage(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Whether two places are on the same file system, or on the same device.
    fn same_disk(&self, one: &Path, other: &Path) -> io::Result<bool>;
    /// The name of the device that a file system is on, as the kernel's table of mounts has it.
    fn device_of(&self, path: &Path) -> io::Result<String>;
    /// What the interfaces of a process's network have carried; without one, the machine's. The loopback is left out.
    fn carried(&self, pid: Option<i32>) -> io::Result<Vec<Carried>>;
    /// What processes hold open. Costs a system call for each file.
    fn open_files(&self, pids: &[i32]) -> OpenFiles;
    /// All that the kernel counts of a cgroup, without what its processes hold open. Fails when there is none.
    fn group(&self, path: &str) -> io::Result<Group>;
}

/// A path below the kubelet's root, as pods' data are laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    pub root: PathBuf,
    pub logs: PathBuf,
}

impl Layout {
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }
    pub fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(format!("kubernetes.io~{plugin}")).join(name)
    }
    /// What the kubelet keeps beside a volume.
    pub fn volume_meta(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        let plugin = format!("kubernetes.io~{plugin}");
        self.pod(uid).join("plugins").join(plugin).join(name)
    }
    /// Where a pod's block volumes are.
    pub fn volume_devices(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices")
    }
    pub fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }
    pub fn container(&self, uid: &str, name: &str) -> PathBuf {
        self.pod(uid).join("containers").join(name)
    }
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs.join(format!("{namespace}_{name}_{uid}"))
    }
}
