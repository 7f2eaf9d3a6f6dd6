//! What somebody without an identity, or with old cryptography, gets at the ports of the server and the kubelet.

use super::{Point, Seen, World, some, wrong};
use anyhow::Context;
use http::Request;
use keelson_apiserver::Body;
use keelson_apiserver::connect::{ClientTls, Target, Trust};
use keelson_apiserver::serve::tls;
use keelson_pki::verify::tls::Servers;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(5);
/// What a server may tell anybody.
const PUBLIC: [&str; 5] = [
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
    "/.well-known/openid-configuration",
];
const API: [&str; 9] = [
    "/api/v1/namespaces/kube-system/secrets",
    "/api/v1/pods",
    "/api/v1/nodes",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/openapi/v2",
    "/metrics",
    "/logs",
    "/debug/pprof/",
    "/debug/flags/v",
];
const KUBELET: [&str; 8] = [
    "/pods",
    "/runningpods/",
    "/metrics",
    "/stats/summary",
    "/configz",
    "/logs/",
    "/debug/pprof/",
    "/containerLogs/kube-system/a/b",
];

pub async fn points(world: &World) -> Vec<Point> {
    vec![
        Point::of(
            "A1",
            "The API refuses who has no identity",
            refused(world, world.port, &API).await,
            "Remove role bindings of system:anonymous and system:unauthenticated, or start with an AuthenticationConfiguration with anonymous.enabled: false",
        ),
        Point::of(
            "A2",
            "The API refuses a wrong token",
            wrong_token(world).await,
            "See --authentication-config and the token webhook",
        ),
        Point::of(
            "A3",
            "The API has no profiling handlers",
            absent(world).await,
            "Whatever serves these paths, an APIService or a proxy in front, should not",
        ),
        Point::of(
            "A4",
            "The API's certificate is the cluster's",
            trusted(world, world.port).await,
            "Renew the kubeconfig, and look for what terminates TLS in front of the server",
        ),
        Point::of(
            "A5",
            "The API speaks TLS 1.2 and 1.3 only",
            versions(world, world.port).await,
            "Look for what terminates TLS in front of the server",
        ),
        Point::of(
            "K1",
            "The kubelet refuses who has no identity",
            refused(world, world.kubelet_port, &KUBELET).await,
            "Start without anonymous access to the kubelet",
        ),
        Point::of(
            "K2",
            "The kubelet's certificate is the cluster's",
            trusted(world, world.kubelet_port).await,
            "Approve the kubelet's request for a serving certificate",
        ),
        Point::of(
            "K3",
            "The kubelet speaks TLS 1.2 and 1.3 only",
            versions(world, world.kubelet_port).await,
            "Look for what terminates TLS in front of the kubelet",
        ),
        Point::of(
            "K4",
            "There are no ports without authentication",
            closed(world, &[10255, 8080, 4194, 10248, 2379, 2380]).await,
            "Find out what listens there: ss -ltnp",
        ),
    ]
}

fn address(world: &World, port: u16) -> String {
    match world.host.contains(':') {
        true => format!("[{}]:{port}", world.host),
        false => format!("{}:{port}", world.host),
    }
}

async fn get(world: &World, port: u16, path: &str, token: Option<&str>, trust: Trust<'_>) -> anyhow::Result<u16> {
    let target = Target {
        address: address(world, port),
        host: address(world, port),
        tls: Some(ClientTls::to(ClientTls::config(trust, None)?, &world.host)?),
    };
    let mut request = Request::get(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let sent = target.send(request.body(Body::empty())?);
    let answer = tokio::time::timeout(PATIENCE, sent).await.context("no answer")??;
    Ok(answer.status().as_u16())
}

async fn refused(world: &World, port: u16, paths: &[&str]) -> Result<String, Seen> {
    let mut open = Vec::new();
    for path in paths {
        let code = get(world, port, path, None, Trust::Anyone).await?;
        if !matches!(code, 401 | 403 | 404) {
            open.push(format!("GET {path}: {code}"));
        }
    }
    let mut shown = Vec::new();
    for path in PUBLIC.iter().filter(|_| port == world.port) {
        if get(world, port, path, None, Trust::Anyone).await? == 200 {
            shown.push((*path).to_string());
        }
    }
    let public = if shown.is_empty() {
        String::new()
    } else {
        format!("; open are {}", shown.join(", "))
    };
    match open.is_empty() {
        true => Ok(format!("{} paths are refused{public}", paths.len())),
        false => Err(wrong(some(&open))),
    }
}

async fn wrong_token(world: &World) -> Result<String, Seen> {
    match get(
        world,
        world.port,
        "/api/v1/namespaces",
        Some("not.a.token"),
        Trust::Anyone,
    )
    .await?
    {
        401 => Ok("401".into()),
        code => Err(wrong(format!("{code}"))),
    }
}

async fn absent(world: &World) -> Result<String, Seen> {
    let mut open = Vec::new();
    for path in ["/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/flags/v"] {
        let (code, _) = world.ask(http::Method::GET, path, &[], None).await?;
        if code != 404 {
            open.push(format!("{path}: {code}"));
        }
    }
    match open.is_empty() {
        true => Ok("404 to the administrator too".into()),
        false => Err(wrong(some(&open))),
    }
}

async fn trusted(world: &World, port: u16) -> Result<String, Seen> {
    match get(world, port, "/healthz", None, Trust::Bundle(&world.ca_pem)).await {
        Ok(_) => Ok(format!(
            "{} is vouched for by the cluster's authority",
            address(world, port)
        )),
        Err(e) => Err(wrong(format!("{e:#}"))),
    }
}

async fn handshake(world: &World, port: u16, version: &'static rustls::SupportedProtocolVersion) -> anyhow::Result<()> {
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Servers::anyone())
        .with_no_client_auth();
    let name = ServerName::try_from(world.host.clone())?;
    let stream = TcpStream::connect(address(world, port)).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    Ok(())
}

/// A hello of an old version, with the suites of its time: RSA, CBC, 3DES and RC4. Whether the server agrees.
async fn old(world: &World, port: u16, minor: u8) -> anyhow::Result<bool> {
    let suites: [u8; 12] = [0xc0, 0x14, 0xc0, 0x13, 0x00, 0x35, 0x00, 0x2f, 0x00, 0x0a, 0x00, 0x05];
    let mut hello = vec![3, minor];
    hello.extend([7u8; 32]);
    hello.push(0);
    hello.extend([0, suites.len() as u8]);
    hello.extend(suites);
    hello.extend([1, 0]);
    let mut message = vec![1, 0, 0, hello.len() as u8];
    message.extend(hello);
    let mut record = vec![22, 3, 1, 0, message.len() as u8];
    record.extend(message);
    let mut stream = TcpStream::connect(address(world, port)).await?;
    stream.write_all(&record).await?;
    let mut head = [0; 1];
    match tokio::time::timeout(PATIENCE, stream.read(&mut head)).await {
        Ok(Ok(1)) => Ok(head[0] == 22),
        _ => Ok(false),
    }
}

async fn versions(world: &World, port: u16) -> Result<String, Seen> {
    for (version, name) in [(&rustls::version::TLS13, "1.3"), (&rustls::version::TLS12, "1.2")] {
        if let Err(e) = handshake(world, port, version).await {
            return Err(anyhow::anyhow!("no handshake by TLS {name}: {e:#}").into());
        }
    }
    let mut spoken = Vec::new();
    for (minor, name) in [
        (0, "SSL 3.0"),
        (1, "TLS 1.0"),
        (2, "TLS 1.1"),
        (3, "TLS 1.2 with CBC, 3DES or RC4"),
    ] {
        if old(world, port, minor).await? {
            spoken.push(name.to_string());
        }
    }
    match spoken.is_empty() {
        true => Ok("handshakes by 1.3 and 1.2; older ones and old suites are refused".into()),
        false => Err(wrong(some(&spoken))),
    }
}

async fn closed(world: &World, ports: &[u16]) -> Result<String, Seen> {
    let mut open = Vec::new();
    for port in ports.iter().filter(|p| **p != world.port && **p != world.kubelet_port) {
        let tried = TcpStream::connect(address(world, *port));
        if matches!(tokio::time::timeout(PATIENCE, tried).await, Ok(Ok(_))) {
            open.push(port.to_string());
        }
    }
    match open.is_empty() {
        true => Ok("nothing listens at the ports known for it".into()),
        false => Err(super::doubtful(format!("something listens at {}", open.join(", ")))),
    }
}
