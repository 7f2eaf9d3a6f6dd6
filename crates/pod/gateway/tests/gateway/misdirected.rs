//! Requests that come by another listener's connection.

use crate::backends::{Fake, Gate, read};
use crate::clients::{Shown, get, http2, port};
use crate::plans::world;
use crate::serving::told;
use crate::trust::{authority, der, issued};
use keelson_client::ObjectKey;
use keelson_gateway::plan::plan;
use keelson_gateway::table::{ClientTrust, Speaks};
use std::sync::atomic::Ordering;

#[tokio::test]
async fn a_connection_is_for_the_hosts_of_its_listener_alone() {
    let (backend, gate, shown) = (Fake::start(told).await, Gate::open(Speaks::Https).await, Shown::new());
    let of = [("", None), ("y.org", None), ("*.w.org", None), ("a.w.org", None)];
    gate.serving.set(port(&gate, backend.at, &of), shown.0.clone());
    let client = shown.client(None);
    for (name, host, expected) in [
        ("x.org", "x.org", 200),
        ("x.org", "other.org", 200),
        ("x.org", "y.org", 421),
        ("x.org", "Y.ORG.:443", 421),
        ("y.org", "y.org", 200),
        ("y.org", "Y.org:8443", 200),
        ("y.org", "x.org", 421),
        ("b.w.org", "c.w.org", 200),
        ("b.w.org", "a.w.org", 421),
        ("a.w.org", "b.w.org", 421),
        ("a.w.org", "a.w.org", 200),
    ] {
        let mut connection = http2(gate.at, name, &client).await.unwrap();
        let (got, text) = read(get(&mut connection, host).await.unwrap()).await;
        assert_eq!(got, expected, "{name} {host} {text}");
        let again = get(&mut connection, name).await.unwrap().status();
        assert_eq!(again, 200, "{name}: the connection is as good as before");
    }
    // For no listener at all there is nowhere to go to.
    gate.serving.set(port(&gate, backend.at, &of[1..]), shown.0.clone());
    let mut connection = http2(gate.at, "y.org", &client).await.unwrap();
    assert_eq!(get(&mut connection, "other.org").await.unwrap().status(), 404);
}

#[tokio::test]
async fn nobody_comes_by_the_open_door_to_what_is_behind_another() {
    let (backend, gate, shown) = (Fake::start(told).await, Gate::open(Speaks::Https).await, Shown::new());
    let known = authority();
    let of = [("", None), ("y.org", Some(ClientTrust::new(der(&known), false)))];
    gate.serving.set(port(&gate, backend.at, &of), shown.0.clone());
    let mine = shown.client(Some(issued(&known, "me")));
    for client in [shown.client(None), mine.clone()] {
        let mut open = http2(gate.at, "x.org", &client).await.unwrap();
        assert_eq!(get(&mut open, "y.org").await.unwrap().status(), 421);
    }
    assert_eq!(
        backend.connections.load(Ordering::SeqCst),
        0,
        "the backend has heard nothing"
    );
    let mut closed = http2(gate.at, "y.org", &mine).await.unwrap();
    assert_eq!(get(&mut closed, "y.org").await.unwrap().status(), 200);
}

#[test]
fn listeners_that_have_names_of_each_other_are_told_so() {
    let plan = plan(&world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: wide, port: 443, protocol: HTTPS, hostname: '*.x.org', tls: {certificateRefs: [{name: good}]}}
  - {name: deep, port: 443, protocol: HTTPS, hostname: 'a.b.x.org', tls: {certificateRefs: [{name: good}]}}
  - {name: other, port: 443, protocol: HTTPS, hostname: y.org, tls: {certificateRefs: [{name: good}]}}
  - {name: elsewhere, port: 444, protocol: HTTPS, hostname: '*.org', tls: {certificateRefs: [{name: good}]}}
  - {name: plain, port: 80, protocol: HTTP, hostname: '*.x.org'}
  - {name: all, port: 80, protocol: HTTP}
  - {name: passes, port: 445, protocol: TLS, hostname: '*.x.org', tls: {mode: Passthrough}}
  - {name: ends, port: 445, protocol: TLS, hostname: a.x.org, tls: {mode: Terminate, certificateRefs: [{name: good}]}}
  - {name: option, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: good}], options: {x.org/least: '1.3'}}}
",
    ));
    let all = &plan.statuses.gateways[&ObjectKey::new("shop", "g")].listeners;
    let told = all.iter().filter(|l| {
        let mut conditions = l.conditions.iter().filter(|c| c.kind == "OverlappingTLSConfig");
        conditions.any(|c| c.holds && c.reason == "OverlappingHostnames")
    });
    assert_eq!(told.map(|l| l.name.as_str()).collect::<Vec<_>>(), ["wide", "deep"]);
}
