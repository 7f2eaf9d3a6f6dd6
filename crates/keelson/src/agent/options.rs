//! What `keelson agent` is told, by the same ways as a server. What has to be the same on all nodes (address ranges, domain,
//! network) is not asked for: the cluster tells it.

use crate::cluster::{Cluster, parts};
use crate::config::{self, Config, Options as ServerOptions, fill};
use crate::history::Logs;
use crate::kubelet_options::KubeletOptions;
use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// YAML file with any of these options
    #[arg(long, env = "KEELSON_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Any server of the cluster, as https://HOST:6443 [needed once; then the servers are known]
    #[arg(long, env = "KEELSON_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Token of `keelson token create` [needed once; then this node has a certificate]
    #[arg(long, env = "KEELSON_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Directory of everything that is kept [default: /var/lib/keelson]
    #[arg(long, env = "KEELSON_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// This node's name [default: the host name]
    #[arg(long, env = "KEELSON_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// This node's address [default: that of --network-interface, or the source address of the default route]
    #[arg(long, env = "KEELSON_NODE_IP", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "crate::families::list")]
    pub node_ip: Option<Vec<String>>,
    /// The interface by which other nodes are reached
    #[arg(long, env = "KEELSON_NETWORK_INTERFACE", value_name = "NAME")]
    pub network_interface: Option<String>,
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
    /// Components not to run: dns, ingress, local-storage, proxy
    #[arg(long, env = "KEELSON_DISABLE", value_name = "LIST", value_delimiter = ',')]
    pub disable: Option<Vec<String>>,
    /// Address on which the kubelet's API is served [default: 0.0.0.0]
    #[arg(long, env = "KEELSON_BIND_ADDRESS", value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port of the kubelet's API [default: 10250]
    #[arg(long, env = "KEELSON_KUBELET_PORT", value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// Port of the DNS server on the node's address [default: 10053]
    #[arg(long, env = "KEELSON_DNS_PORT", value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// Directory of static pod manifests [default: DATA_DIR/manifests]
    #[arg(long, env = "KEELSON_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where drivers of volumes find the kubelet's directory: a link to it; "none": there is none [default: /var/lib/kubelet]
    #[arg(long, env = "KEELSON_KUBELET_LINK", value_name = "PATH")]
    pub kubelet_link: Option<PathBuf>,
    /// cgroup below which everything of this node lives [default: /keelson-<hash of the data directory>, or /keelson for
    /// the default one]
    #[arg(long, env = "KEELSON_CGROUP_ROOT", value_name = "PATH")]
    pub cgroup_root: Option<String>,
    #[command(flatten)]
    #[serde(skip)]
    pub kubelet: KubeletOptions,
    #[command(flatten)]
    #[serde(skip)]
    pub history_logs: Logs,
    /// What to log: error, warn, info, debug, trace, or per module [default: info]
    #[arg(long, env = "KEELSON_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Form of the log: text, json, or klog, which is the JSON of upstream's components [default: text]
    #[arg(long, env = "KEELSON_LOG_FORMAT", value_name = "FORM")]
    pub log_format: Option<String>,
}

impl Options {
    /// From a file's content.
    pub fn of(mut all: serde_json::Map<String, serde_json::Value>) -> serde_json::Result<Options> {
        let mut apart = |names: Vec<String>| {
            let apart = names.into_iter().filter_map(|name| all.remove_entry(&name)).collect();
            serde_json::Value::Object(apart)
        };
        let (kubelet, logs) = (apart(KubeletOptions::names()), apart(config::names::<Logs>()));
        Ok(Options {
            kubelet: serde_json::from_value(kubelet)?,
            history_logs: serde_json::from_value(logs)?,
            ..serde_json::from_value(serde_json::Value::Object(all))?
        })
    }

    /// With what the file says.
    pub fn read_file(mut self) -> anyhow::Result<Options> {
        let file = self.config.as_deref();
        if let Some(all) = config::read_file::<Option<serde_json::Map<String, serde_json::Value>>>(file)? {
            let mut other = Options::of(all.unwrap_or_default()).context("the configuration file is not valid")?;
            self.kubelet.fill(std::mem::take(&mut other.kubelet));
            self.history_logs.fill(std::mem::take(&mut other.history_logs));
            fill!(self from other: server, token, data_dir, node_name, node_ip, network_interface, images, registries,
                disable_default_registry_endpoint, selinux, kube_proxy_arg, image_peers, image_pull_credentials_verification_policy,
                preloaded_images_verification_allowlist, disable,
                bind_address, kubelet_port, dns_port, manifests, kubelet_link, cgroup_root, log, log_format);
        }
        if let Some(other) = self
            .disable
            .iter()
            .flatten()
            .find(|c| !matches!(c.trim(), "dns" | "ingress" | "local-storage" | "proxy"))
        {
            anyhow::bail!("--disable {other}: an agent can leave out dns, ingress, local-storage and proxy");
        }
        Ok(self)
    }

    /// Everything decided. Without the cluster's settings only what this machine decides alone is meaningful.
    pub fn resolve(&self, cluster: Option<&Cluster>) -> anyhow::Result<Config> {
        let this = self.clone();
        let left_out = cluster.into_iter().flat_map(Cluster::disabled).map(str::to_owned);
        let disable: Vec<String> = this.disable.into_iter().flatten().chain(left_out).collect();
        let server = ServerOptions {
            data_dir: this.data_dir,
            node_name: this.node_name,
            node_ip: this.node_ip,
            network_interface: this.network_interface,
            images: this.images,
            registries: this.registries,
            disable_default_registry_endpoint: this.disable_default_registry_endpoint,
            selinux: this.selinux,
            kube_proxy_arg: this.kube_proxy_arg,
            image_peers: this.image_peers,
            image_pull_credentials_verification_policy: this.image_pull_credentials_verification_policy,
            preloaded_images_verification_allowlist: this.preloaded_images_verification_allowlist,
            disable: Some(disable),
            bind_address: this.bind_address,
            kubelet_port: this.kubelet_port,
            dns_port: this.dns_port,
            manifests: this.manifests,
            kubelet_link: this.kubelet_link,
            cgroup_root: this.cgroup_root,
            kubelet: this.kubelet,
            history_logs: this.history_logs,
            log: this.log,
            log_format: this.log_format,
            cluster_cidr: cluster.map(|c| parts(&c.cluster_cidr)),
            service_cidr: cluster.map(|c| parts(&c.service_cidr)),
            cluster_dns: cluster.map(|c| parts(&c.cluster_dns)),
            cluster_domain: cluster.map(|c| c.cluster_domain.clone()),
            network: cluster.map(|c| c.network.clone()),
            ..ServerOptions::default()
        };
        server.resolve()
    }
}
