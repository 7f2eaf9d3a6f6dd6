//! The kubelet's settings.

use anyhow::Context;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Thresholds below which the node ends pods to stay alive.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub memory_available: u64,
    /// Parts of the file system, in percent.
    pub nodefs_available_percent: u64,
    pub nodefs_inodes_percent: u64,
    /// Processes left, in percent of the machine's.
    pub pid_available_percent: u64,
    /// How long a condition stays after the pressure has gone.
    pub transition: Duration,
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction {
            memory_available: 100 << 20,
            nodefs_available_percent: 10,
            nodefs_inodes_percent: 5,
            pid_available_percent: 5,
            transition: Duration::from_secs(300),
        }
    }
}

/// TLS material of the kubelet's own server.
#[derive(Clone, Debug)]
pub struct ServingTls {
    /// Asked at each handshake, so that a certificate can be renewed while the kubelet runs.
    pub identity: Arc<dyn ResolvesServerCert>,
    /// Client certificates are accepted from this authority, PEM.
    pub client_ca: Vec<u8>,
}

impl ServingTls {
    /// With one certificate for good. Fails when the PEM can't be read or the two don't fit.
    pub fn fixed(cert: &[u8], key: &[u8], client_ca: Vec<u8>) -> anyhow::Result<ServingTls> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .context("reading the kubelet's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).context("reading the kubelet's key")?;
        let provider = rustls::crypto::ring::default_provider();
        let pair =
            CertifiedKey::from_der(chain, key, &provider).context("the kubelet's certificate and key don't fit")?;
        Ok(ServingTls {
            identity: Arc::new(SingleCertAndKey::from(pair)),
            client_ca,
        })
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, the main one first; at most one a family.
    pub node_ips: Vec<String>,
    /// Host name to tell; empty takes the machine's.
    pub hostname: String,
    pub root_dir: PathBuf,
    /// Another name of the same directory, a link to it: drivers of volumes are often written for `/var/lib/kubelet`. One that
    /// says by this name where its socket is gets its paths by it.
    pub known_as: Option<PathBuf>,
    /// Where containers' logs are kept.
    pub pod_logs_dir: PathBuf,
    /// Parent of `kubepods` among the cgroups, e.g. `/` or `/keelson`.
    pub cgroup_root: String,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub static_pod_path: Option<PathBuf>,
    pub max_pods: u32,
    /// Processes a pod may have; `None` is no limit.
    pub pod_pids_limit: Option<i64>,
    pub eviction: Eviction,
    /// Amounts kept from pods: `cpu`, `memory`, `ephemeral-storage`.
    pub reserved: BTreeMap<String, String>,
    pub node_labels: BTreeMap<String, String>,
    /// `key=value:effect`.
    pub register_taints: Vec<String>,
    /// Sysctls allowed beyond the safe ones; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: bool,
    /// Where the server listens; `None` runs without a server.
    pub listen: Option<SocketAddr>,
    /// The port told in the node's status.
    pub port: u16,
    pub tls: Option<ServingTls>,
    /// Clients without credentials may not use the server when this is false (the default).
    pub anonymous: bool,
    pub lease_duration: Duration,
    /// The largest a container's log grows, and how many files are kept.
    pub log_max_size: u64,
    pub log_max_files: usize,
    /// Images are removed from the first percentage of the disk on, down to the second.
    pub image_gc_high_percent: u64,
    pub image_gc_low_percent: u64,
    pub image_min_age: Duration,
    /// Images unused for longer are removed whatever the disk has; zero keeps them.
    pub image_max_age: Duration,
    /// Whose use of images that are there wants credentials.
    pub image_pull_verification: crate::act::pulled::Verification,
    /// Longest wait of a container that keeps failing.
    pub crash_backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_name: String::new(),
            node_ips: Vec::new(),
            hostname: String::new(),
            root_dir: "/var/lib/kubelet".into(),
            known_as: None,
            pod_logs_dir: "/var/log/pods".into(),
            cgroup_root: "/".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            static_pod_path: None,
            max_pods: 110,
            pod_pids_limit: None,
            eviction: Eviction::default(),
            reserved: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            register_taints: Vec::new(),
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 10250))),
            port: 10250,
            tls: None,
            anonymous: false,
            lease_duration: Duration::from_secs(40),
            log_max_size: 10 << 20,
            log_max_files: 5,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_min_age: Duration::from_secs(120),
            image_max_age: Duration::ZERO,
            image_pull_verification: Default::default(),
            crash_backoff_max: Duration::from_secs(300),
        }
    }
}
