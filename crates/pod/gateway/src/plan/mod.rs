//! What is to be, from what was asked for: pure. The same on every node, which serves the table, and at the publisher, which writes all else.

mod attach;
mod clients;
mod filters;
mod gateways;
mod identity;
mod infrastructure;
mod ingress;
mod listeners;
pub mod rules;
mod services;
mod sets;
mod shared;
pub mod status;
mod trust;

use crate::kinds::{
    BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, HTTPRoute, ListenerSet, ReferenceGrant, TCPRoute, TLSRoute,
    UDPRoute,
};
use crate::table::{Authorities, Outer, Table};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use keelson_client::{ApiObject, ObjectKey, labels::Labels};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use clients::named as authorities_of_clients;
pub use infrastructure::Written;
pub use ingress::is_ours as ingress_is_ours;
pub use services::{Passing, PortRef, Unresolved, is_elsewhere, resolve};
pub use trust::by_system;

/// Everything that is read.
#[derive(Default)]
pub struct World {
    pub ingresses: Vec<Arc<Ingress>>,
    pub ingress_classes: Vec<Arc<IngressClass>>,
    pub classes: Vec<Arc<GatewayClass>>,
    pub gateways: Vec<Arc<Gateway>>,
    pub listener_sets: Vec<Arc<ListenerSet>>,
    pub http_routes: Vec<Arc<HTTPRoute>>,
    pub grpc_routes: Vec<Arc<GRPCRoute>>,
    pub tls_routes: Vec<Arc<TLSRoute>>,
    pub tcp_routes: Vec<Arc<TCPRoute>>,
    pub udp_routes: Vec<Arc<UDPRoute>>,
    pub grants: Vec<Arc<ReferenceGrant>>,
    pub policies: Vec<Arc<BackendTLSPolicy>>,
    /// The ConfigMaps that have certificates of authorities.
    pub authorities: BTreeMap<ObjectKey, Result<Vec<CertificateDer<'static>>, String>>,
    /// Those that the system knows; `None`: it knows none.
    pub system: Option<Authorities>,
    pub namespaces: BTreeMap<String, Labels>,
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// By the service that they are of.
    pub slices: BTreeMap<ObjectKey, Vec<Arc<EndpointSlice>>>,
    /// The secrets that have a certificate; an error says why it can't be used.
    pub certificates: BTreeMap<ObjectKey, Result<(), String>>,
    pub fronts: BTreeMap<Owner, Front>,
}

/// On whose behalf requests are taken in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Ingress,
    Gateway(ObjectKey),
}

/// A service of type LoadBalancer, by which requests come to the nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Front {
    /// What clients see, and where it leads on a node.
    pub ports: BTreeMap<Outer, u16>,
    pub addresses: Vec<LoadBalancerIngress>,
    /// The addresses that are asked for; empty: any will do.
    pub wished: Vec<IpAddr>,
    /// Ports that ListenerSets add, and that it was refused with: while they are these it does without them.
    pub without: BTreeSet<Outer>,
    /// What else is written on it.
    pub written: Written,
    /// Why it has no address.
    pub refused: Option<String>,
    /// It has none because somebody else has one of its ports on the nodes' addresses.
    pub taken: bool,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub table: Table,
    /// The ports that each front has to have.
    pub fronts: BTreeMap<Owner, BTreeSet<Outer>>,
    /// The addresses that fronts have to have, where it matters which.
    pub wished: BTreeMap<Owner, Vec<IpAddr>>,
    /// What fronts do without, to be known later.
    pub without: BTreeMap<Owner, BTreeSet<Outer>>,
    /// What else is to be written on fronts.
    pub written: BTreeMap<Owner, Written>,
    /// The secrets whose certificates are shown.
    pub certificates: BTreeSet<ObjectKey>,
    /// The ConfigMaps by which backends and clients are known.
    pub authorities: BTreeSet<ObjectKey>,
    pub statuses: status::Statuses,
    /// What of an Ingress can't be done; it has no conditions to tell it in.
    pub problems: BTreeSet<(ObjectKey, String)>,
}

pub fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    ingress::plan(world, &mut plan);
    gateways::plan(world, &mut plan);
    plan
}

/// When an object was made, for who goes first.
fn created<K: ApiObject>(object: &K) -> i64 {
    let time = object.meta().creation_timestamp.as_ref();
    time.map_or(0, |t| t.0.as_second())
}
