//! Runs jobs to their end: pods are created, counted once each, and let go.
//!
//! A pod carries a finalizer until the job's status has its result, first as "ended, not counted", then counted; so a
//! crash at any point loses and doubles nothing.

mod indexes;
mod plan;
mod policy;
mod tally;
mod view;

use crate::claim::{Owner, claim_with_finalizer};
use crate::context::{Context, now};
use crate::pod_control::{PodControl, message};
use crate::{pods, wire};
use anyhow::Context as _;
use async_trait::async_trait;
use futures::future::join_all;
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Rest,
    is_not_found, labels, selection,
};
use parking_lot::Mutex;
use plan::{Action, NewPod};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tally::{Snapshot, Tally};
use view::{Backoff, JobView};

const OWN_NAME: &str = "kubernetes.io/job-controller";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Generated names are cut to leave room for their random end.
const NAME_PREFIX: usize = 58;
/// What the API server refuses it is asked for again after this time, then ever later.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

pub fn start(context: &Context) {
    let jobs = context.informer::<Job>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    pods.store().add_index(UNCOUNTED, |pod| {
        uncounted(pod).iter().map(ObjectKey::to_string).collect()
    });
    let controller = Controller::new("job")
        .first_delay(FIRST_DELAY)
        .longest_delay(LONGEST_DELAY)
        .input(&jobs)
        .input(&pods)
        .output(Pod::RESOURCE)
        .output(Job::RESOURCE);
    let queue = controller.queue();
    wire::own(&jobs, &queue);
    wire::quota_release(&context.informer(), &queue);
    jobs.store()
        .index_wanted(|job| selection::wanted_by(job.namespace(), job.spec.as_ref().and_then(|s| s.selector.as_ref())));
    let known = jobs.clone();
    wire::owned(&pods, &queue, "Job", "batch", move |pod: &Pod, queue| {
        for job in known.store().selecting(pod.namespace(), pod.metadata.labels.as_ref()) {
            if selects(&job, pod) {
                queue.add(job.key());
            }
        }
        if view::has_finalizer(pod)
            && let Some(job) = pod
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get("batch.kubernetes.io/job-name"))
        {
            queue.add(ObjectKey::new(pod.namespace(), job.clone()));
        }
    });
    let rest = context.rest("job-controller");
    let control = PodControl::new(&rest, context.recorder(&rest, "job-controller"));
    let objects = Objects::new(&rest);
    context.run(
        controller,
        Jobs {
            jobs,
            pods,
            objects,
            control,
            rest,
            own: Expectations::default(),
            notes: Mutex::default(),
        },
    );
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !labels::is_empty(s)) && labels::matches(selector, pod.metadata.labels.as_ref())
}

/// What is remembered of a job between turns. Losing it slows nothing down and counts nothing twice.
#[derive(Default)]
struct Notes {
    backoff: Backoff,
    released: HashSet<String>,
}

struct Jobs {
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    objects: Objects<Job>,
    control: PodControl,
    rest: Rest,
    own: Expectations,
    notes: Mutex<HashMap<ObjectKey, Notes>>,
}

/// Pods after a turn's action.
struct Counts {
    active: i32,
    ready: i32,
    terminating: i32,
    failure: Option<keelson_client::Error>,
}

#[async_trait]
impl Reconcile for Jobs {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.control.written.settle(key, self.pods.store()).await?;
        self.own.settle(key, self.jobs.store()).await?;
        let Some(found) = self.jobs.store().get_key(key) else {
            self.control.written.forget(key);
            self.own.forget(key);
            self.notes.lock().remove(key);
            return self.release_orphans(key).await;
        };
        let managed_by = found.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if managed_by.is_some_and(|m| m != OWN_NAME) {
            return Ok(Outcome::Done);
        }
        if view::is_finished(&found) {
            self.notes.lock().remove(key);
            return self.release_rest(key, &found).await;
        }
        let owner = Owner::of(&*found);
        let selector = found.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let candidates = pods::candidates(self.pods.store(), &owner, &selector);
        let pods = claim_with_finalizer(&self.rest, &owner, candidates, Some(view::FINALIZER), |pod| {
            selects(&found, pod)
        })
        .await?;
        self.turn(key, &found, &owner, pods).await
    }
}

impl Jobs {
    async fn turn(&self, key: &ObjectKey, found: &Job, owner: &Owner, pods: Vec<Arc<Pod>>) -> anyhow::Result<Outcome> {
        let now = now();
        let mut job = found.clone();
        let status = job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        if status.start_time.is_none() && !found.is_suspended() {
            status.start_time = Some(Time(now));
        }
        let (backoff, released) = self.recall(key, &pods);
        let start = job.clone();
        let snapshot = Snapshot {
            job: &start,
            pods: &pods,
            released: &released,
            backoff,
            now,
        };
        let tally = tally::tally(&snapshot);
        let mut end = tally.end.clone();
        let mut wait = tally.deadline_in;
        let counts = if end.is_some() {
            let counts = self.delete_active(owner, &tally).await;
            // While pods are left that could not be deleted, the job isn't over.
            if counts.active > 0 {
                end = None;
            }
            counts
        } else if job.is_deleting() {
            Counts {
                active: tally.active.len() as i32,
                ready: tally.ready,
                terminating: tally.terminating,
                failure: None,
            }
        } else {
            let (counts, delay) = self.work(owner, &snapshot, &tally).await;
            wait = [wait, delay].into_iter().flatten().min();
            if plan::is_complete(&job, tally.succeeded, counts.active) {
                end = Some(plan::success(now));
            } else {
                self.tell_suspension(&mut job);
            }
            counts
        };
        let status = job.status.get_or_insert_default();
        status.active = plan::some(counts.active);
        status.ready = Some(counts.ready);
        status.terminating = Some(counts.terminating);
        let accounts = plan::account(&snapshot, &job, &tally, end);
        self.notes.lock().entry(key.clone()).or_default().backoff = tally.backoff;
        self.write(key, found, job, accounts).await?;
        if let Some(failure) = counts.failure {
            anyhow::bail!("{}", message(&failure));
        }
        Ok(match wait {
            // Deadlines and delays are dates here, and follow the calendar's clock.
            Some(wait) => Outcome::At(now.saturating_add(wait.max(SignedDuration::from_millis(1)))?),
            None => Outcome::Done,
        })
    }

    fn recall(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> (Backoff, HashSet<String>) {
        let mut notes = self.notes.lock();
        let notes = notes.entry(key.clone()).or_default();
        notes
            .released
            .retain(|uid| pods.iter().any(|p| p.uid() == uid && view::has_finalizer(p)));
        (notes.backoff, notes.released.clone())
    }

    /// Enters the ended pods, lets them go, counts them, and finishes the job if that was the last of it.
    async fn write(&self, key: &ObjectKey, found: &Job, mut job: Job, accounts: plan::Accounts) -> anyhow::Result<()> {
        job.status = Some(accounts.status);
        if job.status != found.status {
            job = match self.objects.update_status(&job).await {
                Err(error) if is_not_found(&error) => return Ok(()),
                result => result.context("entering ended pods")?,
            };
            self.own.wrote(key, job.meta());
        }
        let (gone, failure) = self.release(key, &accounts.release).await;
        let before = job.status.clone();
        let status = job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        plan::settle(status, |uid| !gone.contains(uid));
        let mut finished = false;
        if failure.is_none()
            && !accounts.is_full
            && let Some(last) = &accounts.last
        {
            finished = plan::finish(status, last);
        }
        if job.status != before {
            let written = match self.objects.update_status(&job).await {
                Err(error) if is_not_found(&error) => return Ok(()),
                result => result.context("counting ended pods")?,
            };
            self.own.wrote(key, written.meta());
            if let Some(last) = accounts.last.filter(|_| finished) {
                self.tell_end(&job, &last);
            }
        }
        match failure {
            Some(error) => Err(error).context("letting ended pods go"),
            None => Ok(()),
        }
    }

    fn tell_end(&self, job: &Job, last: &JobCondition) {
        let recorder = &self.control.recorder;
        if last.type_ != "Complete" {
            let text = last.message.clone().unwrap_or_default();
            return recorder.event(job, Warning, last.reason.as_deref().unwrap_or("Failed"), text);
        }
        let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        if job.completions().is_some_and(|c| succeeded > c) {
            let text = "Too many succeeded pods running after completion count reached";
            recorder.event(job, Warning, "TooManySucceededPods", text);
        }
        recorder.event(job, Normal, "Completed", "Job completed");
    }

    fn tell_suspension(&self, job: &mut Job) {
        let suspended = job.is_suspended();
        let known = view::condition(job, "Suspended").map(|c| c.status == "True");
        let (word, reason, text, event) = match (suspended, known) {
            (true, None | Some(false)) => ("True", "JobSuspended", "Job suspended", "Suspended"),
            (false, Some(true)) => ("False", "JobResumed", "Job resumed", "Resumed"),
            _ => return,
        };
        let condition = JobCondition {
            status: word.into(),
            ..view::new_condition("Suspended", reason, text, now())
        };
        let status = job.status.get_or_insert_default();
        status.start_time = (!suspended).then(|| Time(now()));
        let conditions = status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|c| c.type_ == "Suspended") {
            Some(old) => *old = condition,
            None => conditions.push(condition),
        }
        self.control.recorder.event(job, Normal, event, text);
    }

    /// The job is over: what still runs is deleted, but stays until it is counted.
    async fn delete_active(&self, owner: &Owner, tally: &Tally) -> Counts {
        self.delete(owner, tally, &tally.active, false).await
    }

    async fn delete(&self, owner: &Owner, tally: &Tally, pods: &[Arc<Pod>], release: bool) -> Counts {
        let mut counts = Counts {
            active: tally.active.len() as i32,
            ready: tally.ready,
            terminating: tally.terminating,
            failure: None,
        };
        let key = ObjectKey::new(owner.namespace.clone(), owner.name.clone());
        let results = join_all(pods.iter().map(|pod| async {
            if release {
                self.release_one(&key, pod).await?;
            }
            self.control.delete(owner, pod).await
        }));
        for (result, pod) in results.await.into_iter().zip(pods) {
            match result {
                Ok(()) => {
                    counts.active -= 1;
                    counts.terminating += 1;
                    counts.ready -= i32::from(pods::is_ready(pod));
                }
                Err(error) => counts.failure = counts.failure.or(Some(error)),
            }
        }
        counts
    }

    async fn work(&self, owner: &Owner, snapshot: &Snapshot<'_>, tally: &Tally) -> (Counts, Option<SignedDuration>) {
        let mut counts = Counts {
            active: tally.active.len() as i32,
            ready: tally.ready,
            terminating: tally.terminating,
            failure: None,
        };
        match plan::act(snapshot, tally) {
            Action::None => {}
            Action::Wait(wait) => return (counts, Some(wait)),
            Action::Delete(pods) => counts = self.delete(owner, tally, &pods, true).await,
            Action::Create(new) => {
                let pods: Vec<Pod> = new.iter().map(|n| pod(snapshot.job, owner, n)).collect();
                let (made, result) = self.control.create_many(owner, &pods).await;
                counts.active += made as i32;
                counts.failure = result.err();
            }
        }
        (counts, None)
    }

    /// Takes the finalizer off pods; returns which are without it now, and what failed.
    async fn release(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> (HashSet<String>, Option<keelson_client::Error>) {
        let results = join_all(pods.iter().map(|pod| self.release_one(key, pod))).await;
        let mut gone = HashSet::new();
        let mut failure = None;
        for (result, pod) in results.into_iter().zip(pods) {
            match result {
                Ok(()) => {
                    gone.insert(pod.uid().to_string());
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (gone, failure)
    }

    async fn release_one(&self, key: &ObjectKey, pod: &Pod) -> Result<(), keelson_client::Error> {
        if !view::has_finalizer(pod) {
            return Ok(());
        }
        let body = serde_json::json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [view::FINALIZER]}});
        match self
            .control
            .pods
            .patch(pod.namespace(), pod.name(), Patch::Strategic(&body))
            .await
        {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            // The uid is another's: the pod meant is gone.
            Err(error) if keelson_client::is_conflict(&error) || keelson_client::is_invalid(&error) => {}
            Err(error) => return Err(error),
        }
        self.notes
            .lock()
            .entry(key.clone())
            .or_default()
            .released
            .insert(pod.uid().to_string());
        Ok(())
    }

    /// Pods that a finished job left unreleased, for instance because a status was written but the patch failed.
    async fn release_rest(&self, key: &ObjectKey, job: &Job) -> anyhow::Result<Outcome> {
        let left: Vec<Arc<Pod>> = self
            .pods
            .store()
            .controlled_by(job.uid())
            .into_iter()
            .filter(|p| view::has_finalizer(p))
            .collect();
        let (_, failure) = self.release(key, &left).await;
        self.notes.lock().remove(key);
        failure.map_or(Ok(Outcome::Done), |error| Err(error.into()))
    }

    /// Nobody will count the pods of a job that is gone.
    async fn release_orphans(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let left = self.pods.store().by_index(UNCOUNTED, &key.to_string());
        if left.is_empty() || self.objects.find(&key.namespace, &key.name).await?.is_some() {
            return Ok(Outcome::Done);
        }
        let (_, failure) = self.release(key, &left).await;
        self.notes.lock().remove(key);
        failure.map_or(Ok(Outcome::Done), |error| Err(error.into()))
    }
}

/// The index of pods that are still to be counted, by their job.
const UNCOUNTED: &str = "uncounted";

/// The job of a pod that is still to be counted.
fn uncounted(pod: &Pod) -> Option<ObjectKey> {
    let name = match wire::controller_of(pod.meta()) {
        Some(owner) => wire::is_kind(owner, "Job", "batch").then_some(&owner.name),
        None => pod.metadata.labels.as_ref()?.get("batch.kubernetes.io/job-name"),
    };
    let name = name.filter(|_| view::has_finalizer(pod))?;
    Some(ObjectKey::new(pod.namespace(), name.clone()))
}

/// The pod for an index, or just one more.
fn pod(job: &Job, owner: &Owner, new: &NewPod) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == view::FINALIZER) {
        finalizers.push(view::FINALIZER.into());
    }
    let Some(index) = new.index else { return pod };
    let text = index.to_string();
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(view::INDEX.into(), text.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(view::INDEX.into(), text);
    if let Some((counted, ignored)) = new.failures {
        annotations.insert(view::INDEX_FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(view::INDEX_IGNORED.into(), ignored.to_string());
        }
    }
    let end = format!("-{index}-");
    let stem: String = owner.name.chars().take(NAME_PREFIX - end.len()).collect();
    pod.metadata.generate_name = Some(stem + &end);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", owner.name));
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == INDEX_VARIABLE) {
            let field = ObjectFieldSelector {
                field_path: format!("metadata.labels['{}']", view::INDEX),
                ..Default::default()
            };
            let source = EnvVarSource {
                field_ref: Some(field),
                ..Default::default()
            };
            env.push(EnvVar {
                name: INDEX_VARIABLE.into(),
                value_from: Some(source),
                value: None,
            });
        }
    }
    pod
}
