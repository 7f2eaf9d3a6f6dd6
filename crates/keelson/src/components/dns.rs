//! Cluster DNS. Alone it has the ports of CoreDNS: 8080 tells health, 8181 readiness, 9153 metrics.

use super::LogOptions;
use super::front::{Front, plain};
use super::reach::Reach;
use crate::supervise::Supervisor;
use clap::Args;
use ipnet::IpNet;
use keelson_dns::Config;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

pub fn spawn(components: &mut Supervisor, client: kube::Client, settings: Config) {
    components.spawn("dns", move |stop| {
        keelson_dns::run(client.clone(), settings.clone(), stop)
    });
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// Addresses on which queries are answered, one or one a family
    #[arg(long, value_name = "IPS", value_delimiter = ',', required = true)]
    bind_address: Vec<IpAddr>,
    /// Port on which queries are answered, UDP and TCP
    #[arg(long, value_name = "PORT", default_value_t = 53)]
    port: u16,
    /// Domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Ranges of addresses that are answered, beside the cluster's nodes: those of pods
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Names the servers for all other domains
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Where health is told (/health); port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    health_bind_address: SocketAddr,
    /// Where readiness is told (/ready); port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8181")]
    ready_bind_address: SocketAddr,
    /// Where metrics are told; port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9153")]
    metrics_bind_address: SocketAddr,
    #[command(flatten)]
    log: LogOptions,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    super::run(&options.log, None, async || {
        let client = options.reach.client().await?;
        let settings = Config {
            listen: options
                .bind_address
                .iter()
                .map(|ip| SocketAddr::new(*ip, options.port))
                .collect(),
            domain: options.cluster_domain.clone(),
            resolv_conf: options.resolv_conf.clone(),
            clients: options.cluster_cidr.clone(),
            telling: options.reach.telling().await?,
            ..Config::default()
        };
        let mut components = Supervisor::default();
        let health = components.health();
        let front = Front::of(health.clone(), &["/health"]);
        plain::start(&mut components, "health", options.health_bind_address, front).await?;
        let front = Front::of(health.clone(), &[]).with_readiness("/ready", settings.ready.clone());
        plain::start(&mut components, "ready", options.ready_bind_address, front).await?;
        let front = Front::of(health, &[]).with_metrics(&settings.telling.measures);
        plain::start(&mut components, "metrics", options.metrics_bind_address, front).await?;
        spawn(&mut components, client, settings);
        Ok(components)
    })
}
