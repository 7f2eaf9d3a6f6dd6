//! A node's half of a machine: container runtime, kubelet, network, proxy, DNS, requests from outside. The same on a server and on an agent; how
//! the API is reached, and by which certificate the kubelet is known, is told by [`Access`].

use crate::addons::{
    ANNOUNCE_IDENTITY, DNS_IDENTITY, INGRESS_IDENTITY, NETWORK_IDENTITY, POLICY_IDENTITY, PROXY_IDENTITY,
};
use crate::components;
use crate::config::{Component, Config};
use crate::image_peers::{Kept, Neighbours, Proof};
use crate::peers::Secured;
use crate::supervise::Supervisor;
use crate::traces;
use crate::version::VERSION;
use anyhow::Context;
use keelson_client::revocations::Revocations;
use keelson_client::{ClientFactory, Rest, Telling};
use keelson_kubelet::{Archives, ServingTls};
use keelson_network::{LocalPods, underlay};
use keelson_pki::verify::Live;
use keelson_runtime::Handler;
use keelson_runtime::images::archives::Peers;
use keelson_sys::nft::Family;
use rustls::server::ResolvesServerCert;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Which program a node runs.
const VERSION_LABEL: &str = "keelson.io/version";
/// A handler that some workloads ask for by a RuntimeClass; it is the built-in one under another name.
const TEST_HANDLER: &str = "test-handler";

pub struct Access {
    /// Where is counted what the kubelet's page tells of its requests and certificates.
    pub telling: Telling,
    pub clients: Arc<dyn ClientFactory>,
    /// By which the kubelet is known to who reaches it.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// Whose clients the kubelet knows, at any time.
    pub clients_known: Live,
    /// By which this node proves itself to other nodes.
    pub proof: Proof,
}

/// Pod network with its policies, runtime and kubelet.
pub async fn start(running: &mut Supervisor, config: &Config, access: Access, telling: &Telling) -> anyhow::Result<()> {
    let mtu = mtu(config.network, config.node_ip()).await;
    // Plug-ins' pods are outside of what policies here are judged on.
    let policed = config.runs(Component::Policy) && config.network != underlay::Mode::Cni;
    if policed {
        keelson_policy::close(config.families())?;
    } else {
        keelson_policy::remove().context("the rules of network policies")?;
    }
    let (network, pods) = components::runtime::network(running, config.network, network_config(config, mtu))?;
    if let Some(pods) = pods.filter(|_| policed) {
        let client = access.clients.client(POLICY_IDENTITY);
        policy(
            running,
            &config.node_name,
            config.families().collect(),
            client,
            pods,
            keelson_policy::Told::new(&telling.measures),
        );
    }
    let endpoint = format!("unix://{}", config.cri_socket().display());
    let peers = config.image_peers.map(|_| {
        let reader = access.clients.client(NETWORK_IDENTITY);
        Neighbours::new(reader, &config.node_name, access.proof.clone()) as Arc<dyn Peers>
    });
    let settings = keelson_runtime::Config {
        tracer: traces::tracer(running, config.tracing.as_ref(), "runtime", &config.node_name)?,
        keep_archives: config.image_peers,
        peers,
        ..runtime_config(config)
    };
    let runtime = components::runtime::spawn(running, settings, network, endpoint).await?;
    let client = access.clients.client(&format!("system:node:{}", config.node_name));
    let revocations = revocations(running, client.clone());
    let kubelet = keelson_kubelet::Config {
        revocations: Some(revocations),
        archives: config
            .image_peers
            .map(|_| Arc::new(Kept(runtime.images().clone())) as Arc<dyn Archives>),
        ..kubelet_config(config, access)?
    };
    components::kubelet::spawn(running, client, runtime.clients(), kubelet)
}

/// What has been taken back concerns who comes to the kubelet, too.
pub fn revocations(running: &mut Supervisor, client: kube::Client) -> Arc<Revocations> {
    let known = Arc::new(Revocations::default());
    let kept = known.clone();
    running.spawn("revocations", move |stop| {
        let (known, rest) = (kept.clone(), Rest::new(client.clone(), "keelson-revocations"));
        async move {
            known.follow(&rest, stop).await;
            Ok(())
        }
    });
    known
}

/// What enforces network policies on the pods that are here.
pub fn policy(
    running: &mut Supervisor,
    node_name: &str,
    families: Vec<Family>,
    client: kube::Client,
    pods: Arc<LocalPods>,
    told: keelson_policy::Told,
) {
    let settings = keelson_policy::Config {
        node_name: node_name.to_string(),
        families,
        told,
    };
    // Before the first judgement too, pods wait for theirs.
    pods.judged(BTreeSet::new());
    running.spawn("policy", move |stop| {
        keelson_policy::run(client.clone(), settings.clone(), pods.clone(), stop)
    });
}

/// What lies under the pod network.
pub fn network(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory) {
    let settings = underlay::Settings {
        node_name: config.node_name.clone(),
        node_ip: config.node_ip(),
        mode: config.network,
        cluster: config.cluster_cidrs.clone(),
    };
    underlay(running, clients, settings, &config.network_dir());
}

/// The way to other nodes' pods, if this program is to see to it. What it made once for a network that it isn't to see to goes.
pub fn underlay(
    running: &mut Supervisor,
    clients: &dyn ClientFactory,
    settings: underlay::Settings,
    network_dir: &Path,
) {
    if matches!(settings.mode, underlay::Mode::None | underlay::Mode::Cni) {
        running.spawn("network", |_| async {
            underlay::remove().await.context("the ways to other nodes")
        });
        return;
    }
    let secured = (settings.mode == underlay::Mode::Wireguard).then(|| Secured {
        dir: network_dir.join("wireguard"),
        own: clients.client(&format!("system:node:{}", settings.node_name)),
    });
    let client = clients.client(NETWORK_IDENTITY);
    running.spawn("network", move |stop| {
        crate::peers::run(client.clone(), settings.clone(), secured.clone(), stop)
    });
}

pub fn proxy(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory, telling: &Telling) {
    let settings = keelson_proxy::Config {
        node_name: config.node_name.clone(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        limits: config.limits.clone(),
        note: Some(config.limits_note()),
        telling: telling.clone(),
    };
    components::proxy::spawn(running, clients.client(PROXY_IDENTITY), settings);
}

pub fn dns(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory, telling: &Telling) {
    let settings = keelson_dns::Config {
        listen: config
            .node_ips
            .iter()
            .map(|ip| SocketAddr::new(*ip, config.dns_port))
            .collect(),
        domain: config.cluster_domain.clone(),
        clients: config.cluster_cidrs.clone(),
        telling: telling.clone(),
        ..keelson_dns::Config::default()
    };
    components::dns::spawn(running, clients.client(DNS_IDENTITY), settings);
}

/// Addresses of load balancers' pools: this node's part.
pub fn announce(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory) {
    if !config.runs(Component::LoadBalancer) {
        return;
    }
    let settings = keelson_announce::Config {
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        cluster_cidrs: config.cluster_cidrs.iter().map(ToString::to_string).collect(),
        told: config.network_dir().join("bgp"),
    };
    let client = clients.client(ANNOUNCE_IDENTITY);
    let own = clients.client(&format!("system:node:{}", config.node_name));
    running.spawn("announce", move |stop| {
        keelson_announce::run(client.clone(), own.clone(), settings.clone(), stop)
    });
}

/// Requests from outside: this node's part.
pub fn ingress(running: &mut Supervisor, config: &Config, clients: &dyn ClientFactory, telling: &Telling) {
    if !config.runs(Component::Ingress) {
        return;
    }
    let settings = keelson_gateway::node::Config {
        addresses: config.node_ips.clone(),
        measures: telling.measures.clone(),
    };
    let client = clients.client(INGRESS_IDENTITY);
    running.spawn("ingress", move |stop| {
        keelson_gateway::node::run(client.clone(), settings.clone(), stop)
    });
}

/// What the uplink leaves to pods; 0 (the kernel's default) if it can't be told.
pub async fn mtu(mode: underlay::Mode, node_ip: IpAddr) -> u32 {
    match underlay::uplink(node_ip).await {
        Ok(uplink) => mode.mtu(&uplink),
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
        selinux: components::runtime::selinux(config.selinux),
        images: config.images.clone(),
        handlers: [(TEST_HANDLER.to_string(), Handler::BuiltIn)].into(),
        ..keelson_runtime::Config::default()
    }
}

fn kubelet_config(config: &Config, access: Access) -> anyhow::Result<keelson_kubelet::Config> {
    std::fs::create_dir_all(&config.manifests)
        .with_context(|| format!("cannot create {}", config.manifests.display()))?;
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
    let mut node_labels = config.node_labels.clone();
    node_labels.insert(keelson_dns::publish::LABEL.to_string(), dns);
    // What a label can't have isn't part of a version's order.
    node_labels.insert(VERSION_LABEL.to_string(), VERSION.replace('+', "_"));
    let ingress = if config.runs(Component::Ingress) {
        "true"
    } else {
        "none"
    };
    node_labels.insert(keelson_gateway::LABEL.to_string(), ingress.into());
    let mut kubelet = keelson_kubelet::Config {
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.iter().map(ToString::to_string).collect(),
        hostname: config.node_name.clone(),
        node_labels,
        known_as,
        root_dir: root,
        pod_logs_dir: config.data_dir.join("logs/pods"),
        attic: config.attic.clone(),
        cgroup_root: config.cgroup_root.clone(),
        cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
        cluster_domain: config.cluster_domain.clone(),
        static_pod_path: Some(config.manifests.clone()),
        resolv_conf: keelson_dns::resolv::real(Path::new("/etc/resolv.conf")),
        listen: Some(SocketAddr::new(config.bind_address, config.kubelet_port)),
        port: config.kubelet_port,
        tracing: config.tracing.clone(),
        telling: Some(access.telling),
        flags: Some(crate::flagz::of_this_process()),
        tls: Some(ServingTls {
            identity: access.serving,
            client_ca: access.clients_known,
            following: None,
        }),
        ..keelson_kubelet::Config::default()
    };
    config.kubelet.apply(&mut kubelet).map_err(anyhow::Error::msg)?;
    if let Some(policy) = &config.image_pull_verification {
        kubelet.image_pull_verification = policy.clone();
    }
    Ok(kubelet)
}
