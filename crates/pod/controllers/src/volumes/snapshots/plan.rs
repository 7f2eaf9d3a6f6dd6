//! What a snapshot needs next. Pure: one step a turn, and each is seen by the next.

use super::{AS_SOURCE, BEING_DELETED, BOUND, CLAIM, CONTENT};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_api::Quantity;
use keelson_client::snapshots::{
    ContentSource, ContentSpec, SnapshotStatus, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent,
};
use keelson_client::{ApiObject, Kind, events};
use std::collections::BTreeMap;
use std::sync::Arc;

const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
pub const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
const SECRET_NAME: &str = "snapshot.storage.kubernetes.io/deletion-secret-name";
const SECRET_NAMESPACE: &str = "snapshot.storage.kubernetes.io/deletion-secret-namespace";
const SECRET_NAME_OF_CLASS: &str = "csi.storage.k8s.io/snapshotter-secret-name";
const SECRET_NAMESPACE_OF_CLASS: &str = "csi.storage.k8s.io/snapshotter-secret-namespace";

/// One snapshot and what belongs to it.
pub struct View<'a> {
    pub snapshot: &'a VolumeSnapshot,
    /// The content of the name that is the snapshot's ([`content_name`]), whosever it is.
    pub content: Option<&'a VolumeSnapshotContent>,
    /// Its source.
    pub claim: Option<&'a PersistentVolumeClaim>,
    /// The volume that the claim names.
    pub volume: Option<&'a PersistentVolume>,
    pub classes: &'a [Arc<VolumeSnapshotClass>],
    /// The node that has the volume, if no other can.
    pub node: Option<&'a str>,
    /// Claims are being filled from it.
    pub restoring: bool,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Told once; tried again. `unready`: it can't be used as it is.
    Refuse {
        reason: &'static str,
        message: String,
        unready: bool,
    },
    /// A claim waits for it: it stays.
    Wait,
    Finalizers(Vec<String>),
    SetClass(String),
    /// Keeps the claim while its picture is being taken.
    HoldClaim,
    Create(Box<VolumeSnapshotContent>),
    /// Says which node's sidecar the content is for: that wasn't known when it was made.
    Label(String),
    /// Makes a content that was there before this snapshot's.
    Bind,
    Tell(Box<SnapshotStatus>),
    /// Lets whoever drives the content know that its snapshot goes.
    Mark,
    DeleteContent,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Step {
    Step::Refuse {
        reason,
        message: message.into(),
        unready: true,
    }
}

/// The content of a snapshot.
pub fn content_name(snapshot: &VolumeSnapshot) -> Option<String> {
    let named = snapshot.spec.source.volume_snapshot_content_name.clone();
    let made = || snapshot.claim().map(|_| format!("snapcontent-{}", snapshot.uid()));
    match snapshot.is_deleting() {
        true => snapshot.bound().map(Into::into).or_else(made),
        false => named.or_else(made),
    }
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

pub fn plan(view: &View) -> Step {
    let snapshot = view.snapshot;
    // Members of a group come and go with it, by the controller that makes groups.
    let owners = snapshot.metadata.owner_references.iter().flatten();
    let grouped = snapshot
        .status
        .as_ref()
        .is_some_and(|s| s.volume_group_snapshot_name.is_some());
    if grouped || owners.into_iter().any(|o| o.kind == "VolumeGroupSnapshot") {
        return Step::Nothing;
    }
    if snapshot.is_deleting() {
        return going(view);
    }
    let source = &snapshot.spec.source;
    if source.persistent_volume_claim_name.is_some() == source.volume_snapshot_content_name.is_some() {
        return refuse(
            "SnapshotValidationError",
            "Exactly one of PersistentVolumeClaimName and VolumeSnapshotContentName should be specified",
        );
    }
    if let Some(step) = view.content.and_then(|c| mismatch(snapshot, c)) {
        return step;
    }
    let mut finalizers = snapshot.metadata.finalizers.clone().unwrap_or_default();
    let before = finalizers.len();
    let deletes = view.content.is_some_and(|c| c.spec.deletion_policy == "Delete");
    for (finalizer, wanted) in [(AS_SOURCE, true), (BOUND, deletes)] {
        if wanted && !has(&snapshot.metadata, finalizer) {
            finalizers.push(finalizer.into());
        }
    }
    if finalizers.len() != before {
        return Step::Finalizers(finalizers);
    }
    match (snapshot.is_ready() && snapshot.bound().is_some(), view.content) {
        (true, None) => refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
        (true, Some(content)) if !content.is_of(snapshot) => refuse(
            "SnapshotMisbound",
            "VolumeSnapshotContent is not bound to the VolumeSnapshot correctly",
        ),
        (true, Some(_)) => Step::Nothing,
        (false, _) => unready(view),
    }
}

/// Why a content of the right name isn't the snapshot's.
fn mismatch(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Option<Step> {
    let made = snapshot.claim().is_some();
    let source = &content.spec.source;
    let reference = &content.spec.volume_snapshot_ref;
    let uid = reference.uid.as_deref().unwrap_or_default();
    let named = reference.name.as_deref() == Some(snapshot.name())
        && reference.namespace.as_deref() == Some(snapshot.namespace());
    let name = content.name();
    if made && source.volume_handle.is_none() {
        let text =
            format!("VolumeSnapshotContent {name} is pre-provisioned while expecting a dynamically provisioned one");
        return Some(refuse("SnapshotContentMismatch", text));
    }
    if !made && source.snapshot_handle.is_none() {
        let text = "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
        return Some(refuse("SnapshotContentMismatch", text));
    }
    if !named || (uid != snapshot.uid() && (made || !uid.is_empty())) {
        let text = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
        return Some(refuse("SnapshotContentMisbound", text));
    }
    None
}

fn unready(view: &View) -> Step {
    let snapshot = view.snapshot;
    let named = snapshot.spec.volume_snapshot_class_name.as_deref();
    let class = named.map(|name| view.classes.iter().find(|c| c.name() == name));
    if let (Some(None), Some(name)) = (class, named) {
        return Step::Refuse {
            reason: "GetSnapshotClassFailed",
            message: format!(
                "Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io {name:?} not found"
            ),
            unready: false,
        };
    }
    match (snapshot.claim(), view.content) {
        (None, None) => refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing"),
        (None, Some(content)) => {
            let unclassed = content.spec.volume_snapshot_class_name.is_none() && named.is_some();
            match content.is_of(snapshot) && !unclassed {
                true => tell(snapshot, content),
                false => Step::Bind,
            }
        }
        (Some(_), Some(content)) => match view.node {
            Some(node) if !content.is_ready() && !is_labelled(content) => Step::Label(node.into()),
            _ => tell(snapshot, content),
        },
        // It had one, of another moment: what is taken now would be another snapshot.
        (Some(_), None) if snapshot.bound().is_some() => {
            refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing")
        }
        (Some(claim), None) => make(view, claim, class.flatten()),
    }
}

fn is_labelled(content: &VolumeSnapshotContent) -> bool {
    let labels = content.metadata.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(MANAGED_BY))
}

/// The volume that is to be snapped, and its driver's names for itself and for it.
fn volume<'a>(view: &View<'a>, claim: &str) -> Result<(&'a PersistentVolume, &'a str, &'a str), String> {
    let missing =
        || format!("failed to retrieve PVC {claim} from the lister: persistentvolumeclaim {claim:?} not found");
    let found = view.claim.ok_or_else(missing)?;
    if found.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err(format!(
            "the PVC {claim} is not yet bound to a PV, will not attempt to take a snapshot"
        ));
    }
    let held = found.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    let held = held.unwrap_or_default();
    let volume = view
        .volume
        .ok_or_else(|| format!("failed to retrieve PV {held} from the API server"))?;
    let spec = volume.spec.as_ref();
    let reference = spec.and_then(|s| s.claim_ref.as_ref());
    // Who may make a claim may name anybody's volume in it; the volume has to name the claim too.
    if !reference.is_some_and(|r| {
        r.uid.as_deref() == Some(found.uid())
            && r.name.as_deref() == Some(found.name())
            && r.namespace.as_deref() == Some(found.namespace())
    }) {
        return Err("claim in dataSource not bound or invalid".into());
    }
    let csi = spec.and_then(|s| s.csi.as_ref()).ok_or_else(|| {
        format!(
            "snapshotting non-CSI volumes is not supported, snapshot:{}/{}",
            view.snapshot.namespace(),
            view.snapshot.name()
        )
    })?;
    Ok((volume, &csi.driver, &csi.volume_handle))
}

fn make(view: &View, claim: &str, class: Option<&Arc<VolumeSnapshotClass>>) -> Step {
    let failed = |why: String| {
        let text = format!("Failed to create snapshot content with error {why}");
        refuse("SnapshotContentCreationFailed", text)
    };
    let Some(class) = class else {
        let chosen = volume(view, claim).and_then(|(_, driver, _)| default(view.classes, driver));
        return match chosen {
            Ok(name) => Step::SetClass(name),
            Err(why) => Step::Refuse {
                reason: "SetDefaultSnapshotClassFailed",
                message: format!("Failed to set default snapshot class with error {why}"),
                unready: false,
            },
        };
    };
    let (of, handle) = match volume(view, claim) {
        Ok((of, driver, handle)) if driver == class.driver => (of, handle),
        Ok((_, driver, _)) => {
            return failed(format!(
                "the class {} is of driver {}, the volume of driver {driver}",
                class.name(),
                class.driver
            ));
        }
        Err(why) => return failed(why),
    };
    if let Some(claim) = view.claim
        && !has(&claim.metadata, CLAIM)
    {
        return match claim.is_deleting() {
            true => failed("cannot add finalizer on claim because it is being deleted".into()),
            false => Step::HoldClaim,
        };
    }
    match content(view, class, of, handle) {
        Ok(content) => Step::Create(Box::new(content)),
        Err(why) => failed(why),
    }
}

/// The driver's only default class.
fn default(classes: &[Arc<VolumeSnapshotClass>], driver: &str) -> Result<String, String> {
    let is_default = |c: &&Arc<VolumeSnapshotClass>| {
        let annotations = c.metadata.annotations.as_ref();
        c.driver == driver && annotations.and_then(|a| a.get(DEFAULT)).is_some_and(|v| v == "true")
    };
    let found: Vec<_> = classes.iter().filter(is_default).collect();
    match found.as_slice() {
        [one] => Ok(one.name().into()),
        [] => Err("cannot find default snapshot class".into()),
        several => Err(format!("{} default snapshot classes were found", several.len())),
    }
}

fn content(
    view: &View,
    class: &VolumeSnapshotClass,
    of: &PersistentVolume,
    handle: &str,
) -> Result<VolumeSnapshotContent, String> {
    let snapshot = view.snapshot;
    let name = content_name(snapshot).unwrap_or_default();
    let label = |node: &str| BTreeMap::from([(MANAGED_BY.to_string(), node.to_string())]);
    Ok(VolumeSnapshotContent {
        metadata: ObjectMeta {
            annotations: secret(class, snapshot, &name)?,
            labels: view.node.map(label),
            name: Some(name),
            ..Default::default()
        },
        spec: ContentSpec {
            volume_snapshot_ref: events::reference(&VolumeSnapshot::RESOURCE, &snapshot.metadata),
            deletion_policy: class.deletion_policy.clone(),
            driver: class.driver.clone(),
            volume_snapshot_class_name: Some(class.name().into()),
            source: ContentSource {
                volume_handle: Some(handle.into()),
                snapshot_handle: None,
            },
            source_volume_mode: of.spec.as_ref().and_then(|s| s.volume_mode.clone()),
        },
        status: None,
    })
}

/// The secret that the driver will need to remove the snapshot, written where it outlives the class.
fn secret(
    class: &VolumeSnapshotClass,
    snapshot: &VolumeSnapshot,
    content: &str,
) -> Result<Option<BTreeMap<String, String>>, String> {
    let given = |key: &str| class.parameters.get(key).map(String::as_str).filter(|v| !v.is_empty());
    let (name, namespace) = match (given(SECRET_NAME_OF_CLASS), given(SECRET_NAMESPACE_OF_CLASS)) {
        (None, None) => return Ok(None),
        (Some(name), Some(namespace)) => (name, namespace),
        _ => {
            return Err("either name and namespace for Snapshotter secrets specified, Both must be specified".into());
        }
    };
    let fill = |template: &str, with_name: bool| {
        let text = template
            .replace("${volumesnapshotcontent.name}", content)
            .replace("${volumesnapshot.namespace}", snapshot.namespace());
        let text = match with_name {
            true => text.replace("${volumesnapshot.name}", snapshot.name()),
            false => text,
        };
        match text.contains("${") {
            true => Err(format!("error resolving value {template:?}: invalid tokens")),
            false => Ok(text),
        }
    };
    Ok(Some(BTreeMap::from([
        (SECRET_NAME.to_string(), fill(name, true)?),
        (SECRET_NAMESPACE.to_string(), fill(namespace, false)?),
    ])))
}

/// The snapshot's status brought up to date with its content's.
fn tell(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent) -> Step {
    let before = snapshot.status.clone();
    let mut status = before.clone().unwrap_or_default();
    let known = content.status.clone().unwrap_or_default();
    let ready = known.ready_to_use.unwrap_or_default();
    status
        .bound_volume_snapshot_content_name
        .get_or_insert_with(|| content.name().into());
    if status.creation_time.is_none() {
        let at = known
            .creation_time
            .and_then(|ns| jiff::Timestamp::from_nanosecond(ns.into()).ok());
        status.creation_time = at
            .and_then(|t| jiff::Timestamp::from_second(t.as_second()).ok())
            .map(Time);
    }
    status.ready_to_use = Some(ready);
    let unknown = status.restore_size.as_ref().is_none_or(|size| bytes(size) == 0);
    if let (true, Some(size)) = (unknown, known.restore_size) {
        status.restore_size = Some(quantity(size));
    }
    status.error = match ready {
        true => None,
        false => known.error,
    };
    match before.as_ref() == Some(&status) {
        true => Step::Nothing,
        false => Step::Tell(Box::new(status)),
    }
}

fn bytes(size: &Text) -> i64 {
    Quantity::parse(&size.0).map_or(0, |q| q.value())
}

/// A size as the field writes it: in the largest unit of which it is a whole number.
fn quantity(bytes: i64) -> Text {
    let units = [
        (1_i64 << 50, "Pi"),
        (1 << 40, "Ti"),
        (1 << 30, "Gi"),
        (1 << 20, "Mi"),
        (1 << 10, "Ki"),
    ];
    let whole = units.iter().find(|(unit, _)| bytes != 0 && bytes % unit == 0);
    Text(whole.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit)))
}

/// A snapshot that is being deleted: its content is told, and goes first if it is to.
fn going(view: &View) -> Step {
    let snapshot = view.snapshot;
    let kept = |finalizer: &str| has(&snapshot.metadata, finalizer);
    if !kept(AS_SOURCE) && !kept(BOUND) {
        return Step::Nothing;
    }
    let content = view.content.filter(|c| c.is_of(snapshot));
    if content.is_some() && view.restoring {
        return Step::Wait;
    }
    let without = |gone: &[&str]| {
        let all = snapshot.metadata.finalizers.iter().flatten();
        all.filter(|f| !gone.contains(&f.as_str())).cloned().collect::<Vec<_>>()
    };
    let Some(content) = content else {
        return Step::Finalizers(without(&[AS_SOURCE, BOUND]));
    };
    let marked = content.metadata.annotations.as_ref();
    if !marked.is_some_and(|a| a.contains_key(BEING_DELETED)) {
        return Step::Mark;
    }
    match content.spec.deletion_policy == "Delete" {
        false => Step::Finalizers(without(&[AS_SOURCE, BOUND])),
        true if !content.is_deleting() => Step::DeleteContent,
        true if kept(AS_SOURCE) => Step::Finalizers(without(&[AS_SOURCE])),
        // Until the driver's sidecar has removed it.
        true => Step::Nothing,
    }
}

/// What a content needs by itself.
#[derive(Debug, PartialEq)]
pub enum OfContent {
    Nothing,
    Invalid,
    /// Keeps it until its driver has let go.
    Protect,
}

pub fn of_content(content: &VolumeSnapshotContent) -> OfContent {
    let source = &content.spec.source;
    let bound = content.spec.volume_snapshot_ref.uid.as_deref().unwrap_or_default();
    if source.volume_handle.is_some() == source.snapshot_handle.is_some() {
        OfContent::Invalid
    } else if !bound.is_empty() && !content.is_deleting() && !has(&content.metadata, CONTENT) {
        OfContent::Protect
    } else {
        OfContent::Nothing
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
