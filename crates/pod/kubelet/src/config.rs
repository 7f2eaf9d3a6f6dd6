//! The kubelet's settings.

use crate::company::Company;
use crate::gc::attic::Attic;
use crate::managers::{memory, topology};
use crate::shutdown::groups::Period;
use anyhow::Context;
use keelson_client::reviews::Remember;
use keelson_client::revocations::Revocations;
use keelson_client::{Pace, Telling};
use keelson_pki::verify::{Live, Roots};
use keelson_zpages::Flags;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::eviction::threshold::Eviction;

/// Whether containers may be swapped out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    #[default]
    None,
    /// Burstable pods, in proportion to what they ask of the memory.
    Limited,
}

impl Swap {
    pub fn name(self) -> &'static str {
        match self {
            Swap::None => "NoSwap",
            Swap::Limited => "LimitedSwap",
        }
    }
}

/// How often something is done a second, and how often at once after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub per_second: Option<u32>,
    pub burst: Option<u32>,
}

impl Rate {
    /// What is in force: nothing if nothing is said, or zero a second. What isn't said beside something is usual.
    pub fn pace(self, usual: (u32, u32)) -> Option<Arc<Pace>> {
        if self == Rate::default() {
            return None;
        }
        match self.per_second.unwrap_or(usual.0) {
            0 => None,
            per_second => Some(Arc::new(Pace::new(per_second, self.burst.unwrap_or(usual.1)))),
        }
    }
}

/// What only a kubelet that is a program of its own is told; beside other components the program knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// The runtime's socket, as `unix:///PATH`; empty: not told.
    pub runtime: String,
    /// Where health is told; port 0: nowhere.
    pub health: SocketAddr,
    /// By which the kubelet is known: certificate and key. `None`: by one that nobody vouches for.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Authorities of clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// How this program logs.
    pub logging: Option<Logging>,
}

/// What a file says of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `text`, or `json`.
    pub format: String,
    /// By upstream's numbers.
    pub verbosity: Option<u32>,
}

impl Default for Alone {
    fn default() -> Self {
        Alone {
            runtime: String::new(),
            health: SocketAddr::from((Ipv4Addr::LOCALHOST, 10248)),
            cert: None,
            key: None,
            client_ca: None,
            logging: None,
        }
    }
}

/// TLS material of the kubelet's own server.
#[derive(Clone, Debug)]
pub struct ServingTls {
    /// Asked at each handshake, so that a certificate can be renewed while the kubelet runs.
    pub identity: Arc<dyn ResolvesServerCert>,
    /// Client certificates are accepted from these authorities.
    pub client_ca: Live,
    /// Files in which both are renewed, by somebody else.
    pub following: Option<crate::server::identity::Following>,
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
        let clients = match client_ca.is_empty() {
            true => Roots::default(),
            false => Roots::from_pem(&client_ca).context("reading the authority of client certificates")?,
        };
        Ok(ServingTls {
            identity: Arc::new(SingleCertAndKey::from(pair)),
            client_ca: clients.into(),
            following: None,
        })
    }
}

/// Archives of images' layers that other nodes may have. Whoever runs the runtime knows them.
pub trait Archives: Send + Sync + std::fmt::Debug {
    /// One that was pulled here from this repository.
    fn open(&self, repository: &str, digest: &str) -> std::io::Result<Option<std::fs::File>>;
}

#[derive(Clone, Debug)]
pub struct Config {
    pub alone: Option<Alone>,
    /// With whom this kubelet runs in one process.
    pub company: Option<Arc<Company>>,
    /// Where traces go, and who tells them.
    pub tracing: Option<keelson_trace::Settings>,
    pub tracer: keelson_trace::Tracer,
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
    /// Pods for each CPU at most; zero: only `max_pods` counts.
    pub pods_per_core: u32,
    /// Users and groups of a pod that has its own.
    pub ids_per_pod: u32,
    /// Processes a pod may have; `None` is no limit.
    pub pod_pids_limit: Option<i64>,
    pub eviction: Eviction,
    /// Amounts kept from pods, for the machine's own services and for the node's: `cpu`, `memory`, `ephemeral-storage`, `pid`.
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    /// CPUs kept from pods, as a list, and how many those are.
    pub reserved_cpus: Option<(String, i64)>,
    /// Containers that may get whole CPUs for themselves, by which options (alpha ones by a gate), and how soon a failure to tell a
    /// container its CPUs is tried again.
    pub static_cpus: bool,
    pub cpu_options: BTreeMap<String, String>,
    pub alpha_cpu_options: bool,
    pub cpu_reconcile: Duration,
    /// Containers may have their memory from certain nodes of memory, and what is kept from them on each.
    pub static_memory: bool,
    pub reserved_memory: memory::reserved::Reserved,
    /// How CPUs, memory and devices are brought near each other.
    pub topology: topology::Policy,
    pub topology_scope: topology::Scope,
    pub topology_options: BTreeMap<String, String>,
    /// For whom limits hold as a whole: `pods`, `system-reserved`, `kube-reserved`, or those two with `-compressible`.
    pub enforce: BTreeSet<String>,
    /// Where the machine's own services run, and the node's.
    pub system_reserved_cgroup: String,
    pub kube_reserved_cgroup: String,
    pub node_labels: BTreeMap<String, String>,
    /// What the cloud calls this machine.
    pub provider_id: String,
    /// The kubelet makes its own Node.
    pub register_node: bool,
    /// How often the node is looked at, and how often its status is told although nothing has changed.
    pub status_update: Duration,
    pub status_report: Duration,
    /// How many images the status names; `None`: all.
    pub status_images: Option<usize>,
    /// `key=value:effect`.
    pub register_taints: Vec<String>,
    /// Sysctls allowed beyond the safe ones; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: bool,
    pub swap: Swap,
    /// The kubelet doesn't start where the machine swaps, or has cgroups of version 1.
    pub fail_swap_on: bool,
    pub fail_cgroup_v1: bool,
    /// When memory runs out in a container only one process ends. `None`: as the version of cgroups has it.
    pub single_process_oom_kill: Option<bool>,
    /// CPU limits hold, counted anew after each period.
    pub cpu_quota: bool,
    pub cpu_period: Duration,
    /// What a container may use of the memory between its request and its limit before the kernel slows it down (`None`: all),
    /// and whether the kernel keeps what is requested.
    pub memory_throttling: Option<f64>,
    pub memory_tiers: bool,
    /// Where the server listens; `None` runs without a server.
    pub listen: Option<SocketAddr>,
    /// The port told in the node's status.
    pub port: u16,
    pub tls: Option<ServingTls>,
    /// Clients without credentials may not use the server when this is false (the default).
    pub anonymous: bool,
    /// How long the API server's answers about tokens and rights are remembered.
    pub reviews: Remember,
    /// What has been taken back in this cluster; `None`: the cluster keeps no such list.
    pub revocations: Option<Arc<Revocations>>,
    /// What of this kubelet others count (its requests, its certificates), for its page of metrics.
    pub telling: Option<Telling>,
    /// What the program was told, for `/flagz`; `None`: that isn't served.
    pub flags: Option<Arc<Flags>>,
    /// What other nodes may have of images here; `None`: nothing.
    pub archives: Option<Arc<dyn Archives>>,
    /// exec, attach, logs and the like are served; the machine's logs are, and by the names of services, too.
    pub debugging_handlers: bool,
    pub system_logs: bool,
    pub system_log_query: bool,
    pub lease_duration: Duration,
    /// The largest a container's log grows, and how many files are kept.
    pub log_max_size: u64,
    pub log_max_files: usize,
    /// Where logs of pods that are gone stay for a while; `None`: they go with their pods.
    pub attic: Option<Attic>,
    /// How often logs are looked at.
    pub log_monitor: Duration,
    /// Requests to the API server, events, and pulls; bounded by others where nothing is said.
    pub api_rate: Rate,
    pub event_rate: Rate,
    pub pull_rate: Rate,
    /// Images are pulled one after the other; several at the same time.
    pub serialize_pulls: Option<bool>,
    pub parallel_pulls: Option<usize>,
    /// Images are removed from the first percentage of the disk on, down to the second.
    pub image_gc_high_percent: u64,
    pub image_gc_low_percent: u64,
    pub image_min_age: Duration,
    /// Images unused for longer are removed whatever the disk has; zero keeps them.
    pub image_max_age: Duration,
    /// Whose use of images that are there wants credentials.
    pub image_pull_verification: crate::act::pulled::Verification,
    /// Programs that have credentials for images.
    pub credential_providers: Option<crate::providers::Settings>,
    /// How long the runtime may take for an answer; as long again for a sandbox, and the grace of what it ends.
    pub runtime_request_timeout: Duration,
    /// Longest wait of a container that keeps failing.
    pub crash_backoff_max: Duration,
    /// How long pods get when the machine stops, and what of it is the critical ones'; or by priority.
    pub shutdown_grace: Duration,
    pub shutdown_grace_critical: Duration,
    pub shutdown_by_priority: Vec<Period>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            alone: None,
            company: None,
            tracing: None,
            tracer: keelson_trace::Tracer::none(),
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
            pods_per_core: 0,
            ids_per_pod: crate::userns::UNIT,
            pod_pids_limit: None,
            eviction: Eviction::default(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            reserved_cpus: None,
            static_cpus: false,
            cpu_options: BTreeMap::new(),
            alpha_cpu_options: false,
            cpu_reconcile: Duration::from_secs(10),
            static_memory: false,
            reserved_memory: memory::reserved::Reserved::new(),
            topology: topology::Policy::None,
            topology_scope: topology::Scope::Container,
            topology_options: BTreeMap::new(),
            enforce: BTreeSet::from(["pods".into()]),
            system_reserved_cgroup: String::new(),
            kube_reserved_cgroup: String::new(),
            node_labels: BTreeMap::new(),
            provider_id: String::new(),
            register_node: true,
            status_update: Duration::from_secs(10),
            status_report: Duration::from_secs(300),
            status_images: Some(50),
            register_taints: Vec::new(),
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            swap: Swap::None,
            fail_swap_on: false,
            fail_cgroup_v1: false,
            single_process_oom_kill: None,
            cpu_quota: true,
            cpu_period: Duration::from_millis(100),
            memory_throttling: None,
            memory_tiers: false,
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 10250))),
            port: 10250,
            tls: None,
            anonymous: false,
            reviews: Remember::default(),
            revocations: None,
            telling: None,
            flags: None,
            archives: None,
            debugging_handlers: true,
            system_logs: true,
            system_log_query: false,
            lease_duration: Duration::from_secs(40),
            log_max_size: 10 << 20,
            log_max_files: 5,
            attic: None,
            log_monitor: Duration::from_secs(10),
            api_rate: Rate::default(),
            event_rate: Rate::default(),
            pull_rate: Rate::default(),
            serialize_pulls: None,
            parallel_pulls: None,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_min_age: Duration::from_secs(120),
            image_max_age: Duration::ZERO,
            image_pull_verification: Default::default(),
            credential_providers: None,
            runtime_request_timeout: Duration::from_secs(120),
            crash_backoff_max: Duration::from_secs(300),
            shutdown_grace: Duration::ZERO,
            shutdown_grace_critical: Duration::ZERO,
            shutdown_by_priority: Vec::new(),
        }
    }
}
