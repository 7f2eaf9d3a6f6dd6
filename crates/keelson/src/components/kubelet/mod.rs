//! The kubelet. Alone it reaches its runtime by CRI's socket, whoever's that is.

mod file;

use super::LogOptions;
use super::front::{Front, plain, secure};
use super::reach::Reach;
use crate::config::{self, Threshold};
use crate::families;
use crate::supervise::Supervisor;
use anyhow::{Context, ensure};
use clap::Args;
use file::File;
use keelson_cri::CriClients;
use keelson_kubelet::{Config, Eviction, ServingTls};
use keelson_pki::San;
use keelson_pki::authority::{Authority, CertSpec};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

pub fn spawn(components: &mut Supervisor, client: kube::Client, runtime: CriClients, settings: Config) {
    components.spawn("kubelet", move |stop| {
        keelson_kubelet::run(client.clone(), runtime.clone(), settings.clone(), stop)
    });
}

/// Upstream's defaults, but for what is said.
pub fn eviction(thresholds: &[Threshold]) -> Eviction {
    let mut eviction = Eviction::default();
    for threshold in thresholds {
        match *threshold {
            Threshold::MemoryBytes(n) => eviction.memory_available = n,
            Threshold::DiskPercent(n) => eviction.nodefs_available_percent = n,
            Threshold::InodesPercent(n) => eviction.nodefs_inodes_percent = n,
            Threshold::ProcessesPercent(n) => eviction.pid_available_percent = n,
        }
    }
    eviction
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// YAML file with a KubeletConfiguration, kubelet.config.k8s.io/v1beta1; the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The runtime's socket: unix:///PATH [needed here or in the file]
    #[arg(long, value_name = "URL")]
    container_runtime_endpoint: Option<String>,
    /// This node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// This node's addresses, one or one a family [default: the source address of the default route]
    #[arg(long, value_name = "IPS", value_delimiter = ',')]
    node_ip: Vec<String>,
    /// Directory of pods and volumes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/keelson-kubelet")]
    root_dir: PathBuf,
    /// Labels that this node is given when it registers
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    node_labels: Vec<String>,
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    log: LogOptions,
}

impl Options {
    /// What the kubelet is told, where its runtime is, and where health is told.
    fn settings(mut self) -> anyhow::Result<(Config, String, SocketAddr)> {
        let file = match &self.config {
            Some(path) => self.file.or(file::read(path).context("--config")?),
            None => self.file,
        };
        let endpoint = self
            .container_runtime_endpoint
            .take()
            .or(file.container_runtime_endpoint.clone());
        let endpoint = endpoint.context("--container-runtime-endpoint says where the runtime is: give it")?;
        ensure!(
            endpoint.starts_with("unix:///"),
            "--container-runtime-endpoint {endpoint}: the form is unix:///PATH"
        );
        let node_name = match self.hostname_override {
            Some(name) => name.trim().to_lowercase(),
            None => config::host_name()?,
        };
        let node_ips = match self.node_ip.as_slice() {
            [] => vec![families::default_address(true)?],
            given => families::addresses("--node-ip", given)?,
        };
        let labels = self.node_labels.iter().map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--node-labels {pair}: the form is KEY=VALUE"))?;
            anyhow::Ok((key.to_string(), value.to_string()))
        });
        let root_dir = config::absolute(self.root_dir)?;
        let defaults = Config::default();
        let health = SocketAddr::new(
            file.healthz_bind_address.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            file.healthz_port.unwrap_or(10248),
        );
        let port = file.port.unwrap_or(defaults.port);
        let thresholds = file.eviction_hard()?;
        let settings = Config {
            tls: Some(serving(&file, &node_name, &node_ips)?),
            listen: Some(SocketAddr::new(
                file.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                port,
            )),
            port,
            node_ips: node_ips.iter().map(IpAddr::to_string).collect(),
            hostname: node_name.clone(),
            node_name,
            node_labels: labels.collect::<anyhow::Result<_>>()?,
            register_taints: file.register_with_taints.unwrap_or_default(),
            root_dir,
            pod_logs_dir: file.pod_logs_dir.unwrap_or(defaults.pod_logs_dir),
            cgroup_root: file
                .cgroup_root
                .filter(|r| !r.is_empty())
                .unwrap_or(defaults.cgroup_root),
            cluster_dns: file.cluster_dns.unwrap_or_default(),
            cluster_domain: file.cluster_domain.unwrap_or(defaults.cluster_domain),
            resolv_conf: file.resolv_conf.unwrap_or(defaults.resolv_conf),
            static_pod_path: file.pod_manifest_path,
            max_pods: file.max_pods.unwrap_or(defaults.max_pods),
            pod_pids_limit: file.pod_max_pids.filter(|n| *n > 0),
            eviction: eviction(&thresholds),
            allowed_unsafe_sysctls: file.allowed_unsafe_sysctls.unwrap_or_default(),
            seccomp_default: file.seccomp_default.unwrap_or(false),
            log_max_files: file.container_log_max_files.unwrap_or(defaults.log_max_files),
            image_gc_high_percent: file.image_gc_high_threshold.unwrap_or(defaults.image_gc_high_percent),
            image_gc_low_percent: file.image_gc_low_threshold.unwrap_or(defaults.image_gc_low_percent),
            anonymous: file.anonymous_auth.unwrap_or(false),
            ..defaults
        };
        Ok((settings, endpoint, health))
    }
}

/// By which this kubelet is known, and whose certificates it knows.
fn serving(file: &File, node: &str, ips: &[IpAddr]) -> anyhow::Result<ServingTls> {
    let client_ca = match &file.client_ca_file {
        Some(path) => {
            let pem = secure::read(path)?;
            secure::roots(&pem).with_context(|| format!("--client-ca-file {}", path.display()))?;
            pem.into_bytes()
        }
        None => Vec::new(),
    };
    if let (Some(cert), Some(key)) = (&file.tls_cert_file, &file.tls_private_key_file) {
        return ServingTls::fixed(secure::read(cert)?.as_bytes(), secure::read(key)?.as_bytes(), client_ca);
    }
    ensure!(
        file.tls_cert_file.is_none() && file.tls_private_key_file.is_none(),
        "--tls-cert-file and --tls-private-key-file belong together: give both or neither"
    );
    let sans = std::iter::once(San::Dns(node.to_string()))
        .chain(ips.iter().copied().map(San::Ip))
        .collect();
    let own = Authority::generate(&format!("{node}-ca"))?.issue(&CertSpec::server(node, sans))?;
    ServingTls::fixed(own.cert_pem.as_bytes(), own.key_pem.as_bytes(), client_ca)
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let (log, reach) = (options.log.clone(), options.reach.clone());
    let (settings, endpoint, health) = options.settings()?;
    let root_dir = settings.root_dir.clone();
    super::run(&log, Some(&root_dir), async || {
        let client = reach.client().await?;
        let runtime = CriClients::connect(&endpoint).await?;
        let mut components = Supervisor::default();
        let front = Front::of(components.health(), &["/healthz"]);
        plain::start(&mut components, "healthz", health, front).await?;
        spawn(&mut components, client, runtime, settings);
        Ok(components)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn settings(line: &str) -> anyhow::Result<(Config, String, SocketAddr)> {
        let words = ["x", "--kubeconfig", "k", "--node-ip", "10.0.0.1"].into_iter();
        Line::try_parse_from(words.chain(line.split_whitespace()))?
            .options
            .settings()
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_what_neither_says_is_upstreams() {
        let path = std::env::temp_dir().join(format!("keelson-kubelet-file-{}", std::process::id()));
        let with = |more: &str| {
            let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{more}");
            std::fs::write(&path, text).unwrap();
            settings(&format!("--config {} --port 11250", path.display()))
        };
        let (config, endpoint, health) = with(
            "containerRuntimeEndpoint: unix:///r.sock\nport: 10251\nhealthzPort: 0\nclusterDNS: [10.96.0.10]\nmaxPods: 20\n\
             authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}}\n\
             authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s}}\nsyncFrequency: 0s\n\
             evictionHard: {memory.available: 200Mi}\n",
        )
        .unwrap();
        assert_eq!(
            (config.port, endpoint.as_str(), health.port()),
            (11250, "unix:///r.sock", 0)
        );
        assert_eq!((config.max_pods, config.cluster_dns[0].as_str()), (20, "10.96.0.10"));
        assert_eq!(config.eviction.memory_available, 200 << 20);
        for (wrong, named) in [
            (
                "containerRuntimeEndpoint: unix:///r\ncgroupDriver: systemd\n",
                "cgroupDriver",
            ),
            (
                "containerRuntimeEndpoint: unix:///r\nserverTLSBootstrap: true\n",
                "serverTLSBootstrap",
            ),
            (
                "containerRuntimeEndpoint: unix:///r\nauthorization: {mode: AlwaysAllow}\n",
                "authorization.mode",
            ),
            ("containerRuntimeEndpoint: tcp://r\n", "unix:///"),
            ("port: 10250\n", "--container-runtime-endpoint"),
        ] {
            let refused = format!("{:#}", with(wrong).unwrap_err());
            assert!(refused.contains(named), "{wrong}: {refused}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
