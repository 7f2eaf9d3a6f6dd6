//! From creation to binding: our API server over the store in memory, in this process, with the scheduler as a client of it and
//! nodes that are objects only, as upstream's benchmark has it.

use crate::measure::{Buckets, Outcome};
use crate::objects::{self, Made};
use crate::play::{Churning, Field};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::CSINode;
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_client::{
    ApiObject, Informer, InformerOptions, Kind, Objects, Rest, Telling, delete_options, is_not_found,
};
use keelson_measure::Measures;
use keelson_pki::ServiceAccountKeys;
use keelson_store::Memory;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// So many requests of the benchmark's own are under way at once, as upstream has them.
const AT_ONCE: usize = 30;
const SAMPLE: Duration = Duration::from_millis(100);
const ATTEMPTS: &str = "scheduler_scheduling_attempt_duration_seconds";
const DECISIONS: &str = "scheduler_scheduling_algorithm_duration_seconds";

pub struct Cluster {
    api: Arc<ApiServer>,
    rest: Rest,
    measures: Measures,
    stop: CancellationToken,
    _stops: DropGuard,
    scheduler: tokio::task::JoinHandle<anyhow::Result<()>>,
    /// Pods with nodes, by namespace.
    bound: HashMap<String, Arc<Bound>>,
    within: Duration,
    began: Instant,
    tasks: JoinSet<()>,
    measuring: Option<Measuring>,
    outcome: Option<Outcome>,
}

struct Bound {
    count: AtomicUsize,
    changed: Notify,
    _pods: Informer<Pod>,
}

struct Measuring {
    namespace: String,
    began: Instant,
    before: usize,
    attempts: Buckets,
    decisions: Buckets,
    samples: tokio::task::JoinHandle<Vec<f64>>,
    ends: CancellationToken,
}

impl Cluster {
    pub async fn start(config: keelson_scheduler::Config, within: Duration) -> Result<Cluster> {
        let mut server = keelson_apiserver::Config::new(ServiceAccountKeys::generate()?);
        server.admission.disabled = ["ServiceAccount", "TaintNodesByCondition", "Priority"]
            .map(str::to_owned)
            .to_vec();
        server.publish_kubernetes_service = false;
        let api = Arc::new(ApiServer::new(server, Memory::new())?);
        api.ready().await;
        let rest = Rest::new(
            api.client(UserInfo::from_identity("kubernetes-admin")),
            "scheduler-perf",
        );
        let (measures, stop) = (Measures::default(), CancellationToken::new());
        let config = keelson_scheduler::Config {
            telling: Telling::new(&measures, "in-process"),
            ..config
        };
        let client = api.client(UserInfo::from_identity("system:kube-scheduler"));
        let scheduler = tokio::spawn(keelson_scheduler::run(client, config, stop.clone()));
        Ok(Cluster {
            api,
            rest,
            measures,
            _stops: stop.clone().drop_guard(),
            stop,
            scheduler,
            bound: HashMap::new(),
            within,
            began: Instant::now(),
            tasks: JoinSet::new(),
            measuring: None,
            outcome: None,
        })
    }

    /// Follows the namespace's pods that have nodes.
    async fn bound(&mut self, namespace: &str) -> Arc<Bound> {
        if let Some(bound) = self.bound.get(namespace) {
            return bound.clone();
        }
        let options = InformerOptions {
            namespace: namespace.to_owned(),
            fields: "spec.nodeName!=".into(),
            ..InformerOptions::default()
        };
        let pods: Informer<Pod> = Informer::start(&self.rest, options, &self.stop);
        let bound = Arc::new_cyclic(|bound: &std::sync::Weak<Bound>| {
            let bound = bound.clone();
            pods.on_change(move |change| {
                if let (keelson_client::Change::Added(_), Some(bound)) = (change, bound.upgrade()) {
                    bound.count.fetch_add(1, Ordering::Relaxed);
                    bound.changed.notify_waiters();
                }
            });
            Bound {
                count: AtomicUsize::new(0),
                changed: Notify::new(),
                _pods: pods.clone(),
            }
        });
        pods.synced().await;
        self.bound.insert(namespace.to_owned(), bound.clone());
        bound
    }

    async fn all<T: Send + 'static, F>(things: Vec<T>, f: impl Fn(T) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send,
    {
        futures::stream::iter(things.into_iter().map(f))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn attempted(&self, namespace: &str) -> Result<usize> {
        let pods = Objects::<Pod>::new(&self.rest).list(namespace, "", "").await?;
        let is_tried = |pod: &&Pod| {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "PodScheduled")
        };
        Ok(pods.iter().filter(is_tried).count())
    }

    fn measured(&mut self, namespace: &str, bound: &Bound) -> Option<(Measuring, usize)> {
        let measuring = self.measuring.take_if(|m| m.namespace == namespace)?;
        let pods = bound.count.load(Ordering::Relaxed) - measuring.before;
        measuring.ends.cancel();
        Some((measuring, pods))
    }
}

/// What is answered isn't looked at: reading it would cost as much again as writing it.
async fn make<K: Kind>(rest: &Rest, object: K) -> Result<()> {
    let body = object.encode()?;
    rest.create_raw(&K::RESOURCE, object.namespace(), body).await?;
    Ok(())
}

async fn make_pod(rest: Rest, Made { pod, volume }: Made) -> Result<()> {
    if let Some((volume, claim)) = volume {
        // A status counts only in an update of its own.
        let mut made = Objects::<PersistentVolumeClaim>::new(&rest).create(&claim).await?;
        made.status = claim.status;
        Objects::new(&rest).update_status(&made).await?;
        let mut made = Objects::<PersistentVolume>::new(&rest).create(&volume).await?;
        made.status = volume.status;
        Objects::new(&rest).update_status(&made).await?;
    }
    make(&rest, pod).await
}

async fn create(rest: &Rest, namespace: &str, mut object: Value) -> Result<()> {
    match object["kind"].as_str().unwrap_or_default() {
        "Node" => make::<Node>(rest, serde_json::from_value(object)?).await,
        kind @ ("Pod" | "Service") => {
            let is_pod = kind == "Pod";
            object["metadata"]["namespace"] = json!(namespace);
            match is_pod {
                true => make::<Pod>(rest, serde_json::from_value(object)?).await,
                false => make::<Service>(rest, serde_json::from_value(object)?).await,
            }
        }
        other => bail!("objects of kind {other:?} aren't made"),
    }
}

async fn remove(rest: &Rest, namespace: &str, kind: &str, name: &str) -> Result<()> {
    let options = delete_options(None, None, None);
    let removed = match kind {
        "Node" => Objects::<Node>::new(rest).delete("", name, &options).await,
        "Pod" => Objects::<Pod>::new(rest).delete(namespace, name, &options).await,
        "Service" => Objects::<Service>::new(rest).delete(namespace, name, &options).await,
        other => bail!("churn: {other} isn't played"),
    };
    match removed {
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn churn(rest: Rest, churning: Churning) {
    let (op, namespace) = (&churning.op, &churning.namespace);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + op.every, op.every);
    for count in 0usize.. {
        if !op.recreates && op.number > 0 && count >= op.number {
            return;
        }
        ticks.tick().await;
        let round = op.number.max(1);
        let goes = op.recreates && count / round % 2 == 1;
        let number = if goes { count - round } else { count };
        for template in &churning.templates {
            let mut object = template.clone();
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let name = objects::name(&mut object, number);
            let done = match goes {
                true => remove(&rest, namespace, &kind, &name).await,
                false => create(&rest, namespace, object).await,
            };
            if let Err(error) = done {
                eprintln!("churn: {kind} {name}: {error:#}");
            }
        }
    }
}

impl Field for Cluster {
    async fn nodes(&mut self, nodes: Vec<(Node, Option<CSINode>)>) -> Result<()> {
        let rest = &self.rest;
        Self::all(nodes, |(node, csi)| async move {
            make(rest, node).await?;
            match csi {
                Some(csi) => make(rest, csi).await,
                None => Ok(()),
            }
        })
        .await
    }

    async fn namespace(&mut self, namespace: Namespace) -> Result<()> {
        make(&self.rest, namespace).await
    }

    async fn pods(&mut self, namespace: &str, pods: Vec<Made>, measured: bool) -> Result<()> {
        let bound = self.bound(namespace).await;
        if measured {
            let (page, ends) = (self.measures.page(), CancellationToken::new());
            self.measuring = Some(Measuring {
                namespace: namespace.to_owned(),
                began: Instant::now(),
                before: bound.count.load(Ordering::Relaxed),
                attempts: Buckets::of(&page, ATTEMPTS, "result=\"scheduled\""),
                decisions: Buckets::of(&page, DECISIONS, ""),
                samples: tokio::spawn(sample(bound.clone(), ends.clone())),
                ends,
            });
        }
        let rest = &self.rest;
        Self::all(pods, |made| make_pod(rest.clone(), made)).await
    }

    async fn settled(&mut self, namespace: &str, count: usize, scheduled: bool) -> Result<()> {
        let bound = self.bound(namespace).await;
        let end = tokio::time::Instant::from_std(self.began + self.within);
        let wait = async {
            loop {
                let changed = bound.changed.notified();
                if bound.count.load(Ordering::Relaxed) >= count {
                    return Ok(());
                }
                if !scheduled && self.attempted(namespace).await? >= count {
                    return Ok(());
                }
                // Only a wait for attempts has to ask.
                tokio::select! { () = changed => {} () = tokio::time::sleep(Duration::from_secs(1)) => {} }
            }
        };
        let waited: Result<Result<()>, _> = tokio::time::timeout_at(end, wait).await;
        waited.with_context(|| {
            let there = bound.count.load(Ordering::Relaxed);
            format!("{there} of {count} pods had nodes after {:?}", self.within)
        })??;
        let took = Instant::now();
        if let Some((measuring, pods)) = self.measured(namespace, &bound) {
            let page = self.measures.page();
            let since =
                |family: &str, label: &str, before: &Buckets| Buckets::of(&page, family, label).since(before).times();
            self.outcome = Some(Outcome {
                pods,
                took: took.duration_since(measuring.began),
                attempt: since(ATTEMPTS, "result=\"scheduled\"", &measuring.attempts),
                decision: since(DECISIONS, "", &measuring.decisions),
                samples: measuring.samples.await?,
            });
        }
        Ok(())
    }

    async fn delete(&mut self, namespace: &str, a_second: Option<u64>, waits: bool) -> Result<()> {
        let pods = Objects::<Pod>::new(&self.rest).list(namespace, "", "").await?;
        let names: Vec<String> = pods.iter().map(|pod| pod.name().to_owned()).collect();
        let (rest, namespace) = (self.rest.clone(), namespace.to_owned());
        let every = match a_second {
            Some(n) => Duration::from_secs(1) / u32::try_from(n)?,
            None => Duration::ZERO,
        };
        let deleting = async move {
            for name in names {
                tokio::time::sleep(every).await;
                if let Err(error) = remove(&rest, &namespace, "Pod", &name).await {
                    eprintln!("deletePods: {name}: {error:#}");
                }
            }
        };
        if waits {
            deleting.await;
        } else {
            self.tasks.spawn(deleting);
        }
        Ok(())
    }

    async fn create(&mut self, namespace: &str, object: Value) -> Result<()> {
        create(&self.rest, namespace, object).await
    }

    fn churn(&mut self, churning: Churning) {
        self.tasks.spawn(churn(self.rest.clone(), churning));
    }

    async fn sleep(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn finish(mut self) -> Result<Option<Outcome>> {
        self.tasks.shutdown().await;
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.scheduler).await;
        self.api.shutdown();
        ended.context("the scheduler didn't end")??.context("the scheduler")?;
        Ok(self.outcome)
    }
}

/// Pods a second, as long as there are any: what comes before the first is no sample.
async fn sample(bound: Arc<Bound>, ends: CancellationToken) -> Vec<f64> {
    let mut ticks = tokio::time::interval(SAMPLE);
    let (mut samples, mut last, mut at) = (Vec::new(), None, Instant::now());
    loop {
        tokio::select! { () = ends.cancelled() => return samples, _ = ticks.tick() => {} }
        let (count, now) = (bound.count.load(Ordering::Relaxed), Instant::now());
        if let Some(last) = last {
            samples.push((count - last) as f64 / now.duration_since(at).as_secs_f64().max(1e-9));
        }
        if last.is_some() || count > 0 {
            last = Some(count);
        }
        at = now;
    }
}
