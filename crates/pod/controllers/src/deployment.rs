//! Rolls deployments out: a replica set a template, resized step by step, with a history to go back to.

mod rollback;
mod rollout;
mod sets;
mod status;

use crate::claim::{Owner, claim};
use crate::context::{Context, now};
use crate::pod_control::message;
use crate::util::{content_hash, template_value, until_due};
use crate::{pods, wire};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, Rest,
    delete_options, is_already_exists, is_not_found, labels,
};
use rollout::Scale;
use sets::Sets;
use status::PROGRESSING;
use std::sync::Arc;

const NAME_LENGTH: usize = 253;

pub fn start(context: &Context) {
    let deployments = context.informer::<Deployment>();
    let sets = context.informer::<ReplicaSet>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    sets.store().index_controllers();
    sets.store().add_index(pods::ORPHANS, pods::orphan_namespace);
    let controller = Controller::new("deployment")
        .input(&deployments)
        .input(&sets)
        .input(&pods)
        .output(ReplicaSet::RESOURCE)
        .output(Deployment::RESOURCE);
    let queue = controller.queue();
    wire::own(&deployments, &queue);
    let known = deployments.clone();
    wire::owned(&sets, &queue, "Deployment", "apps", move |set: &ReplicaSet, queue| {
        for deployment in known.store().list_namespace(set.namespace()) {
            if selects(&deployment, set) {
                queue.add(deployment.key());
            }
        }
    });
    // A deployment that recreates waits for its old pods' end.
    let known = sets.clone();
    let all = deployments.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if !change.is_deleted() && !pods::is_finished(pod) {
            return;
        }
        let set = wire::controller_of(pod.meta()).and_then(|c| known.store().get(pod.namespace(), &c.name));
        if let Some(owner) = set.as_ref().and_then(|s| wire::controller_of(s.meta()))
            && all
                .store()
                .get(pod.namespace(), &owner.name)
                .is_some_and(|d| !sets::is_rolling(&d))
        {
            queue.add(ObjectKey::new(pod.namespace(), owner.name.clone()));
        }
    });
    let rest = context.rest("deployment-controller");
    let recorder = context.recorder(&rest, "deployment-controller");
    let objects = Objects::new(&rest);
    let set_objects = Objects::new(&rest);
    let written = Expectations::default();
    let own = Expectations::default();
    context.run(
        controller,
        Deployments {
            deployments,
            sets,
            pods,
            objects,
            set_objects,
            rest,
            recorder,
            written,
            own,
        },
    );
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = &deployment.spec.selector;
    !labels::is_empty(selector) && labels::matches(Some(selector), set.metadata.labels.as_ref())
}

struct Deployments {
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    objects: Objects<Deployment>,
    set_objects: Objects<ReplicaSet>,
    rest: Rest,
    recorder: Recorder,
    written: Expectations,
    own: Expectations,
}

#[async_trait]
impl Reconcile for Deployments {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.sets.store()).await?;
        self.own.settle(key, self.deployments.store()).await?;
        let Some(found) = self.deployments.store().get_key(key) else {
            self.written.forget(key);
            self.own.forget(key);
            return Ok(Outcome::Done);
        };
        let mut d = (*found).clone();
        if labels::is_empty(&d.spec.selector) {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&d, Warning, "SelectingAll", text);
            return Ok(Outcome::Done);
        }
        let owner = Owner::of(&d);
        let mut candidates = self.sets.store().controlled_by(&owner.uid);
        candidates.extend(self.sets.store().by_index(pods::ORPHANS, &owner.namespace));
        let all = claim(&self.rest, &owner, candidates, |set: &ReplicaSet| selects(&d, set)).await?;
        let mut sets = Sets::split(&d, all);
        if d.is_deleting() {
            let status = status::counts(&d, &sets, now());
            return self.write_status(&found, d, status).await;
        }
        tell_pause(&mut d);
        if d.spec.paused.unwrap_or(false) {
            return self.resize(key, &found, d, sets, true).await;
        }
        if let Some(to) = sets::annotation(&d, sets::ROLLBACK).and_then(|r| r.parse::<i64>().ok()) {
            return self.roll_back(key, d, sets, to).await;
        }
        if rollout::was_scaled(&d, &sets) {
            return self.resize(key, &found, d, sets, false).await;
        }
        if sets::is_rolling(&d) {
            self.ensure_new(key, &mut d, &mut sets).await?;
            let scales = rollout::rolling(&d, &sets);
            if !scales.is_empty() {
                self.scale(key, &d, &mut sets, scales).await?;
                return self.finish(&found, d, &sets).await;
            }
        } else if !self.recreate(key, &mut d, &mut sets).await? {
            return self.finish(&found, d, &sets).await;
        }
        if status::is_complete(&d, &d.status.clone().unwrap_or_default()) {
            self.clean_up(key, &d, &sets).await?;
        }
        self.finish(&found, d, &sets).await
    }
}

/// Pausing stops the clock of the progress deadline; resuming starts it anew.
fn tell_pause(d: &mut Deployment) {
    if !status::has_deadline(d) {
        return;
    }
    let paused = d.spec.paused.unwrap_or(false);
    let status = d.status.get_or_insert_default();
    let reason = status::condition(status, PROGRESSING)
        .and_then(|c| c.reason.clone())
        .unwrap_or_default();
    if reason == status::TIMED_OUT {
        return;
    }
    let was_paused = reason == "DeploymentPaused";
    let (reason, text) = match (paused, was_paused) {
        (true, false) => ("DeploymentPaused", "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    status::tell(
        status,
        status::new_condition(PROGRESSING, "Unknown", reason, text.into(), now()),
    );
}

impl Deployments {
    /// After scaling, or while paused: sizes change, templates don't.
    async fn resize(
        &self,
        key: &ObjectKey,
        found: &Deployment,
        mut d: Deployment,
        mut sets: Sets,
        clean: bool,
    ) -> anyhow::Result<Outcome> {
        self.refresh_new(key, &mut d, &mut sets).await?;
        let scales = rollout::resize(&d, &sets);
        self.scale(key, &d, &mut sets, scales).await?;
        if clean {
            self.clean_up(key, &d, &sets).await?;
        }
        let status = status::counts(&d, &sets, now());
        self.write_status(found, d, status).await
    }

    /// Old pods end before new ones start. Says whether the new set is there and sized.
    async fn recreate(&self, key: &ObjectKey, d: &mut Deployment, sets: &mut Sets) -> anyhow::Result<bool> {
        self.refresh_new(key, d, sets).await?;
        let scales: Vec<Scale> = sets
            .old
            .iter()
            .filter(|s| sets::wanted(s) > 0)
            .map(|s| (s.clone(), 0))
            .collect();
        if !scales.is_empty() {
            self.scale(key, d, sets, scales).await?;
            return Ok(false);
        }
        let counted = sets
            .old
            .iter()
            .any(|s| s.status.as_ref().is_some_and(|s| s.replicas > 0));
        let mut left = sets.old.iter().flat_map(|s| self.pods.store().controlled_by(s.uid()));
        if counted || left.any(|pod| !pods::is_finished(&pod)) {
            return Ok(false);
        }
        self.ensure_new(key, d, sets).await?;
        let total = sets::replicas(d);
        let scales = sets
            .new
            .iter()
            .filter(|s| sets::wanted(s) != total)
            .map(|s| (s.clone(), total))
            .collect();
        self.scale(key, d, sets, scales).await?;
        Ok(true)
    }

    /// Brings the new set's annotations up to date, and the deployment's revision with it.
    async fn refresh_new(&self, key: &ObjectKey, d: &mut Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        let Some(new) = sets.new.clone() else { return Ok(()) };
        let mut changed = (*new).clone();
        let wanted = sets::max_revision(&sets.old) + 1;
        let annotated = sets::annotate(d, &mut changed, wanted);
        if annotated || changed.spec.min_ready_seconds.unwrap_or(0) != d.spec.min_ready_seconds.unwrap_or(0) {
            changed.spec.min_ready_seconds = d.spec.min_ready_seconds;
            changed = self.set_objects.update(&changed).await?;
            self.written.wrote(key, changed.meta());
            sets.replace(changed.clone());
        }
        if let Some(revision) = sets::annotation(&changed, sets::REVISION) {
            d.metadata
                .annotations
                .get_or_insert_default()
                .insert(sets::REVISION.into(), revision.into());
        }
        let found = format!("Found new replica set {:?}", changed.name());
        let has_deadline = status::has_deadline(d);
        let status = d.status.get_or_insert_default();
        if has_deadline && status::condition(status, PROGRESSING).is_none() {
            status::tell(
                status,
                status::new_condition(PROGRESSING, "True", "FoundNewReplicaSet", found, now()),
            );
        }
        Ok(())
    }

    async fn ensure_new(&self, key: &ObjectKey, d: &mut Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        if sets.new.is_some() {
            return self.refresh_new(key, d, sets).await;
        }
        let revision = sets::max_revision(&sets.old) + 1;
        let wanted = self.new_set(d, sets, revision)?;
        let size = sets::wanted(&wanted);
        let (created, fresh) = match self.set_objects.create(&wanted).await {
            Ok(created) => (created, true),
            Err(error) if is_already_exists(&error) => (self.existing(d, &wanted, error).await?, false),
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!(
                        "Failed to create new replica set {:?}: {}",
                        wanted.name(),
                        message(&error)
                    );
                    self.recorder.event(d, Warning, "ReplicaSetCreateError", text.clone());
                    self.tell_progress(
                        d,
                        status::new_condition(PROGRESSING, "False", "ReplicaSetCreateError", text, now()),
                    )
                    .await?;
                }
                return Err(error).context("creating the new replica set");
            }
        };
        self.written.wrote(key, created.meta());
        if fresh && size > 0 {
            let text = format!("Scaled up replica set {} from 0 to {size}", created.name());
            self.recorder.event(d, Normal, "ScalingReplicaSet", text);
        }
        d.metadata
            .annotations
            .get_or_insert_default()
            .insert(sets::REVISION.into(), revision.to_string());
        if fresh && status::has_deadline(d) {
            let text = format!("Created new replica set {:?}", created.name());
            let new = status::new_condition(PROGRESSING, "True", "NewReplicaSetCreated", text, now());
            status::tell(d.status.get_or_insert_default(), new);
        }
        sets.new = Some(Arc::new(created));
        Ok(())
    }

    fn new_set(&self, d: &Deployment, sets: &Sets, revision: i64) -> anyhow::Result<ReplicaSet> {
        let collisions = d.status.as_ref().and_then(|s| s.collision_count);
        let hash = content_hash(template_value(&d.spec.template)?.to_string().as_bytes(), collisions);
        let mut template = d.spec.template.clone();
        let meta = template.metadata.get_or_insert_default();
        meta.labels
            .get_or_insert_default()
            .insert(sets::HASH_LABEL.into(), hash.clone());
        let labels = meta.labels.clone();
        let mut selector = d.spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(sets::HASH_LABEL.into(), hash.clone());
        let stem: String = d.name().chars().take(NAME_LENGTH - 1 - hash.len()).collect();
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{stem}-{hash}")),
                namespace: d.metadata.namespace.clone(),
                owner_references: Some(vec![Owner::of(d).reference()]),
                labels,
                ..Default::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(rollout::new_size(d, sets, 0)),
                min_ready_seconds: d.spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        };
        sets::annotate(d, &mut set, revision);
        sets::note_size(d, &mut set);
        Ok(set)
    }

    /// The set that already has the name: ours, if it has our template; else the hash collides, and is varied.
    async fn existing(
        &self,
        d: &Deployment,
        wanted: &ReplicaSet,
        error: keelson_client::Error,
    ) -> anyhow::Result<ReplicaSet> {
        let existing = self.set_objects.get(wanted.namespace(), wanted.name()).await?;
        let ours = wire::controller_of(existing.meta()).is_some_and(|c| c.uid == d.uid());
        if ours && sets::same_template(&existing.spec.template, &d.spec.template) {
            return Ok(existing);
        }
        let mut changed = d.clone();
        let count = &mut changed.status.get_or_insert_default().collision_count;
        *count = Some(count.unwrap_or(0) + 1);
        self.objects.update_status(&changed).await?;
        Err(error).context("the template's hash collides with another's")
    }

    async fn tell_progress(&self, d: &Deployment, condition: DeploymentCondition) -> anyhow::Result<()> {
        if status::has_deadline(d) {
            let mut changed = d.clone();
            status::tell(changed.status.get_or_insert_default(), condition);
            if changed.status != d.status {
                self.objects.update_status(&changed).await?;
            }
        }
        Ok(())
    }

    async fn scale(&self, key: &ObjectKey, d: &Deployment, sets: &mut Sets, scales: Vec<Scale>) -> anyhow::Result<()> {
        for (set, size) in scales {
            let before = sets::wanted(&set);
            let mut changed = (*set).clone();
            changed.spec.replicas = Some(size);
            if !sets::note_size(d, &mut changed) && before == size {
                continue;
            }
            let changed = self
                .set_objects
                .update(&changed)
                .await
                .with_context(|| format!("scaling {}", set.name()))?;
            self.written.wrote(key, changed.meta());
            if before != size {
                let way = if size > before { "up" } else { "down" };
                let text = format!("Scaled {way} replica set {} from {before} to {size}", set.name());
                self.recorder.event(d, Normal, "ScalingReplicaSet", text);
            }
            sets.replace(changed);
        }
        Ok(())
    }

    async fn clean_up(&self, key: &ObjectKey, d: &Deployment, sets: &Sets) -> anyhow::Result<()> {
        for set in rollout::surplus(d, sets) {
            match self
                .set_objects
                .delete(
                    set.namespace(),
                    set.name(),
                    &delete_options(None, Some(set.uid()), None),
                )
                .await
            {
                Err(error) if !is_not_found(&error) => return Err(error.into()),
                _ => self.written.deleted(key, set.meta()),
            }
        }
        Ok(())
    }

    async fn finish(&self, found: &Deployment, d: Deployment, sets: &Sets) -> anyhow::Result<Outcome> {
        let status = status::rollout(&d, sets, now());
        self.write_status(found, d, status).await
    }

    /// Writes the status, and the revision annotation with it.
    async fn write_status(
        &self,
        found: &Deployment,
        mut d: Deployment,
        status: k8s_openapi::api::apps::v1::DeploymentStatus,
    ) -> anyhow::Result<Outcome> {
        let next = status::next_check(&d, &status, now());
        let outcome = next.map_or(Outcome::Done, |wait| Outcome::After(until_due(wait)));
        d.status = Some(status);
        let revision = sets::annotation(&d, sets::REVISION).map(str::to_string);
        let revision_changed = sets::annotation(found, sets::REVISION) != revision.as_deref();
        if d.status == found.status && !revision_changed {
            return Ok(outcome);
        }
        let mut written = match self.objects.update_status(&d).await {
            Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
            result => result?,
        };
        if let Some(revision) = revision
            && sets::annotation(&written, sets::REVISION) != Some(&revision)
        {
            let uid = d.uid();
            let annotate = |d: &mut Deployment| {
                let annotations = d.metadata.annotations.get_or_insert_default();
                d.metadata.uid.as_deref() == Some(uid)
                    && annotations.insert(sets::REVISION.into(), revision.clone()) != Some(revision.clone())
            };
            written = self.objects.modify(d.namespace(), d.name(), "", annotate).await?;
        }
        if written.uid() != d.uid() {
            bail!("the deployment was replaced by another of that name");
        }
        self.own.wrote(&d.key(), written.meta());
        Ok(outcome)
    }
}
