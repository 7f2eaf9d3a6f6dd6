//! Rows of what the cluster is made of: nodes, services, storage, configuration.

use super::cells::{AGE, Col, NAME, NONE, Row, UNKNOWN, UNSET, flag, joined, number, selector, some, text, wide};
use keelson_api::Value;

const NODE: &[Col] = &[
    NAME,
    text("Status", node_status),
    text("Roles", node_roles),
    AGE,
    text("Version", |r| r.str("status.nodeInfo.kubeletVersion").into()),
    wide("Internal-IP", |r| node_address(r, "InternalIP")),
    wide("External-IP", |r| node_address(r, "ExternalIP")),
    wide("OS-Image", |r| r.str_or("status.nodeInfo.osImage", UNKNOWN)),
    wide("Kernel-Version", |r| r.str_or("status.nodeInfo.kernelVersion", UNKNOWN)),
    wide("Container-Runtime", |r| {
        r.str_or("status.nodeInfo.containerRuntimeVersion", UNKNOWN)
    }),
];

const NAMESPACE: &[Col] = &[NAME, text("Status", |r| r.str("status.phase").into()), AGE];
const NAME_AGE: &[Col] = &[NAME, AGE];
const CONFIG_MAP: &[Col] = &[
    NAME,
    text("Data", |r| (size(r, "data") + size(r, "binaryData")).into()),
    AGE,
];
const SECRET: &[Col] = &[
    NAME,
    text("Type", |r| r.str("type").into()),
    text("Data", |r| size(r, "data").into()),
    AGE,
];

const SERVICE: &[Col] = &[
    NAME,
    text("Type", |r| r.str("spec.type").into()),
    text("Cluster-IP", |r| r.str_or("spec.clusterIP", NONE)),
    text("External-IP", external_ip),
    text("Port(s)", service_ports),
    AGE,
    wide("Selector", |r| selector(r.at("spec.selector")).into()),
];

const ENDPOINTS: &[Col] = &[NAME, text("Endpoints", endpoints), AGE];

const ENDPOINT_SLICE: &[Col] = &[
    NAME,
    text("AddressType", |r| r.str("addressType").into()),
    text("Ports", |r| match r.list("ports") {
        [] => UNSET.into(),
        ports => some(&ports.iter().map(|p| port_or(p, "port", "*")).collect::<Vec<_>>()).into(),
    }),
    text("Endpoints", |r| match r.list("endpoints") {
        [] => UNSET.into(),
        all => {
            let ips = all
                .iter()
                .flat_map(|e| e.get("addresses").and_then(Value::as_array).into_iter().flatten());
            some(&ips.filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()).into()
        }
    }),
    AGE,
];

const EVENT: &[Col] = &[
    text("Last Seen", |r| {
        let last = ["series.lastObservedTime", "lastTimestamp", "deprecatedLastTimestamp"];
        seen(r, &last).unwrap_or_else(|| seen(r, FIRST).unwrap_or(UNKNOWN.into()))
    }),
    text("Type", |r| r.str("type").into()),
    text("Reason", |r| r.str("reason").into()),
    text("Object", |r| {
        let of = |base: &str| {
            let kind = r.str(&format!("{base}.kind")).to_lowercase();
            format!("{kind}/{}", r.str(&format!("{base}.name")))
        };
        if r.at("involvedObject").is_some() {
            of("involvedObject")
        } else {
            of("regarding")
        }
        .into()
    }),
    wide("Subobject", |r| match r.str("involvedObject.fieldPath") {
        "" => r.str("regarding.fieldPath").into(),
        path => path.into(),
    }),
    wide("Source", |r| {
        let first = |paths: [&str; 3]| paths.into_iter().map(|p| r.str(p).to_string()).find(|s| !s.is_empty());
        let component = first(["source.component", "deprecatedSource.component", "reportingComponent"])
            .or_else(|| Some(r.str("reportingController").to_string()));
        let host = first(["source.host", "deprecatedSource.host", "reportingInstance"]);
        let parts: Vec<String> = component.into_iter().chain(host).filter(|s| !s.is_empty()).collect();
        parts.join(", ").into()
    }),
    text("Message", |r| match r.str("message") {
        "" => r.str("note").trim().into(),
        message => message.trim().into(),
    }),
    wide("First Seen", |r| seen(r, FIRST).unwrap_or(UNKNOWN.into())),
    wide("Count", |r| {
        let counts = ["series.count", "count", "deprecatedCount"];
        counts
            .into_iter()
            .map(|p| r.int(p))
            .find(|n| *n > 0)
            .unwrap_or(1)
            .to_string()
            .into()
    }),
    Col { priority: 1, ..NAME },
];
const FIRST: &[&str] = &["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"];

const VOLUME: &[Col] = &[
    NAME,
    text("Capacity", |r| r.str("spec.capacity.storage").into()),
    text("Access Modes", |r| access_modes(r, "spec.accessModes")),
    text("Reclaim Policy", |r| r.str("spec.persistentVolumeReclaimPolicy").into()),
    text("Status", |r| terminating_or(r, "status.phase")),
    text("Claim", |r| match r.str("spec.claimRef.name") {
        "" => "".into(),
        name => format!("{}/{name}", r.str("spec.claimRef.namespace")).into(),
    }),
    text("StorageClass", storage_class),
    text("VolumeAttributesClass", |r| {
        r.str_or("spec.volumeAttributesClassName", UNSET)
    }),
    text("Reason", |r| r.str("status.reason").into()),
    AGE,
    wide("VolumeMode", |r| r.str_or("spec.volumeMode", UNSET)),
];

const CLAIM: &[Col] = &[
    NAME,
    text("Status", |r| terminating_or(r, "status.phase")),
    text("Volume", |r| r.str("spec.volumeName").into()),
    text("Capacity", |r| match r.str("spec.volumeName") {
        "" => "".into(),
        _ => r.str_or("status.capacity.storage", "0"),
    }),
    text("Access Modes", |r| {
        if r.str("spec.volumeName").is_empty() {
            "".into()
        } else {
            access_modes(r, "status.accessModes")
        }
    }),
    text("StorageClass", storage_class),
    text("VolumeAttributesClass", |r| {
        r.str_or("spec.volumeAttributesClassName", UNSET)
    }),
    AGE,
    wide("VolumeMode", |r| r.str_or("spec.volumeMode", UNSET)),
];

const QUOTA: &[Col] = &[
    NAME,
    text("Request", |r| quota(r, true)),
    text("Limit", |r| quota(r, false)),
    AGE,
];

const COMPONENT: &[Col] = &[
    NAME,
    text("Status", |r| {
        let healthy = r
            .list("conditions")
            .iter()
            .find(|c| c.get("type").and_then(Value::as_str) == Some("Healthy"));
        match healthy.and_then(|c| c.get("status")?.as_str()) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        }
        .into()
    }),
    text("Message", |r| first_condition(r, "message")),
    text("Error", |r| first_condition(r, "error")),
];

const INGRESS: &[Col] = &[
    NAME,
    text("Class", |r| match r.str("spec.ingressClassName") {
        "" => NONE.into(),
        class => class.into(),
    }),
    text("Hosts", |r| {
        let hosts: Vec<String> = r
            .list("spec.rules")
            .iter()
            .filter_map(|rule| rule.get("host").and_then(Value::as_str).filter(|h| !h.is_empty()))
            .map(str::to_string)
            .collect();
        if hosts.is_empty() {
            "*".into()
        } else {
            some(&hosts).into()
        }
    }),
    text("Address", |r| ingress_addresses(r).into()),
    text("Ports", |r| {
        if r.list("spec.tls").is_empty() { "80" } else { "80, 443" }.into()
    }),
    AGE,
];

const INGRESS_CLASS: &[Col] = &[
    NAME,
    text("Controller", |r| r.str("spec.controller").into()),
    text("Parameters", |r| match r.str("spec.parameters.kind") {
        "" => NONE.into(),
        kind => {
            let group = r.str("spec.parameters.apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", r.str("spec.parameters.name")).into()
        }
    }),
    AGE,
];

const NETWORK_POLICY: &[Col] = &[
    NAME,
    text("Pod-Selector", |r| selector(r.at("spec.podSelector")).into()),
    AGE,
];
const SERVICE_CIDR: &[Col] = &[NAME, text("CIDRs", |r| joined(&r.strings("spec.cidrs"), "")), AGE];
const IP_ADDRESS: &[Col] = &[
    NAME,
    text("ParentRef", |r| {
        let part = |key: &str| r.str(&format!("spec.parentRef.{key}")).to_string();
        let parts = [part("resource"), part("group"), part("namespace"), part("name")];
        let [resource, group, namespace, name] = parts;
        let resource = if group.is_empty() {
            resource
        } else {
            format!("{resource}.{group}")
        };
        [resource, namespace, name]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join("/")
            .into()
    }),
];

const STORAGE_CLASS: &[Col] = &[
    Col {
        cell: |r| {
            let default = r.object.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
            format!("{}{}", r.object.name(), if default { " (default)" } else { "" }).into()
        },
        ..NAME
    },
    text("Provisioner", |r| r.str("provisioner").into()),
    text("ReclaimPolicy", |r| r.str_or("reclaimPolicy", "Delete")),
    text("VolumeBindingMode", |r| r.str_or("volumeBindingMode", UNSET)),
    text("AllowVolumeExpansion", |r| r.bool("allowVolumeExpansion").into()),
    AGE,
];
const ATTRIBUTES_CLASS: &[Col] = &[NAME, text("DriverName", |r| r.str("driverName").into()), AGE];
const ATTACHMENT: &[Col] = &[
    NAME,
    text("Attacher", |r| r.str("spec.attacher").into()),
    text("PV", |r| r.str("spec.source.persistentVolumeName").into()),
    text("Node", |r| r.str("spec.nodeName").into()),
    flag("Attached", |r| r.bool("status.attached").into()),
    AGE,
];
const CSI_NODE: &[Col] = &[NAME, number("Drivers", |r| r.list("spec.drivers").len().into()), AGE];
const CSI_DRIVER: &[Col] = &[
    NAME,
    flag("AttachRequired", |r| {
        r.at("spec.attachRequired")
            .and_then(Value::as_bool)
            .unwrap_or(true)
            .into()
    }),
    flag("PodInfoOnMount", |r| r.bool("spec.podInfoOnMount").into()),
    flag("StorageCapacity", |r| r.bool("spec.storageCapacity").into()),
    text("TokenRequests", |r| {
        let audiences = r
            .list("spec.tokenRequests")
            .iter()
            .filter_map(|t| t.get("audience")?.as_str());
        let audiences: Vec<&str> = audiences.collect();
        joined(&audiences, UNSET)
    }),
    flag("RequiresRepublish", |r| r.bool("spec.requiresRepublish").into()),
    text("Modes", |r| joined(&r.strings("spec.volumeLifecycleModes"), NONE)),
    AGE,
];
const CSI_CAPACITY: &[Col] = &[
    NAME,
    text("StorageClassName", |r| r.str("storageClassName").into()),
    text("Capacity", |r| r.str_or("capacity", UNSET)),
];
const LEASE: &[Col] = &[NAME, text("Holder", |r| r.str("spec.holderIdentity").into()), AGE];

pub fn core(kind: &str) -> Option<&'static [Col]> {
    Some(match kind {
        "Node" => NODE,
        "Namespace" => NAMESPACE,
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "ServiceAccount" => NAME_AGE,
        "LimitRange" => NAME_AGE_CREATED,
        "Service" => SERVICE,
        "Endpoints" => ENDPOINTS,
        "Event" => EVENT,
        "PersistentVolume" => VOLUME,
        "PersistentVolumeClaim" => CLAIM,
        "ResourceQuota" => QUOTA,
        "ComponentStatus" => COMPONENT,
        _ => return None,
    })
}

/// A limit range tells when it was made, not how long ago.
const NAME_AGE_CREATED: &[Col] = &[
    NAME,
    Col {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
        cell: |r| r.object.creation_timestamp().into(),
    },
];

pub fn groups(group: &str, kind: &str) -> Option<&'static [Col]> {
    Some(match (group, kind) {
        ("events.k8s.io", "Event") => EVENT,
        ("discovery.k8s.io", "EndpointSlice") => ENDPOINT_SLICE,
        ("networking.k8s.io", "Ingress") => INGRESS,
        ("networking.k8s.io", "IngressClass") => INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => SERVICE_CIDR,
        ("networking.k8s.io", "IPAddress") => IP_ADDRESS,
        ("storage.k8s.io", "StorageClass") => STORAGE_CLASS,
        ("storage.k8s.io", "VolumeAttributesClass") => ATTRIBUTES_CLASS,
        ("storage.k8s.io", "VolumeAttachment") => ATTACHMENT,
        ("storage.k8s.io", "CSINode") => CSI_NODE,
        ("storage.k8s.io", "CSIDriver") => CSI_DRIVER,
        ("storage.k8s.io", "CSIStorageCapacity") => CSI_CAPACITY,
        ("coordination.k8s.io", "Lease") => LEASE,
        _ => return None,
    })
}

fn size(r: &Row, path: &str) -> usize {
    r.map(path).map_or(0, keelson_api::Map::len)
}

fn node_status(r: &Row) -> Value {
    let ready = r
        .list("status.conditions")
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some("Ready"));
    let mut words = vec![match ready.and_then(|c| c.get("status")?.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if r.bool("spec.unschedulable") {
        words.push("SchedulingDisabled");
    }
    words.join(",").into()
}

fn node_roles(r: &Row) -> Value {
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in r.object.labels().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|s| !s.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|s| !s.is_empty()));
        }
    }
    roles.sort_unstable();
    joined(&roles, NONE)
}

fn node_address(r: &Row, kind: &str) -> Value {
    let found = r
        .list("status.addresses")
        .iter()
        .find(|a| a.get("type").and_then(Value::as_str) == Some(kind));
    found.and_then(|a| a.get("address")?.as_str()).unwrap_or(NONE).into()
}

fn ingress_addresses(r: &Row) -> String {
    let address = |i: &Value| {
        let of = |key: &str| i.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
        of("ip").or_else(|| of("hostname")).map(str::to_string)
    };
    r.list("status.loadBalancer.ingress")
        .iter()
        .filter_map(address)
        .collect::<Vec<_>>()
        .join(",")
}

fn external_ip(r: &Row) -> Value {
    let external = r.strings("spec.externalIPs");
    match r.str("spec.type") {
        "ExternalName" => r.str("spec.externalName").into(),
        "LoadBalancer" => {
            let mut all = ingress_addresses(r);
            if !external.is_empty() {
                let comma = if all.is_empty() { "" } else { "," };
                all = format!("{all}{comma}{}", external.join(","));
            }
            if all.is_empty() { "<pending>".into() } else { all.into() }
        }
        _ => joined(&external, NONE),
    }
}

fn service_ports(r: &Row) -> Value {
    let shown: Vec<String> = r
        .list("spec.ports")
        .iter()
        .map(|p| {
            let protocol = p.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            let port = port_or(p, "port", "0");
            match p.get("nodePort").and_then(Value::as_i64) {
                Some(n) if n > 0 => format!("{port}:{n}/{protocol}"),
                _ => format!("{port}/{protocol}"),
            }
        })
        .collect();
    if shown.is_empty() {
        NONE.into()
    } else {
        shown.join(",").into()
    }
}

fn port_or(p: &Value, key: &str, absent: &str) -> String {
    p.get(key)
        .and_then(Value::as_i64)
        .map_or_else(|| absent.into(), |n| n.to_string())
}

fn endpoints(r: &Row) -> Value {
    let mut all: Vec<String> = Vec::new();
    for subset in r.list("subsets") {
        let list = |key: &str| {
            subset
                .get(key)
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        for address in list("addresses") {
            let ip = address.get("ip").and_then(Value::as_str).unwrap_or_default();
            match list("ports") {
                [] => all.push(ip.to_string()),
                ports => all.extend(ports.iter().map(|p| format!("{ip}:{}", port_or(p, "port", "0")))),
            }
        }
    }
    some(&all).into()
}

/// The first of these times that is set, as how long ago.
fn seen(r: &Row, paths: &[&str]) -> Option<Value> {
    paths
        .iter()
        .map(|p| r.str(p))
        .find(|t| !t.is_empty())
        .map(|t| r.since(t).into())
}

fn access_modes(r: &Row, path: &str) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let modes = r.strings(path);
    let order = ["RWO", "ROX", "RWX", "RWOP"];
    let shown: Vec<&str> = order
        .into_iter()
        .filter(|o| modes.iter().any(|m| short(m) == *o))
        .collect();
    joined(&shown, "")
}

fn terminating_or(r: &Row, path: &str) -> Value {
    if r.object.deletion_timestamp().is_some() {
        "Terminating".into()
    } else {
        r.str(path).into()
    }
}

fn storage_class(r: &Row) -> Value {
    match r.object.annotation("volume.beta.kubernetes.io/storage-class") {
        Some(class) => class.into(),
        None => r.str("spec.storageClassName").into(),
    }
}

fn quota(r: &Row, requests: bool) -> Value {
    let Some(hard) = r.map("status.hard") else {
        return "".into();
    };
    let used = |key: &str| r.map("status.used").and_then(|m| m.str(key)).unwrap_or("0");
    let shown: Vec<String> = hard
        .iter()
        .filter(|(key, _)| key.starts_with("limits.") != requests)
        .map(|(key, value)| format!("{key}: {}/{}", used(key), value.as_str().unwrap_or_default()))
        .collect();
    shown.join(", ").into()
}

fn first_condition(r: &Row, key: &str) -> Value {
    let found = r
        .list("conditions")
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some("Healthy"));
    found.and_then(|c| c.get(key)?.as_str()).unwrap_or_default().into()
}
