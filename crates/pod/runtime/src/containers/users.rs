//! A pod's users where it has a namespace of its own for them: a range of the host's ids, of which the first is the pod's
//! root. Files keep the pod's numbers on disk; mounts show them to the namespace (`detached::map_ids`), and what is written
//! beside them, as the upper layer of a root file system, belongs to the host's numbers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use keelson_cri::v1::{self, NamespaceMode, PodSandboxConfig};
use keelson_sys::{detached, mount};

use super::spec::namespace_options;
use super::user::User;
use crate::sandbox::Sandbox;

/// The host's ids that a pod has, users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub length: u32,
}

impl Range {
    /// What a configuration asks for; `None`: the host's users.
    pub fn of(options: &v1::NamespaceOption) -> Result<Option<Range>, String> {
        let Some(asked) = options.userns_options.as_ref() else {
            return Ok(None);
        };
        match asked.mode() {
            NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => return Ok(None),
            NamespaceMode::Pod => {}
            NamespaceMode::Node => return Err("can't use mappings with the host's user namespace".into()),
            other => return Err(format!("unsupported user namespace mode: {}", other.as_str_name())),
        }
        let (uids, gids) = (one(&asked.uids)?, one(&asked.gids)?);
        if uids != gids {
            return Err("the user namespace's mappings of users and groups differ".into());
        }
        for (mode, name) in [
            (options.network(), "network"),
            (options.pid(), "PID"),
            (options.ipc(), "IPC"),
        ] {
            if mode == NamespaceMode::Node {
                return Err(format!("can't use the host's {name} namespace with a user namespace"));
            }
        }
        Ok(Some(uids))
    }

    /// The host's number of one of the pod's.
    pub fn host(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.first + id)
    }

    /// Whoever a container runs as has to be somebody in the pod.
    pub fn check(self, user: &User) -> Result<(), String> {
        let ids = std::iter::once(&user.gid).chain(&user.groups);
        let groups = ids.map(|id| ("group", *id));
        let outside = std::iter::once(("user", user.uid))
            .chain(groups)
            .find(|(_, id)| *id >= self.length);
        match outside {
            Some((kind, id)) => Err(format!(
                "{kind} {id} is not mapped in the pod's user namespace, which has {} ids",
                self.length
            )),
            None => Ok(()),
        }
    }
}

fn one(mappings: &[v1::IdMapping]) -> Result<Range, String> {
    let [mapping] = mappings else {
        return Err(format!(
            "a user namespace has one mapping of users and one of groups, not {}",
            mappings.len()
        ));
    };
    let (first, length) = (mapping.host_id, mapping.length);
    if mapping.container_id != 0 || length == 0 {
        return Err("root has to be mapped in a user namespace".into());
    }
    if first == 0 {
        return Err("the host's root can't be mapped in a pod's user namespace".into());
    }
    // The last number of all means "nobody said".
    if first.checked_add(length - 1).is_none_or(|last| last == u32::MAX) {
        return Err(format!("{length} ids from {first} on are more than there are"));
    }
    Ok(Range { first, length })
}

/// A pod's users, with the namespace that holds them.
pub struct Users {
    pub range: Range,
    namespace: OwnedFd,
}

impl Users {
    /// `None`: the pod runs as the host's users.
    pub fn of(sandbox: &Sandbox, config: &PodSandboxConfig) -> Result<Option<Users>, String> {
        let Some(range) = Range::of(&namespace_options(config))? else {
            return Ok(None);
        };
        let namespace = File::open(sandbox.shim.namespace("user"))
            .map_err(|e| format!("cannot open the pod's user namespace: {e}"))?;
        Ok(Some(Users {
            range,
            namespace: namespace.into(),
        }))
    }

    /// The host's numbers of the pod's root.
    pub fn root(&self) -> (u32, u32) {
        (self.range.first, self.range.first)
    }

    /// Does something with layers as the pod's users see them: `work` is told where they are meanwhile, below `at`.
    pub fn with_layers<T>(
        &self,
        layers: &Path,
        lowers: &[PathBuf],
        at: &Path,
        work: impl FnOnce(&[PathBuf]) -> io::Result<T>,
    ) -> io::Result<T> {
        let tree = detached::tree_of(&layers.canonicalize()?)?;
        detached::map_ids(tree.as_fd(), self.namespace.as_fd())?;
        std::fs::create_dir_all(at)?;
        detached::attach(tree.as_fd(), at)?;
        let moved = lowers.iter().map(|lower| match lower.strip_prefix(layers) {
            Ok(below) => Ok(at.join(below)),
            Err(_) => Err(io::Error::other(format!("{} is no layer", lower.display()))),
        });
        let done = moved.collect::<io::Result<Vec<_>>>().and_then(|moved| work(&moved));
        // What was made of them keeps them.
        mount::unmount(at)?;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(first: u32, length: u32) -> v1::NamespaceOption {
        let ids = vec![v1::IdMapping {
            host_id: first,
            container_id: 0,
            length,
        }];
        v1::NamespaceOption {
            pid: NamespaceMode::Container as i32,
            userns_options: Some(v1::UserNamespace {
                mode: NamespaceMode::Pod as i32,
                uids: ids.clone(),
                gids: ids,
            }),
            ..v1::NamespaceOption::default()
        }
    }

    #[test]
    fn only_ranges_beside_the_hosts_root_are_taken() {
        let (first, length) = (131_072, 65_536);
        assert_eq!(Range::of(&asked(first, length)), Ok(Some(Range { first, length })));
        assert_eq!(Range::of(&v1::NamespaceOption::default()), Ok(None));
        for (first, length) in [(0, 65_536), (65_536, 0), (u32::MAX - 65_535, 65_536), (u32::MAX, 2)] {
            assert!(Range::of(&asked(first, length)).is_err(), "{first} {length}");
        }
        let change = |change: fn(&mut v1::NamespaceOption, &mut v1::UserNamespace)| {
            let mut options = asked(first, length);
            let mut users = options.userns_options.take().unwrap();
            change(&mut options, &mut users);
            options.userns_options = Some(users);
            Range::of(&options)
        };
        assert!(change(|_, u| u.gids[0].host_id += 1).is_err());
        assert!(change(|_, u| u.uids[0].container_id = 1).is_err());
        assert!(change(|_, u| u.uids.clear()).is_err());
        assert!(change(|_, u| u.uids.push(v1::IdMapping::default())).is_err());
        assert!(change(|_, u| u.mode = NamespaceMode::Node as i32).is_err());
        assert!(change(|_, u| u.mode = NamespaceMode::Target as i32).is_err());
        assert!(change(|o, _| o.network = NamespaceMode::Node as i32).is_err());
        assert!(change(|o, _| o.pid = NamespaceMode::Node as i32).is_err());
        assert!(change(|o, _| o.ipc = NamespaceMode::Node as i32).is_err());
    }

    #[test]
    fn nobody_runs_as_somebody_who_is_not_in_the_pod() {
        let range = Range {
            first: 131_072,
            length: 65_536,
        };
        let user = |uid, gid, groups: &[u32]| User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: None,
        };
        assert_eq!(range.check(&user(65_535, 65_535, &[0, 65_535])), Ok(()));
        assert!(
            range
                .check(&user(65_536, 0, &[]))
                .unwrap_err()
                .starts_with("user 65536 ")
        );
        assert!(
            range
                .check(&user(0, 70_000, &[]))
                .unwrap_err()
                .starts_with("group 70000 ")
        );
        assert!(range.check(&user(0, 0, &[0, 65_536])).is_err());
        assert_eq!(
            (range.host(0), range.host(65_535), range.host(65_536)),
            (Some(131_072), Some(196_607), None)
        );
    }
}
