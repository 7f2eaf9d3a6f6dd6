//! What volumes a pod has left on disk, told by the disk alone: the same whether this kubelet made them or one before it.

use super::kind::Remains;
use crate::host::{Host, Layout};
use std::io;

const PREFIX: &str = "kubernetes.io~";

/// The pod's volumes by their kind's name.
pub fn find(host: &dyn Host, layout: &Layout, uid: &str) -> io::Result<Vec<(String, Remains)>> {
    let mut found = Vec::new();
    for (place, block) in [(layout.volumes(uid), false), (layout.volume_devices(uid), true)] {
        for plugin in list(host, &place)? {
            let Some(kind) = plugin.strip_prefix(PREFIX) else {
                continue;
            };
            let kinds = place.join(&plugin);
            for name in list(host, &kinds)? {
                let remains = Remains {
                    uid: uid.to_owned(),
                    dir: kinds.join(&name),
                    name,
                    block,
                };
                found.push((kind.to_owned(), remains));
            }
        }
    }
    Ok(found)
}

fn list(host: &dyn Host, dir: &std::path::Path) -> io::Result<Vec<String>> {
    match host.list_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        other => other,
    }
}
