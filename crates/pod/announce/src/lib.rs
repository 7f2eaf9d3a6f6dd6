//! Addresses of load balancers on the nodes' own network: for each, one live node answers who asks where it is, by ARP and NDP; or every node tells
//! routers that it takes it in, by BGP. What then
//! arrives there the proxy's rules lead on, as on any node; so this crate knows no ports and no rules.
//!
//! The API's objects ([`sources`]) are [`plan::Facts`]; which nodes live they tell each other, since the API would notice too late
//! ([`alive`], [`beat`]). From both, [`plan`] says what this node answers for; the difference to what it does is done ([`node`]).
//! Nothing is written to the API but what this node shows of itself, once ([`shown`]).
//!
//! By BGP nodes don't need to know of each other: [`routing`] says which sessions this node has and what each peer is told, `keelson_bgp` holds them,
//! [`told`] shows how they are.

mod alive;
mod answer;
mod beat;
mod frames;
mod links;
pub mod node;
pub mod plan;
pub mod routing;
mod shown;
mod sources;
mod told;

pub use beat::Speaker;

use anyhow::Context;
use keelson_balancing::Range;
use keelson_client::Rest;
use node::Settings;
use sources::Sources;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
    /// A file that says which boot of the machine peers were told in.
    pub told: PathBuf,
}

/// Whether peers may have been told in this boot already, and so the kernel's rules have stood since. From now on they have.
fn resumes(told: &Path) -> bool {
    let Ok(boot) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else {
        return false;
    };
    let same = std::fs::read_to_string(told).is_ok_and(|there| there == boot);
    let made = told.parent().map_or(Ok(()), std::fs::create_dir_all);
    if !same && let Err(error) = made.and_then(|()| std::fs::write(told, boot)) {
        tracing::warn!(%error, file = %told.display(), "peers can't be told that routes outlive a restart");
    }
    same
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
    let own = Rest::new(own, "keelson-announce");
    let shown = shown::Shower::new(&own, &config.node_name, speaker.public());
    let teller = told::Teller::new(&own, &config.node_name);
    let (wanted, sessions) = watch::channel(keelson_bgp::Sessions::new());
    let (refuse, refused) = watch::channel(BTreeMap::new());
    let (report, told) = watch::channel(BTreeMap::new());
    let (see, known) = watch::channel(told::Shown::default());
    let following = async {
        loop {
            let (facts, routing) = sources.next().await;
            shown.know(&facts);
            let (sessions, reasons) = routing::sessions(&facts, &routing, &config.node_name);
            set(&wanted, sessions);
            set(&refuse, reasons);
            let is_there = facts.nodes.contains_key(&config.node_name);
            set(&see, routing.shown.filter(|_| is_there));
            set(&tell, facts);
        }
    };
    let (links, seen) = watch::channel(Vec::new());
    // Both have something to say at the end.
    let announcing = async {
        let answering = node::run(settings, speaker, facts, links, stop.clone());
        let talking = keelson_bgp::run(sessions, report, resumes(&config.told), stop.clone());
        tokio::try_join!(async { answering.await.context("answers for addresses") }, async {
            talking.await.context("sessions with peers")
        },)
    };
    tokio::select! {
        done = announcing => done.map(|_| ()),
        () = following => Ok(()),
        () = shown.keep(seen) => Ok(()),
        () = teller.keep(told, refused, known) => Ok(()),
    }
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, now: T) {
    sender.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}
