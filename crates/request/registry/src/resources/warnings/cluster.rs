//! Nodes, networks, classes and what extends the API.

use super::{Errs, addresses, annotation, labels, s};
use keelson_api::Object;

pub fn object(e: &mut Errs, group: &str, kind: &str, new: &Object, old: Option<&Object>) {
    match (group, kind) {
        ("", "Node") => node(e, new),
        ("", "Service") => service(e, new),
        ("", "ServiceAccount") => account(e, new, old),
        ("", "Endpoints") => endpoints(e, new),
        ("discovery.k8s.io", "EndpointSlice") => slice(e, new, old),
        ("networking.k8s.io", "Ingress") => ingress(e, new, old),
        ("networking.k8s.io", "NetworkPolicy") => policy(e, new),
        ("node.k8s.io", "RuntimeClass") => e.child(new, "scheduling", |e, scheduling| {
            labels::map(e, scheduling, "nodeSelector", false);
        }),
        ("resource.k8s.io", "ResourceSlice") => e.child(new, "spec", |e, spec| {
            let driver = s(spec, "driver");
            if driver.chars().any(char::is_uppercase) {
                e.warn(
                    "driver",
                    format!("driver names should be lowercase; {driver:?} contains uppercase characters"),
                );
            }
        }),
        ("admissionregistration.k8s.io", _) if old.is_some() => static_name(e, new),
        _ => {}
    }
}

/// Upstream tells of this only when it is changed: a new one is refused.
fn static_name(e: &mut Errs, o: &Object) {
    const SUFFIX: &str = ".static.k8s.io";
    if o.name().ends_with(SUFFIX) {
        e.warn("metadata.name", format!("names ending with {SUFFIX:?} are reserved for static manifest-based configurations and cannot be managed via the API"));
    }
}

fn node(e: &mut Errs, o: &Object) {
    e.child(o, "spec", |e, spec| {
        if spec.contains_key("configSource") {
            e.warn("configSource", "the feature is removed");
        }
        if !s(spec, "externalID").is_empty() {
            e.warn("externalID", "this field is deprecated, and is unused by Kubernetes");
        }
        e.each_str(spec, "podCIDRs", |e, _, cidr| addresses::cidr(e, "", cidr));
    });
}

fn service(e: &mut Errs, o: &Object) {
    let hints = "service.kubernetes.io/topology-aware-hints";
    if annotation(o.meta(), hints).is_some() {
        e.remark(format!(
            "annotation {hints} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    e.child(o, "spec", |e, spec| {
        let (kind, ip) = (s(spec, "type"), s(spec, "clusterIP"));
        let headless = kind == "ClusterIP" && ip == "None";
        let external = spec.arr("externalIPs").is_some_and(|a| !a.is_empty());
        let external_name = kind == "ExternalName";
        if !ip.is_empty() && ip != "None" {
            e.each_str(spec, "clusterIPs", |e, _, ip| addresses::ip(e, "", ip));
        }
        if headless {
            if !s(spec, "loadBalancerIP").is_empty() {
                e.remark("spec.loadBalancerIP is ignored for headless services");
            }
            if external {
                e.remark("spec.externalIPs is ignored for headless services");
            }
            if s(spec, "sessionAffinity") != "None" {
                e.remark("spec.SessionAffinity is ignored for headless services");
            }
        }
        e.each_str(spec, "externalIPs", |e, _, ip| addresses::ip(e, "", ip));
        if external && !headless && !external_name {
            e.remark("spec.externalIPs is deprecated and may no longer be implemented in some clusters");
        }
        if !s(spec, "loadBalancerIP").is_empty() {
            addresses::ip(e, "loadBalancerIP", s(spec, "loadBalancerIP"));
        }
        e.each_str(spec, "loadBalancerSourceRanges", |e, _, cidr| {
            addresses::cidr(e, "", cidr)
        });
        if external_name && external {
            e.remark(r#"spec.externalIPs is ignored when spec.type is "ExternalName""#);
        }
        if !external_name && !s(spec, "externalName").is_empty() {
            e.remark(r#"spec.externalName is ignored when spec.type is not "ExternalName""#);
        }
        if s(spec, "trafficDistribution") == "PreferClose" {
            e.warn(
                "trafficDistribution",
                r#""PreferClose" is deprecated; use "PreferSameZone""#,
            );
        }
    });
}

fn account(e: &mut Errs, new: &Object, old: Option<&Object>) {
    let key = "kubernetes.io/enforce-mountable-secrets";
    let has = |o: &Object| annotation(o.meta(), key).is_some();
    if has(new) && !old.is_some_and(has) {
        e.warn(
            &format!("metadata.annotations[{key}]"),
            "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets",
        );
    }
}

fn managed_by<'a>(o: &'a Object, label: &str) -> &'a str {
    let labels = o.meta().and_then(|m| m.obj("labels"));
    labels.and_then(|l| l.str(label)).unwrap_or_default()
}

fn endpoints(e: &mut Errs, o: &Object) {
    if managed_by(o, "endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
        return;
    }
    e.each(o, "subsets", |e, _, subset| {
        for list in ["addresses", "notReadyAddresses"] {
            e.each(subset, list, |e, _, address| addresses::ip(e, "ip", s(address, "ip")));
        }
    });
}

fn slice(e: &mut Errs, new: &Object, old: Option<&Object>) {
    if old.is_none() && s(new, "addressType") == "FQDN" {
        e.warn("spec.addressType", "FQDN endpoints are deprecated");
    }
    let ours = [
        "endpointslice-controller.k8s.io",
        "endpointslicemirroring-controller.k8s.io",
    ];
    if !ours.contains(&managed_by(new, "endpointslice.kubernetes.io/managed-by")) {
        e.each(new, "endpoints", |e, _, endpoint| {
            e.each_str(endpoint, "addresses", |e, _, address| addresses::ip(e, "", address));
        });
    }
}

fn ingress(e: &mut Errs, new: &Object, old: Option<&Object>) {
    let key = "kubernetes.io/ingress.class";
    if old.is_none() && annotation(new.meta(), key).is_some() && new.at(&["spec", "ingressClassName"]).is_none() {
        e.remark(format!(
            "annotation {key:?} is deprecated, please use 'spec.ingressClassName' instead"
        ));
    }
}

fn policy(e: &mut Errs, o: &Object) {
    e.child(o, "spec", |e, spec| {
        for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
            e.each(spec, rules, |e, _, rule| {
                e.each(rule, peers, |e, _, peer| {
                    e.child(peer, "ipBlock", |e, block| {
                        addresses::cidr(e, "cidr", s(block, "cidr"));
                        e.each_str(block, "except", |e, _, except| addresses::cidr(e, "", except));
                    });
                });
            });
        }
    });
}
