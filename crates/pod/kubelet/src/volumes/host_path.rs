//! hostPath volumes: the path is used as it is, after its type has been checked. Its files are the host's: they are not
//! counted, and the pod's group is not given them.

use super::Tools;
use super::kind::{Ask, Failure, Kind, Mounted};
use crate::host::{FileKind, Host};
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::path::Path;

pub struct HostPath;

const NAME: &str = "host-path";

fn source(ask: &Ask) -> Option<&HostPathVolumeSource> {
    match &ask.bound {
        Some(b) => b.volume.spec.as_ref()?.host_path.as_ref(),
        None => ask.volume.host_path.as_ref(),
    }
}

#[tonic::async_trait]
impl Kind for HostPath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        source(ask).is_some()
    }

    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let Some(h) = source(ask) else {
            return Err(Failure::set_up("the volume has no hostPath"));
        };
        check(&*tools.host, &h.path, h.type_.as_deref().unwrap_or_default())?;
        Ok(Mounted {
            read_only: ask.bound.as_ref().is_some_and(|b| b.read_only),
            block: ask.is_block(),
            ..Mounted::at(NAME, ask, h.path.clone().into())
        })
    }
}

/// Checks (or makes) what the type asks for.
fn check(host: &dyn Host, path: &str, kind: &str) -> Result<(), String> {
    let at = Path::new(path);
    let found = host
        .kind(at)
        .map_err(|e| format!("hostPath type check failed: {path}: {e}"))?;
    let must = |want: FileKind, what: &str| {
        if found == Some(want) {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {path} is not {what}"))
        }
    };
    let make = |r: std::io::Result<()>| r.map_err(|e| format!("hostPath {path} can't be made: {e}"));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make(host.make_dir(at, 0o755)),
        "DirectoryOrCreate" | "Directory" => must(FileKind::Directory, "a directory"),
        "FileOrCreate" if found.is_none() => make(host.write_in_place(at, b"", 0o644)),
        "FileOrCreate" | "File" => must(FileKind::File, "a file"),
        "Socket" => must(FileKind::Socket, "a socket file"),
        "CharDevice" => must(FileKind::CharDevice, "a character device"),
        "BlockDevice" => must(FileKind::BlockDevice, "a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}
