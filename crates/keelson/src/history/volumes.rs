//! Claims that come back, and the volumes that they had.

use crate::backup::back::Claims;
use crate::backup::volume::{CLAIMS, VOLUMES, try_on};
use anyhow::Context;
use http::Method;
use keelson_backup::objects::Object;
use keelson_client::rest::{Error, JSON, Rest};
use serde_json::{Value, json};

/// A volume that was retained waits, released, for whoever says that the claim may have it again: its administrator, so it takes the right to
/// change volumes.
pub struct Retained;

/// What may be done with the volume that a claim had.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is still this claim's, whose uid it has, and nobody deletes it.
    Free,
    /// Bound to another, or given up.
    Lost(&'static str),
}

fn fate(volume: &Value, claim: &Object) -> Fate {
    let text = |path: &str| volume.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let is_its = text("/spec/claimRef/namespace") == claim.namespace()
        && text("/spec/claimRef/name") == claim.name()
        && text("/spec/claimRef/uid") == claim.uid();
    match (
        is_its,
        text("/status/phase"),
        text("/spec/persistentVolumeReclaimPolicy"),
    ) {
        _ if volume.pointer("/metadata/deletionTimestamp").is_some() => Fate::Lost("is being deleted"),
        (false, ..) => Fate::Lost("is another claim's now"),
        (true, "Released", "Retain") => Fate::Free,
        (true, "Released" | "Failed", _) => Fate::Lost("is about to be deleted or emptied, as its reclaim policy says"),
        (true, ..) => Fate::Lost("isn't released yet: wait a moment, or delete the claim and try again"),
    }
}

impl Claims for Retained {
    async fn fill(&self, to: &Rest, claim: &Object, name: &str, value: &mut Value) -> anyhow::Result<Option<String>> {
        let volume: Value = match to.get_raw(&VOLUMES, "", name, "", JSON).await {
            Ok(json) => serde_json::from_slice(&json)?,
            Err(Error::Api(status)) if status.code == 404 => {
                return Ok(Some(format!("without its data: the volume {name} is gone with it")));
            }
            Err(error) => return Err(error).with_context(|| format!("whether its volume {name} is still there")),
        };
        if let Fate::Lost(why) = fate(&volume, claim) {
            return Ok(Some(format!("without its data: the volume {name} {why}")));
        }
        let mut wanted = value.clone();
        wanted["spec"]["volumeName"] = name.into();
        // Asked dry first: the volume isn't made free for a claim that is refused.
        try_on(to, &CLAIMS, claim.namespace(), &wanted).await?;
        let freed = json!({
            "metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]},
            "spec": {"claimRef": {"uid": null, "resourceVersion": null}}});
        let path = format!("{}/{name}", VOLUMES.path(""));
        let patched = to
            .call(
                Method::PATCH,
                &path,
                "application/merge-patch+json",
                serde_json::to_vec(&freed)?,
            )
            .await;
        patched.with_context(|| {
            format!(
                "its volume {name} is there, with its data, and has to be given back to it: you may not, or not now"
            )
        })?;
        *value = wanted;
        Ok(Some(format!("with its data, in the volume {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_retained_for_this_claim_is_bound_again() {
        let claim = Object {
            resource: "persistentvolumeclaims".into(),
            value: json!({"metadata": {"namespace": "shop", "name": "data", "uid": "u"}, "spec": {"volumeName": "pv"}}),
        };
        let volume = |uid: &str, phase: &str, policy: &str| json!({"metadata": {}, "spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": uid}, "persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
        assert_eq!(fate(&volume("u", "Released", "Retain"), &claim), Fate::Free);
        for lost in [
            volume("other", "Released", "Retain"),
            volume("u", "Released", "Delete"),
            volume("u", "Bound", "Retain"),
            json!({"spec": {}, "status": {"phase": "Available"}}),
        ] {
            assert!(matches!(fate(&lost, &claim), Fate::Lost(_)), "{lost}");
        }
        let mut deleting = volume("u", "Released", "Retain");
        deleting["metadata"]["deletionTimestamp"] = "t".into();
        assert!(matches!(fate(&deleting, &claim), Fate::Lost(_)));
    }
}
