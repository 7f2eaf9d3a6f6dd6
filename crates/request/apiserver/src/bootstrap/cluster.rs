//! Objects that depend on the configuration: namespaces, the service `kubernetes`, the authorities that extension
//! servers check requests with, and what lets machines join.

use crate::config::Config;
use crate::serve::Loopback;
use http::Method;
use keelson_api::{ApiResult, Object, Value, value};
use std::collections::BTreeSet;

/// Where `cluster-info` has the certificates by which a former authority vouches for the one that follows it.
pub const INTRODUCTIONS: &str = "keelson.dev-introductions";

pub fn namespaces() -> Vec<Object> {
    ["default", "kube-system", "kube-public", "kube-node-lease"]
        .into_iter()
        .filter_map(|name| object(value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})))
        .collect()
}

/// Whom the cluster trusts, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub clients: String,
    pub front_proxies: Option<String>,
    pub introductions: String,
}

impl Trust {
    /// As a server is told at its start.
    pub fn of(config: &Config) -> Trust {
        Trust {
            clients: config.client_ca_pem.clone(),
            front_proxies: config.front_proxy_ca_pem.clone(),
            introductions: config.introductions.clone(),
        }
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub fn objects(config: &Config) -> Vec<Object> {
    let mut all = vec![service_cidr(config), service(config)];
    all.extend(trusting(config, &Trust::of(config)));
    all.extend(joining());
    all.extend(at_kubelets());
    all.into_iter().filter_map(object).collect()
}

/// Those that tell whom the cluster trusts.
pub fn trust(config: &Config, trust: &Trust) -> Vec<Object> {
    trusting(config, trust).into_iter().filter_map(object).collect()
}

fn trusting(config: &Config, trust: &Trust) -> [Value; 2] {
    [authentication(config, trust), cluster_info(config, trust)]
}

fn object(v: Value) -> Option<Object> {
    Object::try_from(v).ok()
}

fn service_cidr(config: &Config) -> Value {
    let cidrs: Vec<Value> = config
        .service_cidrs
        .iter()
        .map(|range| range.to_string().into())
        .collect();
    value!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
    })
}

fn service(config: &Config) -> Value {
    let ip = config.kubernetes_service_ip();
    value!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": ip.to_string(),
            "clusterIPs": [ip.to_string()],
            "ipFamilies": [if ip.is_ipv4() { "IPv4" } else { "IPv6" }],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
    })
}

/// Where the service `kubernetes` leads to.
pub fn endpoints(addresses: &BTreeSet<String>, port: u16) -> Value {
    let each: Vec<Value> = addresses.iter().map(|ip| value!({"ip": ip.as_str()})).collect();
    let subsets = match addresses.is_empty() {
        true => Vec::new(),
        false => vec![value!({"addresses": each, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})],
    };
    value!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    })
}

pub fn endpoint_slice(addresses: &BTreeSet<String>, ipv4: bool, port: u16) -> Value {
    let each = |ip: &String| value!({"addresses": [ip.as_str()], "conditions": {"ready": true}});
    let endpoints: Vec<Value> = addresses.iter().map(each).collect();
    value!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if ipv4 { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// What extension API servers read to know whose requests to trust.
fn authentication(config: &Config, trust: &Trust) -> Value {
    let mut data = value!({"client-ca-file": trust.clients.as_str()});
    if let Some(ca) = &trust.front_proxies {
        let list = |names: &[&str]| serde_json::json!(names).to_string();
        let names: Vec<&str> = config.front_proxy_names.iter().map(String::as_str).collect();
        data.set_at(&["requestheader-client-ca-file"], ca.as_str());
        data.set_at(&["requestheader-allowed-names"], list(&names));
        data.set_at(&["requestheader-extra-headers-prefix"], list(&["X-Remote-Extra-"]));
        data.set_at(&["requestheader-group-headers"], list(&["X-Remote-Group"]));
        data.set_at(&["requestheader-uid-headers"], list(&["X-Remote-Uid"]));
        data.set_at(&["requestheader-username-headers"], list(&["X-Remote-User"]));
    }
    let mut map = value!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    });
    map.set_at(&["data"], data);
    map
}

/// Address and authority of the cluster, for machines that join (they check the authority against their token).
fn cluster_info(config: &Config, trust: &Trust) -> Value {
    let host = match config.advertise_address {
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let kubeconfig = keelson_pki::Kubeconfig {
        server: format!("https://{host}:{}", config.advertise_port),
        ca_pem: trust.clients.clone(),
        ..keelson_pki::Kubeconfig::default()
    };
    let mut map = value!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": kubeconfig.to_yaml()},
    });
    if !trust.introductions.is_empty() {
        map.set_at(&["data", INTRODUCTIONS], trust.introductions.as_str());
    }
    map
}

/// What API servers may at kubelets, which ask about it: all that a kubelet serves, as upstream's, and nothing at any other server.
fn at_kubelets() -> [Value; 2] {
    const NAME: &str = "keelson:apiserver-at-kubelets";
    let version = format!("{RBAC}/v1");
    let pages = [
        "checkpoint",
        "configz",
        "healthz",
        "log",
        "metrics",
        "pods",
        "proxy",
        "stats",
        "statusz",
    ];
    let resources: Vec<Value> = pages.iter().map(|page| format!("nodes/{page}").into()).collect();
    [
        value!({
            "apiVersion": version,
            "kind": "ClusterRole",
            "metadata": {"name": NAME},
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": ["*"]}],
        }),
        value!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": keelson_pki::layout::AT_KUBELETS}],
        }),
    ]
}

/// Who joins may read the cluster's address, and ask for a node's certificate; nodes may renew theirs.
fn joining() -> Vec<Value> {
    let version = format!("{RBAC}/v1");
    let cluster_binding = |name: &str, role: &str, group: &str| {
        value!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
        })
    };
    const SIGNING: &str = "system:certificates.k8s.io:certificatesigningrequests";
    vec![
        cluster_binding(
            "keelson:node-bootstrap",
            "system:node-bootstrapper",
            "system:bootstrappers",
        ),
        cluster_binding(
            "keelson:node-approve-bootstrap",
            &format!("{SIGNING}:nodeclient"),
            "system:bootstrappers",
        ),
        cluster_binding(
            "keelson:node-approve-renewal",
            &format!("{SIGNING}:selfnodeclient"),
            "system:nodes",
        ),
        value!({
            "apiVersion": version,
            "kind": "Role",
            "metadata": {"name": "keelson:cluster-info", "namespace": "kube-public"},
            "rules": [{
                "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"],
            }],
        }),
        value!({
            "apiVersion": version,
            "kind": "RoleBinding",
            "metadata": {"name": "keelson:cluster-info", "namespace": "kube-public"},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "keelson:cluster-info"},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": "system:anonymous"}],
        }),
    ]
}

/// What is written after an object was made: the default ServiceCIDR is ready.
pub async fn finish(made: &Object, loopback: &Loopback) -> ApiResult<()> {
    if made.kind() != "ServiceCIDR" {
        return Ok(());
    }
    let mut object = made.clone();
    let now = keelson_registry::meta::now();
    object.set_at(
        &["status", "conditions"],
        vec![value!({
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now,
            "message": "Kubernetes default Service CIDR is ready",
        })],
    );
    let path = format!("/apis/networking.k8s.io/v1/servicecidrs/{}/status", made.name());
    loopback.send(Method::PUT, &path, Some(&object.into())).await.map(drop)
}
