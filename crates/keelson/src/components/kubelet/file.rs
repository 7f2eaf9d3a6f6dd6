//! What upstream's kubelet takes from a `KubeletConfiguration` and, under older names, as flags. A field that isn't here is refused by
//! its name.

use crate::config::{self, Threshold, fill};
use anyhow::ensure;
use clap::{ArgAction, Args};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    #[arg(skip)]
    pub container_runtime_endpoint: Option<String>,
    /// Address on which the kubelet's API is served [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Port of the kubelet's API [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Address on which health is told [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub healthz_bind_address: Option<IpAddr>,
    /// Port on which health is told; 0: none [default: 10248]
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Certificate by which the kubelet is known [default: one that nobody vouches for]
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authorities of client certificates
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub client_ca_file: Option<PathBuf>,
    /// Whether who shows nothing is asked about as system:anonymous [default: false]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip)]
    pub anonymous_auth: Option<bool>,
    /// Addresses of the cluster's DNS
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Option<Vec<String>>,
    /// Domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Names the servers of pods that take this machine's [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// Directory of static pods [default: there are none]
    #[arg(long, value_name = "DIR")]
    #[serde(rename = "staticPodPath")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Directory of containers' logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    #[serde(rename = "podLogsDir")]
    pub pod_logs_dir: Option<PathBuf>,
    /// Most pods on this node [default: 110]
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// Most processes of a pod; -1: no limit [default: -1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[serde(rename = "podPidsLimit")]
    pub pod_max_pids: Option<i64>,
    /// cgroup below which pods are [default: /]
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<String>,
    /// When pods are ended to keep the node alive [default: memory.available<100Mi,nodefs.available<10%]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[serde(skip)]
    pub eviction_hard: Option<Vec<String>>,
    /// Taints with which this node registers
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    #[serde(skip)]
    pub register_with_taints: Option<Vec<String>>,
    /// Sysctls allowed beyond the safe ones; with * at the end all that begin so
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[serde(rename = "allowedUnsafeSysctls")]
    pub allowed_unsafe_sysctls: Option<Vec<String>>,
    /// RuntimeDefault is the seccomp profile of who names none [default: false]
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub seccomp_default: Option<bool>,
    /// Files that are kept of a container's log [default: 5]
    #[arg(long, value_name = "N")]
    pub container_log_max_files: Option<usize>,
    /// Percentage of the disk from which on images are removed [default: 85]
    #[arg(long, value_name = "N")]
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold: Option<u64>,
    /// Percentage of the disk down to which they are [default: 80]
    #[arg(long, value_name = "N")]
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold: Option<u64>,
}

impl File {
    /// What the other says where this one says nothing.
    pub fn or(mut self, other: File) -> File {
        fill!(self from other: container_runtime_endpoint, address, port, healthz_bind_address, healthz_port, tls_cert_file,
            tls_private_key_file, client_ca_file, anonymous_auth, cluster_dns, cluster_domain, resolv_conf, pod_manifest_path,
            pod_logs_dir, max_pods, pod_max_pids, cgroup_root, eviction_hard, register_with_taints, allowed_unsafe_sysctls,
            seccomp_default, container_log_max_files, image_gc_high_threshold, image_gc_low_threshold);
        self
    }

    pub fn eviction_hard(&self) -> anyhow::Result<Vec<Threshold>> {
        let all = self.eviction_hard.iter().flatten();
        all.map(|text| config::threshold(text)).collect()
    }
}

/// What in a file has another shape than as a flag.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Shaped {
    authentication: Authentication,
    authorization: Authorization,
    eviction_hard: Option<BTreeMap<String, String>>,
    register_with_taints: Option<Vec<Taint>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Authentication {
    x509: X509,
    anonymous: Switch,
    webhook: Switch,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Switch {
    enabled: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Authorization {
    mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Taint {
    key: String,
    #[serde(default)]
    value: String,
    effect: String,
}

/// A duration of nothing says nothing: upstream puts its default in its place, and kubeadm writes many.
fn is_zero(value: &Value) -> bool {
    value == "0s"
}

fn without_zero(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(without_zero);
        map.retain(|_, value| !is_zero(value) && !value.as_object().is_some_and(serde_json::Map::is_empty));
    }
}

/// Reads a `KubeletConfiguration`.
pub fn read(path: &Path) -> anyhow::Result<File> {
    let content: Option<serde_json::Map<String, Value>> = config::read_file(Some(path))?.unwrap_or_default();
    let mut content = content.unwrap_or_default();
    content.values_mut().for_each(without_zero);
    content.retain(|_, value| !is_zero(value));
    let mut text = |key: &str| {
        content
            .remove(key)
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    ensure!(
        version == API_VERSION && kind == KIND,
        "no kind {kind:?} is registered for version {version:?}: it must be {KIND} of {API_VERSION}"
    );
    let names = ["authentication", "authorization", "evictionHard", "registerWithTaints"];
    let shaped = names
        .into_iter()
        .filter_map(|name| content.remove_entry(name))
        .collect();
    let shaped: Shaped = serde_json::from_value(Value::Object(shaped))?;
    ensure!(
        shaped.authentication.webhook.enabled != Some(false),
        "authentication.webhook.enabled: tokens are always reviewed by the API server"
    );
    let mode = shaped.authorization.mode.unwrap_or_else(|| "Webhook".into());
    ensure!(
        mode == "Webhook",
        "authorization.mode {mode}: what is allowed is always decided by the API server (Webhook)"
    );
    let file: File = serde_json::from_value(Value::Object(content))?;
    let thresholds = shaped
        .eviction_hard
        .map(|map| map.iter().map(|(signal, value)| format!("{signal}<{value}")).collect());
    let taints = shaped.register_with_taints;
    Ok(File {
        client_ca_file: shaped.authentication.x509.client_ca_file,
        anonymous_auth: shaped.authentication.anonymous.enabled,
        eviction_hard: thresholds,
        register_with_taints: taints.map(|all| {
            all.iter()
                .map(|t| format!("{}={}:{}", t.key, t.value, t.effect))
                .collect()
        }),
        ..file
    })
}
