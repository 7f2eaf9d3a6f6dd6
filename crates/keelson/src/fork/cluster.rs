//! The copy: an API server over a store in memory, on loopback, with a scheduler and controllers, and nodes that are played.

use super::read::Read;
use crate::components::apiserver::{self, Api};
use crate::components::{controller_manager, scheduler};
use crate::supervise::Supervisor;
use crate::{assemble, kubeconfig};
use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use keelson_apiserver::planted::plant;
use keelson_apiserver::serve::tls::ServingCert;
use keelson_apiserver::{Config, UserInfo};
use keelson_client::{ClientFactory, Informer, InformerOptions, Rest};
use keelson_pki::{Pki, San, files};
use keelson_store::{Memory, Store};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The name of cluster, user and context.
const NAME: &str = "fork";
/// How long a node may be silent.
const LEASE: Duration = Duration::from_secs(40);
/// For a server that has nothing but memory to read.
const READY: Duration = Duration::from_secs(120);
const FORGET: Duration = Duration::from_secs(300);
/// Of a copy webhooks would learn, and might act on it.
const NOT_ADMITTING: [&str; 2] = ["MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"];
/// What goes by the clock, by certificates that nobody in a copy has, by drivers or by the machines' addresses.
const NOT_RUNNING: [&str; 18] = [
    "bootstrap-signer",
    "certificate-approver",
    "certificate-cleaner",
    "certificate-signer",
    "cluster-network-policy",
    "clustertrustbundle-publisher",
    "cronjob",
    "kubelet-serving-approver",
    "legacy-serviceaccount-token-cleaner",
    "node-ipam",
    "persistentvolume-attach-detach",
    "persistentvolume-expander",
    "podcertificaterequest-cleaner",
    "root-ca-certificate-publisher",
    "service-lb",
    "storage-version-migrator",
    "token-cleaner-controller",
    "ttl-after-finished",
];

pub struct Fork {
    /// Requests of an administrator, within the process.
    pub rest: Rest,
    api: Api,
    store: Arc<dyn Store>,
    running: Supervisor,
    directory: Directory,
}

impl Fork {
    /// `namespace`: where commands act that say no other.
    pub async fn start(read: Read, namespace: &str) -> anyhow::Result<Fork> {
        let directory = Directory::make()?;
        let store: Arc<dyn Store> = Memory::new();
        for planted in &read.objects {
            let text = |field: &str| planted.object["metadata"][field].as_str().unwrap_or_default();
            let json = serde_json::to_vec(&planted.object)?;
            plant(store.as_ref(), &planted.kept, text("namespace"), text("name"), json).await?;
        }
        let pki = Pki::open(&directory.0)?;
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let socket = apiserver::bind(address, "port").await?;
        let port = socket.port()?;
        write_kubeconfig(&pki, &directory.kubeconfig(), port, namespace)?;
        let config = config(&pki, &read.service_ranges, port, &directory.0)?;
        let serving = pki.apiserver(
            config.kubernetes_service_ip(),
            &config.cluster_domain,
            &[San::Ip(address.ip())],
        )?;
        let cert = ServingCert::new(&serving.cert_pem, &serving.key_pem)?;
        let api = Api::start(config, store.clone(), cert, socket)?;
        let ready = tokio::time::timeout(READY, api.server.ready()).await;
        ready.context("its objects can't be served")?;
        let mut running = Supervisor::default();
        components(&mut running, &api, &pki);
        let client = api.server.client(UserInfo::new("keelson-fork", &["system:masters"]));
        let rest = Rest::new(client, "keelson-fork");
        nodes(&mut running, &rest)?;
        assemble::compaction(&mut running, store.clone(), FORGET);
        Ok(Fork {
            rest,
            api,
            store,
            running,
            directory,
        })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.kubeconfig()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub async fn stop(self) {
        self.running.stop().await;
        self.api.stop().await;
    }
}

fn config(pki: &Pki, ranges: &[String], port: u16, directory: &Path) -> anyhow::Result<Config> {
    let mut config = Config::from_pki(Pki::open(directory)?)?;
    if !ranges.is_empty() {
        let ranges: Result<Vec<ipnet::IpNet>, _> = ranges.iter().map(|range| range.parse()).collect();
        config.service_cidrs = ranges.context("the ranges of the cluster's services")?;
    }
    config.admission.disabled = NOT_ADMITTING.map(str::to_owned).into();
    Ok(Config {
        advertise_port: port,
        kubelet_ca_pem: Some(pki.ca.bundle_pem()),
        publish_kubernetes_service: false,
        alone: true,
        peers: Vec::new(),
        ..config
    })
}

fn components(running: &mut Supervisor, api: &Api, pki: &Pki) {
    let clients: Arc<dyn ClientFactory> = api.server.clone();
    let others = NOT_RUNNING.iter().map(|name| format!("-{name}"));
    let settings = keelson_controllers::Config {
        account_keys: Some(Arc::new(pki.service_account.clone())),
        allocate_node_cidrs: false,
        load_balancer: None,
        controllers: ["*".to_owned()].into_iter().chain(others).collect(),
        ..keelson_controllers::Config::default()
    };
    controller_manager::spawn(running, clients.clone(), settings);
    let settings = keelson_scheduler::Config::default();
    scheduler::spawn(running, clients.client("system:kube-scheduler"), settings);
}

/// Machines and drivers of storage.
fn nodes(running: &mut Supervisor, rest: &Rest) -> anyhow::Result<()> {
    let stages = keelson_simulate::stages::read(keelson_fork::STAGES).map_err(anyhow::Error::msg)?;
    let (nodes, volumes) = (rest.clone(), rest.clone());
    running.spawn("nodes", move |stop| {
        let (rest, stages) = (nodes.clone(), stages.clone());
        async move {
            let nodes = Informer::<Node>::start(&rest, InformerOptions::default(), &stop);
            keelson_simulate::stages::run(&rest, &nodes, stages, LEASE, stop).await;
            Ok(())
        }
    });
    running.spawn("volumes", move |stop| {
        let rest = volumes.clone();
        async move {
            keelson_fork::volumes::run(rest, stop).await;
            Ok(())
        }
    });
    Ok(())
}

fn write_kubeconfig(pki: &Pki, path: &Path, port: u16, namespace: &str) -> anyhow::Result<()> {
    let config = pki.kubeconfig(
        path,
        &format!("https://127.0.0.1:{port}"),
        "keelson-fork",
        Some("system:masters"),
    )?;
    let text = kubeconfig::merge("", &config, NAME)?;
    let mut file: Value = serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("{e}"))?;
    file["contexts"][0]["context"]["namespace"] = namespace.into();
    let text = serde_saphyr::to_string(&file).map_err(|e| anyhow::anyhow!("{e}"))?;
    files::write_secret(path, text.as_bytes())
}

/// Only its owner's, and gone with the copy.
struct Directory(PathBuf);

impl Directory {
    fn make() -> anyhow::Result<Directory> {
        let path = std::env::temp_dir().join(format!("keelson-fork-{}", uuid::Uuid::new_v4()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("making {}", path.display()))?;
        Ok(Directory(path))
    }

    fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "{} isn't removed", self.0.display());
        }
    }
}
