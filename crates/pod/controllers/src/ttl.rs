//! Deletes ended jobs when their time to live has passed.

use crate::context::{Context, now};
use crate::wire;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, delete_options, is_not_found,
};

pub fn start(context: &Context) {
    let jobs = context.informer::<Job>();
    let controller = Controller::new("ttl-after-finished").input(&jobs).output(Job::RESOURCE);
    wire::own(&jobs, &controller.queue());
    let objects = Objects::new(&context.rest("ttl-after-finished-controller"));
    context.run(controller, Ttl { jobs, objects });
}

struct Ttl {
    jobs: Informer<Job>,
    objects: Objects<Job>,
}

/// When the job is to be deleted, if it has ended and ever is.
fn expires(job: &Job) -> Option<Timestamp> {
    let ttl = SignedDuration::from_secs(job.spec.as_ref()?.ttl_seconds_after_finished?.into());
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let end = conditions
        .iter()
        .find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0 + ttl)
}

#[async_trait]
impl Reconcile for Ttl {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(job) = self.jobs.store().get_key(key).filter(|j| !j.is_deleting()) else {
            return Ok(Outcome::Done);
        };
        let Some(at) = expires(&job) else {
            return Ok(Outcome::Done);
        };
        if at > now() {
            return Ok(Outcome::At(at));
        }
        // The time to live may have been raised meanwhile: what counts is the server's word.
        let Some(latest) = self.objects.find(&key.namespace, &key.name).await? else {
            return Ok(Outcome::Done);
        };
        if latest.uid() != job.uid() || expires(&latest).is_none_or(|at| at > now()) {
            return Ok(Outcome::Retry);
        }
        let options = delete_options(
            Some("Foreground"),
            Some(latest.uid()),
            latest.metadata.resource_version.as_deref(),
        );
        match self.objects.delete(&key.namespace, &key.name, &options).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ended_jobs_expire() {
        let job = |ttl: &str, condition: &str| {
            let text = format!(
                r#"{{"metadata":{{}},"spec":{{"template":{{}}{ttl}}},"status":{{"conditions":[{{"type":"{condition}","status":"True","lastTransitionTime":"1970-01-01T00:01:00Z"}}]}}}}"#
            );
            expires(&Job::decode(text.as_bytes()).expect("valid")).map(|t| t.as_second())
        };
        assert_eq!(job(r#","ttlSecondsAfterFinished":30"#, "Failed"), Some(90));
        assert_eq!(job(r#","ttlSecondsAfterFinished":0"#, "Complete"), Some(60));
        assert_eq!(job(r#","ttlSecondsAfterFinished":30"#, "Suspended"), None);
        assert_eq!(job("", "Complete"), None);
    }
}
