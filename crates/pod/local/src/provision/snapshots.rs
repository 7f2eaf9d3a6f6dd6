//! Pictures of this node's volumes: the csi-snapshotter sidecar's job. A content that is this node's is made, reported on and removed; what
//! snapshots there are and which contents they have is the common controller's.
//!
//! Which node a content is for says its label, upstream's of distributed snapshotting.

use super::{Shared, annotation, told};
use async_trait::async_trait;
use keelson_client::EventType::Warning;
use keelson_client::snapshots::{SnapshotError, VolumeSnapshotClass, VolumeSnapshotContent};
use keelson_client::{
    ApiObject, Change, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile,
    Rest, is_conflict, is_not_found,
};
use keelson_csi::v1::{self as csi};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

pub const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
const FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// Parameters of a class that are for the sidecar, not the driver.
const RESERVED: &str = "csi.storage.k8s.io/";

pub async fn run(shared: Arc<Shared>, rest: Rest, stop: CancellationToken) {
    let options = InformerOptions {
        labels: format!("{MANAGED_BY}={}", shared.facts.node),
        ..InformerOptions::default()
    };
    let contents: Informer<VolumeSnapshotContent> = Informer::start(&rest, options, &stop);
    let controller = Controller::new("local-snapshots")
        .input(&contents)
        .output(VolumeSnapshotContent::RESOURCE)
        .longest_delay(super::LONGEST_DELAY);
    let queue = controller.queue();
    contents.on_change(move |change| {
        // What is written here is no reason to ask the driver again: that waits its time.
        if !matches!(change, Change::Updated { old, new } if is_own_writing(old, new)) {
            queue.add(change.object().key());
        }
    });
    let snapshots = Snapshots {
        shared,
        contents,
        objects: Objects::new(&rest),
        classes: Objects::new(&rest),
    };
    controller.run(Arc::new(snapshots), stop).await;
}

/// What is to be done about a content.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// The picture is to be taken, or asked for again.
    Take,
    /// One that was there before is to be looked at.
    Look,
    /// The picture goes.
    Remove,
    /// The content may go.
    Release,
}

fn decide(content: &VolumeSnapshotContent) -> Step {
    let source = &content.spec.source;
    let unbound = content
        .spec
        .volume_snapshot_ref
        .uid
        .as_deref()
        .unwrap_or_default()
        .is_empty();
    if content.is_deleting() {
        let before = source.snapshot_handle.is_some() && unbound;
        // Whether it was taken isn't known while the driver hasn't answered.
        let going = annotation(content, BEING_CREATED).is_none() && annotation(content, BEING_DELETED).is_some();
        let protected = content.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        let taken = content.status.as_ref().is_some_and(|s| s.snapshot_handle.is_some());
        return match before || going {
            true if taken && content.spec.deletion_policy == "Delete" => Step::Remove,
            true if protected => Step::Release,
            // An answer is still to be had: by asking again.
            false if annotation(content, BEING_CREATED).is_some() && source.volume_handle.is_some() => Step::Take,
            _ => Step::Nothing,
        };
    }
    match (&source.volume_handle, &source.snapshot_handle) {
        _ if content.is_ready() => Step::Nothing,
        _ if unbound => Step::Nothing,
        (Some(_), None) => Step::Take,
        (None, Some(_)) => Step::Look,
        _ => Step::Nothing,
    }
}

/// Whether two forms of a content differ in no more than its status and in whether the driver is being asked. A picture that is there, or
/// is gone, is more: what comes next depends on it; so it does on the driver's answer, once the content is to go.
fn is_own_writing(old: &VolumeSnapshotContent, new: &VolumeSnapshotContent) -> bool {
    let picture = |content: &VolumeSnapshotContent| content.status.as_ref().and_then(|s| s.snapshot_handle.clone());
    let bare = |content: &VolumeSnapshotContent| {
        let mut content = content.clone();
        content.status = None;
        content.metadata.resource_version = None;
        content.metadata.managed_fields = None;
        content.metadata.generation = None;
        let mut annotations = content.metadata.annotations.take().unwrap_or_default();
        if !new.is_deleting() {
            annotations.remove(BEING_CREATED);
        }
        content.metadata.annotations = Some(annotations);
        content
    };
    picture(old) == picture(new) && bare(old) == bare(new)
}

struct Snapshots {
    shared: Arc<Shared>,
    contents: Informer<VolumeSnapshotContent>,
    objects: Objects<VolumeSnapshotContent>,
    classes: Objects<VolumeSnapshotClass>,
}

#[async_trait]
impl Reconcile for Snapshots {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let found = self.contents.store().get_key(key);
        let Some(content) = found.filter(|c| c.spec.driver == self.shared.facts.name) else {
            return Ok(Outcome::Done);
        };
        let done = match decide(&content) {
            Step::Nothing => Ok(Outcome::Done),
            Step::Take => self.take(&content).await,
            Step::Look => self.look(&content).await,
            Step::Remove => self.remove(&content).await,
            Step::Release => self.release(&content).await,
        };
        match done {
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(Outcome::Retry),
            other => Ok(other?),
        }
    }
}

impl Snapshots {
    async fn patch(&self, content: &VolumeSnapshotContent, mut body: Value) -> keelson_client::Result<()> {
        body["metadata"]["resourceVersion"] = json!(content.metadata.resource_version);
        self.objects
            .patch("", content.name(), Patch::Merge(&body))
            .await
            .map(drop)
    }

    async fn status(&self, content: &VolumeSnapshotContent, status: Value) -> keelson_client::Result<()> {
        let body = json!({"metadata": {"uid": content.uid()}, "status": status});
        self.objects
            .patch_status("", content.name(), Patch::Merge(&body))
            .await
            .map(drop)
    }

    /// Says once what went wrong.
    async fn fail(
        &self,
        content: &VolumeSnapshotContent,
        reason: &str,
        text: String,
    ) -> keelson_client::Result<Outcome> {
        let before = content.status.as_ref().and_then(|s| s.error.as_ref());
        if before.and_then(|e| e.message.as_deref()) != Some(text.as_str()) {
            let error = SnapshotError {
                time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    keelson_clock::now(),
                )),
                message: Some(text.clone()),
            };
            self.shared.recorder.event(content, Warning, reason, text);
            self.status(content, json!({"readyToUse": false, "error": error}))
                .await?;
        }
        Ok(Outcome::Retry)
    }

    async fn tell(&self, content: &VolumeSnapshotContent, made: &csi::Snapshot) -> keelson_client::Result<Outcome> {
        let at = made.creation_time.as_ref();
        let nanos = at.map(|t| t.seconds.saturating_mul(1_000_000_000).saturating_add(t.nanos.into()));
        let mut status = json!({
            "snapshotHandle": made.snapshot_id, "readyToUse": made.ready_to_use, "error": null,
            "creationTime": nanos.filter(|n| *n != 0).unwrap_or_else(now),
        });
        if made.size_bytes > 0 {
            status["restoreSize"] = json!(made.size_bytes);
        }
        self.status(content, status).await?;
        Ok(match made.ready_to_use {
            true => Outcome::Done,
            false => Outcome::Retry,
        })
    }

    async fn take(&self, content: &VolumeSnapshotContent) -> keelson_client::Result<Outcome> {
        const REASON: &str = "SnapshotCreationFailed";
        let failed = |why: String| format!("Failed to create snapshot: {why}");
        let name = content.name();
        let class = match content.spec.volume_snapshot_class_name.as_deref() {
            Some(class) => self.classes.find("", class).await?,
            None => None,
        };
        let Some(class) = class else {
            let why = format!("failed to take snapshot {name} without a snapshot class");
            return self.fail(content, REASON, failed(why)).await;
        };
        if let Some(parameter) = class.parameters.keys().find(|k| k.starts_with(RESERVED)) {
            let why = format!("parameter {parameter} of the class is not supported");
            return self.fail(content, REASON, failed(why)).await;
        }
        if annotation(content, BEING_CREATED).is_none() {
            // Before the driver is asked: whoever deletes the content waits for its answer.
            let body = json!({"metadata": {"annotations": {BEING_CREATED: "yes"}}});
            self.patch(content, body).await?;
        }
        let handle = content.spec.source.volume_handle.clone().unwrap_or_default();
        let uid = content.spec.volume_snapshot_ref.uid.clone().unwrap_or_default();
        let request = csi::CreateSnapshotRequest {
            source_volume_id: handle.clone(),
            name: format!("snapshot-{uid}"),
            parameters: class.parameters.into_iter().collect(),
            ..Default::default()
        };
        let made = match self.shared.driver.controller().create_snapshot(request).await {
            Ok(answer) => answer.into_inner().snapshot,
            Err(status) => {
                if is_final(status.code()) {
                    self.settled(content).await?;
                }
                let why = format!("failed to take snapshot of the volume {handle}: {:?}", told(&status));
                return self.fail(content, REASON, failed(why)).await;
            }
        };
        let Some(made) = made else {
            let why = "the driver answers without a snapshot".to_string();
            return self.fail(content, REASON, failed(why)).await;
        };
        self.shared.changed.notify_one();
        let outcome = self.tell(content, &made).await?;
        self.settled(content).await?;
        Ok(outcome)
    }

    /// The driver has answered.
    async fn settled(&self, content: &VolumeSnapshotContent) -> keelson_client::Result<()> {
        let body = json!({"metadata": {"uid": content.uid(), "annotations": {BEING_CREATED: null}}});
        self.objects
            .patch("", content.name(), Patch::Merge(&body))
            .await
            .map(drop)
    }

    async fn look(&self, content: &VolumeSnapshotContent) -> keelson_client::Result<Outcome> {
        let handle = content.spec.source.snapshot_handle.clone().unwrap_or_default();
        let request = csi::ListSnapshotsRequest {
            snapshot_id: handle.clone(),
            ..Default::default()
        };
        let found = self.shared.driver.controller().list_snapshots(request).await;
        let found = found.map(|answer| answer.into_inner().entries.into_iter().find_map(|e| e.snapshot));
        let why = match found {
            Ok(Some(made)) => return self.tell(content, &made).await,
            Ok(None) => format!("can not find snapshot for snapshotID {handle}"),
            Err(status) => told(&status),
        };
        let text = format!("Failed to check and update snapshot content: {why}");
        self.fail(content, "SnapshotContentCheckandUpdateFailed", text).await
    }

    async fn remove(&self, content: &VolumeSnapshotContent) -> keelson_client::Result<Outcome> {
        let handle = content.status.as_ref().and_then(|s| s.snapshot_handle.clone());
        let request = csi::DeleteSnapshotRequest {
            snapshot_id: handle.unwrap_or_default(),
            ..Default::default()
        };
        if let Err(status) = self.shared.driver.controller().delete_snapshot(request).await {
            let text = format!("Failed to delete snapshot: {}", told(&status));
            self.shared
                .recorder
                .event(content, Warning, "SnapshotDeleteError", text);
            return Ok(Outcome::Retry);
        }
        self.shared.changed.notify_one();
        let gone = json!({"snapshotHandle": null, "readyToUse": null, "creationTime": null, "restoreSize": null});
        self.status(content, gone).await?;
        Ok(Outcome::Done)
    }

    async fn release(&self, content: &VolumeSnapshotContent) -> keelson_client::Result<Outcome> {
        let all = content.metadata.finalizers.iter().flatten();
        let rest: Vec<_> = all.filter(|f| *f != FINALIZER).collect();
        self.patch(content, json!({"metadata": {"finalizers": rest}})).await?;
        Ok(Outcome::Done)
    }
}

fn now() -> i64 {
    i64::try_from(keelson_clock::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Whether nothing goes on any more after this answer.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(meta: &str, source: &str, policy: &str, status: &str) -> VolumeSnapshotContent {
        let text = format!(
            r#"{{"metadata":{{"name":"c"{meta}}},"spec":{{"volumeSnapshotRef":{{"name":"s","namespace":"n","uid":"u"}},
                "deletionPolicy":"{policy}","driver":"d","source":{{{source}}}}}{status}}}"#
        );
        VolumeSnapshotContent::decode(text.as_bytes()).expect("a content")
    }

    #[test]
    fn what_is_written_here_calls_nobody() {
        let source = r#""volumeHandle":"v""#;
        let before = content("", source, "Delete", "");
        let own = content(
            &format!(r#","annotations":{{"{BEING_CREATED}":"yes"}},"resourceVersion":"2""#),
            source,
            "Delete",
            r#","status":{"readyToUse":false}"#,
        );
        assert!(is_own_writing(&before, &own) && is_own_writing(&own, &before));
        let marked = content(
            &format!(r#","annotations":{{"{BEING_DELETED}":"yes"}}"#),
            source,
            "Delete",
            "",
        );
        let going = content(r#","deletionTimestamp":"2026-01-01T00:00:00Z""#, source, "Delete", "");
        let taken = content("", source, "Delete", r#","status":{"snapshotHandle":"s"}"#);
        assert!(
            !is_own_writing(&taken, &before),
            "a picture that has been removed lets the content go"
        );
        let gone = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
        let asked = content(
            &format!(r#"{gone},"annotations":{{"{BEING_CREATED}":"yes"}}"#),
            source,
            "Delete",
            "",
        );
        assert!(
            !is_own_writing(&asked, &going),
            "the driver's answer lets a content go that was deleted meanwhile"
        );
        let failed = content(gone, source, "Delete", r#","status":{"readyToUse":false}"#);
        assert!(is_own_writing(&going, &failed));
        for other in [marked, going, taken, content("", source, "Retain", "")] {
            assert!(!is_own_writing(&before, &other));
        }
    }

    #[test]
    fn what_is_taken_looked_at_and_removed() {
        let (made, before) = (r#""volumeHandle":"v""#, r#""snapshotHandle":"s""#);
        assert_eq!(decide(&content("", made, "Delete", "")), Step::Take);
        assert_eq!(decide(&content("", before, "Delete", "")), Step::Look);
        let ready = r#","status":{"readyToUse":true,"snapshotHandle":"s"}"#;
        assert_eq!(decide(&content("", made, "Delete", ready)), Step::Nothing);
        let going = |annotations: &str, policy: &str, status: &str| {
            let meta = format!(
                r#","deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["{FINALIZER}"],"annotations":{{{annotations}}}"#
            );
            decide(&content(&meta, made, policy, status))
        };
        let marked = format!(r#""{BEING_DELETED}":"yes""#);
        assert_eq!(going("", "Delete", ready), Step::Nothing, "its snapshot stays");
        assert_eq!(going(&marked, "Delete", ready), Step::Remove);
        assert_eq!(going(&marked, "Delete", r#","status":{}"#), Step::Release);
        assert_eq!(going(&marked, "Retain", ready), Step::Release);
        let unanswered = format!(r#"{marked},"{BEING_CREATED}":"yes""#);
        assert_eq!(
            going(&unanswered, "Delete", ""),
            Step::Take,
            "nothing is forgotten that may be there"
        );
    }
}
