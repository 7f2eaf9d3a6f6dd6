//! Listeners that others add to a Gateway.

use crate::plans::{ask, told, world};
use keelson_client::ObjectKey;
use keelson_gateway::plan::{Owner, plan};
use keelson_gateway::table::Outer;
use std::collections::BTreeSet;

#[test]
fn sets_add_listeners_where_they_may_and_the_earlier_one_counts() {
    let set = |name: &str, second: u32, namespace: &str, listeners: &str| {
        format!(
            "---
kind: ListenerSet
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-01T00:00:{second:02}Z'}}
spec: {{parentRef: {{name: g, namespace: shop}}, listeners: [{listeners}]}}
"
        )
    };
    let route = |name: &str, namespace: &str, parent: &str, service: &str| {
        format!(
            "---
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{{name: {service}, namespace: shop, port: 80}}]}}]}}
"
        )
    };
    let text = "
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {team: blue}}}}
  listeners: [{name: web, port: 80, protocol: HTTP, hostname: x.org}]
---
kind: ReferenceGrant
metadata: {name: grant, namespace: shop}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: blue}], to: [{group: '', kind: Service}]}
"
    .to_string()
        + &set(
            "young",
            3,
            "blue",
            "{name: a, port: 80, protocol: HTTP, hostname: y.org}",
        )
        + &set(
            "old",
            2,
            "blue",
            "{name: a, port: 80, protocol: HTTP, hostname: y.org}, {name: b, port: 80, protocol: HTTP, hostname: x.org}, \
             {name: c, port: 81, protocol: TCP}, {name: d, port: 80, protocol: TCP}",
        )
        + &set("red", 1, "red", "{name: a, port: 82, protocol: HTTP}")
        + &set(
            "secret",
            4,
            "blue",
            "{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: good, namespace: shop}]}}",
        )
        + &route("own", "blue", "{kind: ListenerSet, name: old}", "b")
        + &route(
            "section",
            "blue",
            "{kind: ListenerSet, name: old, sectionName: nope}",
            "b",
        )
        + &route("there", "shop", "{name: g}", "a");
    let plan = plan(&world(&text));
    let expected = "\
shop/g +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs
  web 1 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
blue/old +Accepted:ListenersNotValid +Programmed:Programmed
  a 1 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  b 1 [HTTPRoute,GRPCRoute] +Conflicted:HostnameConflict -Accepted:HostnameConflict +ResolvedRefs:ResolvedRefs -Programmed:HostnameConflict
  c 0 [TCPRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  d 0 [TCPRoute] +Conflicted:ProtocolConflict -Accepted:ProtocolConflict +ResolvedRefs:ResolvedRefs -Programmed:ProtocolConflict
blue/secret -Accepted:ListenersNotValid -Programmed:ListenersNotValid
  a 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted -ResolvedRefs:RefNotPermitted -Programmed:Invalid
blue/young -Accepted:ListenersNotValid -Programmed:ListenersNotValid
  a 0 [HTTPRoute,GRPCRoute] +Conflicted:HostnameConflict -Accepted:HostnameConflict +ResolvedRefs:ResolvedRefs -Programmed:HostnameConflict
red/red -Accepted:NotAllowed -Programmed:NotAllowed
blue/own>old +Accepted:Accepted +ResolvedRefs:ResolvedRefs
blue/section>old -Accepted:NoMatchingParent +ResolvedRefs:ResolvedRefs
shop/there>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
";
    assert_eq!(told(&plan), expected);
    assert_eq!(plan.statuses.gateways[&ObjectKey::new("shop", "g")].sets, 1);
    for (url, expected) in [("x.org/", "a"), ("y.org/", "b"), ("z.org/", "404")] {
        assert_eq!(ask(&plan, 7000, "GET", url, &[]), expected, "{url}");
    }
}

#[test]
fn a_port_that_cannot_be_had_is_the_sets_loss_and_not_the_gateways() {
    let text = |port: u16| {
        format!(
            "
kind: Gateway
metadata: {{name: g, namespace: shop}}
spec:
  gatewayClassName: keelson
  allowedListeners: {{namespaces: {{from: All}}}}
  listeners: [{{name: web, port: 80, protocol: HTTP}}]
---
kind: ListenerSet
metadata: {{name: set, namespace: blue}}
spec: {{parentRef: {{name: g, namespace: shop}}, listeners: [{{name: a, port: {port}, protocol: TCP}}, {{name: b, port: 80, protocol: HTTP, hostname: y.org}}]}}
"
        )
    };
    let ports = |all: &[u16]| all.iter().map(|p| Outer::from(*p)).collect::<BTreeSet<Outer>>();
    let owner = Owner::Gateway(ObjectKey::new("shop", "g"));
    let reasons = |plan: &keelson_gateway::plan::Plan| {
        let set = &plan.statuses.listener_sets[&ObjectKey::new("blue", "set")];
        let of_set: Vec<&str> = set.listeners.iter().map(|l| l.conditions[1].reason).collect();
        let gateway = &plan.statuses.gateways[&ObjectKey::new("shop", "g")];
        (gateway.conditions[1].reason, of_set.join(" "))
    };
    // The API's own port is asked for, and with it the whole is refused.
    let mut world = world(&text(6443));
    let addresses = world.fronts[&owner].addresses.clone();
    let front = world.fronts.get_mut(&owner).unwrap();
    (front.taken, front.refused) = (true, Some("port 6443/TCP is the API server's".into()));
    front.addresses.clear();
    let first = plan(&world);
    assert_eq!(first.fronts[&owner], ports(&[80]));
    assert_eq!(first.without[&owner], ports(&[6443]));
    // Without it the Gateway has its address, and goes on without it.
    let front = world.fronts.get_mut(&owner).unwrap();
    front.ports.retain(|port, _| port.number == 80);
    front.without = ports(&[6443]);
    (front.taken, front.refused) = (false, None);
    front.addresses = addresses;
    let then = plan(&world);
    assert_eq!(
        (&then.fronts[&owner], &then.without[&owner]),
        (&ports(&[80]), &ports(&[6443]))
    );
    assert_eq!(reasons(&then), ("Programmed", "PortUnavailable Accepted".into()));
    // Other ports are asked for.
    world.listener_sets = self::world(&text(81)).listener_sets;
    let other = plan(&world);
    assert_eq!(other.fronts[&owner], ports(&[80, 81]));
    assert!(other.without.is_empty());
}
