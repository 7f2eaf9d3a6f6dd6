//! Follows nodes and pods, and plays with each the stage that is next.

use super::spec::{Kind, Stage, Step};
use super::template::Functions;
use super::{ANNOTATION, FAKE, choose, lease};
use crate::fleet::{nodes_range, number_of, pods_range};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::Kind as _;
use keelson_client::events::{EventType, reference};
use keelson_client::store::parse_revision;
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, ObjectKey, Outcome, PartialObject, Patch, Reconcile, Recorder,
    ResourceId, Rest, WorkQueue, delete_options, is_not_found,
};
use keelson_kubelet::fake::addresses::Addresses;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Keys that are worked on at a time, of each kind.
const WORKERS: usize = 16;
const BY_NODE: &str = "node";

/// What is next for an object as it is.
struct Next {
    revision: String,
    stage: usize,
    due: Instant,
    /// Nothing more comes before the object has changed.
    played: bool,
    /// Which revision the object had last by it: one before isn't decided about any more.
    wrote: u64,
}

struct Player {
    rest: Rest,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    stages: Vec<Stage>,
    start: String,
    next: Mutex<HashMap<(Kind, ObjectKey), Next>>,
    addresses: Mutex<Given>,
    leases: Mutex<HashMap<String, DropGuard>>,
    lease: Duration,
}

/// Addresses given out.
#[derive(Default)]
struct Given {
    /// A number for each node, by which it has its own.
    nodes: HashMap<String, usize>,
    numbers: BTreeSet<usize>,
    /// All numbers before it are given.
    first: usize,
    ranges: HashMap<String, (String, Addresses)>,
    pods: HashMap<String, Vec<String>>,
}

/// Plays until it is told to stop.
pub async fn run(rest: &Rest, nodes: &Informer<Node>, stages: Vec<Stage>, lease: Duration, stop: CancellationToken) {
    let options = InformerOptions {
        fields: "spec.nodeName!=".into(),
        ..InformerOptions::default()
    };
    let pods = Informer::<Pod>::start(rest, options, &stop);
    pods.store().add_index(BY_NODE, |pod| vec![node_of(pod).to_owned()]);
    let player = Arc::new(Player {
        rest: rest.clone(),
        recorder: Recorder::start(rest, "kwok_controller", "", &stop),
        nodes: nodes.clone(),
        pods: pods.clone(),
        stages,
        start: now(),
        next: Mutex::default(),
        addresses: Mutex::default(),
        leases: Mutex::default(),
        lease,
    });
    let of_nodes = Controller::new("stages of nodes").input(nodes).workers(WORKERS);
    let of_pods = Controller::new("stages of pods")
        .input(nodes)
        .input(&pods)
        .workers(WORKERS);
    follow_nodes(&player, of_nodes.queue(), of_pods.queue(), &stop);
    follow_pods(&player, of_pods.queue());
    let turn = |kind| {
        Arc::new(Turn {
            kind,
            player: player.clone(),
        })
    };
    tokio::join!(
        of_nodes.run(turn(Kind::Node), stop.clone()),
        of_pods.run(turn(Kind::Pod), stop.clone())
    );
}

fn node_of(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn is_played(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(ANNOTATION)).is_some_and(|v| v == FAKE)
}

fn addresses(node: &Node) -> impl Iterator<Item = &String> {
    let all = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    all.filter(|a| a.type_ == "InternalIP").map(|a| &a.address)
}

/// As objects have times.
fn now() -> String {
    keelson_clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn follow_nodes(
    player: &Arc<Player>,
    queue: Arc<WorkQueue<ObjectKey>>,
    pods: Arc<WorkQueue<ObjectKey>>,
    stop: &CancellationToken,
) {
    let (nodes, player, stop) = (player.nodes.clone(), Arc::downgrade(player), stop.clone());
    nodes.on_change(move |change| {
        let Some(player) = player.upgrade() else { return };
        let node = change.object();
        if change.is_deleted() {
            player.addresses.lock().forget(node.name());
        } else if let Some(number) = addresses(node).find_map(|a| number_of(a)) {
            player.addresses.lock().take(node.name(), number);
        }
        if change.is_deleted() || !is_played(node) {
            player.leases.lock().remove(node.name());
        } else if !player.leases.lock().contains_key(node.name()) {
            let life = stop.child_token();
            let (name, uid) = (node.name().to_owned(), node.uid().to_owned());
            tokio::spawn(lease::keep(
                player.rest.clone(),
                name.clone(),
                uid,
                player.lease,
                life.clone(),
            ));
            player.leases.lock().insert(name, life.drop_guard());
            // They came before it, or before it was to be played.
            let here = player.pods.store().by_index(BY_NODE, node.name());
            here.iter().for_each(|pod| pods.add(pod.key()));
        }
        queue.add(node.key());
    });
}

fn follow_pods(player: &Arc<Player>, queue: Arc<WorkQueue<ObjectKey>>) {
    let (pods, player) = (player.pods.clone(), Arc::downgrade(player));
    pods.on_change(move |change| {
        let Some(player) = player.upgrade() else { return };
        if change.is_deleted() {
            player.addresses.lock().pods.remove(change.object().uid());
        }
        queue.add(change.object().key());
    });
}

struct Turn {
    kind: Kind,
    player: Arc<Player>,
}

#[async_trait]
impl Reconcile for Turn {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let player = &self.player;
        let slot = (self.kind, key.clone());
        let Some((object, node)) = player.object(self.kind, key)? else {
            player.next.lock().remove(&slot);
            return Ok(Outcome::Done);
        };
        let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let planned = match player.next.lock().get(&slot) {
            Some(next) if next.wrote > parse_revision(revision) => return Ok(Outcome::Done),
            Some(next) if next.revision != revision => None,
            Some(next) if next.played => return Ok(Outcome::Done),
            Some(next) => Some((next.stage, next.due)),
            None => None,
        };
        let Some((stage, due)) = planned.or_else(|| player.plan(self.kind, &object)) else {
            player.next.lock().remove(&slot);
            return Ok(Outcome::Done);
        };
        let wait = due.saturating_duration_since(Instant::now());
        let next = |played, wrote| Next {
            revision: revision.to_owned(),
            stage,
            due,
            played,
            wrote,
        };
        player.next.lock().insert(slot.clone(), next(false, 0));
        if !wait.is_zero() {
            return Ok(Outcome::After(wait));
        }
        let wrote = player.play(self.kind, &player.stages[stage], &object, &node).await?;
        player.next.lock().insert(slot, next(true, wrote));
        Ok(Outcome::Done)
    }
}

impl Player {
    /// The object and its node's name, where its node is one of those that are played.
    fn object(&self, kind: Kind, key: &ObjectKey) -> serde_json::Result<Option<(Value, String)>> {
        let value = |json: Vec<u8>| serde_json::from_slice::<Value>(&json);
        Ok(match kind {
            Kind::Node => match self.nodes.store().get_key(key).filter(|n| is_played(n)) {
                Some(node) => Some((value(node.encode()?)?, node.name().to_owned())),
                None => None,
            },
            Kind::Pod => match self.pods.store().get_key(key) {
                Some(pod) => {
                    let node = node_of(&pod);
                    match self.nodes.store().get("", node).filter(|n| is_played(n)) {
                        Some(_) => Some((value(pod.encode()?)?, node.to_owned())),
                        None => None,
                    }
                }
                None => None,
            },
        })
    }

    fn plan(&self, kind: Kind, object: &Value) -> Option<(usize, Instant)> {
        let (places, stages): (Vec<usize>, Vec<&Stage>) =
            self.stages.iter().enumerate().filter(|(_, s)| s.kind == kind).unzip();
        let chance = (rand::random::<f64>(), rand::random::<f64>());
        let (nth, wait) = choose::choose(&stages, object, keelson_clock::now(), chance)?;
        Some((places[nth], Instant::now() + wait))
    }

    /// Says which revision the object has after it.
    async fn play(&self, kind: Kind, stage: &Stage, object: &Value, node: &str) -> anyhow::Result<u64> {
        tracing::debug!(stage = stage.name, name = %object["metadata"]["name"], "played");
        let mut wrote = 0;
        for step in &stage.steps {
            match self.step(kind, step, object, node).await {
                Err(error) if error.downcast_ref::<keelson_client::Error>().is_some_and(is_not_found) => break,
                Err(error) => return Err(error.context(format!("the stage {}", stage.name))),
                Ok(revision) => wrote = wrote.max(revision),
            }
        }
        Ok(wrote)
    }

    /// Says which revision the object has by it; 0: it has what it had.
    async fn step(&self, kind: Kind, step: &Step, object: &Value, node: &str) -> anyhow::Result<u64> {
        let resource: ResourceId = match kind {
            Kind::Node => Node::RESOURCE,
            Kind::Pod => Pod::RESOURCE,
        };
        let meta = &object["metadata"];
        let (namespace, name) = (
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default(),
        );
        match step {
            Step::Event {
                warning,
                reason,
                message,
            } => {
                let about = reference(&resource, &serde_json::from_value(meta.clone())?);
                let kind = if *warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                };
                self.recorder.event_for(&about, kind, reason, message.clone());
            }
            Step::Finalizers { add, remove, empty } => {
                let have: Vec<String> = serde_json::from_value(meta["finalizers"].clone()).unwrap_or_default();
                let goes = |f: &&String| (*empty || remove.contains(f)) && !add.contains(f);
                let gone: Vec<&String> = have.iter().filter(goes).collect();
                let new: Vec<&String> = add.iter().filter(|f| !have.contains(f)).collect();
                if !gone.is_empty() || !new.is_empty() {
                    // Only the difference: others put theirs there, and take them away, at the same time.
                    let body = json!({"metadata": {
                        "uid": meta["uid"], "finalizers": new, "$deleteFromPrimitiveList/finalizers": gone,
                    }});
                    let patch = Patch::Strategic(&body);
                    return written(&self.rest.patch_raw(&resource, namespace, name, "", &patch).await?);
                }
            }
            Step::Delete => {
                let mut options = delete_options(None, meta["uid"].as_str(), None);
                options.grace_period_seconds = Some(0);
                self.rest.delete_raw(&resource, namespace, name, &options).await?;
            }
            Step::Patch {
                subresource,
                root,
                template,
                strategic,
            } => {
                let world = World { player: self, node };
                let value = template.value(object, &world).map_err(anyhow::Error::msg)?;
                let body = if root.is_empty() { value } else { json!({root: value}) };
                let patch = if *strategic {
                    Patch::Strategic(&body)
                } else {
                    Patch::Merge(&body)
                };
                let patched = self.rest.patch_raw(&resource, namespace, name, subresource, &patch);
                return written(&patched.await?);
            }
        }
        Ok(0)
    }
}

/// The revision of what a server answered.
fn written(answer: &[u8]) -> anyhow::Result<u64> {
    let object: PartialObject = serde_json::from_slice(answer)?;
    Ok(parse_revision(
        object.metadata.resource_version.as_deref().unwrap_or_default(),
    ))
}

/// What templates ask, for an object of this node.
struct World<'a> {
    player: &'a Player,
    node: &'a str,
}

impl Functions for World<'_> {
    fn now(&self) -> String {
        now()
    }

    fn start_time(&self) -> String {
        self.player.start.clone()
    }

    fn node_name(&self) -> String {
        self.node.to_owned()
    }

    fn node_ips(&self, name: &str) -> Vec<String> {
        let node = self.player.nodes.store().get("", name);
        let told: Vec<String> = node.iter().flat_map(|n| addresses(n)).cloned().collect();
        if !told.is_empty() {
            return told;
        }
        vec![nodes_range(self.player.addresses.lock().number(name)).to_string()]
    }

    fn pod_ips(&self, node: &str, uid: &str) -> Vec<String> {
        let player = self.player;
        let object = player.nodes.store().get("", node);
        let spec = object.as_ref().and_then(|n| n.spec.as_ref());
        let told = spec.and_then(|s| {
            s.pod_cidrs
                .as_ref()
                .filter(|c| !c.is_empty())
                .map(|c| c.join(","))
                .or_else(|| s.pod_cidr.clone())
        });
        let here = player.pods.store().by_index(BY_NODE, node);
        let mut given = player.addresses.lock();
        if let Some(known) = given.pods.get(uid) {
            return known.clone();
        }
        let ranges = told.unwrap_or_else(|| format!("{}/24", pods_range(given.number(node))));
        let mut used: BTreeSet<String> = BTreeSet::new();
        for pod in &here {
            used.extend(pod.status.as_ref().and_then(|s| s.pod_ip.clone()));
            used.extend(given.pods.get(pod.uid()).into_iter().flatten().cloned());
        }
        let entry = given.ranges.entry(node.to_owned()).or_default();
        if entry.0 != ranges {
            *entry = (ranges.clone(), Addresses::of(&ranges).unwrap_or_default());
        }
        let new = entry.1.next(&used);
        if new.is_empty() {
            tracing::warn!(node, ranges, "no address of the node's ranges is free");
        } else {
            given.pods.insert(uid.to_owned(), new.clone());
        }
        new
    }
}

impl Given {
    fn number(&mut self, node: &str) -> usize {
        if let Some(number) = self.nodes.get(node) {
            return *number;
        }
        let free = (self.first..).find(|n| !self.numbers.contains(n)).unwrap_or_default();
        self.first = free;
        self.take(node, free);
        free
    }

    /// What a node has already, by its address.
    fn take(&mut self, node: &str, number: usize) {
        if !self.nodes.contains_key(node) {
            self.nodes.insert(node.to_owned(), number);
            self.numbers.insert(number);
        }
    }

    fn forget(&mut self, node: &str) {
        self.ranges.remove(node);
        if let Some(number) = self.nodes.remove(node) {
            self.numbers.remove(&number);
            self.first = self.first.min(number);
        }
    }
}
