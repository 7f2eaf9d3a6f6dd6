//! UDP flows to host ports that lead elsewhere than the port does now.
//!
//! Connection tracking keeps a flow for as long as its client sends, wherever its first packet went: to a pod that is gone, or
//! to the host itself if it began before there was a pod. So flows end when the port changes hands, and the next packet goes
//! by the map. Other protocols notice by themselves.

use crate::{PortMapping, Protocol};
use anyhow::Context;
use keelson_sys::conntrack::{self, Flow, UDP};
use std::collections::HashSet;
use std::net::IpAddr;

/// Host ports of one pod, and the addresses at which they are reached.
#[derive(Clone, Debug)]
struct Ports {
    pod: IpAddr,
    mappings: Vec<PortMapping>,
    host: HashSet<IpAddr>,
}

impl Ports {
    /// Whether the flow goes to one of them but not on to the pod (`to_pod`: but does).
    fn concern(&self, flow: &Flow, to_pod: bool) -> bool {
        let (ip, port) = flow.destination;
        let of_host = ip.is_loopback() || self.host.contains(&ip);
        let reached = |m: &&PortMapping| match m.host_ip {
            Some(own) if !own.is_unspecified() => own == ip,
            _ => true,
        };
        let mut mappings = self.mappings.iter().filter(|m| m.host_port == port).filter(reached);
        let answers = |m: &PortMapping| flow.answers_from == (self.pod, m.container_port);
        flow.protocol == UDP && ip.is_ipv4() == self.pod.is_ipv4() && of_host && mappings.any(|m| answers(m) == to_pod)
    }
}

/// Ends the flows to these host ports: those that the pod doesn't answer when it gets them, or those that it does when it
/// gives them up.
async fn end(pod: IpAddr, mappings: &[PortMapping], to_pod: bool) {
    let udp = mappings.iter().filter(|m| m.protocol == Protocol::Udp);
    let mut ports = Ports {
        pod,
        mappings: udp.cloned().collect(),
        host: HashSet::new(),
    };
    if ports.mappings.is_empty() {
        return;
    }
    let work = move || -> anyhow::Result<usize> {
        ports.host = keelson_sys::net::own_addresses().context("this machine's addresses")?;
        Ok(conntrack::delete(|flow| ports.concern(flow, to_pod))?)
    };
    let done = tokio::task::spawn_blocking(work).await;
    match done.map_err(anyhow::Error::from).flatten() {
        Ok(count) => tracing::debug!(count, %pod, "flows to host ports ended"),
        // Costs clients that go on sending the time-out of their flow, nothing else.
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), %pod, "stale UDP flows to host ports can't be ended")
        }
    }
}

/// The pod has these host ports from now on.
pub async fn begun(pod: IpAddr, mappings: &[PortMapping]) {
    end(pod, mappings, false).await;
}

/// The pod had these.
pub async fn over(pod: IpAddr, mappings: &[PortMapping]) {
    end(pod, mappings, true).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(destination: &str, answers_from: &str) -> Flow {
        let at = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            (address.ip(), address.port())
        };
        Flow {
            protocol: UDP,
            destination: at(destination),
            answers_from: at(answers_from),
        }
    }

    #[test]
    fn flows_end_when_a_port_changes_hands_and_others_stay() {
        let mapping = |host_port, host_ip: Option<&str>| PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let ports = Ports {
            pod: "10.244.0.5".parse().unwrap(),
            mappings: vec![mapping(5353, None), mapping(5454, Some("192.0.2.1"))],
            host: ["192.0.2.1", "192.0.2.9"].map(|ip| ip.parse().unwrap()).into(),
        };
        let gone = flow("192.0.2.1:5353", "10.244.0.4:53");
        let host = flow("127.0.0.1:5353", "127.0.0.1:5353");
        let right = flow("192.0.2.9:5353", "10.244.0.5:53");
        for stale in [&gone, &host] {
            assert!(ports.concern(stale, false) && !ports.concern(stale, true), "{stale:?}");
        }
        assert!(!ports.concern(&right, false) && ports.concern(&right, true));
        for other in [
            flow("198.51.100.1:5353", "198.51.100.1:5353"),
            flow("192.0.2.9:5454", "192.0.2.9:5454"),
            flow("192.0.2.1:53", "10.244.0.4:53"),
        ] {
            assert!(!ports.concern(&other, false), "{other:?}");
        }
        let mut tcp = gone;
        tcp.protocol = 6;
        assert!(!ports.concern(&tcp, false));
    }
}
