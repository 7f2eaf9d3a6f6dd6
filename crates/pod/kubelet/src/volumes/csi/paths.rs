//! Where CSI volumes are on disk, and by which names they are known: upstream's, to the letter. Drivers are written for
//! them, and a node may have been another kubelet's before.

use crate::host::Layout;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

pub const NAME: &str = "csi";
pub const DATA: &str = "vol_data.json";

fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// The handle of a volume that a pod brings itself.
pub fn inline_handle(uid: &str, volume: &str) -> String {
    format!("csi-{}", hash(&format!("{uid}{volume}")))
}

/// The name of the object that attaches a volume to a node.
pub fn attachment(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hash(&format!("{handle}{driver}{node}")))
}

/// What a volume is called in a node's status.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The directory of all that is kept of CSI volumes beside the pods'.
pub fn root(layout: &Layout) -> PathBuf {
    layout.root.join("plugins/kubernetes.io/csi")
}

/// What is kept of a volume that is staged: its data lie in here, it is staged in `globalmount`.
pub fn device(layout: &Layout, driver: &str, handle: &str) -> PathBuf {
    root(layout).join(driver).join(hash(handle))
}

pub fn staged(device: &Path) -> PathBuf {
    device.join("globalmount")
}

/// A volume's directory in a pod's.
pub fn of_pod(layout: &Layout, uid: &str, name: &str) -> PathBuf {
    layout.volume(uid, NAME, name)
}

pub fn published(of_pod: &Path) -> PathBuf {
    of_pod.join("mount")
}

fn block(layout: &Layout) -> PathBuf {
    root(layout).join("volumeDevices")
}

/// Where the data of a block volume lie.
pub fn block_data(layout: &Layout, name: &str) -> PathBuf {
    block(layout).join(name).join("data")
}

pub fn block_dir(layout: &Layout, name: &str) -> PathBuf {
    block(layout).join(name)
}

pub fn block_staged(layout: &Layout, name: &str) -> PathBuf {
    block(layout).join("staging").join(name)
}

/// Where each pod that has the volume has it.
pub fn block_published_dir(layout: &Layout, name: &str) -> PathBuf {
    block(layout).join("publish").join(name)
}

pub fn block_published(layout: &Layout, name: &str, uid: &str) -> PathBuf {
    block_published_dir(layout, name).join(uid)
}

/// The link to a block volume in the pod's directory.
pub fn block_link(layout: &Layout, uid: &str, name: &str) -> PathBuf {
    layout.volume_devices(uid).join("kubernetes.io~csi").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let layout = Layout {
            root: "/var/lib/kubelet".into(),
            logs: "/logs".into(),
        };
        // sha256("h"), as upstream's kubelet makes it.
        let device = device(&layout, "d.example", "h");
        assert_eq!(
            staged(&device),
            Path::new(
                "/var/lib/kubelet/plugins/kubernetes.io/csi/d.example/\
                 aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123/globalmount"
            )
        );
        assert_eq!(
            published(&of_pod(&layout, "u", "pv")),
            Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pv/mount")
        );
        assert_eq!(unique_name("d", "h"), "kubernetes.io/csi/d^h");
        assert_eq!(attachment("h", "", ""), inline_handle("h", ""));
    }
}
