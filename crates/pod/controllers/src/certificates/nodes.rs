//! Which names a node may have: that it comes under one that nobody else has, and that its kubelet serves under its own
//! name and addresses only. Upstream leaves both to whoever puts a cluster together.
//!
//! A node reports its addresses itself, so that they alone prove nothing: an address that another node has too, or at which
//! the API or services are reached, is left to an administrator. DNS names are the node's name, which its client
//! certificate proves; the names of the API's own service nobody gets.

use super::{Request, condition, is, is_issued, parse, request, requests};
use crate::context::Context;
use anyhow::Context as _;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use keelson_client::{ApiObject, Informer, ObjectKey, Objects, Outcome, Reconcile, is_not_found};
use keelson_pki::x509::Request as Asked;
use std::net::IpAddr;
use std::sync::Arc;

const USER: &str = "system:node:";
/// What API servers are reached as from within the cluster, without and with the cluster's domain behind.
const API: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "localhost",
];

/// Why a machine may not join as this node; none if the name is free, or its node is not alive.
pub fn taken(node: Option<&Node>) -> Option<String> {
    let node = node?;
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    ready.then(|| {
        format!(
            "a Node with name {:?} and status \"Ready\" already exists in the cluster. You must delete the existing Node or change the name of this new joining Node",
            node.name()
        )
    })
}

pub fn start(context: &Context) {
    let (requests, controller) = requests(context, "kubelet-serving-approver");
    let nodes = context.informer::<Node>();
    let ranges = context.informer::<ServiceCIDR>();
    let slices = context.informer::<EndpointSlice>();
    let controller = controller.input(&nodes).input(&ranges).input(&slices);
    // A request may come before its node has told its addresses.
    let (queue, pending) = (controller.queue(), requests.clone());
    nodes.on_change(move |change| {
        let user = format!("{USER}{}", change.object().name());
        for found in pending
            .store()
            .filter(|r| undecided(r) && r.spec.username.as_deref() == Some(&user))
        {
            queue.add(found.key());
        }
    });
    let objects = Objects::new(&context.rest("kubelet-serving-approver"));
    context.run(
        controller,
        Approver {
            requests,
            nodes,
            ranges,
            slices,
            objects,
        },
    );
}

fn undecided(found: &Request) -> bool {
    found.spec.signer_name == request::KUBELET_SERVING
        && !is_issued(found)
        && !is(found, "Approved")
        && !is(found, "Denied")
}

struct Approver {
    requests: Informer<Request>,
    nodes: Informer<Node>,
    ranges: Informer<ServiceCIDR>,
    slices: Informer<EndpointSlice>,
    objects: Objects<Request>,
}

#[async_trait]
impl Reconcile for Approver {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(found) = self.requests.store().get_key(key).filter(|r| undecided(r)) else {
            return Ok(Outcome::Done);
        };
        let asked = parse(&found)?;
        let cluster = Facts {
            nodes: self.nodes.store().list(),
            service_ranges: self.service_ranges(),
            api: self.api_addresses(),
        };
        if let Err(why) = own_names(&found, &asked, &cluster) {
            tracing::info!(
                request = found.name(),
                why,
                "a kubelet's serving certificate is not approved"
            );
            return Ok(Outcome::Done);
        }
        let mut changed = (*found).clone();
        let conditions = changed
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        conditions.push(condition(
            "Approved",
            "AutoApproved",
            "Auto approving kubelet serving certificate: its names are the node's own.",
        ));
        match self.objects.update_sub(&changed, "approval").await {
            Err(error) if !is_not_found(&error) => Err(error).context("approving a kubelet's serving certificate"),
            _ => Ok(Outcome::Done),
        }
    }
}

impl Approver {
    fn service_ranges(&self) -> Vec<ipnet::IpNet> {
        let all = self.ranges.store().list();
        let texts = all
            .iter()
            .flat_map(|r| r.spec.iter().flat_map(|s| s.cidrs.iter().flatten()));
        texts.filter_map(|t| t.parse().ok()).collect()
    }

    fn api_addresses(&self) -> Vec<IpAddr> {
        let of_api = |s: &EndpointSlice| {
            let service = s
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get("kubernetes.io/service-name"));
            s.namespace() == "default" && service.is_some_and(|n| n == "kubernetes")
        };
        let slices = self.slices.store().filter(of_api);
        let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
        endpoints
            .flat_map(|e| &e.addresses)
            .filter_map(|a| a.parse().ok())
            .collect()
    }
}

/// What is known of the cluster when a request is looked at.
struct Facts {
    nodes: Vec<Arc<Node>>,
    service_ranges: Vec<ipnet::IpNet>,
    api: Vec<IpAddr>,
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let all = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    all.filter_map(|a| a.address.parse().ok())
        .map(|ip: IpAddr| ip.to_canonical())
}

/// `Err` says which name isn't the node's.
fn own_names(found: &Request, asked: &Asked, cluster: &Facts) -> Result<(), String> {
    let user = found.spec.username.as_deref().unwrap_or_default();
    let name = user.strip_prefix(USER).filter(|n| !n.is_empty());
    let groups = found.spec.groups.as_deref().unwrap_or_default();
    let Some(name) = name.filter(|_| groups.iter().any(|g| g == "system:nodes")) else {
        return Err(format!("{user:?} is no node"));
    };
    if asked.subject.common_name != user {
        return Err(format!("{user} asks for {:?}", asked.subject.common_name));
    }
    let usages = found.spec.usages.as_deref().unwrap_or_default();
    if let Some(Err(why)) = request::check(request::KUBELET_SERVING, asked, usages) {
        return Err(why.to_string());
    }
    // Services are called by such names; a node that has one is not to answer for them.
    let is_api = |dns: &str| API.contains(&dns) || dns.ends_with(".svc") || dns.contains(".svc.");
    if let Some(dns) = asked.names.dns.iter().find(|d| *d != name || is_api(d)) {
        return Err(format!("{dns:?} is not the name of node {name}"));
    }
    let Some(node) = cluster.nodes.iter().find(|n| n.name() == name) else {
        return Err(format!("there is no node {name} yet"));
    };
    for ip in &asked.names.ips {
        let others = cluster.nodes.iter().filter(|n| n.name() != name);
        if !addresses(node).any(|a| a == *ip) {
            return Err(format!("{ip} is no address of node {name}"));
        }
        if let Some(other) = others.into_iter().find(|n| addresses(n).any(|a| a == *ip)) {
            return Err(format!("{ip} is an address of node {} too", other.name()));
        }
        if cluster.api.contains(ip) || cluster.service_ranges.iter().any(|r| r.contains(ip)) {
            return Err(format!("{ip} is where the API or a service is reached"));
        }
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return Err(format!("{ip} is no address of one machine"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::San;
    use serde_json::json;

    fn node(name: &str, ip: &str, ready: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    fn verdict(user: &str, common_name: &str, sans: &[&str]) -> String {
        let sans: Vec<San> = sans.iter().map(|s| San::parse(s)).collect();
        let made = keelson_pki::request::request(common_name, &["system:nodes"], &sans).expect("a request");
        let found: Request = serde_json::from_value(json!({"metadata": {"name": "csr"}, "spec": {
            "request": "", "signerName": request::KUBELET_SERVING, "username": user,
            "groups": ["system:nodes", "system:authenticated"], "usages": ["digital signature", "server auth"]}}))
        .expect("a request object");
        let cluster = Facts {
            nodes: vec![
                node("n1", "10.0.0.1", "True"),
                node("n2", "10.0.0.2", "True"),
                node("twin", "10.0.0.2", "True"),
                node("kubernetes.default.svc.any", "10.0.0.3", "True"),
                node("api", "10.0.0.9", "True"),
                node("service", "10.96.0.1", "True"),
                node("mapped", "::ffff:10.96.0.2", "True"),
                node("web.shop.svc", "10.0.0.4", "True"),
            ],
            service_ranges: vec!["10.96.0.0/16".parse().expect("a range")],
            api: vec!["10.0.0.9".parse().expect("an address")],
        };
        let asked = Asked::from_pem(made.request_pem.as_bytes()).expect("a request that is read");
        own_names(&found, &asked, &cluster).err().unwrap_or_default()
    }

    #[test]
    fn a_kubelet_serves_under_its_own_name_and_addresses() {
        let of = |name: &str, sans: &[&str]| {
            let user = format!("system:node:{name}");
            verdict(&user, &user, sans)
        };
        assert_eq!(of("n1", &["n1", "10.0.0.1"]), "");
        for (name, sans, why) in [
            ("n1", &["n1", "10.0.0.2"][..], "10.0.0.2 is no address of node n1"),
            ("n1", &["n2", "10.0.0.1"], "\"n2\" is not the name of node n1"),
            ("n2", &["n2", "10.0.0.2"], "10.0.0.2 is an address of node twin too"),
            ("new", &["new", "10.0.0.7"], "there is no node new yet"),
            (
                "mapped",
                &["::ffff:10.96.0.2"],
                "10.96.0.2 is where the API or a service is reached",
            ),
            (
                "web.shop.svc",
                &["web.shop.svc"],
                "\"web.shop.svc\" is not the name of node web.shop.svc",
            ),
            (
                "api",
                &["10.0.0.9"],
                "10.0.0.9 is where the API or a service is reached",
            ),
            (
                "service",
                &["10.96.0.1"],
                "10.96.0.1 is where the API or a service is reached",
            ),
            (
                "kubernetes.default.svc.any",
                &["kubernetes.default.svc.any"],
                "\"kubernetes.default.svc.any\" is not the name of node kubernetes.default.svc.any",
            ),
            ("n1", &[], "DNS or IP subjectAltName is required"),
        ] {
            assert_eq!(of(name, sans), why);
        }
        assert!(verdict("system:node:n1", "system:node:n2", &["n1"]).contains("asks for"));
        assert!(verdict("alice", "system:node:n1", &["n1"]).contains("is no node"));
    }

    #[test]
    fn a_name_is_taken_while_its_node_is_alive() {
        assert!(taken(None).is_none());
        assert!(taken(Some(&node("n1", "10.0.0.1", "Unknown"))).is_none());
        let why = taken(Some(&node("n1", "10.0.0.1", "True"))).unwrap_or_default();
        assert!(why.contains("delete the existing Node"), "{why}");
    }
}
