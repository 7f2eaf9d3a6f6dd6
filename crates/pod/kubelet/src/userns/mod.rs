//! User namespaces: each pod that asks for one has a range of host ids that no other pod has. Which ids there are, the
//! machine says (`subids`); who has which is remembered beside each pod's data, as upstream's kubelet does it, so that a pod
//! keeps its range whatever becomes of the kubelet.

mod ranges;
mod subids;

use crate::config::Config;
use crate::host::{Host, Layout};
use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use ranges::Ranges;
use serde::{Deserialize, Serialize};

/// Ids are counted in units of as many; a pod has one by default.
pub const UNIT: u32 = 65_536;
/// In a pod's directory.
const FILE: &str = "userns";
/// More than any such file is.
const MAX_FILE: u64 = 4096;

/// A pod's mappings as upstream's kubelet keeps them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

pub struct UserNamespaces(Mutex<Ranges>);

impl UserNamespaces {
    /// Finds out which ids there are, and takes note of the pods that have some.
    pub fn new(host: &dyn Host, layout: &Layout, cfg: &Config) -> Result<UserNamespaces, String> {
        let ids = subids::of_kubelet(host, cfg.ids_per_pod).map_err(|e| format!("kubelet mappings: {e}"))?;
        let mut ranges = Ranges::new(ids, cfg.ids_per_pod, cfg.max_pods)?;
        let pods = host
            .list_dir(&layout.pods())
            .map_err(|e| format!("read pods from disk: {e}"))?;
        for uid in pods {
            let kept = read(host, layout, &uid).and_then(|kept| match kept {
                Some(range) => ranges.record(&uid, range),
                None => Ok(()),
            });
            // Whoever doesn't know what a pod has would give it to another.
            kept.map_err(|e| format!("record pod mappings for existing pod \"{uid}\": {e}"))?;
        }
        Ok(UserNamespaces(Mutex::new(ranges)))
    }

    /// The pod's mapping; `None` for a pod that runs as the host's users.
    pub fn mapping(&self, kl: &Kubelet, pod: &Pod) -> Result<Option<cri::UserNamespace>, String> {
        if !pods::wants_user_namespace(pod) {
            return Ok(None);
        }
        let handler = kl.runtime_handler(pod)?;
        if !kl.node.user_namespaces(&handler) {
            return Err(unsupported(&handler));
        }
        self.of(&*kl.host, &kl.layout, pods::uid(pod)).map(Some)
    }

    /// The mapping that a pod has, or gets now.
    fn of(&self, host: &dyn Host, layout: &Layout, uid: &str) -> Result<cri::UserNamespace, String> {
        let mut ranges = self.0.lock();
        let first = match ranges.of(uid) {
            Some(first) => first,
            None => match read(host, layout, uid).map_err(|e| format!("user namespace: {e}"))? {
                Some(range) => {
                    ranges.record(uid, range).map_err(|e| format!("user namespace: {e}"))?;
                    range.0
                }
                None => {
                    let made = ranges
                        .allocate(uid)
                        .and_then(|first| write(host, layout, uid, (first, ranges.per_pod())).map(|()| first));
                    if made.is_err() {
                        ranges.release(uid);
                    }
                    made.map_err(|e| format!("create user namespace: {e}"))?
                }
            },
        };
        let ids = vec![cri::IdMapping {
            host_id: first,
            container_id: 0,
            length: ranges.per_pod(),
        }];
        Ok(cri::UserNamespace {
            mode: cri::NamespaceMode::Pod as i32,
            uids: ids.clone(),
            gids: ids,
        })
    }

    /// For a pod of which nothing is left on this node: its directory has gone, or goes with this.
    pub fn release(&self, uid: &str) {
        self.0.lock().release(uid);
    }
}

fn unsupported(handler: &str) -> String {
    let who = match handler {
        "" => "runtime".to_owned(),
        name => format!("RuntimeClass handler \"{name}\""),
    };
    format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces")
}

/// The range that is written down for a pod.
fn read(host: &dyn Host, layout: &Layout, uid: &str) -> Result<Option<(u32, u32)>, String> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match host.read(&layout.pod(uid).join(FILE), MAX_FILE) {
        // What lies beside the pods' directories is no pod.
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => Ok(None),
        Err(e) => Err(e.to_string()),
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => parse(&bytes).map(Some),
    }
}

fn parse(bytes: &[u8]) -> Result<(u32, u32), String> {
    let kept: Kept = serde_json::from_slice(bytes).map_err(|e| format!("invalid user namespace mappings file: {e}"))?;
    let [one] = kept.uid_mappings.as_slice() else {
        return Err("invalid user namespace configuration: no more than one mapping allowed".into());
    };
    if kept.gid_mappings.as_slice() != std::slice::from_ref(one) {
        return Err("invalid user namespace configuration: GID and UID mapping should be identical".into());
    }
    match one.container_id {
        0 => Ok((one.host_id, one.length)),
        _ => Err("invalid user namespace configuration: UID 0 must be mapped".into()),
    }
}

fn write(host: &dyn Host, layout: &Layout, uid: &str, (host_id, length): (u32, u32)) -> Result<(), String> {
    let one = vec![Mapping {
        host_id,
        container_id: 0,
        length,
    }];
    let kept = Kept {
        uid_mappings: one.clone(),
        gid_mappings: one,
    };
    let json = serde_json::to_vec(&kept).map_err(|e| e.to_string())?;
    let dir = layout.pod(uid);
    host.make_dir(&dir, 0o750)
        .and_then(|()| host.write(&dir.join(FILE), &json, 0o600))
        .map_err(|e| format!("remembering the pod's user ids: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;
    use std::path::PathBuf;

    fn machine() -> (FakeHost, Layout) {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        let layout = Layout {
            root: PathBuf::from("/var/lib/kubelet"),
            logs: PathBuf::from("/var/log/pods"),
        };
        host.make_dir(&layout.pods(), 0o755).unwrap();
        (host, layout)
    }

    fn first(users: &UserNamespaces, host: &FakeHost, layout: &Layout, uid: &str) -> u32 {
        let mapping = users.of(host, layout, uid).unwrap();
        assert_eq!(mapping.uids, mapping.gids);
        assert_eq!((mapping.uids[0].container_id, mapping.uids[0].length), (0, UNIT));
        mapping.uids[0].host_id
    }

    #[test]
    fn a_pod_keeps_its_range_when_the_kubelet_starts_again() {
        let (host, layout) = machine();
        let cfg = Config::default();
        let users = UserNamespaces::new(&host, &layout, &cfg).unwrap();
        let (a, b) = (first(&users, &host, &layout, "a"), first(&users, &host, &layout, "b"));
        assert_ne!(a, b);
        assert_eq!(first(&users, &host, &layout, "a"), a);
        let again = UserNamespaces::new(&host, &layout, &cfg).unwrap();
        let c = first(&again, &host, &layout, "c");
        assert!(c != a && c != b);
        assert_eq!(first(&again, &host, &layout, "b"), b);
        assert_eq!(first(&again, &host, &layout, "a"), a);
        let file = host.read(&layout.pod("a").join(FILE), 4096).unwrap();
        let mapping = format!(r#"[{{"hostId":{a},"containerId":0,"length":65536}}]"#);
        let upstreams = format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#);
        assert_eq!(String::from_utf8(file).unwrap(), upstreams);
    }

    #[test]
    fn a_file_beside_the_pods_is_no_pod() {
        let root = std::env::temp_dir().join(format!("keelson-userns-{}", std::process::id()));
        let layout = Layout {
            root: root.clone(),
            logs: root.join("logs"),
        };
        std::fs::create_dir_all(layout.pods()).unwrap();
        std::fs::write(layout.pods().join("stray"), "").unwrap();
        let host = crate::host::real::RealHost::new();
        assert_eq!(read(&host, &layout, "stray"), Ok(None));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_is_written_down_and_cant_be_understood_stops_the_start() {
        let mapping = |host: u32, length: u32| format!(r#"[{{"hostId":{host},"containerId":0,"length":{length}}}]"#);
        let both = |uids: &str, gids: &str| format!(r#"{{"uidMappings":{uids},"gidMappings":{gids}}}"#);
        let (sound, other) = (mapping(131_072, 65_536), mapping(196_608, 65_536));
        for odd in [
            "5".to_owned(),
            both(&sound, &other),
            both("[]", "[]"),
            both(&mapping(131_073, 65_536), &mapping(131_073, 65_536)),
            both(&mapping(131_072, 70_000), &mapping(131_072, 70_000)),
            both(&mapping(0, 65_536), &mapping(0, 65_536)),
        ] {
            let (host, layout) = machine();
            host.make_dir(&layout.pod("a"), 0o750).unwrap();
            host.write(&layout.pod("a").join(FILE), odd.as_bytes(), 0o600).unwrap();
            let error = UserNamespaces::new(&host, &layout, &Config::default()).err();
            assert!(error.is_some_and(|e| e.contains("existing pod \"a\"")), "{odd}");
        }
        let (host, layout) = machine();
        for pod in ["a", "b"] {
            host.make_dir(&layout.pod(pod), 0o750).unwrap();
            host.write(&layout.pod(pod).join(FILE), both(&sound, &sound).as_bytes(), 0o600)
                .unwrap();
        }
        let error = UserNamespaces::new(&host, &layout, &Config::default()).err();
        assert!(error.is_some_and(|e| e.contains("already taken")));
    }
}
