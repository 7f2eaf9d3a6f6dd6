//! Certificates that clients have to show.

use crate::backends::{Body, Fake, Gate, table, to, whole};
use crate::plans::{told, world};
use crate::serving::told as tells;
use crate::trust::{Authority, authority, der, issued};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_client::ObjectKey;
use keelson_gateway::plan::{Owner, plan};
use keelson_gateway::serve::{Certificates, certified};
use keelson_gateway::table::{ClientTrust, Host, Listener, Port, Protocol, Speaks, Table};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A certificate for all hosts that tests ask for, and the configuration of a client that trusts it and shows another, or nothing.
pub struct Shown(pub Certificates, CertificateDer<'static>);

impl Shown {
    pub fn new() -> Shown {
        let names = ["x.org", "y.org", "*.w.org", "a.w.org", "other.org"].map(String::from);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = certified(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
        let all = Certificates::from([(ObjectKey::new("n", "own"), key)]);
        Shown(all, made.cert.der().clone())
    }

    pub fn client(&self, own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> Arc<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.1.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            Some((shown, key)) => config.with_client_auth_cert(vec![shown], key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// Listeners of a port that all lead to one backend, each for a host, with what its clients have to show.
pub fn port(gate: &Gate, to_backend: SocketAddr, of: &[(&str, Option<ClientTrust>)]) -> Table {
    let at = gate.at.port();
    let listeners = of.iter().map(|(host, clients)| Listener {
        host: Host::new(host),
        certificates: vec![(Host::new(host), ObjectKey::new("n", "own"))],
        clients: clients.clone().map(Arc::new),
        ..table(at, to(&[to_backend], Protocol::Http1), &["x"]).ports[&at].listeners[0].clone()
    });
    let mut port = Port {
        number: 443,
        speaks: Speaks::Https,
        listeners: listeners.collect(),
    };
    port.listeners.sort_by_key(|l| std::cmp::Reverse(l.host.rank()));
    Table {
        ports: [(at, Arc::new(port))].into(),
    }
}

pub async fn shake(at: SocketAddr, name: &str, client: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = tokio_rustls::TlsConnector::from(client.clone());
    let name = ServerName::try_from(name.to_string()).unwrap();
    connector.connect(name, TcpStream::connect(at).await?).await
}

pub async fn http2(at: SocketAddr, name: &str, client: &Arc<ClientConfig>) -> Option<SendRequest<Body>> {
    let stream = TokioIo::new(shake(at, name, client).await.ok()?);
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
    let (sender, connection) = made.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

pub async fn get(client: &mut SendRequest<Body>, host: &str) -> hyper::Result<Response<Incoming>> {
    let request = Request::get(format!("https://{host}/"))
        .header("client-cert", ":AAAA:")
        .header("client-cert-chain", ":AAAA:");
    client.send_request(request.body(whole("")).unwrap()).await
}

/// The status, and what the backend was told of the client's certificate.
async fn ask(gate: &Gate, client: &Arc<ClientConfig>) -> String {
    let Some(mut sender) = http2(gate.at, "x.org", client).await else {
        return "refused".into();
    };
    let Ok(answer) = get(&mut sender, "x.org").await else {
        return "refused".into();
    };
    let (status, text) = crate::backends::read(answer).await;
    let shown = text
        .lines()
        .filter(|l| l.starts_with("client-cert"))
        .collect::<Vec<_>>();
    format!("{status} {}", shown.join(" "))
}

fn trust(authorities: &[&Authority], anybody: bool) -> ClientTrust {
    let all: Vec<_> = authorities.iter().flat_map(|a| der(a)).collect();
    ClientTrust::new(all, anybody)
}

fn header(certificate: &CertificateDer<'_>) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("200 client-cert: :{}:", BASE64_STANDARD.encode(certificate))
}

#[tokio::test]
async fn clients_come_in_with_what_is_asked_of_them_and_backends_are_told_by_us_alone() {
    let (backend, gate, shown) = (Fake::start(tells).await, Gate::open(Speaks::Https).await, Shown::new());
    let (known, other) = (authority(), authority());
    let good = issued(&known, "me");
    let whose = header(&good.0);
    let clients = [None, Some(issued(&other, "me")), Some(good)].map(|own| shown.client(own));
    for (asked, expected) in [
        (None, ["200 ", "200 ", "200 "]),
        (Some(trust(&[&known], false)), ["refused", "refused", whose.as_str()]),
        (
            Some(trust(&[&other, &known], false)),
            ["refused", "200", whose.as_str()],
        ),
        (Some(trust(&[&known], true)), ["200 ", "200 ", whose.as_str()]),
    ] {
        let table = port(&gate, backend.at, &[("x.org", asked.clone())]);
        gate.serving.set(table, shown.0.clone());
        for (client, expected) in clients.iter().zip(expected) {
            let got = ask(&gate, client).await;
            assert!(
                got == expected || expected == "200" && got.starts_with("200 client-cert: :"),
                "{asked:?} {got}"
            );
        }
    }
}

/// A connection, and whether it takes one more request.
async fn goes_on(client: &mut SendRequest<Body>) -> (u16, bool) {
    let status = get(client, "x.org").await.map_or(0, |answer| answer.status().as_u16());
    for _ in 0..50 {
        if client.is_closed() {
            return (status, false);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (status, true)
}

#[tokio::test]
async fn what_is_asked_holds_for_connections_that_are_open_already() {
    let (backend, gate, shown) = (Fake::start(tells).await, Gate::open(Speaks::Https).await, Shown::new());
    let (known, other) = (authority(), authority());
    let set = |asked| {
        let table = port(&gate, backend.at, &[("x.org", asked)]);
        gate.serving.set(table, shown.0.clone());
    };
    set(None);
    let mine = shown.client(Some(issued(&known, "me")));
    let mut open = http2(gate.at, "x.org", &mine).await.unwrap();
    assert_eq!(goes_on(&mut open).await, (200, true));
    set(Some(trust(&[&known], false)));
    assert_eq!(
        goes_on(&mut open).await,
        (421, false),
        "it wasn't asked, and is to come again"
    );
    let mut open = http2(gate.at, "x.org", &mine).await.unwrap();
    assert_eq!(goes_on(&mut open).await, (200, true));
    // Who is known by the new authorities, too, notices nothing of them.
    set(Some(trust(&[&other, &known], false)));
    assert_eq!(goes_on(&mut open).await, (200, true));
    set(Some(trust(&[&other], false)));
    assert_eq!(goes_on(&mut open).await, (421, false));
    // Nor is a session taken up again that was begun by others.
    assert_eq!(ask(&gate, &mine).await, "refused");
    set(Some(trust(&[&other], true)));
    assert_eq!(ask(&gate, &mine).await, "200 ");
}

/// A Gateway with this under `frontend`, and what is told of it.
fn of(frontend: &str) -> String {
    let mut world = world(&format!(
        "
kind: Gateway
metadata: {{name: g, namespace: shop}}
spec:
  gatewayClassName: keelson
  tls: {{frontend: {frontend}}}
  listeners:
  - {{name: web, port: 80, protocol: HTTP}}
  - {{name: one, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: good}}]}}}}
  - {{name: two, port: 8443, protocol: HTTPS, tls: {{certificateRefs: [{{name: good}}]}}}}
---
kind: ReferenceGrant
metadata: {{name: r, namespace: granted}}
spec: {{from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}}], to: [{{group: '', kind: ConfigMap}}]}}
"
    ));
    for (namespace, name, found) in [
        ("shop", "ca", Ok(der(&authority()))),
        ("shop", "other", Ok(der(&authority()))),
        ("shop", "broken", Err("it has no ca.crt".to_string())),
        ("granted", "ca", Ok(der(&authority()))),
        ("far", "ca", Ok(der(&authority()))),
    ] {
        world.authorities.insert(ObjectKey::new(namespace, name), found);
    }
    let owner = Owner::Gateway(ObjectKey::new("shop", "g"));
    world.fronts.get_mut(&owner).unwrap().ports =
        [(80u16.into(), 7000), (443u16.into(), 7001), (8443u16.into(), 7002)].into();
    let plan = plan(&world);
    let ports = plan.table.ports.values();
    let asks = ports.flat_map(|p| p.listeners.iter().map(move |l| (p.number, &l.clients)));
    let asks = asks.filter_map(|(number, asked)| {
        let asked = asked.as_ref()?;
        let count = asked.authorities.certificates.len();
        Some(format!("{number}:{count}{}", if asked.anybody { "!" } else { "" }))
    });
    let asks: Vec<String> = asks.collect();
    let copied: Vec<String> = plan.authorities.iter().map(ToString::to_string).collect();
    let front = &plan.fronts[&owner];
    let brief = told(&plan)
        .replace("  ", "")
        .replace("[HTTPRoute,GRPCRoute] -Conflicted:NoConflicts ", "")
        .replace(
            "+Accepted:Accepted +ResolvedRefs:ResolvedRefs +Programmed:Programmed",
            "fine",
        );
    format!(
        "{brief}asks {} copies {} ports {}",
        asks.join(" "),
        copied.join(" "),
        front.len()
    )
}

fn refs(all: &str) -> String {
    let one = |(group, kind, name): (&str, &str, &str)| match name.split_once('/') {
        Some((namespace, name)) => format!("{{group: '{group}', kind: {kind}, name: {name}, namespace: {namespace}}}"),
        None => format!("{{group: '{group}', kind: {kind}, name: {name}}}"),
    };
    let all = all.split(' ').map(|name| match name.strip_prefix("kind:") {
        Some(name) => one(("", "Service", name)),
        None => one(("", "ConfigMap", name)),
    });
    format!("caCertificateRefs: [{}]", all.collect::<Vec<_>>().join(", "))
}

#[test]
fn what_is_asked_is_the_ports_or_else_the_default_one_and_only_of_https() {
    let default = |refs: &str, rest: &str| format!("{{default: {{validation: {{{refs}{rest}}}}}}}");
    let head = "shop/g +Accepted:Accepted +Programmed:Programmed +ResolvedRefs:ResolvedRefs";
    let fine = "\nweb 0 fine\none 0 fine\ntwo 0 fine\n";
    assert_eq!(of("{default: {}}"), format!("{head}{fine}asks  copies  ports 3"));
    assert_eq!(
        of(&default(&refs("ca other"), "")),
        format!("{head}{fine}asks 443:2 8443:2 copies shop/ca shop/other ports 3")
    );
    assert_eq!(
        of(&default(&refs("granted/ca"), ", mode: AllowValidOnly")),
        format!("{head}{fine}asks 443:1 8443:1 copies granted/ca ports 3")
    );
    let insecure = format!("{head} +InsecureFrontendValidationMode:ConfigurationChanged");
    assert_eq!(
        of(&default(&refs("ca"), ", mode: AllowInsecureFallback")),
        format!("{insecure}{fine}asks 443:1! 8443:1! copies shop/ca ports 3")
    );
    let per = |tls: &str| {
        let default = refs("ca other");
        format!("{{default: {{validation: {{{default}}}}}, perPort: [{{port: 8443, tls: {tls}}}]}}")
    };
    assert_eq!(
        of(&per("{}")),
        format!("{head}{fine}asks 443:2 copies shop/ca shop/other ports 3")
    );
    assert_eq!(
        of(&per(&format!(
            "{{validation: {{{}, mode: AllowInsecureFallback}}}}",
            refs("ca")
        ))),
        format!("{insecure}{fine}asks 443:2 8443:1! copies shop/ca shop/other ports 3")
    );
    let lost = "shop/g +Accepted:ListenersNotValid +Programmed:Programmed -ResolvedRefs:ListenersNotResolved";
    for (bad, reason) in [
        ("nope", "InvalidCACertificateRef"),
        ("broken", "InvalidCACertificateRef"),
        ("kind:a", "InvalidCACertificateKind"),
        ("far/ca", "RefNotPermitted"),
    ] {
        let two = format!("two 0 -Accepted:NoValidCACertificate -ResolvedRefs:{reason} -Programmed:Invalid");
        assert_eq!(
            of(&per(&format!("{{validation: {{{}}}}}", refs(bad)))),
            format!("{lost}\nweb 0 fine\none 0 fine\n{two}\nasks 443:2 copies shop/ca shop/other ports 2"),
            "{bad}"
        );
    }
    // One of several that can't be had is told, and the others count.
    let some = "+Accepted:Accepted -ResolvedRefs:InvalidCACertificateRef +Programmed:Programmed";
    assert_eq!(
        of(&default(&refs("nope ca"), "")),
        format!(
            "shop/g +Accepted:Accepted +Programmed:Programmed -ResolvedRefs:ListenersNotResolved\nweb 0 fine\n\
             one 0 {some}\ntwo 0 {some}\nasks 443:1 8443:1 copies shop/ca ports 3"
        )
    );
}
