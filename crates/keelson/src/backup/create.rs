//! Making a backup of a picture.

use super::picture::Picture;
use super::{Target, Turn};
use crate::{config, version};
use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use keelson_backup::manifest::{self, KEY_MOST, Key, Manifest, Writer};
use keelson_backup::repository::files::Sent;
use keelson_backup::repository::{Lock, Repository};
use keelson_client::{ApiObject, Objects, Rest};
use keelson_local::driver::NAME;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What was made.
pub struct Made {
    pub name: String,
    pub manifest: Manifest,
    pub sent: Sent,
    /// Of the schedule's, and pieces.
    pub given_up: (usize, u64),
}

/// Who makes it. Everything else is known to be there before a picture is taken.
pub struct Making<'a> {
    repository: Repository,
    lock: Lock,
    data_dir: &'a Path,
    /// Made by the schedule, which keeps so many.
    scheduled: Option<usize>,
}

impl<'a> Making<'a> {
    /// `turn` is over when its holder has heard what came of it.
    pub async fn begin(
        _turn: &Turn,
        target: &Target,
        data_dir: &'a Path,
        scheduled: Option<usize>,
    ) -> anyhow::Result<Making<'a>> {
        let repository = Repository::open_or_make(target.place()?, &target.secret()?).await?;
        let who = format!("process {} of {}", std::process::id(), config::host_name()?);
        let lock = repository.lock(&who).await?;
        Ok(Making {
            repository,
            lock,
            data_dir,
            scheduled,
        })
    }

    /// Of a picture, and what it lacks; or of neither.
    pub async fn finish(self, taken: anyhow::Result<(Picture, Vec<String>)>) -> anyhow::Result<Made> {
        let made = match taken {
            Ok((picture, lacking)) => self.keep(&picture, lacking).await,
            Err(error) => Err(error),
        };
        let released = self.lock.release().await;
        let made = made?;
        released.context("the note of who writes to the repository")?;
        Ok(made)
    }

    async fn keep(&self, picture: &Picture, lacking: Vec<String>) -> anyhow::Result<Made> {
        let mut made = self.write(&self.repository, picture, lacking).await?;
        if let Some(kept) = self.scheduled {
            let given_up = self.give_up(&made.name, kept).await;
            match given_up {
                Ok(given_up) => made.given_up = given_up,
                // This one is made all the same.
                Err(error) => tracing::error!(error = format!("{error:#}"), "old backups stay"),
            }
        }
        Ok(made)
    }

    /// The schedule's oldest: never the one just made, whatever the others say of when they were.
    async fn give_up(&self, made: &str, kept: usize) -> anyhow::Result<(usize, u64)> {
        let mut names = manifest::names(&self.repository).await?;
        names.retain(|name| name != made);
        let old = manifest::superfluous(&names, kept.saturating_sub(1));
        if old.is_empty() {
            return Ok((0, 0));
        }
        let pieces = manifest::give_up(&self.repository, &self.lock, &old).await?;
        Ok((old.len(), pieces))
    }

    async fn write(&self, repository: &Repository, picture: &Picture, lacking: Vec<String>) -> anyhow::Result<Made> {
        let writer = Writer::new(repository).await?;
        let store = writer.keep(&picture.store()).await?;
        let pki = self.keys(&writer).await?;
        let mut volumes = Vec::new();
        for pictured in &picture.volumes {
            let id = pictured.volume.id.clone();
            volumes.push(manifest::Volume {
                data: writer.keep(&picture.volume(&id)).await?,
                record: serde_json::to_value(&pictured.volume)?,
                at: pictured.at,
                id,
            });
        }
        let manifest = Manifest {
            at: picture.at,
            keelson: version::VERSION.into(),
            kubernetes: config::KUBERNETES_VERSION.into(),
            node: picture.node.clone(),
            revision: picture.revision,
            keys: picture.keys,
            scheduled: self.scheduled.is_some(),
            store,
            pki,
            volumes,
            one_moment: picture.one_moment,
            lacking,
        };
        // Pieces that were there at the beginning are there still.
        self.lock.held().await?;
        let (name, sent) = writer.finish(&manifest).await?;
        let given_up = (0, 0);
        Ok(Made {
            name,
            manifest,
            sent,
            given_up,
        })
    }

    /// The cluster's keys: all files of their directory, and of directories in it.
    async fn keys(&self, writer: &Writer<'_>) -> anyhow::Result<Vec<Key>> {
        let pki = self.data_dir.join("pki");
        let (mut keys, mut left) = (Vec::new(), vec![pki.clone()]);
        while let Some(dir) = left.pop() {
            let entries =
                std::fs::read_dir(&dir).with_context(|| format!("the cluster's keys in {}", dir.display()))?;
            for entry in entries {
                let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.path().symlink_metadata()?)))?;
                if metadata.is_dir() {
                    left.push(path);
                } else if metadata.is_file() {
                    ensure!(metadata.len() <= KEY_MOST, "{} is no key", path.display());
                    let below = path.strip_prefix(&pki)?.to_str();
                    keys.push(Key {
                        path: below.with_context(|| format!("{}", path.display()))?.into(),
                        mode: metadata.permissions().mode() & 0o777,
                        content: writer.keep(&path).await?,
                    });
                }
            }
        }
        keys.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(keys)
    }
}

/// Volumes that the cluster has and the picture hasn't.
pub async fn lacking(rest: &Rest, picture: &Picture) -> anyhow::Result<Vec<String>> {
    let volumes = Objects::<PersistentVolume>::new(rest).list("", "", "").await?;
    let ours: BTreeSet<&str> = picture.volumes.iter().map(|p| p.volume.id.as_str()).collect();
    Ok(volumes.iter().filter_map(|volume| lacks(volume, &ours)).collect())
}

fn lacks(volume: &PersistentVolume, ours: &BTreeSet<&str>) -> Option<String> {
    let name = volume.name();
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    match csi {
        Some(csi) if csi.driver == NAME && ours.contains(csi.volume_handle.as_str()) => None,
        Some(csi) if csi.driver == NAME => Some(format!("{name}: on another node's disk")),
        Some(csi) => Some(format!("{name}: of the driver {}", csi.driver)),
        None => Some(format!("{name}: of no driver")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_that_arent_here_are_named() {
        let volume = |csi: &str| {
            serde_json::from_str::<PersistentVolume>(&format!(r#"{{"metadata":{{"name":"pv"}},"spec":{{{csi}}}}}"#))
                .unwrap()
        };
        let ours = BTreeSet::from(["vol-1"]);
        for (csi, lacking) in [
            (r#""csi":{"driver":"local.keelson.dev","volumeHandle":"vol-1"}"#, None),
            (
                r#""csi":{"driver":"local.keelson.dev","volumeHandle":"vol-2"}"#,
                Some("pv: on another node's disk"),
            ),
            (
                r#""csi":{"driver":"ebs.csi.aws.com","volumeHandle":"vol-1"}"#,
                Some("pv: of the driver ebs.csi.aws.com"),
            ),
            (r#""hostPath":{"path":"/a"}"#, Some("pv: of no driver")),
        ] {
            assert_eq!(lacks(&volume(csi), &ours).as_deref(), lacking, "{csi}");
        }
    }
}
