//! From a service's port to where its requests go.

use super::World;
use crate::table::{Protocol, Trust, Upstream};
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use keelson_client::ObjectKey;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub enum PortRef<'a> {
    Number(i32),
    Name(&'a str),
}

/// What is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// By what a port is taken to speak if it says nothing.
    Requests(Protocol),
    /// Nobody looks into them.
    Bytes,
    Datagrams,
}

impl Passing {
    pub fn transport(self) -> &'static str {
        match self {
            Passing::Datagrams => "UDP",
            Passing::Requests(_) | Passing::Bytes => "TCP",
        }
    }
}

pub enum Unresolved {
    NoService,
    NoPort,
    /// By what the service says that its port speaks.
    Protocol(String),
}

/// Where requests for a port go: to endpoints that are ready; while there is none, to those that still serve although they are ending.
/// `trust` says that it is reached by TLS, and what it has to show. `passing` is what is passed on to it.
pub fn resolve(
    world: &World,
    key: &ObjectKey,
    port: PortRef<'_>,
    passing: Passing,
    trust: Option<Arc<Trust>>,
) -> Result<Upstream, Unresolved> {
    let speaks = match passing {
        Passing::Requests(speaks) => Some(speaks),
        Passing::Bytes | Passing::Datagrams => None,
    };
    let service = world.services.get(key).ok_or(Unresolved::NoService)?;
    let spec = service.spec.as_ref().ok_or(Unresolved::NoService)?;
    let ports = spec.ports.as_deref().unwrap_or_default();
    let found = ports.iter().find(|p| match port {
        PortRef::Number(number) => p.port == number && p.protocol.as_deref().unwrap_or("TCP") == passing.transport(),
        PortRef::Name(name) => p.name.as_deref() == Some(name),
    });
    let protocol = match found
        .and_then(|p| p.app_protocol.as_deref())
        .filter(|_| speaks.is_some())
    {
        Some("kubernetes.io/h2c" | "grpc") => Protocol::H2c,
        Some(other @ ("https" | "tls" | "kubernetes.io/wss" | "kubernetes.io/https")) => {
            if trust.is_none() {
                return Err(Unresolved::Protocol(other.into()));
            }
            speaks.unwrap_or_default()
        }
        _ => speaks.unwrap_or_default(),
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        let number = match (found, port) {
            (Some(found), _) => found.port,
            (None, PortRef::Number(number)) => number,
            (None, PortRef::Name(_)) => return Err(Unresolved::NoPort),
        };
        return Ok(Upstream::External {
            host: spec.external_name.clone().unwrap_or_default(),
            port: u16::try_from(number).map_err(|_| Unresolved::NoPort)?,
            protocol,
            trust,
        });
    }
    let found = found.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == passing.transport());
    let found = found.ok_or(Unresolved::NoPort)?;
    let slices = world.slices.get(key).map(Vec::as_slice).unwrap_or_default();
    let of = |wanted: fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        slices.iter().flat_map(|s| addresses(s, found, wanted)).collect()
    };
    let mut addresses = of(ready);
    if addresses.is_empty() {
        addresses = of(ending);
    }
    Ok(Upstream::Endpoints {
        service: key.clone(),
        addresses: addresses.into_iter().collect(),
        protocol,
        trust,
    })
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn ending(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    let is = |get: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
        conditions.and_then(get).unwrap_or(false)
    };
    is(|c| c.serving) && is(|c| c.terminating)
}

fn addresses(slice: &EndpointSlice, port: &ServicePort, wanted: fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
    let name = port.name.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    let mut ports = ports.filter(|p| p.name.as_deref().unwrap_or_default() == name);
    let Some(number) = ports.find_map(|p| u16::try_from(p.port?).ok()) else {
        return Vec::new();
    };
    let endpoints = slice.endpoints.iter().flatten().filter(|e| wanted(e));
    let ips = endpoints.filter_map(|e| e.addresses.first()?.parse::<IpAddr>().ok());
    ips.filter(|ip| is_elsewhere(*ip))
        .map(|ip| SocketAddr::new(ip, number))
        .collect()
}

/// Whether an address leads out of this machine's own programs: whoever writes endpoints or external names can't mean those.
pub fn is_elsewhere(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}
