//! `networking.k8s.io` and `discovery.k8s.io`.

use super::check::{Errs, cidr, count, ip, port_name, range_error, s};
use super::{Rules, addresses};
use crate::meta::path_segment_errors;
use keelson_api::{Map, Object, Value};
use keelson_machinery::names;
use std::collections::HashSet;
use std::net::IpAddr;

/// What named an ingress' class before there was a field.
const INGRESS_CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

const POLICY: Rules = Rules {
    object: |_, o, e| e.child(o, "spec", policy),
    ..Rules::SUBDOMAIN
};
const INGRESS: Rules = Rules {
    object: |_, o, e| {
        let empty = Map::new();
        e.within("spec", |e| ingress(e, o.obj("spec").unwrap_or(&empty)));
    },
    create: |_, o, e| {
        let said = o.at(&["metadata", "annotations", INGRESS_CLASS_ANNOTATION]);
        let class = o.at(&["spec", "ingressClassName"]);
        if let (Some(said), Some(_)) = (said, class)
            && Some(said) != class
        {
            let field = format!("annotations.{INGRESS_CLASS_ANNOTATION}");
            e.invalid(
                &field,
                said.clone(),
                "must match `ingressClassName` when both are specified",
            );
        }
    },
    status: |_, new, _, e| {
        let balancer = new.at(&["status", "loadBalancer"]).and_then(Value::as_object);
        let Some(balancer) = balancer else { return };
        e.within("status.loadBalancer", |e| {
            e.each(balancer, "ingress", |e, _, ingress| {
                let (address, hostname) = (s(ingress, "ip"), s(ingress, "hostname"));
                if !address.is_empty() {
                    e.format("ip", address, ip);
                }
                if !hostname.is_empty() {
                    e.format("hostname", hostname, names::dns1123_subdomain);
                    if addresses::ip(hostname).is_some() {
                        e.invalid("hostname", hostname, "must be a DNS name, not an IP address");
                    }
                }
            });
        });
    },
    ..Rules::SUBDOMAIN
};
const INGRESS_CLASS: Rules = Rules {
    object: |_, o, e| {
        e.child(o, "spec", |e, spec| {
            if s(spec, "controller").len() > 250 {
                e.too_long("controller", 250);
            }
            e.domain_prefixed_path("controller", s(spec, "controller"));
            e.child(spec, "parameters", |e, p| {
                if let Some(group) = p.str("apiGroup") {
                    e.format("apiGroup", group, names::dns1123_subdomain);
                }
                for key in ["kind", "name"] {
                    match s(p, key) {
                        "" => e.required(key, ""),
                        text => e.format(key, text, crate::meta::path_segment_errors),
                    }
                }
                match (s(p, "scope"), s(p, "namespace")) {
                    ("", _) if !p.contains_key("scope") => e.required("scope", ""),
                    ("Namespace", _) if !p.contains_key("namespace") => {
                        e.required("namespace", "`parameters.scope` is set to 'Namespace'");
                    }
                    ("Namespace", ns) => e.format("namespace", ns, names::dns1123_label),
                    ("Cluster", _) if p.contains_key("namespace") => {
                        e.forbidden("namespace", "`parameters.scope` is set to 'Cluster'");
                    }
                    ("Cluster", _) => {}
                    (other, _) => e.not_supported("scope", other, &["Cluster", "Namespace"]),
                }
            });
        });
    },
    update: |_, new, old, e| {
        let path = ["spec", "controller"];
        e.immutable_as("string", new.at(&path), old.at(&path), "spec.controller");
    },
    ..Rules::SUBDOMAIN
};
const IP_ADDRESS: Rules = Rules {
    name: ip,
    object: |_, o, e| match o.at(&["spec", "parentRef"]).and_then(Value::as_object) {
        None => e.required("spec.parentRef", ""),
        Some(r) => e.within("spec.parentRef", |e| {
            if !s(r, "group").is_empty() {
                e.format("group", s(r, "group"), names::dns1123_subdomain);
            }
            for key in ["resource", "name"] {
                match s(r, key) {
                    "" => e.required(key, ""),
                    text => e.format(key, text, crate::meta::path_segment_errors),
                }
            }
            if !s(r, "namespace").is_empty() {
                e.format("namespace", s(r, "namespace"), crate::meta::path_segment_errors);
            }
        }),
    },
    update: |_, new, old, e| {
        let path = ["spec", "parentRef"];
        e.immutable_untold(new.at(&path), old.at(&path), "spec.parentRef");
    },
    ..Rules::SUBDOMAIN
};
const SERVICE_CIDR: Rules = Rules {
    create: |_, o, e| service_cidrs(o, e),
    update: |_, new, old, e| {
        let list = |o: &Object| {
            o.at(&["spec", "cidrs"])
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let (now, was) = (list(new), list(old));
        let grows = was.len() == 1 && now.len() == 2;
        if now.len() != was.len() && !grows {
            let shown = new.at(&["spec", "cidrs"]).cloned().unwrap_or_default();
            return e.invalid("spec.cidrs", shown, super::check::IMMUTABLE);
        }
        for (i, (n, _)) in now.iter().zip(&was).enumerate().filter(|(_, (n, w))| n != w) {
            e.invalid(&format!("spec.cidrs[{i}]"), n.clone(), super::check::IMMUTABLE);
        }
        if grows {
            service_cidrs(new, e);
        }
    },
    ..Rules::SUBDOMAIN
};
const SLICE: Rules = Rules {
    object: |_, o, e| slice(o, e),
    update: |_, new, old, e| e.immutable_untold(new.get("addressType"), old.get("addressType"), "addressType"),
    ..Rules::SUBDOMAIN
};

fn service_cidrs(o: &Object, e: &mut Errs) {
    let empty = Map::new();
    e.within("spec", |e| {
        let spec = o.obj("spec").unwrap_or(&empty);
        match count(spec, "cidrs") {
            0 => return e.required("cidrs", "at least one CIDR required"),
            n if n > 2 => {
                let shown = spec.clone().into();
                return e.invalid_as(
                    "networking.ServiceCIDRSpec",
                    "cidrs",
                    Some(&shown),
                    "may only hold up to 2 values",
                );
            }
            _ => {}
        }
        e.each_str(spec, "cidrs", |e, _, c| e.format("", c, cidr));
        let all = spec.arr("cidrs").into_iter().flatten().filter_map(Value::as_str);
        let families: Vec<bool> = all
            .filter_map(|c| Some(c.parse::<ipnet::IpNet>().ok()?.addr().is_ipv4()))
            .collect();
        if families.len() == 2 && families[0] == families[1] {
            let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            e.invalid("cidrs", spec.get("cidrs").cloned().unwrap_or(Value::Null), why);
        }
    });
}

pub fn of(kind: &str) -> Rules {
    match kind {
        "NetworkPolicy" => POLICY,
        "Ingress" => INGRESS,
        "IngressClass" => INGRESS_CLASS,
        "IPAddress" => IP_ADDRESS,
        "ServiceCIDR" => SERVICE_CIDR,
        "EndpointSlice" => SLICE,
        _ => Rules::SUBDOMAIN,
    }
}

/// Addresses that no endpoint can have.
pub fn endpoint_ip(address: &str) -> Vec<String> {
    let Ok(ip) = address.parse::<IpAddr>() else {
        return Vec::new();
    };
    let mut errs = Vec::new();
    let mut refuse = |bad: bool, why: &str| {
        if bad {
            errs.push(why.to_string());
        }
    };
    refuse(ip.is_unspecified(), &format!("may not be unspecified ({address})"));
    refuse(
        ip.is_loopback(),
        "may not be in the loopback range (127.0.0.0/8, ::1/128)",
    );
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    refuse(
        link_local,
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
    );
    let local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    refuse(
        local_multicast,
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
    );
    errs
}

fn policy(e: &mut Errs, spec: &Map) {
    e.label_selector(spec, "podSelector");
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        e.each(spec, list, |e, _, rule| {
            e.each(rule, "ports", |e, _, p| policy_port(e, p));
            e.each(rule, peers, |e, _, p| peer(e, p));
        });
    }
    if count(spec, "policyTypes") > 2 {
        let shown = spec.get("policyTypes").cloned().unwrap_or(Value::Null);
        return e.invalid("policyTypes", shown, "may not specify more than two policyTypes");
    }
    e.each_str(spec, "policyTypes", |e, _, t| {
        if !matches!(t, "Ingress" | "Egress") {
            e.not_supported("", t, &["Ingress", "Egress"]);
        }
    });
}

fn policy_port(e: &mut Errs, p: &Map) {
    e.optional_one_of(p, "protocol", &["TCP", "UDP", "SCTP"]);
    let end = p.int("endPort");
    match (p.get("port"), end) {
        (Some(Value::String(name)), end) => {
            if let Some(n) = end {
                e.invalid("endPort", n, "may not be specified when `port` is non-numeric");
            }
            e.format("port", name, port_name);
        }
        (Some(_), end) => {
            e.port(p, "port");
            if let Some(n) = end {
                if n < p.int("port").unwrap_or(0) {
                    e.invalid("endPort", n, "must be greater than or equal to `port`");
                }
                if !(1..=65535).contains(&n) {
                    e.invalid("endPort", n, &range_error(1, 65535));
                }
            }
        }
        (None, Some(n)) => e.invalid("endPort", n, "may not be specified when `port` is not specified"),
        (None, None) => {}
    }
}

fn peer(e: &mut Errs, p: &Map) {
    e.label_selector(p, "podSelector");
    e.label_selector(p, "namespaceSelector");
    e.child(p, "ipBlock", |e, block| {
        let whole = s(block, "cidr");
        if whole.is_empty() {
            return e.required("cidr", "");
        }
        e.format("cidr", whole, cidr);
        let Ok(net) = whole.parse::<ipnet::IpNet>() else { return };
        e.each_str(block, "except", |e, _, text| {
            e.format("", text, cidr);
            if let Ok(part) = text.parse::<ipnet::IpNet>()
                && (!net.contains(&part) || net.prefix_len() >= part.prefix_len())
            {
                e.invalid("", text, "must be a strict subset of `cidr`");
            }
        });
    });
    let peers = ["podSelector", "namespaceSelector", "ipBlock"]
        .iter()
        .filter(|k| p.contains_key(k))
        .count();
    if peers == 0 {
        e.required("", "must specify a peer");
    } else if peers > 1 && p.contains_key("ipBlock") {
        e.forbidden("", "may not specify both ipBlock and another peer");
    }
}

fn host(e: &mut Errs, key: &str, host: &str) {
    match host.strip_prefix("*.") {
        Some(rest) if !rest.contains('*') => {
            for msg in names::dns1123_subdomain(rest) {
                e.invalid(key, host, &msg);
            }
        }
        _ if host.contains('*') => {
            let why = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
            e.invalid(key, host, why);
        }
        _ => e.format(key, host, names::dns1123_subdomain),
    }
}

fn ingress(e: &mut Errs, spec: &Map) {
    if count(spec, "rules") == 0 && !spec.contains_key("defaultBackend") {
        let shown = spec.get("rules").cloned().unwrap_or(Value::Null);
        e.invalid("", shown, "either `defaultBackend` or `rules` must be specified");
    }
    e.child(spec, "defaultBackend", backend);
    e.each(spec, "rules", |e, _, rule| {
        let name = s(rule, "host");
        if !name.is_empty() {
            if addresses::ip(name).is_some() {
                e.invalid("host", name, "must be a DNS name, not an IP address");
            }
            host(e, "host", name);
        }
        e.child(rule, "http", |e, http| {
            if count(http, "paths") == 0 {
                e.required("paths", "");
            }
            e.each(http, "paths", |e, _, p| http_path(e, p));
        });
    });
    e.each(spec, "tls", |e, _, tls| {
        e.each_str(tls, "hosts", |e, _, h| host(e, "", h));
        if !s(tls, "secretName").is_empty() {
            e.format("secretName", s(tls, "secretName"), names::dns1123_subdomain);
        }
    });
    if let Some(class) = spec.str("ingressClassName") {
        e.format("ingressClassName", class, names::dns1123_subdomain);
    }
}

fn http_path(e: &mut Errs, p: &Map) {
    let path = s(p, "path");
    match p.str("pathType") {
        None => return e.required("pathType", "pathType must be specified"),
        Some("Exact" | "Prefix") => {
            if !path.starts_with('/') {
                e.invalid("path", path, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.contains(part) {
                    e.invalid("path", path, &format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if path.ends_with(end) {
                    e.invalid("path", path, &format!("cannot end with '{end}'"));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !path.is_empty() && !path.starts_with('/') {
                e.invalid("path", path, "must be an absolute path");
            }
        }
        Some(other) => e.not_supported("pathType", other, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    e.child(p, "backend", backend);
}

fn backend(e: &mut Errs, b: &Map) {
    match (b.obj("resource"), b.obj("service")) {
        (Some(_), Some(_)) => e.invalid("", "", "cannot set both resource and service backends"),
        (Some(r), None) => e.within("resource", |e| {
            if let Some(group) = r.str("apiGroup") {
                e.format("apiGroup", group, names::dns1123_subdomain);
            }
            for key in ["kind", "name"] {
                match s(r, key) {
                    "" => e.required(key, ""),
                    value => e.format(key, value, path_segment_errors),
                }
            }
        }),
        (None, Some(service)) => {
            match s(service, "name") {
                "" => e.required("service.name", ""),
                name => e.format("service.name", name, names::dns1123_label),
            }
            let empty = Map::new();
            let port = service.obj("port").unwrap_or(&empty);
            match (s(port, "name"), port.int("number").unwrap_or(0)) {
                ("", 0) => e.required("", "port name or number is required"),
                ("", _) => e.within("service.port", |e| e.port(port, "number")),
                (_, n) if n != 0 => e.invalid("", "", "cannot set both port name & port number"),
                (name, _) => e.format("service.port.name", name, port_name),
            }
        }
        (None, None) => e.invalid("", "", "resource or service backend is required"),
    }
}

/// Zones, or nodes, that an endpoint is meant for at most.
const MOST_HINTS: usize = 8;

/// A name that somebody could look up.
fn domain(e: &mut Errs, name: &str) {
    if name.is_empty() {
        return e.required("", "");
    }
    let whole = name.strip_suffix('.').unwrap_or(name);
    let errs = names::dns1123_subdomain(whole);
    if !errs.is_empty() {
        return e.invalid("", whole, &errs.join(","));
    }
    if whole.split('.').count() < 2 {
        let why = "should be a domain with at least two segments separated by dots";
        return e.invalid("", name, why);
    }
    for label in whole.split('.') {
        let errs = names::dns1123_label(label);
        if !errs.is_empty() {
            return e.invalid("", label, &errs.join(","));
        }
    }
}

fn slice(o: &Object, e: &mut Errs) {
    let kind = s(o, "addressType");
    e.one_of(o, "addressType", &["FQDN", "IPv4", "IPv6"]);
    if count(o, "ports") > 20_000 {
        e.too_many("ports", count(o, "ports"), 20_000);
    }
    let mut seen = HashSet::new();
    e.each(o, "ports", |e, _, p| {
        let name = s(p, "name");
        if !name.is_empty() {
            e.format("name", name, names::dns1123_label);
        }
        if !seen.insert(name.to_owned()) {
            e.duplicate("name", name);
        }
        e.optional_one_of(p, "protocol", &["SCTP", "TCP", "UDP"]);
        if let Some(app) = p.str("appProtocol") {
            e.format("appProtocol", app, names::label_key);
        }
    });
    if count(o, "endpoints") > 1000 {
        return e.too_many("endpoints", count(o, "endpoints"), 1000);
    }
    e.each(o, "endpoints", |e, _, endpoint| {
        match count(endpoint, "addresses") {
            0 => e.required("addresses", ""),
            n if n > 100 => e.too_many("addresses", n, 100),
            _ => {}
        }
        let addresses = endpoint.arr("addresses").into_iter().flatten();
        for (i, address) in addresses.map(|a| a.as_str().unwrap_or_default()).enumerate() {
            let at = format!("addresses[{i}]");
            match (kind, address.parse::<IpAddr>()) {
                ("FQDN", _) => e.within(&at, |e| domain(e, address)),
                ("IPv4" | "IPv6", Err(_)) => e.format(&at, address, ip),
                ("IPv4" | "IPv6", Ok(a)) => {
                    // Of the list, as upstream has it.
                    if a.is_ipv4() != (kind == "IPv4") {
                        e.invalid("addresses", address, &format!("must be an {kind} address"));
                    }
                    e.format(&at, address, endpoint_ip);
                }
                _ => {}
            }
        }
        if let Some(node) = endpoint.str("nodeName") {
            e.format("nodeName", node, names::dns1123_subdomain);
        }
        if let Some(hostname) = endpoint.str("hostname") {
            e.format("hostname", hostname, names::dns1123_label);
        }
        e.child(endpoint, "hints", |e, hints| {
            for list in ["forZones", "forNodes"] {
                if count(hints, list) > MOST_HINTS {
                    return e.too_many(list, count(hints, list), MOST_HINTS);
                }
                let mut seen = HashSet::new();
                e.each(hints, list, |e, _, h| {
                    let name = s(h, "name");
                    if !seen.insert(name.to_owned()) {
                        e.duplicate("name", name);
                    }
                    let format = if list == "forZones" {
                        names::label_value
                    } else {
                        names::dns1123_subdomain
                    };
                    e.format("name", name, format);
                });
            }
        });
    });
}
