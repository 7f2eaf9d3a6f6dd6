//! The condition `Unused` of claims: since when no pod has named the claim, or that one does. Pure; the clock is an argument.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::ApiObject;

const UNUSED: &str = "Unused";

/// Whether the condition is kept: not while a claim is being bound, which has a writer of its own.
pub fn is_told(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    !claim.is_deleting() && phase == Some("Bound")
}

/// Whether the claim says otherwise, or nothing yet.
pub fn differs(claim: &PersistentVolumeClaim, is_used: bool) -> bool {
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut said = conditions.filter(|c| c.type_ == UNUSED).map(|c| c.status == "True");
    said.next() != Some(!is_used)
}

pub fn tell(claim: &PersistentVolumeClaim, is_used: bool, now: jiff::Timestamp) -> PersistentVolumeClaim {
    let (status, reason, message) = match is_used {
        true => ("False", "PodUsingPVC", "A pod is currently referencing this PVC"),
        false => ("True", "NoPodsUsingPVC", "No pods are currently referencing this PVC"),
    };
    let condition = PersistentVolumeClaimCondition {
        type_: UNUSED.into(),
        status: status.into(),
        last_transition_time: Some(Time(now)),
        reason: Some(reason.into()),
        message: Some(message.into()),
        ..Default::default()
    };
    let mut claim = claim.clone();
    let conditions = claim.status.get_or_insert_default().conditions.get_or_insert_default();
    match conditions.iter_mut().find(|c| c.type_ == UNUSED) {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    claim
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_says_since_when_nobody_uses_it() {
        let claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"status": {"phase": "Bound", "conditions": [{"type": "Resizing", "status": "True"}]}}),
        )
        .unwrap();
        assert!(is_told(&claim) && differs(&claim, false) && differs(&claim, true));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let unused = tell(&claim, false, now);
        assert!(!differs(&unused, false) && differs(&unused, true));
        let used = tell(&unused, true, now);
        let conditions = used.status.as_ref().and_then(|s| s.conditions.clone()).unwrap();
        assert_eq!((conditions.len(), conditions[1].status.as_str()), (2, "False"));
        let pending: PersistentVolumeClaim = serde_json::from_value(json!({"status": {"phase": "Pending"}})).unwrap();
        assert!(!is_told(&pending));
    }
}
