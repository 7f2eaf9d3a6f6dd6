//! Datagrams that are passed on.

use crate::backends::{table, to};
use crate::plans::{told, world};
use keelson_gateway::plan::{Owner, plan};
use keelson_gateway::serve::{Certificates, Serving, datagrams};
use keelson_gateway::table::{Outer, Port, Protocol, Speaks, Table};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Answers with its name and what it was told.
async fn echo(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            socket.send_to(format!("{name} {said}").as_bytes(), from).await.unwrap();
        }
    });
    at
}

fn port(at: u16, backends: &[SocketAddr]) -> Table {
    let one = table(at, to(backends, Protocol::Http1), &[]);
    let port = Port {
        speaks: Speaks::Udp,
        ..one.ports[&at].as_ref().clone()
    };
    Table {
        ports: [(at, Arc::new(port))].into(),
    }
}

async fn ask(client: &UdpSocket, gate: SocketAddr, text: &str) -> Option<String> {
    client.send_to(text.as_bytes(), gate).await.unwrap();
    let mut buffer = [0; 64];
    let answer = timeout(Duration::from_millis(500), client.recv_from(&mut buffer))
        .await
        .ok()?;
    let (length, from) = answer.unwrap();
    assert_eq!(from, gate, "answers come from where was asked");
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[tokio::test]
async fn a_client_stays_with_its_backend_while_there_is_one() {
    let (one, two) = (echo("one").await, echo("two").await);
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let gate = socket.local_addr().unwrap();
    let (serving, stop) = (Arc::new(Serving::default()), CancellationToken::new());
    let set = |backends: &[SocketAddr]| serving.set(port(gate.port(), backends), Certificates::new());
    set(&[one, two]);
    let task = tokio::spawn(datagrams(socket, gate.port(), serving.clone(), stop.clone()));
    let mut seen = Vec::new();
    for _ in 0..32 {
        let client = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let first = ask(&client, gate, "a").await.unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&client, gate, "a").await.unwrap(), first);
        }
        seen.push(first);
    }
    assert!(seen.contains(&"one a".into()) && seen.contains(&"two a".into()));
    let client = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    ask(&client, gate, "a").await.unwrap();
    for (backends, expected) in [(&[two][..], "two b"), (&[one], "one b")] {
        set(backends);
        assert_eq!(
            ask(&client, gate, "b").await.as_deref(),
            Some(expected),
            "who is gone gets nothing more"
        );
    }
    set(&[]);
    assert_eq!(ask(&client, gate, "c").await, None);
    stop.cancel();
    timeout(Duration::from_secs(5), task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_a_backend_leads_back_goes_round_once() {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let gate = socket.local_addr().unwrap();
    let (serving, stop) = (Arc::new(Serving::default()), CancellationToken::new());
    serving.set(port(gate.port(), &[gate]), Certificates::new());
    let task = tokio::spawn(datagrams(socket, gate.port(), serving.clone(), stop.clone()));
    let client = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    assert_eq!(ask(&client, gate, "round").await, None);
    // What still goes round would come here.
    let other = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let at = other.local_addr().unwrap();
    serving.set(port(gate.port(), &[at]), Certificates::new());
    let mut buffer = [0; 64];
    let received = timeout(Duration::from_millis(300), other.recv_from(&mut buffer)).await;
    assert!(received.is_err());
    client.send_to(b"on", gate).await.unwrap();
    let (length, _) = timeout(Duration::from_secs(5), other.recv_from(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..length], b"on");
    stop.cancel();
    timeout(Duration::from_secs(5), task).await.unwrap().unwrap().unwrap();
}

#[test]
fn a_port_of_datagrams_is_another_than_that_of_connections() {
    let mut world = world(
        "
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  listeners: [{name: tcp, port: 53, protocol: TCP}, {name: udp, port: 53, protocol: UDP}]
---
kind: UDPRoute
metadata: {name: u, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: dns, port: 53}]}]}
---
kind: UDPRoute
metadata: {name: wrong, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: tcp}], rules: [{backendRefs: [{name: a, port: 80}]}]}
",
    );
    let dns = serde_json::json!({"metadata": {"name": "dns", "namespace": "shop"}, "spec": {"ports": [
        {"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}]}});
    let key = keelson_client::ObjectKey::new("shop", "dns");
    world
        .services
        .insert(key, Arc::new(serde_json::from_value(dns).unwrap()));
    let plan = plan(&world);
    let expected = "\
shop/g +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs
  tcp 0 [TCPRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  udp 1 [UDPRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
shop/u>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
shop/wrong>g -Accepted:NotAllowedByListeners -ResolvedRefs:BackendNotFound
";
    assert_eq!(told(&plan), expected);
    let ports: Vec<Outer> = plan.fronts.values().flatten().copied().collect();
    assert_eq!(
        ports,
        [Outer { number: 53, udp: false }, Outer { number: 53, udp: true }]
    );
    assert!(plan.fronts.keys().all(|o| *o != Owner::Ingress));
}
