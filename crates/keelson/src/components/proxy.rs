//! The service proxy of a node.

use super::front::{Front, plain};
use super::reach::Reach;
use super::{Gates, LogOptions};
use crate::supervise::Supervisor;
use crate::{config, families};
use clap::Args;
use clap::builder::PossibleValuesParser;
use keelson_proxy::Config;
use std::net::SocketAddr;
use std::process::ExitCode;

pub fn spawn(components: &mut Supervisor, client: kube::Client, settings: Config) {
    components.spawn("proxy", move |stop| {
        keelson_proxy::run(client.clone(), settings.clone(), stop)
    });
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// This node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Ranges of pod addresses, one or one a family: what comes from elsewhere to a service is answered by this node's address.
    /// Services are served in these families
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', required = true)]
    cluster_cidr: Vec<String>,
    /// How services are served
    #[arg(long = "proxy-mode", value_name = "MODE", default_value = "nftables", value_parser = PossibleValuesParser::new(["nftables"]))]
    _proxy_mode: String,
    /// Where health is told; port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:10256")]
    healthz_bind_address: SocketAddr,
    /// Where metrics are told; port 0: nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
    #[command(flatten)]
    _gates: Gates,
    #[command(flatten)]
    log: LogOptions,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let node_name = match &options.hostname_override {
        Some(name) => name.trim().to_lowercase(),
        None => config::host_name()?,
    };
    let cluster_cidrs = families::ranges("--cluster-cidr", &options.cluster_cidr)?;
    super::run(&options.log, None, async || {
        let client = options.reach.client().await?;
        let mut components = Supervisor::default();
        let health = components.health();
        let front = Front::of(health.clone(), &["/healthz", "/livez"]);
        plain::start(&mut components, "healthz", options.healthz_bind_address, front).await?;
        let telling = options.reach.telling().await?;
        let front = Front::of(health, &["/healthz"]).with_metrics(&telling.measures);
        plain::start(&mut components, "metrics", options.metrics_bind_address, front).await?;
        let settings = Config {
            node_name,
            cluster_cidrs,
            telling,
        };
        spawn(&mut components, client, settings);
        Ok(components)
    })
}
