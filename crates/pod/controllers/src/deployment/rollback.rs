//! Going back to an earlier template, as the old annotation for it asks.

use super::sets::Sets;
use super::{Deployments, sets};
use k8s_openapi::api::apps::v1::Deployment;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{ApiObject, ObjectKey, Outcome};

impl Deployments {
    pub(super) async fn roll_back(
        &self,
        key: &ObjectKey,
        mut d: Deployment,
        mut sets: Sets,
        to: i64,
    ) -> anyhow::Result<Outcome> {
        self.ensure_new(key, &mut d, &mut sets).await?;
        let mut revisions: Vec<i64> = sets.all().map(|s| sets::revision(s)).collect();
        revisions.sort_unstable();
        let target = if to != 0 {
            to
        } else {
            revisions.iter().rev().nth(1).copied().unwrap_or(0)
        };
        let set = sets.all().find(|s| target != 0 && sets::revision(s) == target).cloned();
        match set {
            None => {
                let text = if target == 0 {
                    "Unable to find last revision."
                } else {
                    "Unable to find the revision to rollback to."
                };
                self.recorder
                    .event(&d, Warning, "DeploymentRollbackRevisionNotFound", text);
            }
            Some(set) if sets::same_template(&set.spec.template, &d.spec.template) => {
                let text = format!(
                    "The rollback revision contains the same template as current deployment {:?}",
                    d.name()
                );
                self.recorder
                    .event(&d, Warning, "DeploymentRollbackTemplateUnchanged", text);
            }
            Some(set) => {
                d.metadata.annotations = Some(sets::rolled_back_annotations(&d, &set));
                d.spec.template = set.spec.template.clone().unwrap_or_default();
                if let Some(labels) = d.spec.template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
                    labels.remove(sets::HASH_LABEL);
                }
                let text = format!("Rolled back deployment {:?} to revision {target}", d.name());
                self.recorder.event(&d, Normal, "DeploymentRollback", text);
            }
        }
        d.metadata.annotations.get_or_insert_default().remove(sets::ROLLBACK);
        let written = self.objects.update(&d).await?;
        self.own.wrote(key, written.meta());
        Ok(Outcome::Done)
    }
}
