//! What a Gateway shows of itself to backends.

use crate::backends::{Gate, table, to, whole};
use crate::plans::world;
use crate::trust::{Authority, authority, demanding, der, tail};
use http::Request;
use keelson_client::ObjectKey;
use keelson_gateway::plan::{World, plan};
use keelson_gateway::serve::{Certificates, certified};
use keelson_gateway::table::{Protocol, Trust, Upstream};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;

/// A certificate of an authority as a secret has it, and what it is told apart by.
fn secret(authority: &Authority, name: &str) -> (Certificates, String) {
    let own = KeyPair::generate().unwrap();
    let made = CertificateParams::new([name.to_string()]).unwrap();
    let made = made.signed_by(&own, authority).unwrap();
    let key = certified(made.pem().as_bytes(), own.serialize_pem().as_bytes()).unwrap();
    (
        Certificates::from([(ObjectKey::new("shop", "own"), key)]),
        tail(made.der()),
    )
}

#[tokio::test]
async fn a_backend_that_demands_a_certificate_gets_the_gateways_own() {
    let (signs, known, other) = (authority(), authority(), authority());
    let mut roots = RootCertStore::empty();
    roots.add(known.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let at = demanding(&signs, clients.build().unwrap()).await;
    let plain = Trust::new("x.org", Vec::new(), der(&signs));
    let showing = plain.showing(&ObjectKey::new("shop", "own"));
    let ((good, first), (renewed, second), (bad, _)) = (secret(&known, "a"), secret(&known, "b"), secret(&other, "a"));
    for protocol in [Protocol::Http1, Protocol::H2c] {
        for (trust, secrets, expected) in [
            (&plain, &good, None),
            (&showing, &Certificates::new(), None),
            (&showing, &bad, None),
            (&showing, &good, Some(&first)),
        ] {
            let gate = Gate::to(to(&[], protocol)).await;
            let set = |secrets: &Certificates| {
                let mut action = to(&[at], protocol);
                action.backends[0].to = Arc::new(Upstream::Endpoints {
                    service: ObjectKey::new("n", "s"),
                    addresses: vec![at],
                    protocol,
                    trust: Some(Arc::new(trust.clone())),
                });
                gate.serving.set(table(gate.at.port(), action, &[]), secrets.clone());
            };
            let ask = async || {
                let request = Request::get("/").header("host", "x.org").body(whole("")).unwrap();
                let answer = gate.http1().await.send_request(request).await.unwrap();
                let shown = answer.headers().get("shown").map(|v| v.to_str().unwrap().to_string());
                (answer.status().as_u16(), shown)
            };
            set(secrets);
            let status = if expected.is_some() { 200 } else { 502 };
            assert_eq!(ask().await, (status, expected.cloned()), "{protocol:?}");
            if expected.is_some() {
                // A renewed one ends no connection.
                set(&renewed);
                assert_eq!(ask().await, (200, Some(first.clone())), "{protocol:?}");
            }
        }
    }
    assert_ne!(first, second);
}

const GATEWAYS: &str = "
kind: Gateway
metadata: {name: shows, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 80, protocol: HTTP}], tls: {backend: {clientCertificateRef: REF}}}
---
kind: Gateway
metadata: {name: without, namespace: shop}
spec: {gatewayClassName: keelson, listeners: [{name: web, port: 81, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: shows}, {name: without}], rules: [{
  filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}],
  backendRefs: [{name: a, port: 80}, {name: b, port: 80}]}]}
---
kind: BackendTLSPolicy
metadata: {name: p, namespace: shop}
spec: {targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.org, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}
";

/// What is told of the Gateway that shows something; and of each what is done with requests for both services, and with copies.
fn of(reference: &str, more: &str) -> (String, Vec<String>) {
    let mut world: World = world(&(GATEWAYS.replace("REF", reference) + more));
    let key = ObjectKey::new("shop", "ca");
    world.authorities.insert(key, Ok(der(&authority())));
    let plan = plan(&world);
    let does = |to: &Upstream| match to {
        Upstream::Endpoints { trust: None, .. } => "plain".to_string(),
        Upstream::Endpoints { trust: Some(t), .. } => t.shows.as_ref().map_or("tls".into(), ToString::to_string),
        Upstream::External { .. } => "away".into(),
        Upstream::Nowhere(status) => status.to_string(),
    };
    let of_port = |number: u16| {
        let port = plan.table.ports.values().find(|p| p.number == number).unwrap();
        let then = &port.listeners[0].hosts[""][0].then;
        let all = then
            .backends
            .iter()
            .map(|b| &b.to)
            .chain(then.filters.mirrors.iter().map(|m| &m.to));
        all.map(|to| does(to)).collect::<Vec<_>>().join(" ")
    };
    let conditions = &plan.statuses.gateways[&ObjectKey::new("shop", "shows")].conditions;
    let told: Vec<&str> = conditions.iter().map(|c| c.reason).collect();
    let mut all = vec![of_port(80), of_port(81)];
    all.extend(plan.certificates.iter().map(ToString::to_string));
    (told.join(" "), all)
}

#[test]
fn each_gateway_shows_its_own_or_sends_nothing() {
    let grant = "---
kind: ReferenceGrant
metadata: {name: r, namespace: other}
spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret}]}
";
    let fine = "Accepted Programmed ResolvedRefs";
    let shown = |key: &str| vec![format!("{key} plain {key}"), "tls plain tls".into(), key.to_string()];
    assert_eq!(of("{name: good}", ""), (fine.into(), shown("shop/good")));
    assert_eq!(
        of("{group: '', kind: Secret, name: far, namespace: other}", grant),
        (fine.into(), shown("other/far"))
    );
    for (reference, reason) in [
        ("{name: nope}", "InvalidClientCertificateRef"),
        ("{name: bad}", "InvalidClientCertificateRef"),
        ("{name: good, kind: ConfigMap}", "InvalidClientCertificateRef"),
        ("{name: good, group: x.org}", "InvalidClientCertificateRef"),
        ("{name: far, namespace: other}", "RefNotPermitted"),
    ] {
        let nowhere = vec!["500 plain 500".to_string(), "tls plain tls".into()];
        let told = format!("Accepted Programmed {reason}");
        assert_eq!(of(reference, ""), (told, nowhere), "{reference}");
    }
}
