//! Services.

use super::Rules;
use super::check::{Errs, cidr, count, ip, s};
use super::networking::endpoint_ip;
use super::service_addresses::{self, headless};
use keelson_api::codec::json;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use std::collections::HashSet;

pub const SERVICE: Rules = Rules {
    name: names::dns1123_label,
    object: |_, o, e| service(o, e),
    update: |_, new, old, e| update(new, old, e),
    status: |_, new, _, e| {
        let ingress = new.at(&["status", "loadBalancer", "ingress"]).and_then(Value::as_array);
        for (i, x) in ingress.into_iter().flatten().filter_map(Value::as_object).enumerate() {
            e.within(&format!("status.loadBalancer.ingress[{i}]"), |e| {
                if !s(x, "ip").is_empty() {
                    e.format("ip", s(x, "ip"), ip);
                }
                if !s(x, "hostname").is_empty() {
                    e.format("hostname", s(x, "hostname"), names::dns1123_subdomain);
                }
            });
        }
    },
    ..Rules::SUBDOMAIN
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn service(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    let spec = o.obj("spec").unwrap_or(&empty);
    e.within("spec", |e| {
        let kind = s(spec, "type");
        if count(spec, "ports") == 0 && !headless(spec) && kind != "ExternalName" {
            e.required("ports", "");
        }
        match kind {
            "LoadBalancer" | "NodePort" if headless(spec) => {
                e.invalid(
                    "clusterIPs[0]",
                    "None",
                    &format!("may not be set to 'None' for {kind} services"),
                );
            }
            "ExternalName" => external_name(e, spec),
            _ => {}
        }
        ports(e, spec);
        e.labels(spec, "selector");
        affinity(e, spec);
        service_addresses::fields(e, spec, &empty);
        e.each_str(spec, "externalIPs", |e, _, address| {
            let msgs = ip(address);
            if msgs.is_empty() {
                e.format("", address, endpoint_ip);
            }
            msgs.iter().for_each(|m| e.invalid("", address, m));
        });
        e.one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
        balancer(e, spec);
        traffic(e, spec);
    });
}

fn external_name(e: &mut Errs, spec: &Map) {
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if spec.contains_key(key) {
            e.forbidden(key, "may not be set for ExternalName services");
        }
    }
    let name = s(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => e.required("externalName", ""),
        name => e.format("externalName", name, names::dns1123_subdomain),
    }
}

fn ports(e: &mut Errs, spec: &Map) {
    let several = count(spec, "ports") > 1;
    let cluster_ip = s(spec, "type") == "ClusterIP";
    let (mut named, mut node_ports, mut ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    e.each(spec, "ports", |e, _, p| {
        let name = s(p, "name").to_string();
        if name.is_empty() {
            if several {
                e.required("name", "");
            }
        } else {
            e.format("name", &name, names::dns1123_label);
            if !named.insert(name.clone()) {
                e.duplicate("name", name.as_str());
            }
        }
        e.port(p, "port");
        e.one_of(p, "protocol", PROTOCOLS);
        e.port_or_name(p, "targetPort");
        if let Some(app) = p.str("appProtocol") {
            e.format("appProtocol", app, names::label_key);
        }
        let node_port = p.int("nodePort").unwrap_or(0);
        if node_port != 0 {
            if cluster_ip {
                e.forbidden("nodePort", "may not be used when `type` is 'ClusterIP'");
            }
            let key = (s(p, "protocol").to_string(), node_port);
            if !node_ports.insert(key) {
                e.duplicate("nodePort", node_port);
            }
        }
        let key = (s(p, "protocol").to_string(), p.int("port").unwrap_or(0));
        if !ports.insert(key.clone()) {
            let (protocol, port) = key;
            // Upstream's internal form.
            let protocol = json::encode(&Value::from(protocol));
            let protocol = String::from_utf8_lossy(&protocol);
            let shown = format!(
                r#"{{"Name":"","Protocol":{protocol},"AppProtocol":null,"Port":{port},"TargetPort":0,"NodePort":0}}"#
            );
            e.duplicate_shown("", &shown);
        }
    });
}

fn affinity(e: &mut Errs, spec: &Map) {
    e.one_of(spec, "sessionAffinity", &["ClientIP", "None"]);
    let config = spec.obj("sessionAffinityConfig");
    match s(spec, "sessionAffinity") {
        "ClientIP" => {
            let Some(client) = config.and_then(|c| c.obj("clientIP")) else {
                let why = "when session affinity type is ClientIP";
                return e.required("sessionAffinityConfig", why);
            };
            match client.int("timeoutSeconds") {
                None => e.required(
                    "sessionAffinityConfig.clientIP.timeoutSeconds",
                    "when session affinity type is ClientIP",
                ),
                Some(n) if !(1..=86_400).contains(&n) => {
                    let why = "must be greater than 0 and less than 86400";
                    e.invalid("sessionAffinityConfig.clientIP.timeoutSeconds", n, why);
                }
                Some(_) => {}
            }
        }
        "None" if config.is_some() => {
            e.forbidden("sessionAffinityConfig", "must not be set when session affinity is None");
        }
        _ => {}
    }
}

fn balancer(e: &mut Errs, spec: &Map) {
    let is_balancer = s(spec, "type") == "LoadBalancer";
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    if count(spec, "loadBalancerSourceRanges") > 0 {
        if !is_balancer {
            e.forbidden("LoadBalancerSourceRanges", ONLY);
        }
        for (i, range) in spec.arr("loadBalancerSourceRanges").into_iter().flatten().enumerate() {
            let range = range.as_str().unwrap_or_default().trim();
            e.format(&format!("LoadBalancerSourceRanges[{i}]"), range, cidr);
        }
    }
    if spec.contains_key("allocateLoadBalancerNodePorts") && !is_balancer {
        e.forbidden("allocateLoadBalancerNodePorts", ONLY);
    }
    match spec.str("loadBalancerClass") {
        Some(_) if !is_balancer => e.forbidden("loadBalancerClass", ONLY),
        Some(class) => e.format("loadBalancerClass", class, names::label_key),
        None => {}
    }
}

fn traffic(e: &mut Errs, spec: &Map) {
    let kind = s(spec, "type");
    let external = matches!(kind, "LoadBalancer" | "NodePort") || kind == "ClusterIP" && count(spec, "externalIPs") > 0;
    let policy = s(spec, "externalTrafficPolicy");
    let policies = ["Cluster", "Local"];
    if policy.is_empty() {
        if external {
            e.required("externalTrafficPolicy", "");
        }
    } else if !external {
        e.invalid(
            "externalTrafficPolicy",
            policy,
            "may only be set for externally-accessible services",
        );
    } else if !policies.contains(&policy) {
        e.not_supported("externalTrafficPolicy", policy, &policies);
    }
    let health = spec.int("healthCheckNodePort").unwrap_or(0);
    let needs = kind == "LoadBalancer" && policy == "Local";
    if needs && health == 0 {
        e.required("healthCheckNodePort", "");
    } else if needs && !(1..=65535).contains(&health) {
        e.invalid("healthCheckNodePort", health, &super::check::range_error(1, 65535));
    }
    if health != 0 && (kind != "LoadBalancer" || policy != "Local") {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        e.invalid("healthCheckNodePort", health, why);
    }
    match (kind, spec.str("internalTrafficPolicy")) {
        ("NodePort" | "ClusterIP" | "LoadBalancer", None) => e.required("internalTrafficPolicy", ""),
        (_, Some(p)) if !policies.contains(&p) => e.not_supported("internalTrafficPolicy", p, &policies),
        _ => {}
    }
    e.optional_one_of(
        spec,
        "trafficDistribution",
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
}

fn update(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    // Said before what else is wrong.
    let others = std::mem::take(&mut e.list);
    service_addresses::update(e, n, o);
    e.list.append(others);
    let class = |m: &Map| m.str("loadBalancerClass").map(str::to_string);
    if s(n, "type") == "LoadBalancer" && s(o, "type") == "LoadBalancer" && class(n) != class(o) {
        let shown = n.get("loadBalancerClass").cloned().unwrap_or(Value::Null);
        e.invalid("spec.loadBalancerClass", shown, "may not change once set");
    }
    let health = |m: &Map| m.int("healthCheckNodePort").unwrap_or(0);
    let needs = |m: &Map| s(m, "type") == "LoadBalancer" && s(m, "externalTrafficPolicy") == "Local";
    if needs(n) && needs(o) && health(o) != 0 && health(n) != health(o) {
        e.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
}
