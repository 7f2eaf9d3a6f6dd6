//! `keelson uninstall`: stops the pods of a data directory and takes back what was changed on the machine: shims,
//! control groups, links, nftables tables, mounts, what `install` put there, and the directory itself.

use crate::client::block_on;
use crate::config::{self, Options as ServerOptions};
use crate::install::{Host, Installed, Record};
use crate::lock::Lock;
use anyhow::{Context, bail};
use clap::Args;
use keelson_network::cni::{Directories, Plugins};
use keelson_network::{HostOnly, PodNetwork, Routed};
use keelson_sys::mount;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a running server may take to stop.
const STOPPING: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// Data directory of the cluster to remove [default: that of the service that is installed, or /var/lib/keelson]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// cgroup below which the cluster lives, where the server was given one [default: what the service's configuration says]
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let host = Host::at("/".into());
    let given = options.data_dir.map(config::absolute).transpose()?;
    let installed = match (Installed::find(&host), &given) {
        // Who says where it is doesn't need a configuration that can be read.
        (Err(_), Some(_)) => None,
        (found, _) => found?,
    };
    let (data_dir, installed) = which(given, installed);
    if !data_dir.exists() {
        println!("{} does not exist: nothing to remove", data_dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let record = Record::read(&data_dir)?;
    let is_one = record.is_some();
    let (record, cgroup_root) = match installed {
        Service::Its(cgroup_root) => (record, options.cgroup_root.or(cgroup_root)),
        Service::None => (record, options.cgroup_root),
        // It was this directory's before.
        Service::Another => (None, options.cgroup_root),
    };
    if !is_one && !data_dir.join("pki").exists() && !data_dir.join(crate::lock::NAME).exists() {
        bail!(
            "{} does not look like a data directory of Keelson (no pki, no {})",
            data_dir.display(),
            crate::lock::NAME
        );
    }
    if !options.yes && !confirmed(&data_dir)? {
        bail!("not confirmed");
    }
    if let Some(record) = &record {
        record.stop(&host)?;
    }
    stop_server(&data_dir, &host)?;
    let lock = Lock::take(&data_dir)?;
    let server = ServerOptions {
        data_dir: Some(data_dir.clone()),
        cgroup_root,
        // Neither name nor address matters for what is removed.
        node_name: Some("none".into()),
        node_ip: Some(vec!["127.0.0.1".into()]),
        ..ServerOptions::default()
    };
    let config = server.resolve()?;
    block_on(async {
        // The others count it as a member that is away: who doesn't want that has it leave before (keelson etcd leave).
        crate::etcd::program::end(&data_dir).await?;
        let network_dir = config.network_dir();
        let settings = crate::node::network_config(&config, 0);
        let network: Box<dyn PodNetwork> = if Plugins::were_used(&network_dir) {
            Box::new(Plugins::new(settings, Directories::default())?)
        } else if network_dir.exists() {
            Box::new(Routed::new(settings)?)
        } else {
            Box::new(HostOnly)
        };
        let removed = keelson_runtime::uninstall(&crate::node::runtime_config(&config), network.as_ref()).await?;
        println!(
            "ended {} pods with {} containers",
            removed.sandboxes, removed.containers
        );
        keelson_network::underlay::remove()
            .await
            .context("the ways to other nodes")
    })?;
    keelson_proxy::remove().context("the proxy's rules")?;
    keelson_proxy::limits::restore(&keelson_proxy::limits::Real, &config.limits_note())
        .context("what the connection table had before")?;
    keelson_policy::remove().context("the rules of network policies")?;
    keelson_network::remove(&config.network_dir()).context("what the pod network changed on this machine")?;
    let cgroups = keelson_sys::cgroup::Cgroups::detect().context("this machine's control groups")?;
    if cgroups.exists(&config.cgroup_root) {
        cgroups.kill(&config.cgroup_root)?;
        cgroups
            .remove(&config.cgroup_root)
            .with_context(|| format!("cannot remove the control group {}", config.cgroup_root))?;
    }
    crate::kubelet_link::remove(&data_dir)?;
    keelson_kubelet::unshare(&data_dir.join("kubelet")).context("mounts that were made shared")?;
    let settings = std::path::Path::new(keelson_kubelet::shutdown::settings::DIRECTORY);
    keelson_kubelet::shutdown::settings::take_back(settings).context("settings of logind")?;
    // Volumes of pods that were mounted below the directory.
    for path in mount::below(&data_dir)? {
        mount::unmount(&path).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    keelson_sys::block::detach_below(&data_dir).context("devices of volumes")?;
    drop(lock);
    if let Some(record) = &record {
        record.remove_files(&host)?;
    }
    keelson_sys::tree::remove(&data_dir).with_context(|| format!("cannot remove {}", data_dir.display()))?;
    if let Some(record) = &record {
        record.remove_program(&host)?;
        println!("removed the service and its files");
    }
    println!("removed {}", data_dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Whose the service is that is installed here.
#[derive(Debug, PartialEq, Eq)]
enum Service {
    None,
    /// The directory's; with its cgroup, if that was given.
    Its(Option<String>),
    /// Another directory's.
    Another,
}

fn which(given: Option<PathBuf>, installed: Option<Installed>) -> (PathBuf, Service) {
    match (given, installed) {
        (None, None) => (config::DEFAULT_DATA_DIR.into(), Service::None),
        (Some(given), None) => (given, Service::None),
        (Some(given), Some(installed)) if given != installed.data_dir => (given, Service::Another),
        (_, Some(installed)) => (installed.data_dir, Service::Its(installed.cgroup_root)),
    }
}

fn confirmed(data_dir: &Path) -> anyhow::Result<bool> {
    print!(
        "This ends all pods of {} and deletes it with all its data. Type yes to go on: ",
        data_dir.display()
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Asks the server of this directory to stop, if one holds it.
fn stop_server(data_dir: &Path, host: &Host) -> anyhow::Result<()> {
    let Some(pid) = Lock::holder(data_dir)? else {
        return Ok(());
    };
    if let Some(unit) = unit_of(pid, host) {
        println!("stopping {unit}, which does not start again");
        host.done(&["systemctl", "disable", "--now", &unit].map(String::from))?;
        return Lock::wait(data_dir, STOPPING);
    }
    println!("stopping the server (process {pid})");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
        .with_context(|| format!("cannot stop process {pid}"))?;
    Lock::wait(data_dir, STOPPING)
}

/// The unit of systemd, such as a package's, whose main process this is: it would start it again.
fn unit_of(pid: i32, host: &Host) -> Option<String> {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unit = unit_in(&cgroup)?.to_owned();
    let main = host
        .ask(&["systemctl", "show", "--property=MainPID", "--value", &unit])
        .ok()?;
    (String::from_utf8_lossy(&main.stdout).trim() == pid.to_string()).then_some(unit)
}

fn unit_in(cgroup: &str) -> Option<&str> {
    let mut named = cgroup
        .lines()
        .filter_map(|line| Some(line.split_once(":/system.slice/")?.1));
    named.find(|unit| unit.ends_with(".service") && !unit.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_by_its_control_group() {
        assert_eq!(unit_in("0::/system.slice/keelson.service\n"), Some("keelson.service"));
        let hybrid = "2:cpu:/system.slice/k.service\n1:name=systemd:/system.slice/k.service\n";
        assert_eq!(unit_in(hybrid), Some("k.service"));
        assert_eq!(unit_in("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(unit_in("0::/\n"), None);
    }

    #[test]
    fn the_cluster_is_where_the_service_has_it() {
        let installed = |dir: &str| {
            Some(Installed {
                role: crate::install::Role::Server,
                config: "/etc/keelson/config.yaml".into(),
                service: String::new(),
                program: None,
                data_dir: dir.into(),
                cgroup_root: Some("/k".into()),
            })
        };
        let its = || Service::Its(Some("/k".into()));
        assert_eq!(which(None, installed("/srv/k")), ("/srv/k".into(), its()));
        assert_eq!(
            which(Some("/srv/k".into()), installed("/srv/k")),
            ("/srv/k".into(), its())
        );
        let other = which(Some("/old".into()), installed("/srv/k"));
        assert_eq!(other, ("/old".into(), Service::Another));
        assert_eq!(which(None, None), (config::DEFAULT_DATA_DIR.into(), Service::None));
    }
}
