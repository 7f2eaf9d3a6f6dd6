//! A server with its API on loopback and an agent's half of a machine: real connections, real certificates, and a calendar that is
//! moved on by hand. Timers are the machine's: nothing here waits for a date.

use crate::addons::{Scope, grants};
use crate::agent::join;
use crate::agent::keys::{Purpose, Slot, Wanted, slots};
use crate::agent::servers::{Link, Servers};
use crate::agent::told::Told;
use crate::agent::trust::Trusted;
use crate::authorities::{Authorities, Front, Own};
use crate::components::controller_manager;
use crate::issue;
use crate::supervise::Supervisor;
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use keelson_apiserver::connect::{ClientTls, Target, Trust};
use keelson_apiserver::serve::tls::{self, ServingCert};
use keelson_apiserver::{ApiServer, Body, Config, UserInfo};
use keelson_client::ClientFactory;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_clock::Simulation;
use keelson_measure::Measures;
use keelson_pki::{BootstrapToken, Kubeconfig, Pki, San, authority, verify};
use keelson_store::Memory;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const NODE: &str = "n1";
/// What the API server asks the node's kubelet for.
pub const LOG: &str = "/api/v1/namespaces/default/pods/p/log";
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so; what it says else is in the failure.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if tokio::time::Instant::now() > until => panic!("{what}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// The calendar of this thread.
pub struct Calendar(Option<Simulation>);

impl Calendar {
    pub fn at(date: &str) -> Calendar {
        Calendar(Some(keelson_clock::simulate(date.parse().unwrap())))
    }
    pub fn pass(&mut self, time: SignedDuration) {
        let then = keelson_clock::now() + time;
        // One is over before the next begins.
        self.0 = None;
        self.0 = Some(keelson_clock::simulate(then));
    }
}

pub struct World {
    pub dir: PathBuf,
    pub authorities: Arc<Authorities>,
    _api: Arc<ApiServer>,
    pub port: u16,
    pub rest: Rest,
    _running: Supervisor,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("keelson-authorities-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

pub fn own(dir: &Path, port: u16) -> Own {
    Own {
        name: "s1".into(),
        address: "127.0.0.1".into(),
        url: format!("https://127.0.0.1:{port}"),
        kubeconfig: dir.join("admin.kubeconfig"),
        etcd: None,
    }
}

impl World {
    pub async fn start(name: &str) -> World {
        let dir = scratch(name);
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let authorities = Authorities::new(own(&dir, port), Pki::open(&dir).unwrap(), None).unwrap();
        let current = authorities.current().clone();
        let config = Config {
            advertise_address: Ipv4Addr::LOCALHOST.into(),
            advertise_port: port,
            kubelet_ca_pem: Some(current.get().ca.bundle_pem()),
            authorities: Some(Arc::new(Front(authorities.clone()))),
            ..Config::from_pki(Pki::open(&dir).unwrap()).unwrap()
        };
        let find = |pki: &Pki| pki.apiserver([10, 96, 0, 1].into(), "cluster.local", &[San::parse("127.0.0.1")]);
        let files = find(&current.get()).unwrap();
        let cert = ServingCert::new(&files.cert_pem, &files.key_pem).unwrap();
        let api = Arc::new(ApiServer::new(config, Memory::new()).unwrap());
        let stop = CancellationToken::new();
        let (serving, shown, until) = (api.clone(), cert.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(socket, shown, until).await.unwrap() });
        api.keep_certificates(current.clone(), find, cert);
        authorities.keep().unwrap();
        api.ready().await;
        let rest = Rest::new(api.client(UserInfo::from_identity("system:apiserver")), "test");
        let there = |scope| !matches!(scope, Scope::In(keelson_gateway::NAMESPACE));
        for grant in grants().into_iter().filter(|grant| there(grant.scope)) {
            crate::addons::give(&rest, grant).await.unwrap();
        }
        authorities.attach(&api, rest.clone());
        let mut running = Supervisor::default();
        let names = [
            "certificate-approver",
            "kubelet-serving-approver",
            "certificate-signer",
            "root-ca-certificate-publisher",
        ];
        let settings = keelson_controllers::Config {
            controllers: names.map(str::to_string).into(),
            ..keelson_controllers::Config::default()
        };
        controller_manager::following(&mut running, api.clone(), settings, current);
        World {
            dir,
            authorities,
            _api: api,
            port,
            rest,
            _running: running,
            stop,
        }
    }

    /// What the server does at its due dates, and whenever somebody moves the calendar on.
    pub async fn look(&self) {
        self.authorities.look().await.unwrap();
        self.authorities.take().unwrap();
    }

    /// By a kubeconfig on disk, in a connection of its own: the answer's code.
    pub async fn code(&self, kubeconfig: &Path, path: &str) -> Result<u16, String> {
        let own = Kubeconfig::read(kubeconfig).unwrap();
        let config = ClientTls::config(Trust::Bundle(&own.ca_pem), own.certificate()).unwrap();
        let address = format!("127.0.0.1:{}", self.port);
        let target = Target {
            host: address.clone(),
            address,
            tls: Some(ClientTls::to(config, "127.0.0.1").unwrap()),
        };
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let answer = target.send(request).await.map_err(|e| format!("{e:#}"))?;
        let code = answer.status().as_u16();
        answer.into_body().collect().await.map_err(|e| e.to_string())?;
        Ok(code)
    }

    pub fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// What pods are told to trust.
    pub async fn published(&self) -> String {
        let map = Objects::<ConfigMap>::new(&self.rest)
            .get("default", "kube-root-ca.crt")
            .await;
        map.ok()
            .and_then(|m| m.data)
            .and_then(|mut d| d.remove("ca.crt"))
            .unwrap_or_default()
    }
}

/// An agent's half of a machine: its certificates, whom it trusts, and a kubelet that tells who is let in.
pub struct Machine {
    trusted: Arc<Trusted>,
    client: Arc<Slot>,
    serving: Arc<Slot>,
    wanted: Wanted,
    link: Link,
    own: Rest,
    admin: Rest,
    stop: CancellationToken,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Machine {
    pub async fn join(world: &World) -> Machine {
        let dir = world.dir.join("agent");
        let token = BootstrapToken::generate();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": token.secret_name(), "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": token.id, "token-secret": token.secret, "usage-bootstrap-authentication": "true",
                "auth-extra-groups": "system:bootstrappers:keelson:default-node-token",
            },
        }))
        .unwrap();
        Objects::<Secret>::new(&world.rest).create(&secret).await.unwrap();
        let hash = authority::fingerprint(world.authorities.current().get().ca.cert_pem()).unwrap();
        let servers = Servers::open(
            &dir.join("servers.json"),
            Some(&format!("https://127.0.0.1:{}", world.port)),
        )
        .unwrap();
        let file = dir.join("pki/ca.crt");
        let ca = join::authority(&file, &servers, Some(&hash)).await.unwrap();
        let trusted = Trusted::new(&file, ca).unwrap();
        let (client, serving) = slots(&dir.join("pki"));
        let wanted = Wanted {
            node: NODE.into(),
            sans: Vec::new(),
            trusted: trusted.clone(),
        };
        join::certificate(&servers, &token, &client, &wanted).await.unwrap();
        let own = format!("system:node:{NODE}");
        let tls = join::trusting(trusted.roots(), Some(client.clone())).unwrap();
        let link = Link::new(servers, tls, &own).unwrap();
        let rest = Rest::new(link.client(&own), "test");
        let (port, stop) = (kubelet(&serving, &trusted).await, CancellationToken::new());
        node(&world.rest, port).await;
        let machine = Machine {
            trusted: trusted.clone(),
            client,
            serving,
            wanted,
            link,
            own: rest.clone(),
            admin: world.rest.clone(),
            stop: stop.clone(),
        };
        tokio::spawn(async move { trusted.follow(rest, NODE.into(), stop).await.unwrap() });
        machine.renew().await;
        machine
    }

    /// Waits until it trusts these.
    pub async fn knows(&self, bundle: &str) {
        eventually("the machine is told", async || match self.trusted.pem() == bundle {
            true => Ok(()),
            false => Err(self.trusted.pem()),
        })
        .await;
    }

    /// What its certificates' keepers do at their due dates: both are good afterwards, and of the authority that signs.
    pub async fn renew(&self) {
        let mut serving = self.wanted.clone();
        serving.sans = vec![San::Dns(NODE.into()), San::Ip(Ipv4Addr::LOCALHOST.into())];
        let renewed = || self.link.renew();
        self.keep(&self.client, Purpose::Client, &self.wanted, renewed).await;
        self.keep(&self.serving, Purpose::Serving, &serving, || ()).await;
    }

    /// A sign of life, over its own connection.
    pub async fn beat(&self) {
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": NODE, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40},
        }))
        .unwrap();
        let transitions = |live: &mut Lease| {
            let spec = live.spec.get_or_insert_default();
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
            true
        };
        let leases = Objects::<Lease>::new(&self.own);
        // A connection may just have been given up for a new certificate.
        eventually("a sign of life", async || {
            let told = leases.create_or_update(&lease, transitions).await;
            told.map(drop).map_err(|e| e.to_string())
        })
        .await;
    }

    /// Until the certificate is good for some time.
    async fn keep(&self, slot: &Arc<Slot>, purpose: Purpose, wanted: &Wanted, renewed: impl Fn()) {
        let stop = CancellationToken::new();
        let told = Told::new(&Measures::default(), purpose, slot);
        let good = eventually("a certificate is renewed", async || {
            match slot.load(wanted).unwrap() {
                Some(due) if due > keelson_clock::now().as_second() => return Ok(()),
                _ => approve(&self.admin).await,
            }
            Err(format!("{purpose:?} is not good yet"))
        });
        tokio::select! {
            done = slot.keep(&self.own, purpose, wanted, &told, renewed, stop) => panic!("{done:?}"),
            () = good => {}
        }
    }
}

/// What the cluster doesn't approve by itself, since the address is no one machine's.
async fn approve(admin: &Rest) {
    let all = Objects::<CertificateSigningRequest>::new(admin);
    for request in all.list("", "", "").await.unwrap() {
        let status = request.status.unwrap_or_default();
        if request.spec.signer_name == "kubernetes.io/kubelet-serving" && status.conditions.is_none_or(|c| c.is_empty())
        {
            let name = request.metadata.name.unwrap_or_default();
            issue::approve(admin, &name, "a test").await.unwrap();
        }
    }
}

async fn node(rest: &Rest, port: u16) {
    let made: Node = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
    let nodes = Objects::<Node>::new(rest);
    let mut made = nodes.create(&made).await.unwrap();
    made.status = serde_json::from_value(json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": NODE}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }))
    .unwrap();
    nodes.update_status(&made).await.unwrap();
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": "default", "namespace": "default"}})).unwrap();
    Objects::<ServiceAccount>::new(rest).create(&account).await.unwrap();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]},
    }))
    .unwrap();
    Objects::<Pod>::new(rest).create(&pod).await.unwrap();
}

/// Answers whom it knows, and nobody else.
async fn kubelet(serving: &Arc<Slot>, trusted: &Arc<Trusted>) -> u16 {
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verify::tls::AnyClient::hinting(&trusted.roots().now()))
        .with_cert_resolver(serving.clone());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, roots) = (socket.local_addr().unwrap().port(), trusted.roots());
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let code = match verify::tls::client(shown, &roots.now()) {
                Ok(who) if who.subject.common_name == "kube-apiserver-kubelet-client" => "200 OK",
                _ => "401 Unauthorized",
            };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

/// Everything of a server's directory that has a date is good now.
pub fn all_good(dir: &Path) {
    let now = keelson_clock::now();
    for entry in std::fs::read_dir(dir.join("pki")).unwrap() {
        let path = entry.unwrap().path();
        // That by which the one before vouches for this one ends with it, and is then shown no more.
        let introduces = path.to_string_lossy().ends_with("-cross.crt");
        if path.extension().is_some_and(|e| e == "crt") && !introduces {
            let text = std::fs::read_to_string(&path).unwrap();
            let facts = authority::read_certificate(&text).unwrap();
            let ends = Timestamp::from_second(facts.not_after).unwrap();
            assert!(ends > now, "{} ended at {ends}, it is {now}", path.display());
        }
    }
}

pub fn value(answer: Result<Value, keelson_apiserver::authorities::Refused>) -> Result<Value, String> {
    answer.map_err(|why| format!("{why:?}"))
}
