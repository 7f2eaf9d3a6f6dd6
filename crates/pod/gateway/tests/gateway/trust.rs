//! Backends that are reached by TLS.

use crate::backends::{Fake, Gate, to};
use crate::plans::world;
use crate::serving::told;
use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_client::ObjectKey;
use keelson_gateway::plan::{World, plan};
use keelson_gateway::table::{AltName, Protocol, Trust, Upstream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoClientAuth;
use rustls::server::danger::ClientCertVerifier;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of an authority, and its key.
pub fn issued(authority: &Authority, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let own = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_string()]).unwrap();
    let shown = params.signed_by(&own, authority).unwrap();
    (
        shown.der().clone(),
        PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
    )
}

/// A backend with a certificate for `x.org` and `spiffe://x.org/a`, which tells what it is asked; by HTTP/1.1 or HTTP/2 as its client likes.
async fn backend(authority: &Authority) -> SocketAddr {
    demanding(authority, Arc::new(NoClientAuth)).await
}

/// The same for who shows a certificate; a part of it is told in the answer's header `shown`.
pub async fn demanding(authority: &Authority, clients: Arc<dyn ClientCertVerifier>) -> SocketAddr {
    let mut params = CertificateParams::new(["x.org".to_string()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI("spiffe://x.org/a".try_into().unwrap()));
    let own = KeyPair::generate().unwrap();
    let shown = params.signed_by(&own, authority).unwrap();
    let key = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![shown.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let shown = stream.get_ref().1.peer_certificates().map(|all| tail(&all[0]));
                let service = service_fn(|request| {
                    let shown = shown.clone();
                    async move {
                        let mut answer = told(request).await;
                        if let Some(shown) = shown {
                            answer.headers_mut().insert("shown", shown.parse().unwrap());
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    });
    at
}

/// By which certificates are told apart.
pub fn tail(certificate: &CertificateDer<'_>) -> String {
    hex::encode(&certificate[certificate.len() - 8..])
}

pub fn der(authority: &Authority) -> Vec<CertificateDer<'static>> {
    vec![authority.der().clone()]
}

#[tokio::test]
async fn a_backend_gets_nothing_before_it_has_shown_who_it_is() {
    let (signs, other) = (authority(), authority());
    let at = backend(&signs).await;
    let names = |all: &[&str]| -> Vec<AltName> {
        let one = |name: &&str| match name.contains("://") {
            true => AltName::Uri(name.to_string()),
            false => AltName::Host(name.to_string()),
        };
        all.iter().map(one).collect()
    };
    for (host, alt, by, protocol, fine) in [
        ("x.org", &[][..], &signs, Protocol::Http1, true),
        ("x.org", &[], &signs, Protocol::H2c, true),
        ("y.org", &[], &signs, Protocol::Http1, false),
        ("y.org", &[], &signs, Protocol::H2c, false),
        ("x.org", &[], &other, Protocol::Http1, false),
        ("y.org", &["z.org", "x.org"], &signs, Protocol::Http1, true),
        ("x.org", &["z.org"], &signs, Protocol::Http1, false),
        ("x.org", &["spiffe://x.org/a"], &signs, Protocol::Http1, true),
        ("x.org", &["spiffe://x.org/b"], &signs, Protocol::H2c, false),
        ("x.org", &["spiffe://x.org/a"], &other, Protocol::H2c, false),
    ] {
        let mut action = to(&[at], protocol);
        action.backends[0].to = Arc::new(Upstream::Endpoints {
            service: ObjectKey::new("n", "s"),
            addresses: vec![at],
            protocol,
            trust: Some(Arc::new(Trust::new(host, names(alt), der(by)))),
        });
        let gate = Gate::to(action).await;
        let (status, text) = gate.get("/path").await;
        assert_eq!(
            status,
            if fine { 200 } else { 502 },
            "{host} {alt:?} {protocol:?} {text}"
        );
    }
    // A backend without TLS is none that can show anything.
    let plain = Fake::start(told).await;
    let mut action = to(&[plain.at], Protocol::Http1);
    action.backends[0].to = Arc::new(Upstream::Endpoints {
        service: ObjectKey::new("n", "s"),
        addresses: vec![plain.at],
        protocol: Protocol::Http1,
        trust: Some(Arc::new(Trust::new("x.org", Vec::new(), der(&signs)))),
    });
    let gate = Gate::to(action).await;
    let request = Request::get("/")
        .header("host", "x.org")
        .body(crate::backends::whole(""))
        .unwrap();
    let answer = gate.http1().await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 502);
}

const ROUTED: &str = "
kind: Gateway
metadata: {name: g, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}, {name: a, port: 443}]}]}
";

/// What is done with requests for ports 80 and 443 of a service, and what policies are told.
fn of(policies: &str) -> (String, String) {
    done(world(&format!("{ROUTED}{policies}")))
}

pub fn done(mut world: World) -> (String, String) {
    for (key, found) in [
        ("ca", Ok(der(&authority()))),
        ("broken", Err("it has no ca.crt".to_string())),
    ] {
        world.authorities.insert(ObjectKey::new("shop", key), found);
    }
    let plan = plan(&world);
    let rule = &plan.table.ports[&7000].listeners[0].hosts[""][0];
    let does = |to: &Upstream| match to {
        Upstream::Endpoints { trust: None, .. } => "plain".to_string(),
        Upstream::Endpoints { trust: Some(trust), .. } => trust.host.clone(),
        Upstream::External { .. } => "away".into(),
        Upstream::Nowhere(status) => status.to_string(),
    };
    let all: Vec<String> = rule.then.backends.iter().map(|b| does(&b.to)).collect();
    let told = plan.statuses.policies.iter().map(|(key, told)| {
        let reasons: Vec<&str> = told.conditions.iter().map(|c| c.reason).collect();
        format!("{}:{}:{}", key.name, reasons.join(","), told.gateways.len())
    });
    (all.join(" "), told.collect::<Vec<_>>().join(" "))
}

#[test]
fn a_policy_for_a_port_is_not_looked_for_by_another_transport() {
    let ca = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";
    let mut world = world(&format!("{ROUTED}{}", policy("p", 1, "name: a, sectionName: web", ca)));
    let service = serde_json::json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"ports": [
        {"name": "quic", "port": 80, "protocol": "UDP"}, {"name": "web", "port": 80, "protocol": "TCP"}, {"name": "s", "port": 443}]}});
    let service = Arc::new(serde_json::from_value(service).unwrap());
    world.services.insert(ObjectKey::new("shop", "a"), service);
    assert_eq!(done(world).0, "p.org plain");
}

fn policy(name: &str, created: u32, target: &str, rest: &str) -> String {
    format!(
        "---
kind: BackendTLSPolicy
metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:00:{created:02}Z'}}
spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{hostname: {name}.org, {rest}}}}}
"
    )
}

#[test]
fn policies_say_how_services_are_reached_or_nothing_is_sent() {
    let ca = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";
    // A port that says that it speaks TLS needs a policy to be reached.
    assert_eq!(of("").0, "plain 500");
    assert_eq!(
        of(&policy("p", 1, "name: a", ca)),
        ("p.org p.org".into(), "p:Accepted,ResolvedRefs:1".into())
    );
    let two = policy("whole", 1, "name: a", ca) + &policy("port", 2, "name: a, sectionName: s", ca);
    let told = "port:Accepted,ResolvedRefs:1 whole:Accepted,ResolvedRefs:1";
    assert_eq!(of(&two), ("whole.org port.org".into(), told.into()));
    let two = policy("young", 2, "name: a", ca) + &policy("zold", 1, "name: a", ca);
    let told = "young:Conflicted,ResolvedRefs:1 zold:Accepted,ResolvedRefs:1";
    assert_eq!(of(&two), ("zold.org zold.org".into(), told.into()));
    // For a service that no route leads to nothing is told.
    assert_eq!(of(&policy("p", 1, "name: b", ca)), ("plain 500".into(), String::new()));
    for (rest, told) in [
        (
            "caCertificateRefs: [{group: '', kind: ConfigMap, name: nope}]",
            "NoValidCACertificate,InvalidCACertificateRef",
        ),
        (
            "caCertificateRefs: [{group: '', kind: ConfigMap, name: broken}]",
            "NoValidCACertificate,InvalidCACertificateRef",
        ),
        (
            "caCertificateRefs: [{group: x.io, kind: Own, name: ca}]",
            "NoValidCACertificate,InvalidKind",
        ),
        ("wellKnownCACertificates: System", "NoValidCACertificate,ResolvedRefs"),
        ("wellKnownCACertificates: x.org/own", "Invalid,ResolvedRefs"),
    ] {
        let (does, got) = of(&policy("p", 1, "name: a", rest));
        assert_eq!((does.as_str(), got), ("500 500", format!("p:{told}:1")), "{rest}");
    }
    let mut known = world(&format!(
        "{ROUTED}{}",
        policy("p", 1, "name: a", "wellKnownCACertificates: System")
    ));
    known.system = Some(der(&authority()).into());
    assert_eq!(
        done(known),
        ("p.org p.org".into(), "p:Accepted,ResolvedRefs:1".into()),
        "by the authorities that the system knows"
    );
    let some = "caCertificateRefs: [{group: '', kind: ConfigMap, name: nope}, {group: '', kind: ConfigMap, name: ca}]";
    let (does, got) = of(&policy("p", 1, "name: a", some));
    assert_eq!(
        (does.as_str(), got.as_str()),
        ("p.org p.org", "p:Accepted,InvalidCACertificateRef:1")
    );
}
