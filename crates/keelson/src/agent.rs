//! The node's half of a machine: pod network, container runtime, kubelet.

use crate::config::{Config, Threshold};
use crate::supervise::Supervisor;
use anyhow::Context;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_kubelet::ServingTls;
use keelson_network::{PodNetwork, Routed};
use keelson_pki::Pki;
use keelson_runtime::{Handler, Runtime};
use std::net::SocketAddr;
use std::sync::Arc;

/// A handler that some workloads ask for by a RuntimeClass; it is the built-in one under another name.
const TEST_HANDLER: &str = "test-handler";

pub struct Agent;

impl Agent {
    pub async fn start(
        components: &mut Supervisor,
        config: &Config,
        pki: &Arc<Pki>,
        api: &Arc<ApiServer>,
    ) -> anyhow::Result<()> {
        let network = Routed::new(network_config(config)).context("the pod network")?;
        let network: Arc<dyn PodNetwork> = Arc::new(network);
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
        let certificate = serving_certificate(components, config, pki)?;
        let kubelet = kubelet_config(config, pki, certificate)?;
        let client = api.client(UserInfo::from_identity(&format!("system:node:{}", config.node_name)));
        components.spawn("kubelet", move |stop| {
            keelson_kubelet::run(client.clone(), clients.clone(), kubelet.clone(), stop)
        });
        Ok(())
    }
}

pub fn network_config(config: &Config) -> keelson_network::Config {
    keelson_network::Config {
        state_dir: config.network_dir(),
        cluster_cidr: config.cluster_cidr,
        pod_cidr: None,
        mtu: 0,
    }
}

pub fn runtime_config(config: &Config) -> keelson_runtime::Config {
    keelson_runtime::Config {
        root: config.runtime_dir(),
        state: config.data_dir.join("state"),
        cgroup_root: config.cgroup_root.clone(),
        registries: config.registries.clone(),
        images: config.images.clone(),
        handlers: [(TEST_HANDLER.to_string(), Handler::BuiltIn)].into(),
        ..keelson_runtime::Config::default()
    }
}

/// The kubelet's serving certificate, renewed before it ends.
fn serving_certificate(
    components: &mut Supervisor,
    config: &Config,
    pki: &Arc<Pki>,
) -> anyhow::Result<Arc<ServingCert>> {
    let (pki, name, address) = (pki.clone(), config.node_name.clone(), config.node_ip);
    let find = move || pki.kubelet_server(&name, &[address.into()]);
    let first = find()?;
    let cert = ServingCert::new(&first.cert_pem, &first.key_pem)?;
    let (kept, find) = (cert.clone(), Arc::new(find));
    components.spawn("kubelet-certificate", move |stop| {
        let (cert, find, mut due) = (kept.clone(), find.clone(), first.renew_at);
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(keelson_pki::until(due)) => {}
                }
                let own = find()?;
                cert.replace(&own.cert_pem, &own.key_pem)?;
                due = own.renew_at;
            }
        }
    });
    Ok(cert)
}

fn kubelet_config(config: &Config, pki: &Pki, identity: Arc<ServingCert>) -> anyhow::Result<keelson_kubelet::Config> {
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
    Ok(keelson_kubelet::Config {
        eviction,
        node_name: config.node_name.clone(),
        node_ips: vec![config.node_ip.to_string()],
        hostname: config.node_name.clone(),
        root_dir: config.data_dir.join("kubelet"),
        pod_logs_dir: config.data_dir.join("logs/pods"),
        cgroup_root: config.cgroup_root.clone(),
        cluster_dns: vec![config.cluster_dns.to_string()],
        cluster_domain: config.cluster_domain.clone(),
        static_pod_path: Some(config.manifests.clone()),
        max_pods: config.max_pods,
        listen: Some(SocketAddr::new(config.bind_address, config.kubelet_port)),
        port: config.kubelet_port,
        tls: Some(ServingTls {
            identity,
            client_ca: pki.ca.cert_pem().as_bytes().to_vec(),
        }),
        ..keelson_kubelet::Config::default()
    })
}
