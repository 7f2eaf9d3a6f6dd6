//! A node's half of a machine: container runtime, kubelet, network, proxy, DNS. The same on a server and on an agent; how
//! the API is reached, and by which certificate the kubelet is known, is told by [`Access`].

use crate::addons::{DNS_IDENTITY, NETWORK_IDENTITY, POLICY_IDENTITY, PROXY_IDENTITY};
use crate::config::{Component, Config, Threshold};
use crate::supervise::Supervisor;
use anyhow::Context;
use keelson_client::ClientFactory;
use keelson_kubelet::ServingTls;
use keelson_network::{LocalPods, PodNetwork, Routed, underlay};
use keelson_runtime::{Handler, Runtime};
use rustls::server::ResolvesServerCert;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// A handler that some workloads ask for by a RuntimeClass; it is the built-in one under another name.
const TEST_HANDLER: &str = "test-handler";

pub struct Access {
    pub clients: Arc<dyn ClientFactory>,
    /// By which the kubelet is known to who reaches it.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// Whose clients the kubelet knows.
    pub client_ca_pem: String,
}

/// Pod network with its policies, runtime and kubelet.
pub async fn start(components: &mut Supervisor, config: &Config, access: Access) -> anyhow::Result<()> {
    let mtu = mtu(config).await;
    if config.runs(Component::Policy) {
        keelson_policy::close(config.families())?;
    } else {
        keelson_policy::remove().context("the rules of network policies")?;
    }
    let network = Arc::new(Routed::new(network_config(config, mtu)).context("the pod network")?);
    let watched = network.clone();
    components.spawn("network-rules", move |stop| {
        let network = watched.clone();
        async move { stop.run_until_cancelled(network.watch()).await.unwrap_or(Ok(())) }
    });
    if config.runs(Component::Policy) {
        policy(components, config, access.clients.as_ref(), network.local_pods());
    }
    let network: Arc<dyn PodNetwork> = network;
    let runtime = Runtime::new(runtime_config(config), network)
        .await
        .context("the container runtime")?;
    let socket = config.cri_socket();
    let served = runtime.clone();
    components.spawn("cri", move |stop| {
        let (runtime, socket) = (served.clone(), socket.clone());
        async move {
            let endpoint = format!("unix://{}", socket.display());
            keelson_cri::serve(&endpoint, runtime.clone(), runtime, stop.cancelled_owned()).await
        }
    });
    let clients = runtime.clients();
    let client = access.clients.client(&format!("system:node:{}", config.node_name));
    let kubelet = kubelet_config(config, access)?;
    components.spawn("kubelet", move |stop| {
        keelson_kubelet::run(client.clone(), clients.clone(), kubelet.clone(), stop)
    });
    Ok(())
}

fn policy(components: &mut Supervisor, config: &Config, clients: &dyn ClientFactory, pods: Arc<LocalPods>) {
    let settings = keelson_policy::Config {
        node_name: config.node_name.clone(),
        families: config.families().collect(),
    };
    // Before the first judgement too, pods wait for theirs.
    pods.judged(BTreeSet::new());
    let client = clients.client(POLICY_IDENTITY);
    components.spawn("policy", move |stop| {
        keelson_policy::run(client.clone(), settings.clone(), pods.clone(), stop)
    });
}

/// What lies under the pod network.
pub fn network(components: &mut Supervisor, config: &Config, clients: &dyn ClientFactory) {
    if config.network == underlay::Mode::None {
        return;
    }
    let settings = underlay::Settings {
        node_name: config.node_name.clone(),
        node_ip: config.node_ip(),
        mode: config.network,
        cluster: config.cluster_cidrs.clone(),
    };
    let client = clients.client(NETWORK_IDENTITY);
    components.spawn("network", move |stop| {
        crate::peers::run(client.clone(), settings.clone(), stop)
    });
}

pub fn proxy(components: &mut Supervisor, config: &Config, clients: &dyn ClientFactory) {
    let settings = keelson_proxy::Config {
        node_name: config.node_name.clone(),
        cluster_cidrs: config.cluster_cidrs.clone(),
    };
    let client = clients.client(PROXY_IDENTITY);
    components.spawn("proxy", move |stop| {
        keelson_proxy::run(client.clone(), settings.clone(), stop)
    });
}

pub fn dns(components: &mut Supervisor, config: &Config, clients: &dyn ClientFactory) {
    let settings = keelson_dns::Config {
        listen: config
            .node_ips
            .iter()
            .map(|ip| SocketAddr::new(*ip, config.dns_port))
            .collect(),
        domain: config.cluster_domain.clone(),
        clients: config.cluster_cidrs.clone(),
        ..keelson_dns::Config::default()
    };
    let client = clients.client(DNS_IDENTITY);
    components.spawn("dns", move |stop| {
        keelson_dns::run(client.clone(), settings.clone(), stop)
    });
}

/// What the uplink leaves to pods; 0 (the kernel's default) if it can't be told.
async fn mtu(config: &Config) -> u32 {
    match underlay::uplink(config.node_ip()).await {
        Ok(uplink) => config.network.mtu(&uplink),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "pods get the kernel's default MTU");
            0
        }
    }
}

pub fn network_config(config: &Config, mtu: u32) -> keelson_network::Config {
    keelson_network::Config {
        state_dir: config.network_dir(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        pod_cidrs: Vec::new(),
        mtu,
    }
}

pub fn runtime_config(config: &Config) -> keelson_runtime::Config {
    keelson_runtime::Config {
        root: config.runtime_dir(),
        state: config.data_dir.join("state"),
        cgroup_root: config.cgroup_root.clone(),
        registries: config.registries.clone(),
        mirrors_only: config.mirrors_only,
        images: config.images.clone(),
        handlers: [(TEST_HANDLER.to_string(), Handler::BuiltIn)].into(),
        ..keelson_runtime::Config::default()
    }
}

fn kubelet_config(config: &Config, access: Access) -> anyhow::Result<keelson_kubelet::Config> {
    std::fs::create_dir_all(&config.manifests)
        .with_context(|| format!("cannot create {}", config.manifests.display()))?;
    let mut eviction = keelson_kubelet::Eviction::default();
    for threshold in &config.eviction {
        match *threshold {
            Threshold::MemoryBytes(n) => eviction.memory_available = n,
            Threshold::DiskPercent(n) => eviction.nodefs_available_percent = n,
            Threshold::InodesPercent(n) => eviction.nodefs_inodes_percent = n,
            Threshold::ProcessesPercent(n) => eviction.pid_available_percent = n,
        }
    }
    let root = config.data_dir.join("kubelet");
    let known_as = match &config.kubelet_link {
        Some(link) => crate::kubelet_link::make(link, &root, &config.data_dir)?,
        None => None,
    };
    // Set either way: a label that was set stays.
    let dns = match config.runs(Component::Dns) {
        true => config.dns_port.to_string(),
        false => "none".into(),
    };
    Ok(keelson_kubelet::Config {
        eviction,
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.iter().map(ToString::to_string).collect(),
        hostname: config.node_name.clone(),
        node_labels: [(keelson_dns::publish::LABEL.to_string(), dns)].into(),
        known_as,
        root_dir: root,
        pod_logs_dir: config.data_dir.join("logs/pods"),
        cgroup_root: config.cgroup_root.clone(),
        cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
        cluster_domain: config.cluster_domain.clone(),
        static_pod_path: Some(config.manifests.clone()),
        max_pods: config.max_pods,
        resolv_conf: keelson_dns::resolv::real(Path::new("/etc/resolv.conf")),
        image_pull_verification: config.image_pull_verification.clone(),
        listen: Some(SocketAddr::new(config.bind_address, config.kubelet_port)),
        port: config.kubelet_port,
        tls: Some(ServingTls {
            identity: access.serving,
            client_ca: access.client_ca_pem.into_bytes(),
        }),
        ..keelson_kubelet::Config::default()
    })
}
