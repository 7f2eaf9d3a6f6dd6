//! A cluster put together: which component gets what, as in the program, but over the store in memory and fake machines.

use crate::history::History;
use crate::link::Link;
use crate::node::{Node, Size};
use crate::objects::{self, Event, node_ready, taints};
use crate::part::Part;
use crate::secs;
use crate::server::Server;
use jiff::Timestamp;
use keelson_apiserver::UserInfo;
use keelson_client::discovery::preferred_resources;
use keelson_client::{ApiObject, Kind, Objects, Patch, ResourceId, Rest};
use keelson_clock::Simulation;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The date at which every cluster starts.
pub const EPOCH: &str = "2030-01-01T00:00:00Z";

/// Which cluster.
pub struct Builder {
    nodes: usize,
    size: Size,
    controllers: Vec<String>,
    scheduler: bool,
    profiles: keelson_scheduler::Config,
    seed: u64,
}

impl Builder {
    /// How many nodes there are at the start: `n0`, `n1`, …
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }
    /// How large nodes are, if nothing else is said.
    pub fn size(mut self, size: Size) -> Self {
        self.size = size;
        self
    }
    /// Which controllers run: `*`, names, or `-name`. None at all: an empty list.
    pub fn controllers(mut self, names: &[&str]) -> Self {
        self.controllers = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }
    /// How the scheduler decides: a `KubeSchedulerConfiguration`.
    pub fn scheduling(mut self, configuration: &str) -> Self {
        let read = serde_saphyr::from_str(configuration).expect("YAML");
        self.profiles = keelson_scheduler::configuration::read(read).expect("a configuration");
        self
    }
    pub fn without_scheduler(mut self) -> Self {
        self.scheduler = false;
        self
    }

    /// Starts everything and waits until each node takes pods. The runtime has to have one thread and a paused clock.
    pub async fn start(self) -> Cluster {
        let log = logging();
        let epoch: Timestamp = EPOCH.parse().expect("a date");
        let clock = keelson_clock::simulate(epoch);
        let server = Server::start().await;
        let stop = CancellationToken::new();
        let rest = server.administrator();
        let mut cluster = Cluster {
            server,
            rest,
            names: self.controllers,
            controllers: None,
            scheduler: None,
            profiles: self.profiles,
            nodes: BTreeMap::new(),
            size: self.size,
            seed: self.seed,
            start: Instant::now(),
            stop,
            _clock: clock,
            _log: log,
        };
        cluster.start_controllers();
        if self.scheduler {
            cluster.start_scheduler();
        }
        for n in 0..self.nodes {
            cluster.join(&format!("n{n}"), cluster.size.clone(), &[]);
        }
        for n in 0..self.nodes {
            cluster.node_is_up(&format!("n{n}")).await;
        }
        cluster
    }
}

/// A running cluster. It ends when it is dropped.
pub struct Cluster {
    /// Requests of an administrator.
    pub rest: Rest,
    pub server: Server,
    /// Which controllers run.
    names: Vec<String>,
    /// None while they are dead, or are not to run.
    pub controllers: Option<Part>,
    pub scheduler: Option<Part>,
    profiles: keelson_scheduler::Config,
    nodes: BTreeMap<String, Node>,
    size: Size,
    seed: u64,
    start: Instant,
    stop: CancellationToken,
    _clock: Simulation,
    _log: Option<tracing::subscriber::DefaultGuard>,
}

impl Cluster {
    pub fn builder() -> Builder {
        let given = std::env::var("KEELSON_SEED").ok().and_then(|s| s.parse().ok());
        Builder {
            nodes: 0,
            size: Size::default(),
            controllers: vec!["*".into()],
            scheduler: true,
            profiles: keelson_scheduler::Config::default(),
            seed: given.unwrap_or_else(rand::random),
        }
    }

    /// From which everything random follows.
    pub fn seed(&self) -> u64 {
        self.seed
    }
    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Starts the controllers that the cluster is to have.
    pub fn start_controllers(&mut self) {
        if !self.names.is_empty() {
            self.controllers = Some(Part::controllers(&self.server, &self.names, None));
        }
    }

    /// Other controllers, which run for leadership.
    pub fn candidate(&self, identity: &str) -> Part {
        Part::controllers(&self.server, &["*".into()], Some(identity))
    }

    /// Add-ons of a server of this name, which runs for leadership if it has an identity.
    pub fn addons(&self, server: &str, identity: Option<&str>) -> Part {
        Part::addons(&self.server, server, Vec::new(), identity)
    }

    pub fn start_scheduler(&mut self) {
        self.scheduler = Some(Part::scheduler(&self.server, &self.profiles, self.seed));
    }

    pub fn kill_controllers(&mut self) {
        if let Some(part) = self.controllers.take() {
            part.kill();
        }
    }

    pub fn kill_scheduler(&mut self) {
        if let Some(part) = self.scheduler.take() {
            part.kill();
        }
    }

    /// Another node, without waiting for it.
    pub fn join(&mut self, name: &str, size: Size, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let node = Node::start(&self.server, name, self.nodes.len(), &size, labels);
        self.nodes.insert(name.to_owned(), node);
    }

    /// Another node, and it takes pods.
    pub async fn add_node(&mut self, name: &str) {
        self.join(name, self.size.clone(), &[]);
        self.node_is_up(name).await;
    }

    pub async fn node_is_up(&self, name: &str) {
        let up = |n: &objects::Node| node_ready(n) == "True" && taints(n).is_empty();
        self.until("", name, secs(60), "is ready", up).await;
    }

    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.get(name);
        node.unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// Ends a node's kubelet; its containers go on.
    pub async fn halt(&mut self, name: &str) {
        self.nodes.get_mut(name).expect("a node of this name").halt().await;
    }

    pub fn resume(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).expect("a node of this name");
        node.resume(&self.server);
    }

    pub fn kube(&self) -> kube::Client {
        self.rest.client().clone()
    }

    /// Requests under another identity, for example `system:serviceaccount:default:default`.
    pub fn rest_as(&self, identity: &str) -> Rest {
        Rest::new(
            Link::default().client(&self.server, UserInfo::from_identity(identity)),
            "testkit",
        )
    }

    pub fn objects<K: Kind>(&self) -> Objects<K> {
        Objects::new(&self.rest)
    }

    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> K {
        let got = self.objects().get(namespace, name).await;
        got.unwrap_or_else(|e| panic!("{} {namespace}/{name}: {e}", K::RESOURCE))
    }

    pub async fn list<K: Kind>(&self, namespace: &str) -> Vec<K> {
        let listed = self.objects().list(namespace, "", "").await;
        listed.unwrap_or_else(|e| panic!("{} in {namespace}: {e}", K::RESOURCE))
    }

    /// Deletes with the given propagation (`None`: the kind's own).
    pub async fn delete<K: Kind>(&self, namespace: &str, name: &str, propagation: Option<&str>) {
        let options = keelson_client::delete_options(propagation, None, None);
        let deleted = self.objects::<K>().delete(namespace, name, &options).await;
        deleted.unwrap_or_else(|e| panic!("deleting {} {namespace}/{name}: {e}", K::RESOURCE));
    }

    /// A merge patch.
    pub async fn patch<K: Kind>(&self, namespace: &str, name: &str, body: Value) -> K {
        let patched = self.objects().patch(namespace, name, Patch::Merge(&body)).await;
        patched.unwrap_or_else(|e| panic!("patching {} {namespace}/{name}: {e}", K::RESOURCE))
    }

    /// Applies the objects of one or more YAML documents, in order, by server-side apply.
    pub async fn apply(&self, yaml: &str) {
        self.try_apply(yaml).await.unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    }

    /// The same; the server may refuse.
    pub async fn try_apply(&self, yaml: &str) -> keelson_client::Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
        let known = preferred_resources(&self.rest).await?.found;
        for mut object in documents {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
            let is_it = |id: &ResourceId| id.kind == kind.as_str() && id.api_version() == version;
            let resource = known.iter().map(|r| &r.id).find(|id| is_it(id));
            let resource = resource.unwrap_or_else(|| panic!("the server has no kind {kind} in {version}"));
            if resource.namespaced && object["metadata"]["namespace"].is_null() {
                object["metadata"]["namespace"] = "default".into();
            }
            let (namespace, name) = (
                text(&object["metadata"]["namespace"]),
                text(&object["metadata"]["name"]),
            );
            let patch = Patch::Apply {
                body: &object,
                manager: "testkit",
                force: true,
            };
            self.rest.patch_raw(resource, &namespace, &name, "", &patch).await?;
        }
        Ok(())
    }

    /// Records all changes of a kind from now on; an empty namespace means all.
    pub async fn history<K: Kind>(&self, namespace: &str) -> History<K> {
        History::start(&self.rest, namespace, &self.stop).await
    }

    /// The same as another server's watchers see it: also while the cluster's own is dead.
    pub async fn history_at<K: Kind>(&self, server: &Server, namespace: &str) -> History<K> {
        History::start(&server.administrator(), namespace, &self.stop).await
    }

    /// Events so far, the latest last.
    pub async fn events(&self, namespace: &str) -> Vec<Event> {
        let mut events = self.list::<Event>(namespace).await;
        events.sort_by_key(|e| (e.last_timestamp.clone().map(|t| t.0), e.name().to_owned()));
        events
    }

    /// Lets virtual time pass.
    pub async fn sleep(&self, time: Duration) {
        tokio::time::sleep_until(Instant::now() + time).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.kill();
        if std::thread::panicking() {
            eprintln!("to run this again: KEELSON_SEED={}", self.seed);
        }
    }
}

/// What the components tell, if it is asked for: `KEELSON_LOG=debug`.
fn logging() -> Option<tracing::subscriber::DefaultGuard> {
    use tracing_subscriber::util::SubscriberInitExt;
    let filter = std::env::var("KEELSON_LOG").ok()?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .without_time();
    Some(subscriber.set_default())
}
