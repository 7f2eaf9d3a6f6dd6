//! RunPodSandbox: files, namespaces with their shim, network; in that order, and back again if one fails.

use keelson_trace::step;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use keelson_api::quantity::Quantity;
use keelson_cri::v1::{self, NamespaceMode, PodSandboxConfig};
use keelson_network::{PodNetworkRequest, PortMapping, Protocol};

use super::Sandbox;
use super::files::Files;
use crate::config::Handler;
use crate::containers::namespace_options;
use crate::containers::users::Range;
use crate::records::{self, SandboxRecord, SandboxState};
use crate::runtime::{Inner, new_id, now};
use crate::shim::Shim;
use crate::shim::protocol::{IdMapping, ShimConfig};

/// As upstream's pause containers: killed after everything else that a pod consists of.
const OOM_SCORE: i32 = -998;

impl Inner {
    pub async fn run_sandbox(self: &Arc<Self>, config: PodSandboxConfig, handler: &str) -> anyhow::Result<String> {
        let Some(kind) = self.config.handler(handler) else {
            bail!("no runtime for {handler:?} is configured");
        };
        let metadata = config
            .metadata
            .clone()
            .context("sandbox config must include metadata")?;
        let options = namespace_options(&config);
        let hostname = match config.hostname.as_str() {
            "" => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        if Range::of(&options)
            .map_err(|e| anyhow!("user namespace configuration: {e}"))?
            .is_some()
            && let Err(why) = self.user_namespaces(handler).await
        {
            bail!("user namespaces can't be had: {why}");
        }
        let id = new_id();
        let record = SandboxRecord {
            id: id.clone(),
            handler: handler.to_owned(),
            external: match kind {
                Handler::BuiltIn => None,
                Handler::External(program) => Some(program.to_string_lossy().into_owned()),
            },
            created_at: now(),
            state: SandboxState::Creating,
            own_network: options.network() != NamespaceMode::Node,
            ips: Vec::new(),
            hostname,
            selinux: None,
            config,
        };
        let sandbox = Arc::new(Sandbox::new(self, record));
        let _turn = sandbox.turn.lock().await;
        {
            let mut sandboxes = self.sandboxes.lock();
            // The same attempt of the same pod cannot run twice; the kubelet counts attempts.
            let same = |s: &Arc<Sandbox>| {
                let r = s.record.lock();
                let m = r.config.metadata.as_ref();
                m.is_some_and(|m| m.uid == metadata.uid && m.name == metadata.name && m.attempt == metadata.attempt)
            };
            if let Some(other) = sandboxes.values().find(|s| same(s)) {
                bail!(
                    "failed to reserve sandbox name \"{}_{}_{}_{}\": it is reserved for \"{}\"",
                    metadata.name,
                    metadata.namespace,
                    metadata.uid,
                    metadata.attempt,
                    other.id
                );
            }
            if let Some(selinux) = &self.selinux {
                let taken: Vec<String> = sandboxes
                    .values()
                    .filter_map(|s| s.record.lock().selinux.clone())
                    .collect();
                let mut record = sandbox.record.lock();
                let context = record.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
                let label = selinux.of_pod(context.and_then(|c| c.selinux_options.as_ref()), &taken);
                record.selinux = Some(label.map_err(|e| anyhow!("failed to init selinux options: {e}"))?);
            }
            sandboxes.insert(id.clone(), sandbox.clone());
        }
        match self.set_up(&sandbox).await {
            Ok(()) => {
                self.emit(&id, &id, v1::ContainerEventType::ContainerCreatedEvent);
                self.emit(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
                Ok(id)
            }
            Err(error) => {
                if let Err(undo) = self.tear_down(&sandbox).await {
                    // The record stays: the kubelet sees a sandbox that is not ready and has it removed again.
                    tracing::error!(
                        sandbox = id,
                        error = format!("{undo:#}"),
                        "half-made sandbox not undone"
                    );
                    sandbox.update(|r| r.state = SandboxState::NotReady)?;
                } else {
                    self.sandboxes.lock().remove(&id);
                    self.clear_sandbox_directories(&id)?;
                }
                Err(error)
            }
        }
    }

    async fn set_up(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> anyhow::Result<()> {
        let record = sandbox.record.lock().clone();
        records::save(&self.config.root, &record).context("cannot write the sandbox's record")?;
        let state = self.state_dir(&record.id);
        std::fs::create_dir_all(&state)?;
        let options = namespace_options(&record.config);
        let directory = records::directory::<SandboxRecord>(&self.config.root, &record.id);
        Files(directory)
            .create(&record.config, &record.hostname, options.ipc())
            .context("cannot make the sandbox's files")?;
        let config = shim_config(&record, &options)?;
        step("shim", Shim::launch(state, &self.program(), &config))
            .await
            .context("failed to start the sandbox's shim")?;
        if record.own_network {
            let request = network_request(&record, sandbox.shim.namespace("net"))?;
            let result = step("network", self.network.setup(&request))
                .await
                .with_context(|| format!("failed to setup network for sandbox \"{}\"", record.id))?;
            sandbox.record.lock().ips = result.ips.iter().map(IpAddr::to_string).collect();
        }
        let (_, events) = sandbox.shim.subscribe().await?;
        sandbox.update(|r| r.state = SandboxState::Ready)?;
        self.follow(sandbox.clone(), Some(events), None);
        Ok(())
    }
}

fn shim_config(record: &SandboxRecord, options: &v1::NamespaceOption) -> anyhow::Result<ShimConfig> {
    let users = Range::of(options).map_err(|e| anyhow!("user namespace configuration: {e}"))?;
    let ids: Vec<IdMapping> = users
        .iter()
        .map(|range| IdMapping {
            container: 0,
            host: range.first,
            length: range.length,
        })
        .collect();
    let linux = record.config.linux.clone().unwrap_or_default();
    Ok(ShimConfig {
        sandbox_id: record.id.clone(),
        hostname: record.hostname.clone(),
        own_network: record.own_network,
        own_ipc: options.ipc() != NamespaceMode::Node,
        // As upstream: with the host's network comes its name.
        own_uts: record.own_network,
        shared_pid: options.pid() == NamespaceMode::Pod,
        sysctls: linux.sysctls.into_iter().collect(),
        uid_mappings: ids.clone(),
        gid_mappings: ids,
        oom_score_adj: OOM_SCORE,
    })
}

fn network_request(record: &SandboxRecord, netns: std::path::PathBuf) -> anyhow::Result<PodNetworkRequest> {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let mut port_mappings = Vec::new();
    for mapping in record.config.port_mappings.iter().filter(|m| m.host_port > 0) {
        port_mappings.push(PortMapping {
            protocol: match mapping.protocol() {
                v1::Protocol::Tcp => Protocol::Tcp,
                v1::Protocol::Udp => Protocol::Udp,
                v1::Protocol::Sctp => Protocol::Sctp,
            },
            container_port: mapping.container_port.try_into().context("invalid container port")?,
            host_port: mapping.host_port.try_into().context("invalid host port")?,
            host_ip: match mapping.host_ip.as_str() {
                "" => None,
                ip => Some(ip.parse().with_context(|| format!("invalid host IP {ip:?}"))?),
            },
        });
    }
    let annotations = &record.config.annotations;
    Ok(PodNetworkRequest {
        sandbox_id: record.id.clone(),
        netns,
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        port_mappings,
        ingress_bandwidth: bandwidth(annotations, "kubernetes.io/ingress-bandwidth")?,
        egress_bandwidth: bandwidth(annotations, "kubernetes.io/egress-bandwidth")?,
    })
}

/// A quantity such as "10M", in bits per second, within upstream's bounds.
fn bandwidth(annotations: &HashMap<String, String>, key: &str) -> anyhow::Result<u64> {
    let Some(text) = annotations.get(key) else { return Ok(0) };
    let quantity = Quantity::parse(text).with_context(|| format!("{key}: {text:?} is no bandwidth"))?;
    match quantity.value() {
        bits if bits < 1_000 => bail!("{key}: {text:?}: resource is unreasonably small (< 1kbit)"),
        bits if bits > 1_000_000_000_000_000 => bail!("{key}: {text:?}: resource is unreasonably large (> 1Pbit)"),
        bits => Ok(bits.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_quantities() {
        let of = |text: &str| bandwidth(&HashMap::from([("k".to_owned(), text.to_owned())]), "k");
        let good = [
            ("10M", 10_000_000),
            ("4Ki", 4096),
            ("1k", 1_000),
            ("1.5e6", 1_500_000),
            ("1P", 1_000_000_000_000_000),
        ];
        for (text, bits) in good {
            assert_eq!(of(text).unwrap(), bits, "{text}");
        }
        for text in ["fast", "", "999", "1100m", "-5M", "0", "2P", "10 M"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert_eq!(bandwidth(&HashMap::new(), "k").unwrap(), 0);
    }
}
