//! Mounts of the machine that were made shared because a container asks for mount propagation. Most systems have all of
//! theirs shared from the start (systemd sees to it); where they aren't, drivers in pods could mount nothing that others see.
//! What was changed is noted beside the pods, for whoever takes it back.

use crate::host::{Host, Layout};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

const NOTE: &str = "shared-mounts";

/// One line a mount, by any container of the node.
static ONE: Mutex<()> = Mutex::new(());

/// Makes the mount that a path is on shared, if it isn't. Where that fails the runtime refuses the container, and says why.
pub fn share(host: &dyn Host, layout: &Layout, path: &Path) {
    let _one = ONE.lock();
    let changed = match host.share(path) {
        Ok(Some(mount)) => mount,
        Ok(None) => return,
        Err(e) => {
            tracing::warn!(path = %path.display(), "a mount can't be made shared: {e}");
            return;
        }
    };
    tracing::info!(mount = %changed.display(), "made a mount shared, for containers that pass mounts on");
    let note = layout.root.join(NOTE);
    let mut all = read(host.read(&note, 1 << 20));
    all.insert(changed);
    let text: Vec<String> = all.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if let Err(e) = host.write(&note, text.join("\n").as_bytes(), 0o600) {
        tracing::warn!("it can't be noted that a mount was made shared: {e}");
    }
}

/// Makes the mounts private again that a kubelet with this directory made shared.
pub fn unshare(root: &Path) -> io::Result<()> {
    for mount in read(std::fs::read(root.join(NOTE))) {
        if keelson_sys::mount::is_mounted(&mount)? {
            keelson_sys::mount::set_shared(&mount, false)?;
        }
    }
    Ok(())
}

fn read(text: io::Result<Vec<u8>>) -> BTreeSet<PathBuf> {
    let text = text.unwrap_or_default();
    let lines = String::from_utf8_lossy(&text).into_owned();
    lines.lines().filter(|l| !l.is_empty()).map(PathBuf::from).collect()
}
