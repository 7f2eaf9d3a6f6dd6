//! What is mounted into a container, in which order.

use std::io;
use std::path::{Component, Path, PathBuf};

use keelson_cri::v1;
use keelson_sys::mount::{MountPoint, mount_of};
use serde_json::{Value, json};

use super::users::Range;
use crate::shim::protocol::MountPropagation;

/// A file or directory of the host in a container.
#[derive(Clone, Debug, Default)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: v1::MountPropagation,
    pub uid_mappings: Vec<v1::IdMapping>,
    pub gid_mappings: Vec<v1::IdMapping>,
    /// Its files are to have the container's label.
    pub relabel: bool,
}

impl Bind {
    /// A file of the sandbox.
    pub fn of_sandbox(source: PathBuf, target: &str, read_only: bool) -> Bind {
        Bind {
            source,
            target: target.to_owned(),
            read_only,
            relabel: true,
            ..Bind::default()
        }
    }

    /// Its files are to be the pod's users'.
    pub fn map(&mut self, range: Range) {
        let ids = vec![v1::IdMapping {
            host_id: range.first,
            container_id: 0,
            length: range.length,
        }];
        (self.uid_mappings, self.gid_mappings) = (ids.clone(), ids);
    }
}

/// Files are shown to the pod's users or to nobody else.
pub fn check_mappings(binds: &[Bind], users: Option<Range>) -> Result<(), String> {
    let wanted = users.map(|range| {
        let mut bind = Bind::default();
        bind.map(range);
        bind.uid_mappings
    });
    for bind in binds {
        for mappings in [&bind.uid_mappings, &bind.gid_mappings] {
            if !mappings.is_empty() && Some(mappings) != wanted.as_ref() {
                return Err(format!(
                    "the mappings of the mount at {:?} are not those of the pod's user namespace",
                    bind.target
                ));
            }
        }
        if bind.uid_mappings.is_empty() != bind.gid_mappings.is_empty() {
            return Err(format!("the mount at {:?} maps users or groups only", bind.target));
        }
    }
    Ok(())
}

/// The binds that a configuration asks for; `image` gives the directory of an image volume.
pub fn requested(mounts: &[v1::Mount], image: impl Fn(usize) -> Option<PathBuf>) -> Result<Vec<Bind>, String> {
    mounts
        .iter()
        .enumerate()
        .map(|(i, mount)| one(mount, image(i)))
        .collect()
}

fn one(mount: &v1::Mount, image: Option<PathBuf>) -> Result<Bind, String> {
    let path = &mount.host_path;
    if mount.recursive_read_only {
        if !mount.readonly {
            return Err(format!(
                "recursive read-only mount conflicts with RW mount (hostPath={path:?})"
            ));
        }
        if mount.propagation() != v1::MountPropagation::PropagationPrivate {
            return Err(format!(
                "recursive read-only mount needs private propagation, got {:?} (hostPath={path:?})",
                mount.propagation().as_str_name()
            ));
        }
    }
    // An image's layers are shown to the pod's users already.
    let mapped = image.is_none();
    let source = match image {
        Some(directory) => directory,
        None => host_path(path)?,
    };
    check_propagation(&source, mount.propagation())?;
    let mappings = |list: &[v1::IdMapping]| if mapped { list.to_vec() } else { Vec::new() };
    Ok(Bind {
        source,
        target: mount.container_path.clone(),
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation: mount.propagation(),
        uid_mappings: mappings(&mount.uid_mappings),
        gid_mappings: mappings(&mount.gid_mappings),
        // An image's files are labelled as they are mounted.
        relabel: mapped && mount.selinux_relabel,
    })
}

/// The path without links; one that does not exist becomes a directory, as with other runtimes.
fn host_path(path: &str) -> Result<PathBuf, String> {
    if let Err(e) = std::fs::symlink_metadata(path) {
        if e.kind() != io::ErrorKind::NotFound {
            return Err(format!("failed to stat {path:?}: {e}"));
        }
        std::fs::create_dir_all(path).map_err(|e| format!("failed to mkdir {path:?}: {e}"))?;
    }
    std::fs::canonicalize(path).map_err(|e| format!("failed to resolve symlink {path:?}: {e}"))
}

fn check_propagation(source: &Path, propagation: v1::MountPropagation) -> Result<(), String> {
    use v1::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    if propagation == PropagationPrivate {
        return Ok(());
    }
    let mount = mount_of(source).map_err(|e| e.to_string())?;
    let (shared, slave) = mount
        .as_ref()
        .map_or((false, false), |m: &MountPoint| (m.shared, m.slave));
    let at = mount.map_or_else(String::new, |m| m.target.display().to_string());
    match propagation {
        PropagationBidirectional if !shared => Err(format!(
            "path {:?} is mounted on {at:?} but it is not a shared mount",
            source.display().to_string()
        )),
        PropagationHostToContainer if !shared && !slave => Err(format!(
            "path {:?} is mounted on {at:?} but it is not a shared or slave mount",
            source.display().to_string()
        )),
        _ => Ok(()),
    }
}

/// All binds, the outermost first; what is asked for wins over what the sandbox brings.
pub fn merge(requested: Vec<Bind>, of_sandbox: Vec<Bind>) -> Vec<Bind> {
    let mut all = requested;
    for extra in of_sandbox {
        if !all.iter().any(|b| clean(&b.target) == clean(&extra.target)) {
            all.push(extra);
        }
    }
    all.sort_by_key(|b| clean(&b.target).components().count());
    all
}

/// An absolute path without `.`, `..` and double slashes.
pub fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// How control groups appear in a container.
pub enum CgroupView {
    /// A mount of the container's own, for version 2.
    Own { writable: bool },
    /// The container's groups of every hierarchy of version 1: mount names and host directories.
    V1 {
        groups: Vec<(String, PathBuf)>,
        writable: bool,
    },
}

/// The mounts of the specification, in order.
pub fn spec(binds: &[Bind], cgroups: &CgroupView, privileged: bool) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    match cgroups {
        CgroupView::Own { writable } => {
            let mode = if *writable { "rw" } else { "ro" };
            let options = ["nosuid", "noexec", "nodev", "relatime", mode];
            mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
        }
        CgroupView::V1 { groups, writable } => {
            mounts.push(mount(
                "/sys/fs/cgroup",
                "tmpfs",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=755"],
            ));
            let mode = if *writable { "rw" } else { "ro" };
            for (name, directory) in groups {
                let target = format!("/sys/fs/cgroup/{name}");
                let source = directory.to_string_lossy();
                mounts.push(mount(
                    &target,
                    "bind",
                    &source,
                    &["rbind", "nosuid", "noexec", "nodev", mode],
                ));
            }
        }
    }
    let given = |target: &str| binds.iter().any(|b| clean(&b.target) == Path::new(target));
    mounts.retain(|m| {
        let target = m["destination"].as_str().unwrap_or_default();
        let below = |parent: &str| given(parent) && Path::new(target).starts_with(parent);
        !given(target) && !below("/dev") && !below("/sys/fs/cgroup")
    });
    mounts.extend(binds.iter().map(bind_spec));
    mounts
}

fn bind_spec(bind: &Bind) -> Value {
    let propagation = match bind.propagation {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    let mode = match (bind.read_only, bind.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut value = json!({
        "destination": bind.target, "type": "bind", "source": bind.source, "options": ["rbind", propagation, mode],
    });
    let mappings = |list: &[v1::IdMapping]| -> Value {
        list.iter()
            .map(|m| json!({"hostID": m.host_id, "containerID": m.container_id, "size": m.length}))
            .collect()
    };
    if !bind.uid_mappings.is_empty() {
        value["uidMappings"] = mappings(&bind.uid_mappings);
        value["gidMappings"] = mappings(&bind.gid_mappings);
    }
    value
}

/// What the shim sets after the mounts are made, because `libcontainer` makes them all slaves.
pub fn propagation(binds: &[Bind]) -> Vec<(String, MountPropagation)> {
    let any_shared = shared(binds);
    binds
        .iter()
        .filter_map(|b| {
            let wanted = match b.propagation {
                v1::MountPropagation::PropagationPrivate => MountPropagation::Private,
                v1::MountPropagation::PropagationHostToContainer if any_shared => MountPropagation::Slave,
                v1::MountPropagation::PropagationHostToContainer => return None,
                // Stays the peer of the host's mount that it is when the root is shared.
                v1::MountPropagation::PropagationBidirectional => return None,
            };
            Some((b.target.clone(), wanted))
        })
        .collect()
}

/// Whether a bind is to pass mounts on to the host.
pub fn shared(binds: &[Bind]) -> bool {
    binds
        .iter()
        .any(|b| b.propagation == v1::MountPropagation::PropagationBidirectional)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(target: &str) -> Bind {
        Bind {
            source: "/x".into(),
            target: target.into(),
            ..Bind::default()
        }
    }

    #[test]
    fn outer_mounts_come_first_and_requests_win() {
        let mut own = bind("/etc/hosts");
        own.source = "/own".into();
        let merged = merge(
            vec![bind("/a/b/c"), own, bind("/a")],
            vec![bind("/etc//hosts"), bind("/dev/shm")],
        );
        let targets: Vec<&str> = merged.iter().map(|b| b.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/etc/hosts", "/dev/shm", "/a/b/c"]);
        assert_eq!(merged[1].source, Path::new("/own"));
    }

    #[test]
    fn a_supplied_dev_replaces_everything_under_it() {
        let mounts = spec(&[bind("/dev")], &CgroupView::Own { writable: false }, false);
        let targets: Vec<&str> = mounts.iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(targets, ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]);
    }

    #[test]
    fn files_are_shown_to_the_pods_users_only() {
        let range = |first| Range { first, length: 65_536 };
        let mapped = |first| {
            let mut bind = bind("/v");
            bind.map(range(first));
            bind
        };
        let users = Some(range(131_072));
        assert_eq!(check_mappings(&[bind("/v"), mapped(131_072)], users), Ok(()));
        assert!(check_mappings(&[mapped(65_536)], users).is_err());
        assert!(check_mappings(&[mapped(131_072)], None).is_err());
        let mut half = mapped(131_072);
        half.gid_mappings.clear();
        assert!(check_mappings(&[half], users).is_err());
    }

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(clean("a//b/../c/."), Path::new("/a/c"));
        assert_eq!(clean("/../.."), Path::new("/"));
    }
}
