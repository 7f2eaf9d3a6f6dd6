//! Packets that policies deny, as lines of the log, for namespaces and policies of the cluster that ask for it by an annotation.
//!
//! Nothing listens, and no rule tells anything, where nobody asks. The kernel tells ten packets a second of each policy and
//! direction, this process writes a hundred lines a second of all; how many it left out is a line too.

use crate::TABLE;
use crate::plan::{GROUP, LENGTH, Met, Planner};
use keelson_sys::nflog::{Listener, Packet};
use keelson_sys::nft::{self, Expr, Family, Op, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// On a Namespace, for its network policies, or on a ClusterNetworkPolicy; with the value `true`.
pub const ANNOTATION: &str = "keelson.dev/log-denied";
const LINES: u32 = 100;
const WHILE: Duration = Duration::from_secs(1);
/// After a failure.
const REST: Duration = Duration::from_secs(5);

pub fn is_asked(annotations: Option<&BTreeMap<String, String>>) -> bool {
    annotations.and_then(|a| a.get(ANNOTATION)).is_some_and(|v| v == "true")
}

/// Who asks, and the ear that is open while somebody does.
#[derive(Default)]
pub struct Denied {
    /// Namespaces, and policies of the cluster with an empty namespace before their name.
    asking: BTreeSet<(String, String)>,
    listener: Option<Listener>,
    lines: Lines,
}

impl Denied {
    /// Whether rules may tell of denied packets: it is asked for, and somebody listens.
    pub fn ask(&mut self, who: (String, String), asked: bool) -> bool {
        match asked {
            true => self.asking.insert(who),
            false => self.asking.remove(&who),
        };
        if self.asking.is_empty() {
            self.listener = None;
        } else if asked && self.listener.is_none() {
            match listen() {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => tracing::warn!(%error, "denied packets can't be told of on this kernel"),
            }
        }
        asked && self.listener.is_some()
    }

    /// Waits for packets; for ever while nobody asks.
    pub async fn next(&self) -> Vec<Packet> {
        let Some(listener) = &self.listener else {
            return std::future::pending().await;
        };
        match listener.next().await {
            Ok(packets) => packets,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::info!("denied packets came faster than they could be read: some are not told of");
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(%error, "denied packets can't be read");
                tokio::time::sleep(REST).await;
                Vec::new()
            }
        }
    }

    pub fn write(&mut self, packets: &[Packet], planners: &mut [Planner]) {
        for packet in packets {
            let family = Family::of(packet.source);
            let Some(planner) = planners.iter_mut().find(|p| p.family() == family) else {
                continue;
            };
            // What others tell to this group isn't of these rules.
            let Some(met) = planner.met().get(&packet.prefix).cloned() else {
                continue;
            };
            if self.lines.may_write() {
                write(packet, &met, planner);
            }
        }
    }
}

fn listen() -> io::Result<Listener> {
    let tell = Expr::Log {
        group: GROUP,
        length: LENGTH,
        prefix: String::new(),
    };
    let limit = Expr::Limit {
        per_second: 1,
        burst: 1,
    };
    let (chain, verdict) = ("probe".to_string(), Expr::Verdict(Verdict::Drop));
    // A kernel that doesn't know how must refuse this and not the rules themselves.
    let probe = [
        Op::AddTable,
        Op::AddChain {
            name: chain.clone(),
            base: None,
        },
        Op::AddRule {
            chain,
            exprs: vec![limit, tell, verdict],
        },
        Op::DeleteTable,
    ];
    nft::apply(Family::Ip, &format!("{TABLE}-probe"), &probe).map_err(io::Error::other)?;
    Listener::open(GROUP, LENGTH)
}

/// How many lines were written in this second.
struct Lines {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines {
            since: Instant::now(),
            written: 0,
            left_out: 0,
        }
    }
}

impl Lines {
    fn may_write(&mut self) -> bool {
        if self.since.elapsed() >= WHILE {
            if self.left_out > 0 {
                tracing::info!(
                    left_out = self.left_out,
                    "more denied packets were told of than are written"
                );
            }
            *self = Lines::default();
        }
        match self.written < LINES {
            true => self.written += 1,
            false => self.left_out += 1,
        }
        self.left_out == 0
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

fn write(packet: &Packet, met: &Met, planner: &Planner) {
    let pod = |ip: IpAddr| {
        planner
            .pod_at(ip)
            .map(|(namespace, name)| format!("{namespace}/{name}"))
    };
    let own = match met.direction {
        "ingress" => packet.destination,
        _ => packet.source,
    };
    let policies = match met.policy.is_empty() {
        true => planner.isolating(met, own).join(","),
        false => met.policy.clone(),
    };
    tracing::info!(
        direction = met.direction,
        kind = met.kind(),
        policies,
        from = %packet.source,
        from_pod = pod(packet.source),
        to = %packet.destination,
        to_pod = pod(packet.destination),
        protocol = protocol(packet.protocol),
        from_port = packet.ports.map(|p| p.0),
        to_port = packet.ports.map(|p| p.1),
        "packet denied"
    );
}
