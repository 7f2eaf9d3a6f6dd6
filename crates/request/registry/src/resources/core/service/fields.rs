//! Reading and tidying the fields of a service that belong together.

use crate::context::Cx;
use keelson_api::{Object, Str, Value};
use std::collections::{HashMap, HashSet};

pub const NONE: &str = "None";

pub fn kind(svc: &Object) -> &str {
    svc.str_at(&["spec", "type"])
        .filter(|t| !t.is_empty())
        .unwrap_or("ClusterIP")
}

pub fn is_external_name(svc: &Object) -> bool {
    kind(svc) == "ExternalName"
}

pub fn strings(svc: &Object, key: &str) -> Vec<Str> {
    svc.at(&["spec", key])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Str::from)
        .collect()
}

pub fn set_strings(svc: &mut Object, key: &str, list: &[Str]) {
    if list.is_empty() {
        svc.remove_at(&["spec", key]);
    } else {
        svc.set_at(
            &["spec", key],
            list.iter().cloned().map(Value::String).collect::<Vec<_>>(),
        );
    }
}

pub fn cluster_ip(svc: &Object) -> &str {
    svc.str_at(&["spec", "clusterIP"]).unwrap_or_default()
}

pub fn is_headless(svc: &Object) -> bool {
    cluster_ip(svc) == NONE
}

/// The addresses a service holds.
pub fn cluster_ips(svc: &Object) -> Vec<String> {
    if is_external_name(svc) || is_headless(svc) {
        return Vec::new();
    }
    strings(svc, "clusterIPs")
        .iter()
        .filter(|ip| !ip.is_empty())
        .map(ToString::to_string)
        .collect()
}

pub fn has_selector(svc: &Object) -> bool {
    svc.at(&["spec", "selector"])
        .and_then(Value::as_object)
        .is_some_and(|m| !m.is_empty())
}

pub fn ports(svc: &Object) -> &[Value] {
    svc.at(&["spec", "ports"])
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A number of a port as it was sent, which may be no port's.
pub fn number(port: &Value, key: &str) -> i64 {
    port.get(key).and_then(Value::as_i64).unwrap_or(0)
}

fn asked_node_ports(svc: &Object) -> HashSet<i64> {
    let all = ports(svc).iter().map(|p| number(p, "nodePort"));
    all.filter(|p| *p != 0).collect()
}

pub fn node_ports(svc: &Object) -> Vec<u16> {
    ports(svc)
        .iter()
        .filter_map(|p| u16::try_from(number(p, "nodePort")).ok())
        .filter(|p| *p != 0)
        .collect()
}

pub fn needs_node_ports(svc: &Object) -> bool {
    matches!(kind(svc), "NodePort" | "LoadBalancer")
}

/// Whether ports that the user left open get one.
pub fn allocates_node_ports(svc: &Object) -> bool {
    match kind(svc) {
        "NodePort" => true,
        "LoadBalancer" => {
            svc.at(&["spec", "allocateLoadBalancerNodePorts"])
                .and_then(Value::as_bool)
                != Some(false)
        }
        _ => false,
    }
}

pub fn needs_health_port(svc: &Object) -> bool {
    kind(svc) == "LoadBalancer" && svc.str_at(&["spec", "externalTrafficPolicy"]) == Some("Local")
}

pub fn health_port(svc: &Object) -> Option<u16> {
    let n = svc.at(&["spec", "healthCheckNodePort"]).and_then(Value::as_i64)?;
    u16::try_from(n).ok().filter(|n| *n != 0)
}

fn externally_accessible(svc: &Object) -> bool {
    let by_ip = kind(svc) == "ClusterIP" && !strings(svc, "externalIPs").is_empty();
    matches!(kind(svc), "NodePort" | "LoadBalancer") || by_ip
}

fn set_if_unset(svc: &mut Object, path: &[&str], value: impl Into<Value>) {
    if svc.at(path).is_none_or(|v| v.is_null() || v.as_str() == Some("")) {
        svc.set_at(path, value);
    }
}

/// Defaults that hang on other fields.
pub fn default(svc: &mut Object) {
    set_if_unset(svc, &["spec", "sessionAffinity"], "None");
    set_if_unset(svc, &["spec", "type"], "ClusterIP");
    match svc.str_at(&["spec", "sessionAffinity"]) {
        Some("None") => {
            svc.remove_at(&["spec", "sessionAffinityConfig"]);
        }
        Some("ClientIP") => set_if_unset(
            svc,
            &["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"],
            10800i64,
        ),
        _ => {}
    }
    if let Some(Value::Array(ports)) = svc.at_mut(&["spec", "ports"]) {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            if port.str("protocol").unwrap_or_default().is_empty() {
                port.insert("protocol", "TCP");
            }
            let unset = match port.get("targetPort") {
                None | Some(Value::Null) | Some(Value::Int(0)) => true,
                Some(v) => v.as_str() == Some(""),
            };
            if let Some(number) = port.get("port").cloned().filter(|_| unset) {
                port.insert("targetPort", number);
            }
        }
    }
    if externally_accessible(svc) {
        set_if_unset(svc, &["spec", "externalTrafficPolicy"], "Cluster");
    }
    if matches!(kind(svc), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_if_unset(svc, &["spec", "internalTrafficPolicy"], "Cluster");
    }
    if kind(svc) == "LoadBalancer" {
        set_if_unset(svc, &["spec", "allocateLoadBalancerNodePorts"], true);
    }
}

/// Keeps what was allocated when an update doesn't mention it.
pub fn patch_allocated(new: &mut Object, old: &Object) {
    if !is_external_name(new) && !is_external_name(old) {
        if cluster_ip(new).is_empty() {
            let ip = cluster_ip(old).to_string();
            if !ip.is_empty() {
                new.set_at(&["spec", "clusterIP"], ip);
            }
        }
        if strings(new, "clusterIPs").is_empty() {
            set_strings(new, "clusterIPs", &strings(old, "clusterIPs"));
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        // There may be as many ports as a body holds.
        let before = asked_node_ports(old);
        let used: HashSet<i64> = asked_node_ports(new)
            .into_iter()
            .filter(|p| before.contains(p))
            .collect();
        // A port is the same by its name: its number may be another.
        let name = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let of_name: HashMap<String, i64> = ports(old).iter().map(|p| (name(p), number(p, "nodePort"))).collect();
        let list = new.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut);
        for port in list.into_iter().flatten().filter(|p| number(p, "nodePort") == 0) {
            let node = of_name.get(&name(port)).copied().unwrap_or(0);
            if node != 0 && !used.contains(&node) {
                port.set_at(&["nodePort"], node);
            }
        }
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && health_port(new).is_none()
        && let Some(p) = health_port(old)
    {
        new.set_at(&["spec", "healthCheckNodePort"], i64::from(p));
    }
}

/// `clusterIP` and `clusterIPs` say the same; old clients know only the first.
pub fn normalize_ips(new: &mut Object, old: Option<&Object>) {
    let single = Str::from(cluster_ip(new));
    let mut list = strings(new, "clusterIPs");
    match old {
        None => {
            if !single.is_empty() && list.is_empty() {
                list = vec![single.clone()];
            } else if single.is_empty() && !list.is_empty() {
                // Left for validation: the two must agree.
            }
        }
        Some(old) => {
            let (old_single, old_list) = (Str::from(cluster_ip(old)), strings(old, "clusterIPs"));
            if single == old_single && list.is_empty() {
                list = old_list;
            } else if single != old_single && list == old_list {
                // A client that knows only the single field set it.
                list = (!single.is_empty()).then_some(single).into_iter().collect();
            }
        }
    }
    set_strings(new, "clusterIPs", &list);
}

/// Fields that the new type has no use for, unless the user changed them too.
pub fn drop_unneeded(_: &Cx, new: &mut Object, old: &Object) {
    let same = |new: &Object, key: &str| crate::strategy::same(new.at(&["spec", key]), old.at(&["spec", key]));
    if !is_external_name(old) && is_external_name(new) {
        if same(new, "clusterIP") && same(new, "clusterIPs") {
            new.remove_at(&["spec", "clusterIP"]);
            new.remove_at(&["spec", "clusterIPs"]);
        }
        for key in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, key) {
                new.remove_at(&["spec", key]);
            }
        }
    }
    if needs_node_ports(old)
        && !needs_node_ports(new)
        && asked_node_ports(new).is_subset(&asked_node_ports(old))
        && let Some(Value::Array(list)) = new.at_mut(&["spec", "ports"])
    {
        for port in list.iter_mut().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    if needs_health_port(old) && !needs_health_port(new) && same(new, "healthCheckNodePort") {
        new.remove_at(&["spec", "healthCheckNodePort"]);
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, key) {
                new.remove_at(&["spec", key]);
            }
        }
    }
    if externally_accessible(old) && !externally_accessible(new) && same(new, "externalTrafficPolicy") {
        new.remove_at(&["spec", "externalTrafficPolicy"]);
    }
    if kind(new) != "LoadBalancer" {
        new.set_at(&["status", "loadBalancer"], keelson_api::Map::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::validation::tests::request;
    use keelson_api::value;

    fn service(kind: &str, ports: Value) -> Object {
        Object::try_from(value!({"spec": {"type": (kind), "ports": (ports)}})).unwrap()
    }

    #[test]
    fn ports_keep_their_node_port_by_their_name() {
        let old = service(
            "NodePort",
            value!([{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]),
        );
        let mut new = service(
            "NodePort",
            value!([{"name": "a", "port": 8080}, {"name": "c", "port": 81}]),
        );
        patch_allocated(&mut new, &old);
        assert_eq!(node_ports(&new), [30001]);
        let mut taken = service(
            "NodePort",
            value!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30001}]),
        );
        patch_allocated(&mut taken, &old);
        assert_eq!(node_ports(&taken), [30001], "which another port has now");
    }

    #[test]
    fn the_single_address_is_changed_by_who_knows_no_list() {
        let of =
            |ip: &str, ips: Value| Object::try_from(value!({"spec": {"clusterIP": ip, "clusterIPs": ips}})).unwrap();
        let old = of("10.0.0.1", value!(["10.0.0.1"]));
        for (sent, ips) in [
            (value!([]), vec!["x"]),
            (value!(["10.0.0.1"]), vec!["x"]),
            (value!(["y"]), vec!["y"]),
        ] {
            let mut new = of("x", sent);
            patch_allocated(&mut new, &old);
            normalize_ips(&mut new, Some(&old));
            let has = strings(&new, "clusterIPs");
            assert_eq!(has.iter().map(Str::as_str).collect::<Vec<_>>(), ips);
        }
    }

    #[test]
    fn node_ports_go_with_the_type_unless_new_ones_are_asked_for() {
        let ports = |node: u16| value!([{"name": "b", "port": 81, "nodePort": (i64::from(node))}]);
        let both = value!([{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]);
        let old = service("NodePort", both);
        for (node, left) in [(30002, vec![]), (30003, vec![30003])] {
            let mut new = service("ClusterIP", ports(node));
            drop_unneeded(&request("", "Service"), &mut new, &old);
            assert_eq!(node_ports(&new), left);
        }
    }
}
