//! NFS volumes: a directory of a server, mounted for each pod. mount(8) and its helper (nfs-utils) choose the version and talk to the server.

use super::Tools;
use super::kind::{Ask, Failure, Kind, Mounted, Remains, Stats};
use k8s_openapi::api::core::v1::NFSVolumeSource;
use tokio::sync::Semaphore;

pub struct Nfs;

/// Threads that may wait for servers at a time, which may be gone: to mount for two minutes, to measure for ever. The program has few,
/// for everything that waits.
static MOUNTING: Semaphore = Semaphore::const_new(8);
static MEASURING: Semaphore = Semaphore::const_new(8);

const NAME: &str = "nfs";
/// Mount options as they were once written.
const OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// The directory, and the options for it.
fn source(ask: &Ask) -> Option<(NFSVolumeSource, Vec<String>)> {
    let Some(bound) = &ask.bound else {
        return ask.volume.nfs.clone().map(|nfs| (nfs, Vec::new()));
    };
    let spec = bound.volume.spec.as_ref()?;
    let mut nfs = spec.nfs.clone()?;
    if bound.read_only {
        nfs.read_only = Some(true);
    }
    let old = bound.volume.metadata.annotations.as_ref().and_then(|a| a.get(OPTIONS));
    let options = match old {
        Some(old) => old.split(',').map(str::to_owned).collect(),
        None => spec.mount_options.clone().unwrap_or_default(),
    };
    Some((nfs, options))
}

fn is_read_only(nfs: &NFSVolumeSource) -> bool {
    nfs.read_only == Some(true)
}

/// Each option once, in order.
fn options(nfs: &NFSVolumeSource, given: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let read_only = is_read_only(nfs).then(|| "ro".to_owned());
    for option in read_only.into_iter().chain(given).filter(|o| !o.is_empty()) {
        if !all.contains(&option) {
            all.push(option);
        }
    }
    all
}

/// As mount(8) reads it.
fn remote(nfs: &NFSVolumeSource) -> String {
    match nfs.server.contains(':') && !nfs.server.starts_with('[') {
        true => format!("[{}]:{}", nfs.server, nfs.path),
        false => format!("{}:{}", nfs.server, nfs.path),
    }
}

#[tonic::async_trait]
impl Kind for Nfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        source(ask).is_some() && !ask.is_block()
    }

    async fn mount(&self, tools: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        let Some((nfs, given)) = source(ask) else {
            return Err(Failure::set_up("the volume has no NFS source"));
        };
        let path = tools.layout.volume(ask.uid(), NAME, ask.name());
        if !tools.host.is_mounted(&path)? {
            tools.host.make_dir(&path, 0o750)?;
            let (remote, options, target) = (remote(&nfs), options(&nfs, given), path.clone());
            let place = MOUNTING.acquire().await.map_err(std::io::Error::other)?;
            tools
                .blocking(move |host| {
                    let _held = place;
                    host.mount_by_program(NAME, &remote, &target, &options)
                })
                .await?;
        }
        Ok(Mounted {
            read_only: is_read_only(&nfs),
            ..Mounted::at(NAME, ask, path)
        })
    }

    async fn unmount(&self, tools: &Tools, remains: &Remains) -> Result<(), String> {
        let dir = remains.dir.clone();
        // A server that is gone may not hold the pod up: what is busy goes when its last user does.
        let done = tools
            .blocking(move |host| {
                host.unmount(&dir)?;
                host.remove_dir(&dir)
            })
            .await;
        done.map_err(|e| e.to_string())
    }

    async fn stats(&self, tools: &Tools, mounted: &Mounted) -> Result<Option<Stats>, String> {
        let Some(path) = mounted.path.clone() else {
            return Ok(None);
        };
        // Not measured this time.
        let Ok(place) = MEASURING.try_acquire() else {
            return Ok(None);
        };
        let fs = tools
            .blocking(move |host| {
                let _held = place;
                host.fs_stats(&path)
            })
            .await;
        let fs = fs.map_err(|e| e.to_string())?;
        Ok(Some(Stats {
            fs,
            used: fs.capacity.saturating_sub(fs.free),
            inodes_used: fs.inodes.saturating_sub(fs.inodes_free),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mount_is_told() {
        let nfs = |server: &str, read_only: bool| NFSVolumeSource {
            server: server.into(),
            path: "/export".into(),
            read_only: read_only.then_some(true),
        };
        assert_eq!(remote(&nfs("fd00::1", false)), "[fd00::1]:/export");
        assert_eq!(remote(&nfs("files.example", false)), "files.example:/export");
        let given = || vec!["nfsvers=4.1".to_owned(), "ro".to_owned(), String::new()];
        assert_eq!(options(&nfs("a", true), given()), ["ro", "nfsvers=4.1"]);
        assert_eq!(options(&nfs("a", false), Vec::new()), [""; 0]);
    }
}
