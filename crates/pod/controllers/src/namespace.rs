//! Empties namespaces that are being deleted, then lets them go.
//!
//! Pods go first; only when none is left the rest follows, whatever kinds the server has. What remains, and why, is told
//! in the namespace's conditions. A kind that can't be discovered or deleted keeps the namespace: content is never
//! taken for gone because it couldn't be read.

mod plan;

use crate::context::{Context, now};
use anyhow::Context as _;
use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use keelson_client::discovery::{Discovered, preferred_resources};
use keelson_client::partial::PARTIAL_ACCEPT;
use keelson_client::rest::JSON;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, PartialObject, Reconcile, ResourceId, Rest,
    delete_options, is_conflict, is_not_found,
};
use plan::{Findings, Remaining};
use std::time::Duration;

const FINALIZER: &str = "kubernetes";
/// How long finalizers of others are given before the next look.
const FINALIZERS_TAKE: i64 = 15;
/// A namespace that can't be emptied is tried again at the latest after this time.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const SERVICES: ResourceId = ResourceId::fixed("apiregistration.k8s.io", "v1", "APIService", "apiservices", false);

pub fn start(context: &Context) {
    let namespaces = context.informer::<Namespace>();
    let pods = context.informer::<Pod>();
    let controller = Controller::new("namespace")
        .input(&namespaces)
        .input(&pods)
        .output(Namespace::RESOURCE)
        .workers(10)
        .longest_delay(LONGEST_DELAY);
    let queue = controller.queue();
    // A group that couldn't be discovered holds namespaces back. When it goes, or is there again, they go on.
    let services = Informer::metadata(&context.reader(), SERVICES, |_| {}, &context.stop);
    let woken = queue.clone();
    services.on_change(move |_| woken.retry_now(|_| true));
    {
        let queue = queue.clone();
        namespaces.on_change(move |change| {
            if change.object().is_deleting() && !change.is_deleted() {
                queue.add(change.object().key());
            }
        });
    }
    // The last pod's end is what a namespace usually waits for.
    let known = namespaces.clone();
    pods.on_change(move |change| {
        let namespace = change.object().namespace();
        if change.is_deleted() && known.store().get("", namespace).is_some_and(|n| n.is_deleting()) {
            queue.add(ObjectKey::cluster(namespace));
        }
    });
    let rest = context.rest("namespace-controller");
    context.run(
        controller,
        Deleter {
            _services: services,
            objects: Objects::new(&rest),
            rest,
            pods,
        },
    );
}

struct Deleter {
    _services: Informer<PartialObject>,
    rest: Rest,
    objects: Objects<Namespace>,
    pods: Informer<Pod>,
}

#[async_trait]
impl Reconcile for Deleter {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(namespace) = self.objects.find("", &key.name).await? else {
            return Ok(Outcome::Done);
        };
        if !namespace.is_deleting() {
            return Ok(Outcome::Done);
        }
        let uid = namespace.uid().to_string();
        let terminating = self.objects.modify("", &key.name, "status", |n| {
            let status = n.status.get_or_insert_default();
            let change = n.metadata.uid.as_deref() == Some(&uid) && status.phase.as_deref() != Some("Terminating");
            status.phase = Some("Terminating".into());
            change
        });
        let namespace = match terminating.await {
            Ok(namespace) => namespace,
            Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
            Err(error) => return Err(error.into()),
        };
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|s| s.finalizers.as_deref())
            .unwrap_or_default();
        if namespace.uid() != uid || !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(Outcome::Done);
        }
        let findings = self.empty(&key.name, &namespace).await?;
        self.tell(&namespace, &findings).await?;
        if !findings.errors().is_empty() {
            anyhow::bail!("{}", findings.errors().join("; "));
        }
        if findings.wait > 0 {
            // Most content goes soon; what stays is looked at ever less often.
            let since = namespace
                .metadata
                .deletion_timestamp
                .as_ref()
                .map_or(0, |t| now().duration_since(t.0).as_secs());
            let wait = (findings.wait / 2 + 1).min(1 + since.max(0) / 2);
            return Ok(Outcome::After(Duration::from_secs(wait as u64)));
        }
        self.finalize(&namespace).await?;
        Ok(Outcome::Done)
    }
}

impl Deleter {
    async fn empty(&self, name: &str, namespace: &Namespace) -> anyhow::Result<Findings> {
        let mut findings = Findings::default();
        let resources = preferred_resources(&self.rest)
            .await
            .context("discovering the server's resources")?;
        findings.undiscovered = resources.failed;
        let mut deletable: Vec<Discovered> = resources.found;
        deletable.retain(|r| r.id.namespaced && r.can("delete"));
        deletable.sort_by_key(|r| (r.id != Pod::RESOURCE, r.id.clone()));
        for resource in &deletable {
            let is_pods = resource.id == Pod::RESOURCE;
            let estimate = if is_pods { self.pods_take(name, namespace) } else { 0 };
            match self.delete_all(resource, name).await {
                Ok(remaining) => {
                    if remaining.is_empty() {
                        continue;
                    }
                    let waits_for_finalizers = remaining.iter().any(|item| !item.finalizers.is_empty());
                    if estimate == 0 && !waits_for_finalizers {
                        let text = format!(
                            "unexpected items still remain in namespace: {name} for gvr: {}",
                            resource.id
                        );
                        findings.failures.push(text);
                    }
                    findings.wait = findings.wait.max(if estimate > 0 { estimate } else { FINALIZERS_TAKE });
                    findings.add(&resource.id, &remaining);
                    if is_pods {
                        findings.pods_only = true;
                        return Ok(findings);
                    }
                }
                Err(error) => {
                    findings.wait = findings.wait.max(estimate);
                    findings.failures.push(format!("{}: {error:#}", resource.id));
                }
            }
        }
        Ok(findings)
    }

    /// Deletes a kind's objects; returns those that are still there.
    async fn delete_all(&self, resource: &Discovered, ns: &str) -> anyhow::Result<Vec<Remaining>> {
        let before = self.remaining(resource, ns).await?;
        if before.is_empty() {
            return Ok(before);
        }
        let options = delete_options(Some("Background"), None, None);
        let whole = resource.can("deletecollection");
        if whole {
            match self
                .rest
                .delete_collection_raw(&resource.id, ns, &options, "", "")
                .await
            {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        } else {
            for item in &before {
                match self.rest.delete_raw(&resource.id, ns, &item.name, &options).await {
                    Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        self.remaining(resource, ns).await
    }

    async fn remaining(&self, resource: &Discovered, ns: &str) -> anyhow::Result<Vec<Remaining>> {
        if !resource.can("list") {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut each = |json: &[u8]| {
            let item = PartialObject::decode(json).map_err(keelson_client::Error::SerdeError)?;
            found.push(Remaining {
                name: item.name().to_string(),
                finalizers: item.metadata.finalizers.unwrap_or_default(),
            });
            Ok(())
        };
        match self
            .rest
            .list_raw(&resource.id, ns, "", "", PARTIAL_ACCEPT, &mut each)
            .await
        {
            Ok(_) => Ok(found),
            // The kind itself has gone meanwhile (its definition was deleted), and its objects with it.
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The longest grace of the namespace's pods, unless that time has passed already.
    fn pods_take(&self, name: &str, namespace: &Namespace) -> i64 {
        let pods = self.pods.store().list_namespace(name);
        let grace = pods
            .iter()
            .filter(|pod| !crate::pods::is_finished(pod))
            .filter_map(|pod| pod.spec.as_ref()?.termination_grace_period_seconds)
            .max()
            .unwrap_or(0);
        let since = namespace
            .metadata
            .deletion_timestamp
            .as_ref()
            .map_or(0, |t| now().duration_since(t.0).as_secs());
        if since >= grace { 0 } else { grace }
    }

    async fn tell(&self, namespace: &Namespace, findings: &Findings) -> anyhow::Result<()> {
        let conditions = findings.conditions(now());
        let change = |n: &mut Namespace| plan::apply(n.status.get_or_insert_default(), &conditions);
        match self.objects.modify("", namespace.name(), "status", change).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn finalize(&self, namespace: &Namespace) -> anyhow::Result<()> {
        let name = namespace.name();
        let path = format!("{}/{name}/finalize", Namespace::RESOURCE.path(""));
        for _ in 0..10 {
            let Some(mut current) = self.objects.find("", name).await? else {
                return Ok(());
            };
            anyhow::ensure!(
                current.uid() == namespace.uid(),
                "the namespace was replaced by another of that name"
            );
            if let Some(finalizers) = current.spec.get_or_insert_default().finalizers.as_mut() {
                finalizers.retain(|f| f != FINALIZER);
            }
            match self.rest.call(Method::PUT, &path, JSON, current.encode()?).await {
                Err(error) if is_conflict(&error) => continue,
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => return Ok(()),
            }
        }
        anyhow::bail!("the namespace changes too often to be finalized")
    }
}
