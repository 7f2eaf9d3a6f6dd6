//! The pods of this node and their addresses, known here before the API tells of them.
//!
//! [`LocalPods`] is where the network and whoever judges packets meet: the network notes a pod before its link stands, the
//! judge answers when its rules for it are in force. A record on disk a sandbox, so that a new process knows them too.

use anyhow::Context;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// One sandbox with an address of this node's range.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LocalPod {
    pub sandbox: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The primary one.
    pub address: IpAddr,
    /// That of the other family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<IpAddr>,
}

impl LocalPod {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [self.address].into_iter().chain(self.second)
    }
}

/// All of them. Bounded by the node's range of addresses.
pub struct LocalPods {
    dir: PathBuf,
    pods: watch::Sender<BTreeMap<String, LocalPod>>,
    /// Sandboxes whose rules are in force; `None` while nobody judges.
    judged: watch::Sender<Option<BTreeSet<String>>>,
    writing: Mutex<()>,
}

impl LocalPods {
    pub fn open(dir: &Path) -> anyhow::Result<LocalPods> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut pods = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            // A record cut short by a crash belongs to a sandbox whose setup will be repeated or torn down.
            match serde_json::from_slice::<LocalPod>(&fs::read(&path)?) {
                Ok(pod) => drop(pods.insert(pod.sandbox.clone(), pod)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the record of a pod's addresses can't be read")
                }
            }
        }
        Ok(LocalPods {
            dir: dir.to_path_buf(),
            pods: watch::Sender::new(pods),
            judged: watch::Sender::new(None),
            writing: Mutex::new(()),
        })
    }

    pub(crate) fn put(&self, pod: LocalPod) -> anyhow::Result<()> {
        let _one_at_a_time = self.writing.lock();
        if self.pods.borrow().get(&pod.sandbox) == Some(&pod) {
            return Ok(());
        }
        fs::write(self.dir.join(&pod.sandbox), serde_json::to_vec(&pod)?).context("remember the pod")?;
        self.pods
            .send_modify(|pods| drop(pods.insert(pod.sandbox.clone(), pod)));
        Ok(())
    }

    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let _one_at_a_time = self.writing.lock();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !keep(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        self.pods.send_if_modified(|pods| {
            let before = pods.len();
            pods.retain(|sandbox, _| keep(sandbox));
            pods.len() != before
        });
        Ok(())
    }

    /// The pods now, and a notice of each change.
    pub fn follow(&self) -> watch::Receiver<BTreeMap<String, LocalPod>> {
        self.pods.subscribe()
    }

    /// Rules for exactly these sandboxes are in force. From the first call on, new pods wait for theirs.
    pub fn judged(&self, sandboxes: BTreeSet<String>) {
        self.judged.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&sandboxes);
            *now = Some(sandboxes);
            changed
        });
    }

    /// Waits until the pod's rules are in force, but no longer than `patience`: without them it is closed, not open.
    pub(crate) async fn wait(&self, sandbox: &str, patience: Duration) -> bool {
        let mut judged = self.judged.subscribe();
        let done = judged.wait_for(|j| j.as_ref().is_none_or(|set| set.contains(sandbox)));
        tokio::time::timeout(patience, done).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first release's own files, and one that nobody can read: the others are known.
    #[test]
    fn records_of_the_first_release_are_read() {
        let dir = std::env::temp_dir().join(format!("keelson-local-golden-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let first = include_str!("golden/pod.json");
        let later = first
            .replacen('{', r#"{"of_a_later_version": 1, "#, 1)
            .replace("024c", "124c");
        for (name, text) in [("first", first), ("later", later.as_str()), ("torn", "{\"sandbox\"")] {
            fs::write(dir.join(name), text).unwrap();
        }
        let pods = LocalPods::open(&dir).unwrap().pods.borrow().clone();
        fs::remove_dir_all(&dir).unwrap();
        let found: Vec<_> = pods
            .values()
            .map(|p| (p.name.as_str(), p.address.to_string(), p.second))
            .collect();
        assert_eq!(
            found,
            [
                ("web", "10.244.0.2".to_owned(), None),
                ("web", "10.244.0.2".to_owned(), None)
            ]
        );
        let ports: Vec<crate::PortMapping> = serde_json::from_str(include_str!("golden/ports.json")).unwrap();
        assert_eq!((ports[0].container_port, ports[0].host_port), (8080, 18080));
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_remembered_and_wait_only_for_a_judge() {
        let dir = std::env::temp_dir().join(format!("keelson-local-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let pods = LocalPods::open(&dir).unwrap();
        let pod = LocalPod {
            sandbox: "s".into(),
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            address: [10, 0, 0, 2].into(),
            second: Some("fd00::2".parse().unwrap()),
        };
        pods.put(pod.clone()).unwrap();
        let second = Duration::from_secs(1);
        assert!(pods.wait("s", second).await, "nobody judges");
        pods.judged(BTreeSet::new());
        assert!(!pods.wait("s", second).await);
        pods.judged(["s".to_string()].into());
        assert!(pods.wait("s", second).await);
        let again = LocalPods::open(&dir).unwrap();
        assert_eq!(again.follow().borrow().get("s"), Some(&pod));
        again.retain(|s| s != "s").unwrap();
        assert!(LocalPods::open(&dir).unwrap().follow().borrow().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
