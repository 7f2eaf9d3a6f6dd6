//! The history of pod templates, kept as ControllerRevisions: shared by stateful sets and daemon sets.

use crate::claim::{Owner, claim};
use crate::pods;
use crate::util::{content_hash, template_from_value, template_value};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_client::{
    ApiObject, Expectations, Informer, ObjectKey, Objects, Rest, delete_options, is_already_exists, is_not_found,
    labels,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";
pub const REVISION_LABEL: &str = "controller-revision-hash";

pub struct History {
    pub revisions: Informer<ControllerRevision>,
    objects: Objects<ControllerRevision>,
    rest: Rest,
    pub written: Expectations,
}

/// What an owner wants recorded.
pub struct Wanted<'a> {
    pub owner: &'a Owner,
    pub selector: &'a LabelSelector,
    pub template: &'a PodTemplateSpec,
    pub annotations: Option<&'a labels::Labels>,
    pub collisions: i32,
    /// The label under which a revision carries its hash.
    pub hash_label: &'static str,
}

/// An owner's revisions, the oldest first, and which of them has its present template.
pub struct Recorded {
    pub all: Vec<Arc<ControllerRevision>>,
    pub present: Arc<ControllerRevision>,
    /// Others with the same template.
    pub twins: Vec<Arc<ControllerRevision>>,
    pub collisions: i32,
}

impl History {
    pub fn new(revisions: Informer<ControllerRevision>, rest: &Rest) -> Self {
        revisions.store().index_controllers();
        revisions.store().add_index(pods::ORPHANS, pods::orphan_namespace);
        History {
            revisions,
            objects: Objects::new(rest),
            rest: rest.clone(),
            written: Expectations::default(),
        }
    }

    async fn owned(&self, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Arc<ControllerRevision>>> {
        let store = self.revisions.store();
        let mut candidates = store.controlled_by(&wanted.owner.uid);
        candidates.extend(store.by_index(pods::ORPHANS, &wanted.owner.namespace));
        let matches = |r: &ControllerRevision| labels::matches(Some(wanted.selector), r.metadata.labels.as_ref());
        let mut all = claim(&self.rest, wanted.owner, candidates, matches).await?;
        all.sort_by_key(|a| order(a));
        Ok(all)
    }

    /// Finds the revision with the present template, brings it to the end of the history, or makes it.
    pub async fn record(&self, key: &ObjectKey, wanted: &Wanted<'_>) -> anyhow::Result<Recorded> {
        self.written.settle(key, self.revisions.store()).await?;
        let mut all = self.owned(wanted).await?;
        let newest = all.last().and_then(|r| r.revision).unwrap_or(0);
        let mut collisions = wanted.collisions;
        let normal = normal(wanted.template);
        let same = all.iter().rposition(|r| template_of(r).as_ref() == Some(&normal));
        let present = match same {
            Some(at) if at + 1 == all.len() => all[at].clone(),
            Some(at) => {
                let mut again = (*all[at]).clone();
                again.revision = Some(newest + 1);
                let written = Arc::new(self.objects.update(&again).await?);
                self.written.wrote(key, written.meta());
                all.remove(at);
                all.push(written.clone());
                written
            }
            None => {
                let made = Arc::new(self.create(wanted, newest + 1, &mut collisions).await?);
                self.written.wrote(key, made.meta());
                all.push(made.clone());
                made
            }
        };
        let is_twin =
            |r: &&Arc<ControllerRevision>| r.uid() != present.uid() && template_of(r).as_ref() == Some(&normal);
        let twins = all.iter().filter(is_twin).cloned().collect();
        Ok(Recorded {
            all,
            present,
            twins,
            collisions,
        })
    }

    async fn create(
        &self,
        wanted: &Wanted<'_>,
        revision: i64,
        collisions: &mut i32,
    ) -> anyhow::Result<ControllerRevision> {
        let data = data(wanted.template)?;
        loop {
            let hash = content_hash(data.to_string().as_bytes(), Some(*collisions));
            let stem: String = wanted.owner.name.chars().take(223).collect();
            let mut labels = wanted
                .template
                .metadata
                .as_ref()
                .and_then(|m| m.labels.clone())
                .unwrap_or_default();
            labels.insert(wanted.hash_label.into(), hash.clone());
            let new = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{stem}-{hash}")),
                    namespace: Some(wanted.owner.namespace.clone()),
                    labels: Some(labels),
                    annotations: wanted.annotations.cloned(),
                    owner_references: Some(vec![wanted.owner.reference()]),
                    ..Default::default()
                },
                data: RawExtension(data.clone()),
                revision: Some(revision),
            };
            match self.objects.create(&new).await {
                Err(error) if is_already_exists(&error) => {
                    let existing = self.objects.get(new.namespace(), new.name()).await?;
                    // Whoever has it now: one that an earlier owner of this name left is taken when the cache shows that it is
                    // free. Another name for the same template would replace all pods.
                    if existing.data.0 == data {
                        return Ok(existing);
                    }
                    *collisions += 1;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Deletes the oldest revisions beyond the limit, but none that is in use.
    pub async fn truncate(
        &self,
        key: &ObjectKey,
        recorded: &Recorded,
        in_use: &BTreeSet<String>,
        name: fn(&ControllerRevision) -> String,
        limit: i32,
    ) -> anyhow::Result<()> {
        let unused: Vec<&Arc<ControllerRevision>> = recorded
            .all
            .iter()
            .filter(|r| r.uid() != recorded.present.uid() && !in_use.contains(&name(r)))
            .collect();
        let surplus = unused.len().saturating_sub(limit.max(0) as usize);
        for revision in unused.into_iter().take(surplus) {
            self.delete(key, revision).await?;
        }
        Ok(())
    }

    pub async fn delete(&self, key: &ObjectKey, revision: &ControllerRevision) -> anyhow::Result<()> {
        let options = delete_options(None, Some(revision.uid()), None);
        match self
            .objects
            .delete(revision.namespace(), revision.name(), &options)
            .await
        {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => self.written.deleted(key, revision.meta()),
        }
        Ok(())
    }
}

fn order(revision: &ControllerRevision) -> (i64, Option<jiff::Timestamp>, String) {
    let born = revision.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (revision.revision.unwrap_or(0), born, revision.name().to_string())
}

/// A template as revisions hold it: as a patch that replaces the owner's.
fn data(template: &PodTemplateSpec) -> serde_json::Result<Value> {
    let mut template = template_value(template)?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

/// The template a revision holds, if it holds one.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.0.get("spec")?.get("template")?;
    template_from_value(template).ok()
}

/// A template as it comes back from a revision.
fn normal(template: &PodTemplateSpec) -> PodTemplateSpec {
    template_value(template)
        .and_then(|v| template_from_value(&v))
        .unwrap_or_else(|_| template.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    #[test]
    fn a_template_survives_its_revision() {
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("a".to_string(), "b".to_string())].into()),
                ..Default::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "c".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        };
        let revision = ControllerRevision {
            data: RawExtension(data(&template).expect("json")),
            ..Default::default()
        };
        assert_eq!(template_of(&revision), Some(normal(&template)));
        assert_eq!(revision.data.0["spec"]["template"]["$patch"], "replace");
        assert!(revision.data.0["spec"]["template"].get("kind").is_none());
    }
}
