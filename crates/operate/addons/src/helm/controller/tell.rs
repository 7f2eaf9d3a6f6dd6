//! Tells how it is with a chart: in its conditions, and by events.

use super::Charts;
use crate::helm::chart::{ChartCondition, ChartStatus, HelmChart};
use crate::helm::job::Act;
use crate::helm::plan::Why;
use crate::helm::trouble;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{ApiObject, EventType, Patch, is_not_found};
use serde_json::json;

impl Charts {
    /// Which job it is about.
    pub(super) async fn failed(&self, chart: &HelmChart, why: Why) -> anyhow::Result<Act> {
        let (act, reason, message) = match why {
            Why::Job => (
                Act::Install,
                "Job failed",
                "Job has reached configured number of retries without succeeding",
            ),
            Why::Release => (
                Act::Install,
                "Release differs",
                "the job ends well again and again, and the release is not of this configuration: somebody else changes it, or the image can't",
            ),
            Why::RolledBack => (
                Act::Rollback,
                "Rolled back",
                "the job has failed, and the release went back to its last revision that was well; it is tried again when the chart changes",
            ),
            Why::Rollback => (
                Act::Rollback,
                "Rollback failed",
                "the job has failed, and so has the one that was to go back",
            ),
            Why::Uninstall => (
                Act::Delete,
                "Uninstall failed",
                "the job that uninstalls it has failed, and is made anew every five minutes; with the annotation helmcharts.helm.cattle.io/unmanaged the chart goes without it",
            ),
        };
        let message = match self.trouble(chart, act) {
            Some(trouble) => format!("{message}; {trouble}"),
            None => message.to_string(),
        };
        let job = format!(
            "Applying HelmChart using Job {}/{}",
            chart.namespace(),
            act.job_name(chart.name())
        );
        let is_new = self.tell(chart, Some((act, &job)), Some((reason, &message))).await?;
        if is_new {
            self.recorder.event(chart, EventType::Warning, "JobFailed", message);
        }
        Ok(act)
    }

    /// What the job's pods say is the matter.
    pub(super) fn trouble(&self, chart: &HelmChart, act: Act) -> Option<String> {
        let job = self.job(chart, act)?;
        let is_of = |pod: &Pod| {
            pod.metadata
                .owner_references
                .iter()
                .flatten()
                .any(|o| o.uid == job.uid())
        };
        let pods = self.pods.store().list_namespace(chart.namespace());
        let mut own = pods.iter().map(AsRef::as_ref).filter(|p| is_of(p)).peekable();
        match own.peek() {
            Some(_) => trouble::of(own),
            None => self.heard.of(&chart.key(), job.uid()),
        }
    }

    /// Writes what there is to tell, if it is another thing than before; whether it was.
    pub(super) async fn tell(
        &self,
        chart: &HelmChart,
        job: Option<(Act, &str)>,
        failed: Option<(&str, &str)>,
    ) -> anyhow::Result<bool> {
        let condition = |kind: &str, is: bool, reason: &str, message: &str| ChartCondition {
            kind: kind.into(),
            status: if is { "True" } else { "False" }.into(),
            reason: reason.into(),
            message: crate::health::short(message),
        };
        let created = match job {
            Some((_, message)) => condition("JobCreated", true, "Job created", message),
            None => condition("JobCreated", false, "", ""),
        };
        let failed = match failed {
            Some((reason, message)) => condition("Failed", true, reason, message),
            None => condition("Failed", false, "", ""),
        };
        let before = chart.status.clone().unwrap_or_default();
        let status = ChartStatus {
            job_name: job.map_or(before.job_name.clone(), |(act, _)| act.job_name(chart.name())),
            conditions: vec![created, failed],
        };
        if status == before {
            return Ok(false);
        }
        let body = json!({"metadata": {"uid": chart.uid()}, "status": status});
        match self
            .charts
            .patch_status(chart.namespace(), chart.name(), Patch::Merge(&body))
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(true),
        }
    }
}
