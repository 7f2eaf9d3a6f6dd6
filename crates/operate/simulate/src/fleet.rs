//! Many nodes under one plan. Each has a task that runs its kubelet while the node isn't to be down; what their Node objects say
//! comes by one watch for all.

use crate::node::{Node, Setup, Size};
use crate::stages::{self, Stage};
use crate::{DOWN, LABEL, NOT_READY};
use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node as Object;
use keelson_client::{
    ApiObject, Informer, InformerOptions, Kind, Objects, Patch, Rest, is_already_exists, is_conflict, is_not_found,
};
use keelson_kubelet::Company;
use keelson_kubelet::fake::Manner;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// So many nodes have addresses of their own, and ranges of them for their pods.
pub const MOST: usize = 16_384;
/// Of the nodes themselves, and of pods on nodes that are given no range: networks that are kept for tests and for carriers.
const NODES: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const PODS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

/// How long until a kubelet that ended by itself is started again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the nodes that are there may take to be read.
const FIRST_READ: Duration = Duration::from_secs(60);
/// How often a server is asked that can't.
const ATTEMPTS: usize = 8;

#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    /// Nodes are called by this and their number.
    pub prefix: String,
    pub size: Size,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<String>,
    pub manner: Manner,
    pub lease: Duration,
    /// How many requests there are at a time, and how many kubelets start in a second.
    pub requests: usize,
    pub starts: u32,
    /// Node objects are deleted when all ends.
    pub delete: bool,
    /// Nodes have no kubelets, and are what these stages make of them.
    pub stages: Option<Vec<Stage>>,
}

/// What is told while nodes come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub ready: usize,
    pub of: usize,
    pub since: Duration,
}

/// A node, and what its object says of it.
struct Member {
    node: Node,
    down: watch::Sender<bool>,
}

type Members = BTreeMap<String, Member>;

/// Runs nodes until it is told to stop. Progress is told about every five seconds until all are ready.
pub async fn run(
    client: kube::Client,
    plan: Plan,
    mut tell: impl FnMut(Progress),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    ensure!(
        plan.nodes > 0 && plan.nodes <= MOST,
        "the number of nodes has to be from 1 to {MOST}"
    );
    let company = Company::new(plan.requests);
    let rest = Rest::new(client.clone(), "keelson-simulate").together(company.together());
    let late = || format!("the nodes that there are could not be read within {FIRST_READ:?}");
    tokio::select! {
        read = rest.get("/api/v1/nodes?limit=1", keelson_client::rest::JSON) => {
            read.context("listing the nodes that there are")?;
        }
        () = stop.cancelled() => return Ok(()),
        () = tokio::time::sleep(FIRST_READ) => bail!(late()),
    }
    let informer = Informer::<Object>::start(&rest, InformerOptions::default(), &stop);
    tokio::select! {
        () = informer.synced() => {}
        () = stop.cancelled() => return Ok(()),
        () = tokio::time::sleep(FIRST_READ) => bail!(late()),
    }
    judge(&informer, &plan)?;
    let begun = Instant::now();
    let mut running: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> = match &plan.stages {
        None => Box::pin(kubelets(&client, &plan, &company, &informer, &stop)),
        Some(stages) => Box::pin(staged(&rest, &plan, stages.clone(), &informer, &stop)),
    };
    let look = Duration::from_secs(if plan.nodes > 100 { 5 } else { 1 });
    let mut all = false;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            () = tokio::time::sleep(look), if !all => {
                let is_up = |name: String| informer.store().get("", &name).is_some_and(|n| is_ready(&n));
                let ready = plan.names().filter(|name| is_up(name.clone())).count();
                all = ready == plan.nodes;
                tell(Progress { ready, of: plan.nodes, since: begun.elapsed() });
            }
        }
    };
    drop(running);
    // However it ended.
    let deleted = match plan.delete {
        true => delete(&rest, &informer, &plan).await,
        false => Ok(()),
    };
    ended.and(deleted)
}

impl Plan {
    fn names(&self) -> impl Iterator<Item = String> {
        (0..self.nodes).map(|index| format!("{}{index}", self.prefix))
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert(LABEL.into(), "true".into());
        labels
    }
}

/// Nodes with kubelets, until it is told to stop and all have ended.
async fn kubelets(
    client: &kube::Client,
    plan: &Plan,
    company: &Arc<Company>,
    informer: &Informer<Object>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let members: Arc<Members> = Arc::new(members(plan, company));
    follow(informer, &members);
    let mut lives = start_all(client, plan, members, stop.clone()).await;
    stop.cancelled().await;
    while let Some(ended) = lives.join_next().await {
        ended.context("a node's task failed")?;
    }
    Ok(())
}

/// Nodes without kubelets, which go from stage to stage.
async fn staged(
    rest: &Rest,
    plan: &Plan,
    stages: Vec<Stage>,
    informer: &Informer<Object>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let playing = stages::run(rest, informer, stages, plan.lease, stop.clone());
    let making = async {
        let mut turn = tokio::time::interval(Duration::from_secs(1) / plan.starts.max(1));
        for name in plan.names() {
            tokio::select! {
                _ = turn.tick() => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                made = again(|| make(rest, plan, &name)) => made.context("making the nodes")?,
                () = stop.cancelled() => break,
            };
        }
        anyhow::Ok(())
    };
    tokio::pin!(playing);
    tokio::select! {
        made = making => made?,
        () = &mut playing => return Ok(()),
    }
    playing.await;
    Ok(())
}

async fn make(rest: &Rest, plan: &Plan, name: &str) -> keelson_client::Result<()> {
    let body = bare(plan, name).to_string().into_bytes();
    let made = match rest.create_raw(&Object::RESOURCE, "", body).await {
        // It is a simulated one, perhaps of a run with kubelets: from now on it is played.
        Err(error) if is_already_exists(&error) => {
            let played =
                json!({"metadata": {"labels": plan.all_labels(), "annotations": {stages::ANNOTATION: stages::FAKE}}});
            let patch = Patch::Merge(&played);
            rest.patch_raw(&Object::RESOURCE, "", name, "", &patch).await
        }
        made => made,
    };
    made.map(drop)
}

/// A node's object as it is made for stages, which say the rest.
fn bare(plan: &Plan, name: &str) -> Value {
    let mut labels = plan.all_labels();
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
    ] {
        labels.entry(key.into()).or_insert_with(|| value.into());
    }
    let taint = |text: &String| {
        let (pair, effect) = text.rsplit_once(':').unwrap_or((text, ""));
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        json!({"key": key, "value": value, "effect": effect})
    };
    let taints: Vec<Value> = plan.taints.iter().map(taint).collect();
    let size = json!({
        "cpu": plan.size.cpus.to_string(),
        "memory": plan.size.memory.to_string(),
        "pods": plan.size.pods.to_string(),
    });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {stages::ANNOTATION: stages::FAKE}},
        "spec": {"taints": taints},
        "status": {"allocatable": size, "capacity": size},
    })
}

pub(crate) fn nodes_range(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(NODES.to_bits().wrapping_add(index as u32 + 1))
}

/// Which node has this address of ours.
pub(crate) fn number_of(address: &str) -> Option<usize> {
    let address: Ipv4Addr = address.parse().ok()?;
    let index = address.to_bits().checked_sub(NODES.to_bits() + 1)?;
    usize::try_from(index).ok().filter(|index| *index < MOST)
}

pub(crate) fn pods_range(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(PODS.to_bits().wrapping_add((index as u32) << 8))
}

fn members(plan: &Plan, company: &Arc<Company>) -> Members {
    let one = |(index, name): (usize, String)| {
        let setup = Setup {
            name: name.clone(),
            address: nodes_range(index).to_string(),
            ranges: format!("{}/24", pods_range(index)),
            size: plan.size.clone(),
            labels: plan.all_labels(),
            taints: plan.taints.clone(),
            manner: plan.manner.clone(),
            lease: plan.lease,
            company: Some(company.clone()),
        };
        let member = Member {
            node: Node::new(setup),
            down: watch::Sender::new(false),
        };
        (name, member)
    };
    plan.names().enumerate().map(one).collect()
}

/// Nobody else's nodes are taken over.
fn judge(informer: &Informer<Object>, plan: &Plan) -> anyhow::Result<()> {
    for name in plan.names() {
        if let Some(node) = informer.store().get("", &name)
            && !is_simulated(&node)
        {
            bail!("there is a node {name} already that isn't a simulated one; another prefix is needed");
        }
    }
    Ok(())
}

fn is_simulated(node: &Object) -> bool {
    let labels = node.metadata.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(LABEL))
}

fn says(node: &Object, annotation: &str) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation)).is_some_and(|v| v == "true")
}

fn is_ready(node: &Object) -> bool {
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Has members be as their objects say.
fn follow(informer: &Informer<Object>, members: &Arc<Members>) {
    let members = members.clone();
    informer.on_change(move |change| {
        let node = change.object();
        let Some(member) = members.get(node.name()) else {
            return;
        };
        member.node.runtime.set_down(says(node, NOT_READY));
        let down = !change.is_deleted() && says(node, DOWN);
        member.down.send_if_modified(|now| std::mem::replace(now, down) != down);
    });
}

/// Starts the nodes one after the other, so that their beats are spread.
async fn start_all(client: &kube::Client, plan: &Plan, members: Arc<Members>, stop: CancellationToken) -> JoinSet<()> {
    let mut lives = JoinSet::new();
    let mut turn = tokio::time::interval(Duration::from_secs(1) / plan.starts.max(1));
    for name in members.keys() {
        tokio::select! {
            _ = turn.tick() => {}
            () = stop.cancelled() => break,
        }
        lives.spawn(live(client.clone(), members.clone(), name.clone(), stop.clone()));
    }
    lives
}

/// One node's life: its kubelet runs while it isn't down.
async fn live(client: kube::Client, members: Arc<Members>, name: String, stop: CancellationToken) {
    let Some(member) = members.get(&name) else { return };
    let mut down = member.down.subscribe();
    loop {
        tokio::select! {
            up = down.wait_for(|down| !*down) => if up.is_err() { return },
            () = stop.cancelled() => return,
        }
        let life = stop.child_token();
        let mut kubelet = Box::pin(member.node.kubelet(client.clone(), life.clone()));
        let ended = tokio::select! {
            ended = &mut kubelet => Some(ended),
            _ = down.wait_for(|down| *down) => None,
        };
        match ended {
            Some(Err(error)) if !stop.is_cancelled() => {
                tracing::error!(name, "a node's kubelet ended, and is started again: {error:#}");
                life.cancel();
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    () = stop.cancelled() => return,
                }
            }
            Some(_) => return,
            None => {
                tracing::info!(name, "a node falls silent");
                life.cancel();
                if let Err(error) = kubelet.await {
                    tracing::debug!(name, "its kubelet was interrupted: {error:#}");
                }
            }
        }
    }
}

/// It is the server's own fault, or there was no answer.
fn can_not(error: &keelson_client::Error) -> bool {
    match error {
        keelson_client::Error::Api(status) => status.code >= 500 || status.code == 429,
        _ => true,
    }
}

/// Once more, later each time, while the server answers that it is its own fault, or not at all.
async fn again<T, F>(ask: impl Fn() -> F) -> keelson_client::Result<T>
where
    F: Future<Output = keelson_client::Result<T>>,
{
    let mut wait = Duration::from_millis(200);
    for _ in 1..ATTEMPTS {
        match ask().await {
            Err(error) if can_not(&error) => tracing::warn!(%error, "the server can't do it now; trying again"),
            done => return done,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(7));
    }
    ask().await
}

async fn delete(rest: &Rest, informer: &Informer<Object>, plan: &Plan) -> anyhow::Result<()> {
    let nodes = Objects::<Object>::new(rest);
    // One that isn't known, the last that was made perhaps, goes by its name; a known one only as that which it is.
    let ours = plan.names().filter_map(|name| match informer.store().get("", &name) {
        Some(node) => is_simulated(&node).then(|| (name, Some(node.uid().to_owned()))),
        None => Some((name, None)),
    });
    let nodes = &nodes;
    let failing = futures::stream::iter(ours)
        .map(|(name, uid)| async move {
            let options = keelson_client::delete_options(None, uid.as_deref(), None);
            again(|| nodes.delete("", &name, &options)).await
        })
        .buffer_unordered(plan.requests)
        .filter_map(|deleted| async move { deleted.err().filter(|e| !is_not_found(e) && !is_conflict(e)) });
    let (mut failing, mut first) = (std::pin::pin!(failing), None);
    while let Some(error) = failing.next().await {
        // One that can't after so many attempts isn't asked as often for each of the others.
        let ends = can_not(&error);
        first.get_or_insert(error);
        if ends {
            break;
        }
    }
    match first {
        Some(error) => Err(error).with_context(|| format!("deleting {}", Object::RESOURCE)),
        None => Ok(()),
    }
}
