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
    host.make_dir(&layout.pod(uid), 0o750)?;
    host.write(&of_pod(layout, uid), &text, 0o600)
}

/// Notes the resources that have a plug-in: after a restart pods that want them wait for it.
pub fn note(host: &dyn Host, layout: &Layout, names: &BTreeSet<String>) {
    let written = serde_json::to_vec(names)
        .map_err(io::Error::other)
        .and_then(|text| host.write(&resources(layout), &text, 0o600));
    if let Err(e) = written {
        tracing::warn!("which resources have device plug-ins can't be noted: {e}");
    }
}

/// What an earlier kubelet wrote down.
pub fn restore(host: &dyn Host, layout: &Layout) -> Ledger {
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
    for uid in host.list_dir(&layout.pods()).unwrap_or_default() {
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
    ledger
}
