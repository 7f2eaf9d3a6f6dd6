//! Connections that are passed on as bytes, and addresses that gateways ask for.

use crate::backends::{Gate, certificate, table, to};
use crate::plans::{ask, told, world};
use crate::serving::shake;
use keelson_client::ObjectKey;
use keelson_gateway::plan::{Owner, World, plan};
use keelson_gateway::serve::Certificates;
use keelson_gateway::table::{Host, Listener, Port, Protocol, Speaks, Table};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Says its name, then whatever it is told.
async fn echo(name: &'static str) -> SocketAddr {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    at
}

/// A backend that ends TLS itself, with a certificate for one name.
async fn tls(name: &'static str) -> (SocketAddr, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed([name.to_string()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    stream.write_all(name.as_bytes()).await.unwrap();
                    stream.shutdown().await.ok();
                }
            });
        }
    });
    (at, made)
}

/// Listeners of a port, each for a host, with where its connections go and whether their TLS ends here.
fn port(at: u16, speaks: Speaks, of: &[(&str, SocketAddr, bool)]) -> Table {
    let listeners = of.iter().map(|(host, backend, ends)| {
        let action = to(&[*backend], Protocol::Http1);
        let one = table(at, action, if *ends { &["here.org"] } else { &[] });
        Listener {
            host: Host::new(host),
            ..one.ports[&at].listeners[0].clone()
        }
    });
    let port = Port {
        number: 443,
        speaks,
        listeners: listeners.collect(),
    };
    Table {
        ports: [(at, Arc::new(port))].into(),
    }
}

#[tokio::test]
async fn connections_go_by_the_name_in_their_hello_ended_here_or_as_they_are() {
    let ((there, made), plain) = (tls("there.org").await, echo("plain ").await);
    let gate = Gate::open(Speaks::Tls).await;
    let (shown, own) = certificate("here.org");
    let of = [("here.org", plain, true), ("*.org", there, false)];
    gate.serving.set(port(gate.at.port(), Speaks::Tls, &of), shown);
    let mut passed = shake(gate.at, "there.org", &made.cert, "any").await.unwrap();
    let mut text = String::new();
    passed.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "there.org", "the backend's own certificate, and what it says");
    let mut ended = shake(gate.at, "here.org", &own.cert, "any").await.unwrap();
    ended.write_all(b"bytes").await.unwrap();
    let mut said = [0; 11];
    ended.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"plain bytes");
    assert!(
        shake(gate.at, "x.com", &own.cert, "any").await.is_err(),
        "for no listener"
    );
    // What isn't TLS at all goes nowhere.
    let mut stream = TcpStream::connect(gate.at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
        .await
        .unwrap();
    assert!(ended.is_err() || !rest.starts_with(b"HTTP"));
}

#[tokio::test]
async fn a_stop_lets_connections_go_on_for_a_while_and_takes_none_in() {
    let backend = echo("hello ").await;
    let gate = Gate::open(Speaks::Tcp).await;
    let of = [("", backend, false)];
    gate.serving
        .set(port(gate.at.port(), Speaks::Tcp, &of), Certificates::new());
    let mut client = TcpStream::connect(gate.at).await.unwrap();
    let mut said = [0; 6];
    client.read_exact(&mut said).await.unwrap();
    gate.stop.cancel();
    for _ in 0..100 {
        if TcpStream::connect(gate.at).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(TcpStream::connect(gate.at).await.is_err());
    client.write_all(b"still").await.unwrap();
    let mut said = [0; 5];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still");
    client.shutdown().await.unwrap();
    timeout(Duration::from_secs(5), gate.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[test]
fn routes_of_connections_are_attached_to_listeners_of_their_protocol() {
    let plan = plan(&world("
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: pass, port: 443, protocol: TLS, hostname: '*.x.org', tls: {mode: Passthrough}}
  - {name: end, port: 443, protocol: TLS, hostname: y.org, tls: {mode: Terminate, certificateRefs: [{name: good}]}}
  - {name: bare, port: 444, protocol: TLS, tls: {mode: Terminate}}
  - {name: tcp, port: 81, protocol: TCP}
  - {name: web, port: 82, protocol: HTTP}
  - {name: both, port: 83, protocol: TCP}
  - {name: two, port: 83, protocol: TLS, tls: {mode: Passthrough}}
---
kind: TLSRoute
metadata: {name: t, namespace: shop}
spec: {parentRefs: [{name: g}], hostnames: [a.x.org, y.org], rules: [{backendRefs: [{name: a, port: 443}]}]}
---
kind: TCPRoute
metadata: {name: c, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: tcp}, {name: g, sectionName: web}], rules: [{backendRefs: [{name: b, port: 443}]}]}
---
kind: TLSRoute
metadata: {name: lost, namespace: shop}
spec: {parentRefs: [{name: g, sectionName: pass}], hostnames: [a.x.org], rules: [{backendRefs: [{name: nobody, port: 1}]}]}
"));
    let expected = "\
shop/g +Accepted:ListenersNotValid +Programmed:Programmed -ResolvedRefs:ListenersNotResolved
  pass 2 [TLSRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  end 1 [TLSRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  bare 1 [TLSRoute] -Conflicted:NoConflicts +Accepted:Accepted -ResolvedRefs:InvalidCertificateRef -Programmed:Invalid
  tcp 1 [TCPRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  web 0 [HTTPRoute,GRPCRoute] -Conflicted:NoConflicts +Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed
  both 0 [TCPRoute] +Conflicted:ProtocolConflict -Accepted:ProtocolConflict +ResolvedRefs:ResolvedRefs -Programmed:Invalid
  two 1 [TLSRoute] +Conflicted:ProtocolConflict -Accepted:ProtocolConflict +ResolvedRefs:ResolvedRefs -Programmed:Invalid
shop/c>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
shop/c>g -Accepted:NotAllowedByListeners +ResolvedRefs:ResolvedRefs
shop/lost>g +Accepted:Accepted -ResolvedRefs:BackendNotFound
shop/t>g +Accepted:Accepted +ResolvedRefs:ResolvedRefs
";
    assert_eq!(told(&plan), expected);
    let at = |number| {
        let of = plan.table.ports.iter().find(|(_, p)| p.number == number);
        *of.unwrap().0
    };
    for (number, name, expected) in [
        (443, "a.x.org/", "500"),
        (443, "y.org/", "a"),
        (443, "z.org/", "404"),
        (81, "/", "b"),
    ] {
        let got = ask(&plan, at(number), "", name, &[]);
        // Of two routes for one host the first by name counts.
        assert_eq!(got, expected, "{number} {name}");
    }
    let ends: Vec<bool> = plan.table.ports[&at(443)]
        .listeners
        .iter()
        .map(|l| !l.certificates.is_empty())
        .collect();
    assert_eq!(ends, [true, false]);
}

#[test]
fn addresses_can_be_asked_for_and_are_had_or_told_of() {
    let of = |addresses: &str, has: &str| {
        let mut world: World = world(&format!(
            "
kind: Gateway
metadata: {{name: g, namespace: shop}}
spec: {{gatewayClassName: keelson, addresses: [{addresses}], listeners: [{{name: web, port: 80, protocol: HTTP}}]}}
"
        ));
        let owner = Owner::Gateway(ObjectKey::new("shop", "g"));
        if let Some(front) = world.fronts.get_mut(&owner) {
            front.addresses[0].ip = Some(has.into());
        }
        let plan = plan(&world);
        let conditions = &plan.statuses.gateways[&ObjectKey::new("shop", "g")].conditions;
        let told: Vec<&str> = conditions.iter().map(|c| c.reason).collect();
        let wished = plan
            .wished
            .get(&owner)
            .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        (told.join(" "), wished.unwrap_or_default().join(","))
    };
    let (own, other) = ("192.0.2.1", "192.0.2.2");
    for (addresses, has, told, wished) in [
        ("{value: 192.0.2.1}", own, "Accepted Programmed ResolvedRefs", own),
        (
            "{value: 192.0.2.1}",
            other,
            "Accepted AddressNotUsable ResolvedRefs",
            own,
        ),
        (
            "{value: 192.0.2.1}, {value: 192.0.2.2}",
            own,
            "Accepted AddressNotUsable ResolvedRefs",
            "192.0.2.1,192.0.2.2",
        ),
        ("{type: IPAddress}", own, "Accepted Programmed ResolvedRefs", ""),
        ("{value: x.org}", own, "UnsupportedAddress Invalid ResolvedRefs", ""),
        (
            "{type: a.b/c, value: d}, {value: 192.0.2.1}",
            own,
            "UnsupportedAddress Invalid ResolvedRefs",
            "",
        ),
    ] {
        assert_eq!(of(addresses, has), (told.into(), wished.into()), "{addresses} {has}");
    }
}
