//! What `keelson server` is told, and what an agent's options become: command line, environment, file, defaults, in this order.

use crate::access::{self, Access};
use crate::addons::options as addons;
use crate::archive::S3;
use crate::backup;
use crate::kubelet_options::KubeletOptions;
use crate::logging::Form;
use crate::process::Log;
use crate::{components, families, history, store};
use anyhow::{Context, bail};
use clap::Args;
use ipnet::IpNet;
use keelson_apiserver::audit::{self, Policy};
use keelson_kubelet::configuration::Document;
use keelson_kubelet::{Attic, Verification};
use keelson_network::underlay::Mode;
use keelson_past::Keep;
use keelson_sys::nft::Family;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

mod component;

pub use component::Component;

/// The version of Kubernetes that this is.
pub const KUBERNETES_VERSION: &str = "1.37.2";

/// One list of options: parsed from the command line and the environment, and read from the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// YAML file with any of these options
    #[arg(long, env = "KEELSON_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of everything that is kept [default: /var/lib/keelson]
    #[arg(long, env = "KEELSON_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to write the administrator's kubeconfig [default: DATA_DIR/admin.kubeconfig]
    #[arg(long, env = "KEELSON_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// This node's name [default: the host name]
    #[arg(long, env = "KEELSON_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// This node's address, or one of each family [default: those of --network-interface, or the source addresses of the default
    /// routes]
    #[arg(long, env = "KEELSON_NODE_IP", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "crate::families::list")]
    pub node_ip: Option<Vec<String>>,
    /// The interface by which other nodes are reached
    #[arg(long, env = "KEELSON_NETWORK_INTERFACE", value_name = "NAME")]
    pub network_interface: Option<String>,
    /// How pods of different nodes reach each other: vxlan, vxlan-direct (without tunnel on the same link), host-gw, wireguard
    /// (encrypted), none (by routes of others), or cni (plug-ins in /opt/cni/bin, as /etc/cni/net.d says) [default: vxlan]
    #[arg(long, env = "KEELSON_NETWORK", value_name = "MODE")]
    pub network: Option<String>,
    /// Directory of image archives (OCI layout or docker save) that are imported at start
    #[arg(long, env = "KEELSON_IMAGES", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// YAML file with registry mirrors and credentials
    #[arg(long, env = "KEELSON_REGISTRIES", value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Pull from mirrors only where a registry has any
    #[arg(long, env = "KEELSON_DISABLE_DEFAULT_REGISTRY_ENDPOINT", num_args = 0..=1, default_missing_value = "true")]
    pub disable_default_registry_endpoint: Option<bool>,
    /// Labels of SELinux are applied to pods: takes a kernel with SELinux, and its policy of containers [default: false]
    #[arg(long, env = "KEELSON_SELINUX", num_args = 0..=1, default_missing_value = "true")]
    pub selinux: Option<bool>,
    /// A flag of kube-proxy about the connection table (conntrack-…), as NAME=VALUE; may be given several times
    #[arg(long, env = "KEELSON_KUBE_PROXY_ARG", value_name = "NAME=VALUE")]
    pub kube_proxy_arg: Option<Vec<String>>,
    /// Keep archives of images' layers, up to this much of the disk (such as 10Gi): other nodes get them, and are asked for theirs
    /// before registries are [default: none are kept, nobody is asked]
    #[arg(long, env = "KEELSON_IMAGE_PEERS", value_name = "SIZE")]
    pub image_peers: Option<String>,
    /// Whose use of images that are there wants credentials: NeverVerify, NeverVerifyPreloadedImages,
    /// NeverVerifyAllowlistedImages, AlwaysVerify [default: NeverVerifyPreloadedImages]
    #[arg(
        long,
        env = "KEELSON_IMAGE_PULL_CREDENTIALS_VERIFICATION_POLICY",
        value_name = "POLICY"
    )]
    pub image_pull_credentials_verification_policy: Option<String>,
    /// Images for everybody, under the policy NeverVerifyAllowlistedImages: names of repositories, or beginnings of them
    /// that end with /*
    #[arg(
        long,
        env = "KEELSON_PRELOADED_IMAGES_VERIFICATION_ALLOWLIST",
        value_name = "LIST",
        value_delimiter = ','
    )]
    pub preloaded_images_verification_allowlist: Option<Vec<String>>,
    /// Components not to run: addons, agent, dns, ingress, load-balancer, local-storage, metrics, policy, proxy, reload, scheduler, snapshots, controllers
    #[arg(long, env = "KEELSON_DISABLE", value_name = "LIST", value_delimiter = ',')]
    pub disable: Option<Vec<String>>,
    /// Namespaces whose ConfigMaps and Secrets may say with which others they are shared [default: none]
    #[arg(long, env = "KEELSON_SHARE_FROM", value_name = "LIST", value_delimiter = ',')]
    pub share_from: Option<Vec<String>>,
    /// Define the kinds of the Gateway API and serve them, with a GatewayClass "keelson"
    #[arg(long, env = "KEELSON_GATEWAY_API", num_args = 0..=1, default_missing_value = "true")]
    pub gateway_api: Option<bool>,
    /// Address on which the API and the kubelet are served [default: 0.0.0.0, or :: in a cluster with IPv6]
    #[arg(long, env = "KEELSON_BIND_ADDRESS", value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port on which the API is served [default: 6443]
    #[arg(long, env = "KEELSON_API_PORT", value_name = "PORT")]
    pub api_port: Option<u16>,
    /// Port of the kubelet's API [default: 10250]
    #[arg(long, env = "KEELSON_KUBELET_PORT", value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// Port of the DNS server on the node's address [default: 10053]
    #[arg(long, env = "KEELSON_DNS_PORT", value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// More names and addresses for the API's certificate
    #[arg(long, env = "KEELSON_TLS_SAN", value_name = "LIST", value_delimiter = ',')]
    pub tls_san: Option<Vec<String>>,
    /// Range of pod addresses, or one of each family, the primary one first [default: 10.244.0.0/16, or fd00:244::/48
    /// on a machine with IPv6 only]
    #[arg(long, env = "KEELSON_CLUSTER_CIDR", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "crate::families::list")]
    pub cluster_cidr: Option<Vec<String>>,
    /// Whether nodes get shares of it; plug-ins of --network cni may have their own [default: true]
    #[arg(long, env = "KEELSON_ALLOCATE_NODE_CIDRS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub allocate_node_cidrs: Option<bool>,
    /// Range of service addresses, or one of each family, the primary one first [default: 10.96.0.0/16, or fd00:96::/112
    /// on a machine with IPv6 only]
    #[arg(long, env = "KEELSON_SERVICE_CIDR", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "crate::families::list")]
    pub service_cidr: Option<Vec<String>>,
    /// Address of the cluster's DNS service, or one of each family [default: the tenth of each service range]
    #[arg(long, env = "KEELSON_CLUSTER_DNS", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "crate::families::list")]
    pub cluster_dns: Option<Vec<String>>,
    /// Domain of the cluster [default: cluster.local]
    #[arg(long, env = "KEELSON_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Directory of static pod manifests [default: DATA_DIR/manifests]
    #[arg(long, env = "KEELSON_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where drivers of volumes find the kubelet's directory: a link to it; "none": there is none [default: /var/lib/kubelet]
    #[arg(long, env = "KEELSON_KUBELET_LINK", value_name = "PATH")]
    pub kubelet_link: Option<PathBuf>,
    /// cgroup below which everything of this cluster lives [default: /keelson-<hash of the data directory>, or
    /// /keelson for the default one]
    #[arg(long, env = "KEELSON_CGROUP_ROOT", value_name = "PATH")]
    pub cgroup_root: Option<String>,
    /// YAML file that says which resources are sealed in the store, and how (EncryptionConfiguration); "none": none are
    /// [default: secrets, by a key in DATA_DIR/pki; with --etcd-servers none]
    #[arg(long, env = "KEELSON_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Follow that file: what changes in it is in force without a restart
    #[arg(long, env = "KEELSON_ENCRYPTION_PROVIDER_CONFIG_AUTOMATIC_RELOAD", num_args = 0..=1, default_missing_value = "true")]
    pub encryption_provider_config_automatic_reload: Option<bool>,
    /// Where the audit log is; "none": there is none [default: DATA_DIR/audit/audit.log]
    #[arg(long, env = "KEELSON_AUDIT_LOG_PATH", value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// YAML file with the audit policy, audit.k8s.io/v1 [default: who changed what, entered a pod, read a secret]
    #[arg(long, env = "KEELSON_AUDIT_POLICY_FILE", value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Megabytes after which the audit log is put aside [default: 100]
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXSIZE", value_name = "N")]
    pub audit_log_maxsize: Option<u64>,
    /// Audit logs put aside that are kept; 0: all [default: 9]
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXBACKUP", value_name = "N")]
    pub audit_log_maxbackup: Option<usize>,
    /// Days after which an audit log put aside is removed; 0: never [default: 0]
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXAGE", value_name = "N")]
    pub audit_log_maxage: Option<u32>,
    /// YAML file that says where traces of requests and pods are sent, and how many of them (TracingConfiguration) [default: none are]
    #[arg(long, env = "KEELSON_TRACING_CONFIG_FILE", value_name = "FILE")]
    pub tracing_config_file: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub access: Access,
    /// Another server of the cluster, as https://HOST:6443, by which this one becomes a server too [needed once]
    #[arg(long, env = "KEELSON_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// The token of the cluster's servers: pki/server-token in the data directory of any of them, or for the first one a secret of
    /// your own [default: the one this server knows; a new one for a new cluster]
    #[arg(long, env = "KEELSON_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Begin a cluster of several servers: run an etcd beside this one, which others join by --server
    #[arg(long, env = "KEELSON_CLUSTER_INIT", num_args = 0..=1, default_missing_value = "true")]
    pub cluster_init: Option<bool>,
    /// The etcd program that runs beside this server [default: the one on PATH]
    #[arg(long, env = "KEELSON_ETCD_PROGRAM", value_name = "FILE")]
    pub etcd_program: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub kubelet: KubeletOptions,
    /// etcd servers (http://HOST:PORT or https://HOST:PORT) to keep the cluster's objects in [default: a store in DATA_DIR]
    #[arg(long, env = "KEELSON_ETCD_SERVERS", value_name = "LIST", value_delimiter = ',')]
    pub etcd_servers: Option<Vec<String>>,
    /// Authority of the etcd servers' certificates [default: the machine's own list]
    #[arg(long, env = "KEELSON_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate by which the etcd servers know this one
    #[arg(long, env = "KEELSON_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, env = "KEELSON_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with [default: /registry]
    #[arg(long, env = "KEELSON_ETCD_PREFIX", value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// After so long without an answer etcd counts as ill [default: 2s]
    #[arg(long, env = "KEELSON_ETCD_HEALTHCHECK_TIMEOUT", value_name = "DURATION")]
    pub etcd_healthcheck_timeout: Option<String>,
    /// How long the past is kept, in either store; 0: this server gives up nothing [default: 5m]
    #[arg(long, env = "KEELSON_ETCD_COMPACTION_INTERVAL", value_name = "DURATION")]
    pub etcd_compaction_interval: Option<String>,
    /// Address on which the store in DATA_DIR speaks etcd's API, to whom pki/etcd in DATA_DIR vouches for [default: none]
    #[arg(long, env = "KEELSON_ETCD_LISTEN", value_name = "IP:PORT")]
    pub etcd_listen: Option<SocketAddr>,
    /// When snapshots of the store are taken, as cron writes it, in UTC; "none": by themselves never [default: every twelve hours; none of an
    /// etcd that somebody else runs]
    #[arg(long, env = "KEELSON_STORE_SNAPSHOT_SCHEDULE", value_name = "CRON")]
    pub store_snapshot_schedule: Option<String>,
    /// How many of the schedule's snapshots are kept [default: 5]
    #[arg(long, env = "KEELSON_STORE_SNAPSHOT_RETENTION", value_name = "N")]
    pub store_snapshot_retention: Option<usize>,
    /// Where snapshots of the store are: a directory, or s3://BUCKET/PREFIX, where those in DATA_DIR/snapshots are sent as well [default:
    /// DATA_DIR/snapshots]
    #[arg(long, env = "KEELSON_STORE_SNAPSHOT_DIR", value_name = "PLACE")]
    pub store_snapshot_dir: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub s3: S3,
    #[command(flatten)]
    #[serde(skip)]
    pub backup: backup::Scheduled,
    #[command(flatten)]
    #[serde(skip)]
    pub addons: addons::Addons,
    #[command(flatten)]
    #[serde(skip)]
    pub history: history::Kept,
    #[command(flatten)]
    #[serde(skip)]
    pub history_logs: history::Logs,
    /// YAML file that says how pods are scheduled: KubeSchedulerConfiguration, kubescheduler.config.k8s.io/v1
    #[arg(long, env = "KEELSON_SCHEDULER_CONFIG", value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or per module [default: info, the store's engine only its warnings]
    #[arg(long, env = "KEELSON_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Form of the log: text, json, or klog, which is the JSON of upstream's components [default: text]
    #[arg(long, env = "KEELSON_LOG_FORMAT", value_name = "FORM")]
    pub log_format: Option<String>,
}

/// Options with everything decided.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub kubeconfig: PathBuf,
    pub node_name: String,
    /// The primary family's first; one of each that pods have.
    pub node_ips: Vec<IpAddr>,
    pub network: Mode,
    pub allocate_node_cidrs: bool,
    pub images: Option<PathBuf>,
    pub registries: Option<PathBuf>,
    pub mirrors_only: bool,
    /// Labels of SELinux are applied.
    pub selinux: bool,
    /// Of the kernel's connection table.
    pub limits: keelson_proxy::limits::Limits,
    /// Bytes of archives that are kept for other nodes, which are asked for theirs.
    pub image_peers: Option<u64>,
    /// `None`: the kubelet's configuration decides.
    pub image_pull_verification: Option<Verification>,
    pub disable: Vec<Component>,
    pub share_from: Vec<String>,
    pub gateway_api: bool,
    pub bind_address: IpAddr,
    pub api_port: u16,
    pub kubelet_port: u16,
    pub dns_port: u16,
    pub tls_san: Vec<String>,
    /// One a family, the primary one first.
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub manifests: PathBuf,
    /// Where the link to the kubelet's directory is to be.
    pub kubelet_link: Option<PathBuf>,
    pub cgroup_root: String,
    /// What the kubelet is told beyond that, and the node's labels.
    pub kubelet: Document,
    pub node_labels: BTreeMap<String, String>,
    pub encryption: keelson_seal::Source,
    pub audit: Option<(Policy, audit::Settings)>,
    /// Where this process' components tell traces, but for a kubelet whose own configuration says so.
    pub tracing: Option<keelson_trace::Settings>,
    pub access: access::Settings,
    pub store: store::Choice,
    /// How often the past is given up, if by this server.
    pub compaction: Option<Duration>,
    /// Where the store speaks etcd's API.
    pub etcd_listen: Option<SocketAddr>,
    pub snapshots: store::snapshot::schedule::Settings,
    /// Backups that are made by themselves: where, and when.
    pub backup: Option<(backup::Target, store::snapshot::schedule::Plan)>,
    pub addons: addons::Settings,
    /// How much is kept of what objects were.
    pub history: Option<Keep>,
    /// Where logs of deleted pods are kept, if they are.
    pub attic: Option<Attic>,
    pub scheduler: keelson_scheduler::Config,
    pub log: Log,
}

/// The store's engine tells of each of its files at level info.
const DEFAULT_LOG: &str = "info,fjall=warn,lsm_tree=warn";
pub const DEFAULT_DATA_DIR: &str = "/var/lib/keelson";

/// The names of options that are a list of their own.
pub fn names<T: Args>() -> Vec<String> {
    let command = T::augment_args(clap::Command::new("options"));
    let names = command.get_arguments().filter_map(|a| a.get_long());
    names.map(str::to_string).collect()
}

/// Takes over from another list of options what the first one leaves open.
macro_rules! fill {
    ($into:ident from $other:ident: $($field:ident),* $(,)?) => {$( if $into.$field.is_none() { $into.$field = $other.$field; } )*};
}
pub(crate) use fill;

/// The options in a file, if one is named.
pub fn read_file<T: serde::de::DeserializeOwned>(file: Option<&Path>) -> anyhow::Result<Option<T>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
    let options = serde_saphyr::from_str(&text)
        .with_context(|| format!("the configuration file {} is not valid", file.display()))?;
    Ok(Some(options))
}

/// The options of a server's file.
fn read_options(file: Option<&Path>) -> anyhow::Result<Option<Options>> {
    let Some(all) = read_file::<Option<serde_json::Map<String, serde_json::Value>>>(file)? else {
        return Ok(None);
    };
    let options = Options::of(all.unwrap_or_default());
    let name = file.unwrap_or(Path::new("")).display();
    Ok(Some(options.with_context(|| {
        format!("the configuration file {name} is not valid")
    })?))
}

impl Options {
    /// From a file's content: options about access and the kubelet have lists of their own.
    pub fn of(mut all: serde_json::Map<String, serde_json::Value>) -> serde_json::Result<Options> {
        let mut apart = |names: Vec<String>| {
            let apart = names.into_iter().filter_map(|name| all.remove_entry(&name)).collect();
            serde_json::Value::Object(apart)
        };
        let (access, kubelet) = (apart(Access::names()), apart(KubeletOptions::names()));
        let (s3, backup) = (apart(names::<S3>()), apart(names::<backup::Scheduled>()));
        let (history, history_logs) = (apart(names::<history::Kept>()), apart(names::<history::Logs>()));
        let addons = apart(names::<addons::Addons>());
        Ok(Options {
            addons: serde_json::from_value(addons)?,
            history: serde_json::from_value(history)?,
            history_logs: serde_json::from_value(history_logs)?,
            s3: serde_json::from_value(s3)?,
            backup: serde_json::from_value(backup)?,
            access: serde_json::from_value(access)?,
            kubelet: serde_json::from_value(kubelet)?,
            ..serde_json::from_value(serde_json::Value::Object(all))?
        })
    }

    /// With what the file says, if one is named.
    pub fn read_file(mut self) -> anyhow::Result<Options> {
        if let Some(mut other) = read_options(self.config.as_deref())? {
            self.access.fill(std::mem::take(&mut other.access));
            self.kubelet.fill(std::mem::take(&mut other.kubelet));
            self.s3.fill(std::mem::take(&mut other.s3));
            self.backup.fill(std::mem::take(&mut other.backup));
            self.addons.fill(std::mem::take(&mut other.addons));
            self.history.fill(std::mem::take(&mut other.history));
            self.history_logs.fill(std::mem::take(&mut other.history_logs));
            fill!(self from other: data_dir, kubeconfig, node_name, node_ip, network_interface, network, images, registries,
                disable_default_registry_endpoint, selinux, kube_proxy_arg, image_peers, image_pull_credentials_verification_policy, preloaded_images_verification_allowlist, disable, share_from, gateway_api,
                bind_address, api_port, kubelet_port, dns_port, tls_san, cluster_cidr, allocate_node_cidrs, service_cidr, cluster_dns, cluster_domain,
                manifests, kubelet_link, cgroup_root, encryption_provider_config, encryption_provider_config_automatic_reload, audit_log_path,
                audit_policy_file, audit_log_maxsize, audit_log_maxbackup, audit_log_maxage, tracing_config_file, server, token, cluster_init, etcd_program, etcd_servers,
                etcd_cafile, etcd_certfile, etcd_keyfile, etcd_prefix, etcd_healthcheck_timeout, etcd_compaction_interval, etcd_listen, store_snapshot_schedule,
                store_snapshot_retention, store_snapshot_dir, scheduler_config, log, log_format);
            self.config = None;
        }
        Ok(self)
    }

    /// Reads the file, if one is named, and decides everything.
    pub fn resolve(self) -> anyhow::Result<Config> {
        self.read_file()?.decide()
    }

    /// What these options say of this node's kubelet, as its flags: that goes before its own files.
    fn of_kubelet(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("port", self.kubelet_port.map(|p| p.to_string())),
            ("address", self.bind_address.map(|ip| ip.to_string())),
            (
                "pod-manifest-path",
                self.manifests.as_ref().map(|m| m.display().to_string()),
            ),
        ];
        all.into_iter().filter_map(|(flag, said)| Some((flag, said?))).collect()
    }

    fn decide(mut self) -> anyhow::Result<Config> {
        let kubelet = self.kubelet.resolve(&self.of_kubelet())?;
        let data_dir = absolute(self.data_dir.take().unwrap_or_else(|| DEFAULT_DATA_DIR.into()))?;
        let encryption = crate::secrets::source(
            self.encryption_provider_config.as_deref(),
            self.encryption_provider_config_automatic_reload.unwrap_or(false),
            self.etcd_servers.as_ref().is_some_and(|servers| !servers.is_empty()),
        )?;
        let audit = self.audit(&data_dir)?;
        let gateway_api = self.gateway_api.unwrap_or(false);
        if gateway_api && self.disable.iter().flatten().any(|c| c == "ingress") {
            anyhow::bail!("--gateway-api is of no use with --disable ingress, which leaves out who serves it");
        }
        let (store, compaction) = (store::Choice::of(&self, &data_dir)?, store::compaction_interval(&self)?);
        let told = self.cluster_cidr.is_some() || self.service_cidr.is_some();
        let (pods, services) = match !told && self.only_ipv6() {
            true => ("fd00:244::/48", "fd00:96::/112"),
            false => ("10.244.0.0/16", "10.96.0.0/16"),
        };
        let given = |list: Option<Vec<String>>, default: &str| list.unwrap_or_else(|| vec![default.into()]);
        let service_cidrs = families::service_cidrs(&given(self.service_cidr.take(), services))?;
        let cluster_cidrs = families::cluster_cidrs(&given(self.cluster_cidr.take(), pods))?;
        let node_ips = self.node_ips(&cluster_cidrs)?;
        families::agree(&cluster_cidrs, &service_cidrs, &node_ips)?;
        let cluster_dns = match self.cluster_dns.take() {
            Some(given) => families::addresses("--cluster-dns", &given)?,
            None => service_cidrs.iter().map(|range| families::nth(*range, 10)).collect(),
        };
        for dns in &cluster_dns {
            anyhow::ensure!(
                service_cidrs.iter().any(|range| range.contains(dns)),
                "--cluster-dns {dns}: it is in none of the ranges of services (--service-cidr)"
            );
        }
        let etcd_listen = store::listens(&self)?;
        let snapshots = store::snapshot::schedule::Settings::of(&self, &data_dir)?;
        let is_own =
            matches!(store, store::Choice::Embedded(_)) && self.cluster_init != Some(true) && self.server.is_none();
        let backup = self.backup.resolve(&self.s3, &data_dir, is_own)?;
        let cluster_domain = self.cluster_domain.take().unwrap_or_else(|| "cluster.local".into());
        let access = std::mem::take(&mut self.access).resolve(&issuer(&cluster_domain))?;
        let log = log(self.log, self.log_format.as_deref())?;
        let network: Mode = self.network.as_deref().unwrap_or("vxlan").parse()?;
        let allocate_node_cidrs = self.allocate_node_cidrs.unwrap_or(true);
        anyhow::ensure!(
            allocate_node_cidrs || network == Mode::Cni,
            "--allocate-node-cidrs=false: with --network {network} pods get their addresses from their node's share"
        );
        Ok(Config {
            kubeconfig: self.kubeconfig.unwrap_or_else(|| data_dir.join("admin.kubeconfig")),
            node_name: match self.node_name {
                Some(name) => name,
                None => host_name()?,
            },
            node_ips,
            network,
            allocate_node_cidrs,
            images: self.images,
            registries: self.registries,
            image_peers: self
                .image_peers
                .as_deref()
                .map(crate::sizes::size)
                .transpose()
                .map_err(|why| anyhow::anyhow!("--image-peers: {why}"))?,
            mirrors_only: self.disable_default_registry_endpoint.unwrap_or(false),
            selinux: self.selinux.unwrap_or(false),
            limits: crate::components::proxy::limits(self.kube_proxy_arg.as_deref().unwrap_or_default())?,
            image_pull_verification: match (
                self.image_pull_credentials_verification_policy,
                self.preloaded_images_verification_allowlist,
            ) {
                (None, None) => None,
                (policy, list) => Some(
                    Verification::parse(&policy.unwrap_or_default(), &list.unwrap_or_default())
                        .map_err(|e| anyhow::anyhow!("image-pull-credentials-verification-policy: {e}"))?,
                ),
            },
            disable: self
                .disable
                .unwrap_or_default()
                .iter()
                .map(|name| name.parse())
                .collect::<anyhow::Result<_>>()?,
            share_from: self.share_from.unwrap_or_default(),
            gateway_api,
            bind_address: self.bind_address.unwrap_or_else(|| match cluster_cidrs.as_slice() {
                // Both families' addresses, where there are both.
                [IpNet::V4(_)] => Ipv4Addr::UNSPECIFIED.into(),
                _ => Ipv6Addr::UNSPECIFIED.into(),
            }),
            api_port: self.api_port.unwrap_or(6443),
            kubelet_port: self.kubelet_port.unwrap_or(10250),
            dns_port: self.dns_port.unwrap_or(10053),
            tls_san: self.tls_san.unwrap_or_default(),
            cluster_cidrs,
            service_cidrs,
            cluster_dns,
            cluster_domain,
            manifests: self.manifests.unwrap_or_else(|| data_dir.join("manifests")),
            kubelet_link: match self.kubelet_link {
                Some(none) if none == Path::new("none") => None,
                Some(path) => Some(absolute(path)?),
                None => Some(crate::kubelet_link::DEFAULT.into()),
            },
            cgroup_root: self.cgroup_root.unwrap_or_else(|| cgroup_root(&data_dir)),
            kubelet,
            node_labels: self.kubelet.labels()?,
            encryption,
            audit,
            tracing: crate::traces::settings(self.tracing_config_file.as_deref())?,
            access,
            store,
            compaction,
            etcd_listen,
            snapshots,
            backup,
            addons: self.addons.resolve(&data_dir)?,
            history: self.history.resolve(compaction)?,
            attic: self.history_logs.resolve(&data_dir)?,
            scheduler: components::scheduler::settings(self.scheduler_config.as_deref())
                .context("--scheduler-config")?,
            log,
            data_dir,
        })
    }

    /// Whether this machine's addresses, or those that are given for it, are of IPv6 and none of IPv4.
    fn only_ipv6(&self) -> bool {
        let has = |ipv4: bool| match (&self.node_ip, &self.network_interface) {
            (Some(given), _) if !given.is_empty() => {
                let mut ips = given.iter().filter_map(|ip| ip.trim().parse::<IpAddr>().ok());
                ips.any(|ip| ip.is_ipv4() == ipv4)
            }
            (_, Some(link)) => families::on_interface(link, None, ipv4).is_ok(),
            _ => families::default_address(ipv4).is_ok(),
        };
        has(false) && !has(true)
    }

    /// An address of each family that pods have: as given, of the given link, or by which the world is reached.
    fn node_ips(&self, cluster_cidrs: &[IpNet]) -> anyhow::Result<Vec<IpAddr>> {
        let given = match &self.node_ip {
            Some(list) => families::addresses("--node-ip", list)?,
            None => Vec::new(),
        };
        let of_family = |range: &IpNet| {
            let ipv4 = range.addr().is_ipv4();
            let given = given.iter().copied().find(|ip| ip.is_ipv4() == ipv4);
            match (given, &self.network_interface) {
                (Some(ip), None) => Ok(ip),
                (given, Some(link)) => families::on_interface(link, given, ipv4),
                // Who names one address means that one.
                (None, None) if !given_nothing(&self.node_ip) => {
                    let family = if ipv4 { "IPv4" } else { "IPv6" };
                    bail!("--node-ip has no {family} address, and pods have (--cluster-cidr {range})")
                }
                (None, None) => families::default_address(ipv4),
            }
        };
        cluster_cidrs.iter().map(of_family).collect()
    }

    /// What is audited, and where to.
    fn audit(&self, data_dir: &Path) -> anyhow::Result<Option<(Policy, audit::Settings)>> {
        let path = self.audit_log_path.clone();
        if path.as_deref() == Some(Path::new("none")) {
            anyhow::ensure!(
                self.audit_policy_file.is_none(),
                "--audit-policy-file says what to log, and --audit-log-path none that there is no log: leave one out"
            );
            return Ok(None);
        }
        let policy = match &self.audit_policy_file {
            Some(file) => Policy::read(file)?,
            None => Policy::standard()?,
        };
        let mut settings = audit::Settings::at(path.unwrap_or_else(|| data_dir.join("audit/audit.log")));
        if let Some(megabytes) = self.audit_log_maxsize {
            anyhow::ensure!(
                megabytes > 0,
                "--audit-log-maxsize 0: a log that may not grow holds nothing"
            );
            settings.max_size = megabytes.saturating_mul(1 << 20);
        }
        settings.max_backups = self.audit_log_maxbackup.unwrap_or(settings.max_backups);
        let days = self.audit_log_maxage.filter(|days| *days > 0);
        settings.max_age = days.map(|days| Duration::from_secs(u64::from(days) * 24 * 60 * 60));
        Ok(Some((policy, settings)))
    }
}

/// `--log` and `--log-format`.
pub fn log(filter: Option<String>, format: Option<&str>) -> anyhow::Result<Log> {
    Ok(Log {
        filter: filter.unwrap_or_else(|| DEFAULT_LOG.into()),
        form: match format {
            None => Form::default(),
            Some(name) => {
                Form::parse(name).with_context(|| format!("--log-format {name}: it can be text, json or klog"))?
            }
        },
    })
}

impl Config {
    pub fn runs(&self, component: Component) -> bool {
        !self.disable.contains(&component)
    }
    /// The first addresses of the service ranges: the primary one is that of the API's own service.
    pub fn api_service_ips(&self) -> Vec<IpAddr> {
        self.service_cidrs
            .iter()
            .map(|range| families::nth(*range, 1))
            .collect()
    }
    /// The primary address of this node.
    pub fn node_ip(&self) -> IpAddr {
        self.node_ips.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.cluster_cidrs.iter().map(|range| Family::of(range.addr()))
    }
    pub fn runtime_dir(&self) -> PathBuf {
        self.data_dir.join("runtime")
    }
    /// What the connection table had before.
    pub fn limits_note(&self) -> PathBuf {
        self.data_dir.join("proxy/limits.json")
    }
    pub fn network_dir(&self) -> PathBuf {
        self.data_dir.join("network")
    }
    pub fn cri_socket(&self) -> PathBuf {
        self.data_dir.join("runtime/cri.sock")
    }
}

/// Who issues the tokens of a cluster's service accounts.
pub fn issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

/// Two clusters of different data directories share nothing, cgroups included.
pub fn cgroup_root(data_dir: &Path) -> String {
    if data_dir == Path::new(DEFAULT_DATA_DIR) {
        return "/keelson".into();
    }
    let hash = keelson_proxy::names::hash(&data_dir.to_string_lossy());
    format!("/keelson-{:08x}", hash as u32)
}

pub fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("{} is no path", path.display()))
}

fn given_nothing(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

pub fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?;
    Ok(name.trim().to_lowercase())
}

#[cfg(test)]
mod tests;
