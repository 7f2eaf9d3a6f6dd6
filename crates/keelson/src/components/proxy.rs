//! The service proxy of a node.

use super::front::{Front, plain};
use super::reach::Reach;
use super::upstream::{Others, Proxy};
use super::{Gates, LogOptions};
use crate::supervise::Supervisor;
use crate::{config, families};
use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args};
use keelson_api::duration::length;
use keelson_proxy::Config;
use keelson_proxy::limits::Limits;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

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
    /// Entries of the connection table for each CPU, at most a million; 0: as it is
    #[arg(long, value_name = "N", default_value_t = 32 << 10)]
    conntrack_max_per_core: u32,
    /// And however few CPUs there are
    #[arg(long, value_name = "N", default_value_t = 128 << 10)]
    conntrack_min: u32,
    /// How long a connection that says nothing is kept; 0: as it is
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "24h")]
    conntrack_tcp_timeout_established: Duration,
    /// And one of which one side has closed
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "1h")]
    conntrack_tcp_timeout_close_wait: Duration,
    /// Packets that don't fit their connection are no errors
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    conntrack_tcp_be_liberal: bool,
    /// How long what is sent by UDP without an answer is kept; 0: as it is
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "0s")]
    conntrack_udp_timeout: Duration,
    /// And what was answered
    #[arg(long, value_name = "DURATION", value_parser = length, default_value = "0s")]
    conntrack_udp_timeout_stream: Duration,
    #[command(flatten)]
    _others: Others<Proxy>,
    #[command(flatten)]
    _gates: Gates,
    #[command(flatten)]
    log: LogOptions,
}

impl Options {
    fn limits(&self) -> Limits {
        Limits {
            max_per_core: Some(self.conntrack_max_per_core),
            min: Some(self.conntrack_min),
            established: Some(self.conntrack_tcp_timeout_established),
            close_wait: Some(self.conntrack_tcp_timeout_close_wait),
            udp: Some(self.conntrack_udp_timeout),
            udp_stream: Some(self.conntrack_udp_timeout_stream),
            is_liberal: self.conntrack_tcp_be_liberal,
        }
    }
}

/// Limits by kube-proxy's flags, each as `NAME=VALUE`.
pub fn limits(flags: &[String]) -> anyhow::Result<Limits> {
    let mut limits = Limits::default();
    for flag in flags {
        let flag = flag.trim_start_matches('-');
        let (name, text) = flag.split_once('=').unwrap_or((flag, "true"));
        say(&mut limits, name, text).with_context(|| format!("--kube-proxy-arg {flag}"))?;
    }
    Ok(limits)
}

fn say(limits: &mut Limits, name: &str, text: &str) -> anyhow::Result<()> {
    let time = || length(text).map(Some);
    match name {
        "conntrack-max-per-core" => limits.max_per_core = Some(text.parse()?),
        "conntrack-min" => limits.min = Some(text.parse()?),
        "conntrack-tcp-timeout-established" => limits.established = time()?,
        "conntrack-tcp-timeout-close-wait" => limits.close_wait = time()?,
        "conntrack-tcp-be-liberal" => limits.is_liberal = text.parse()?,
        "conntrack-udp-timeout" => limits.udp = time()?,
        "conntrack-udp-timeout-stream" => limits.udp_stream = time()?,
        _ => bail!("of kube-proxy's flags those that begin with conntrack- can be said here"),
    }
    Ok(())
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    let node_name = match &options.hostname_override {
        Some(name) => name.trim().to_lowercase(),
        None => config::host_name()?,
    };
    let limits = options.limits();
    let cluster_cidrs = families::ranges("--cluster-cidr", &options.cluster_cidr)?;
    super::run(&options.log, None, async || {
        let client = options.reach.client().await?;
        let mut components = Supervisor::default();
        let health = components.health();
        let front = Front::of(health.clone(), &["/healthz", "/livez"]);
        plain::start(&mut components, "healthz", options.healthz_bind_address, front).await?;
        let telling = options.reach.telling().await?;
        let front = Front::of(health, &["/healthz"])
            .with_metrics(&telling.measures)
            .with_pages("kube-proxy");
        plain::start(&mut components, "metrics", options.metrics_bind_address, front).await?;
        let settings = Config {
            node_name,
            cluster_cidrs,
            limits,
            note: None,
            telling,
        };
        spawn(&mut components, client, settings);
        Ok(components)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::options_of;

    fn limits_of(line: &str) -> anyhow::Result<Limits> {
        let options: Options = options_of(&format!("--kubeconfig k --cluster-cidr 10.244.0.0/16 {line}"))?;
        Ok(options.limits())
    }

    #[test]
    fn the_connection_table_is_as_kube_proxys_unless_it_is_said() {
        let none = |limits: Limits| Limits {
            udp: limits.udp.filter(|t| !t.is_zero()),
            udp_stream: limits.udp_stream.filter(|t| !t.is_zero()),
            ..limits
        };
        assert_eq!(none(limits_of("").unwrap()), Limits::usual());
        let said =
            limits_of("--conntrack-max-per-core 0 --conntrack-tcp-timeout-close-wait 1m30s --conntrack-tcp-be-liberal")
                .unwrap();
        assert_eq!(
            (said.max_per_core, said.close_wait.map(|t| t.as_secs()), said.is_liberal),
            (Some(0), Some(90), true)
        );
        let liberal = |line: &str| limits_of(line).unwrap().is_liberal;
        assert!(liberal("--conntrack-tcp-be-liberal=true") && !liberal("--conntrack-tcp-be-liberal=false"));
        let error = limits_of("--conntrack-udp-timeout soon").unwrap_err().to_string();
        assert!(error.contains("--conntrack-udp-timeout"), "{error}");
        let flags = |all: &[&str]| limits(&all.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        let said = flags(&["conntrack-min=5", "--conntrack-tcp-be-liberal"]).unwrap();
        assert_eq!((said.min, said.is_liberal, said.established), (Some(5), true, None));
        assert!(format!("{:#}", flags(&["proxy-mode=ipvs"]).unwrap_err()).contains("--kube-proxy-arg proxy-mode=ipvs"));
    }
}
