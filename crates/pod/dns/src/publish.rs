//! Service `kube-system/kube-dns` and its EndpointSlice: how pods reach a DNS server at the cluster's DNS address.
//!
//! Every node answers queries; a node says at which port by a label ([`LABEL`]) of its Node. One publisher a cluster
//! writes them all, so that nodes need no right to write endpoints. The endpoint of a node is ready as the node is, and
//! the service asks for endpoints on the client's own node first: another node's server steps in when the own one
//! doesn't answer for long enough to be noticed. At most [`MOST`] endpoints are published, those of ready nodes first.

use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_client::{ApiObject, Informer, InformerOptions, is_not_found};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const RETRY: Duration = Duration::from_secs(1);
/// What the API lets stand in one slice.
const MOST: usize = 1000;

/// The port of a node's DNS server; any other value: it has none.
pub const LABEL: &str = "keelson.io/dns";

#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses of the service, one a family.
    pub cluster_ips: Vec<IpAddr>,
    /// A server on a machine that is no node, by its addresses.
    pub also: Vec<SocketAddr>,
}

/// Keeps both objects in step with the nodes until `stop` fires. The service belongs to the administrator once it
/// exists: only its absence is mended.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson-dns");
    let changed = Arc::new(Notify::new());
    let nodes: Informer<Node> = Informer::start(&rest, InformerOptions::default(), &stop);
    let note = changed.clone();
    nodes.on_change(move |_| note.notify_one());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    // Which slices were there is asked once; afterwards they are known from what was written.
    let mut written: BTreeMap<Key, EndpointSlice> = existing(&rest).await?;
    loop {
        let wanted = slices(&nodes.store().list(), &config.also);
        let failed = match write(&rest, &config.cluster_ips, &wanted, &mut written).await {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, "the service kube-system/kube-dns can't be published yet");
                true
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = changed.notified() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn labels() -> BTreeMap<String, String> {
    [
        ("k8s-app", "kube-dns"),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into()
}

fn service(cluster_ips: &[IpAddr]) -> Service {
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: 53,
        target_port: Some(IntOrString::Int(53)),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(NAMESPACE.into()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: cluster_ips.first().map(IpAddr::to_string),
            cluster_ips: Some(cluster_ips.iter().map(IpAddr::to_string).collect()),
            ip_family_policy: (cluster_ips.len() > 1).then(|| "PreferDualStack".into()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            traffic_distribution: Some("PreferSameNode".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Servers of one slice: their port, and whether their addresses are IPv6.
type Key = (u16, bool);

/// A server, as a slice tells of it.
struct Server {
    address: IpAddr,
    node: Option<String>,
    ready: bool,
}

/// What a node says of itself counts only if it can be so: one that can't be published would keep all others from it.
fn servers(node: &Node) -> Vec<(u16, Server)> {
    let label = node.metadata.labels.as_ref().and_then(|l| l.get(LABEL));
    let Some(port) = label.and_then(|l| l.parse().ok()).filter(|port| *port != 0) else {
        return Vec::new();
    };
    let listed = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = listed.filter(|a| a.type_ == "InternalIP");
    let mut found: Vec<(u16, Server)> = Vec::new();
    for server in internal.filter_map(|a| server(node, &a.address)) {
        // The first of each family.
        if found
            .iter()
            .all(|(_, s)| s.address.is_ipv4() != server.address.is_ipv4())
        {
            found.push((port, server));
        }
    }
    found
}

fn server(node: &Node, address: &str) -> Option<Server> {
    let status = node.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let address: IpAddr = address.parse().ok()?;
    let of_no_machine = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    let link_local = matches!(address, IpAddr::V4(v4) if v4.is_link_local())
        || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if of_no_machine || link_local {
        return None;
    }
    Some(Server {
        address,
        node: Some(node.name().to_string()),
        ready: ready && !node.is_deleting(),
    })
}

/// One slice a port and family; nodes have the same port unless they were told otherwise.
fn slices(nodes: &[Arc<Node>], also: &[SocketAddr]) -> BTreeMap<Key, EndpointSlice> {
    let mut by_port: BTreeMap<Key, Vec<Server>> = BTreeMap::new();
    let also = also.iter().map(|also| {
        let server = Server {
            address: also.ip(),
            node: None,
            ready: true,
        };
        (also.port(), server)
    });
    for (port, server) in nodes.iter().flat_map(|n| servers(n)).chain(also) {
        let key = (port, server.address.is_ipv6());
        by_port.entry(key).or_default().push(server);
    }
    by_port
        .into_iter()
        .map(|(key, servers)| (key, slice(key, servers)))
        .collect()
}

fn slice((number, v6): Key, mut servers: Vec<Server>) -> EndpointSlice {
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(number.into()),
        ..EndpointPort::default()
    };
    let mut labels = labels();
    labels.insert("kubernetes.io/service-name".into(), NAME.into());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "keelson-dns".into());
    servers.sort_by_key(|s| (!s.ready, s.address));
    servers.truncate(MOST);
    let endpoint = |s: Server| Endpoint {
        addresses: vec![s.address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(s.ready),
            ..EndpointConditions::default()
        }),
        hints: s.node.clone().map(|name| EndpointHints {
            for_nodes: Some(vec![ForNode { name }]),
            ..EndpointHints::default()
        }),
        node_name: s.node,
        ..Endpoint::default()
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(match v6 {
                false => format!("{NAME}-keelson-{number}"),
                true => format!("{NAME}-keelson-ipv6-{number}"),
            }),
            namespace: Some(NAMESPACE.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        address_type: if v6 { "IPv6" } else { "IPv4" }.into(),
        endpoints: Some(servers.into_iter().map(endpoint).collect()),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
    }
}

/// What an earlier publisher left.
async fn existing(rest: &Rest) -> keelson_client::Result<BTreeMap<Key, EndpointSlice>> {
    let selector = "endpointslice.kubernetes.io/managed-by=keelson-dns";
    let all: Vec<EndpointSlice> = Objects::new(rest).list(NAMESPACE, selector, "").await?;
    let port = |s: &EndpointSlice| s.name().rsplit('-').next()?.parse().ok();
    // One of another form (of an older version) is under the port 0, which is never wanted.
    Ok(all
        .into_iter()
        .map(|s| ((port(&s).unwrap_or(0), s.address_type == "IPv6"), s))
        .collect())
}

async fn write(
    rest: &Rest,
    cluster_ips: &[IpAddr],
    wanted: &BTreeMap<Key, EndpointSlice>,
    written: &mut BTreeMap<Key, EndpointSlice>,
) -> keelson_client::Result<()> {
    let services: Objects<Service> = Objects::new(rest);
    if services.find(NAMESPACE, NAME).await?.is_none() {
        services.create(&service(cluster_ips)).await?;
    }
    let objects: Objects<EndpointSlice> = Objects::new(rest);
    for (port, wanted) in wanted {
        let same = |live: &EndpointSlice| live.endpoints == wanted.endpoints && live.ports == wanted.ports;
        if written.get(port).is_some_and(same) {
            continue;
        }
        let live = objects
            .create_or_update(wanted, |live| {
                let differs = !same(live);
                live.endpoints = wanted.endpoints.clone();
                live.ports = wanted.ports.clone();
                differs
            })
            .await?;
        written.insert(*port, live);
    }
    let gone: BTreeSet<Key> = written.keys().filter(|p| !wanted.contains_key(p)).copied().collect();
    for port in gone {
        let name = written.get(&port).map(|s| s.name().to_string()).unwrap_or_default();
        match objects
            .delete(NAMESPACE, &name, &keelson_client::delete_options(None, None, None))
            .await
        {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => written.remove(&port),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::Ipv4Addr;

    fn node(name: &str, ips: &[&str], dns: &str, ready: &str) -> Arc<Node> {
        let internal = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
        let addresses: Vec<_> = [json!({"type": "Hostname", "address": name})]
            .into_iter()
            .chain(internal)
            .collect();
        let node = json!({"metadata": {"name": name, "labels": {LABEL: dns}}, "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn every_node_with_a_server_is_an_endpoint_ready_as_the_node_is() {
        let nodes = [
            node("n1", &["10.0.0.1", "2001:db8::1"], "10053", "True"),
            node("n2", &["10.0.0.2"], "10053", "Unknown"),
            node("n3", &["10.0.0.3"], "none", "True"),
            node("n4", &["10.0.0.4", "fe80::4"], "53", "True"),
        ];
        let slices = slices(&nodes, &[SocketAddr::new(Ipv4Addr::new(10, 0, 0, 9).into(), 53)]);
        let text: Vec<String> = slices
            .iter()
            .flat_map(|(port, s)| s.endpoints.iter().flatten().map(move |e| (port, e)))
            .map(|((port, _), e)| {
                let ready = e.conditions.as_ref().and_then(|c| c.ready);
                let hint = e
                    .hints
                    .iter()
                    .flat_map(|h| h.for_nodes.iter().flatten())
                    .map(|n| n.name.as_str());
                format!("{}:{port} {ready:?} for {:?}", e.addresses[0], hint.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            text,
            [
                "10.0.0.4:53 Some(true) for [\"n4\"]",
                "10.0.0.9:53 Some(true) for []",
                "10.0.0.1:10053 Some(true) for [\"n1\"]",
                "10.0.0.2:10053 Some(false) for [\"n2\"]",
                "2001:db8::1:10053 Some(true) for [\"n1\"]",
            ]
        );
    }
}
