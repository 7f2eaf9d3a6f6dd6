//! On which disks a node keeps what pods take: its own directory (volumes and logs), images, and what containers write into
//! their own layers. The runtime says where the latter two are, so with another disk below its directories each is measured,
//! guarded and cleared by itself.

use crate::host::{FsStats, Host};
use crate::kubelet::Kubelet;
use keelson_cri::v1 as cri;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A disk, by what is on it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disk {
    /// The kubelet's directory.
    Node,
    Images,
    Layers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks {
    /// Where images are: with the node's directory, or on a disk of theirs.
    pub images: Disk,
    /// Where containers write.
    pub layers: Disk,
    images_at: PathBuf,
    layers_at: PathBuf,
}

impl Disks {
    /// One for everything.
    pub fn one() -> Disks {
        Disks {
            images: Disk::Node,
            layers: Disk::Node,
            images_at: PathBuf::new(),
            layers_at: PathBuf::new(),
        }
    }

    /// As a runtime tells it. Of several the first counts; a runtime that says nothing of layers has them with the images.
    pub fn of(host: &dyn Host, root: &Path, told: &cri::ImageFsInfoResponse) -> io::Result<Disks> {
        let place = |all: &[cri::FilesystemUsage]| {
            let id = all.first().and_then(|f| f.fs_id.as_ref())?;
            Some(PathBuf::from(&id.mountpoint)).filter(|p| p.is_absolute())
        };
        let Some(images_at) = place(&told.image_filesystems) else {
            return Ok(Disks::one());
        };
        let layers_at = place(&told.container_filesystems).unwrap_or_else(|| images_at.clone());
        let images = match host.same_disk(root, &images_at)? {
            true => Disk::Node,
            false => Disk::Images,
        };
        let layers = if host.same_disk(root, &layers_at)? {
            Disk::Node
        } else if host.same_disk(&images_at, &layers_at)? {
            images
        } else {
            Disk::Layers
        };
        Ok(Disks {
            images,
            layers,
            images_at,
            layers_at,
        })
    }

    /// Whether everything is on one.
    pub fn is_one(&self) -> bool {
        (self.images, self.layers) == (Disk::Node, Disk::Node)
    }

    /// How full a disk is.
    pub fn measure(&self, host: &dyn Host, root: &Path, disk: Disk) -> io::Result<FsStats> {
        host.fs_stats(match disk {
            Disk::Node => root,
            Disk::Images => &self.images_at,
            Disk::Layers => &self.layers_at,
        })
    }
}

/// Until it is known.
static ONE: LazyLock<Disks> = LazyLock::new(Disks::one);

impl Kubelet {
    /// The node's disks as far as they are known: for who can't wait for a runtime.
    pub fn disks_now(&self) -> &Disks {
        self.known_disks.get().unwrap_or(&*ONE)
    }

    /// The node's disks. Where they can't be told yet they are taken for one, and asked for again.
    pub async fn disks(&self) -> &Disks {
        let found = self.known_disks.get_or_try_init(|| async {
            let request = cri::ImageFsInfoRequest {};
            let told = self.cri.image.clone().image_fs_info(request).await;
            let told = told.map_err(|e| crate::rpc_text(&e))?.into_inner();
            let (host, root) = (self.host.clone(), self.layout.root.clone());
            let found = tokio::task::spawn_blocking(move || Disks::of(&*host, &root, &told));
            let found = found.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            if !found.is_one() {
                tracing::info!(disks = ?found, "images or containers have a disk of their own");
            }
            Ok::<_, String>(found)
        });
        found.await.unwrap_or_else(|e| {
            tracing::warn!(
                "where the runtime keeps images isn't known, so they are taken to be on the node's own disk: {e}"
            );
            &*ONE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    fn told(images: &str, containers: &str) -> cri::ImageFsInfoResponse {
        let at = |path: &str| match path {
            "" => Vec::new(),
            path => vec![cri::FilesystemUsage {
                fs_id: Some(cri::FilesystemIdentifier {
                    mountpoint: path.into(),
                }),
                ..Default::default()
            }],
        };
        cri::ImageFsInfoResponse {
            image_filesystems: at(images),
            container_filesystems: at(containers),
        }
    }

    #[test]
    fn disks_are_told_apart() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        host.add_disk("/images", || FakeHost::disk_with(20));
        host.add_disk("/layers", || FakeHost::disk_with(30));
        let root = Path::new("/var/lib/kubelet");
        for (images, containers, want) in [
            ("", "", (Disk::Node, Disk::Node)),
            ("/var/lib/images", "", (Disk::Node, Disk::Node)),
            ("/images", "", (Disk::Images, Disk::Images)),
            ("/images/layers", "/images/containers", (Disk::Images, Disk::Images)),
            ("/images", "/var/lib/containers", (Disk::Images, Disk::Node)),
            ("/images", "/layers", (Disk::Images, Disk::Layers)),
            ("/var/lib/images", "/layers", (Disk::Node, Disk::Layers)),
        ] {
            let disks = Disks::of(&host, root, &told(images, containers)).unwrap();
            assert_eq!((disks.images, disks.layers), want, "{images} {containers}");
        }
        let disks = Disks::of(&host, root, &told("/images", "/layers")).unwrap();
        let free =
            [Disk::Node, Disk::Images, Disk::Layers].map(|d| disks.measure(&host, root, d).unwrap().available >> 30);
        assert_eq!(free, [80, 20, 30]);
    }
}
