//! Gateways, routes and grants in YAML; what is served and told of them as text.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use keelson_client::ObjectKey;
use keelson_gateway::matching::{Head, find};
use keelson_gateway::plan::{Front, Owner, Passing, Plan, PortRef, World, plan, resolve, status};
use keelson_gateway::table::{Outer, Protocol, Upstream};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

const CLASS: &str = "
kind: GatewayClass
metadata: {name: keelson}
spec: {controllerName: keelson.dev/gateway}
";

/// A world of documents, with the services `a` to `d` of namespace `shop`, `other/s`, and a certificate `shop/good`.
pub fn world(text: &str) -> World {
    let mut world = World::default();
    let read = |v: &serde_json::Value| v.clone();
    for part in format!("{CLASS}---{text}").split("---") {
        let Ok(value) = serde_saphyr::from_str::<serde_json::Value>(part) else {
            panic!("{part}")
        };
        fn of<T: for<'a> Deserialize<'a>>(v: serde_json::Value) -> Arc<T> {
            Arc::new(serde_json::from_value(v).unwrap())
        }
        match value["kind"].as_str().unwrap() {
            "GatewayClass" => world.classes.push(of(read(&value))),
            "Gateway" => world.gateways.push(of(read(&value))),
            "HTTPRoute" => world.http_routes.push(of(read(&value))),
            "GRPCRoute" => world.grpc_routes.push(of(read(&value))),
            "TLSRoute" => world.tls_routes.push(of(read(&value))),
            "TCPRoute" => world.tcp_routes.push(of(read(&value))),
            "UDPRoute" => world.udp_routes.push(of(read(&value))),
            "BackendTLSPolicy" => world.policies.push(of(read(&value))),
            "ListenerSet" => world.listener_sets.push(of(read(&value))),
            "ReferenceGrant" => world.grants.push(of(read(&value))),
            other => panic!("{other}"),
        }
    }
    for (namespace, name) in [
        ("shop", "a"),
        ("shop", "b"),
        ("shop", "c"),
        ("shop", "d"),
        ("other", "s"),
    ] {
        let service = serde_json::json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"ports": [
            {"name": "web", "port": 80}, {"name": "s", "port": 443, "appProtocol": "https"}]}});
        world
            .services
            .insert(ObjectKey::new(namespace, name), of_service(service));
    }
    world.certificates.insert(ObjectKey::new("shop", "good"), Ok(()));
    world.certificates.insert(ObjectKey::new("other", "far"), Ok(()));
    world
        .certificates
        .insert(ObjectKey::new("shop", "bad"), Err("it has no tls.key".into()));
    world
        .namespaces
        .insert("blue".into(), [("team".to_string(), "blue".to_string())].into());
    let first = plan(&world);
    for (i, (owner, ports)) in first.fronts.iter().enumerate() {
        let at = |(j, port): (usize, &Outer)| (*port, 7000 + 100 * i as u16 + j as u16);
        let ip = LoadBalancerIngress {
            ip: Some("192.0.2.1".into()),
            ..Default::default()
        };
        let front = Front {
            ports: ports.iter().enumerate().map(at).collect(),
            addresses: vec![ip],
            ..Front::default()
        };
        world.fronts.insert(owner.clone(), front);
    }
    world
}

fn of_service(value: serde_json::Value) -> Arc<Service> {
    Arc::new(serde_json::from_value(value).unwrap())
}

pub fn told(plan: &Plan) -> String {
    let mut text = String::new();
    let conditions = |all: &[status::Told]| {
        let one = |c: &status::Told| format!("{}{}:{}", if c.holds { "+" } else { "-" }, c.kind, c.reason);
        all.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let gateways = plan.statuses.gateways.iter();
    let gateways = gateways.map(|(key, g)| (key, &g.conditions, &g.listeners));
    let sets = plan.statuses.listener_sets.iter();
    let sets = sets.map(|(key, s)| (key, &s.conditions, &s.listeners));
    for (key, all, listeners) in gateways.chain(sets) {
        writeln!(text, "{key} {}", conditions(all)).unwrap();
        for l in listeners {
            let kinds: Vec<&str> = l.kinds.iter().map(|k| k.kind.as_str()).collect();
            writeln!(
                text,
                "  {} {} [{}] {}",
                l.name,
                l.attached,
                kinds.join(","),
                conditions(&l.conditions)
            )
            .unwrap();
        }
    }
    for ((_, key), parents) in &plan.statuses.routes {
        for parent in parents {
            writeln!(text, "{key}>{} {}", parent.parent.name, conditions(&parent.conditions)).unwrap();
        }
    }
    text
}

pub fn ask(plan: &Plan, at: u16, method: &str, url: &str, headers: &[(&'static str, &str)]) -> String {
    let (host, path) = url.split_once('/').unwrap();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let headers = headers
        .iter()
        .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
        .collect();
    let path = format!("/{path}");
    let head = Head {
        method,
        host,
        path: &path,
        query,
        headers: &headers,
    };
    let Some(rule) = plan.table.ports.get(&at).and_then(|port| find(port, &head)) else {
        return "404".into();
    };
    match rule.then.backends.first().map(|b| &*b.to) {
        Some(Upstream::Endpoints { service, .. }) => service.name.clone(),
        Some(Upstream::Nowhere(status)) => status.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn the_order_of_rules_is_the_apis() {
    let plan = plan(&world("
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: r1, namespace: shop, creationTimestamp: 2026-01-02T00:00:00Z}
spec:
  parentRefs: [{name: g}]
  hostnames: [x.org]
  rules:
  - {matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: a, port: 80}]}
  - {matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}], backendRefs: [{name: b, port: 80}]}
  - {matches: [{path: {type: Exact, value: /v2}}], backendRefs: [{name: c, port: 80}]}
  - {matches: [{path: {value: /v2}, method: PUT}, {path: {value: /v2}, queryParams: [{name: q, value: '1'}]}], backendRefs: [{name: d, port: 80}]}
---
kind: HTTPRoute
metadata: {name: r2, namespace: shop, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  parentRefs: [{name: g}]
  hostnames: ['*.org', x.org]
  rules: [{matches: [{path: {type: PathPrefix, value: /v2}}], backendRefs: [{name: a, port: 80}]}]
"));
    for (method, url, headers, expected) in [
        ("GET", "x.org/", &[][..], "a"),
        ("GET", "x.org/", &[("version", "two")], "b"),
        ("GET", "x.org/v2", &[], "c"),
        // Two prefixes as long: the older route's.
        ("GET", "x.org/v2/x", &[], "a"),
        ("GET", "x.org/v2/x", &[("version", "two")], "a"),
        ("PUT", "x.org/v2/x", &[], "d"),
        ("GET", "x.org/v2/x?q=1", &[], "d"),
        ("GET", "a.b.org/v2", &[], "a"),
        ("GET", "a.b.org/", &[], "404"),
        ("GET", "x.com/v2", &[], "404"),
    ] {
        assert_eq!(
            ask(&plan, 7000, method, url, headers),
            expected,
            "{method} {url} {headers:?}"
        );
    }
}

#[test]
fn listeners_say_what_is_wrong_with_them_and_what_they_have() {
    let plan = plan(&world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: web, port: 80, protocol: HTTP}
  - {name: good, port: 443, protocol: HTTPS, hostname: x.org, tls: {certificateRefs: [{name: good}]}}
  - {name: bad, port: 443, protocol: HTTPS, hostname: y.org, tls: {certificateRefs: [{name: bad}]}}
  - {name: far, port: 443, protocol: HTTPS, hostname: z.org, tls: {certificateRefs: [{name: far, namespace: other}]}}
  - {name: own, port: 81, protocol: x.org/own}
  - {name: twice, port: 82, protocol: HTTP}
  - {name: thrice, port: 82, protocol: HTTP}
  - {name: kinds, port: 83, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}, {kind: GRPCRoute}]}}
  - {name: option, port: 84, protocol: HTTPS, tls: {certificateRefs: [{name: good}], options: {x.org/least: '1.3'}}}
---
kind: Gateway
metadata: {name: none, namespace: shop}
spec: {gatewayClassName: keelson, addresses: [{type: Hostname, value: x.org}], listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: Gateway
metadata: {name: own, namespace: shop}
spec: {gatewayClassName: keelson, allowedListeners: {namespaces: {from: None}}, listeners: [{name: web, port: 80, protocol: x.org/own}]}
---
kind: Gateway
metadata: {name: theirs, namespace: shop}
spec: {gatewayClassName: other, listeners: [{name: web, port: 80, protocol: HTTP}]}
",
    ));
    let expected = "\
shop/g +Accepted:ListenersNotValid +Programmed:Programmed -ResolvedRefs:ListenersNotResolved
  web 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  good 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  bad 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted -ResolvedRefs:InvalidCertificateRef -Programmed:Invalid
  far 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted -ResolvedRefs:RefNotPermitted -Programmed:Invalid
  own 0 [] -Conflicted:NoConflicts -Accepted:UnsupportedProtocol +ResolvedRefs:ResolvedRefs -Programmed:Invalid
  twice 0 [HTTPRoute,GRPCRoute] +Conflicted:HostnameConflict -Accepted:HostnameConflict +ResolvedRefs:ResolvedRefs -Programmed:Invalid
  thrice 0 [HTTPRoute,GRPCRoute] +Conflicted:HostnameConflict -Accepted:HostnameConflict +ResolvedRefs:ResolvedRefs -Programmed:Invalid
  kinds 0 [GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted -ResolvedRefs:InvalidRouteKinds +Programmed:Programmed
  option 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts -Accepted:UnsupportedValue +ResolvedRefs:ResolvedRefs -Programmed:Invalid
shop/none -Accepted:UnsupportedAddress -Programmed:Invalid +ResolvedRefs:ResolvedRefs
  web 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs -Programmed:Invalid
shop/own -Accepted:ListenersNotValid -Programmed:Invalid +ResolvedRefs:ResolvedRefs
  web 0 [] -Conflicted:NoConflicts -Accepted:UnsupportedProtocol +ResolvedRefs:ResolvedRefs -Programmed:Invalid
";
    assert_eq!(told(&plan), expected);
    let ports: Vec<u16> = plan.fronts[&Owner::Gateway(ObjectKey::new("shop", "g"))]
        .iter()
        .map(|p| p.number)
        .collect();
    assert_eq!(ports, [80, 83, 443]);
    assert_eq!(plan.fronts.len(), 1, "one that is refused has no front");
    assert_eq!(plan.certificates, BTreeSet::from([ObjectKey::new("shop", "good")]));
}

#[test]
fn routes_are_attached_where_they_are_allowed_and_meant() {
    let plan = plan(&world("
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: own, port: 80, protocol: HTTP, hostname: '*.x.org'}
  - {name: blue, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: blue}}}}}
  - {name: grpc, port: 82, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}
---
kind: HTTPRoute
metadata: {name: fine, namespace: shop}
spec: {parentRefs: [{name: g}], hostnames: [a.x.org, b.org], rules: [{backendRefs: [{name: a, port: 80}]}]}
---
kind: HTTPRoute
metadata: {name: blue, namespace: blue}
spec: {parentRefs: [{name: g, namespace: shop}], rules: [{backendRefs: [{name: a, namespace: shop, port: 80}]}]}
---
kind: HTTPRoute
metadata: {name: red, namespace: red}
spec: {parentRefs: [{name: g, namespace: shop}], rules: [{}]}
---
kind: HTTPRoute
metadata: {name: hostless, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: own}], hostnames: [y.org], rules: [{}]}
---
kind: HTTPRoute
metadata: {name: lost, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: nope}, {name: g, port: 82}, {name: unknown}], rules: [{}]}
---
kind: HTTPRoute
metadata: {name: wrong, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}], filters: [{type: ExtensionRef}]}]}
---
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: grpc}], rules: [
  {matches: [{method: {service: s.S, method: M}}], backendRefs: [{name: b, port: 80}]},
  {matches: [{method: {method: Other}}], backendRefs: [{name: c, port: 80}]},
  {matches: [{method: {service: s.S}}], backendRefs: [{name: d, port: 80}]}]}
"));
    let expected = "\
shop/g +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs
  own 1 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  blue 1 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  grpc 1 [GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
shop/calls>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
blue/blue>g +Accepted:Accepted -ResolvedRefs:RefNotPermitted
red/red>g -Accepted:NotAllowedByListeners +ResolvedRefs:ResolvedRefs
shop/fine>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
shop/hostless>g -Accepted:NoMatchingListenerHostname +ResolvedRefs:ResolvedRefs
shop/lost>g -Accepted:NoMatchingParent +ResolvedRefs:ResolvedRefs
shop/lost>g -Accepted:NotAllowedByListeners +ResolvedRefs:ResolvedRefs
shop/wrong>g -Accepted:UnsupportedValue +ResolvedRefs:ResolvedRefs
";
    assert_eq!(told(&plan), expected);
    for (at, url, expected) in [
        (7000, "a.x.org/", "a"),
        (7000, "b.org/", "404"),
        (7001, "any/", "500"),
        (7002, "any/s.S/M", "b"),
        (7002, "any/t.T/Other", "c"),
        (7002, "any/s.S/X", "d"),
        (7002, "any/t.T/M", "404"),
    ] {
        assert_eq!(ask(&plan, at, "POST", url, &[]), expected, "{at} {url}");
    }
}

#[test]
fn a_mirror_that_gets_no_requests_is_told() {
    let mut world = world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: away, port: 80}}}], backendRefs: [{name: a, port: 80}]}]}
",
    );
    let away = serde_json::json!({"metadata": {"name": "away", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "x.org", "ports": [{"port": 80}]}});
    world.services.insert(ObjectKey::new("shop", "away"), of_service(away));
    let plan = plan(&world);
    let told = &plan.statuses.routes[&("HTTPRoute", ObjectKey::new("shop", "r"))][0].conditions;
    assert!(told[0].holds, "{}", told[0].message);
    assert_eq!((told[1].holds, told[1].reason), (false, "BackendNotFound"));
}

#[test]
fn references_to_other_namespaces_are_for_those_who_are_granted_them() {
    let text = |grant: &str, backend: &str| {
        let route = format!(
            "
kind: Gateway
metadata: {{name: g, namespace: shop}}
spec: {{gatewayClassName: keelson, listeners: [{{name: web, port: 80, protocol: HTTP}}]}}
---
kind: HTTPRoute
metadata: {{name: r, namespace: shop}}
spec: {{parentRefs: [{{name: g}}], rules: [{{backendRefs: [{backend}]}}]}}
{grant}"
        );
        let plan = plan(&world(&route));
        let resolved = &plan.statuses.routes[&("HTTPRoute", ObjectKey::new("shop", "r"))][0].conditions[1];
        format!("{} {}", resolved.reason, ask(&plan, 7000, "GET", "x/", &[]))
    };
    let far = "{name: s, namespace: other, port: 80}";
    let grant = |from: &str, name: &str| {
        format!("---
kind: ReferenceGrant
metadata: {{name: r, namespace: other}}
spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service{name}}}]}}")
    };
    assert_eq!(text("", far), "RefNotPermitted 500");
    assert_eq!(text(&grant("shop", ""), far), "ResolvedRefs s");
    assert_eq!(text(&grant("shop", ", name: s"), far), "ResolvedRefs s");
    assert_eq!(text(&grant("shop", ", name: t"), far), "RefNotPermitted 500");
    assert_eq!(text(&grant("m", ""), far), "RefNotPermitted 500");
    assert_eq!(text("", "{name: nope, port: 80}"), "BackendNotFound 500");
    assert_eq!(text("", "{name: a, port: 81}"), "BackendNotFound 500");
    assert_eq!(text("", "{name: a, port: 443}"), "UnsupportedProtocol 500");
    assert_eq!(text("", "{name: a, kind: Pod, port: 80}"), "InvalidKind 500");
}

#[test]
fn endpoints_that_are_ready_or_else_those_that_are_ending() {
    let mut world = World::default();
    let key = ObjectKey::new("shop", "s");
    let service = serde_json::json!({"metadata": {"name": "s", "namespace": "shop"}, "spec": {"ports": [
        {"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"}]}});
    world.services.insert(key.clone(), of_service(service));
    let mut ask = |endpoints: serde_json::Value| {
        let slice = serde_json::json!({"metadata": {"namespace": "shop"}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "other", "port": 1}, {"name": "web", "port": 8080}]});
        world
            .slices
            .insert(key.clone(), vec![Arc::new(serde_json::from_value(slice).unwrap())]);
        match resolve(
            &world,
            &key,
            PortRef::Name("web"),
            Passing::Requests(Protocol::Http1),
            None,
        ) {
            Ok(Upstream::Endpoints {
                addresses, protocol, ..
            }) => {
                assert_eq!(protocol, Protocol::H2c);
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            _ => panic!("the service is there"),
        }
    };
    let ending = serde_json::json!({"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let gone = serde_json::json!({"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false, "terminating": true}});
    let ready = serde_json::json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}});
    let own = serde_json::json!({"addresses": ["127.0.0.1"]});
    assert_eq!(ask(serde_json::json!([ready, ending, gone, own])), "10.0.0.1:8080");
    assert_eq!(ask(serde_json::json!([ending, gone])), "10.0.0.2:8080");
    assert_eq!(ask(serde_json::json!([gone, own])), "");
}

#[test]
fn endpoints_matter_of_the_services_that_requests_or_their_copies_go_to() {
    let plan = plan(&world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 80}}}], backendRefs: [{name: a, port: 80}, {name: nope, port: 80}]}]}
---
kind: HTTPRoute
metadata: {name: elsewhere, namespace: shop}
spec: {parentRefs: [{name: other}], rules: [{backendRefs: [{name: c, port: 80}]}]}",
    ));
    let of = |name| ObjectKey::new("shop", name);
    assert_eq!(plan.table.services(), BTreeSet::from([of("a"), of("b")]));
}
