//! Addresses of load balancers on the nodes' own network: for each, one live node answers who asks where it is, by ARP and NDP. What then
//! arrives there the proxy's rules lead on, as on any node; so this crate knows no ports and no rules.
//!
//! The API's objects ([`sources`]) are [`plan::Facts`]; which nodes live they tell each other, since the API would notice too late
//! ([`alive`], [`beat`]). From both, [`plan`] says what this node answers for; the difference to what it does is done ([`node`]).
//! Nothing is written to the API but what this node shows of itself, once ([`shown`]).

mod alive;
mod answer;
mod beat;
mod frames;
mod links;
pub mod node;
pub mod plan;
mod shown;
mod sources;

pub use beat::Speaker;

use anyhow::Context;
use keelson_balancing::Range;
use keelson_client::Rest;
use node::Settings;
use sources::Sources;
use std::net::IpAddr;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The UDP port by which nodes tell each other that they live.
pub const PORT: u16 = 10270;

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// By which the other nodes reach this one.
    pub node_ips: Vec<IpAddr>,
    /// The ranges of pods, as who gives pools' addresses away has them.
    pub cluster_cidrs: Vec<String>,
}

/// Answers for this node's share of all addresses until `stop` fires. `own` writes this node's Node.
pub async fn run(
    client: kube::Client,
    own: kube::Client,
    config: Config,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-announce");
    let speaker = Speaker::new(&config.node_name)?;
    let settings = Settings {
        name: config.node_name.clone(),
        addresses: config.node_ips,
        port: PORT,
    };
    let pods: Result<Vec<Range>, String> = config
        .cluster_cidrs
        .iter()
        .map(|range| range.parse::<Range>())
        .collect();
    let pods = pods.map_err(anyhow::Error::msg).context("the ranges of pods")?;
    let mut sources = Sources::start(&rest, &config.node_name, pods, &stop);
    let (tell, facts) = watch::channel(plan::Facts::default());
    let shown = shown::Shower::new(&Rest::new(own, "keelson-announce"), &config.node_name, speaker.public());
    let following = async {
        loop {
            let facts = sources.next().await;
            shown.know(&facts);
            tell.send_if_modified(|before| {
                let differs = *before != facts;
                *before = facts;
                differs
            });
        }
    };
    let (links, seen) = watch::channel(Vec::new());
    tokio::select! {
        done = node::run(settings, speaker, facts, links, stop.clone()) => done.context("answers for addresses"),
        () = following => Ok(()),
        () = shown.keep(seen) => Ok(()),
    }
}
