//! Services.

use super::Rules;
use super::check::{Errs, cidr, count, ip, s};
use super::networking::endpoint_ip;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;

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

fn headless(spec: &Map) -> bool {
    match spec.arr("clusterIPs").and_then(|l| l.first()).and_then(Value::as_str) {
        Some(first) => first == "None",
        None => s(spec, "clusterIP") == "None",
    }
}

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
        cluster_ips(e, spec);
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
    let (mut named, mut node_ports, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    e.each(spec, "ports", |e, _, p| {
        let name = s(p, "name").to_string();
        if name.is_empty() {
            if several {
                e.required("name", "");
            }
        } else {
            e.format("name", &name, names::dns1123_label);
            if named.contains(&name) {
                e.duplicate("name", name.as_str());
            }
            named.push(name);
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
            if node_ports.contains(&key) {
                e.duplicate("nodePort", node_port);
            }
            node_ports.push(key);
        }
        let key = (s(p, "protocol").to_string(), p.int("port").unwrap_or(0));
        if ports.contains(&key) {
            let shown = Map::from_iter([("port", Value::Int(key.1)), ("protocol", key.0.as_str().into())]);
            e.duplicate("", shown);
        }
        ports.push(key);
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

fn cluster_ips(e: &mut Errs, spec: &Map) {
    if s(spec, "type") == "ExternalName" {
        return;
    }
    let list: Vec<&str> = spec
        .arr("clusterIPs")
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let shown = || spec.get("clusterIPs").cloned().unwrap_or(Value::Null);
    let first = s(spec, "clusterIP");
    match (first.is_empty(), list.first()) {
        (false, None) => e.required("clusterIPs", ""),
        (false, Some(x)) if *x != first => e.invalid("clusterIPs", shown(), "first value must match `clusterIP`"),
        (true, Some(_)) => e.invalid("clusterIPs", shown(), "must be empty when `clusterIP` is not specified"),
        _ => {}
    }
    let mut families = Vec::new();
    e.each_str(spec, "ipFamilies", |e, _, family| {
        let known = ["IPv4", "IPv6"];
        if !known.contains(&family) {
            e.not_supported("", family, &known);
        }
        if families.contains(&family.to_string()) {
            e.duplicate("", family);
        }
        families.push(family.to_string());
    });
    e.optional_one_of(
        spec,
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    for (i, address) in list.iter().enumerate() {
        let field = format!("clusterIPs[{i}]");
        if i > 0 && *address == "None" {
            e.invalid(&field, *address, "'None' must be the first and only value");
        } else if *address != "None" {
            e.format(&field, address, ip);
        }
        let (v6, family) = (address.contains(':'), families.get(i));
        if let Some(f) = family.filter(|_| *address != "None")
            && (f == "IPv6") != v6
        {
            e.invalid(
                &field,
                *address,
                &format!("expected an {f} value as indicated by `ipFamilies[{i}]`"),
            );
        }
    }
    let families: Vec<bool> = list.iter().map(|a| a.contains(':')).collect();
    if list.len() == 2 && families[0] == families[1] {
        e.invalid(
            "clusterIPs",
            shown(),
            "may specify no more than one IP for each IP family",
        );
    }
    if list.len() > 2 {
        e.invalid("clusterIPs", shown(), "may only hold up to 2 values");
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
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
}

fn update(new: &Object, old: &Object, e: &mut Errs) {
    let empty = Map::new();
    let (n, o) = (new.obj("spec").unwrap_or(&empty), old.obj("spec").unwrap_or(&empty));
    if s(n, "type") != "ExternalName" && s(o, "type") != "ExternalName" && !(headless(n) && headless(o)) {
        let list = |m: &Map| -> Vec<String> {
            m.arr("clusterIPs")
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_string)
                .collect()
        };
        let (now, was) = (list(n), list(o));
        let shown = || n.get("clusterIPs").cloned().unwrap_or(Value::Null);
        const FIXED: &str = "may not change once set";
        if now.len() == was.len() {
            for (i, _) in was.iter().enumerate().filter(|(i, x)| now[*i] != **x) {
                e.invalid(&format!("spec.clusterIPs[{i}]"), shown(), FIXED);
            }
        } else if now.is_empty() {
            e.invalid("spec.clusterIPs[0]", shown(), "primary clusterIP can not be unset");
        } else if was.first().is_some_and(|x| now[0] != *x) {
            e.invalid("spec.clusterIPs[0]", shown(), FIXED);
        }
        if now.len() == 1 && was.len() > 1 && s(n, "ipFamilyPolicy") != "SingleStack" {
            let policy = n.get("ipFamilyPolicy").cloned().unwrap_or(Value::Null);
            e.invalid(
                "spec.ipFamilyPolicy",
                policy,
                "must be set to 'SingleStack' when releasing the secondary clusterIP",
            );
        }
    }
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
