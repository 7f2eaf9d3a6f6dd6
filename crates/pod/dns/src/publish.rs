//! Service `kube-system/kube-dns` and its EndpointSlice: how pods reach this server at the cluster's DNS address.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const RETRY: Duration = Duration::from_secs(1);

/// The cluster's DNS address, and where its traffic goes.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub cluster_ip: IpAddr,
    pub target: SocketAddr,
}

/// Creates or corrects both objects, then tells `ready`. Tries until it succeeds or `stop` fires.
pub async fn publish(rest: Rest, address: Address, ready: Arc<Notify>, stop: CancellationToken) {
    loop {
        match attempt(&rest, address).await {
            Ok(()) => return ready.notify_one(),
            Err(error) => tracing::warn!(%error, "the service kube-system/kube-dns can't be published yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
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

fn service(address: Address) -> Service {
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
            cluster_ip: Some(address.cluster_ip.to_string()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn slice(address: Address) -> EndpointSlice {
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(address.target.port().into()),
        ..EndpointPort::default()
    };
    let mut labels = labels();
    labels.insert("kubernetes.io/service-name".into(), NAME.into());
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), "keelson-dns".into());
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{NAME}-keelson")),
            namespace: Some(NAMESPACE.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        address_type: if address.target.is_ipv4() { "IPv4" } else { "IPv6" }.into(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.target.ip().to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        }]),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
    }
}

async fn attempt(rest: &Rest, address: Address) -> keelson_client::Result<()> {
    // The service belongs to the administrator once it exists: only its absence is mended.
    let services: Objects<Service> = Objects::new(rest);
    if services.find(NAMESPACE, NAME).await?.is_none() {
        services.create(&service(address)).await?;
    }
    let wanted = slice(address);
    let slices: Objects<EndpointSlice> = Objects::new(rest);
    slices
        .create_or_update(&wanted, |live| {
            let same = live.endpoints == wanted.endpoints && live.ports == wanted.ports;
            live.endpoints = wanted.endpoints.clone();
            live.ports = wanted.ports.clone();
            !same
        })
        .await?;
    Ok(())
}
