//! Several Gateways, and Ingress, with one port of the nodes' addresses.

use crate::plans::{ask, world};
use keelson_client::ObjectKey;
use keelson_gateway::plan::{Front, Owner, Plan, plan};

/// A Gateway that came first, with a route for each of two hosts and one for the rest; and a late one that finds the port taken.
fn of(late: &str) -> (Plan, String) {
    with(late, "")
}

/// The same, with more beside.
fn with(late: &str, more: &str) -> (Plan, String) {
    let mut world = world(&format!(
        "
kind: Gateway
metadata: {{name: first, namespace: shop, creationTimestamp: '2026-01-01T00:00:01Z'}}
spec: {{gatewayClassName: keelson, listeners: [{{name: web, port: 80, protocol: HTTP}}, {{name: tcp, port: 81, protocol: TCP}}]}}
---
kind: HTTPRoute
metadata: {{name: old, namespace: shop, creationTimestamp: '2026-01-01T00:00:02Z'}}
spec: {{parentRefs: [{{name: first}}], hostnames: [old.x.org], rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}
---
kind: HTTPRoute
metadata: {{name: all, namespace: shop, creationTimestamp: '2026-01-01T00:00:02Z'}}
spec: {{parentRefs: [{{name: first}}], rules: [{{backendRefs: [{{name: b, port: 80}}]}}]}}
---
kind: HTTPRoute
metadata: {{name: young, namespace: shop, creationTimestamp: '2026-01-01T00:00:09Z'}}
spec: {{parentRefs: [{{name: first}}], hostnames: [late.y.org], rules: [{{backendRefs: [{{name: c, port: 80}}]}}]}}
---
kind: Gateway
metadata: {{name: late, namespace: shop, creationTimestamp: '2026-01-01T00:00:05Z'}}
spec: {{gatewayClassName: keelson, listeners: [{late}], allowedListeners: {{namespaces: {{from: All}}}}}}
---
kind: HTTPRoute
metadata: {{name: late, namespace: shop, creationTimestamp: '2026-01-01T00:00:06Z'}}
spec: {{parentRefs: [{{name: late}}], rules: [{{backendRefs: [{{name: d, port: 80}}]}}]}}
{more}"
    ));
    let owner = Owner::Gateway(ObjectKey::new("shop", "late"));
    world.fronts.insert(
        owner,
        Front {
            ports: [(80u16.into(), 7900), (81u16.into(), 7901)].into(),
            refused: Some("port 80 is another's".into()),
            taken: true,
            ..Front::default()
        },
    );
    let plan = plan(&world);
    let told = &plan.statuses.gateways[&ObjectKey::new("shop", "late")];
    let programmed = &told.conditions[1];
    let addresses: Vec<&str> = told.addresses.iter().filter_map(|a| a.value.as_deref()).collect();
    let text = format!("{} {}", programmed.reason, addresses.join(","));
    assert_eq!(programmed.holds, !addresses.is_empty(), "{}", programmed.message);
    (plan, text)
}

#[test]
fn a_port_is_shared_by_host_and_nobody_loses_a_name() {
    let (plan, told) = of("{name: web, port: 80, protocol: HTTP, hostname: '*.y.org'}");
    assert_eq!(told, "Programmed 192.0.2.1");
    for (url, expected) in [
        ("old.x.org/", "a"),
        ("any.z.org/", "b"),
        ("some.y.org/", "d"),
        // Of this name the older one is the listener.
        ("late.y.org/", "d"),
    ] {
        assert_eq!(ask(&plan, 7000, "GET", url, &[]), expected, "{url}");
    }
    assert!(!plan.table.ports.contains_key(&7900));
    let owner = Owner::Gateway(ObjectKey::new("shop", "late"));
    assert!(
        plan.fronts[&owner].contains(&80u16.into()),
        "it goes on asking for the port"
    );
}

#[test]
fn what_is_somebody_elses_is_not_shared() {
    for late in [
        "{name: web, port: 80, protocol: HTTP}",
        "{name: web, port: 80, protocol: HTTP, hostname: old.x.org}",
        "{name: web, port: 80, protocol: HTTP, hostname: '*.x.org'}",
        "{name: web, port: 81, protocol: HTTP, hostname: y.org}",
        "{name: web, port: 80, protocol: HTTP, hostname: y.org}, {name: other, port: 8080, protocol: HTTP, hostname: y.org}",
    ] {
        let (plan, told) = of(late);
        assert_eq!(told, "AddressNotAssigned ", "{late}");
        assert_eq!(ask(&plan, 7000, "GET", "old.x.org/", &[]), "a");
    }
}

#[test]
fn what_a_set_adds_is_as_young_as_the_set_and_costs_the_gateway_nothing() {
    let set = |listener: &str| {
        format!(
            "---
kind: ListenerSet
metadata: {{name: set, namespace: blue, creationTimestamp: '2026-01-01T00:00:20Z'}}
spec: {{parentRef: {{name: late, namespace: shop}}, listeners: [{listener}]}}
---
kind: HTTPRoute
metadata: {{name: set, namespace: blue, creationTimestamp: '2026-01-01T00:00:21Z'}}
spec: {{parentRefs: [{{kind: ListenerSet, name: set}}], rules: [{{backendRefs: [{{name: a, port: 80}}]}}]}}
"
        )
    };
    let key = ObjectKey::new("blue", "set");
    for (listener, reason) in [
        ("{name: a, port: 80, protocol: HTTP, hostname: free.y.org}", "Accepted"),
        // The route for it is younger than the Gateway, and older than the set.
        (
            "{name: a, port: 80, protocol: HTTP, hostname: late.y.org}",
            "PortUnavailable",
        ),
        (
            "{name: a, port: 6443, protocol: HTTP, hostname: free.y.org}",
            "PortUnavailable",
        ),
    ] {
        let (plan, told) = with(
            "{name: web, port: 80, protocol: HTTP, hostname: own.y.org}",
            &set(listener),
        );
        assert_eq!(told, "Programmed 192.0.2.1", "{listener}");
        assert_eq!(ask(&plan, 7000, "GET", "own.y.org/", &[]), "d");
        assert_eq!(ask(&plan, 7000, "GET", "late.y.org/", &[]), "c", "{listener}");
        let accepted = &plan.statuses.listener_sets[&key].listeners[0].conditions[1];
        assert_eq!((accepted.kind, accepted.reason), ("Accepted", reason), "{listener}");
    }
}
