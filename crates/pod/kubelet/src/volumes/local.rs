//! Local persistent volumes: a directory or a block device of this machine that an administrator prepared.

use super::Tools;
use super::kind::{Ask, Failure, Group, Kind, Mounted, Stats};
use crate::host::FileKind;
use k8s_openapi::api::core::v1::LocalVolumeSource;
use std::path::Path;

pub struct Local;

const NAME: &str = "local-volume";

fn source(ask: &Ask) -> Option<&LocalVolumeSource> {
    ask.bound.as_ref()?.volume.spec.as_ref()?.local.as_ref()
}

/// Whether what is at the path can be the volume. Devices are given as devices: nothing here makes file systems on them.
fn fit(found: Option<FileKind>, block: bool, path: &str) -> Result<(), String> {
    match found {
        None => Err(format!("path \"{path}\" does not exist")),
        Some(FileKind::BlockDevice) if !block => Err(format!(
            "path \"{path}\" is a block device, which isn't formatted here: mount it and name the directory, or say volumeMode: Block"
        )),
        Some(_) => Ok(()),
    }
}

#[tonic::async_trait]
impl Kind for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        source(ask).is_some()
    }

    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let Some(local) = source(ask) else {
            return Err(Failure::set_up("the volume has no local path"));
        };
        let path = Path::new(&local.path);
        fit(tools.host.kind(path)?, ask.is_block(), &local.path)?;
        // The directory itself, not a link to it: ownership is of the directory.
        let path = tools.host.resolve(path)?;
        Ok(Mounted {
            read_only: ask.bound.as_ref().is_some_and(|b| b.read_only),
            block: ask.is_block(),
            group: Group::ByPolicy,
            relabel: !ask.is_block() && !ask.bound.as_ref().is_some_and(|b| b.read_only),
            ..Mounted::at(NAME, ask, path)
        })
    }

    async fn stats(&self, tools: &Tools, mounted: &Mounted) -> Result<Option<Stats>, String> {
        match &mounted.path {
            Some(path) if !mounted.block => {
                let fs = tools.host.fs_stats(path).map_err(|e| e.to_string())?;
                Ok(Some(Stats {
                    fs,
                    used: fs.capacity.saturating_sub(fs.free),
                    inodes_used: fs.inodes.saturating_sub(fs.inodes_free),
                }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_no_directory() {
        let told = |found, block| fit(found, block, "/dev/sdx").map_err(|e| e.split(',').next().unwrap().to_owned());
        assert_eq!(told(Some(FileKind::Directory), false), Ok(()));
        assert_eq!(told(Some(FileKind::BlockDevice), true), Ok(()));
        assert_eq!(
            told(Some(FileKind::BlockDevice), false),
            Err("path \"/dev/sdx\" is a block device".into())
        );
        assert_eq!(told(None, true), Err("path \"/dev/sdx\" does not exist".into()));
    }
}
