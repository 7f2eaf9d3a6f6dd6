//! Takes back everything that a runtime with some configuration has done to this machine, whether it ended well or not.
//! What there is to take back is read from its directories and from the kernel, never from memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use keelson_network::PodNetwork;
use keelson_sys::cgroup::Cgroups;
use keelson_sys::process;

use crate::config::Config;
use crate::records::{self, ContainerRecord};
use crate::runtime::remove_with_mounts;
use crate::shim::{self, Shim};

/// How long processes may take to go after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found and taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub sandboxes: usize,
    pub containers: usize,
}

/// Ends all pods and removes all that the runtime keeps. No server may be running on the same directories.
pub async fn uninstall(config: &Config, network: &dyn PodNetwork) -> anyhow::Result<Removed> {
    let mut removed = Removed::default();
    let states = config.state.join("sandboxes");
    for id in names(&states)? {
        Shim::new(states.join(&id))
            .shutdown()
            .await
            .with_context(|| format!("cannot end the shim of {id}"))?;
        network
            .teardown(&id)
            .await
            .with_context(|| format!("cannot take back the network of {id}"))?;
        removed.sandboxes += 1;
    }
    end_shims(&states).await?;
    let cgroups = Cgroups::detect()?;
    let (containers, _) = records::load::<ContainerRecord>(&config.root)?;
    for container in &containers {
        if cgroups.exists(&container.cgroup) {
            cgroups
                .kill(&container.cgroup)
                .with_context(|| format!("cannot kill container {}", container.id))?;
            cgroups.remove(&container.cgroup)?;
        }
        removed.containers += 1;
    }
    network.gc(&[]).await.context("cannot take back the network")?;
    for dir in [&config.state, &config.root] {
        remove_with_mounts(dir)?;
    }
    Ok(removed)
}

/// Shims that no longer answer; they are known by the directory that they were started with.
async fn end_shims(states: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = shim::running(states)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("shims outlive SIGKILL: {left:?}");
        }
        // Those that were asked are given a moment to end by themselves.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if Instant::now() + PATIENCE > deadline + Duration::from_secs(2) {
            for pid in shim::running(states)? {
                match process::kill(pid, nix::libc::SIGKILL) {
                    Err(e) if e.raw_os_error() != Some(nix::libc::ESRCH) => return Err(e.into()),
                    _ => {}
                }
            }
        }
    }
}

fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect(),
    }
}
