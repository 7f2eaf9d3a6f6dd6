//! The container runtime, with the network of the node's pods; for any kubelet that speaks CRI.
//!
//! With a kubeconfig it also does what needs to know the cluster: the way to other nodes' pods, and network policies. Without one,
//! pods reach each other on this node and whatever else routes lead to, and no policy is enforced.

use super::LogOptions;
use super::front::{Front, plain};
use crate::addons::POLICY_IDENTITY;
use crate::config;
use crate::families;
use crate::node;
use crate::supervise::Supervisor;
use crate::traces;
use anyhow::{Context, ensure};
use clap::Args;
use ipnet::IpNet;
use keelson_client::{ClientFactory, KubeconfigFactory};
use keelson_measure::Measures;
use keelson_network::cni::{Directories, Plugins};
use keelson_network::{LocalPods, PodNetwork, Routed, underlay};
use keelson_runtime::Runtime;
use keelson_runtime::selinux::{Machine, Real};
use keelson_sys::nft::Family;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// The pod network, kept as it is to be, and the pods that it knows: plug-ins keep to themselves which those are.
pub fn network(
    components: &mut Supervisor,
    mode: underlay::Mode,
    settings: keelson_network::Config,
) -> anyhow::Result<(Arc<dyn PodNetwork>, Option<Arc<LocalPods>>)> {
    if mode == underlay::Mode::Cni {
        let plugins = Plugins::new(settings, Directories::default()).context("the pod network of plug-ins")?;
        return Ok((Arc::new(plugins), None));
    }
    let network = Arc::new(Routed::new(settings).context("the pod network")?);
    let watched = network.clone();
    components.spawn("network-rules", move |stop| {
        let network = watched.clone();
        async move { stop.run_until_cancelled(network.watch()).await.unwrap_or(Ok(())) }
    });
    let pods = network.local_pods();
    Ok((network, Some(pods)))
}

/// The runtime, served on `endpoint` (`unix:///…`).
pub async fn spawn(
    components: &mut Supervisor,
    settings: keelson_runtime::Config,
    network: Arc<dyn PodNetwork>,
    endpoint: String,
) -> anyhow::Result<Runtime> {
    let tracer = settings.tracer.clone();
    let runtime = Runtime::new(settings, network).await.context("the container runtime")?;
    let served = runtime.clone();
    components.spawn("cri", move |stop| {
        let (runtime, endpoint, tracer) = (served.clone(), endpoint.clone(), tracer.clone());
        async move { keelson_cri::serve(&endpoint, runtime.clone(), runtime, tracer, stop.cancelled_owned()).await }
    });
    Ok(runtime)
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where CRI is served: unix:///PATH
    #[arg(long, value_name = "URL", default_value = "unix:///run/keelson/cri.sock")]
    container_runtime_endpoint: String,
    /// Directory of everything that is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keelson-runtime")]
    data_dir: PathBuf,
    /// Ranges of pod addresses, one or one a family; the node's own share of each is told by the kubelet
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', default_value = "10.244.0.0/16")]
    cluster_cidr: Vec<String>,
    /// cgroup below which pods live whose kubelet names none [default: /keelson-<hash of the data directory>]
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<String>,
    /// YAML file with registry mirrors and credentials
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// Directory of image archives (OCI layout or docker save) that are imported at start
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Labels of SELinux are applied to pods: takes a kernel with SELinux, and its policy of containers
    #[arg(long)]
    selinux: bool,
    /// Who reads nodes, pods and network policies here: connects this node's pods to others', and enforces policies
    #[arg(long, value_name = "FILE", requires = "node_ip")]
    kubeconfig: Option<PathBuf>,
    /// This node's name [default: the host name]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    hostname_override: Option<String>,
    /// This node's address
    #[arg(long, value_name = "IP", requires = "kubeconfig")]
    node_ip: Option<IpAddr>,
    /// How pods of different nodes reach each other: vxlan, vxlan-direct, host-gw, wireguard (encrypted), none, or cni (plug-ins in
    /// /opt/cni/bin, as /etc/cni/net.d says) [default: vxlan]
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// YAML file that says where traces are sent, and how many (TracingConfiguration)
    #[arg(long, value_name = "FILE")]
    tracing_config_file: Option<PathBuf>,
    /// Where health and metrics are told; port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    metrics_bind_address: SocketAddr,
    #[command(flatten)]
    log: LogOptions,
}

/// Of this machine, if it is wanted; whether it has any is seen when the runtime starts.
pub fn selinux(wanted: bool) -> Option<Arc<dyn Machine>> {
    wanted.then(|| Arc::new(Real) as Arc<dyn Machine>)
}

fn families_of(ranges: &[IpNet]) -> Vec<Family> {
    ranges.iter().map(|range| Family::of(range.addr())).collect()
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let data_dir = config::absolute(options.data_dir.clone())?;
    ensure!(
        options.container_runtime_endpoint.starts_with("unix:///"),
        "--container-runtime-endpoint {}: the form is unix:///PATH",
        options.container_runtime_endpoint
    );
    let mode = options.network.as_deref().unwrap_or("vxlan");
    let mode: underlay::Mode = mode.parse().context("--network")?;
    ensure!(
        options.kubeconfig.is_some() || options.network.is_none() || mode == underlay::Mode::Cni,
        "--network {mode}: other nodes are known by --kubeconfig, give that too"
    );
    underlay::supported(mode)?;
    let tracing = traces::settings(options.tracing_config_file.as_deref())?;
    let cluster_cidrs = families::cluster_cidrs(&options.cluster_cidr)?;
    super::run(&options.log, Some(&data_dir), async || {
        let mut components = Supervisor::default();
        let measures = Measures::default();
        let front = Front::whole(components.health(), &measures);
        plain::start(&mut components, "metrics", options.metrics_bind_address, front).await?;
        let mtu = match options.node_ip {
            Some(ip) => node::mtu(mode, ip).await,
            None => 0,
        };
        match options.kubeconfig.as_ref().filter(|_| mode != underlay::Mode::Cni) {
            Some(_) => keelson_policy::close(families_of(&cluster_cidrs))?,
            None => keelson_policy::remove().context("the rules of network policies")?,
        }
        let settings = keelson_network::Config {
            state_dir: data_dir.join("network"),
            cluster_cidrs: cluster_cidrs.clone(),
            pod_cidrs: Vec::new(),
            mtu,
        };
        let (network, pods) = network(&mut components, mode, settings)?;
        if let (Some(kubeconfig), Some(node_ip)) = (&options.kubeconfig, options.node_ip) {
            let node_name = match &options.hostname_override {
                Some(name) => name.clone(),
                None => config::host_name()?,
            };
            let clients = KubeconfigFactory::new(kubeconfig).await.context("--kubeconfig")?;
            if let Some(pods) = pods {
                node::policy(
                    &mut components,
                    &node_name,
                    families_of(&cluster_cidrs),
                    clients.client(POLICY_IDENTITY),
                    pods,
                    keelson_policy::Told::new(&measures),
                );
            }
            let settings = underlay::Settings {
                node_name,
                node_ip,
                mode,
                cluster: cluster_cidrs.clone(),
            };
            node::underlay(&mut components, &clients, settings, &data_dir.join("network"));
        }
        let settings = keelson_runtime::Config {
            root: data_dir.join("runtime"),
            state: data_dir.join("state"),
            cgroup_root: options
                .cgroup_root
                .clone()
                .unwrap_or_else(|| config::cgroup_root(&data_dir)),
            registries: options.registries.clone(),
            images: options.images.clone(),
            selinux: selinux(options.selinux),
            tracer: traces::tracer(&mut components, tracing.as_ref(), "runtime", &config::host_name()?)?,
            ..keelson_runtime::Config::default()
        };
        let endpoint = options.container_runtime_endpoint.clone();
        spawn(&mut components, settings, network, endpoint).await?;
        Ok(components)
    })
}
