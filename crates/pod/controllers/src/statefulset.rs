//! Stateful sets: pods with names and volumes of their own, started, updated and removed in order.

mod identity;
mod plan;
mod retention;

use crate::claim::{Owner, claim};
use crate::context::{Context, now};
use crate::history::{HASH_LABEL, History, Recorded, Wanted, template_of};
use crate::pod_control::message;
use crate::util::until_due;
use crate::{pods, wire};
use anyhow::Context as _;
use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, Rest,
    delete_options, is_already_exists, is_not_found, labels, selection,
};
use plan::{Revisions, Step};
use retention::Upkeep;

pub fn start(context: &Context) {
    let sets = context.informer::<StatefulSet>();
    let pods = context.informer::<Pod>();
    let claims = context.informer::<PersistentVolumeClaim>();
    let revisions = context.informer::<ControllerRevision>();
    pods::index(pods.store());
    let controller = Controller::new("statefulset")
        .input(&sets)
        .input(&pods)
        .input(&claims)
        .input(&revisions)
        .output(Pod::RESOURCE)
        .output(PersistentVolumeClaim::RESOURCE)
        .output(ControllerRevision::RESOURCE)
        .output(StatefulSet::RESOURCE);
    let queue = controller.queue();
    wire::own(&sets, &queue);
    wire::quota_release(&context.informer(), &queue);
    sets.store()
        .index_wanted(|set| selection::wanted_by(set.namespace(), Some(&set.spec.selector)));
    let known = sets.clone();
    wire::owned(&pods, &queue, "StatefulSet", "apps", move |pod: &Pod, queue| {
        for set in known.store().selecting(pod.namespace(), pod.metadata.labels.as_ref()) {
            if selects(&set, pod) {
                queue.add(set.key());
            }
        }
    });
    let rest = context.rest("statefulset-controller");
    let recorder = context.recorder(&rest, "statefulset-controller");
    let history = History::new(revisions, &rest);
    context.run(
        controller,
        Sets {
            sets,
            pods,
            claims,
            history,
            objects: Objects::new(&rest),
            pod_objects: Objects::new(&rest),
            claim_objects: Objects::new(&rest),
            rest,
            recorder,
            written: Expectations::default(),
            own: Expectations::default(),
            claims_written: Expectations::default(),
        },
    );
}

fn selects(set: &StatefulSet, pod: &Pod) -> bool {
    let selector = &set.spec.selector;
    !labels::is_empty(selector)
        && labels::matches(Some(selector), pod.metadata.labels.as_ref())
        && pod
            .name()
            .rsplit_once('-')
            .is_some_and(|(parent, _)| parent == set.name())
}

struct Sets {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    history: History,
    objects: Objects<StatefulSet>,
    pod_objects: Objects<Pod>,
    claim_objects: Objects<PersistentVolumeClaim>,
    rest: Rest,
    recorder: Recorder,
    written: Expectations,
    own: Expectations,
    claims_written: Expectations,
}

/// The templates of the two revisions a set may be between.
struct Templates {
    current: (String, PodTemplateSpec),
    update: (String, PodTemplateSpec),
}

#[async_trait]
impl Reconcile for Sets {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.pods.store()).await?;
        self.own.settle(key, self.sets.store()).await?;
        self.claims_written.settle(key, self.claims.store()).await?;
        let Some(set) = self.sets.store().get_key(key) else {
            for expectations in [&self.written, &self.own, &self.claims_written, &self.history.written] {
                expectations.forget(key);
            }
            return Ok(Outcome::Done);
        };
        let owner = Owner::of(&*set);
        let candidates = pods::candidates(self.pods.store(), &owner, &set.spec.selector);
        let all = claim(&self.rest, &owner, candidates, |pod| selects(&set, pod)).await?;
        let wanted = Wanted {
            owner: &owner,
            selector: &set.spec.selector,
            template: &set.spec.template,
            annotations: set.metadata.annotations.as_ref(),
            collisions: set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0),
            hash_label: HASH_LABEL,
        };
        let recorded = self.history.record(key, &wanted).await?;
        let templates = templates(&set, &recorded);
        let revisions = Revisions {
            current: &templates.current.0,
            update: &templates.update.0,
        };
        let now = now();
        let steps = plan::steps(&set, &all, &revisions, now);
        let (retry, failure) = self.take(key, &set, &templates, steps).await;
        self.write_status(
            key,
            &set,
            plan::status(&set, &all, &revisions, recorded.collisions, now),
        )
        .await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut in_use: std::collections::BTreeSet<String> =
            all.iter().map(|p| identity::revision(p).to_string()).collect();
        in_use.extend([templates.current.0.clone(), templates.update.0.clone()]);
        let limit = set.spec.revision_history_limit.unwrap_or(10);
        self.history
            .truncate(key, &recorded, &in_use, |r| r.name().to_string(), limit)
            .await?;
        if retry {
            return Ok(Outcome::Retry);
        }
        Ok(match plan::next_check(&set, &all, now) {
            Some(wait) => Outcome::After(until_due(wait)),
            None => Outcome::Done,
        })
    }
}

fn templates(set: &StatefulSet, recorded: &Recorded) -> Templates {
    let update = (recorded.present.name().to_string(), set.spec.template.clone());
    let name = set
        .status
        .as_ref()
        .and_then(|s| s.current_revision.as_deref())
        .unwrap_or_default();
    let current = recorded
        .all
        .iter()
        .find(|r| r.name() == name)
        .and_then(|r| Some((name.to_string(), template_of(r)?)));
    Templates {
        current: current.unwrap_or_else(|| update.clone()),
        update,
    }
}

impl Sets {
    /// Takes all steps at once (the plan says which may go together). Says whether to look again soon, and what failed.
    async fn take(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        templates: &Templates,
        steps: Vec<Step>,
    ) -> (bool, Option<anyhow::Error>) {
        let results = join_all(steps.iter().map(|step| async {
            match step {
                Step::Create { ordinal, updated } => {
                    let (name, template) = if *updated {
                        &templates.update
                    } else {
                        &templates.current
                    };
                    self.create(key, set, identity::pod(set, template, name, *ordinal), *ordinal)
                        .await
                }
                Step::Delete(pod) => self.delete(key, set, pod).await.map(|()| false),
                Step::Tend(pod) => self.tend(key, set, pod).await.map(|()| false),
            }
        }))
        .await;
        let mut retry = false;
        let mut failure = None;
        for result in results {
            match result {
                Ok(again) => retry |= again,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (retry, failure)
    }

    /// Says whether the pod has to wait for an earlier one's claim to go.
    async fn create(&self, key: &ObjectKey, set: &StatefulSet, pod: Pod, ordinal: i32) -> anyhow::Result<bool> {
        if retention::deletes_when_scaled(set) {
            let earlier = Owner::of(&pod);
            let claims = identity::claims(set, ordinal);
            let stale = |claim: &PersistentVolumeClaim| {
                self.claims
                    .store()
                    .get_key(&claim.key())
                    .is_some_and(|found| retention::is_stale(&found, &earlier))
            };
            if claims.iter().any(stale) {
                return Ok(true);
            }
        }
        if let Err(error) = self.create_claims(key, set, pod.name(), ordinal).await {
            self.tell(set, "create", pod.name(), Some(&format!("{error:#}")));
            return Err(error);
        }
        match self.pod_objects.create(&pod).await {
            Ok(created) => {
                self.written.wrote(key, created.meta());
                self.tell(set, "create", pod.name(), None);
                self.keep_claims(key, set, &created, ordinal).await?;
                Ok(false)
            }
            Err(error) if is_namespace_terminating(&error) => Ok(false),
            // The old pod of that name isn't gone yet; its end will tell.
            Err(error) if is_already_exists(&error) => Ok(true),
            Err(error) => {
                self.tell(set, "create", pod.name(), Some(&message(&error)));
                Err(error).context("creating a pod")
            }
        }
    }

    async fn create_claims(&self, key: &ObjectKey, set: &StatefulSet, pod: &str, ordinal: i32) -> anyhow::Result<()> {
        for claim in identity::claims(set, ordinal) {
            match self.claims.store().get_key(&claim.key()) {
                Some(found) if found.is_deleting() => anyhow::bail!("pvc {} is being deleted", claim.name()),
                Some(_) => continue,
                None => {}
            }
            let name = claim.name();
            match self.claim_objects.create(&claim).await {
                Ok(created) => {
                    self.claims_written.wrote(key, created.meta());
                    let text = format!("Create Claim {name} Pod {pod} in StatefulSet {} success", set.name());
                    self.recorder.event(set, Normal, "SuccessfulCreate", text);
                }
                Err(error) if is_already_exists(&error) => {}
                Err(error) => {
                    let why = message(&error);
                    let text = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {} failed error: {why}",
                        set.name()
                    );
                    self.recorder.event(set, Warning, "FailedCreate", text);
                    return Err(error).with_context(|| format!("failed to create PVC {name}"));
                }
            }
        }
        Ok(())
    }

    async fn tend(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        let Some(ordinal) = identity::ordinal(set, pod) else {
            return Ok(());
        };
        if identity::in_range(set, ordinal) && !pod.is_deleting() {
            if pods::phase(pod) == "Pending" {
                self.create_claims(key, set, pod.name(), ordinal).await?;
            }
            let kept = self.keep_claims(key, set, pod, ordinal).await;
            if let Err(error) = &kept {
                self.tell(set, "update", pod.name(), Some(&format!("{error:#}")));
            }
            let acted = kept?;
            if let Some(fixed) = identity::restored(set, pod, ordinal) {
                let result = self.pod_objects.update(&fixed).await;
                let why = result.as_ref().err().map(message);
                self.tell(set, "update", pod.name(), why.as_deref());
                self.written.wrote(key, result?.meta());
            } else if acted {
                self.tell(set, "update", pod.name(), None);
            }
            return Ok(());
        }
        self.keep_claims(key, set, pod, ordinal).await.map(drop)
    }

    /// Sees that a pod's claims have the owners that the retention policy wants. Whether there was anything to do.
    async fn keep_claims(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod, ordinal: i32) -> anyhow::Result<bool> {
        let in_range = identity::in_range(set, ordinal);
        let mut acted = false;
        for wanted in identity::claims(set, ordinal) {
            let Some(claim) = self.claims.store().get_key(&wanted.key()) else {
                continue;
            };
            let owners = match retention::upkeep(set, pod, in_range, &claim) {
                Upkeep::Fine => continue,
                Upkeep::Write(owners) => owners,
                Upkeep::Conflict(owners) => {
                    let text = format!(
                        "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim",
                        claim.name()
                    );
                    self.recorder.event(set, Warning, "ConflictingController", text);
                    match owners {
                        Some(owners) => owners,
                        None => continue,
                    }
                }
            };
            let mut changed = (*claim).clone();
            changed.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            match self.claim_objects.update(&changed).await {
                Ok(written) => {
                    self.claims_written.wrote(key, written.meta());
                    acted = true;
                }
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("changing the owners of claim {}", claim.name()));
                }
            }
        }
        Ok(acted)
    }

    async fn delete(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        match self
            .pod_objects
            .delete(
                pod.namespace(),
                pod.name(),
                &delete_options(None, Some(pod.uid()), None),
            )
            .await
        {
            Err(error) if !is_not_found(&error) => {
                self.tell(set, "delete", pod.name(), Some(&message(&error)));
                Err(error).context("deleting a pod")
            }
            _ => {
                self.written.deleted(key, pod.meta());
                self.tell(set, "delete", pod.name(), None);
                Ok(())
            }
        }
    }

    fn tell(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&str>) {
        let word = match verb {
            "create" => "Create",
            "update" => "Update",
            _ => "Delete",
        };
        let name = set.name();
        match failure {
            None => {
                let text = format!("{word} Pod {pod} in StatefulSet {name} successful");
                self.recorder.event(set, Normal, &format!("Successful{word}"), text);
            }
            Some(why) => {
                let text = format!("{word} Pod {pod} in StatefulSet {name} failed error: {why}");
                self.recorder.event(set, Warning, &format!("Failed{word}"), text);
            }
        }
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        status: k8s_openapi::api::apps::v1::StatefulSetStatus,
    ) -> anyhow::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = StatefulSet {
            status: Some(status),
            ..set.clone()
        };
        match self.objects.update_status(&changed).await {
            Ok(written) => self.own.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
