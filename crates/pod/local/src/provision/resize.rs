//! Volumes grow with their claims: first in the driver, then, by the kubelet, on the node. Each step stands in the claim's status before
//! it begins, so that whoever comes after a crash goes on from there.

use super::request::{bytes, quantity, requested};
use super::source::is_of;
use super::{Shared, told};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::EventType::{Normal, Warning};
use keelson_client::{ApiObject, Outcome, Patch};
use keelson_csi::v1::controller_service_capability::rpc::Type as Can;
use keelson_csi::v1::{self as csi};
use serde_json::json;
use tonic::Code;

const BEFORE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
const BEGUN: &str = "ControllerResizeInProgress";
const PENDING: &str = "NodeResizePending";

/// What a claim's growing needs next.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// The driver, up to this many bytes.
    Grow(i64),
    /// The driver has done it: the node is to be told.
    Tell,
}

fn phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    let statuses = claim.status.as_ref()?.allocated_resource_statuses.as_ref()?;
    statuses.get("storage").map(String::as_str)
}

fn decide(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Step {
    let held = bytes(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
    let capacity = bytes(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()));
    let wanted = requested(claim);
    match phase(claim) {
        // The node has its turn; more than that was asked for meanwhile waits.
        Some("NodeResizePending" | "NodeResizeInProgress") => Step::Nothing,
        _ if wanted > capacity => Step::Grow(wanted),
        Some(BEGUN) if capacity > held => Step::Tell,
        _ => Step::Nothing,
    }
}

pub async fn see_to(shared: &Shared, claim: &PersistentVolumeClaim) -> anyhow::Result<Outcome> {
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.as_deref())
        .unwrap_or_default();
    let volume = shared
        .volumes
        .store()
        .get("", name)
        .filter(|v| bound && is_of(v, claim) && shared.facts.owns(v));
    let Some(volume) = volume.filter(|_| shared.facts.can(Can::ExpandVolume)) else {
        return Ok(Outcome::Done);
    };
    match decide(claim, &volume) {
        Step::Nothing => Ok(Outcome::Done),
        Step::Tell => {
            tell(shared, claim).await?;
            Ok(Outcome::Done)
        }
        Step::Grow(to) => grow(shared, claim, &volume, to).await,
    }
}

async fn grow(
    shared: &Shared,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    to: i64,
) -> anyhow::Result<Outcome> {
    let mut claim = claim.clone();
    if phase(&claim) != Some(BEGUN) {
        claim = write(shared, &claim, BEGUN, Some(to), condition("Resizing")).await?;
        let text = format!("External resizer is resizing volume {}", volume.name());
        shared.recorder.event(&claim, Normal, "Resizing", text);
    }
    let handle = volume
        .spec
        .as_ref()
        .and_then(|s| s.csi.as_ref())
        .map(|c| c.volume_handle.clone());
    let asked = csi::ControllerExpandVolumeRequest {
        volume_id: handle.unwrap_or_default(),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: to,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    let grown = match shared.driver.controller().controller_expand_volume(asked).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let text = format!(
                "resize volume {:?} by resizer {:?} failed: {}",
                volume.name(),
                shared.facts.name,
                told(&status)
            );
            shared.recorder.event(&claim, Warning, "VolumeResizeFailed", text);
            if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound) {
                write(shared, &claim, "ControllerResizeInfeasible", None, None).await?;
            }
            return Ok(Outcome::Retry);
        }
    };
    shared.changed.notify_one();
    let held = claim
        .status
        .as_ref()
        .and_then(|s| s.capacity.as_ref())
        .and_then(|c| c.get("storage"));
    let body = json!({
        "metadata": {"annotations": {BEFORE_RESIZE: held}, "resourceVersion": volume.metadata.resource_version},
        "spec": {"capacity": {"storage": quantity(grown.capacity_bytes.max(to))}},
    });
    shared
        .volume_objects
        .patch("", volume.name(), Patch::Merge(&body))
        .await?;
    tell(shared, &claim).await?;
    Ok(Outcome::Done)
}

/// The kubelet goes on from here.
async fn tell(shared: &Shared, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
    let written = write(shared, claim, PENDING, None, condition("FileSystemResizePending")).await?;
    let text = "Require file system resize of volume on node";
    shared
        .recorder
        .event(&written, Normal, "FileSystemResizeRequired", text);
    Ok(())
}

fn condition(kind: &str) -> Option<PersistentVolumeClaimCondition> {
    let waits = kind == "FileSystemResizePending";
    Some(PersistentVolumeClaimCondition {
        type_: kind.into(),
        status: "True".into(),
        last_transition_time: Some(Time(keelson_clock::now())),
        message: waits
            .then(|| "Waiting for user to (re-)start a pod to finish file system resize of volume on node.".into()),
        ..Default::default()
    })
}

async fn write(
    shared: &Shared,
    claim: &PersistentVolumeClaim,
    phase: &str,
    allocated: Option<i64>,
    condition: Option<PersistentVolumeClaimCondition>,
) -> anyhow::Result<PersistentVolumeClaim> {
    let mut changed = claim.clone();
    let status = changed.status.get_or_insert_default();
    let statuses = status.allocated_resource_statuses.get_or_insert_default();
    statuses.insert("storage".into(), phase.into());
    if let Some(bytes) = allocated {
        let resources = status.allocated_resources.get_or_insert_default();
        resources.insert("storage".into(), quantity(bytes));
    }
    if let Some(condition) = condition {
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != "Resizing" && c.type_ != condition.type_);
        conditions.push(condition);
    }
    Ok(shared.claim_objects.update_status(&changed).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_after_the_other() {
        let judge = |wanted: &str, held: &str, has: &str, phase: &str| {
            let claim = format!(
                r#"{{"metadata":{{"name":"c"}},"spec":{{"resources":{{"requests":{{"storage":"{wanted}"}}}}}},"status":{{"capacity":{{"storage":"{held}"}},"allocatedResourceStatuses":{{"storage":"{phase}"}}}}}}"#
            );
            let volume = format!(r#"{{"metadata":{{"name":"v"}},"spec":{{"capacity":{{"storage":"{has}"}}}}}}"#);
            decide(
                &PersistentVolumeClaim::decode(claim.as_bytes()).expect("a claim"),
                &PersistentVolume::decode(volume.as_bytes()).expect("a volume"),
            )
        };
        assert_eq!(judge("1Gi", "1Gi", "1Gi", ""), Step::Nothing);
        assert_eq!(judge("2Gi", "1Gi", "1Gi", ""), Step::Grow(2 << 30));
        assert_eq!(judge("2Gi", "1Gi", "1Gi", BEGUN), Step::Grow(2 << 30), "after a crash");
        assert_eq!(judge("2Gi", "1Gi", "2Gi", BEGUN), Step::Tell, "after another");
        assert_eq!(judge("2Gi", "1Gi", "2Gi", PENDING), Step::Nothing);
        assert_eq!(judge("3Gi", "1Gi", "2Gi", "NodeResizeInProgress"), Step::Nothing);
    }
}
