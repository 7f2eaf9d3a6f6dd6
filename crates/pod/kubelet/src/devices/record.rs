//! What is on disk: which devices a pod has, in the pod's directory, and which resources have had a plug-in, beside the pods'.

use super::ledger::{Ledger, OfPod};
use crate::host::{Host, Layout};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use tokio::time::Instant;

/// More than any pod's devices need.
const LONGEST: u64 = 4 << 20;

fn of_pod(layout: &Layout, uid: &str) -> PathBuf {
    layout.pod(uid).join("devices.json")
}

fn resources(layout: &Layout) -> PathBuf {
    layout.root.join("device-resources.json")
}

pub fn save(host: &dyn Host, layout: &Layout, uid: &str, has: &OfPod) -> io::Result<()> {
    let text = serde_json::to_vec(has)?;
    if text.len() as u64 > LONGEST {
        // It could not be read back.
        return Err(io::Error::other(format!("they take more than {LONGEST} bytes")));
    }
    host.make_dir(&layout.pod(uid), 0o750)?;
    host.write(&of_pod(layout, uid), &text, 0o600)
}

/// Notes the resources that have a plug-in: after a restart new pods that want them are refused until it is back, rather than
/// started without.
pub fn note(host: &dyn Host, layout: &Layout, names: &BTreeSet<String>) {
    let written = serde_json::to_vec(names)
        .map_err(io::Error::other)
        .and_then(|text| host.write(&resources(layout), &text, 0o600));
    if let Err(e) = written {
        tracing::warn!("which resources have device plug-ins can't be noted: {e}");
    }
}

/// What an earlier kubelet wrote down. Who doesn't know which pods there are would give what they have to others.
pub fn restore(host: &dyn Host, layout: &Layout) -> Result<Ledger, String> {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let read = |path: &PathBuf| match host.read(path, LONGEST) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    };
    let names = read(&resources(layout)).and_then(|text| match text {
        Some(text) => serde_json::from_slice::<BTreeSet<String>>(&text).map_err(Into::into),
        None => Ok(BTreeSet::new()),
    });
    match names {
        Ok(names) => names.iter().for_each(|name| ledger.expect(name, now)),
        Err(e) => {
            tracing::error!("which resources had device plug-ins can't be read; they are known when they register: {e}")
        }
    }
    let pods = match host.list_dir(&layout.pods()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|e| format!("read which pods may have devices: {e}"))?,
    };
    for uid in pods {
        let found = read(&of_pod(layout, &uid)).and_then(|text| {
            let parse = |text: Vec<u8>| serde_json::from_slice::<OfPod>(&text).map_err(io::Error::from);
            text.map(parse).transpose()
        });
        match found {
            Ok(None) => {}
            Ok(Some(has)) => ledger.restore(&uid, Some(has)),
            Err(e) => {
                tracing::error!(
                    uid,
                    "which devices a pod has can't be read; no others are given until it has gone: {e}"
                );
                ledger.restore(&uid, None);
            }
        }
    }
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Comes, Grant};
    use super::*;
    use crate::host::fake::FakeHost;
    use std::collections::BTreeMap;

    fn having(value: String) -> OfPod {
        let comes = Comes {
            env: BTreeMap::from([("A".to_owned(), value)]),
            ..Comes::default()
        };
        let grant = Grant {
            ids: ["a".to_owned()].into(),
            comes: Some(comes),
            ..Grant::default()
        };
        let of_container = BTreeMap::from([("r".to_owned(), grant)]);
        BTreeMap::from([("c".to_owned(), of_container)])
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_can_be_read_and_what_cannot_be_read_is_not_nothing() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        let layout = Layout {
            root: "/k".into(),
            logs: "/l".into(),
        };
        assert!(restore(&host, &layout).is_ok_and(|l| l.of_pod("u").is_none()));
        let small = having("1".into());
        save(&host, &layout, "u", &small).unwrap();
        let large = having("x".repeat(LONGEST as usize));
        assert!(save(&host, &layout, "u", &large).is_err());
        assert!(restore(&host, &layout).is_ok_and(|l| l.of_pod("u") == Some(&small)));
        host.spoil(&layout.pods(), true);
        assert!(restore(&host, &layout).is_err());
    }
}
