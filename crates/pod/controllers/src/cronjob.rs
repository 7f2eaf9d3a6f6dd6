//! Starts jobs by the clock, and keeps as many ended ones as wanted.

mod schedule;

use crate::claim::Owner;
use crate::context::{Context, now};
use crate::pod_control::message;
use crate::wire;
use anyhow::Context as _;
use async_trait::async_trait;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::events::reference;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder,
    delete_options, is_already_exists, is_not_found,
};
use keelson_cron::zone;
use std::sync::Arc;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A little later than due, so that the clock has surely passed it.
const MARGIN: SignedDuration = SignedDuration::from_millis(100);

pub fn start(context: &Context) {
    let crons = context.informer::<CronJob>();
    let jobs = context.informer::<Job>();
    jobs.store().index_controllers();
    let controller = Controller::new("cronjob")
        .input(&crons)
        .input(&jobs)
        .output(Job::RESOURCE)
        .output(CronJob::RESOURCE);
    let queue = controller.queue();
    let rest = context.rest("cronjob-controller");
    let recorder = context.recorder(&rest, "cronjob-controller");
    {
        let (queue, recorder) = (queue.clone(), recorder.clone());
        crons.on_change(move |change| changed(change.old().map(|old| &**old), change.object(), &queue, &recorder));
    }
    wire::quota_release(&context.informer(), &queue);
    wire::owned(&jobs, &queue, "CronJob", "batch", |_, _| {});
    let (objects, job_objects) = (Objects::new(&rest), Objects::new(&rest));
    context.run(
        controller,
        Crons {
            crons,
            jobs,
            objects,
            job_objects,
            recorder,
            own: Expectations::default(),
            written: Expectations::default(),
        },
    );
}

struct Crons {
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    objects: Objects<CronJob>,
    job_objects: Objects<Job>,
    recorder: Recorder,
    own: Expectations,
    written: Expectations,
}

/// A changed object is looked at now. A changed schedule isn't: its next start is waited for, so that an edit by itself
/// starts nothing.
fn changed(old: Option<&CronJob>, cron: &CronJob, queue: &wire::Queue, recorder: &Recorder) {
    let same = |old: &CronJob| old.spec.schedule == cron.spec.schedule && old.spec.time_zone == cron.spec.time_zone;
    if old.is_none_or(same) {
        return queue.add(cron.key());
    }
    match schedule::of(cron) {
        Ok(schedule) => {
            let now = now();
            let next = schedule::next(&schedule, last_start(cron, now), now);
            // One that never comes is looked at once, and told of.
            queue.add_at(
                cron.key(),
                next.and_then(|next| next.checked_add(MARGIN).ok()).unwrap_or(now),
            );
        }
        Err(_) => {
            let text = format!("unparseable schedule for cronjob: {}", cron.spec.schedule);
            recorder.event(cron, Warning, "UnParseableCronJobSchedule", text);
        }
    }
}

/// From when on starts count: the last one, else the creation.
fn last_start(cron: &CronJob, now: Timestamp) -> Timestamp {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0)
}

fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")
        .map(|c| c.type_.as_str())
}

#[async_trait]
impl Reconcile for Crons {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.own.settle(key, self.crons.store()).await?;
        self.written.settle(key, self.jobs.store()).await?;
        let Some(found) = self.crons.store().get_key(key) else {
            self.own.forget(key);
            self.written.forget(key);
            return Ok(Outcome::Done);
        };
        let mut cron = (*found).clone();
        let children = self.jobs.store().controlled_by(cron.uid());
        self.take_stock(&mut cron, &children).await?;
        let result = if cron.is_deleting() {
            Ok(Outcome::Done)
        } else {
            self.run(key, &mut cron).await
        };
        if cron.status != found.status {
            match self.objects.update_status(&cron).await {
                Ok(written) => self.own.wrote(key, written.meta()),
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                Err(error) => return Err(error.into()),
            }
        }
        self.clean_up(key, &cron, &children).await?;
        result
    }
}

impl Crons {
    /// Brings the list of active jobs up to date.
    async fn take_stock(&self, cron: &mut CronJob, children: &[Arc<Job>]) -> anyhow::Result<()> {
        let mut status = cron.status.take().unwrap_or_default();
        let mut active = status.active.take().unwrap_or_default();
        for job in children {
            let at = active.iter().position(|r| r.uid.as_deref() == Some(job.uid()));
            match (at, ended(job)) {
                (None, None) => {
                    let text = format!("Saw a job that the controller did not create or forgot: {}", job.name());
                    self.recorder.event(cron, Warning, "UnexpectedJob", text);
                }
                (Some(at), Some(condition)) => {
                    active.remove(at);
                    let text = format!("Saw completed job: {}, condition: {condition}", job.name());
                    self.recorder.event(cron, Normal, "SawCompletedJob", text);
                }
                _ => {}
            }
            let completed = job
                .status
                .as_ref()
                .and_then(|s| s.completion_time.clone())
                .filter(|_| ended(job) == Some("Complete"));
            if completed > status.last_successful_time {
                status.last_successful_time = completed;
            }
        }
        let mut known = Vec::with_capacity(active.len());
        for job in active {
            let name = job.name.clone().unwrap_or_default();
            let is_child = children.iter().any(|c| Some(c.uid()) == job.uid.as_deref());
            if !is_child && self.job_objects.find(cron.namespace(), &name).await?.is_none() {
                self.recorder
                    .event(cron, Normal, "MissingJob", format!("Active job went missing: {name}"));
                continue;
            }
            known.push(job);
        }
        status.active = (!known.is_empty()).then_some(known);
        let empty = status == Default::default();
        cron.status = Some(status).filter(|_| {
            !(empty
                && self
                    .crons
                    .store()
                    .get_key(&cron.key())
                    .is_some_and(|c| c.status.is_none()))
        });
        Ok(())
    }

    async fn run(&self, key: &ObjectKey, cron: &mut CronJob) -> anyhow::Result<Outcome> {
        if let (Some(name), Err(error)) = (&cron.spec.time_zone, schedule::zone_of(cron)) {
            let text = format!("invalid timeZone: {name:?}: {error}");
            self.recorder.event(cron, Warning, "UnknownTimeZone", text);
            return Ok(Outcome::Done);
        }
        if cron.spec.suspend.unwrap_or(false) {
            return Ok(Outcome::Done);
        }
        if schedule::has_own_zone(cron) {
            let text = format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                cron.spec.schedule
            );
            self.recorder.event(cron, Warning, "UnsupportedSchedule", text);
        }
        let schedule = match schedule::of(cron) {
            Ok(schedule) => schedule,
            Err(error) => {
                let text = format!("unparseable schedule: {:?} : {error}", cron.spec.schedule);
                self.recorder.event(cron, Warning, "UnparseableSchedule", text);
                return Ok(Outcome::Done);
            }
        };
        let now = now();
        let status = cron.status.clone().unwrap_or_default();
        let last = last_start(cron, now);
        let deadline = cron.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        let due = match schedule::due(&schedule, last, deadline, now) {
            Ok(due) => due,
            Err(why) => {
                let text = format!("invalid schedule: {} : {why}", cron.spec.schedule);
                self.recorder.event(cron, Warning, "InvalidSchedule", text);
                return Ok(Outcome::Done);
            }
        };
        if due.many_missed && due.at.is_some() {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.recorder.event(cron, Warning, "TooManyMissedTimes", text);
        }
        let again = match schedule::next(&schedule, last, now).and_then(|next| next.checked_add(MARGIN).ok()) {
            Some(next) => Outcome::At(next),
            None => Outcome::Done,
        };
        let Some(at) = due.at else { return Ok(again) };
        if deadline.is_some_and(|deadline| at.saturating_add(deadline).unwrap_or(Timestamp::MAX) < now) {
            let text = format!(
                "Missed scheduled time to start a job: {}",
                at.strftime("%a, %d %b %Y %H:%M:%S +0000")
            );
            self.recorder.event(cron, Warning, "MissSchedule", text);
            return Ok(again);
        }
        let name = job_name(cron, at);
        let active = status.active.unwrap_or_default();
        if active.iter().any(|r| r.name.as_deref() == Some(&name))
            || status.last_schedule_time.as_ref().is_some_and(|t| t.0 == at)
        {
            return Ok(again);
        }
        match cron.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.recorder.event(cron, Normal, "JobAlreadyActive", text);
                return Ok(again);
            }
            Some("Replace") => {
                for job in &active {
                    self.delete_job(key, cron, job.name.as_deref().unwrap_or_default(), job.uid.as_deref())
                        .await?;
                }
                cron.status.get_or_insert_default().active = None;
            }
            _ => {}
        }
        self.start(key, cron, at, name).await?;
        Ok(again)
    }

    async fn start(&self, key: &ObjectKey, cron: &mut CronJob, at: Timestamp, name: String) -> anyhow::Result<()> {
        let job = new_job(cron, at, name)?;
        let created = match self.job_objects.create(&job).await {
            Ok(created) => {
                self.recorder.event(
                    cron,
                    Normal,
                    "SuccessfulCreate",
                    format!("Created job {}", created.name()),
                );
                created
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) if is_already_exists(&error) => {
                // Created in an earlier turn whose status could not be written, or somebody else's.
                let found = self.job_objects.get(job.namespace(), job.name()).await?;
                if wire::controller_of(found.meta()).is_none_or(|c| c.uid != cron.uid()) {
                    let text = format!("Error creating job: {}", message(&error));
                    self.recorder.event(cron, Warning, "FailedCreate", text);
                    return Err(error).context("creating a job");
                }
                found
            }
            Err(error) => {
                self.recorder.event(
                    cron,
                    Warning,
                    "FailedCreate",
                    format!("Error creating job: {}", message(&error)),
                );
                return Err(error).context("creating a job");
            }
        };
        self.written.wrote(key, created.meta());
        let status = cron.status.get_or_insert_default();
        if ended(&created).is_none() {
            let reference: ObjectReference = reference(&Job::RESOURCE, created.meta());
            status.active.get_or_insert_default().push(reference);
        }
        status.last_schedule_time = Some(Time(at));
        Ok(())
    }

    async fn delete_job(&self, key: &ObjectKey, cron: &CronJob, name: &str, uid: Option<&str>) -> anyhow::Result<()> {
        match self
            .job_objects
            .delete(cron.namespace(), name, &delete_options(Some("Background"), uid, None))
            .await
        {
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => {
                self.recorder.event(
                    cron,
                    Warning,
                    "FailedDelete",
                    format!("Deleted job: {}", message(&error)),
                );
                Err(error).context("deleting a job")
            }
            Ok(()) => {
                if let Some(job) = self.jobs.store().get(cron.namespace(), name) {
                    self.written.deleted(key, job.meta());
                }
                self.recorder
                    .event(cron, Normal, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    /// Deletes the oldest ended jobs beyond the limits.
    async fn clean_up(&self, key: &ObjectKey, cron: &CronJob, children: &[Arc<Job>]) -> anyhow::Result<()> {
        for (condition, limit) in [
            ("Complete", cron.spec.successful_jobs_history_limit),
            ("Failed", cron.spec.failed_jobs_history_limit),
        ] {
            let Some(limit) = limit else { continue };
            for job in surplus(children, condition, limit.max(0) as usize) {
                self.delete_job(key, cron, job.name(), Some(job.uid())).await?;
            }
        }
        Ok(())
    }
}

fn surplus(children: &[Arc<Job>], condition: &str, limit: usize) -> Vec<Arc<Job>> {
    let mut ended: Vec<Arc<Job>> = children
        .iter()
        .filter(|j| !j.is_deleting() && self::ended(j) == Some(condition))
        .cloned()
        .collect();
    ended.sort_by_key(|j| {
        (
            j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            j.name().to_string(),
        )
    });
    ended.truncate(ended.len().saturating_sub(limit));
    ended
}

/// Names follow from the time, so that no start can happen twice.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name(), at.as_second().div_euclid(60))
}

fn new_job(cron: &CronJob, at: Timestamp, name: String) -> anyhow::Result<Job> {
    let template = &cron.spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let zone = match cron.spec.time_zone.as_deref() {
        Some(zone) => zone::load(zone)?,
        None => TimeZone::UTC,
    };
    let local = at.to_zoned(zone);
    let stamp = if local.offset().is_zero() {
        local.strftime("%Y-%m-%dT%H:%M:%SZ")
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S%:z")
    };
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), stamp.to_string());
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![Owner::of(cron).reference()]),
            creation_timestamp: None,
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_time() {
        let text = r#"{"metadata":{"name":"c","namespace":"ns","uid":"u"},"spec":{"schedule":"* * * * *","timeZone":"Europe/Berlin",
            "jobTemplate":{"metadata":{"labels":{"a":"b"}},"spec":{"template":{}}}}}"#;
        let cron = CronJob::decode(text.as_bytes()).expect("valid");
        let at = Timestamp::from_second(1_800_000_000).unwrap_or_default();
        let job = new_job(&cron, at, job_name(&cron, at)).expect("made");
        assert_eq!(job.name(), "c-30000000");
        assert_eq!(
            job.metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(SCHEDULED))
                .map(String::as_str),
            Some("2027-01-15T09:00:00+01:00")
        );
        assert_eq!(
            wire::controller_of(job.meta()).map(|o| o.kind.as_str()),
            Some("CronJob")
        );
    }

    #[test]
    fn the_oldest_ended_jobs_are_surplus() {
        let job = |name: &str, second: &str, condition: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}"}},"status":{{"startTime":"2026-01-01T00:00:{second}Z","conditions":[{{"type":"{condition}","status":"True"}}]}}}}"#
            );
            Arc::new(Job::decode(text.as_bytes()).expect("valid"))
        };
        let all = [
            job("b", "20", "Complete"),
            job("a", "10", "Complete"),
            job("f", "05", "Failed"),
            job("c", "30", "Complete"),
        ];
        let names = |condition, limit| {
            surplus(&all, condition, limit)
                .iter()
                .map(|j| j.name().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("Complete", 1), ["a", "b"]);
        assert_eq!(names("Failed", 1), Vec::<String>::new());
        assert_eq!(names("Failed", 0), ["f"]);
    }
}
